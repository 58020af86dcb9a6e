"""Something to look at: what a small company's invites may look like on a working day, the same each time."""

import math
import random
import sqlite3
import time
from datetime import datetime, timedelta, timezone

from service import Refused, wait_for


def _in(days):
    return (datetime.now(timezone.utc) + timedelta(days=days)).isoformat(timespec="seconds")


def furnish(service):
    dice = random.Random(7)
    ask, here = service.ask, service.in_default
    ask("PUT", "/v1/namespaces/beta", {})
    ask("PATCH", "/v1/namespaces/default", {"rate_ip": "30/60", "rate_guess": "5/3600", "rate_user": "10/60"})
    here("PUT", "campaigns/launch", {"max_uses": 5000})
    service.invite("SPRING-2026", "early-access", 250, campaign="launch", expires_at=_in(21))
    service.invite("WELCOME", "team", 100)
    service.invite("PARTNER-ACME", "partners", 40, email_domains=["acme.example"])
    service.invite("CONFERENCE", "guests", None, starts_at=_in(12), expires_at=_in(14))
    service.invite("BETA-TESTERS", "beta", 12)
    service.invite("OLD-CAMPAIGN", "guests", 500)
    service.invite("FOR-DANA", "team", 1, user="dana")
    old = here("GET", "invites/by-code/OLD-CAMPAIGN")["id"]
    names = "alice bob carol dave erin frank grace heidi ivan judy mallory niaj olivia peggy rupert sybil trent victor walter yann".split()
    for number in range(64):
        service.redeem("SPRING-2026", f"{dice.choice(names)}-{number}")
    for number, name in enumerate(names):
        service.redeem("WELCOME", name, ip=f"203.0.113.{number + 1}")
    for number in range(12):
        service.redeem("BETA-TESTERS", f"tester-{number}")
    for number in range(9):
        service.redeem("OLD-CAMPAIGN", f"guest-{number}")
    here("PATCH", f"invites/{old}", {"disabled": True})
    path = "redemptions?code=WELCOME&limit=1"
    first = wait_for("the ledger has one", lambda: here("GET", path)["data"])[0]
    here("POST", f"redemptions/{first['id']}/rollback", {"reason": "signed up twice"})
    here("PUT", "members/zoe/team", {})
    here("POST", "reservations", {"code": "SPRING-2026", "user": "wendy", "ttl_seconds": 3600})
    # Those who may not: too many guesses from one address, too many attempts of one user, an invite that is used up.
    for number in range(9):
        _try(service, f"GUESS-{number}", f"guesser-{number}", ip="198.51.100.23")
    for number in range(14):
        _try(service, "OLD-CAMPAIGN", "eve", ip="203.0.113.99")
    for number in range(6):
        _try(service, "BETA-TESTERS", f"late-{number}")
    here("POST", "batches", {"count": 500, "pattern": "WINTER-####-####", "group": "gifts", "max_uses": 1})
    here("POST", "webhooks", {"url": "http://127.0.0.1:9/hooks/invites", "event_types": ["redeemed"]})
    _past(service, dice)


def _try(service, code, user, **more):
    try:
        service.redeem(code, user, **more)
    except Refused:
        pass


def _past(service, dice):
    """What the last month had of redemptions, written where nodes write it."""
    now = int(time.time()) // 60 * 60
    rows = []
    for ago in range(2, 60 * 24):
        at = now - ago * 60
        rush = 1 + 2.2 * math.exp(-((ago - 22) ** 2) / 60)
        granted = round((14 + 6 * math.sin(at / 5000) + dice.random() * 5) * rush)
        for outcome, share in [("granted", 1), ("replayed", 0.12), ("invite_exhausted", 0.08), ("invite_not_found", 0.06),
                               ("rate_limited", 0.03), ("already_member", 0.02)]:
            count = round(granted * share * (0.6 + 0.8 * dice.random())) if outcome != "granted" else granted
            if count:
                rows.append(("default", at * 1000, outcome, "earlier", count))
    for days in range(1, 30):
        at = (now - days * 86_400) * 1000
        granted = round(9000 + 6000 * math.sin(days / 3) ** 2 + dice.random() * 3000)
        rows += [("default", at, "granted", "earlier", granted), ("default", at, "invite_exhausted", "earlier", granted // 11)]
    with sqlite3.connect(service.directory / "ledger.sqlite", timeout=30) as ledger:
        ledger.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?)", rows)
