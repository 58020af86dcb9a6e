#!lua flags=no-writes
-- What a partition of this Redis is open on, and how far its outbox goes. Decides nothing; recovery and the sync do.
--
-- KEYS[1] meta, KEYS[2] outbox
-- replies   {'survey', lineage of this server (empty of a replica), now, changes in the outbox, the first, when that was
--           made, the last, fields of meta}; changes are named by their place, and empty when the outbox is; so are the
--           fields when there is no meta
local lineage = string.match(redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)')
local time = redis.call('TIME')
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local waiting, first_id, first_at, last_id = redis.call('XLEN', KEYS[2]), '', '', ''
if first then
  -- An entry is named by the last of its changes.
  first_id, last_id = first[2][3] == 'first' and first[2][4] or first[1], last[1]
  for i = 1, #first[2], 2 do
    if first[2][i] == 'at' then first_at = first[2][i + 1] break end
  end
  local epoch, seq = string.match(first_id, '^(%d+)-(%d+)$')
  if epoch == meta[1] then waiting = meta[2] - seq + 1 end
end
return {
  'survey', lineage or '', time[1] * 1000 + math.floor(time[2] / 1000), waiting, first_id, first_at,
  last_id, redis.call('HGETALL', KEYS[1])
}
