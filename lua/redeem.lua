#!lua
-- Spend or hold one use of a code for each request of a batch, once per request id. All requests are of one partition;
-- each sees the effects of those before it. Every key is read at most once, everything is decided on Lua tables, then
-- everything is written. A request whose keys can not be read fails alone.
--
-- What requests have in common is said once: a kind. A caller that puts requests of one kind next to each other gets one
-- outbox entry for all that they are granted.
--
-- KEYS[1] meta      hash    deployment, lineage, epoch, seq
-- KEYS[2] outbox    stream  gets one entry per run of grants of one kind, and one per use that is held
-- KEYS[3..] for each namespace its settings, its campaigns, and what is held of them; then for each kind its invite and
--           what is held of it; then for each request its member, if it has a user, and one rate limit for each policy
--           of its kind
-- ARGV[1] deployment, ARGV[2] lineage, ARGV[3] epoch, ARGV[4] now: see the head
-- ARGV[5] limit      changes in the outbox from which on nothing is granted
-- ARGV[6] write      1 to write something in any case, so that a WAIT behind this call has something to wait for
-- ARGV[7] namespaces their count
-- ARGV[8] kinds      their count
-- ARGV[9..] the name of each namespace; then for each kind 8 values: mode (redeem, validate or reserve), namespace (its
--           place in the list, from 1), the revision of its settings known to the caller, code, e-mail domain, actor,
--           and the numbers of the policies that limit it (1 user, 2 ip, 3 code, 4 namespace, 5 guess) as one text of
--           digits, and 1 if a shard's own word that there is no use or no such code is not the last one: the answer is
--           then `dry`; then for each of at most 1024 requests 6 values: kind (its place in the list, from 1), request id,
--           redemption id, user, metadata, and what it wants of reservations: to reserve, how long in ms; to redeem, the
--           deadline of the user's own that is to be spent, or empty to spend one where there is one
-- replies   {'fenced'} or {'done', now, {invite and group of each kind}, one reply per request...}, each of which is
--   {'granted', seq, ordinal, remaining, rates...}
--   {'replayed', redemption, invite, code, group, ordinal, remaining, at, position}
--   {'held', deadline, 1 if it was held before, else 0, rates...}
--   {'allowed', rates...}
--   {'refused', reason, detail, detail, rates...}
--   {'dry', reason, invite id, campaign}   not_found, exhausted or campaign_exhausted as far as this shard knows, or
--             elsewhere, since the user is not known here and nobody new comes in here any more; nothing was decided. Names
--             the invite's campaign if that has none left here; with campaign_exhausted, one use of the invite that is
--             here is not given away for a moment
--   {'settings_changed'}   the caller knew older rules; nothing was decided
--   {'failed', message}    the keys of this request hold something that they should not; nothing was decided
--   remaining is empty without a limit; invite and group of a kind are empty where nothing was granted or held
--   reasons   namespace_not_found, request_id_reused, already_rolled_back (redemption, when), overloaded,
--             rate_limited (policy, retry after ms), too_many_attempts (policy, retry after ms), not_found, disabled,
--             not_started (starts_at), expired (expires_at), user_not_allowed, email_domain_not_allowed,
--             already_member (group, redemption), user_limit_reached, reservation_expired,
--             exhausted (when a held use may be free again), campaign_exhausted;
--             invalid instead of those that tell of a code, where the namespace's error_detail is coarse
--   rates     for each policy of the kind, once they were looked at, how far its budget is from full, in microseconds
-- After a grant: uses and granted + 1, the member's fields, a line in an outbox entry, one's own reservation gone. After
-- a refusal: nothing but rate limits; after a `dry` for want of a campaign's use, until when the invite's is kept.
-- Reservations whose deadline has come are removed by the call that ignores them: were they left, a clock that goes back
-- would revive them.
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
local POLICIES, GUESS, BATCH_MAX = {'user', 'ip', 'code', 'namespace', 'guess'}, 5, 1024
-- For how long a shard that looks for a use of a campaign gives away no last use of the invite, in ms: see take_uses.lua.
-- Longer than there, so that of two shards that have what the other one needs only one gives.
local KEPT_MS = 300
-- The reasons that tell of a code; all others tell of the user or of the request.
local FOLDED = {
  not_found = true, disabled = true, not_started = true, expired = true, user_not_allowed = true,
  email_domain_not_allowed = true, exhausted = true, campaign_exhausted = true
}
-- Locals, for a global costs a look-up each time.
local KEYS, ARGV, call, tonumber = KEYS, ARGV, redis.call, tonumber
local now_us = now * 1000
local limit, room = tonumber(ARGV[5]), nil
local settings, invites, members, unread, tats, holds, campaigns, spent = {}, {}, {}, {}, {}, {}, {}, {}
local changed, entry, entries, writes, changed_invites, changed_tats = 0, nil, {}, {}, {}, {}

