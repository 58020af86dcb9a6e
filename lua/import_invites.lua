#!lua
-- Take over invites that were made elsewhere, each with the uses that are spent there. Its id follows from what it is, so
-- that a line that comes again makes nothing new. A code that another invite has, also an ended one, is left to it.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings   hash    of the namespace
-- KEYS[4..] for each invite: invite (hash, of its code), invite-id (string, of its id)
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] changes in the outbox from which on nothing is taken over
-- ARGV[8..] for each invite, in the order of the keys: its id, its uses, the count of values that follow, then field and
--           value in turn: code, group, and what is set of max_uses, max_uses_per_user, starts_at, expires_at, disabled,
--           user, email_domains, metadata
-- replies   {'fenced'} | {'namespace_not_found'} | {'overloaded'}
--           | {'done', epoch-seq, {word, id of who has the code}...}   the partition's last change; for each invite
--             imported, unchanged (its id has made it before) or code_taken
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
local told, invites, holders, known = {}, {}, {}, {}
local next_arg = 8
for i = 4, #KEYS, 2 do
  local invite, by_id, id, uses = KEYS[i], KEYS[i + 1], ARGV[next_arg], ARGV[next_arg + 1]
  local first, last = next_arg + 3, next_arg + 2 + ARGV[next_arg + 2]
  next_arg = last + 1
  local holder = holders[invite] or redis.call('HGET', invite, 'id')
  if known[by_id] or redis.call('EXISTS', by_id) == 1 then
    told[#told + 1] = {'unchanged', ''}
  elseif holder then
    told[#told + 1] = {'code_taken', holder}
  else
    holders[invite], known[by_id] = id, true
    local fields, total = {'id', id}, settings[3] and UNLIMITED
    for place = first, last, 2 do
      if total and ARGV[place] == 'max_uses' then
        total = ARGV[place + 1]
      else
        fields[#fields + 1] = ARGV[place]
        fields[#fields + 1] = ARGV[place + 1]
      end
    end
    -- In a namespace that is spread all uses are here at first, and there is always a limit.
    for _, name in ipairs(total and {'max_uses', 'total'} or {}) do
      fields[#fields + 1] = name
      fields[#fields + 1] = total
    end
    for _, value in ipairs({'uses', uses, 'granted', uses, 'revision', '1', 'created_at', at, 'updated_at', at}) do
      fields[#fields + 1] = value
    end
    if uses ~= '0' then
      fields[#fields + 1] = 'imported'
      fields[#fields + 1] = uses
    end
    invites[#invites + 1] = {invite, by_id, ARGV[first + 1], fields}
    told[#told + 1] = {'imported', ''}
  end
end
-- Nothing above writes; nothing below refuses.
for _, one in ipairs(invites) do
  append('invite_imported', ARGV[5], ARGV[6], unpack(one[4]))
  redis.call('HSET', one[1], unpack(one[4]))
  redis.call('SET', one[2], one[3])
end
if #invites > 0 then redis.call('HSET', KEYS[1], 'seq', int(seq)) end
return {'done', epoch .. '-' .. int(seq), unpack(told)}
