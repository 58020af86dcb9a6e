#!lua
-- Make a key hold what the ledger says, if it still holds what an audit saw. The audit looked at both sides while the
-- ledger was as far as the gate, so what differs came from neither: somebody has written to Redis by hand.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] the key to mend
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] type       what the key is to be: hash, zset, string or none
-- ARGV[6] how many of the following values are what the audit saw; the rest is what the key is to hold
-- ARGV[7..] each of the two: field and value in turn for a hash, member and score for a sorted set, one value for a
--           string, none for no key
-- replies   {'fenced'} | {'repaired'} | {'changed'}   it holds something else by now; look again
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
local seen, left = {}, tonumber(ARGV[6])
for i = 1, left do seen[i] = ARGV[6 + i] end
local type = redis.call('TYPE', KEYS[3]).ok
local held = {}
if type == 'hash' then
  held = redis.call('HGETALL', KEYS[3])
elseif type == 'zset' then
  held = redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
elseif type == 'string' then
  held = {redis.call('GET', KEYS[3])}
elseif type ~= 'none' then
  return {'changed'}
end
if #held ~= #seen then return {'changed'} end
if #held == 1 then
  if held[1] ~= seen[1] then return {'changed'} end
else
  local fields = {}
  for i = 1, #held, 2 do fields[held[i]] = held[i + 1] end
  for i = 1, #seen, 2 do
    if fields[seen[i]] ~= seen[i + 1] then return {'changed'} end
  end
end
-- Nothing above writes; nothing below refuses.
redis.call('DEL', KEYS[3])
local first = 7 + left
if ARGV[5] == 'string' then
  redis.call('SET', KEYS[3], ARGV[first])
elseif ARGV[5] == 'hash' then
  for at = first, #ARGV, 1000 do redis.call('HSET', KEYS[3], unpack(ARGV, at, math.min(at + 999, #ARGV))) end
elseif ARGV[5] == 'zset' then
  for at = first, #ARGV, 2 do redis.call('ZADD', KEYS[3], ARGV[at + 1], ARGV[at]) end
end
return {'repaired'}
