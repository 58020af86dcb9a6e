#!lua flags=allow-oom
-- Take a redemption back: its use is free again, and the membership that it made ends. What was answered stays
-- remembered, with the moment when it ceased to hold. An invite that was exhausted is open again, one that has lost its
-- code only if the code is free, in a shard never; a disabled one stays disabled.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings   hash  of the namespace
-- KEYS[4] invite     hash  of the invite's code
-- KEYS[5] retired    hash  of the invite's id
-- KEYS[6] member     hash  of the user
-- KEYS[7] campaigns  hash  of the namespace
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the redemption
-- ARGV[8] position   of the redemption
-- ARGV[9] user
-- ARGV[10] reason
-- replies   {'fenced'} | {'rolled_back', at} | {'already', at} | {'not_found'} | {'namespace_not_found'}
--           | {'code_taken', invite id}   the use would re-open the invite, but another one has its code
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

local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at', 'membership', 'shard')
if not settings[1] or settings[2] then return {'namespace_not_found'} end
local position = ARGV[8]
local fields = to_table(redis.call('HGETALL', KEYS[6]))
local made, about = fields[position], fields[position .. ':invite']
local id, rolled_back_at = string.match(made or '', '^(%S+) %d+ %S+ %d+ ?(%d*)$')
if id ~= ARGV[7] or not about then return {'not_found'} end
if rolled_back_at ~= '' then return {'already', tonumber(rolled_back_at)} end
local invite_id, group = string.match(about, '^(%S+) %S+ (.+)$')
local key = KEYS[4]
local invite = to_table(redis.call('HGETALL', key))
local holder = invite.id
if holder ~= invite_id then
  key = KEYS[5]
  invite = to_table(redis.call('HGETALL', key))
  if invite.id ~= invite_id then return {'not_found'} end
end
local uses, max_uses = invite.uses - 1, tonumber(invite.max_uses)
local ended = invite.disabled or max_uses and uses >= max_uses
  or invite.expires_at and now >= tonumber(invite.expires_at)
-- In a shard what has lost its code does not get it back: only the home knows who has it.
local reopened = key == KEYS[5] and not ended and not settings[4]
if reopened and holder then return {'code_taken', holder} end

-- The membership ends if it was this redemption's. Where each invite counts by itself, another one of the same group may
-- still stand for it: the latest.
local pointer, membership, removed = 'group:' .. group, '', {}
if fields['invite:' .. invite_id] == position then removed[1] = 'invite:' .. invite_id end
if fields[pointer] == position then
  membership = 'ended'
  local latest
  for name, other in pairs(fields) do
    if string.sub(name, 1, 7) == 'invite:' and other ~= position
      and string.match(fields[other .. ':invite'], '^%S+ %S+ (.+)$') == group then
      local other_epoch, other_seq = string.match(other, '^(%d+)-(%d+)$')
      other_epoch, other_seq = tonumber(other_epoch), tonumber(other_seq)
      if not latest or other_epoch > latest[1] or other_epoch == latest[1] and other_seq > latest[2] then
        latest = {other_epoch, other_seq, other}
      end
    end
  end
  if latest then
    local other_id, since = string.match(fields[latest[3]], '^(%S+) %d+ %S+ (%d+)$')
    membership = other_id .. ' ' .. latest[3] .. ' ' .. since
    fields[pointer] = latest[3]
  else
    removed[#removed + 1] = pointer
  end
end
local entry = {
  'redemption', id, 'invite', invite_id, 'uses', int(uses), 'granted', invite.granted,
  'reopened', reopened and '1' or '0', 'user', ARGV[9], 'group', group, 'membership', membership,
  'reason', ARGV[10]
}
local campaign_uses
if invite.campaign then
  campaign_uses = int(redis.call('HGET', KEYS[7], invite.campaign .. ':uses') - 1)
  for _, value in ipairs({'campaign', invite.campaign, 'campaign_uses', campaign_uses}) do entry[#entry + 1] = value end
end
-- Nothing above writes; nothing below refuses.
record('rolled_back', ARGV[5], ARGV[6], unpack(entry))
if reopened then
  redis.call('RENAME', KEYS[5], KEYS[4])
  key = KEYS[4]
end
redis.call('HSET', key, 'uses', int(uses))
if campaign_uses then redis.call('HSET', KEYS[7], invite.campaign .. ':uses', campaign_uses) end
redis.call('HSET', KEYS[6], position, made .. ' ' .. at)
if membership ~= '' and membership ~= 'ended' then redis.call('HSET', KEYS[6], pointer, fields[pointer]) end
if #removed > 0 then redis.call('HDEL', KEYS[6], unpack(removed)) end
return {'rolled_back', now}
