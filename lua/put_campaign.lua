#!lua
-- Make a campaign, or change its limit.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings       hash  of the namespace
-- KEYS[4] campaigns      hash  of the namespace
-- KEYS[5] campaign-held  zset  of the namespace
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] name of the campaign
-- ARGV[8] max_uses   empty for no limit. In a namespace that is spread it stands for the total, and what may be spent here
--           changes by as much
-- ARGV[9] revision   change only this revision; empty for any
-- ARGV[10] how many campaigns a namespace may have
-- replies   {'fenced'} | {'created', fields, uses that are held} | {'changed', fields, uses that are held}
--           | {'precondition_failed', revision} | {'limit_below_used', uses, uses that are held} | {'too_many'}
--           | {'namespace_not_found'}; a limit that stands already is 'changed', and nothing is
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
local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at', 'spread')
if not settings[1] or settings[2] then return {'namespace_not_found'} end
local name = ARGV[7] .. ':'
local values = redis.call('HMGET', KEYS[4], name .. 'uses', name .. 'max_uses', name .. 'revision', name .. 'created_at',
  name .. 'updated_at', name .. 'total')
local held = redis.call('ZLEXCOUNT', KEYS[5], '[' .. name .. string.format('%013d', now + 1), '(' .. ARGV[7] .. ';')
local function fields()
  return {
    'uses', values[1], 'max_uses', values[2] or '', 'revision', values[3], 'created_at', values[4], 'updated_at', values[5],
    'total', values[6] or ''
  }
end
-- One that was made before its namespace was spread gets its total now.
local is_spread = settings[3]
local total = is_spread and (values[6] or values[1] and (values[2] or UNLIMITED))
local wanted = ARGV[8] == '' and is_spread and UNLIMITED or ARGV[8]
if values[1] and (total or values[2] or '') == wanted and (not is_spread or values[6]) then
  return {'changed', fields(), held}
end
if ARGV[9] ~= '' and ARGV[9] ~= (values[3] or '0') then return {'precondition_failed', tonumber(values[3] or 0)} end
local max_uses = tonumber(wanted)
if total then max_uses = max_uses + (values[2] or UNLIMITED) - total end
if values[1] and max_uses and max_uses < values[1] + held then
  return {'limit_below_used', tonumber(values[1]), held}
end
-- Each has at least four fields, one of them uses; they are counted only when there may be too many.
if not values[1] and redis.call('HLEN', KEYS[4]) >= 4 * ARGV[10] then
  local count = 0
  for _, field in ipairs(redis.call('HKEYS', KEYS[4])) do
    if string.sub(field, -5) == ':uses' then count = count + 1 end
  end
  if count >= tonumber(ARGV[10]) then return {'too_many'} end
end
local word = values[1] and 'changed' or 'created'
values = {
  values[1] or '0', max_uses and int(max_uses), int((values[3] or 0) + 1), values[4] or at, at, is_spread and wanted
}
-- Nothing above writes; nothing below refuses.
record('campaign', ARGV[5], ARGV[6], 'name', ARGV[7], unpack(fields()))
redis.call('HSET', KEYS[4], name .. 'uses', values[1], name .. 'revision', values[3], name .. 'created_at', values[4],
  name .. 'updated_at', values[5])
for i, field in pairs({[2] = 'max_uses', [6] = 'total'}) do
  if values[i] then
    redis.call('HSET', KEYS[4], name .. field, values[i])
  else
    redis.call('HDEL', KEYS[4], name .. field)
  end
end
return {word, fields(), held}
