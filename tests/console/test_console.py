"""What people do with the console: each test is somebody in front of a browser."""

import json
import re
import threading

import pytest
from furnish import furnish
from playwright.sync_api import expect
from service import KEY, Refused, Service, wait_for

SCREENS = ["overview", "invites", "batches", "live", "members", "limits", "webhooks", "audit", "settings"]
WRONG_KEY = "rdm_aaaaaaaaaaaaaaaa_cccccccccccccccccccccccccccccccc"


@pytest.fixture(scope="session")
def furnished():
    own = Service().start().wait_until_ready()
    try:
        furnish(own)
        wait_for("the batch", lambda: len(own.in_default("GET", "invites?prefix=WINTER&limit=1000")["data"]) == 500)
        yield own
    finally:
        own.close()


def heading(page):
    return page.get_by_role("heading", level=1)


def test_a_wrong_key_is_told_so_and_a_good_one_lets_in(visitor):
    visitor.expected = {401}
    page = visitor.goto()
    page.get_by_label("API key").fill(WRONG_KEY)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("This key opens nothing")
    visitor.assert_accessible("the sign-in")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    expect(heading(page)).to_have_text("Overview")
    # The key is in this tab and nowhere else.
    assert page.evaluate("() => JSON.stringify(localStorage)").find("rdm_") < 0
    assert "rdm_" not in page.url
    page.reload()
    expect(heading(page)).to_have_text("Overview")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("() => sessionStorage.length") == 0


def test_a_key_that_is_not_to_be_kept_is_gone_with_the_page(visitor):
    page = visitor.goto()
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("Stay signed in").uncheck()
    page.get_by_role("button", name="Sign in").click()
    expect(heading(page)).to_have_text("Overview")
    page.reload()
    expect(page.get_by_label("API key")).to_be_visible()


def test_a_key_sees_what_its_role_may_do_and_a_revoked_one_is_asked_to_sign_in_again(visitors, service):
    key = service.key("read", ["default"])
    service.invite("ROLES")
    reader = visitors()
    page = reader.sign_in(key=key)
    nav = page.get_by_role("navigation")
    expect(nav.get_by_role("link")).to_have_text(["Overview", "Invites", "Live", "Members", "Rate limits", "Settings"])
    page.goto(f"{service.url}/console#/default/invites")
    expect(page.get_by_role("link", name="ROLES")).to_be_visible()
    expect(page.get_by_role("button", name="New invite")).to_have_count(0)
    page.get_by_role("link", name="ROLES").click()
    expect(page.get_by_role("button", name="Copy code")).to_be_visible()
    expect(page.get_by_role("button", name="Disable")).to_have_count(0)
    nav.get_by_role("link", name="Rate limits").click()
    expect(page.get_by_text("shown to keys with the role manage")).to_be_visible()
    nav.get_by_role("link", name="Settings").click()
    expect(page.get_by_role("button", name="Save")).to_have_count(0)
    reader.expected = {401}
    nav.get_by_role("link", name="Overview").click()
    expect(page.get_by_text("16 of 16 open")).to_be_visible()
    service.ask("DELETE", f"/v1/keys/{key.split('_')[1]}")
    expect(page.get_by_text("Your key opens nothing any more")).to_be_visible()
    # One that may only redeem has nothing to see.
    redeemer = visitors()
    redeemer.expected = {403}
    page = redeemer.goto()
    page.get_by_label("API key").fill(service.key("redeem"))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("may only redeem")


