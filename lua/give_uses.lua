#!lua
-- Give uses of an invite, or of a campaign, that nobody here has spent or holds to another participant of a namespace that
-- is spread. The other one gets them by take_uses.lua, once the ledger has this.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] invite   hash  of the invite's code; for a campaign, campaigns of the namespace
-- KEYS[4] retired  hash  of the invite's id; for a campaign the same again
-- KEYS[5] held     zset  of the invite's code; for a campaign, campaign-held of the namespace
-- KEYS[6] moves    hash  of the id: given:<participant> is how much was ever given to it, and the place of the
--                        last time; taken:<participant> how much was ever got from it
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the invite, or of the campaign, here
-- ARGV[8] taker    the participant that is to get them
-- ARGV[9] known    how much of what was given to it the taker has got
-- ARGV[10] divisor what is free is divided into a portion for each of so many that was not given anything yet, and into
--                  at least two; 1 to give everything, 0 to give nothing and only look
-- ARGV[11] 1 at the home: what was made before the namespace was spread gets its total
-- ARGV[12] campaign its name; empty for an invite
-- replies   {'fenced'} | {'absent'}
--           | {'part', epoch, revision, max_uses, total or '', uses, granted, uses that are held, how often any
--              was, first of the deadlines of an invite or '', free uses that are kept, fields of moves}
-- What was given and is not known to have been got is never given a second time: whoever reads given:<taker> in the reply
-- may bring it there. What has just come is not given away at once: who has waited for it here has it first (kept_until).
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
-- The fields of a campaign begin with its name.
local prefix, key = '', KEYS[3]
if ARGV[12] ~= '' then
  prefix = ARGV[12] .. ':'
elseif redis.call('HGET', key, 'id') ~= ARGV[7] then
  key = KEYS[4]
end
local names = {'id', 'max_uses', 'total', 'uses', 'granted', 'code', 'revision', 'holds', 'kept_until'}
for i, name in ipairs(names) do names[i] = prefix .. name end
local pool = redis.call('HMGET', key, unpack(names))
if not pool[4] or prefix == '' and pool[1] ~= ARGV[7] then return {'absent'} end
-- Made before its namespace was spread.
local is_old = ARGV[11] == '1' and not pool[3]
if is_old then
  pool[2] = pool[2] or UNLIMITED
  pool[3] = pool[2]
end
local max_uses, uses = tonumber(pool[2]), tonumber(pool[4])
local held, may_free_at = 0, ''
if prefix ~= '' then
  local first_live = '[' .. prefix .. string.format('%013d', now + 1)
  held = redis.call('ZLEXCOUNT', KEYS[5], first_live, '(' .. ARGV[12] .. ';')
elseif key == KEYS[3] then
  -- What has lost its code has lost what was held of it.
  local live = redis.call('ZRANGEBYSCORE', KEYS[5], '(' .. at, '+inf', 'WITHSCORES')
  held, may_free_at = #live / 2, live[2] or ''
end
local moved = redis.call('HGET', KEYS[6], 'given:' .. ARGV[8])
local given = moved and tonumber(string.match(moved, '^%d+')) or 0
local takers = 0
for _, field in ipairs(redis.call('HKEYS', KEYS[6])) do
  if string.sub(field, 1, 6) == 'given:' then takers = takers + 1 end
end
local divisor = tonumber(ARGV[10])
local portions = math.max(divisor - takers, math.min(divisor, 2))
local free, kept, amount = max_uses - uses - held, 0, 0
if free > 0 and tonumber(pool[9] or 0) > now then kept = 1 end
-- What an administrator needs at home is not kept.
local to_give = divisor == 1 and free or free - kept
if portions > 0 and given == tonumber(ARGV[9]) and to_give > 0 then amount = math.ceil(to_give / portions) end
if amount == free then kept = 0 end
-- Nothing above writes; nothing below refuses.
if is_old and prefix ~= '' then
  redis.call('HSET', key, prefix .. 'max_uses', pool[2], prefix .. 'total', pool[3])
  local made = redis.call('HMGET', key, prefix .. 'created_at', prefix .. 'updated_at')
  record('campaign_copied', ARGV[5], ARGV[6], 'name', ARGV[12], 'uses', pool[4], 'max_uses', pool[2], 'total', pool[3],
    'revision', pool[7], 'created_at', made[1], 'updated_at', made[2])
elseif is_old then
  redis.call('HSET', key, 'max_uses', pool[2], 'total', pool[3])
  local holds_code = key == KEYS[3] and '1' or '0'
  record('invite_copied', ARGV[5], ARGV[6], 'holds_code', holds_code, unpack(redis.call('HGETALL', key)))
end
if amount > 0 then
  max_uses, given = max_uses - amount, given + amount
  local position = record('uses_given', ARGV[5], ARGV[6], 'invite', ARGV[7], 'code', pool[6] or '', 'campaign', ARGV[12],
    'participant', ARGV[8], 'given', int(given), 'max_uses', int(max_uses))
  redis.call('HSET', key, prefix .. 'max_uses', int(max_uses))
  redis.call('HSET', KEYS[6], 'given:' .. ARGV[8], int(given) .. ' ' .. position)
  -- What has run out is given away: a clock that goes back must not revive it.
  if prefix ~= '' then
    redis.call('ZREMRANGEBYLEX', KEYS[5], '[' .. prefix, '(' .. prefix .. string.format('%013d', now + 1))
  elseif key == KEYS[3] then
    redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', at)
  end
end
return {
  'part', epoch, pool[7], int(max_uses), pool[3] or '', pool[4], pool[5] or '0', held, pool[8] or '0', may_free_at,
  kept, redis.call('HGETALL', KEYS[6])
}
