#!lua
-- Spend one use of a code for each request of a batch, once per request id. All requests are of one partition; each
-- sees the effects of those before it. Every key is read at most once, everything is decided on Lua tables, then
-- everything is written. A request whose keys can not be read fails alone.
--
-- KEYS[1] meta      hash    deployment, lineage, epoch, seq
-- KEYS[2] outbox    stream  gets one entry per grant
-- KEYS[3..] the keys that the requests name by their index: settings, invites, members, rate limits
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] limit      the outbox's length from which on nothing is granted
-- ARGV[6] write      1 to write something in any case, so that a WAIT behind this call has something to wait for
-- ARGV[7] namespaces their count; then for each of them: name, index of its settings, the revision known to the caller
-- ARGV[8..] after those, for each request 16 values, an index of 0 meaning that there is no such key:
--           mode (redeem or validate), namespace (its place in the list above, from 1), index of the invite, of the
--           member, of the rate limits by user, ip, code, namespace and guess; request id, redemption id, code, user,
--           e-mail domain, metadata, actor
-- replies   {'fenced'} or {'done', one reply per request...}, each of which is one of
--   {'granted', redemption, invite, code, group, ordinal, remaining, at, position, rates}
--   {'replayed', redemption, invite, code, group, ordinal, remaining, at, position, rates}
--   {'allowed', rates}
--   {'refused', reason, detail, detail, rates}
--   {'settings_changed'}   the caller knew older rules; nothing was decided
--   {'failed', message}    the keys of this request hold something that they should not; nothing was decided
--   reasons   namespace_not_found, request_id_reused, overloaded, rate_limited (policy, retry after ms),
--             too_many_attempts (policy, retry after ms), not_found, disabled, not_started (starts_at),
--             expired (expires_at), user_not_allowed, email_domain_not_allowed, already_member (group, redemption),
--             exhausted
--   rates     for each policy that was checked its number (1 user, 2 ip, 3 code, 4 namespace, 5 guess) and how far its
--             budget is from full, in microseconds
-- After a grant: uses and granted + 1, the member's fields, one outbox entry. After a refusal: nothing but rate limits.
-- The head, the same in every fenced script: KEYS[1] meta, KEYS[2] outbox, ARGV[1] deployment, ARGV[2] lineage,
-- ARGV[3] epoch (all three from the ledger), ARGV[4] now (ms; empty for the clock of Redis).
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'lineage', 'epoch', 'seq')
local lineage = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
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
local POLICIES, GUESS = {'user', 'ip', 'code', 'namespace', 'guess'}, 5
local now_us = now * 1000
local limit, room = tonumber(ARGV[5]), nil
local namespaces, invites, members, stored, tats = {}, {}, {}, {}, {}
local entries, changed_invites, changed_tats = {}, {}, {}

