#!lua
-- Get uses of an invite that another participant of a namespace that is spread has given to this one. The ledger must
-- have what was given: a giver that forgets it would have the same uses again.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] invite   hash  of the invite's code
-- KEYS[4] retired  hash  of the invite's id
-- KEYS[5] held     zset  of the invite's code
-- KEYS[6] moves    hash  of the invite's id: see give_uses.lua
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the invite here
-- ARGV[8] giver  the participant that has given
-- ARGV[9] given  how much it has ever given to this one
-- replies   {'fenced'} | {'absent'}
--           | {'part', epoch, revision, max_uses, total or '', uses, granted, uses that are held, how often any
--              was, first of the deadlines or '', fields of moves}
-- What was got before is not got again, however late a repeat comes.
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
local key = KEYS[4]
for i = 3, 4 do
  if redis.call('HGET', KEYS[i], 'id') == ARGV[7] then key = KEYS[i] break end
end
local invite = redis.call('HMGET', key, 'id', 'max_uses', 'total', 'uses', 'granted', 'code', 'revision', 'holds')
if invite[1] ~= ARGV[7] then return {'absent'} end
local max_uses, given = tonumber(invite[2]), tonumber(ARGV[9])
-- What has lost its code has lost what was held of it.
local held = key == KEYS[3] and redis.call('ZRANGEBYSCORE', KEYS[5], '(' .. at, '+inf', 'WITHSCORES') or {}
local amount = given - (redis.call('HGET', KEYS[6], 'taken:' .. ARGV[8]) or 0)
-- Nothing above writes; nothing below refuses.
if amount > 0 then
  max_uses = max_uses + amount
  record('uses_taken', ARGV[5], ARGV[6], 'invite', ARGV[7], 'code', invite[6], 'participant', ARGV[8],
    'taken', int(given), 'max_uses', int(max_uses))
  redis.call('HSET', key, 'max_uses', int(max_uses))
  redis.call('HSET', KEYS[6], 'taken:' .. ARGV[8], int(given))
end
return {
  'part', epoch, invite[7], int(max_uses), invite[3] or '', invite[4], invite[5], #held / 2, invite[8] or '0',
  held[2] or '', redis.call('HGETALL', KEYS[6])
}
