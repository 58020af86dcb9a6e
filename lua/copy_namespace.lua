#!lua
-- Bring the rules of a shard to what its namespace has; the first time makes the shard.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings  hash  of the shard
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7..] field and value in turn, all that the home has but spread; and shard, its number and how many there are
-- replies   {'fenced'} | {'copied'}   it is as the home says, or newer
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
local wanted, fields = {}, {}
for i = 7, #ARGV, 2 do wanted[ARGV[i]] = ARGV[i + 1] end
for i = 7, #ARGV do fields[#fields + 1] = ARGV[i] end
local flat, removed = redis.call('HGETALL', KEYS[3]), {}
for i = 1, #flat, 2 do
  if flat[i] == 'updated_at' and tonumber(flat[i + 1]) >= tonumber(wanted.updated_at) then return {'copied'} end
  if not wanted[flat[i]] then removed[#removed + 1] = flat[i] end
end
-- Nothing above writes; nothing below refuses.
record('namespace_copied', ARGV[5], ARGV[6], unpack(fields))
if #removed > 0 then redis.call('HDEL', KEYS[3], unpack(removed)) end
redis.call('HSET', KEYS[3], unpack(fields))
return {'copied'}
