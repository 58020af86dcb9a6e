#!lua
-- Make a user a member of a group without a redemption. The namespace's rule holds.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings  hash  of the namespace
-- KEYS[4] member    hash  of the user
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] user
-- ARGV[8] group
-- replies   {'fenced'} | {'joined', at} | {'already', at, redemption id} | {'already_member', group, redemption id}
--           | {'elsewhere'}   the user is not known here, and nobody new comes in here any more
--           | {'namespace_not_found'}; a redemption id is empty for one who joined another way
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

local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at', 'membership', 'sealed')
if not settings[1] or settings[2] then return {'namespace_not_found'} end
local fields = to_table(redis.call('HGETALL', KEYS[4]))
if settings[4] and not next(fields) then return {'elsewhere'} end
local wanted = 'group:' .. ARGV[8]
local pointer = fields[wanted] and wanted
if not pointer and settings[3] == 'one_group' then
  for name in pairs(fields) do
    if string.sub(name, 1, 6) == 'group:' then pointer = name end
  end
end
if pointer then
  local made = fields[fields[pointer]]
  local at = string.match(made, '(%d+)$')
  local redemption = not string.match(made, '^joined ') and string.match(made, '^%S+') or ''
  if pointer == wanted then return {'already', tonumber(at), redemption} end
  return {'already_member', string.sub(pointer, 7), redemption}
end
-- Nothing above writes; nothing below refuses.
local position = record('joined', ARGV[5], ARGV[6], 'user', ARGV[7], 'group', ARGV[8], 'rule', settings[3])
redis.call('HSET', KEYS[4], wanted, position, position, 'joined ' .. at)
return {'joined', now}
