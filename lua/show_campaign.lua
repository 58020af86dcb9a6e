#!lua flags=no-writes
-- The exact state of one campaign.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings       hash  of the namespace
-- KEYS[4] campaigns      hash  of the namespace
-- KEYS[5] campaign-held  zset  of the namespace
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] name of the campaign
-- replies   {'fenced'} | {'campaign', fields, uses that are held} | {'not_found'}
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
local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at')
if not settings[1] or settings[2] then return {'not_found'} end
local name = ARGV[5] .. ':'
local values = redis.call('HMGET', KEYS[4], name .. 'uses', name .. 'max_uses', name .. 'revision', name .. 'created_at',
  name .. 'updated_at', name .. 'total')
if not values[1] then return {'not_found'} end
local held = redis.call('ZLEXCOUNT', KEYS[5], '[' .. name .. string.format('%013d', now + 1), '(' .. ARGV[5] .. ';')
return {'campaign', {
  'uses', values[1], 'max_uses', values[2] or '', 'revision', values[3], 'created_at', values[4], 'updated_at', values[5],
  'total', values[6] or ''
}, held}
