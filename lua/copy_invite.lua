#!lua
-- Copy an invite of a namespace that is spread into one of its shards, or bring the copy up to date. A copy begins with
-- nothing that it may spend.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings   hash    of the shard
-- KEYS[4] invite     hash    of the code
-- KEYS[5] invite-id  string  of the copy's id
-- KEYS[6] retired    hash    of the copy's id
-- KEYS[7] retired    hash    of the id of an older invite that has the code, where it moves to; KEYS[6] again when none is
--                            known
-- KEYS[8] held       zset    of the code: what is held of the older one is held no more
-- KEYS[9] campaigns  hash    of the shard: that of the invite comes with it, and begins with nothing too
-- KEYS[10] campaign-held  zset  of the shard
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the copy
-- ARGV[8] id of the older invite that may be moved, as learned from the reply 'older'; empty when none is known
-- ARGV[9] 1 if the code stands for it at the home, where it is copied in any case; else 0, where only what is here is
--           brought up to date
-- ARGV[10..] field and value in turn, as the home has them: code, group, revision, created_at, updated_at, and what is set
--           of max_uses_per_user, campaign, starts_at, expires_at, disabled, user, email_domains, batch
-- replies   {'fenced'} | {'copied'}   it is as the home says, or newer
--           | {'newer', id}           a later invite has the code
--           | {'older', id}           an earlier invite has the code; ask again and name it
--           | {'namespace_not_found'}
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
local OPTIONAL = {'max_uses_per_user', 'starts_at', 'expires_at', 'disabled', 'user', 'email_domains', 'batch'}
local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at')
if not settings[1] or settings[2] then return {'namespace_not_found'} end
local wanted = {}
for i = 10, #ARGV, 2 do wanted[ARGV[i]] = ARGV[i + 1] end
local holder = redis.call('HMGET', KEYS[4], 'id', 'created_at', 'campaign')
local key = KEYS[4]
if holder[1] ~= ARGV[7] and redis.call('EXISTS', KEYS[6]) == 1 then key = KEYS[6] end
local known = key == KEYS[6] or holder[1] == ARGV[7]
if not known and ARGV[9] == '0' then return {'copied'} end
if not known and holder[1] then
  if tonumber(holder[2]) >= tonumber(wanted.created_at) then return {'newer', holder[1]} end
  if holder[1] ~= ARGV[8] then return {'older', holder[1]} end
end
local displaced = not known and holder[1]
local invite, removed = {}, {}
if known then
  local flat = redis.call('HGETALL', key)
  for i = 1, #flat, 2 do invite[flat[i]] = flat[i + 1] end
  if tonumber(invite.updated_at) >= tonumber(wanted.updated_at) then return {'copied'} end
  for _, name in ipairs(OPTIONAL) do
    if invite[name] and not wanted[name] then
      invite[name] = nil
      removed[#removed + 1] = name
    end
  end
else
  invite = {id = ARGV[7], max_uses = '0', uses = '0', granted = '0'}
end
for name, value in pairs(wanted) do invite[name] = value end
local fields = {}
for name, value in pairs(invite) do
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end
local entry = {'holds_code', key == KEYS[4] and '1' or '0', unpack(fields)}
if displaced then
  entry[#entry + 1] = 'displaced'
  entry[#entry + 1] = displaced
end
local campaign = wanted.campaign
-- Nothing above writes; nothing below refuses.
if campaign and redis.call('HEXISTS', KEYS[9], campaign .. ':uses') == 0 then
  append('campaign_copied', ARGV[5], ARGV[6], 'name', campaign, 'uses', '0', 'max_uses', '0', 'revision', '1',
    'created_at', at, 'updated_at', at)
  redis.call('HSET', KEYS[9], campaign .. ':uses', '0', campaign .. ':max_uses', '0', campaign .. ':revision', '1',
    campaign .. ':created_at', at, campaign .. ':updated_at', at)
end
record('invite_copied', ARGV[5], ARGV[6], unpack(entry))
if displaced then
  if holder[3] then
    local held, code = redis.call('ZRANGE', KEYS[8], 0, -1, 'WITHSCORES'), wanted.code
    for i = 1, #held, 2 do
      redis.call('ZREM', KEYS[10], holder[3] .. ':' .. string.format('%013d', held[i + 1]) .. ':' .. code .. ':' .. held[i])
    end
  end
  redis.call('DEL', KEYS[8])
  redis.call('RENAME', KEYS[4], KEYS[7])
end
if #removed > 0 then redis.call('HDEL', key, unpack(removed)) end
redis.call('HSET', key, unpack(fields))
redis.call('SET', KEYS[5], wanted.code)
return {'copied'}
