-- Cells: small values that handlers coordinate with, compared before they are changed.
--
-- One hash; a field is named as its cell and holds the owner, the token, the beat and the value as one msgpack array.
-- Cells are few and small, so they may still be written on a server that is full: leases hold while the log waits.

local function look_at(key, name)
    local packed = redis.call('HGET', key, name)
    if not packed then
        return nil
    end
    local owner, token, beat, value = unpack(cmsgpack.unpack(packed))
    return { owner = owner, token = token, beat = beat, value = value }
end

local function put(key, name, cell)
    redis.call('HSET', key, name, cmsgpack.pack({ cell.owner, cell.token, cell.beat, cell.value }))
    return { cell.owner, cell.token, cell.beat, cell.value }
end

local function holds(cell, owner, token)
    return cell and cell.owner == owner and cell.token == tonumber(token)
end

-- Return a cell, nil if there is none. args: name.
local function look(keys, args)
    local cell = look_at(keys[1], args[1])
    return cell and { cell.owner, cell.token, cell.beat, cell.value } or false
end

-- Become the owner of a cell that is as it was seen. args: name, new owner, then what was seen, nothing for no cell:
-- owner, token, beat, value.
local function take(keys, args)
    local cell = look_at(keys[1], args[1])
    if not cell then
        return #args == 2 and put(keys[1], args[1], { owner = args[2], token = 1, beat = 0, value = '' }) or false
    end
    if not holds(cell, args[3], args[4]) or cell.beat ~= tonumber(args[5]) or cell.value ~= args[6] then
        return false
    end
    cell.owner, cell.token = args[2], cell.token + 1
    return put(keys[1], args[1], cell)
end

-- Set the value of a cell and renew it; the reply's first element says whether its owner was allowed to.
-- args: name, owner, token, value.
local function write(keys, args)
    local cell = look_at(keys[1], args[1])
    if not holds(cell, args[2], args[3]) then
        return { 0, cell and cell.owner or '' }
    end
    cell.beat, cell.value = cell.beat + 1, args[4]
    return { 1, unpack(put(keys[1], args[1], cell)) }
end

-- Give a cell up, its value kept. args: name, owner, token.
local function free(keys, args)
    local cell = look_at(keys[1], args[1])
    if holds(cell, args[2], args[3]) then
        cell.owner = ''
        put(keys[1], args[1], cell)
    end
end

-- Forget a cell. args: name, owner, token.
local function drop(keys, args)
    if holds(look_at(keys[1], args[1]), args[2], args[3]) then
        redis.call('HDEL', keys[1], args[1])
    end
end

local function register(name, callback, flag)
    redis.register_function({ function_name = 'esper_cell_' .. name .. '_@TAG@', callback = callback, flags = { flag } })
end

register('look', look, 'no-writes')
register('take', take, 'allow-oom')
register('write', write, 'allow-oom')
register('free', free, 'allow-oom')
register('drop', drop, 'allow-oom')
