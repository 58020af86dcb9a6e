#!/usr/bin/env python3
"""Plants small faults in the scripts, one at a time, and shows that the tests notice each of them.

    tests/mutants.py                 every mutant
    tests/mutants.py redeem expired  only those whose script or meaning has one of these words
    tests/mutants.py --check         only whether every mutant still fits its script

It works on a copy of the checkout below target/mutants, which it keeps, so that only what differs is built again.
A mutant counts as caught only if the same tests pass without it. Headers and documents are not among these tests: what
catches a mutant is what the scripts do. Ends with 1 if a mutant survives, with 2 if one no longer fits.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "mutants"
COPY = WORK / "checkout"

HISTORIES = ["model::the_scripts_do_what_the_model_says_on_random_histories"]
SPREAD = ["spread_model::", "spread::"]
LEDGER = ["model::the_ledger_knows_all_that_the_gate_knows_on_random_histories"]
RECOVERY = ["recovery::", "scripts::"]
REST = ["batch::", "batches::", "race::", "faults::", "durability::", "api::", "audit::"]

# Nobody may be waiting for ever because of a fault.
PATIENCE_S = 900

# Script, what the fault means, the exact text, what stands there instead.
MUTANTS = [
    ("redeem", "one use too many", "invite.uses >= invite.max or", "invite.uses > invite.max or"),
    ("redeem", "a repeat is a new request", "    if position then\n      local before", "    if false then\n      local before"),
    ("redeem", "a key that was used for another code gets that answer",
     "if before.code ~= kind.code then return {'refused', 'request_id_reused', '', ''} end", ""),
    ("redeem", "another invite's use counts as a repeat of this one",
     "return redemption and redemption.invite == invite.id and redemption or nil", "return redemption"),
    ("redeem", "no fence", "if lineage ~= ARGV[2] or meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] or meta[3] ~= ARGV[3] then",
     "if false then"),
    ("redeem", "the fence forgets the server's own lineage", "if lineage ~= ARGV[2] or meta[1]", "if meta[1]"),
    ("redeem", "the fence forgets the epoch", " or meta[3] ~= ARGV[3] then", " then"),
    ("redeem", "decided by settings that have changed",
     "if rules.revision ~= kind.revision then return {'settings_changed'} end", ""),
    ("redeem", "redeemed in an archived namespace", "live = values[1] and not values[3]", "live = values[1]"),
    ("redeem", "one entry too many in the outbox", "if changed >= room then", "if changed > room then"),
    ("redeem", "valid at the moment of its end", "invite.expires_at and now >= tonumber", "invite.expires_at and now > tonumber"),
    ("redeem", "not yet valid at the moment of its start", "invite.starts_at and now < tonumber", "invite.starts_at and now <= tonumber"),
    ("redeem", "a disabled invite works", "if invite.disabled then return 'disabled' end", ""),
    ("redeem", "an invite for one user works for all", "and invite.user ~= user then", "and false then"),
    ("redeem", "half of a domain's name is enough", "',' .. kind.email_domain .. ',', 1, true)", "kind.email_domain, 1, true)"),
    ("redeem", "a second group where one is the rule", "if not pointer and rule == 'one_group' then", "if false then"),
    ("redeem", "those in a batch do not see whom it let in",
     "writes[#writes + 1], unread[member] = written, written", "writes[#writes + 1] = written"),
    ("redeem", "attempts are not charged", "tat = tat + quotas[policy].interval_us\n", "tat = tat\n"),
    ("redeem", "charges are not kept", "tats[key], changed_tats[key] = tat, tat", "tats[key] = tat"),
    ("redeem", "one attempt too few", "if over_us > 0 and not blocked then", "if over_us >= 0 and not blocked then"),
    ("redeem", "every attempt counts as a guess", "if policy == GUESS then charged = missed end", ""),
    ("redeem", "a code that is used up is told from one that nobody knows", "email_domain_not_allowed = true, exhausted = true",
     "email_domain_not_allowed = true"),
    ("redeem", "a member is told by a code that is used up", "if not reason and rules.coarse then", "if false then"),
    ("redeem", "a dead code is no guess where nobody is to know of it", " or reason == 'invalid'\n", "\n"),
    ("redeem", "a clock that went back leaves a budget spent for long", " elseif tat > latest then tat = latest end",
     " end"),
    ("redeem", "rate limits stay in memory for ever",
     "text(tat), 'PX', text(math.ceil((tat - now_us) / 1000)))", "text(tat))"),
    ("redeem", "a validation spends a use", "  elseif redeeming then\n", "  elseif redeeming or member then\n"),
    ("redeem", "ordinals begin with 0", "local ordinal, left = text(invite.granted),", "local ordinal, left = text(invite.granted - 1),"),
    ("redeem", "the use is not written", "redis.call('HSET', key, 'uses', int(invite.uses), 'granted'",
     "redis.call('HSET', key, 'granted'"),
    ("redeem", "the member is not written", "for _, written in ipairs(writes) do redis.call(unpack(written)) end\n", ""),
    ("redeem", "the ledger is told another request", "left .. ' ' .. id .. ' ' .. user", "left .. ' ' .. redemption .. ' ' .. user"),
    ("redeem", "what another kind was granted shares the entry", "if not entry or entry.kind ~= kind or", "if not entry or"),
    ("redeem", "what was taken back is told as if it held", "      if before.rolled_back_at then", "      if false then"),
    ("redeem", "what others hold is free", "not own and invite.uses + held.live >= invite.max)", "false)"),
    ("redeem", "one's own hold is somebody else's", "or not own and invite.uses + held.live", "or invite.uses + held.live"),
    ("redeem", "a hold lasts a moment too long", "if deadline and deadline <= now then", "if deadline and deadline < now then"),
    ("redeem", "what has run out is counted", "live = all - expired, expired", "live = all, expired"),
    ("redeem", "what has run out stays", "  if held.expired then redis.call('ZREMRANGEBYSCORE', key, '-inf', at) end\n", ""),
    ("redeem", "what has run out of a campaign stays",
     "  if campaign.expired then\n    redis.call('ZREMRANGEBYLEX'", "  if false then\n    redis.call('ZREMRANGEBYLEX'"),
    ("redeem", "a hold outlives its invite", "if invite.expires_at then deadline = math.min(deadline, tonumber(invite.expires_at)) end", ""),
    ("redeem", "two holds of one user", "  if own and mode == 'reserve' then", "  if false then"),
    ("redeem", "any reservation will do", "local is_named = named and own == tonumber(wanted)", "local is_named = named and own"),
    ("redeem", "a reservation that holds nothing spends a free use", "if not reason and named and not is_named then", "if false then"),
    ("redeem", "who confirms is limited again", "is_named and {} or kind.policies", "kind.policies"),
    ("redeem", "a spent hold is held on", "  if own then end_hold(kind, invite, held, own, user) end\n", ""),
    ("redeem", "a spent hold is held on of the campaign", "  if is_held_of_campaign(campaign, member) then\n", "  if false then\n"),
    ("redeem", "the campaign's limit is not asked", "return campaign.max and (campaign.uses >= campaign.max or", "return false and (campaign.uses >= campaign.max or"),
    ("redeem", "what others hold of a campaign is free", "or not mine and campaign.uses + campaign.live >= campaign.max)", "or false)"),
    ("redeem", "a use is none of the campaign's", "campaign.uses, campaign.grants = campaign.uses + 1, campaign.grants + 1", "campaign.grants = 1"),
    ("redeem", "a shard's word on a campaign is the last one", "(reason == 'exhausted' or reason == 'campaign_exhausted') then", "reason == 'exhausted' then"),
    ("redeem", "a use of the invite goes while one of its campaign is looked for", "if reason == 'campaign_exhausted' and not kind.keeps then", "if false then"),
    ("redeem", "a campaign that is dry too is not named", "return {'dry', reason, invite.id, dry and invite.campaign or ''}", "return {'dry', reason, invite.id, reason ~= 'exhausted' and invite.campaign or ''}"),
    ("redeem", "a use of a campaign that came back leaves no trace", "    if campaign.space.is_spread then", "    if false then"),
    ("redeem", "a hold of a campaign leaves no trace", "if rules.is_spread then writes[#writes + 1] = {'HINCRBY', kind.space.campaigns", "if false then writes[#writes + 1] = {'HINCRBY', kind.space.campaigns"),
    ("redeem", "a campaign's name may begin another's", "'[' .. name .. ':', '(' .. name .. ';')\n    local live", "'[' .. name, '(' .. name .. ';')\n    local live"),
    ("redeem", "one use too many for a user", ">= invite.max_per_user then", "> invite.max_per_user then"),
    ("redeem", "what was taken back counts for the user", "if not undone then count = count + 1 end", "count = count + 1"),
    ("rollback", "a use is given back twice", "if rolled_back_at ~= '' then return", "if false then return"),
    ("rollback", "any redemption at that place", "if id ~= ARGV[7] or not about then", "if not about then"),
    ("rollback", "two invites have one code", "if reopened and holder then return {'code_taken', holder} end", ""),
    ("rollback", "a disabled invite comes back", "local ended = invite.disabled or max_uses", "local ended = max_uses"),
    ("rollback", "the membership goes on", "  membership = 'ended'\n", ""),
    ("rollback", "somebody else's membership ends", "if fields[pointer] == position then", "if true then"),
    ("rollback", "another invite's redemption stands for no membership", "if latest then", "if false then"),
    ("rollback", "the campaign keeps the use", "if campaign_uses then redis.call('HSET'", "if false then redis.call('HSET'"),
    ("rollback", "the invite stays without its code", "  redis.call('RENAME', KEYS[5], KEYS[4])\n", ""),
    ("release", "another's hold is given back", "or held_until ~= tonumber(ARGV[10]) then", "or not held_until then"),
    ("release", "the hold of an invite that has lost its code", "if invite[1] ~= ARGV[7] or", "if"),
    ("release", "the campaign holds on", "    redis.call('ZREM', KEYS[6], member)\n", ""),
    ("put_campaign", "a limit below what is used", "max_uses < values[1] + held then", "false then"),
    ("put_campaign", "a limit below what is held", "max_uses < values[1] + held then", "max_uses < tonumber(values[1]) then"),
    ("put_campaign", "the home may not spend what the total has more", "max_uses + (values[2] or UNLIMITED) - total", "tonumber(values[2])"),
    ("put_campaign", "the total stays", "[2] = 'max_uses', [6] = 'total'", "[2] = 'max_uses'"),
    ("put_campaign", "any revision will do", "if ARGV[9] ~= '' and ARGV[9]", "if false and ARGV[9]"),
    ("erase_user", "the application's words stay", "  redis.call('HDEL', KEYS[5], name)\n", ""),
    ("erase_user", "an invite stays bound to who is gone", "redis.call('HSET', key, 'user', ARGV[8])", "local _ = key"),
    ("erase_user", "another's invite is taken", "if invite[1] == ARGV[i] and invite[2] == ARGV[7] then", "if invite[1] == ARGV[i] then"),
    ("erase_user", "attempts are held against the next of that name", "redis.call('DEL', KEYS[6], KEYS[7])\n", ""),
    ("redeem", "what a share lacks nobody has", "  if kind.is_patient and (reason ==", "  if false and (reason =="),
    ("redeem", "a code that a shard does not know nobody knows", "if kind.is_patient and reason == 'not_found' then", "if false then"),
    ("redeem", "who is not known in an earlier layout comes in there", "  if rules.sealed and member and not known_here(member) then", "  if false then"),
    ("give_uses", "what is outstanding is given a second time", "given == tonumber(ARGV[9]) and to_give > 0", "to_give > 0"),
    ("give_uses", "what is held is given away", "max_uses - uses - held, 0", "max_uses - uses, 0"),
    ("give_uses", "a look gives", "if portions > 0 and given ==", "if given =="),
    ("give_uses", "the giver keeps what it gave", "  redis.call('HSET', key, prefix .. 'max_uses', int(max_uses))\n", ""),
    ("give_uses", "what is held of a campaign is given away", "  held = redis.call('ZLEXCOUNT'", "  held = 0 * redis.call('ZLEXCOUNT'"),
    ("give_uses", "a campaign that was there before has no total", "prefix .. 'total', pool[3])", "prefix .. 'uses', pool[4])"),
    ("give_uses", "the last use is not given", "math.ceil(to_give / portions)", "math.floor(to_give / portions)"),
    ("give_uses", "the ledger is told what was given now, not ever", "'given', int(given), 'max_uses'", "'given', int(amount), 'max_uses'"),
    ("give_uses", "later portions are as small as the first", "math.max(divisor - takers, math.min(divisor, 2))", "divisor"),
    ("give_uses", "what is kept is kept from the administrator too", "divisor == 1 and free or free - kept", "free - kept"),
    ("give_uses", "what has just come is given away", "if free > 0 and tonumber(pool[9] or 0) > now then", "if false then"),
    ("take_uses", "nothing is kept for those who have waited", "pool[9] = int(now + KEPT_MS)", "pool[9] = at"),
    ("take_uses", "a late repeat is got again", "local amount = given - (redis.call('HGET', KEYS[6], 'taken:' .. ARGV[8]) or 0)", "local amount = given"),
    ("take_uses", "what was got before is forgotten", "  redis.call('HSET', KEYS[6], 'taken:' .. ARGV[8], int(given))\n", ""),
    ("take_uses", "the ledger has another share than Redis", "'taken', int(given), 'max_uses', int(max_uses))", "'taken', int(given), 'max_uses', int(max_uses - amount))"),
    ("copy_invite", "a copy that comes late undoes a change", "if tonumber(invite.updated_at) >= tonumber(wanted.updated_at) then return {'copied'} end", ""),
    ("take_uses", "a shard that has lost a campaign gets none of it", "local is_lost = prefix ~= '' and", "local is_lost = false and"),
    ("copy_invite", "the campaign does not come with its invite", "if campaign and redis.call('HEXISTS'", "if false and redis.call('HEXISTS'"),
    ("copy_invite", "the campaign holds on", "for i = 1, #held, 2 do", "for i = 1, 0 do"),
    ("copy_invite", "a copy begins with uses", "max_uses = '0', uses = '0'", "max_uses = '1', uses = '0'"),
    ("copy_invite", "an earlier invite gets the code back", "if tonumber(holder[2]) >= tonumber(wanted.created_at) then", "if false then"),
    ("copy_invite", "what has lost its code comes into another shard", "if not known and ARGV[9] == '0' then return {'copied'} end", ""),
    ("copy_invite", "what was switched off stays so", "if #removed > 0 then redis.call('HDEL', key, unpack(removed)) end", ""),
    ("copy_namespace", "rules that come late undo newer ones",
     "  if flat[i] == 'updated_at' and tonumber(flat[i + 1]) >= tonumber(wanted.updated_at) then return {'copied'} end\n", ""),
    ("copy_namespace", "what was taken away stays", "if #removed > 0 then redis.call('HDEL', KEYS[3], unpack(removed)) end", ""),
    ("delete_invite", "an invite goes whose uses are elsewhere", "if whole and invite[7] ~= whole then return {'uses_elsewhere'} end", ""),
    ("create_invite", "the later of two invites looks like the earlier", "if holder[1] and holder[7] + 1 > now then made_at = int(holder[7] + 1) end", ""),
    ("redeem", "an entry hides how many changes it holds", "return seq - first_seq + 1", "return redis.call('XLEN', KEYS[2])"),
    ("survey", "an entry's first change is its last", "first[2][3] == 'first' and first[2][4] or first[1]", "first[1]"),
    ("create_invite", "a live invite loses its code",
     "if not (exhausted or expired or holder[5]) then return {'code_taken', holder[1]} end", ""),
    ("create_invite", "at the moment of its end an invite keeps its code", "holder[4] and now >= tonumber", "holder[4] and now > tonumber"),
    ("create_invite", "the ended invite is written over", "  redis.call('RENAME', KEYS[4], KEYS[7])\n", ""),
    ("create_invite", "what was held of the ended invite is held of the new one", "  redis.call('DEL', KEYS[8])\n", ""),
    ("create_invite", "the campaign holds on", "for i = 1, #held, 2 do", "for i = 1, 0 do"),
    ("create_invite", "of a campaign that is not there", "if campaign and redis.call('HEXISTS'", "if false and redis.call('HEXISTS'"),
    ("create_invite", "one id makes two invites", "if known and known ~= code then return {'id_taken', known} end", ""),
    ("import_invites", "taken over into an archived namespace", "if not settings[1] or settings[2] then", "if not settings[1] then"),
    ("import_invites", "one entry too many in the outbox", ">= tonumber(ARGV[7]) then", "> tonumber(ARGV[7]) then"),
    ("import_invites", "an invite that was taken over before is taken over again",
     "if known[by_id] or redis.call('EXISTS', by_id) == 1 then", "if false then"),
    ("import_invites", "the same invite twice in a call", "if known[by_id] or ", "if "),
    ("import_invites", "two of a call get one code", "local holder = holders[invite] or ", "local holder = "),
    ("import_invites", "another invite's code is taken over", "  elseif holder then\n", "  elseif false then\n"),
    ("import_invites", "spent uses have no ordinals", "'granted', uses", "'granted', '0'"),
    ("import_invites", "nobody knows which uses are from elsewhere", "if uses ~= '0' then", "if false then"),
    ("import_invites", "an id does not lead to its code", "  redis.call('SET', one[2], one[3])\n", ""),
    ("import_invites", "changes are not counted", "if #invites > 0 then redis.call('HSET', KEYS[1], 'seq', int(seq)) end", ""),
    ("import_members", "taken over into an archived namespace", "if not settings[1] or settings[2] then", "if not settings[1] then"),
    ("import_members", "one entry too many in the outbox", ">= tonumber(ARGV[7]) then", "> tonumber(ARGV[7]) then"),
    ("import_members", "a second group where one is the rule", "settings[3] == 'one_group' then", "false then"),
    ("import_members", "lines do not see those before them", "    members[key] = fields\n", ""),
    ("import_members", "another day is the same membership", "and (since == '' or since == direct) then", "then"),
    ("import_members", "a redemption is the same membership", "if pointer == wanted and direct and", "if pointer == wanted and"),
    ("import_members", "the day of joining is forgotten", "'joined_at', one[4])", "'joined_at', at)"),
    ("import_members", "changes are not counted", "if #joined > 0 then redis.call('HSET', KEYS[1], 'seq', int(seq)) end", ""),
    ("create_batch", "made in an archived namespace", "if not settings[1] or settings[2] then", "if not settings[1] then"),
    ("create_batch", "one entry too many in the outbox", ">= tonumber(ARGV[7]) then", "> tonumber(ARGV[7]) then"),
    ("create_batch", "an invite that was made before is made again", "if is_new or redis.call('EXISTS', by_id) == 0 then", "if true then"),
    ("create_batch", "another invite's code is taken over", "if seen[invite] or not is_new and redis.call('EXISTS', invite) == 1 then",
     "if seen[invite] then"),
    ("create_batch", "two of a call get one code", "seen[invite] = true", ""),
    ("create_batch", "keys that are there are overlooked", "redis.call('EXISTS', unpack(KEYS, 5)) == 0", "true"),
    ("create_batch", "an id does not lead to its code", "  redis.call('MSET', unpack(names))\n", ""),
    ("create_batch", "an entry though nothing was made", "if #invites > 0 then", "do"),
    ("create_batch", "made without a limit of uses", "for i = 9, 8 + ARGV[8] do fields[#fields + 1] = ARGV[i] end",
     "for i = 9, 8 + ARGV[8] do fields[#fields + 1] = string.gsub(ARGV[i], '^max_uses$', 'unlimited') end"),
    ("change_invite", "a limit below what is used", "if max_uses and max_uses < uses + held then", "if false then"),
    ("change_invite", "a limit below what is held", "if max_uses and max_uses < uses + held then", "if max_uses and max_uses < uses then"),
    ("change_invite", "any revision will do",
     "if ARGV[9] ~= '' and ARGV[9] ~= invite.revision then", "if false then"),
    ("change_invite", "a repeated change is made twice", "if invite.last_change == ARGV[8] then", "if false then"),
    ("change_invite", "re-opened over the invite that has the code now",
     "if reopened and holder then return {'code_taken', holder} end", ""),
    ("change_invite", "a limit can not be taken away", "if #removed > 0 then redis.call('HDEL', key, unpack(removed)) end\n", ""),
    ("delete_invite", "an invite with redemptions is deleted", "if tonumber(invite[3]) > 0 or held > 0 then", "if held > 0 then"),
    ("delete_invite", "an invite that somebody holds is deleted", "if tonumber(invite[3]) > 0 or held > 0 then", "if tonumber(invite[3]) > 0 then"),
    ("delete_invite", "the id of what is deleted stays", "redis.call('DEL', key, KEYS[6], KEYS[9])", "redis.call('DEL', key, KEYS[9])"),
    ("join", "a second group where one is the rule", "if not pointer and settings[3] == 'one_group' then", "if false then"),
    ("leave", "the invite stays spent for who has left", "if of == group then removed[#removed + 1] = name end", ""),
    ("leave", "a past join stays with the member",
     "if string.match(fields[position], '^joined ') then removed[#removed + 1] = position end", ""),
    ("put_namespace", "the membership rule changes under its members",
     "local fixed = name == 'membership' or name == 'code_case' or", "local fixed = name == 'code_case' or"),
    ("put_namespace", "codes lose their check character", "or name == 'code_check'\n", "\n"),
    ("put_namespace", "brought back and still archived", "  removed[#removed + 1] = 'archived_at'\n", ""),
    ("put_namespace", "made though a revision was asked for",
     "if not exists and ARGV[9] ~= '' then return {'precondition_failed', 0} end\n", ""),
    ("put_namespace", "any revision will do", "if ARGV[9] ~= '' and ARGV[9] ~= settings.revision then", "if false then"),
    ("adopt", "a gate is adopted that is not where the ledger is", "if meta[6] or not same then", "if meta[6] then"),
    ("adopt", "one who was paused opens what a later recovery has closed",
     "if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[3] then", "if meta[1] ~= ARGV[1] then"),
    ("close", "another deployment's gate is closed", "if not ours and ARGV[4] ~= 'take_over' then", "if false then"),
    ("close", "one who was paused closes what a later recovery has opened",
     "  if tonumber(meta[2]) >= tonumber(ARGV[3]) then return {'foreign', meta[1], meta[2]} end\n", ""),
    ("close", "the closed partition goes on", "'lineage', '', 'closing'", "'closing'"),
    ("close", "another deployment's gate that is taken over stays that one's",
     "redis.call('HSET', KEYS[1], 'deployment', ARGV[1], 'lineage'", "redis.call('HSET', KEYS[1], 'lineage'"),
    ("repair", "a key with other fields by now is written over", "if #held ~= #seen then return {'changed'} end\n", ""),
    ("repair", "a key with other values by now is written over",
     "if fields[seen[i]] ~= seen[i + 1] then return {'changed'} end", ""),
    ("repair", "another text by now is written over", "if held[1] ~= seen[1] then return {'changed'} end", ""),
    ("repair", "what should not be there stays", "redis.call('DEL', KEYS[3])\n", ""),
    ("rebuild", "another deployment's gate is replaced",
     "if meta[2] and not ours and ARGV[7] ~= 'discard' then", "if false then"),
    ("rebuild", "two builders at once", " or meta[4] ~= builder then", " then"),
    ("rebuild", "one who was paused removes what a later one has built",
     "  if meta[2] and ours and meta[3] ~= epoch then return {'moved'} end\n", ""),
    ("rebuild", "a missing chunk is not missed", "  if tonumber(chunk) ~= tonumber(meta[5]) + 1 then return {'moved'} end\n", ""),
    ("rebuild", "the count is not checked",
     "if meta[5] ~= chunk or meta[6] ~= ARGV[7] then return {'miscounted', meta[5], meta[6]} end\n", ""),
    ("rebuild", "what is there is not removed", "for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end", ""),
]


def main():
    words = [word for word in sys.argv[1:] if word != "--check"]
    check_that_all_fit()
    if "--check" in sys.argv:
        return 0
    chosen = [mutant for mutant in MUTANTS if not words or any(word in f"{mutant[0]} {mutant[1]}" for word in words)]
    if not chosen:
        sys.exit(f"no mutant has {' or '.join(words)} in its name")
    copy_checkout()
    tests = build()
    check_that_tests_exist(tests)
    failed = first_failure(tests, [HISTORIES + LEDGER + RECOVERY + REST + SPREAD])
    if failed:
        sys.exit(f"without any mutant this fails: {failed}")
    survivors = [mutant for mutant in chosen if not is_caught(mutant)]
    print(f"\n{len(chosen) - len(survivors)} of {len(chosen)} mutants were caught")
    for script, meaning, _, _ in survivors:
        print(f"SURVIVED  {script}: {meaning}")
    return 1 if survivors else 0


def check_that_all_fit():
    """What has gone from a script, or stands there twice, would plant nothing or too much."""
    wrong = False
    for script, meaning, original, _ in MUTANTS:
        count = source_of(script).count(original)
        if count != 1:
            print(f"{script}: {meaning}: its text occurs {count} times instead of once:\n{original}", file=sys.stderr)
            wrong = True
    if wrong:
        sys.exit(2)


def check_that_tests_exist(tests):
    """A filter that fits no test would catch nothing, and nobody would notice."""
    listed = subprocess.run([tests, "--list"], check=True, capture_output=True, text=True).stdout
    for wanted in HISTORIES + LEDGER + RECOVERY + REST + SPREAD:
        if not any(line.startswith(wanted) for line in listed.splitlines()):
            sys.exit(f"no test is called {wanted}")


def is_caught(mutant):
    script, meaning, original, replacement = mutant
    path = COPY / "lua" / f"{script}.lua"
    path.write_text(source_of(script).replace(original, replacement))
    began = time.monotonic()
    try:
        caught_by = first_failure(build(), suites_of(script))
    finally:
        path.write_text(source_of(script))
    told = f"caught by {caught_by}" if caught_by else "SURVIVED"
    print(f"{script:14} {meaning:62} {told}  ({time.monotonic() - began:.0f} s)", flush=True)
    return bool(caught_by)


def suites_of(script):
    """Every suite, the one that most likely catches a fault of this script first."""
    if script in ("adopt", "close", "rebuild"):
        return [RECOVERY, LEDGER, REST, HISTORIES]
    if script in ("give_uses", "take_uses", "copy_invite", "copy_namespace"):
        return [SPREAD]
    return [HISTORIES, LEDGER, RECOVERY, REST, SPREAD]


def source_of(script):
    return (ROOT / "lua" / f"{script}.lua").read_text()


def copy_checkout():
    """Only what differs is copied, so that nothing else looks new to cargo; what has gone is removed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True)
    names = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        source, target = ROOT / name, COPY / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for path in COPY.rglob("*"):
        if path.is_file() and str(path.relative_to(COPY)) not in names:
            path.unlink()


