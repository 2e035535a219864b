-- What deletes from a log on Redis, and only what is sealed: the caller has compared the chain before.

-- Delete the records up to a position; their ids stay, so that a retry of them is still known.
-- keys: @meta, @bases, @topics, the stream of every topic, then the index of each stream that has records there.
-- args: request {.., last trimmed position, last position to delete, number of topics, names of the streams, how many
--       records of each, how many records in all}, the chain value there as a note.
local function trim(keys, args)
    local request = cmsgpack.unpack(args[1])
    local trimmed, through, topics, owners, counts, count = unpack(request, 4, 9)
    local state, refusal = enter(keys[1], request)
    if not state then
        return refusal
    end
    if state.trimmed == through then
        -- The reply to the same call was lost.
        return { 'ok', instance, state.position, through }
    end
    if state.trimmed ~= trimmed or redis.call('HLEN', keys[3]) ~= topics then
        return { 'moved', instance, state.trimmed }
    end
    if through > state.position or through - trimmed ~= count then
        return damaged(through, 'it cannot be trimmed: the log has other records than were sealed')
    end
    local indexes = { unpack(keys, 4 + topics) }
    for place, owner in ipairs(owners) do
        local last = tonumber(redis.call('LINDEX', indexes[place], counts[place] - 1) or 0)
        local following = tonumber(redis.call('LINDEX', indexes[place], counts[place]) or through * PLACE + PLACE)
        if last >= (through + 1) * PLACE or last <= trimmed * PLACE or following < (through + 1) * PLACE then
            return damaged(through, 'the index of stream ' .. owner .. ' has other records than were sealed')
        end
    end
    local there = 0
    for place = 4, 3 + topics do
        there = there + #redis.call('XRANGE', keys[place], '-', integer(through))
    end
    if there ~= count then
        return damaged(through, 'there are ' .. there .. ' entries up to it where ' .. count .. ' were sealed')
    end

    for place = 4, 3 + topics do
        redis.call('XTRIM', keys[place], 'MINID', '=', integer(through + 1))
    end
    for place, owner in ipairs(owners) do
        redis.call('LTRIM', indexes[place], counts[place], -1)
        redis.call('HINCRBY', keys[2], owner, counts[place])
    end
    redis.call('HSET', keys[1], 'trimmed', integer(through), 'trimmed_chain', args[2])
    return { 'ok', instance, state.position, through }
end

-- On a full server too: trimming is what makes room.
redis.register_function({ function_name = 'esper_trim_@TAG@', callback = trim, flags = { 'allow-oom' } })