def test_an_invite_is_made_found_changed_disabled_and_deleted(visitor, service):
    page = visitor.sign_in("#/default/invites")
    page.get_by_role("button", name="New invite").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Code").fill("HANDMADE")
    # What the service says of a field stands next to it.
    visitor.expected = {400}
    dialog.get_by_label("Group").fill("team")
    dialog.get_by_label("E-mail domains").fill("not a domain!")
    dialog.get_by_role("button", name="Make it").click()
    expect(dialog.get_by_label("E-mail domains")).to_have_attribute("aria-invalid", "true")
    dialog.get_by_label("E-mail domains").fill("")
    dialog.get_by_label("Uses", exact=True).fill("3")
    dialog.get_by_role("button", name="Make it").click()
    expect(heading(page)).to_contain_text("HANDMADE")
    expect(page.get_by_text("0 of 3 uses spent")).to_be_visible()
    # Its link and its QR code.
    page.get_by_role("button", name="Link and QR code").click()
    expect(page.get_by_role("img", name=re.compile("QR code of .*HANDMADE$"))).to_be_visible()
    visitor.assert_accessible("the QR code")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.get_by_text(re.compile(r"HGETALL 'rdm:\{06rd\}:default:invite:HANDMADE'"))).to_be_visible()
    page.get_by_role("button", name="Change").click()
    dialog.get_by_label("Uses", exact=True).fill("5")
    dialog.get_by_role("button", name="Change it").click()
    expect(page.get_by_text("0 of 5 uses spent")).to_be_visible()
    page.get_by_role("button", name="Disable").click()
    expect(heading(page)).to_contain_text("disabled")
    with pytest.raises(Refused) as refused:
        service.redeem("HANDMADE", "late")
    assert refused.value.problem["code"] == "invite_disabled"
    page.get_by_role("button", name="Enable").click()
    expect(heading(page)).to_contain_text("active")
    page.get_by_role("navigation").get_by_role("link", name="Invites").click()
    page.get_by_label("Code begins with").fill("HAND")
    expect(page.get_by_role("link", name="HANDMADE")).to_be_visible()
    expect(page).to_have_url(f"{service.url}/console#/default/invites?prefix=HAND")
    page.get_by_label("Code begins with").fill("NOBODY")
    expect(page.get_by_text("No invite is like that")).to_be_visible()
    page.get_by_label("Code begins with").fill("HANDMADE")
    page.get_by_role("link", name="HANDMADE").click()
    page.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete it").click()
    expect(heading(page)).to_have_text("Invites")
    expect(page.get_by_role("link", name="HANDMADE")).to_have_count(0)


def test_what_another_has_changed_meanwhile_is_not_overwritten(visitor, service):
    invite = service.invite("TOGETHER")
    page = visitor.sign_in(f"#/default/invites/{invite['id']}")
    page.get_by_role("button", name="Change").click()
    service.in_default("PATCH", f"invites/{invite['id']}", {"max_uses": 7})
    visitor.expected = {412}
    page.get_by_role("dialog").get_by_role("button", name="Change it").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("precondition_failed")
    assert service.in_default("GET", f"invites/{invite['id']}")["max_uses"] == 7


def test_redemptions_appear_as_they_happen(visitors, service):
    invite = service.invite("LIVE", max_uses=4)
    # A feed begins with what the ledger gets from then on.
    wait_for("the ledger has it", lambda: "LIVE" in json.dumps(service.in_default("GET", "invites")))
    page = visitors().sign_in("#/default/live")
    expect(page.get_by_text("connected")).to_be_visible()
    expect(page.get_by_text("Nothing has happened yet")).to_be_visible()
    one = visitors().sign_in(f"#/default/invites/{invite['id']}")
    expect(one.get_by_text("0 of 4 uses spent")).to_be_visible()
    service.redeem("LIVE", "alice")
    expect(page.get_by_role("list", name="Events").get_by_role("listitem")).to_contain_text(["alice is in team by LIVE"])
    expect(one.get_by_text("1 of 4 uses spent")).to_be_visible()
    expect(one.get_by_role("row", name="alice")).to_be_visible()
    # A redemption is taken back; the feed says so, too.
    one.get_by_role("button", name="Take back use 1 of alice").click()
    one.get_by_label("Reason").fill("a mistake")
    one.get_by_role("dialog").get_by_role("button", name="Take it back").click()
    expect(one.get_by_text("0 of 4 uses spent")).to_be_visible()
    expect(page.get_by_text("redemption rolled back")).to_be_visible()
    # While it is paused, nothing moves, and nothing is lost.
    page.get_by_role("button", name="Pause").click()
    service.redeem("LIVE", "bob")
    expect(one.get_by_role("row", name="bob")).to_be_visible()
    expect(page.get_by_text("bob")).to_have_count(0)
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_text("bob")).to_be_visible()