-- Reads, and lets the one request that needs this key fail when it holds something else.
local function read(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then error(reply.err, 0) end
  return reply
end

local function to_table(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local function namespace_of(place)
  local namespace = namespaces[place]
  if not namespace.rules then
    local names = {'revision', 'membership', 'archived_at'}
    for i, policy in ipairs(POLICIES) do names[3 + i] = 'rate_' .. policy end
    local values = read('HMGET', KEYS[namespace.index], unpack(names))
    namespace.rules, namespace.quotas = {}, {}
    namespace.live = values[1] and not values[3]
    namespace.revision, namespace.rule = values[1], values[2]
    for i in ipairs(POLICIES) do
      if values[3 + i] then
        local count, window = string.match(values[3 + i], '^(%d+)/(%d+)$')
        local window_us = window * 1000000
        namespace.quotas[i] = {
          text = values[3 + i], window_us = window_us, interval_us = math.floor(window_us / count)
        }
      end
    end
  end
  return namespace
end

local function invite_of(index)
  local invite = invites[index]
  if invite == nil then
    local fields = to_table(read('HGETALL', KEYS[index]))
    invite = fields.id and fields or false
    if invite then
      invite.uses, invite.granted = tonumber(fields.uses), tonumber(fields.granted)
      if not invite.uses or not invite.granted or not invite.group then
        error('the invite at ' .. KEYS[index] .. ' is not whole', 0)
      end
    end
    invites[index] = invite
  end
  return invite
end

-- A member's fields: all of them under one_group, where any group counts, else only those that are asked for.
local function member_fields(index, rule, names)
  local fields = members[index]
  if rule == 'one_group' then
    if not fields then
      fields = to_table(read('HGETALL', KEYS[index]))
      members[index] = fields
    end
    return fields
  end
  if not fields then
    fields = {}
    members[index] = fields
  end
  local missing = {}
  for _, name in ipairs(names) do
    if fields[name] == nil then missing[#missing + 1] = name end
  end
  if #missing > 0 then
    local values = read('HMGET', KEYS[index], unpack(missing))
    for i, name in ipairs(missing) do fields[name] = values[i] end
  end
  return fields
end

-- What was answered at a position; nothing for a user who joined there another way.
local function redemption_at(index, rule, position)
  local fields = member_fields(index, rule, {position, position .. ':invite'})
  if string.match(fields[position], '^joined ') then return nil end
  local id, ordinal, remaining, at = string.match(fields[position], '^(%S+) (%d+) (%S+) (%d+)$')
  local invite, code, group = string.match(fields[position .. ':invite'], '^(%S+) (%S+) (.+)$')
  if not id or not invite then error('the member at ' .. KEYS[index] .. ' is not whole', 0) end
  if remaining == '-' then remaining = '' end
  return {
    id = id, invite = invite, code = code, group = group, ordinal = ordinal, remaining = remaining, at = at,
    position = position
  }
end

local function told(word, redemption, rates)
  return {
    word, redemption.id, redemption.invite, redemption.code, redemption.group, redemption.ordinal,
    redemption.remaining, redemption.at, redemption.position, rates
  }
end

-- The position of this user's live redemption of this very invite, where the rule allows only one.
local function own_position(namespace, request, invite)
  local rule = namespace.rule
  if rule == 'unlimited' or request.member == 0 then return nil end
  local pointer = rule == 'one_per_invite' and 'invite:' .. invite.id or 'group:' .. invite.group
  local position = member_fields(request.member, rule, {pointer})[pointer]
  if not position then return nil end
  local redemption = redemption_at(request.member, rule, position)
  return redemption and redemption.invite == invite.id and redemption or nil
end

-- The moment at which a budget is full again, never more than one window ahead.
local function tat_of(index, quota)
  local tat = tats[index]
  if not tat then
    tat = tonumber(stored[index] or now_us)
    if not tat then error('the rate limit at ' .. KEYS[index] .. ' is not a number', 0) end
    tat = math.min(math.max(tat, now_us), now_us + quota.window_us)
    tats[index] = tat
  end
  return tat
end

-- The first budget that is spent, and until when.
local function spent_budget(quotas, budgets)
  for b = 1, #budgets, 2 do
    local quota = quotas[budgets[b]]
    if quota then
      local over_us = tat_of(budgets[b + 1], quota) + quota.interval_us - now_us - quota.window_us
      if over_us > 0 then return POLICIES[budgets[b]], over_us end
    end
  end
end

-- Charges an attempt to every budget, a miss to the guessing budget too; returns how far each is from full.
local function charge(quotas, budgets, attempted, missed)
  local rates = {}
  for b = 1, #budgets, 2 do
    local quota, index = quotas[budgets[b]], budgets[b + 1]
    if quota then
      local charged = attempted
      if budgets[b] == GUESS then charged = missed end
      local tat = tat_of(index, quota)
      if charged then
        tat = tat + quota.interval_us
        tats[index], changed_tats[index] = tat, true
      end
      rates[#rates + 1] = budgets[b]
      rates[#rates + 1] = tat - now_us
    end
  end
  return rates
end

local function refusal_of_invite(request, invite)
  if not invite then return 'not_found' end
  if invite.disabled then return 'disabled' end
  if invite.starts_at and now < tonumber(invite.starts_at) then return 'not_started', invite.starts_at end
  if invite.expires_at and now >= tonumber(invite.expires_at) then return 'expired', invite.expires_at end
  -- A validation that leaves out the user or the e-mail address is told nothing that depends on them.
  local redeeming = request.mode == 'redeem'
  if invite.user and (redeeming or request.user ~= '') and invite.user ~= request.user then
    return 'user_not_allowed'
  end
  if invite.email_domains and (redeeming or request.email_domain ~= '') then
    local listed = ',' .. invite.email_domains .. ','
    if request.email_domain == '' or not string.find(listed, ',' .. request.email_domain .. ',', 1, true) then
      return 'email_domain_not_allowed'
    end
  end
end

local function refusal_of_membership(namespace, request, invite)
  local rule = namespace.rule
  if request.member == 0 or rule == 'one_per_invite' or rule == 'unlimited' then return nil end
  local wanted = 'group:' .. invite.group
  local fields = member_fields(request.member, rule, {wanted})
  local pointer = fields[wanted] and wanted
  if not pointer and rule == 'one_group' then
    for name in pairs(fields) do
      if string.sub(name, 1, 6) == 'group:' then pointer = name end
    end
  end
  if not pointer then return nil end
  local redemption = redemption_at(request.member, rule, fields[pointer])
  return 'already_member', string.sub(pointer, 7), redemption and redemption.id or ''
end

-- Spends the use on the tables; the writing comes at the end.
local function grant(namespace, request, invite)
  invite.uses, invite.granted = invite.uses + 1, invite.granted + 1
  changed_invites[request.invite] = invite
  local position = epoch .. '-' .. int(seq + #entries + 1)
  local left = invite.max_uses and int(invite.max_uses - invite.uses) or ''
  local redemption = {
    id = request.redemption, invite = invite.id, code = request.code, group = invite.group,
    ordinal = int(invite.granted), remaining = left, at = at, position = position
  }
  local written = {
    'group:' .. invite.group, position,
    'request:' .. request.id, position,
    position, request.redemption .. ' ' .. int(invite.granted) .. ' ' .. (left == '' and '-' or left) .. ' ' .. at,
    position .. ':invite', invite.id .. ' ' .. request.code .. ' ' .. invite.group
  }
  if namespace.rule == 'one_per_invite' then
    written[#written + 1] = 'invite:' .. invite.id
    written[#written + 1] = position
  end
  local fields = members[request.member]
  for i = 1, #written, 2 do fields[written[i]] = written[i + 1] end
  entries[#entries + 1] = {
    namespace = namespace, request = request, redemption = redemption, uses = int(invite.uses), written = written
  }
  return redemption
end

local function decide(request)
  local namespace = namespace_of(request.namespace)
  local redeeming = request.mode == 'redeem'

  -- 1. Replay, before every other check, also in a namespace that was archived since; it charges nothing.
  if redeeming then
    local name = 'request:' .. request.id
    local position = member_fields(request.member, namespace.rule, {name})[name]
    if position then
      local before = redemption_at(request.member, namespace.rule, position)
      if before.code ~= request.code then return {'refused', 'request_id_reused', '', '', {}} end
      return told('replayed', before, {})
    end
  end
  if not namespace.live then return {'refused', 'namespace_not_found', '', '', {}} end
  if namespace.revision ~= namespace.known then return {'settings_changed'} end
  local invite = invite_of(request.invite)
  local own = invite and own_position(namespace, request, invite)
  if own then return redeeming and told('replayed', own, {}) or {'allowed', {}} end

  -- 2. Backpressure.
  if redeeming then
    room = room or limit - redis.call('XLEN', KEYS[2])
    if #entries >= room then return {'refused', 'overloaded', '', '', {}} end
  end

  -- 3. Rate limits: all are checked, none is charged yet.
  local quotas, budgets = namespace.quotas, request.budgets
  local blocked, wait_us = spent_budget(quotas, budgets)
  if blocked then
    local reason = blocked == 'guess' and 'too_many_attempts' or 'rate_limited'
    return {'refused', reason, blocked, int(math.ceil(wait_us / 1000)), charge(quotas, budgets, false, false)}
  end

  -- 4. to 6. The invite, the membership, the uses.
  local reason, detail, more = refusal_of_invite(request, invite)
  if not reason then reason, detail, more = refusal_of_membership(namespace, request, invite) end
  if not reason and invite.max_uses and invite.uses >= tonumber(invite.max_uses) then reason = 'exhausted' end

  -- 7. Nothing above changes a table that others read; nothing below refuses.
  local rates = charge(quotas, budgets, redeeming, reason == 'not_found')
  if reason then return {'refused', reason, detail or '', more or '', rates} end
  if not redeeming then return {'allowed', rates} end
  return told('granted', grant(namespace, request, invite), rates)
end

local next_arg = 8
for place = 1, tonumber(ARGV[7]) do
  namespaces[place] = {
    name = ARGV[next_arg], index = tonumber(ARGV[next_arg + 1]), known = ARGV[next_arg + 2]
  }
  next_arg = next_arg + 3
end
local requests, rate_indexes, rate_keys = {}, {}, {}
while next_arg <= #ARGV do
  local a = next_arg
  -- Number of the policy and index of its key in turn, for those that have one.
  local budgets = {}
  for i = 1, #POLICIES do
    local index = tonumber(ARGV[a + 3 + i])
    if index > 0 then
      budgets[#budgets + 1] = i
      budgets[#budgets + 1] = index
      if stored[index] == nil then
        stored[index] = false
        rate_indexes[#rate_indexes + 1] = index
        rate_keys[#rate_keys + 1] = KEYS[index]
      end
    end
  end
  requests[#requests + 1] = {
    mode = ARGV[a], namespace = tonumber(ARGV[a + 1]), invite = tonumber(ARGV[a + 2]), member = tonumber(ARGV[a + 3]),
    budgets = budgets, id = ARGV[a + 9], redemption = ARGV[a + 10], code = ARGV[a + 11], user = ARGV[a + 12],
    email_domain = ARGV[a + 13], metadata = ARGV[a + 14], actor = ARGV[a + 15]
  }
  next_arg = a + 16
end
-- A key that holds something else than text reads as absent, and gets mended by the next charge.
if #rate_keys > 0 then
  for i, value in ipairs(redis.call('MGET', unpack(rate_keys))) do stored[rate_indexes[i]] = value end
end
local replies = {'done'}
for i, request in ipairs(requests) do
  local ok, reply = pcall(decide, request)
  replies[i + 1] = ok and reply or {'failed', tostring(reply)}
end

-- Nothing above writes. The outbox comes first: were it refused, nothing else would have been written.
for _, entry in ipairs(entries) do
  local request, redemption = entry.request, entry.redemption
  local optional = {}
  if redemption.remaining ~= '' then optional = {'remaining', redemption.remaining} end
  if request.metadata ~= '' then
    optional[#optional + 1] = 'metadata'
    optional[#optional + 1] = request.metadata
  end
  append('redeemed', entry.namespace.name, request.actor, 'id', redemption.id, 'invite', redemption.invite,
    'code', redemption.code, 'group', redemption.group, 'user', request.user, 'request', request.id,
    'ordinal', redemption.ordinal, 'uses', entry.uses, 'rule', entry.namespace.rule, unpack(optional))
end
if #entries > 0 or ARGV[6] == '1' then redis.call('HSET', KEYS[1], 'seq', int(seq)) end
for _, entry in ipairs(entries) do
  redis.call('HSET', KEYS[entry.request.member], unpack(entry.written))
end
for index, invite in pairs(changed_invites) do
  redis.call('HSET', KEYS[index], 'uses', int(invite.uses), 'granted', int(invite.granted))
end
for index in pairs(changed_tats) do
  redis.call('SET', KEYS[index], int(tats[index]), 'PX', int(math.ceil((tats[index] - now_us) / 1000)))
end
return replies
