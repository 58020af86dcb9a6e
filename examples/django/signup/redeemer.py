"""A client of redeemer, with nothing but Python's own library."""

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request

from django.conf import settings

NO_ANSWER = {"code": "no_answer"}

# What people are told, by the problem's code: docs/api.md lists all of them.
MESSAGES = {
    "code_malformed": "There is no such code. Check it for typing mistakes.",
    "invite_not_found": "There is no such code. Check it for typing mistakes.",
    "invite_exhausted": "All places are taken.",
    "campaign_exhausted": "All places are taken.",
    "invite_expired": "This code is no longer valid.",
    "invite_disabled": "This code is no longer valid.",
    "invite_invalid": "This code can not be used.",
    "not_started": "This code is not valid yet.",
    "already_member": "You are in a group already.",
    "already_rolled_back": "Your place was given back. Send it again if you want one.",
    "user_limit_reached": "You have used this code already.",
    "user_not_allowed": "This code is not for you.",
    "email_domain_not_allowed": "This code is not for your e-mail address.",
    "rate_limited": "Too many attempts. Wait a little.",
    "too_many_attempts": "Too many attempts. Wait a little.",
    "no_answer": "One moment, please: send it again. No place gets lost by that.",
}
OUR_MISTAKE = "Something is wrong on our side."


def ask(method, path, body=None, key=None, timeout=None):
    """One request, once. Raises HTTPError for a problem, and other errors where nobody knows what became of it."""
    url = f"{settings.REDEEMER_URL}/v1/namespaces/{settings.REDEEMER_NAMESPACE}{path}"
    headers = {"Authorization": f"Bearer {settings.REDEEMER_KEY}", "Content-Type": "application/json"}
    if key:
        headers["Idempotency-Key"] = str(key)
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=timeout or settings.REDEEMER_TIMEOUT) as answer:
        return json.loads(answer.read() or "null")


def redeem(code, user, key, ip=None):
    """(redemption, None) or (None, problem). It repeats itself with the same key, which never spends a second use."""
    body = {"code": code, "user": str(user)} | ({"ip": ip} if ip else {})
    give_up = time.monotonic() + settings.REDEEMER_DEADLINE
    wait = 0.1
    while (left := give_up - time.monotonic()) > 0:
        try:
            return ask("POST", "/redemptions", body, key, min(left, settings.REDEEMER_TIMEOUT)), None
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != 408:
                return None, json.load(error)  # a definite no
            pause = float(error.headers.get("Retry-After", wait))
        except (OSError, http.client.HTTPException, ValueError):
            pause = wait  # it may have been done, or not
        time.sleep(max(0, min(pause, give_up - time.monotonic())))
        wait = min(wait * 2, 2)
    return None, NO_ANSWER


def redemptions(after=None):
    """Pages of redemptions, the oldest first, that come after a position."""
    while True:
        query = {"order": "asc", "limit": 1000} | ({"after_position": after} if after else {})
        page = ask("GET", "/redemptions?" + urllib.parse.urlencode(query))["data"]
        if not page:
            return
        yield page
        after = page[-1]["position"]
