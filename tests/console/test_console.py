"""What people do with the console."""

from playwright.sync_api import expect
from service import KEY


def test_a_wrong_key_is_told_so_and_a_good_one_lets_in(visitor):
    visitor.expected = {401}
    page = visitor.goto()
    page.get_by_label("API key").fill("rdm_aaaaaaaaaaaaaaaa_cccccccccccccccccccccccccccccccc")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("This key opens nothing")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    # The key is in this tab and nowhere else.
    assert page.evaluate("() => JSON.stringify(localStorage)").find("rdm_") < 0
    assert "rdm_" not in page.url
    page.reload()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("() => sessionStorage.length") == 0


def test_an_invite_is_made_and_found(visitor, service):
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
    expect(dialog).to_have_count(0)
    assert service.in_default("GET", "invites/by-code/HANDMADE")["max_uses"] == 3
    page.goto(f"{service.url}/console#/default/invites")
    page.get_by_label("Code begins with").fill("HAND")
    expect(page.get_by_role("link", name="HANDMADE")).to_be_visible()
    expect(page).to_have_url(f"{service.url}/console#/default/invites?prefix=HAND")
    page.get_by_label("Code begins with").fill("NOBODY")
    expect(page.get_by_text("No invite is like that")).to_be_visible()
