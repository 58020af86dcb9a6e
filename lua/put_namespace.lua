#!lua
-- Make, change or archive a namespace.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings  hash  of the namespace
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] action     put (make, or change and bring back), ensure (make unless it was ever made), patch, archive
-- ARGV[8] change     an id of this change; a repeat changes nothing more
-- ARGV[9] revision   change only this revision; empty for any
-- ARGV[10..] field and value in turn; an empty value removes the field
-- replies   {'fenced'} | {'created', now, fields} | {'changed', now, fields} | {'not_found'}
--           | {'precondition_failed', revision}
--           | {'fixed_rules', fields}   membership, code_case, code_check or spread differ from what they were made with
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
local function to_table(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local action = ARGV[7]
local settings = to_table(redis.call('HGETALL', KEYS[3]))
local exists = settings.revision ~= nil
if not exists and (action == 'patch' or action == 'archive') then return {'not_found'} end
if not exists and ARGV[9] ~= '' then return {'precondition_failed', 0} end
if exists then
  local unchanged = {'changed', now, redis.call('HGETALL', KEYS[3])}
  if action == 'ensure' or settings.last_change == ARGV[8] then return unchanged end
  if action == 'archive' and settings.archived_at then return unchanged end
  if action == 'patch' and settings.archived_at then return {'not_found'} end
  if ARGV[9] ~= '' and ARGV[9] ~= settings.revision then
    return {'precondition_failed', tonumber(settings.revision)}
  end
end

local removed = {}
for i = 10, #ARGV, 2 do
  local name, value = ARGV[i], ARGV[i + 1]
  local fixed = name == 'membership' or name == 'code_case' or name == 'code_check'
    or name == 'spread' and action == 'put'
  if exists and fixed then
    local is = settings[name] or ''
    -- One that was spread before and is not any more says so.
    if name == 'spread' and is == '1' then is = '' end
    if is ~= value then return {'fixed_rules', redis.call('HGETALL', KEYS[3])} end
  elseif value == '' then
    settings[name] = nil
    removed[#removed + 1] = name
  else
    settings[name] = value
  end
end
if action == 'put' then
  settings.archived_at = nil
  removed[#removed + 1] = 'archived_at'
elseif action == 'archive' then
  settings.archived_at = at
end
settings.revision = int((settings.revision or 0) + 1)
settings.created_at = settings.created_at or at
-- Shards tell by it which of two changes is the later one, also where a failover has taken one back here.
local is_spread = settings.updated_at and (settings.spread or settings.layouts)
settings.updated_at = is_spread and int(math.max(now, settings.updated_at + 1)) or at
settings.last_change = ARGV[8]
local fields = {}
for name, value in pairs(settings) do
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end
-- Nothing above writes; nothing below refuses.
record('namespace', ARGV[5], ARGV[6], unpack(fields))
if #removed > 0 then redis.call('HDEL', KEYS[3], unpack(removed)) end
redis.call('HSET', KEYS[3], unpack(fields))
return {exists and 'changed' or 'created', now, fields}
