#!/usr/bin/env bash
# A walk through the API with curl: a namespace, an invite, a redemption, its repeat, a refusal, a list, a rate limit.
#
#   REDEEMER_KEY=$(cat data/admin.key) examples/curl.sh
set -euo pipefail
API=${REDEEMER_URL:-http://127.0.0.1:8080}/v1/namespaces/${NAMESPACE:-walk}

call() { # <method> <path> [<more of curl>]: what came back, headers first
  echo "> $1 $2"
  curl -sS -i -X "$1" "$API$2" -H "Authorization: Bearer $REDEEMER_KEY" -H 'Content-Type: application/json' "${@:3}"
  printf '\n\n'
}

# A namespace keeps codes, members and limits apart. This one lets a user try three times an hour.
call PUT '' -d '{"rate_user": "3/3600"}'

# A code with one use. The key makes it safe to send this again.
call POST /invites -H 'Idempotency-Key: walk-invite' -d '{"code": "WELCOME", "group": "team", "max_uses": 1}'

# Spend it: 201. The same again: 200, replayed, and nothing more is spent.
call POST /redemptions -H 'Idempotency-Key: walk-alice' -d '{"code": "welcome", "user": "alice"}'
call POST /redemptions -H 'Idempotency-Key: walk-alice' -d '{"code": "welcome", "user": "alice"}'

# All uses are spent: 410, with a code for programs and a sentence for people.
call POST /redemptions -d '{"code": "WELCOME", "user": "bob"}'

# What would bob be told? Asking spends no use.
call POST /validations -d '{"code": "WELCOME", "user": "bob"}'

# The headers RateLimit-Policy and RateLimit say what is left, and the fourth try of a user in an hour is one too many:
# 429 with Retry-After.
for _ in 1 2 3; do call POST /redemptions -d '{"code": "WELCOME", "user": "bob"}'; done

# The exact state of the invite, and what the ledger has, a moment later.
call GET /invites/by-code/WELCOME
call GET '/redemptions?user=alice'
