#!lua
-- Get uses of an invite, or of a campaign, that another participant of a namespace that is spread has given to this one.
-- The ledger must have what was given: a giver that forgets it would have the same uses again.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] invite   hash  of the invite's code; for a campaign, campaigns of the namespace
-- KEYS[4] retired  hash  of the invite's id; for a campaign the same again
-- KEYS[5] held     zset  of the invite's code; for a campaign, campaign-held of the namespace
-- KEYS[6] moves    hash  of the id: see give_uses.lua
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the invite, or of the campaign, here
-- ARGV[8] giver  the participant that has given
-- ARGV[9] given  how much it has ever given to this one
-- ARGV[10] campaign its name; empty for an invite
-- replies   {'fenced'} | {'absent'}
--           | {'part', epoch, revision, max_uses, total or '', uses, granted, uses that are held, how often any
--              was, first of the deadlines of an invite or '', free uses that are kept, fields of moves}
-- What was got before is not got again, however late a repeat comes. Who has waited for it here has it first: for a moment
-- one use of what has come is not given away.
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
-- How long, in ms: longer than whoever brought it needs to ask again.
local KEPT_MS = 100
-- The fields of a campaign begin with its name.
local prefix, key = '', KEYS[3]
if ARGV[10] ~= '' then
  prefix = ARGV[10] .. ':'
elseif redis.call('HGET', key, 'id') ~= ARGV[7] then
  key = KEYS[4]
end
local names = {'id', 'max_uses', 'total', 'uses', 'granted', 'code', 'revision', 'holds', 'kept_until'}
for i, name in ipairs(names) do names[i] = prefix .. name end
local pool = redis.call('HMGET', key, unpack(names))
-- A campaign comes to a shard with the first of its invites, or anew when the shard has lost that.
local is_lost = prefix ~= '' and not pool[4] and string.find(ARGV[5], '+', 1, true)
if is_lost then
  for i, value in pairs({[2] = '0', [4] = '0', [7] = '1'}) do pool[i] = value end
end
if not pool[4] or prefix == '' and pool[1] ~= ARGV[7] then return {'absent'} end
local max_uses, given = tonumber(pool[2]), tonumber(ARGV[9])
local held, may_free_at = 0, ''
if prefix ~= '' then
  local first_live = '[' .. prefix .. string.format('%013d', now + 1)
  held = redis.call('ZLEXCOUNT', KEYS[5], first_live, '(' .. ARGV[10] .. ';')
elseif key == KEYS[3] then
  -- What has lost its code has lost what was held of it.
  local live = redis.call('ZRANGEBYSCORE', KEYS[5], '(' .. at, '+inf', 'WITHSCORES')
  held, may_free_at = #live / 2, live[2] or ''
end
local amount = given - (redis.call('HGET', KEYS[6], 'taken:' .. ARGV[8]) or 0)
-- Nothing above writes; nothing below refuses.
if is_lost then
  record('campaign_copied', ARGV[5], ARGV[6], 'name', ARGV[10], 'uses', '0', 'max_uses', '0', 'revision', '1', 'created_at',
    at, 'updated_at', at)
  redis.call('HSET', key, prefix .. 'uses', '0', prefix .. 'max_uses', '0', prefix .. 'revision', '1',
    prefix .. 'created_at', at, prefix .. 'updated_at', at)
end
if amount > 0 then
  max_uses = max_uses + amount
  record('uses_taken', ARGV[5], ARGV[6], 'invite', ARGV[7], 'code', pool[6] or '', 'campaign', ARGV[10], 'participant',
    ARGV[8], 'taken', int(given), 'max_uses', int(max_uses))
  pool[9] = int(now + KEPT_MS)
  redis.call('HSET', key, prefix .. 'max_uses', int(max_uses), prefix .. 'kept_until', pool[9])
  redis.call('HSET', KEYS[6], 'taken:' .. ARGV[8], int(given))
end
local is_kept = max_uses > pool[4] + held and tonumber(pool[9] or 0) > now
return {
  'part', epoch, pool[7], int(max_uses), pool[3] or '', pool[4], pool[5] or '0', held, pool[8] or '0', may_free_at,
  is_kept and 1 or 0, redis.call('HGETALL', KEYS[6])
}