def test_a_cut_stream_goes_on_behind_the_last_event(visitors):
    own = Service().start().wait_until_ready()
    try:
        own.invite("CUT")
        visitor = visitors(own)
        page = visitor.sign_in("#/default/live")
        expect(page.get_by_text("connected")).to_be_visible()
        own.redeem("CUT", "alice")
        expect(page.get_by_text("alice")).to_be_visible()
        # The browser complains of what it can not reach.
        visitor.expected = {503, "net::"}
        own.stop()
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        own.start().wait_until_ready()
        own.redeem("CUT", "bob")
        expect(page.get_by_text("connected")).to_be_visible()
        expect(page.get_by_text("bob")).to_be_visible()
        expect(page.get_by_text("alice")).to_have_count(1)
    finally:
        own.close()


def test_codes_in_bulk_are_made_shown_and_downloaded(visitor, service):
    page = visitor.sign_in("#/default/invites")
    page.get_by_role("link", name="Codes in bulk").click()
    page.get_by_role("button", name="Codes in bulk").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("How many").fill("5000")
    dialog.get_by_label("Pattern").fill("BULK-#######")
    dialog.get_by_label("Group").fill("bulk")
    dialog.get_by_role("button", name="Order them").click()
    expect(page.get_by_role("img", name=re.compile("of 5000 made"))).to_be_visible()
    expect(page.get_by_text("5,000 of 5,000 codes made")).to_be_visible()
    expect(heading(page)).to_contain_text("finished")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "code,id,max_uses,uses,state" and len(lines) == 5_001
    page.get_by_role("link", name="Its invites").click()
    table = page.get_by_role("table", name="Invites")
    expect(table.get_by_role("row")).to_have_count(51)
    first = table.get_by_role("link").first.inner_text()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("page 2")).to_be_visible()
    expect(table.get_by_role("link", name=first)).to_have_count(0)
    page.get_by_role("button", name="Previous").click()
    expect(table.get_by_role("link", name=first)).to_be_visible()
    page.goto(f"{service.url}/console#/default/batches")
    expect(page.get_by_text("5000 invites")).to_be_visible()


def test_members_join_without_a_code_leave_and_are_forgotten(visitor, service):
    service.invite("JOIN", "club")
    service.redeem("JOIN", "carol")
    page = visitor.sign_in("#/default/members")
    page.get_by_role("button", name="Add a member").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("User").fill("dave")
    dialog.get_by_label("Group").fill("club")
    dialog.get_by_role("button", name="Add").click()
    expect(dialog).to_have_count(0)
    page.get_by_label("Group").fill("club")
    rows = page.get_by_role("table", name="Members").get_by_role("row")
    expect(rows).to_have_count(3)
    page.get_by_role("button", name="Remove dave from club").click()
    dialog.get_by_role("button", name="Remove").click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Forget carol").click()
    dialog.get_by_role("button", name="Forget for ever").click()
    expect(page.get_by_text("erased-")).to_be_visible()


def test_it_is_told_who_is_limited_and_why(visitor, service):
    service.ask("PUT", "/v1/namespaces/strict", {"rate_user": "2/3600", "rate_guess": "1/3600"})
    ask = lambda code, user, **more: pytest.raises(Refused, service.ask, "POST", "/v1/namespaces/strict/redemptions", {"code": code, "user": user} | more)
    for _ in range(3):
        ask("GUESS", "eve", ip="198.51.100.23")
    for _ in range(2):
        ask("GUESS", "mallory")
    page = visitor.sign_in("#/strict/limits")
    table = page.get_by_role("table", name="Who is being limited")
    expect(table.get_by_role("row", name="ip 198.51.100.23 Codes that do not exist 2")).to_be_visible()
    expect(table.get_by_role("row", name="user mallory Codes that do not exist 1")).to_be_visible()
    expect(table.get_by_text("limited", exact=True)).to_have_count(2)
    expect(page.get_by_role("table", name="Limits", exact=True)).to_contain_text("2 in an hour")
    # The limits are changed where the link leads.
    page.get_by_role("link", name="Change the limits").click()
    page.get_by_label("A user's attempts").fill("5/60")
    page.get_by_role("button", name="Save").click()
    wait_for("the limit", lambda: service.ask("GET", "/v1/namespaces/strict")["rate_user"] == "5/60")