def build():
    """Builds the tests, and the program that they start; returns the path of the tests."""
    command = ["cargo", "test", "--locked", "--quiet", "--no-run", "--test", "it", "--message-format=json"]
    environment = os.environ | {"CARGO_TARGET_DIR": str(WORK / "target")}
    built = subprocess.run(command, cwd=COPY, env=environment, stdout=subprocess.PIPE, text=True)
    if built.returncode:
        sys.exit("the copy can not be built")
    messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith("{"))
    return next(
        message["executable"] for message in messages
        if message.get("executable") and message["target"]["name"] == "it")


def first_failure(tests, suites):
    """The tests that fail of the first suite where one does, or nothing."""
    # Nobody needs the smallest history: that there is one is enough.
    environment = os.environ | {"PROPTEST_MAX_SHRINK_ITERS": "0", "CARGO_MANIFEST_DIR": str(COPY)}
    for filters in suites:
        with subprocess.Popen(
            [tests, *filters], cwd=COPY, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as ran:
            try:
                said, _ = ran.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                return f"{' '.join(filters)}: no end"
            finally:
                # The servers of a test that did not end are in its group.
                if ran.poll() is None:
                    os.killpg(ran.pid, signal.SIGKILL)
        if "Error compiling script" in said:
            sys.exit(f"this mutant is no Lua, and everything would catch it:\n{said[-2000:]}")
        if ran.returncode:
            failed = sorted(set(re.findall(r"^test (\S+) \.\.\. FAILED$", said, re.MULTILINE)))
            if not failed:
                sys.exit(f"the tests came to an end that says nothing:\n{said[-2000:]}")
            return ", ".join(failed)
    return None


if __name__ == "__main__":
    sys.exit(main())
