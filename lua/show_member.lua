#!lua flags=no-writes
-- The groups that a user is in.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings  hash  of the namespace
-- KEYS[4] member    hash  of the user
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- replies   {'fenced'} | {'namespace_not_found'}
--           | {'member', 1 if anything is remembered of the user, for each group: its name, since when, the redemption's id or nothing...}
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

local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at')
if not settings[1] or settings[2] then return {'namespace_not_found'} end
local fields = to_table(redis.call('HGETALL', KEYS[4]))
local reply = {'member', next(fields) and 1 or 0}
for name, position in pairs(fields) do
  if string.sub(name, 1, 6) == 'group:' then
    local made = fields[position]
    reply[#reply + 1] = string.sub(name, 7)
    reply[#reply + 1] = tonumber(string.match(made, '(%d+)$'))
    reply[#reply + 1] = not string.match(made, '^joined ') and string.match(made, '^%S+') or ''
  end
end
return reply