def test_a_webhook_is_made_and_its_deliveries_are_told(visitor, service):
    page = visitor.sign_in("#/default/webhooks")
    page.get_by_role("button", name="New webhook").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("URL").fill(f"{service.url}/receiver")
    dialog.get_by_role("button", name="Make it").click()
    expect(dialog).to_contain_text("whsec_")
    dialog.get_by_role("button", name="I have it").click()
    page.get_by_role("link", name=re.compile("receiver$")).click()
    service.invite("HOOKED")
    deliveries = page.get_by_role("table", name="Deliveries")
    expect(deliveries.get_by_role("row", name=re.compile("invite created.*waiting.*404"))).to_be_visible()
    page.get_by_role("button", name="Disable").click()
    expect(heading(page)).to_contain_text("disabled")
    page.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Delete it").click()
    expect(page.get_by_role("link", name=re.compile("receiver$"))).to_have_count(0)


def test_gate_and_ledger_are_compared_and_changes_listed(visitors, furnished):
    page = visitors(furnished).sign_in("#/default/audit")
    page.get_by_role("button", name="Compare now").click()
    expect(page.get_by_text("Gate and ledger agree")).to_be_visible()
    page.get_by_label("Action").select_option("invite_created")
    rows = page.get_by_role("table", name="Changes").get_by_role("row")
    expect(rows.nth(1)).to_contain_text("invite created")
    expect(page.get_by_role("cell", name="namespace put")).to_have_count(0)


def test_a_namespace_is_made_and_archived(visitor, service):
    page = visitor.sign_in("#/default/settings")
    page.get_by_role("button", name="New namespace").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("fresh")
    dialog.get_by_role("button", name="Make it").click()
    expect(heading(page)).to_have_text("Settings of fresh")
    expect(page.get_by_label("Namespace")).to_have_value("fresh")
    page.get_by_role("button", name="Archive").click()
    dialog.get_by_role("button", name="Archive it").click()
    expect(page.get_by_text("Archived since")).to_be_visible()


def test_a_fenced_gate_is_told_with_its_reason(visitors):
    own = Service().start().wait_until_ready()
    try:
        invite = own.invite("FENCED")
        own.redeem("FENCED", "alice")
        own.stop()
        # A full gate and an empty ledger: nobody may say by themselves which of them is right.
        for file in own.directory.glob("ledger.sqlite*"):
            file.unlink()
        own.start()
        wait_for("the node answers", lambda: _reasons(own))
        visitor = visitors(own)
        visitor.expected = {503, 404}
        page = visitor.sign_in()
        expect(page.get_by_text("Fenced: nobody is served in this namespace")).to_be_visible()
        expect(page.get_by_text(_reasons(own)[0]).first).to_be_visible()
        visitor.assert_accessible("a fenced overview")
        visitor.shoot("fenced")
        page.goto(f"{own.url}/console#/default/invites/{invite['id']}")
        expect(page.get_by_role("alert").first).to_be_visible()
    finally:
        own.close()


def _reasons(service):
    try:
        partitions = service.ask("GET", "/v1/status")["partitions"]
    except (Refused, OSError):
        return None
    return [partition["reason"] for partition in partitions if partition["partition"] == 6 and partition["reason"]]


def test_all_of_it_can_be_done_with_the_keyboard(visitor, service):
    page = visitor.goto("#/default/invites")
    # The field for the key has the focus.
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(heading(page)).to_have_text("Invites")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    button = page.get_by_role("button", name="New invite")
    _tab_to(page, button)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Code")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("TYPED")
    page.keyboard.press("Tab")
    page.keyboard.type("team")
    page.keyboard.press("Enter")
    expect(heading(page)).to_contain_text("TYPED")
    assert service.in_default("GET", "invites/by-code/TYPED")["group"] == "team"
    _tab_to(page, page.get_by_role("button", name="Disable"))
    page.keyboard.press("Space")
    expect(heading(page)).to_contain_text("disabled")


def _tab_to(page, target):
    for _ in range(40):
        if target.evaluate("element => element === document.activeElement"):
            # Whoever sees it must see where it is.
            assert target.evaluate("element => getComputedStyle(element).outlineStyle") != "none"
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{target} can not be reached")


