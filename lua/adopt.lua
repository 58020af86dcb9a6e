#!lua flags=allow-oom
-- Open a closed partition as it is: gate and ledger agree.
--
-- KEYS[1] meta, KEYS[2] outbox
-- ARGV[1] deployment
-- ARGV[2] lineage    of this server, as the survey saw it
-- ARGV[3] epoch      to open
-- ARGV[4] cursor     <epoch>-<seq> up to which the ledger has everything
-- replies   {'adopted'} | {'moved'}   another server, or a later recovery; start again
--           | {'differs'}             the gate is not where the ledger is; rebuild it
local lineage = string.match(redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)')
if lineage ~= ARGV[2] then return {'moved'} end
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'closing', 'epoch', 'seq', 'opened_from', 'builder')
if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[3] then return {'moved'} end
-- A recovery that died between this script and its last word to the ledger has opened the gate on the same cursor.
local here = meta[3] .. '-' .. meta[4]
local same = here == ARGV[4] or meta[4] == '0' and meta[5] == ARGV[4]
if meta[6] or not same then return {'differs'} end
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3] .. '-0')
redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'seq', '0', 'lineage', ARGV[2], 'opened_from', ARGV[4])
redis.call('HDEL', KEYS[1], 'closing')
return {'adopted'}
