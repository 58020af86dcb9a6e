#!lua flags=no-writes
-- What a partition of this Redis is open on, and how far its outbox goes. Decides nothing; recovery and the sync do.
--
-- KEYS[1] meta, KEYS[2] outbox
-- replies   {'survey', lineage of this server, now, length of the outbox, first id, last id, fields of meta};
--           ids are empty when the outbox is, fields when there is no meta
local lineage = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local time = redis.call('TIME')
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
return {
  'survey', lineage, time[1] * 1000 + math.floor(time[2] / 1000), redis.call('XLEN', KEYS[2]),
  first[1] and first[1][1] or '', last[1] and last[1][1] or '', redis.call('HGETALL', KEYS[1])
}
