#!lua
-- Change an invite while it is hot: its limit, window, switch, restrictions, metadata.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings   hash  of the namespace
-- KEYS[4] invite     hash  of the invite's code
-- KEYS[5] retired    hash  of the invite's id
-- KEYS[6] held       zset  of the invite's code
-- KEYS[7] campaign-held  zset  of the namespace
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] id of the invite
-- ARGV[8] change     an id of this change; a repeat changes nothing more
-- ARGV[9] revision   change only this revision; empty for any
-- ARGV[10..] field and value in turn; an empty value removes the field
-- In a namespace that is spread max_uses stands for the total, and what is spent here changes by as much.
-- replies   {'fenced'} | {'changed', now, fields, uses that are held} | {'not_found'} | {'precondition_failed', revision}
--           | {'limit_below_used', uses, uses that are held} | {'window_reversed'}
--           | {'code_taken', invite id}   the change would re-open the invite, but another one has its code
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

-- Without limit, where uses move between shards.
local UNLIMITED = '4503599627370496'
local settings = redis.call('HMGET', KEYS[3], 'revision', 'archived_at')
if not settings[1] or settings[2] then return {'not_found'} end
local key = KEYS[4]
local invite = to_table(redis.call('HGETALL', key))
local holder = invite.id
if holder ~= ARGV[7] then
  key = KEYS[5]
  invite = to_table(redis.call('HGETALL', key))
  if invite.id ~= ARGV[7] then return {'not_found'} end
end
-- What has lost its code has lost what was held of it.
local held = 0
if key == KEYS[4] then
  redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', at)
  if invite.campaign then
    local first_live = '(' .. invite.campaign .. ':' .. string.format('%013d', now + 1)
    redis.call('ZREMRANGEBYLEX', KEYS[7], '[' .. invite.campaign .. ':', first_live)
  end
  held = redis.call('ZCARD', KEYS[6])
end
if invite.last_change == ARGV[8] then return {'changed', now, redis.call('HGETALL', key), held} end
if ARGV[9] ~= '' and ARGV[9] ~= invite.revision then return {'precondition_failed', tonumber(invite.revision)} end

local removed = {}
for i = 10, #ARGV, 2 do
  if invite.total and ARGV[i] == 'max_uses' then
    local total = ARGV[i + 1] == '' and UNLIMITED or ARGV[i + 1]
    invite.max_uses = int(invite.max_uses + total - invite.total)
    invite.total = total
  elseif ARGV[i + 1] == '' then
    invite[ARGV[i]] = nil
    removed[#removed + 1] = ARGV[i]
  else
    invite[ARGV[i]] = ARGV[i + 1]
  end
end
if invite.starts_at and invite.expires_at and tonumber(invite.starts_at) >= tonumber(invite.expires_at) then
  return {'window_reversed'}
end
local uses, max_uses = tonumber(invite.uses), tonumber(invite.max_uses)
if max_uses and max_uses < uses + held then return {'limit_below_used', uses, held} end
local ended = invite.disabled or max_uses and uses >= max_uses
  or invite.expires_at and now >= tonumber(invite.expires_at)
-- Nor do shards hear of one that has lost its code.
local reopened = key == KEYS[5] and not ended and not invite.total
if reopened and holder then return {'code_taken', holder} end

invite.revision = int(invite.revision + 1)
-- Shards tell by it which of two changes is the later one, also where a failover has taken one back here.
invite.updated_at = invite.total and int(math.max(now, invite.updated_at + 1)) or at
invite.last_change = ARGV[8]
local fields = {}
for name, value in pairs(invite) do
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end
-- Nothing above writes; nothing below refuses.
record('invite_changed', ARGV[5], ARGV[6], 'holds_code', (key == KEYS[4] or reopened) and '1' or '0', unpack(fields))
if reopened then
  redis.call('RENAME', KEYS[5], KEYS[4])
  key = KEYS[4]
end
if #removed > 0 then redis.call('HDEL', key, unpack(removed)) end
redis.call('HSET', key, unpack(fields))
return {'changed', now, fields, held}
