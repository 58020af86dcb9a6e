#!lua
-- Give uses of an invite that nobody here has spent or holds to another participant of a namespace that is spread. The
-- other one gets them by take_uses.lua, once the ledger has this.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] invite   hash  of the invite's code
-- KEYS[4] retired  hash  of the invite's id
-- KEYS[5] held     zset  of the invite's code
-- KEYS[6] moves    hash  of the invite's id: given:<participant> is how much was ever given to it, and the place of the
--                        last time; taken:<participant> how much was ever got from it
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the invite here
-- ARGV[8] taker    the participant that is to get them
-- ARGV[9] known    how much of what was given to it the taker has got
-- ARGV[10] divisor what is free is divided into a portion for each of so many that was not given anything yet, and into
--                  at least two; 1 to give everything, 0 to give nothing and only look
-- ARGV[11] 1 at the home: an invite that was made before the namespace was spread gets its total
-- replies   {'fenced'} | {'absent'}
--           | {'part', epoch, revision, max_uses, total or '', uses, granted, uses that are held, how often any
--              was, first of the deadlines or '', fields of moves}
-- What was given and is not known to have been got is never given a second time: whoever reads given:<taker> in the reply
-- may bring it there.
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
-- Without limit, where uses move between shards.
local UNLIMITED = '4503599627370496'
local key = KEYS[4]
for i = 3, 4 do
  if redis.call('HGET', KEYS[i], 'id') == ARGV[7] then key = KEYS[i] break end
end
local invite = redis.call('HMGET', key, 'id', 'max_uses', 'total', 'uses', 'granted', 'code', 'revision', 'holds')
if invite[1] ~= ARGV[7] then return {'absent'} end
-- One that was made before its namespace was spread.
local is_old = ARGV[11] == '1' and not invite[3]
if is_old then
  invite[2] = invite[2] or UNLIMITED
  invite[3] = invite[2]
end
local max_uses, uses = tonumber(invite[2]), tonumber(invite[4])
-- What has lost its code has lost what was held of it.
local held = key == KEYS[3] and redis.call('ZRANGEBYSCORE', KEYS[5], '(' .. at, '+inf', 'WITHSCORES') or {}
local moved = redis.call('HGET', KEYS[6], 'given:' .. ARGV[8])
local given = moved and tonumber(string.match(moved, '^%d+')) or 0
local takers = 0
for _, field in ipairs(redis.call('HKEYS', KEYS[6])) do
  if string.sub(field, 1, 6) == 'given:' then takers = takers + 1 end
end
local divisor = tonumber(ARGV[10])
local portions = math.max(divisor - takers, math.min(divisor, 2))
local free, amount = max_uses - uses - #held / 2, 0
if portions > 0 and given == tonumber(ARGV[9]) and free > 0 then amount = math.ceil(free / portions) end
-- Nothing above writes; nothing below refuses.
if is_old then
  redis.call('HSET', key, 'max_uses', invite[2], 'total', invite[3])
  local holds_code = key == KEYS[3] and '1' or '0'
  record('invite_copied', ARGV[5], ARGV[6], 'holds_code', holds_code, unpack(redis.call('HGETALL', key)))
end
if amount > 0 then
  max_uses, given = max_uses - amount, given + amount
  local position = record('uses_given', ARGV[5], ARGV[6], 'invite', ARGV[7], 'code', invite[6], 'participant', ARGV[8],
    'given', int(given), 'max_uses', int(max_uses))
  redis.call('HSET', key, 'max_uses', int(max_uses))
  redis.call('HSET', KEYS[6], 'given:' .. ARGV[8], int(given) .. ' ' .. position)
  if key == KEYS[3] then redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', at) end
end
return {
  'part', epoch, invite[7], int(max_uses), invite[3] or '', invite[4], invite[5], #held / 2, invite[8] or '0',
  held[2] or '', redis.call('HGETALL', KEYS[6])
}
