#!lua
-- Make an invite. A live invite keeps its code; an ended one (exhausted, expired, disabled) gives it up and moves aside.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings   hash    of the namespace
-- KEYS[4] invite     hash    of the code
-- KEYS[5] invite-id  string  of the new invite's id
-- KEYS[6] retired    hash    of the new invite's id: where it is when a repeat comes very late
-- KEYS[7] retired    hash    of the ended invite's id, where it moves to; KEYS[6] again when none is known
-- KEYS[8] held       zset    of the code: what is held of an ended invite is held no more once it has lost its code
-- KEYS[9] campaigns  hash    of the namespace
-- KEYS[10] campaign-held  zset  of the namespace
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the new invite
-- ARGV[8] id of the ended invite that may be moved, as learned from the reply 'ended'; empty when none is known
-- ARGV[9] in a namespace that is spread, id of the ended invite if it has no use left in any shard; else empty
-- ARGV[10..] field and value in turn: code, group, and what the caller set of max_uses, max_uses_per_user, campaign,
--           starts_at, expires_at, user, email_domains, metadata
-- replies   {'fenced'} | {'created', now, fields, uses that are held} | {'code_taken', invite id}
--           | {'namespace_not_found'} | {'campaign_not_found'}
--           | {'id_taken', code}     this id has made an invite of another code
--           | {'ended', invite id}   the code's invite has ended; ask again and name it
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
local spread, code, campaign = settings[3], nil, nil
for i = 10, #ARGV, 2 do
  if ARGV[i] == 'code' then code = ARGV[i + 1] end
  if ARGV[i] == 'campaign' then campaign = ARGV[i + 1] end
end
local known = redis.call('GET', KEYS[5])
if known and known ~= code then return {'id_taken', known} end
local holder = redis.call('HMGET', KEYS[4], 'id', 'uses', 'max_uses', 'expires_at', 'disabled', 'campaign', 'created_at')
if holder[1] == ARGV[7] then
  return {'created', now, redis.call('HGETALL', KEYS[4]), redis.call('ZCOUNT', KEYS[8], '(' .. at, '+inf')}
end
if redis.call('EXISTS', KEYS[6]) == 1 then return {'created', now, redis.call('HGETALL', KEYS[6]), 0} end
if campaign and redis.call('HEXISTS', KEYS[9], campaign .. ':uses') == 0 then return {'campaign_not_found'} end
if holder[1] then
  local exhausted = holder[3] and tonumber(holder[2]) >= tonumber(holder[3])
  -- What is left in the shards is not known here.
  if spread then exhausted = holder[1] == ARGV[9] end
  local expired = holder[4] and now >= tonumber(holder[4])
  if not (exhausted or expired or holder[5]) then return {'code_taken', holder[1]} end
  if holder[1] ~= ARGV[8] then return {'ended', holder[1]} end
end

local fields, total, made_at = {'id', ARGV[7]}, UNLIMITED, at
for i = 10, #ARGV, 2 do
  if spread and ARGV[i] == 'max_uses' then
    total = ARGV[i + 1]
  else
    fields[#fields + 1] = ARGV[i]
    fields[#fields + 1] = ARGV[i + 1]
  end
end
if spread then
  for _, value in ipairs({'max_uses', total, 'total', total}) do fields[#fields + 1] = value end
  -- Shards tell by it which of two invites of a code is the later one.
  if holder[1] and holder[7] + 1 > now then made_at = int(holder[7] + 1) end
end
for _, value in ipairs({'uses', '0', 'granted', '0', 'revision', '1', 'created_at', made_at, 'updated_at', made_at}) do
  fields[#fields + 1] = value
end
local entry = {unpack(fields)}
if holder[1] then
  entry[#entry + 1] = 'displaced'
  entry[#entry + 1] = holder[1]
end
-- Nothing above writes; nothing below refuses.
record('invite_created', ARGV[5], ARGV[6], unpack(entry))
if holder[1] then
  if holder[6] then
    local held = redis.call('ZRANGE', KEYS[8], 0, -1, 'WITHSCORES')
    for i = 1, #held, 2 do
      redis.call('ZREM', KEYS[10], holder[6] .. ':' .. string.format('%013d', held[i + 1]) .. ':' .. code .. ':' .. held[i])
    end
  end
  redis.call('DEL', KEYS[8])
  redis.call('RENAME', KEYS[4], KEYS[7])
end
redis.call('HSET', KEYS[4], unpack(fields))
redis.call('SET', KEYS[5], code)
return {'created', now, fields, 0}
