#!lua
-- Spend one use of a code for each request of a batch, once per request id. All requests are of one partition; each
-- sees the effects of those before it. Every key is read at most once, everything is decided on Lua tables, then
-- everything is written. A request whose keys can not be read fails alone.
--
-- What requests have in common is said once: a kind. A caller that puts requests of one kind next to each other gets one
-- outbox entry for all that they are granted.
--
-- KEYS[1] meta      hash    deployment, lineage, epoch, seq
-- KEYS[2] outbox    stream  gets one entry per run of grants of one kind
-- KEYS[3..] for each kind its settings and its invite; then for each request its member, if it has a user, and one rate
--           limit for each policy of its kind
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] limit      changes in the outbox from which on nothing is granted
-- ARGV[6] write      1 to write something in any case, so that a WAIT behind this call has something to wait for
-- ARGV[7] kinds      their count; then for each of them 7 values: mode (redeem or validate), namespace, the revision of
--           its settings known to the caller, code, e-mail domain, actor, and the numbers of the policies that limit it
--           (1 user, 2 ip, 3 code, 4 namespace, 5 guess) as one text of digits
-- ARGV[8..] after those, for each of at most 1024 requests 5 values: kind (its place in the list above, from 1), request
--           id, redemption id, user, metadata
-- replies   {'fenced'} or {'done', now, {invite and group of each kind}, one reply per request...}, each of which is
--   {'granted', seq, ordinal, remaining, rates...}
--   {'replayed', redemption, invite, code, group, ordinal, remaining, at, position}
--   {'allowed', rates...}
--   {'refused', reason, detail, detail, rates...}
--   {'settings_changed'}   the caller knew older rules; nothing was decided
--   {'failed', message}    the keys of this request hold something that they should not; nothing was decided
--   remaining is empty without a limit; invite and group of a kind are empty where nothing was granted
--   reasons   namespace_not_found, request_id_reused, overloaded, rate_limited (policy, retry after ms),
--             too_many_attempts (policy, retry after ms), not_found, disabled, not_started (starts_at),
--             expired (expires_at), user_not_allowed, email_domain_not_allowed, already_member (group, redemption),
--             exhausted; invalid instead of those that tell of a code, where the namespace's error_detail is coarse
--   rates     for each policy of the kind, once they were looked at, how far its budget is from full, in microseconds
-- After a grant: uses and granted + 1, the member's fields, a line in an outbox entry. After a refusal: nothing but rate
-- limits.
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
local POLICIES, GUESS, BATCH_MAX = {'user', 'ip', 'code', 'namespace', 'guess'}, 5, 1024
-- The reasons that tell of a code; all others tell of the user or of the request.
local FOLDED = {
  not_found = true, disabled = true, not_started = true, expired = true, user_not_allowed = true,
  email_domain_not_allowed = true, exhausted = true
}
-- Locals, for a global costs a look-up each time.
local KEYS, ARGV, call, tonumber = KEYS, ARGV, redis.call, tonumber
local now_us = now * 1000
local limit, room = tonumber(ARGV[5]), nil
local settings, invites, members, unread, tats = {}, {}, {}, {}, {}
local granted, entry, entries, grants, changed_invites, changed_tats = 0, nil, {}, {}, {}, {}

