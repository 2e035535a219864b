-- What reads a log on Redis. Nothing here writes. Bodies of records come back as one msgpack array of arrays, because
-- one long value costs a client far less than thousands of short ones.

local WINDOW = 16 -- positions read at first; twice as many each time while they are small
local MOST_WINDOW = 2048

-- Put a page together: a msgpack array header before the bodies.
local function page(bodies, count)
    bodies[0] = struct.pack('>BI4', 0xdd, count)
    return table.concat(bodies, '', 0, count)
end

-- Return position and body of an entry, or nil and the reply that names an entry that is not of this log.
local function entry_of(key, entry)
    local fields = entry[2]
    local position = tonumber(entry[1]:match('^(%d+)%-0$'))
    if not position or #fields ~= 2 or fields[1] ~= 'r' then
        local at = tonumber(entry[1]:match('^(%d+)'))
        return nil, damaged(at, 'entry ' .. entry[1] .. ' of ' .. key .. ' is not of this log')
    end
    return position, fields[2]
end

-- Return the end of the log.
-- keys: @meta. args: request.
local function tail(keys, args)
    local state, refusal = enter(keys[1], cmsgpack.unpack(args[1]))
    if not state then
        return refusal
    end
    return { 'ok', instance, state.position, state.trimmed, state.trimmed_chain }
end

-- Read records of all topics in order, up to a number of them or of bytes.
-- keys: @meta, @topics, the stream of every topic. args: request {.., after, limit, until, most bytes}.
local function read(keys, args)
    local request = cmsgpack.unpack(args[1])
    local after, limit, last, most = unpack(request, 4, 7)
    local state, refusal = enter(keys[1], request)
    if not state then
        return refusal
    end
    last = math.min(last, state.position, after + limit)
    if after >= last then
        return { 'ok', instance, state.position, state.trimmed, '', 0 }
    end
    if after < state.trimmed then
        return { 'trimmed', instance, state.position, state.trimmed }
    end
    if redis.call('HLEN', keys[2]) ~= #keys - 2 then
        return { 'topics', instance, state.position, state.trimmed }
    end
    local bodies, bytes, first, window = {}, 0, after + 1, WINDOW
    while first <= last and bytes < most do
        local upto = math.min(first + window - 1, last)
        local low, high = integer(first), integer(upto)
        for number = 3, #keys do
            local key = keys[number]
            for _, entry in ipairs(redis.call('XRANGE', key, low, high)) do
                local position, body = entry_of(key, entry)
                if not position then
                    return body
                end
                if bodies[position - after] then
                    return damaged(position, 'it stands in ' .. key .. ' and in another topic')
                end
                bodies[position - after] = body
                bytes = bytes + #body
            end
        end
        for position = first, upto do
            if not bodies[position - after] then
                return damaged(position, 'no topic has it, and the log goes on to ' .. integer(state.position))
            end
        end
        first = upto + 1
        if bytes * 8 < most then
            window = math.min(2 * window, MOST_WINDOW)
        end
    end
    return { 'ok', instance, state.position, state.trimmed, page(bodies, first - 1 - after), first - 1 }
end

