"""What people do with the page that an invite's link leads to (docs/page.md): also without scripts, and on a phone."""

import base64
import hashlib
import hmac
import json
import os
import signal
import time

import pytest
from playwright.sync_api import expect
from service import ROOT, Service

SECRET = "a secret of the tests, which nobody else has"
# Nobody serves it: the tests answer in its place.
APPLICATION = "http://app.example"
PHONE = {"viewport": {"width": 360, "height": 640}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def invited():
    """A service whose namespace `default` has the page."""
    service = Service(
        REDEEMER_PAGE__NAMESPACES="default",
        REDEEMER_PAGE__TOKEN_SECRET=SECRET,
        REDEEMER_PAGE__TITLE="Acme",
        REDEEMER_PAGE__SIGN_IN_URL=APPLICATION + "/join?code={code}",
        REDEEMER_PAGE__DONE_URL=APPLICATION + "/home",
    ).start()
    try:
        yield service.wait_until_ready()
    finally:
        service.close()


def token(user, attempt):
    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    claims = {"sub": user, "aud": "redeemer/default", "exp": int(time.time()) + 300, "jti": attempt}
    text = b".".join(part(json.dumps(one).encode()) for one in ({"alg": "HS256"}, claims))
    return (text + b"." + part(hmac.digest(SECRET.encode(), text, hashlib.sha256))).decode()


def answer_as_application(visitor, user, attempt):
    """The host application of somebody who is signed in: a form that sends a token, and a home."""

    def answer(route):
        path = route.request.url.removeprefix(APPLICATION)
        if path == "/home":
            return route.fulfill(content_type="text/html", body="<h1>At home</h1>")
        code = path.removeprefix("/join?code=")
        return route.fulfill(
            content_type="text/html",
            body=f"""<form method="post" action="{visitor.service.url}/i/default/{code}">
                <input type="hidden" name="token" value="{token(user, attempt)}"><button>Accept</button></form>""",
        )

    visitor.context.route(APPLICATION + "/**", answer)


def look(visitor, code, heading):
    visitor.page.goto(f"{visitor.service.url}/i/default/{code}")
    return expect_heading(visitor, heading)


def expect_heading(visitor, heading):
    expect(visitor.page.get_by_role("heading")).to_have_text(heading)
    return visitor.page


def uses(service, code):
    return service.in_default("GET", f"invites/by-code/{code}")["uses"]


def stop_redis(service, name):
    pid = int((service.directory / "redis/redis.pid").read_text())
    os.kill(pid, name)


@pytest.mark.parametrize("has_scripts", [True, False])
def test_an_invite_is_accepted_once_however_often_the_button_is_pressed(visitors, invited, has_scripts):
    code = f"WELCOME-{has_scripts}".upper()
    invited.invite(code)
    visitor = visitors(invited, java_script_enabled=has_scripts)
    answer_as_application(visitor, f"alice-{has_scripts}", f"session-{has_scripts}")
    page = look(visitor, code, "You are invited")
    page.get_by_role("link", name="Continue").click()
    page.get_by_role("button", name="Accept").dblclick()
    expect_heading(visitor, "You are in")
    page.reload()
    expect_heading(visitor, "You are in")
    expect(page.get_by_text("Nothing was used twice")).to_be_visible()
    page.go_back()
    page.get_by_role("button", name="Accept").click()
    expect_heading(visitor, "You are in")
    assert uses(invited, code) == 1
    page.get_by_role("link", name="Continue").click()
    expect_heading(visitor, "At home")
    # Nobody else was asked anything, and no cookie was set.
    elsewhere = {line for line in visitor.noticed if not line.startswith(f"a request to {APPLICATION}/")}
    assert not elsewhere
    visitor.noticed.clear()
    assert visitor.context.cookies() == []


def test_the_button_of_a_page_that_does_not_know_finds_out(visitors, invited):
    invited.invite("RUSH")
    visitor = visitors(invited)
    visitor.expected = {503}
    answer_as_application(visitor, "bob", "session-bob")
    page = look(visitor, "RUSH", "You are invited")
    page.get_by_role("link", name="Continue").click()
    stop_redis(invited, signal.SIGSTOP)
    try:
        page.get_by_role("button", name="Accept").click()
        expect_heading(visitor, "One moment, please")
        visitor.assert_accessible("a page that does not know")
        page.get_by_role("button", name="Try again").click()
        expect_heading(visitor, "One moment, please")
    finally:
        stop_redis(invited, signal.SIGCONT)
    invited.wait_until_ready()
    # While the gate is brought up to date it says so, and the button stays.
    until = time.monotonic() + 60
    while page.locator("h1").inner_text() != "You are in" and time.monotonic() < until:
        with page.expect_navigation():
            page.get_by_role("button", name="Try again").click()
    expect_heading(visitor, "You are in")
    assert uses(invited, "RUSH") == 1
    visitor.noticed = [line for line in visitor.noticed if not line.startswith(f"a request to {APPLICATION}/")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_can_be_read_by_everybody_and_fits_a_phone(visitors, invited, request, scheme):
    tag = scheme.upper()
    invited.invite(f"OPEN-{tag}")
    invited.invite(f"LATER-{tag}", starts_at="2100-12-01T09:00:00Z")
    invited.invite(f"OVER-{tag}", expires_at="2020-01-01T00:00:00Z")
    visitor = visitors(invited, color_scheme=scheme, **PHONE)
    visitor.expected = {403, 404, 410}
    for code, heading in [
        ("OPEN", "You are invited"),
        ("LATER", "Not open yet"),
        ("OVER", "This invitation has ended"),
        ("NOBODY-WITH-A-RATHER-LONG-CODE-THAT-COULD-BE-TOO-WIDE", "There is no such invitation"),
    ]:
        look(visitor, f"{code}-{tag}"[:64], heading)
        visitor.assert_accessible(f"{heading}, {scheme}")
        visitor.assert_fits(f"{heading}, {scheme}")
        # Those of docs/page.md.
        if request.config.getoption("--screenshots") and (code, scheme) in (("OPEN", "light"), ("LATER", "dark")):
            images = ROOT / "docs/images"
            images.mkdir(exist_ok=True)
            visitor.page.screenshot(path=images / f"page-{code.lower()}.png", animations="disabled")
    answer_as_application(visitor, f"carol-{scheme}", f"session-{scheme}")
    page = look(visitor, f"OPEN-{tag}", "You are invited")
    page.get_by_role("link", name="Continue").tap()
    page.get_by_role("button", name="Accept").tap()
    expect_heading(visitor, "You are in")
    visitor.assert_accessible(f"You are in, {scheme}")
    visitor.assert_fits(f"You are in, {scheme}")
    # By keyboard too, and one sees where one is.
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Continue")).to_be_focused()
    visitor.noticed = [line for line in visitor.noticed if not line.startswith(f"a request to {APPLICATION}/")]