local kinds, next_key, next_arg = {}, 3, 8
for place = 1, tonumber(ARGV[7]) do
  local policies = {}
  for digit in string.gmatch(ARGV[next_arg + 6], '%d') do policies[#policies + 1] = tonumber(digit) end
  kinds[place] = {
    redeeming = ARGV[next_arg] == 'redeem', namespace = ARGV[next_arg + 1], revision = ARGV[next_arg + 2],
    code = ARGV[next_arg + 3], email_domain = ARGV[next_arg + 4], actor = ARGV[next_arg + 5], policies = policies,
    settings = KEYS[next_key], invite = KEYS[next_key + 1]
  }
  next_key, next_arg = next_key + 2, next_arg + 7
end

-- Numbers that come again and again, as most do in a batch, are written out once.
local texts = {}
local function text(number)
  local known = texts[number]
  if not known then
    known = int(number)
    texts[number] = known
  end
  return known
end

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

local function rules_of(key)
  local rules = settings[key]
  if not rules then
    local names = {'revision', 'membership', 'archived_at'}
    for i, policy in ipairs(POLICIES) do names[3 + i] = 'rate_' .. policy end
    names[#names + 1] = 'error_detail'
    local values = read('HMGET', key, unpack(names))
    rules = {live = values[1] and not values[3], revision = values[1], membership = values[2], quotas = {}}
    rules.coarse = values[#names] == 'coarse'
    for i in ipairs(POLICIES) do
      if values[3 + i] then
        local count, window = string.match(values[3 + i], '^(%d+)/(%d+)$')
        local window_us = window * 1000000
        rules.quotas[i] = {window_us = window_us, interval_us = math.floor(window_us / count)}
      end
    end
    settings[key] = rules
  end
  return rules
end

local function invite_of(key)
  local invite = invites[key]
  if invite == nil then
    invite = to_table(read('HGETALL', key))
    if invite.id then
      invite.uses, invite.granted = tonumber(invite.uses), tonumber(invite.granted)
      invite.max = tonumber(invite.max_uses)
      if not invite.uses or not invite.granted or not invite.group then
        error('the invite at ' .. key .. ' is not whole', 0)
      end
      invite.pointer = 'group:' .. invite.group
    else
      invite = false
    end
    invites[key] = invite
  end
  return invite
end

-- A member's fields: all of them under one_group, where any group counts, else only those that are asked for.
local function member_fields(key, rule, ...)
  local fields = members[key]
  if not fields then
    fields = rule == 'one_group' and to_table(read('HGETALL', key)) or {}
    members[key] = fields
  end
  -- What this batch has given the member since it was last looked at.
  local new = unread[key]
  if new then
    for i = 3, #new, 2 do fields[new[i]] = new[i + 1] end
    unread[key] = nil
  end
  if rule ~= 'one_group' then
    local missing = {}
    for _, name in ipairs({...}) do
      if fields[name] == nil then missing[#missing + 1] = name end
    end
    if #missing > 0 then
      local values = read('HMGET', key, unpack(missing))
      for i, name in ipairs(missing) do fields[name] = values[i] end
    end
  end
  return fields
end

-- What was answered at a position; nothing for a user who joined there another way.
local function redemption_at(key, rule, position)
  local fields = member_fields(key, rule, position, position .. ':invite')
  if string.match(fields[position], '^joined ') then return nil end
  local id, ordinal, remaining, at = string.match(fields[position], '^(%S+) (%d+) (%S+) (%d+)$')
  local invite, code, group = string.match(fields[position .. ':invite'], '^(%S+) (%S+) (.+)$')
  if not id or not invite then error('the member at ' .. key .. ' is not whole', 0) end
  if remaining == '-' then remaining = '' end
  return {
    id = id, invite = invite, code = code, group = group, ordinal = ordinal, remaining = remaining, at = at,
    position = position
  }
end

local function replayed(before)
  return {
    'replayed', before.id, before.invite, before.code, before.group, before.ordinal, before.remaining, before.at,
    before.position
  }
end

-- This user's live redemption of this very invite, where the rule allows only one.
local function own_redemption(member, rule, invite)
  if rule == 'unlimited' or not member then return nil end
  local pointer = rule == 'one_per_invite' and 'invite:' .. invite.id or invite.pointer
  local position = member_fields(member, rule, pointer)[pointer]
  if not position then return nil end
  local redemption = redemption_at(member, rule, position)
  return redemption and redemption.invite == invite.id and redemption or nil
end

-- What a code that can not be used costs, for one that nobody knows: a hash of some ten fields and a look at the member.
-- Else the time would tell them apart.
local function as_if_known(kind, rule, member)
  to_table(read('HGETALL', kind.settings))
  if member and rule ~= 'unlimited' then member_fields(member, rule, 'group:') end
end

-- The first budget that is spent, and until when. The budgets of a request are KEYS from `first` on, one for each of
-- the policies of its kind; each is full again at a moment that is never more than one window ahead.
local function spent_budget(quotas, policies, first)
  local blocked, wait_us
  for i = 1, #policies do
    local policy, key = policies[i], KEYS[first + i]
    local quota, tat = quotas[policy], tats[key]
    if not tat then error('the rate limit at ' .. key .. ' is not a number', 0) end
    local latest = now_us + quota.window_us
    if tat < now_us then tat = now_us elseif tat > latest then tat = latest end
    tats[key] = tat
    local over_us = tat + quota.interval_us - latest
    if over_us > 0 and not blocked then blocked, wait_us = POLICIES[policy], over_us end
  end
  return blocked, wait_us
end

-- Charges an attempt to every budget, a miss to the guessing budget too; adds to the reply how far each is from full.
local function charge(quotas, policies, first, attempted, missed, reply)
  local length = #reply
  for i = 1, #policies do
    local policy, key = policies[i], KEYS[first + i]
    local tat, charged = tats[key], attempted
    if policy == GUESS then charged = missed end
    if charged then
      tat = tat + quotas[policy].interval_us
      tats[key], changed_tats[key] = tat, tat
    end
    reply[length + i] = tat - now_us
  end
  return reply
end

local function refusal_of_invite(kind, invite, user)
  if not invite then return 'not_found' end
  if invite.disabled then return 'disabled' end
  if invite.starts_at and now < tonumber(invite.starts_at) then return 'not_started', invite.starts_at end
  if invite.expires_at and now >= tonumber(invite.expires_at) then return 'expired', invite.expires_at end
  -- A validation that leaves out the user or the e-mail address is told nothing that depends on them.
  if invite.user and (kind.redeeming or user ~= '') and invite.user ~= user then return 'user_not_allowed' end
  if invite.email_domains and (kind.redeeming or kind.email_domain ~= '') then
    local listed = ',' .. invite.email_domains .. ','
    if kind.email_domain == '' or not string.find(listed, ',' .. kind.email_domain .. ',', 1, true) then
      return 'email_domain_not_allowed'
    end
  end
end

local function refusal_of_membership(rule, invite, member)
  if not member or rule == 'one_per_invite' or rule == 'unlimited' then return nil end
  local fields = member_fields(member, rule, invite.pointer)
  local pointer = fields[invite.pointer] and invite.pointer
  if not pointer and rule == 'one_group' then
    for name in pairs(fields) do
      if string.sub(name, 1, 6) == 'group:' then pointer = name end
    end
  end
  if not pointer then return nil end
  local redemption = redemption_at(member, rule, fields[pointer])
  return 'already_member', string.sub(pointer, 7), redemption and redemption.id or ''
end

-- How many changes wait in the outbox; an entry may hold those of a whole batch.
local function changes_waiting()
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  if not oldest then return 0 end
  local first = oldest[2][3] == 'first' and oldest[2][4] or oldest[1]
  local first_epoch, first_seq = string.match(first, '^(%d+)-(%d+)$')
  if first_epoch ~= epoch then return redis.call('XLEN', KEYS[2]) + seq end
  return seq - first_seq + 1
end

-- How many more changes the outbox takes. Only a long one is looked at closely: an entry holds at most one batch.
local function outbox_room()
  if (redis.call('XLEN', KEYS[2]) + 1) * BATCH_MAX <= limit then return BATCH_MAX end
  return limit - changes_waiting()
end

-- Spends the use on the tables; the writing comes at the end.
local function grant(kind, rule, invite, member, id, redemption, user, metadata)
  invite.uses, invite.granted, granted = invite.uses + 1, invite.granted + 1, granted + 1
  changed_invites[kind.invite] = invite
  local position = epoch .. '-' .. text(seq + granted)
  local ordinal, left = text(invite.granted), invite.max and text(invite.max - invite.uses) or '-'
  local written = {
    'HSET', member,
    invite.pointer, position,
    'request:' .. id, position,
    position, redemption .. ' ' .. ordinal .. ' ' .. left .. ' ' .. at,
    position .. ':invite', invite.id .. ' ' .. kind.code .. ' ' .. invite.group
  }
  if rule == 'one_per_invite' then
    written[#written + 1] = 'invite:' .. invite.id
    written[#written + 1] = position
  end
  grants[granted], unread[member] = written, written

  -- Neighbours of one kind share an entry.
  if not entry or entry.kind ~= kind then
    entry = {kind = kind, first = position, invite = invite, rule = rule, fields = {}, length = 0}
    entries[#entries + 1] = entry
  end
  entry.last = position
  local fields, length = entry.fields, entry.length
  fields[length + 1] = position
  fields[length + 2] = redemption .. ' ' .. ordinal .. ' ' .. text(invite.uses) .. ' ' .. left .. ' ' .. id .. ' ' .. user
  if metadata ~= '' then
    length = length + 2
    fields[length + 1] = position .. ':metadata'
    fields[length + 2] = metadata
  end
  entry.length = length + 2
  return {'granted', seq + granted, invite.granted, invite.max and invite.max - invite.uses or ''}
end

-- Decides the request whose values begin at ARGV[a] and whose keys at KEYS[k].
local function decide(a, k)
  local kind, id, redemption, user = kinds[tonumber(ARGV[a])], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3]
  local member, first = nil, k - 1
  if user ~= '' then member, first = KEYS[k], k end
  local rules = rules_of(kind.settings)
  local rule, redeeming = rules.membership, kind.redeeming

  -- 1. Replay, before every other check, also in a namespace that was archived since; it charges nothing.
  if redeeming then
    local name = 'request:' .. id
    local position = member_fields(member, rule, name)[name]
    if position then
      local before = redemption_at(member, rule, position)
      if before.code ~= kind.code then return {'refused', 'request_id_reused', '', ''} end
      return replayed(before)
    end
  end
  if not rules.live then return {'refused', 'namespace_not_found', '', ''} end
  if rules.revision ~= kind.revision then return {'settings_changed'} end
  local invite = invite_of(kind.invite)
  if rules.coarse and not invite then as_if_known(kind, rule, member) end
  local own = invite and own_redemption(member, rule, invite)
  if own then return redeeming and replayed(own) or {'allowed'} end

  -- 2. Backpressure.
  if redeeming then
    room = room or outbox_room()
    if granted >= room then return {'refused', 'overloaded', '', ''} end
  end

  -- 3. Rate limits: all are checked, none is charged yet.
  local quotas, policies = rules.quotas, kind.policies
  local blocked, wait_us = spent_budget(quotas, policies, first)
  if blocked then
    local reason = blocked == 'guess' and 'too_many_attempts' or 'rate_limited'
    local reply = {'refused', reason, blocked, int(math.ceil(wait_us / 1000))}
    return charge(quotas, policies, first, false, false, reply)
  end

  -- 4. to 6. The invite, the membership, the uses.
  local reason, detail, more = refusal_of_invite(kind, invite, user)
  local used_up = not reason and invite.max and invite.uses >= invite.max
  -- Where nothing is told of a code that can not be used, a member is not told of the membership by one that is used up.
  if not reason and not (used_up and rules.coarse) then
    reason, detail, more = refusal_of_membership(rule, invite, member)
  end
  if not reason and used_up then reason = 'exhausted' end
  if rules.coarse and FOLDED[reason] then reason, detail, more = 'invalid', nil, nil end

  -- 7. Nothing above changes a table that others read; nothing below refuses.
  local reply
  if reason then
    reply = {'refused', reason, detail or '', more or ''}
  elseif redeeming then
    reply = grant(kind, rule, invite, member, id, redemption, user, ARGV[a + 4])
  else
    reply = {'allowed'}
  end
  return charge(quotas, policies, first, redeeming, reason == 'not_found' or reason == 'invalid', reply)
end

-- All rate limits in one go. One that holds something else than text reads as absent, and gets mended by its next charge.
local rate_keys, key_of = {}, {}
for a = next_arg, #ARGV, 5 do
  key_of[a] = next_key
  if ARGV[a + 3] ~= '' then next_key = next_key + 1 end
  for _ = 1, #kinds[tonumber(ARGV[a])].policies do
    rate_keys[#rate_keys + 1] = KEYS[next_key]
    next_key = next_key + 1
  end
end
if #rate_keys > 0 then
  local values = call('MGET', unpack(rate_keys))
  for i = 1, #rate_keys do tats[rate_keys[i]] = not values[i] and now_us or tonumber(values[i]) or false end
end
local invites_of_kinds, replies = {}, {'done', now, false}
for a = next_arg, #ARGV, 5 do
  local ok, reply = pcall(decide, a, key_of[a])
  replies[(a - next_arg) / 5 + 4] = ok and reply or {'failed', tostring(reply)}
end
for place, kind in ipairs(kinds) do
  local invite = changed_invites[kind.invite]
  invites_of_kinds[2 * place - 1], invites_of_kinds[2 * place] = invite and invite.id or '', invite and invite.group or ''
end
replies[3] = invites_of_kinds

-- Nothing above writes. The outbox comes first: were it refused, nothing else would have been written.
for _, entry in ipairs(entries) do
  local kind, invite = entry.kind, entry.invite
  redis.call('XADD', KEYS[2], entry.last, 'type', 'redeemed', 'first', entry.first, 'ns', kind.namespace,
    'actor', kind.actor, 'at', at, 'invite', invite.id, 'code', kind.code, 'group', invite.group, 'rule', entry.rule,
    unpack(entry.fields))
end
if granted > 0 or ARGV[6] == '1' then redis.call('HSET', KEYS[1], 'seq', int(seq + granted)) end
for _, written in ipairs(grants) do redis.call(unpack(written)) end
for key, invite in pairs(changed_invites) do
  redis.call('HSET', key, 'uses', int(invite.uses), 'granted', int(invite.granted))
end
for key, tat in pairs(changed_tats) do
  redis.call('SET', key, text(tat), 'PX', text(math.ceil((tat - now_us) / 1000)))
end
return replies
