-- What writes to a log on Redis: making it, appending to it, putting records back, noting chain values.
--
-- Every check comes before the first write, because a Function that fails half-way is not undone. Every write of one
-- call reaches the append-only file as one transaction. The first argument of each function is a msgpack array that
-- begins with the log's id, the highest position the caller ever saw acknowledged, and two names: one made up for this
-- call, and the instance the caller knows, empty where it only reads.

local BATCH = 1000 -- ids and index elements a command, far below Lua's limit of stacked values
local PLACE = 65536 -- an element of a stream's index is position * PLACE + number of the topic

-- The first name a caller gave since the server started or took over another data set. It lives in memory only, so
-- that a caller notices when what it remembers may be of another history.
local instance = false

local function integer(number)
    return string.format('%d', number)
end

-- Compare the log with what the caller knows of it; returns its state, or nil and the reply that refuses.
local function enter(meta, request)
    local candidate, known = request[3][1], request[3][2]
    instance = instance or candidate
    local found = redis.call('HMGET', meta, 'log_id', 'position', 'recorded_at', 'trimmed', 'trimmed_chain')
    if found[1] ~= request[1] then
        return nil, { 'replaced', instance, found[1] or '' }
    end
    local state = { position = tonumber(found[2]), recorded_at = tonumber(found[3]), trimmed = tonumber(found[4]),
        trimmed_chain = found[5] or '' }
    if not (state.position and state.recorded_at and state.trimmed) then
        return nil, { 'damaged', instance, 0, meta .. ' does not say where the log ends' }
    end
    if state.position < request[2] then
        return nil, { 'regressed', instance, state.position }
    end
    if known ~= '' and known ~= instance then
        -- An older state may be here that others have written on: the caller looks before it writes.
        return nil, { 'anew', instance, state.position }
    end
    return state
end

local function damaged(position, reason)
    return { 'damaged', instance, position, reason }
end

-- Make the log, unless it is there; returns its id and format.
local function create(keys, args)
    if redis.call('EXISTS', keys[1]) == 0 then
        redis.call('HSET', keys[1], 'log_id', args[1], 'format', args[2], 'position', '0', 'recorded_at', '0',
            'trimmed', '0')
    end
    return redis.call('HMGET', keys[1], 'log_id', 'format')
end

-- Take ids apart; returns them, and the position each has if any has one ('0' for a new one).
local function look_up(ids, all, count)
    local each, any, sub = {}, false, string.sub
    for number = 1, count do
        each[number] = sub(all, 16 * number - 15, 16 * number)
    end
    local found = {}
    for first = 1, count, BATCH do
        local last = math.min(first + BATCH - 1, count)
        local there = redis.call('HMGET', ids, unpack(each, first, last))
        for number = first, last do
            local position = there[number - first + 1]
            any = any or position
            found[number] = position or '0'
        end
    end
    return each, any and found
end

