#!lua flags=allow-oom
-- Put another name in the place of a user's, so that nobody knows any more who it was: memberships and answers stay as
-- they are, and uses stay spent. Request ids, which the application chose, become the redemptions' own.
--
-- KEYS[1] meta, KEYS[2] outbox: see the head
-- KEYS[3] settings   hash    of the namespace
-- KEYS[4] member     hash    of the user
-- KEYS[5] member     hash    of the other name, which nobody has
-- KEYS[6] rate:user  string  of the user
-- KEYS[7] rate:guess:user  string  of the user
-- KEYS[8..] for each invite that is bound to the user: invite (hash, of its code), retired (hash, of its id)
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] namespace
-- ARGV[6] actor
-- ARGV[7] user
-- ARGV[8] the other name
-- ARGV[9] 1 with the first invites of several calls: that one takes the member too
-- ARGV[10..] id of each invite, in the order of the keys
-- replies   {'fenced'} | {'erased', epoch-seq}   the partition's last change; also where only the ledger knows the user
--           | {'namespace_not_found'}; an archived namespace has people too
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
if redis.call('HEXISTS', KEYS[3], 'revision') == 0 then return {'namespace_not_found'} end
-- A repeat leaves alone who has the id by now.
local takes_member = ARGV[9] == '1' and redis.call('EXISTS', KEYS[5]) == 0
local fields = takes_member and redis.call('HGETALL', KEYS[4]) or {}
local made, requests = {}, {}
for i = 1, #fields, 2 do made[fields[i]] = fields[i + 1] end
for name, position in pairs(made) do
  if string.sub(name, 1, 8) == 'request:' then requests[name] = position end
end
local bound, ids = {}, {}
for i = 10, #ARGV do
  for key = 2 * i - 12, 2 * i - 11 do
    local invite = redis.call('HMGET', KEYS[key], 'id', 'user')
    if invite[1] == ARGV[i] and invite[2] == ARGV[7] then
      bound[#bound + 1] = KEYS[key]
      ids[#ids + 1] = ARGV[i]
    end
  end
end
if not takes_member and #bound == 0 then return {'erased', epoch .. '-' .. int(seq)} end
-- Nothing above writes; nothing below refuses.
local position = record('erased', ARGV[5], ARGV[6], 'user', ARGV[7], 'alias', ARGV[8], 'invites', table.concat(ids, ' '))
if #fields > 0 then redis.call('RENAME', KEYS[4], KEYS[5]) end
for name, answered in pairs(requests) do
  redis.call('HDEL', KEYS[5], name)
  redis.call('HSET', KEYS[5], 'request:' .. string.match(made[answered], '^%S+'), answered)
end
for _, key in ipairs(bound) do redis.call('HSET', key, 'user', ARGV[8]) end
redis.call('DEL', KEYS[6], KEYS[7])
return {'erased', position}
