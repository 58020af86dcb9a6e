#!lua flags=no-writes
-- What some keys hold, all at one moment, and which moment that is.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3..] the keys to read
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- replies   {'fenced'} | {'read', position of the last change, now, values of each key...}: field and value in turn for a
--           hash, member and score for a sorted set, one value for a string, none for a key that is not there
--           | {'foreign', key, type}   a key that holds something else
-- The head, the same in every fenced script: KEYS[1] meta, KEYS[2] outbox, ARGV[1] deployment, ARGV[2] lineage,
-- ARGV[3] epoch (all three from the ledger), ARGV[4] now (ms; empty for the clock of Redis).
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'lineage', 'epoch', 'seq')
local lineage = string.match(redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)')
if lineage ~= ARGV[2] or meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] or meta[3] ~= ARGV[3] then
  return {'fenced'}
end
local epoch, seq = meta[3], tonumber(meta[4])
local now = tonumber(ARGV[4])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local function int(number) return string.format('%d', number) end
local at = int(now)
-- Appends one change to the outbox; its id is the change's place. Once a script has called this, nothing may fail, and
-- seq must be written.
local function append(change, ns, actor, ...)
  seq = seq + 1
  local position = epoch .. '-' .. int(seq)
  redis.call('XADD', KEYS[2], position, 'type', change, 'ns', ns, 'actor', actor, 'at', at, ...)
  return position
end
-- Appends one change, the only one or the next, and writes seq.
local function record(...)
  local position = append(...)
  redis.call('HSET', KEYS[1], 'seq', int(seq))
  return position
end
-- End of the head.
local reply = {'read', epoch .. '-' .. int(seq), now}
for i = 3, #KEYS do
  local type = redis.call('TYPE', KEYS[i]).ok
  if type == 'hash' then
    reply[#reply + 1] = redis.call('HGETALL', KEYS[i])
  elseif type == 'string' then
    reply[#reply + 1] = {redis.call('GET', KEYS[i])}
  elseif type == 'zset' then
    reply[#reply + 1] = redis.call('ZRANGE', KEYS[i], 0, -1, 'WITHSCORES')
  elseif type == 'none' then
    reply[#reply + 1] = {}
  else
    return {'foreign', KEYS[i], type}
  end
end
return reply