local spaces, kinds, next_key, next_arg = {}, {}, 3, 9
for place = 1, tonumber(ARGV[7]) do
  spaces[place] = {
    name = ARGV[next_arg], settings = KEYS[next_key], campaigns = KEYS[next_key + 1], campaign_held = KEYS[next_key + 2]
  }
  next_key, next_arg = next_key + 3, next_arg + 1
end
for place = 1, tonumber(ARGV[8]) do
  local policies = {}
  for digit in string.gmatch(ARGV[next_arg + 6], '%d') do policies[#policies + 1] = tonumber(digit) end
  kinds[place] = {
    mode = ARGV[next_arg], space = spaces[tonumber(ARGV[next_arg + 1])], revision = ARGV[next_arg + 2],
    code = ARGV[next_arg + 3], email_domain = ARGV[next_arg + 4], actor = ARGV[next_arg + 5], policies = policies,
    is_patient = ARGV[next_arg + 7] == '1', invite = KEYS[next_key], held = KEYS[next_key + 1]
  }
  next_key, next_arg = next_key + 2, next_arg + 8
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
    for _, name in ipairs({'shard', 'spread', 'sealed'}) do names[#names + 1] = name end
    names[#names + 1] = 'error_detail'
    local values = read('HMGET', key, unpack(names))
    rules = {live = values[1] and not values[3], revision = values[1], membership = values[2], quotas = {}}
    rules.coarse, rules.sealed = values[#names] == 'coarse', values[#names - 1]
    rules.is_spread = values[#names - 2] or values[#names - 3]
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
      invite.max_per_user = tonumber(invite.max_uses_per_user)
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

-- Whether anything is remembered of a user, or this batch is about to write it.
local function known_here(member) return unread[member] or read('EXISTS', member) == 1 end

-- What was answered at a position; nothing for a user who joined there another way.
local function redemption_at(key, rule, position)
  local fields = member_fields(key, rule, position, position .. ':invite')
  if string.match(fields[position], '^joined ') then return nil end
  local id, ordinal, remaining, at, undone = string.match(fields[position], '^(%S+) (%d+) (%S+) (%d+) ?(%d*)$')
  local invite, code, group = string.match(fields[position .. ':invite'], '^(%S+) (%S+) (.+)$')
  if not id or not invite then error('the member at ' .. key .. ' is not whole', 0) end
  if remaining == '-' then remaining = '' end
  return {
    id = id, invite = invite, code = code, group = group, ordinal = ordinal, remaining = remaining, at = at,
    position = position, rolled_back_at = undone ~= '' and undone or nil
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

-- How many uses of an invite a user has spent; those that were rolled back do not count. Only for invites that ask.
local function uses_of_member(member, rule, invite)
  local known = member .. ' ' .. invite.id
  if spent[known] then return spent[known] end
  local fields = member_fields(member, rule)
  if rule ~= 'one_group' then
    -- What is on the table may be only what was asked for.
    local all = to_table(read('HGETALL', member))
    for name, value in pairs(fields) do all[name] = value end
    fields = all
  end
  local count, wanted = 0, invite.id .. ' '
  for name, value in pairs(fields) do
    local position = value and string.match(name, '^(%d+%-%d+):invite$')
    if position and string.sub(value, 1, #wanted) == wanted then
      local _, _, undone = string.find(fields[position], '^%S+ %d+ %S+ %d+ (%d+)$')
      if not undone then count = count + 1 end
    end
  end
  spent[known] = count
  return count
end

-- What is held of an invite: how many are live, and until when those are that this call asks for.
local function holds_of(key)
  local held = holds[key]
  if not held then
    local all = read('ZCARD', key)
    local expired = all > 0 and read('ZCOUNT', key, '-inf', at) or 0
    held = {any = all > 0, live = all - expired, expired = expired > 0, until_of = {}, changed = {}}
    holds[key] = held
  end
  return held
end

-- What a code that can not be used costs, for one that nobody knows: a hash of some ten fields, a look at the member and
-- one at what is held. Else the time would tell them apart.
local function as_if_known(kind, rule, member)
  to_table(read('HGETALL', kind.space.settings))
  if member and rule ~= 'unlimited' then member_fields(member, rule, 'group:') end
  holds_of(kind.held)
end

-- Until when this user holds a use, if one is live.
local function own_hold(held, key, user)
  if user == '' then return nil end
  local deadline = held.until_of[user]
  if deadline == nil then
    deadline = held.any and tonumber(read('ZSCORE', key, user)) or false
    if deadline and deadline <= now then deadline = false end
    held.until_of[user] = deadline
  end
  return deadline or nil
end

-- When the first of the live holds may end.
local function may_free_at(held, key)
  -- Of those whom this call has changed the tables know; the first of all others is the next one in Redis.
  local first, changed_users = nil, 0
  for _, deadline in pairs(held.changed) do
    changed_users = changed_users + 1
    if deadline and (not first or deadline < first) then first = deadline end
  end
  local found = read('ZRANGEBYSCORE', key, '(' .. at, '+inf', 'WITHSCORES', 'LIMIT', 0, changed_users + 1)
  for i = 1, #found, 2 do
    if held.changed[found[i]] == nil then
      local deadline = tonumber(found[i + 1])
      if not first or deadline < first then first = deadline end
      break
    end
  end
  return first
end

-- What is held of a campaign stands in order of name and deadline, so that the live ones are a range.
local function held_of_campaign(name, deadline, code, user)
  return name .. ':' .. string.format('%013d', deadline) .. ':' .. code .. ':' .. user
end

local function campaign_of(space, name)
  local known = space.campaigns .. ' ' .. name
  local campaign = campaigns[known]
  if not campaign then
    local values = read('HMGET', space.campaigns, name .. ':uses', name .. ':max_uses')
    local uses, max = tonumber(values[1]), tonumber(values[2])
    if not uses then error('campaign ' .. name .. ' is not whole', 0) end
    local all = read('ZLEXCOUNT', space.campaign_held, '[' .. name .. ':', '(' .. name .. ';')
    local live = all > 0 and read('ZLEXCOUNT', space.campaign_held,
      '[' .. name .. ':' .. string.format('%013d', now + 1), '(' .. name .. ';') or 0
    campaign = {
      space = space, name = name, uses = uses, max = max, live = live, expired = all > live, known = {}, grants = 0
    }
    campaigns[known] = campaign
  end
  return campaign
end

-- Whether a user's live hold is one of the campaign's too.
local function is_held_of_campaign(campaign, member)
  local held = campaign.known[member]
  if held == nil then
    held = read('ZSCORE', campaign.space.campaign_held, member) and true or false
    campaign.known[member] = held
  end
  return held
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

local function refusal_of_invite(kind, invite, user, named)
  if not invite then return 'not_found' end
  if invite.disabled then return 'disabled' end
  if invite.starts_at and now < tonumber(invite.starts_at) then return 'not_started', invite.starts_at end
  if invite.expires_at and now >= tonumber(invite.expires_at) then return 'expired', invite.expires_at end
  -- A validation that leaves out the user or the e-mail address is told nothing that depends on them.
  local binding = kind.mode ~= 'validate'
  if invite.user and (binding or user ~= '') and invite.user ~= user then return 'user_not_allowed' end
  -- Of one who names a reservation it was asked when that was made.
  if invite.email_domains and not named and (binding or kind.email_domain ~= '') then
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

-- Whether the campaign of an invite has no use for one who may hold one.
local function campaign_is_dry(kind, invite, own, user)
  local campaign = campaign_of(kind.space, invite.campaign)
  local mine = own and is_held_of_campaign(campaign, held_of_campaign(invite.campaign, own, kind.code, user))
  return campaign.max and (campaign.uses >= campaign.max or not mine and campaign.uses + campaign.live >= campaign.max)
end

-- The last question: whether there is a use. One's own hold is for oneself, and counts for nobody else.
local function refusal_of_uses(kind, rule, invite, held, own, member, user)
  if invite.max_per_user and member and uses_of_member(member, rule, invite) >= invite.max_per_user then
    return 'user_limit_reached'
  end
  if invite.max and (invite.uses >= invite.max or not own and invite.uses + held.live >= invite.max) then
    return 'exhausted', invite.uses < invite.max and int(may_free_at(held, kind.held)) or ''
  end
  if invite.campaign and campaign_is_dry(kind, invite, own, user) then return 'campaign_exhausted' end
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

-- One's own hold counts no more.
local function end_hold(kind, invite, held, own, user)
  held.live, held.until_of[user], held.changed[user] = held.live - 1, false, false
  writes[#writes + 1] = {'ZREM', kind.held, user}
  if not invite.campaign then return end
  local campaign = campaign_of(kind.space, invite.campaign)
  local member = held_of_campaign(invite.campaign, own, kind.code, user)
  if is_held_of_campaign(campaign, member) then
    campaign.live, campaign.known[member] = campaign.live - 1, false
    writes[#writes + 1] = {'ZREM', kind.space.campaign_held, member}
  end
end

-- Spends the use on the tables; the writing comes at the end.
local function grant(kind, rule, invite, held, own, member, id, redemption, user, metadata)
  if own then end_hold(kind, invite, held, own, user) end
  invite.uses, invite.granted, changed = invite.uses + 1, invite.granted + 1, changed + 1
  changed_invites[kind.invite], kind.told = invite, invite
  local known = member .. ' ' .. invite.id
  if spent[known] then spent[known] = spent[known] + 1 end
  local position = epoch .. '-' .. text(seq + changed)
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
  writes[#writes + 1], unread[member] = written, written

  -- Neighbours of one kind share an entry, as long as Lua can pass its fields in one go.
  if not entry or entry.kind ~= kind or entry.length > 4000 then
    local fields = {
      'first', position, 'ns', kind.space.name, 'actor', kind.actor, 'at', at, 'invite', invite.id, 'code', kind.code,
      'group', invite.group, 'rule', rule
    }
    if invite.campaign then fields[17], fields[18] = 'campaign', invite.campaign end
    entry = {type = 'redeemed', kind = kind, fields = fields, length = #fields}
    entries[#entries + 1] = entry
  end
  entry.last = position
  local fields, length = entry.fields, entry.length
  fields[length + 1] = position
  fields[length + 2] = redemption .. ' ' .. ordinal .. ' ' .. text(invite.uses) .. ' ' .. left .. ' ' .. id .. ' ' .. user
  length = length + 2
  if metadata ~= '' then
    fields[length + 1], fields[length + 2] = position .. ':metadata', metadata
    length = length + 2
  end
  if own then
    fields[length + 1], fields[length + 2] = position .. ':until', text(own)
    length = length + 2
  end
  if invite.campaign then
    local campaign = campaign_of(kind.space, invite.campaign)
    campaign.uses, campaign.grants = campaign.uses + 1, campaign.grants + 1
    fields[length + 1], fields[length + 2] = position .. ':campaign', text(campaign.uses)
    length = length + 2
  end
  entry.length = length
  return {'granted', seq + changed, invite.granted, invite.max and invite.max - invite.uses or ''}
end

-- Holds a use on the tables, never past the end of the invite's window.
local function hold(kind, rules, invite, held, user, ttl_ms)
  local deadline = now + ttl_ms
  if invite.expires_at then deadline = math.min(deadline, tonumber(invite.expires_at)) end
  changed, entry, kind.told = changed + 1, nil, invite
  held.any, held.live, held.until_of[user], held.changed[user] = true, held.live + 1, deadline, deadline
  writes[#writes + 1] = {'ZADD', kind.held, text(deadline), user}
  -- Who looks at a part twice must see that something was held in between, also by the same user until the same moment.
  if rules.is_spread then writes[#writes + 1] = {'HINCRBY', kind.invite, 'holds', '1'} end
  local fields = {
    'ns', kind.space.name, 'actor', kind.actor, 'at', at, 'user', user, 'invite', invite.id, 'code', kind.code,
    'until', text(deadline)
  }
  if invite.campaign then
    local campaign = campaign_of(kind.space, invite.campaign)
    local member = held_of_campaign(invite.campaign, deadline, kind.code, user)
    campaign.live, campaign.known[member] = campaign.live + 1, true
    writes[#writes + 1] = {'ZADD', kind.space.campaign_held, '0', member}
    if rules.is_spread then writes[#writes + 1] = {'HINCRBY', kind.space.campaigns, invite.campaign .. ':holds', '1'} end
    fields[15], fields[16] = 'campaign', invite.campaign
  end
  entries[#entries + 1] = {type = 'reserved', last = epoch .. '-' .. text(seq + changed), fields = fields}
  return {'held', deadline, 0}
end

-- Decides the request whose values begin at ARGV[a] and whose keys at KEYS[k].
local function decide(a, k)
  local kind, id, redemption, user = kinds[tonumber(ARGV[a])], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3]
  local member, first = nil, k - 1
  if user ~= '' then member, first = KEYS[k], k end
  local rules = rules_of(kind.space.settings)
  kind.space.is_spread = rules.is_spread
  local rule, mode, wanted = rules.membership, kind.mode, ARGV[a + 5]
  local redeeming = mode == 'redeem'

  -- 1. Replay, before every other check, also in a namespace that was archived since; it charges nothing.
  if redeeming then
    local name = 'request:' .. id
    local position = member_fields(member, rule, name)[name]
    if position then
      local before = redemption_at(member, rule, position)
      if before.code ~= kind.code then return {'refused', 'request_id_reused', '', ''} end
      if before.rolled_back_at then
        return {'refused', 'already_rolled_back', before.id, before.rolled_back_at}
      end
      return replayed(before)
    end
  end
  if not rules.live then return {'refused', 'namespace_not_found', '', ''} end
  if rules.revision ~= kind.revision then return {'settings_changed'} end
  if rules.sealed and member and not known_here(member) then return {'dry', 'elsewhere'} end
  local invite = invite_of(kind.invite)
  if rules.coarse and not invite then as_if_known(kind, rule, member) end
  local redeemed = invite and own_redemption(member, rule, invite)
  if redeemed then
    if mode == 'reserve' then return {'refused', 'already_member', redeemed.group, redeemed.id} end
    return redeeming and replayed(redeemed) or {'allowed'}
  end
  local held = invite and holds_of(kind.held)
  -- What has run out goes from both, the invite's and the campaign's.
  if held and held.expired and invite.campaign then campaign_of(kind.space, invite.campaign) end
  local own = held and own_hold(held, kind.held, user)
  if own and mode == 'reserve' then
    kind.told = invite
    return {'held', own, 1}
  end
  -- One who names a reservation wants that and nothing else.
  local named = redeeming and wanted ~= ''
  local is_named = named and own == tonumber(wanted)

  -- 2. Backpressure.
  if mode ~= 'validate' then
    room = room or outbox_room()
    if changed >= room then return {'refused', 'overloaded', '', ''} end
  end

  -- 3. Rate limits: all are checked, none is charged yet. What a reservation is for was charged when it was made.
  local quotas, policies = rules.quotas, is_named and {} or kind.policies
  local blocked, wait_us = spent_budget(quotas, policies, first)
  if blocked then
    local reason = blocked == 'guess' and 'too_many_attempts' or 'rate_limited'
    local reply = {'refused', reason, blocked, int(math.ceil(wait_us / 1000))}
    return charge(quotas, policies, first, false, false, reply)
  end

  -- 4. to 6. The invite, the membership, the uses.
  local reason, detail, more = refusal_of_invite(kind, invite, user, is_named)
  -- Where nothing is told of a code that can not be used, a member is not told of the membership by one that is used up.
  if not reason and rules.coarse then
    reason, detail, more = refusal_of_uses(kind, rule, invite, held, own, member, user)
  end
  if not reason then reason, detail, more = refusal_of_membership(rule, invite, member) end
  if not reason and named and not is_named then reason = 'reservation_expired' end
  if not reason then reason, detail, more = refusal_of_uses(kind, rule, invite, held, own, member, user) end
  -- Other shards may know more.
  if kind.is_patient and reason == 'not_found' then return {'dry', reason} end
  if kind.is_patient and (reason == 'exhausted' or reason == 'campaign_exhausted') then
    local dry = invite.campaign and campaign_is_dry(kind, invite, own, user)
    -- A use of each is needed: were this one given away meanwhile, two shards could go on to swap what they have.
    if reason == 'campaign_exhausted' and not kind.keeps then
      kind.keeps = true
      writes[#writes + 1] = {'HSET', kind.invite, 'kept_until', int(now + KEPT_MS)}
    end
    return {'dry', reason, invite.id, dry and invite.campaign or ''}
  end
  if rules.coarse and FOLDED[reason] then reason, detail, more = 'invalid', nil, nil end

  -- 7. Nothing above changes a table that others read; nothing below refuses.
  local reply
  if reason then
    reply = {'refused', reason, detail or '', more or ''}
  elseif redeeming then
    reply = grant(kind, rule, invite, held, own, member, id, redemption, user, ARGV[a + 4])
  elseif mode == 'reserve' then
    reply = hold(kind, rules, invite, held, user, tonumber(wanted))
  else
    reply = {'allowed'}
  end
  local missed = reason == 'not_found' or reason == 'invalid'
  return charge(quotas, policies, first, mode ~= 'validate', missed, reply)
end

-- All rate limits in one go. One that holds something else than text reads as absent, and gets mended by its next charge.
local rate_keys, key_of = {}, {}
for a = next_arg, #ARGV, 6 do
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
for a = next_arg, #ARGV, 6 do
  local ok, reply = pcall(decide, a, key_of[a])
  replies[(a - next_arg) / 6 + 4] = ok and reply or {'failed', tostring(reply)}
end
for place, kind in ipairs(kinds) do
  local invite = kind.told
  invites_of_kinds[2 * place - 1], invites_of_kinds[2 * place] = invite and invite.id or '', invite and invite.group or ''
end
replies[3] = invites_of_kinds

-- Nothing above writes. The outbox comes first: were it refused, nothing else would have been written.
for _, one in ipairs(entries) do redis.call('XADD', KEYS[2], one.last, 'type', one.type, unpack(one.fields)) end
if changed > 0 or ARGV[6] == '1' then redis.call('HSET', KEYS[1], 'seq', int(seq + changed)) end
for _, written in ipairs(writes) do redis.call(unpack(written)) end
for key, invite in pairs(changed_invites) do
  redis.call('HSET', key, 'uses', int(invite.uses), 'granted', int(invite.granted))
end
for key, held in pairs(holds) do
  if held.expired then redis.call('ZREMRANGEBYSCORE', key, '-inf', at) end
end
for _, campaign in pairs(campaigns) do
  if campaign.grants > 0 then
    redis.call('HSET', campaign.space.campaigns, campaign.name .. ':uses', int(campaign.uses))
    -- As an invite's `granted`: who looks at a part twice must see that a use came back and was spent in between.
    if campaign.space.is_spread then
      redis.call('HINCRBY', campaign.space.campaigns, campaign.name .. ':granted', campaign.grants)
    end
  end
  if campaign.expired then
    redis.call('ZREMRANGEBYLEX', campaign.space.campaign_held, '[' .. campaign.name .. ':',
      '(' .. campaign.name .. ':' .. string.format('%013d', now + 1))
  end
end
for key, tat in pairs(changed_tats) do
  redis.call('SET', key, text(tat), 'PX', text(math.ceil((tat - now_us) / 1000)))
end
return replies