-- Read records of some topics in order.
-- keys: @meta, @topics, the streams of the wanted topics that are known.
-- args: request {.., after, limit, until, most bytes, number of known topics}.
local function read_topics(keys, args)
    local request = cmsgpack.unpack(args[1])
    local after, limit, last, most, known = unpack(request, 4, 8)
    local state, refusal = enter(keys[1], request)
    if not state then
        return refusal
    end
    last = math.min(last, state.position)
    if after < math.min(state.trimmed, last) then
        return { 'trimmed', instance, state.position, state.trimmed }
    end
    if redis.call('HLEN', keys[2]) ~= known then
        return { 'topics', instance, state.position, state.trimmed }
    end
    local positions, bodies, bytes, window = {}, {}, 0, WINDOW
    local high, through = integer(last), after
    while through < last and #positions < limit and bytes < most do
        local wanted = math.min(window, limit - #positions)
        local found, at = {}, {}
        for number = 3, #keys do
            for _, entry in ipairs(redis.call('XRANGE', keys[number], integer(through + 1), high, 'COUNT', wanted)) do
                local position, body = entry_of(keys[number], entry)
                if not position then
                    return body
                end
                found[#found + 1], at[position] = position, body
            end
        end
        table.sort(found)
        local taken = math.min(wanted, #found)
        for number = 1, taken do
            local body = at[found[number]]
            positions[#positions + 1], bodies[#bodies + 1], bytes = found[number], body, bytes + #body
        end
        through = taken < wanted and last or found[taken]
        if bytes * 8 < most then
            window = math.min(2 * window, MOST_WINDOW)
        end
    end
    local all = page(bodies, #bodies)
    return { 'ok', instance, state.position, state.trimmed, all, through, cmsgpack.pack(positions) }
end

-- Read records of one stream by version.
-- keys: @meta, @topics, @bases, the stream's index, the stream of every topic.
-- args: request {.., stream, after, limit, most bytes}.
local function read_stream(keys, args)
    local request = cmsgpack.unpack(args[1])
    local stream, after, limit, most = unpack(request, 4, 7)
    local state, refusal = enter(keys[1], request)
    if not state then
        return refusal
    end
    local base = base_of(keys[3], stream, state)
    if after < base then
        return { 'trimmed', instance, state.position, base }
    end
    if redis.call('HLEN', keys[2]) ~= #keys - 4 then
        return { 'topics', instance, state.position, state.trimmed }
    end
    local positions, bodies, bytes, window = {}, {}, 0, WINDOW
    while #positions < limit and bytes < most do
        local start, wanted = after - base + #positions, math.min(window, limit - #positions)
        local elements = redis.call('LRANGE', keys[4], start, start + wanted - 1)
        local number = 1
        while number <= #elements do
            -- Facts of one topic that stand together in the log are read together.
            local element = tonumber(elements[number])
            local topic, run = element % PLACE, 1
            local first = (element - topic) / PLACE
            while tonumber(elements[number + run]) == element + run * PLACE do
                run = run + 1
            end
            local key = keys[5 + topic]
            local entries = key and redis.call('XRANGE', key, integer(first), integer(first + run - 1)) or {}
            for place = 1, run do
                local position, body
                if entries[place] then
                    position, body = entry_of(key, entries[place])
                    if not position then
                        return body
                    end
                end
                if position ~= first + place - 1 then
                    local reason = 'stream ' .. stream .. ' has it, but its topic has not'
                    return damaged(first + place - 1, reason)
                end
                positions[#positions + 1], bodies[#bodies + 1], bytes = position, body, bytes + #body
            end
            number = number + run
        end
        if #elements < wanted then
            break
        end
        if bytes * 8 < most then
            window = math.min(2 * window, MOST_WINDOW)
        end
    end
    local all = page(bodies, #bodies)
    return { 'ok', instance, state.position, state.trimmed, all, #bodies, cmsgpack.pack(positions) }
end

-- Return the position of an event id, 0 if it is not there.
-- keys: @meta, @ids. args: request, id.
local function where(keys, args)
    local state, refusal = enter(keys[1], cmsgpack.unpack(args[1]))
    if not state then
        return refusal
    end
    return { 'ok', instance, state.position, tonumber(redis.call('HGET', keys[2], args[2]) or 0) }
end

-- Return the highest chain note at or below a position, 0 and '' if there is none.
-- keys: @meta, @chain. args: request {.., position}.
local function noted(keys, args)
    local request = cmsgpack.unpack(args[1])
    local state, refusal = enter(keys[1], request)
    if not state then
        return refusal
    end
    local step = 1024
    local at = math.min(redis.call('HLEN', keys[2]), math.floor(request[4] / step)) * step
    local value = at > 0 and redis.call('HGET', keys[2], integer(at)) or ''
    return { 'ok', instance, state.position, state.trimmed, at, value or '' }
end

-- Return everything that is kept beside the records, all of one moment.
-- keys: @meta, @topics, @ids, @versions, the stream of every topic. args: request.
local function snapshot(keys, args)
    local state, refusal = enter(keys[1], cmsgpack.unpack(args[1]))
    if not state then
        return refusal
    end
    if redis.call('HLEN', keys[2]) ~= #keys - 4 then
        return { 'topics', instance, state.position, state.trimmed }
    end
    local lengths = {}
    for number = 5, #keys do
        lengths[number - 4] = redis.call('XLEN', keys[number])
    end
    local ids, versions = redis.call('HLEN', keys[3]), redis.call('HGETALL', keys[4])
    return { 'ok', instance, state.position, state.trimmed, state.trimmed_chain, ids, versions, lengths }
end

local function reader(name, callback)
    redis.register_function({ function_name = name .. '_@TAG@', callback = callback, flags = { 'no-writes' } })
end

reader('esper_tail', tail)
reader('esper_read', read)
reader('esper_read_topics', read_topics)
reader('esper_read_stream', read_stream)
reader('esper_where', where)
reader('esper_noted', noted)
reader('esper_snapshot', snapshot)
