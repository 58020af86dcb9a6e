"""A service of its own: embedded Redis and ledger in a temporary directory, a free port, nothing left behind."""

import json
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = ROOT / "target/debug/redeemer"
KEY = "rdm_aaaaaaaaaaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
# How long a node may take to come to a state, in seconds.
PATIENCE = 60


def free_port():
    """One that the system gives to nobody who asks for any, also while the service is away: it gives those from 32768 on."""
    for port in random.sample(range(28_500, 32_700), 100):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("every port is in use")


def wait_for(what, look):
    """What look() says once it says something."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


class Refused(Exception):
    """An answer that is not a success."""

    def __init__(self, status, problem):
        super().__init__(f"{status}: {problem}")
        self.status, self.problem = status, problem


class Service:
    def __init__(self, **settings):
        self._directory = tempfile.TemporaryDirectory(prefix="rdm-console-")
        self.directory = Path(self._directory.name)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = settings
        self.node = None

    def start(self):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("REDEEMER_")}
        environment = clean | {
            "REDEEMER_DATA__DIR": str(self.directory),
            "REDEEMER_AUTH__ADMIN_KEY": KEY,
            "REDEEMER_HTTP__BIND": f"127.0.0.1:{self.port}",
            "REDEEMER_STATS__FLUSH_MS": "100",
            "REDEEMER_WEBHOOKS__ALLOW_PRIVATE": "true",
            **self.settings,
        }
        with (self.directory / "node.log").open("a") as log:
            self.node = subprocess.Popen(
                [PROGRAM, "serve"], env=environment, cwd=self.directory, stdout=subprocess.DEVNULL, stderr=log
            )
        return self

    def stop(self):
        if self.node and self.node.poll() is None:
            self.node.send_signal(signal.SIGTERM)
            self.node.wait(timeout=PATIENCE)

    def close(self):
        self.stop()
        self._directory.cleanup()

    def ask(self, method, path, body=None, key=KEY, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"} | headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, json.load(error)) from None
        return json.loads(text) if text else None

    def in_default(self, method, path, body=None, **more):
        return self.ask(method, f"/v1/namespaces/default/{path}", body, **more)

    def wait_until_ready(self):
        def look():
            assert self.node.poll() is None, f"the service did not start: {self.log()}"
            try:
                return self.ask("GET", "/readyz")["ready"]
            except (Refused, OSError):
                return False

        wait_for("the service is ready", look)
        return self

    def log(self):
        return (self.directory / "node.log").read_text()[-4000:]

    def key(self, role, namespaces=None):
        return self.ask("POST", "/v1/keys", {"name": role, "role": role, "namespaces": namespaces})["key"]

    def invite(self, code, group="team", max_uses=100, **more):
        return self.in_default("POST", "invites", {"code": code, "group": group, "max_uses": max_uses} | more)

    def redeem(self, code, user, **more):
        return self.in_default("POST", "redemptions", {"code": code, "user": user} | more)
