#!lua flags=allow-oom
-- Close a partition for recovery: from here on every fenced script answers 'fenced', so that the outbox stands still.
--
-- KEYS[1] meta
-- ARGV[1] deployment
-- ARGV[2] lineage    of this server, as the survey saw it
-- ARGV[3] epoch      that recovery will open; a recovery that was overtaken by a later one has a lower epoch
-- ARGV[4] take over  'take_over' makes the gate of another deployment ours; else empty
-- replies   {'closed'} | {'empty'}   there is no meta: nothing to close
--           | {'moved'}              another server, or a later recovery; start again
--           | {'foreign', deployment, epoch}   the gate of another deployment, or ahead of this ledger
local lineage = string.match(redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)')
if lineage ~= ARGV[2] then return {'moved'} end
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'epoch', 'closing')
if not meta[2] then return {'empty'} end
local ours = meta[1] == ARGV[1]
if not ours and ARGV[4] ~= 'take_over' then return {'foreign', meta[1] or '', meta[2]} end
if ours then
  -- Also when an operator has asked: one who was paused must not close what a later recovery has opened.
  if tonumber(meta[2]) >= tonumber(ARGV[3]) then return {'foreign', meta[1], meta[2]} end
  if meta[3] and tonumber(meta[3]) > tonumber(ARGV[3]) then return {'moved'} end
end
redis.call('HSET', KEYS[1], 'deployment', ARGV[1], 'lineage', '', 'closing', ARGV[3])
return {'closed'}