-- Number the topics of a batch and check that each stream takes the next position; returns the refusal if not.
local function number_topics(topics, names, streams, position)
    local numbers, fresh = redis.call('HMGET', topics, unpack(names)), {}
    local known = redis.call('HLEN', topics)
    for place, name in ipairs(names) do
        if numbers[place] then
            numbers[place] = tonumber(numbers[place])
        else
            numbers[place] = known
            known = known + 1
            fresh[#fresh + 1] = name
            fresh[#fresh + 1] = numbers[place]
        end
        if redis.call('EXISTS', streams[place]) == 1 then
            local about = redis.call('XINFO', 'STREAM', streams[place])
            for at = 1, #about, 2 do
                if about[at] == 'last-generated-id' then
                    local last, part = about[at + 1]:match('^(%d+)-(%d+)$')
                    if tonumber(last) > position or part ~= '0' then
                        local reason = 'entry ' .. about[at + 1] .. ' of ' .. streams[place] .. ' is not of this log'
                        return nil, nil, damaged(position + 1, reason)
                    end
                end
            end
        end
    end
    if known > PLACE then
        return nil, nil, { 'topics', instance, PLACE }
    end
    return numbers, fresh
end

-- Write hash fields or list elements in commands of bounded size.
local function write_all(command, key, values)
    for first = 1, #values, 2 * BATCH do
        redis.call(command, key, unpack(values, first, math.min(first + 2 * BATCH - 1, #values)))
    end
end

-- Return the number of the stream's index elements that were trimmed away.
local function base_of(bases, stream, state)
    if state.trimmed == 0 then
        return 0
    end
    return tonumber(redis.call('HGET', bases, stream) or 0)
end

-- Append one batch to one stream.
-- keys: @meta, @ids, @versions, @topics, @bases, the stream's index, then the stream of each topic of the batch.
-- args: request {.., stream, expected, now, names of the topics, lengths, topic of each}, ids, contents.
local function append(keys, args)
    local request = cmsgpack.unpack(args[1])
    local stream, expected, now, names, lengths, places = unpack(request, 4, 9)
    local ids, versions, index = keys[2], keys[3], keys[6]
    local state, refusal = enter(keys[1], request)
    if not state then
        return refusal
    end
    local position, count = state.position, #lengths
    local each, found = look_up(ids, args[2], count)
    if found then
        -- Writes what is there already: what was appended while the server forced nothing is forced to disk now too.
        redis.call('HSET', keys[1], 'position', integer(position))
        return { 'known', instance, position, found }
    end
    local version = tonumber(redis.call('HGET', versions, stream) or 0)
    if expected ~= -1 and expected ~= version then
        return { 'conflict', instance, version }
    end
    if redis.call('LLEN', index) + base_of(keys[5], stream, state) ~= version then
        return damaged(position + 1, 'the index of stream ' .. stream .. ' does not have its ' .. version .. ' facts')
    end
    local streams = { unpack(keys, 7) }
    local numbers, fresh, foreign = number_topics(keys[4], names, streams, position)
    if not numbers then
        return foreign
    end

    if #fresh > 0 then
        redis.call('HSET', keys[4], unpack(fresh))
    end
    local recorded_at = math.max(state.recorded_at, now)
    local contents, offset, by_id, elements = args[3], 1, {}, {}
    local pack, sub, decimal, call = struct.pack, string.sub, string.format, redis.call
    for number = 1, count do
        position, version = position + 1, version + 1
        local following, place = offset + lengths[number], places[number]
        local head = pack('>BBI8BI8BI8', 0x9d, 0xcf, version, 0xcf, recorded_at, 0xcf, position + version + recorded_at)
        local id = decimal('%d', position)
        call('XADD', streams[place], id .. '-0', 'r', head .. sub(contents, offset, following - 1))
        by_id[2 * number - 1], by_id[2 * number] = each[number], id
        elements[number] = decimal('%d', position * PLACE + numbers[place])
        offset = following
    end
    write_all('HSET', ids, by_id)
    write_all('RPUSH', index, elements)
    redis.call('HSET', versions, stream, version)
    redis.call('HSET', keys[1], 'position', integer(position), 'recorded_at', integer(recorded_at))
    return { 'ok', instance, position, version }
end

-- Append records of another log, their numbers and times as they are.
-- keys: @meta, @ids, @versions, @topics, @bases, the stream of each topic, then the index of each stream.
-- args: request {.., first position, names of the topics, names of the streams, version each stream has,
--       then of each record: time, length, topic, stream}, ids, contents.
local function restore(keys, args)
    local request = cmsgpack.unpack(args[1])
    local first, names, owners, had, times, lengths, places, of = unpack(request, 4, 11)
    local state, refusal = enter(keys[1], request)
    if not state then
        return refusal
    end
    local position, count = state.position, #lengths
    local each, found = look_up(keys[2], args[2], count)
    if found then
        redis.call('HSET', keys[1], 'position', integer(position))
        return { 'known', instance, position, found }
    end
    if first ~= position + 1 or times[1] < state.recorded_at then
        return { 'moved', instance, position }
    end
    local streams, indexes = { unpack(keys, 6, 5 + #names) }, { unpack(keys, 6 + #names) }
    local versions = {}
    for place, owner in ipairs(owners) do
        versions[place] = tonumber(redis.call('HGET', keys[3], owner) or 0)
        local there = redis.call('LLEN', indexes[place]) + base_of(keys[5], owner, state)
        if versions[place] ~= had[place] or there ~= had[place] then
            return { 'moved', instance, position }
        end
    end
    local numbers, fresh, foreign = number_topics(keys[4], names, streams, position)
    if not numbers then
        return foreign
    end

    if #fresh > 0 then
        redis.call('HSET', keys[4], unpack(fresh))
    end
    local offset, by_id, elements = 1, {}, {}
    for number = 1, count do
        position = position + 1
        local owner, place, following = of[number], places[number], offset + lengths[number]
        versions[owner] = versions[owner] + 1
        local total = position + versions[owner] + times[number]
        local head = struct.pack('>BBI8BI8BI8', 0x9d, 0xcf, versions[owner], 0xcf, times[number], 0xcf, total)
        local id = integer(position)
        redis.call('XADD', streams[place], id .. '-0', 'r', head .. args[3]:sub(offset, following - 1))
        by_id[2 * number - 1], by_id[2 * number] = each[number], id
        elements[owner] = elements[owner] or {}
        table.insert(elements[owner], integer(position * PLACE + numbers[place]))
        offset = following
    end
    write_all('HSET', keys[2], by_id)
    for place, owner in ipairs(owners) do
        write_all('RPUSH', indexes[place], elements[place])
        redis.call('HSET', keys[3], owner, versions[place])
    end
    redis.call('HSET', keys[1], 'position', integer(position), 'recorded_at', integer(times[count]))
    return { 'ok', instance, position }
end

-- Keep chain values of every 1,024th position, without gaps: the first one stays, another one is told.
-- keys: @meta, @chain. args: request {.., position of the first}, then the notes in order.
local function note(keys, args)
    local request = cmsgpack.unpack(args[1])
    local state, refusal = enter(keys[1], request)
    if not state then
        return refusal
    end
    local step = 1024
    for number = 2, #args do
        local position = request[4] + step * (number - 2)
        local there = redis.call('HGET', keys[2], integer(position))
        if there and there ~= args[number] then
            return damaged(position, 'another chain value was noted there')
        end
        if not there and position <= state.position and redis.call('HLEN', keys[2]) * step + step == position then
            redis.call('HSET', keys[2], integer(position), args[number])
        end
    end
    return { 'ok', instance, state.position }
end

redis.register_function('esper_create_@TAG@', create)
redis.register_function('esper_append_@TAG@', append)
redis.register_function('esper_restore_@TAG@', restore)
redis.register_function('esper_note_@TAG@', note)
