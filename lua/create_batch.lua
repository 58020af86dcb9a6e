#!lua
-- Make some invites of a batch. They are alike but for their ids and codes. An id that has made an invite before makes
-- none again; a code that another invite has, also an ended one, is left to it and told.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings   hash    of the namespace
-- KEYS[4] campaigns  hash    of the namespace
-- KEYS[5..] for each invite: invite (hash, of its code), invite-id (string, of its id)
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] changes in the outbox from which on nothing is made
-- ARGV[8] how many of the next values are fields of all
-- ARGV[9..] field and value in turn: batch, group, and what the caller set of max_uses, max_uses_per_user,
--           campaign, starts_at, expires_at, email_domains, metadata; then id and code of each invite, in the order of the keys
-- replies   {'fenced'} | {'namespace_not_found'} | {'campaign_not_found'} | {'overloaded'}
--           | {'created', epoch-seq, place...}   the partition's last change; places (from 0) whose codes are taken
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
-- Without limit, where uses move between shards.
local UNLIMITED = '4503599627370496'
local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at', 'spread')
if not settings[1] or settings[2] then return {'namespace_not_found'} end
if changes_waiting() >= tonumber(ARGV[7]) then return {'overloaded'} end
local fields, total = {}, settings[3] and UNLIMITED
for i = 9, 8 + ARGV[8] do fields[#fields + 1] = ARGV[i] end
for i = 1, #fields, 2 do
  if total and fields[i] == 'max_uses' then total = fields[i + 1] end
end
-- In a namespace that is spread all uses are here at first, and there is always a limit.
if total == UNLIMITED then
  fields[#fields + 1] = 'max_uses'
  fields[#fields + 1] = total
end
if total then
  fields[#fields + 1] = 'total'
  fields[#fields + 1] = total
end
for i = 1, #fields, 2 do
  if fields[i] == 'campaign' and redis.call('HEXISTS', KEYS[4], fields[i + 1] .. ':uses') == 0 then
    return {'campaign_not_found'}
  end
end
for _, value in ipairs({'uses', '0', 'granted', '0', 'revision', '1', 'created_at', at, 'updated_at', at}) do
  fields[#fields + 1] = value
end
-- Mostly none of the keys is there, which one look says.
local is_new = redis.call('EXISTS', unpack(KEYS, 5)) == 0
local taken, invites, codes, names, seen = {}, {}, {}, {}, {}
for i = 5, #KEYS, 2 do
  local own = 9 + ARGV[8] + i - 5
  local invite, by_id, id, code = KEYS[i], KEYS[i + 1], ARGV[own], ARGV[own + 1]
  if is_new or redis.call('EXISTS', by_id) == 0 then
    if seen[invite] or not is_new and redis.call('EXISTS', invite) == 1 then
      taken[#taken + 1] = (i - 5) / 2
    else
      seen[invite] = true
      invites[#invites + 1] = {invite, 'id', id, 'code', code, unpack(fields)}
      codes[#codes + 1] = id .. ' ' .. code
      names[#names + 1] = by_id
      names[#names + 1] = code
    end
  end
end
-- Nothing above writes; nothing below refuses.
if #invites > 0 then
  record('invites_created', ARGV[5], ARGV[6], 'codes', table.concat(codes, ' '), unpack(fields))
  for _, invite in ipairs(invites) do redis.call('HSET', unpack(invite)) end
  redis.call('MSET', unpack(names))
end
return {'created', epoch .. '-' .. int(seq), unpack(taken)}