def test_the_colours_follow_the_system_or_the_switch(visitors):
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark = visitors(color_scheme="dark").sign_in()
    light = visitors(color_scheme="light").sign_in()
    night, day = dark.evaluate(ground), light.evaluate(ground)
    assert night != day
    light.get_by_label("Colours").select_option("dark")
    expect(light.locator("html")).to_have_attribute("data-theme", "dark")
    assert light.evaluate(ground) == night
    light.reload()
    expect(heading(light)).to_have_text("Overview")
    assert light.evaluate(ground) == night


LOOKS = [
    ("light", {"width": 1280, "height": 800}),
    ("dark", {"width": 1280, "height": 800}),
    ("light", {"width": 360, "height": 740}),
    ("dark", {"width": 360, "height": 740}),
]


@pytest.mark.parametrize(("scheme", "size"), LOOKS, ids=[f"{scheme}-{size['width']}" for scheme, size in LOOKS])
def test_every_screen_is_accessible_and_fits(visitors, furnished, scheme, size):
    visitor = visitors(furnished, color_scheme=scheme, viewport=size)
    page = visitor.sign_in()
    invite = furnished.in_default("GET", "invites/by-code/SPRING-2026")["id"]
    batch = furnished.in_default("GET", "audit?action=batch_ordered")["data"][0]["subject"].split(",")[0]
    webhook = furnished.in_default("GET", "webhooks")["data"][0]["id"]
    for screen in [*SCREENS, f"invites/{invite}", f"batches/{batch}", f"webhooks/{webhook}", "overview?span=month"]:
        page.goto(f"{furnished.url}/console#/default/{screen}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_role("status", name="Loading")).to_have_count(0)
        visitor.assert_accessible(screen)
        visitor.assert_fits(screen)
    # Dialogs once in each scheme, and once in each width.
    if (scheme, size["width"]) not in [("light", 1280), ("dark", 360)]:
        return
    for screen, button in [("invites", "New invite"), ("batches", "Codes in bulk"), ("members", "Add a member"), ("webhooks", "New webhook")]:
        page.goto(f"{furnished.url}/console#/default/{screen}")
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        visitor.assert_accessible(f"{button} of {screen}")
        visitor.assert_fits(f"{button} of {screen}")
        page.keyboard.press("Escape")


def test_pictures_for_the_documents(visitors, furnished, request):
    """Those of docs/console.md, with --screenshots; and it shows that a rush is told as one, without."""
    at = lambda page, place: page.goto(f"{furnished.url}/console#/default/{place}")
    settle = lambda page: expect(page.get_by_role("status", name="Loading")).to_have_count(0)
    visitor = visitors(furnished)
    page = visitor.sign_in("#/default/live")
    expect(page.get_by_text("connected")).to_be_visible()
    furnished.invite("LAUNCH-DAY", "early-access", None)
    over = threading.Event()

    def rush():
        for number in range(2000):
            if over.wait(0.1):
                return
            furnished.redeem("LAUNCH-DAY", f"guest-{number + 100}")

    crowd = threading.Thread(target=rush)
    crowd.start()
    try:
        events = page.get_by_role("list", name="Events").get_by_role("listitem")
        expect(events.nth(14)).to_be_visible()
        visitor.shoot("live")
        at(page, "overview")
        # Redemptions a second, once there is something to compare with.
        expect(page.locator(".tile", has_text="Redemptions a second")).to_contain_text(re.compile(r"[1-9]\.\d"))
        settle(page)
        visitor.shoot("overview")
        if not request.config.getoption("--screenshots"):
            return
        dark = visitors(furnished, color_scheme="dark")
        expect(dark.sign_in().get_by_text("16 of 16 open")).to_be_visible()
        settle(dark.page)
        dark.shoot("dark")
    finally:
        over.set()
        crowd.join()
    invite = furnished.in_default("GET", "invites/by-code/SPRING-2026")["id"]
    for name, place in [("invites", "invites"), ("invite", f"invites/{invite}"), ("limits", "limits")]:
        at(page, place)
        settle(page)
        visitor.shoot(name)
    phone = visitors(furnished, viewport={"width": 360, "height": 740}, device_scale_factor=2)
    phone.sign_in(f"#/default/invites/{invite}")
    expect(phone.page.get_by_text("uses spent")).to_be_visible()
    settle(phone.page)
    phone.shoot("phone")
