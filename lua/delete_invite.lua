#!lua flags=allow-oom
-- Delete an invite that nobody has redeemed.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings   hash    of the namespace
-- KEYS[4] invite     hash    of the invite's code
-- KEYS[5] retired    hash    of the invite's id
-- KEYS[6] invite-id  string  of the invite's id
-- KEYS[7] held       zset    of the invite's code
-- KEYS[8] campaign-held  zset  of the namespace
-- KEYS[9] moves      hash    of the invite's id
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the invite
-- ARGV[8] revision   delete only this revision; empty for any
-- replies   {'fenced'} | {'deleted'} | {'not_found'} | {'uses_elsewhere'} | {'in_use', uses, uses that are held} | {'precondition_failed', revision}
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
local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at', 'shard')
if not settings[1] or settings[2] then return {'not_found'} end
local key = KEYS[4]
local invite = redis.call('HMGET', key, 'id', 'uses', 'granted', 'revision', 'campaign', 'code', 'max_uses', 'total')
if invite[1] ~= ARGV[7] then
  key = KEYS[5]
  invite = redis.call('HMGET', key, 'id', 'uses', 'granted', 'revision', 'campaign', 'code', 'max_uses', 'total')
  if invite[1] ~= ARGV[7] then return {'not_found'} end
end
if ARGV[8] ~= '' and ARGV[8] ~= invite[4] then return {'precondition_failed', tonumber(invite[4])} end
local held = key == KEYS[4] and redis.call('ZCOUNT', KEYS[7], '(' .. at, '+inf') or 0
if tonumber(invite[3]) > 0 or held > 0 then return {'in_use', tonumber(invite[2]), held} end
-- In a namespace that is spread all uses must be at the home before it goes, and none in a copy.
local whole = settings[3] and '0' or invite[8]
if whole and invite[7] ~= whole then return {'uses_elsewhere'} end
-- Nothing above writes; nothing below refuses.
record('invite_deleted', ARGV[5], ARGV[6], 'id', ARGV[7])
if key == KEYS[4] then
  -- What is left there has run out.
  local held = redis.call('ZRANGE', KEYS[7], 0, -1, 'WITHSCORES')
  for i = 1, invite[5] and #held or 0, 2 do
    redis.call('ZREM', KEYS[8], invite[5] .. ':' .. string.format('%013d', held[i + 1]) .. ':' .. invite[6] .. ':' .. held[i])
  end
  redis.call('DEL', KEYS[7])
end
redis.call('DEL', key, KEYS[6], KEYS[9])
return {'deleted'}
