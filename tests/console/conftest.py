"""The service, the browser, and a page that notices what no page may do."""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import axe_playwright_python
import pytest
from playwright.sync_api import expect, sync_playwright
from service import KEY, ROOT, Service

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "mjs": "text/javascript", "svg": "image/svg+xml"}

# Only what fails waits for so long, or a machine that is busy.
expect.set_options(timeout=30_000)


def pytest_addoption(parser):
    parser.addoption("--screenshots", action="store_true", help="write docs/images anew")
    parser.addoption("--live", action="store_true", help="take the console's files from the checkout")


@pytest.fixture(scope="session")
def service():
    service = Service().start()
    try:
        yield service.wait_until_ready()
        assert service.node.poll() is None, f"the service has died: {service.log()}"
    finally:
        service.close()


@pytest.fixture(scope="session")
def browser():
    # Chromium's sandbox refuses to be root's.
    arguments = ARGUMENTS + (["--no-sandbox"] if os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Visitor:
    """Somebody in front of a page of their own, who notices every error, and every request that goes elsewhere."""

    def __init__(self, browser, service, live=False, images=None, **options):
        self.service = service
        self.images = images
        options = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", "timezone_id": "UTC"} | options
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        # Statuses that a test brings about, which the browser complains of.
        self.expected = set()
        self.noticed = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.noticed.append(f"{error}"))
        self.page.on("request", self._asked)
        if live:
            self.context.route("**/console**", self._from_checkout)

    def _said(self, message):
        # A status, or a failure of the network.
        words = [f"status of {it}" if isinstance(it, int) else it for it in self.expected]
        is_expected = any(word in message.text for word in words)
        if message.type in ("error", "warning") and not is_expected:
            self.noticed.append(f"{message.text} ({message.location['url']})")

    def _asked(self, request):
        if not request.url.startswith((f"{self.service.url}/", "data:", f"blob:{self.service.url}/")):
            self.noticed.append(f"a request to {request.url}")
        if "rdm_" in request.url:
            self.noticed.append(f"a key in {request.url}")

    def _from_checkout(self, route):
        name = urlsplit(route.request.url).path.removeprefix("/console").strip("/") or "index.html"
        page = route.fetch(url=f"{self.service.url}/console")
        policy = page.headers["content-security-policy"]
        route.fulfill(
            body=(ROOT / "console" / name).read_bytes(),
            headers={"content-type": TYPES[name.rsplit(".", 1)[1]], "content-security-policy": policy},
        )

    def goto(self, place=""):
        self.page.goto(f"{self.service.url}/console{place}")
        return self.page

    def sign_in(self, place="", key=KEY):
        page = self.goto(place)
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("navigation")).to_be_visible()
        return page

    def assert_accessible(self, what):
        """axe-core finds nothing that is serious or critical. It is not a part of the page, whose policy would refuse it."""
        self.page.evaluate(AXE)
        found = self.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
        told = [
            f"{one['id']}: {one['help']}: " + "; ".join(node["html"][:160] for node in one["nodes"][:4])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert not told, f"{what}: " + "\n".join(told)

    def assert_fits(self, what):
        """Nothing is wider than the screen."""
        wide = self.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{what} is {wide} px too wide"

    def shoot(self, name):
        """Takes a picture for the documents, if that is asked for."""
        if self.images:
            self.images.mkdir(exist_ok=True)
            self.page.screenshot(path=self.images / f"console-{name}.png", animations="disabled")

    def close(self):
        self.context.close()


@pytest.fixture
def visitors(browser, service, request):
    """Makes visitors; none of them may have noticed anything."""
    made = []

    def make(service=service, **options):
        option = request.config.getoption
        images = ROOT / "docs/images" if option("--screenshots") else None
        made.append(Visitor(browser, service, option("--live"), images, **options))
        return made[-1]

    yield make
    for visitor in made:
        visitor.close()
    noticed = [line for visitor in made for line in visitor.noticed]
    assert not noticed, "\n".join(noticed)


@pytest.fixture
def visitor(visitors):
    return visitors()
