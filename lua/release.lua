#!lua flags=allow-oom
-- Give back a use that is held for a user.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings       hash  of the namespace
-- KEYS[4] invite         hash  of the code
-- KEYS[5] held           zset  of the code
-- KEYS[6] campaign-held  zset  of the namespace
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the invite
-- ARGV[8] code
-- ARGV[9] user
-- ARGV[10] until      the deadline of the reservation
-- replies   {'fenced'} | {'released'} | {'not_held'} | {'namespace_not_found'}; also in an archived namespace
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
if redis.call('HEXISTS', KEYS[3], 'revision') == 0 then return {'namespace_not_found'} end
local invite = redis.call('HMGET', KEYS[4], 'id', 'campaign')
local held_until = tonumber(redis.call('ZSCORE', KEYS[5], ARGV[9]))
if invite[1] ~= ARGV[7] or held_until ~= tonumber(ARGV[10]) then return {'not_held'} end
local function give_back()
  redis.call('ZREM', KEYS[5], ARGV[9])
  if invite[2] then
    local member = invite[2] .. ':' .. string.format('%013d', held_until) .. ':' .. ARGV[8] .. ':' .. ARGV[9]
    redis.call('ZREM', KEYS[6], member)
  end
end
-- What has run out is nobody's; it needs no entry to be gone.
if held_until <= now then
  give_back()
  return {'not_held'}
end
local entry = {'user', ARGV[9], 'invite', invite[1], 'code', ARGV[8], 'until', ARGV[10]}
if invite[2] then entry[9], entry[10] = 'campaign', invite[2] end
-- Nothing above writes; nothing below refuses.
record('released', ARGV[5], ARGV[6], unpack(entry))
give_back()
return {'released'}
