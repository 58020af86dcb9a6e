#!lua
-- Build a partition anew from the ledger, in numbered chunks: begin, remove what is there, load, finish. Every step
-- names the builder; a step of another builder, on another server, or out of order changes nothing.
--
-- KEYS[1] meta, KEYS[2] outbox
-- KEYS[3..] the keys to remove or to load
-- ARGV[1] deployment
-- ARGV[2] lineage    of this server, as the survey saw it
-- ARGV[3] epoch      that will be opened
-- ARGV[4] builder    the fencing token of the one who builds
-- ARGV[5] step       begin, remove, load or finish
-- ARGV[6] chunk      of load: its number, from 1; of finish: how many there were; of begin: the count of partitions
-- ARGV[7..] of begin: 'discard' to replace the gate of another deployment, else empty;
--           of finish: how many keys were loaded, and the ledger's cursor;
--           of load: for each key its type, the count of values that follow, and these: one for a string, field and value
--           in turn for a hash, member and score for a zset
-- replies   {'done'} | {'moved'}   another server, builder or chunk; start again
--           | {'foreign', deployment, epoch} | {'miscounted', chunks, keys}
local lineage = string.match(redis.call('INFO', 'replication'), 'role:master.-master_replid:(%x+)')
if lineage ~= ARGV[2] then return {'moved'} end
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'epoch', 'closing', 'builder', 'chunk', 'loaded')
local epoch, builder, step, chunk = ARGV[3], ARGV[4], ARGV[5], ARGV[6]

if step == 'begin' then
  local ours = meta[1] == ARGV[1]
  if meta[2] and not ours and ARGV[7] ~= 'discard' then return {'foreign', meta[1] or '', meta[2]} end
  -- Only what was closed for this very recovery: one who was paused must not remove what a later one has built.
  if meta[2] and ours and meta[3] ~= epoch then return {'moved'} end
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'schema', '1', 'deployment', ARGV[1], 'partitions', chunk, 'epoch', epoch, 'seq', '0',
    'lineage', '', 'closing', epoch, 'builder', builder, 'chunk', '0', 'loaded', '0')
  return {'done'}
end

if meta[1] ~= ARGV[1] or meta[3] ~= epoch or meta[4] ~= builder then return {'moved'} end
if step == 'remove' then
  for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end
  return {'done'}
end
if step == 'load' then
  if chunk == meta[5] then return {'done'} end
  if tonumber(chunk) ~= tonumber(meta[5]) + 1 then return {'moved'} end
  local at = 7
  for i = 3, #KEYS do
    local type, count = ARGV[at], tonumber(ARGV[at + 1])
    local first, last = at + 2, at + 1 + count
    if type == 'string' then
      redis.call('SET', KEYS[i], ARGV[first])
    elseif type == 'zset' then
      for member = first, last, 2 do redis.call('ZADD', KEYS[i], ARGV[member + 1], ARGV[member]) end
    else
      for from = first, last, 1000 do
        redis.call('HSET', KEYS[i], unpack(ARGV, from, math.min(from + 999, last)))
      end
    end
    at = last + 1
  end
  redis.call('HSET', KEYS[1], 'chunk', chunk, 'loaded', string.format('%d', meta[6] + #KEYS - 2))
  return {'done'}
end
if meta[5] ~= chunk or meta[6] ~= ARGV[7] then return {'miscounted', meta[5], meta[6]} end
redis.call('HDEL', KEYS[1], 'closing', 'builder', 'chunk', 'loaded')
redis.call('HSET', KEYS[1], 'lineage', ARGV[2], 'opened_from', ARGV[8])
return {'done'}
