#!lua
-- Take over members who joined elsewhere. The namespace's rule holds; each line sees the effects of those before it, and
-- one that comes again changes nothing.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings  hash  of the namespace
-- KEYS[4..] for each line: member (hash, of its user)
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] changes in the outbox from which on nobody is taken over
-- ARGV[8..] for each line: user, group, and since when (ms; empty for now)
-- replies   {'fenced'} | {'namespace_not_found'} | {'overloaded'}
--           | {'done', epoch-seq, {word, group, redemption id}...}   the partition's last change; for each line imported,
--             unchanged, already_member or elsewhere (not known here, where nobody new comes in); a redemption id is empty for one who joined another way
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
-- How many changes wait in the outbox; an entry may hold those of a whole batch.
local function changes_waiting()
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if not oldest then return 0 end
  local first = oldest[2][3] == 'first' and oldest[2][4] or oldest[1]
  local first_epoch, first_seq = string.match(first, '^(%d+)-(%d+)$')
  if first_epoch ~= epoch then return redis.call('XLEN', KEYS[2]) + seq end
  return seq - first_seq + 1
end
local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at', 'membership', 'sealed')
if not settings[1] or settings[2] then return {'namespace_not_found'} end
if changes_waiting() >= tonumber(ARGV[7]) then return {'overloaded'} end
local members, told, joined = {}, {}, {}
local function member_of(key)
  local fields = members[key]
  if not fields then
    fields = {}
    local flat = redis.call('HGETALL', key)
    for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
    members[key] = fields
  end
  return fields
end

for i = 4, #KEYS do
  local own = 8 + (i - 4) * 3
  local user, group, since = ARGV[own], ARGV[own + 1], ARGV[own + 2]
  local fields = member_of(KEYS[i])
  local wanted = 'group:' .. group
  local pointer = fields[wanted] and wanted
  if not pointer and settings[3] == 'one_group' then
    for name in pairs(fields) do
      if string.sub(name, 1, 6) == 'group:' then pointer = name end
    end
  end
  if settings[4] and not next(fields) then
    told[#told + 1] = {'elsewhere', '', ''}
  elseif pointer then
    local made = fields[fields[pointer]]
    local direct = string.match(made, '^joined (%d+)$')
    if pointer == wanted and direct and (since == '' or since == direct) then
      told[#told + 1] = {'unchanged', '', ''}
    else
      told[#told + 1] = {'already_member', string.sub(pointer, 7), not direct and string.match(made, '^%S+') or ''}
    end
  else
    if since == '' then since = at end
    joined[#joined + 1] = {KEYS[i], user, group, since}
    local position = epoch .. '-' .. int(seq + #joined)
    fields[wanted], fields[position] = position, 'joined ' .. since
    told[#told + 1] = {'imported', '', ''}
  end
end
-- Nothing above writes; nothing below refuses.
for _, one in ipairs(joined) do
  local position =
    append('joined', ARGV[5], ARGV[6], 'user', one[2], 'group', one[3], 'rule', settings[3], 'joined_at', one[4])
  redis.call('HSET', one[1], 'group:' .. one[3], position, position, 'joined ' .. one[4])
end
if #joined > 0 then redis.call('HSET', KEYS[1], 'seq', int(seq)) end
return {'done', epoch .. '-' .. int(seq), unpack(told)}
