#!lua flags=allow-oom
-- End a user's membership of one group or of all. The uses stay spent, and what was answered stays remembered.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings  hash  of the namespace
-- KEYS[4] member    hash  of the user
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] user
-- ARGV[8] group      empty for all
-- replies   {'fenced'} | {'left', group...} | {'not_member'} | {'namespace_not_found'}
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
local groups = {}
for name in pairs(fields) do
  if string.sub(name, 1, 6) == 'group:' and (ARGV[8] == '' or name == 'group:' .. ARGV[8]) then
    groups[#groups + 1] = string.sub(name, 7)
  end
end
if #groups == 0 then return {'not_member'} end
-- By bytes: the order that strings have in Lua depends on the server's locale.
table.sort(groups, function(a, b)
  for i = 1, math.min(#a, #b) do
    if string.byte(a, i) ~= string.byte(b, i) then return string.byte(a, i) < string.byte(b, i) end
  end
  return #a < #b
end)
local removed = {}
for _, group in ipairs(groups) do
  local position = fields['group:' .. group]
  removed[#removed + 1] = 'group:' .. group
  if string.match(fields[position], '^joined ') then removed[#removed + 1] = position end
  for name, pointed in pairs(fields) do
    if string.sub(name, 1, 7) == 'invite:' then
      local _, _, of = string.match(fields[pointed .. ':invite'], '^(%S+) (%S+) (.+)$')
      if of == group then removed[#removed + 1] = name end
    end
  end
end
-- Nothing above writes; nothing below refuses.
for _, group in ipairs(groups) do record('left', ARGV[5], ARGV[6], 'user', ARGV[7], 'group', group) end
for _, name in ipairs(removed) do redis.call('HDEL', KEYS[4], name) end
return {'left', unpack(groups)}
