"""`REDEEMER_URL=… REDEEMER_KEY=<admin key> python manage.py test`, against a running service."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client, TransactionTestCase, override_settings
from django.utils import timezone

from . import after, redeemer
from .models import Followed, Invite, Membership


class Proxy:
    """Carries requests to the service and loses the first answers: the service has answered, and nobody hears it."""

    def __init__(self, lost):
        self.lost = lost
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        service = urlsplit(settings.REDEEMER_URL)
        held = []
        while True:
            client, _ = self.listener.accept()
            request = b""
            while b"\r\n\r\n" not in request or not request.endswith(b"}"):
                request += client.recv(65536)
            with socket.create_connection((service.hostname, service.port)) as server:
                server.sendall(request)  # urllib asks for `Connection: close`, so the answer has an end
                answer = b"".join(iter(lambda: server.recv(65536), b""))
            if self.lost > 0:
                self.lost -= 1
                held.append(client)  # open and silent, until the client has waited long enough
                continue
            client.sendall(answer)
            client.close()


class AcceptTest(TransactionTestCase):
    def setUp(self):
        # A namespace of the test's own, since users are numbered from 1 in each; and patience, for a busy machine.
        own = override_settings(
            REDEEMER_NAMESPACE=f"t-{uuid.uuid4()}", REDEEMER_TIMEOUT=30, REDEEMER_DEADLINE=60
        )
        own.enable()
        self.addCleanup(own.disable)
        redeemer.ask("PUT", "", {})
        self.user = self.make_user("alice")
        self.client.force_login(self.user)

    def make_user(self, name):
        return User.objects.create_user(name)

    def invite(self, code, max_uses=10):
        return redeemer.ask("POST", "/invites", {"code": code, "group": code.lower(), "max_uses": max_uses})

    def uses(self, code):
        return redeemer.ask("GET", f"/invites/by-code/{code}")["uses"]

    def page(self, client=None):
        """The key in a fresh form."""
        return re.search(r'name="key" value="([^"]+)"', (client or self.client).get("/accept/").content.decode())[1]

    def accept(self, code, key=None, client=None):
        return (client or self.client).post("/accept/", {"code": code, "key": key or self.page(client)})

    def wait_for_ledger(self, redemption):
        give_up = time.monotonic() + 60
        while redeemer.ask("GET", f"/redemptions/{redemption}")["durability"] != "ledger":
            self.assertLess(time.monotonic(), give_up)

    def test_a_form_that_is_sent_twice_spends_one_use(self):
        self.invite("SPRING")
        key = self.page()
        for _ in range(2):
            self.assertContains(self.accept("spring", key), "You are in spring.")
        self.assertEqual((Membership.objects.count(), self.uses("SPRING")), (1, 1))

    def test_people_are_told_what_is_wrong(self):
        self.invite("SPRING")
        self.invite("OTHER")
        full = self.invite("FULL", max_uses=1)
        redeemer.ask("POST", "/redemptions", {"code": "FULL", "user": "somebody"})
        for code, message in [("NOBODY", "no such code"), ("a b", "no such code"), (full["code"], "All places")]:
            self.assertContains(self.accept(code), message, status_code=409)
        self.accept("SPRING")
        self.assertContains(self.accept("OTHER"), "in a group already", status_code=409)
        self.assertEqual([row.group for row in Membership.objects.all()], ["spring"])

    def test_a_new_try_after_a_refusal_has_a_new_key(self):
        key = self.page()
        self.assertNotContains(self.accept("NOBODY", key), key, status_code=409)

    def test_a_retry_after_a_timeout_gets_the_answer_that_was_lost(self):
        self.invite("SPRING")
        with override_settings(REDEEMER_URL=Proxy(lost=1).url, REDEEMER_TIMEOUT=0.5):
            redemption, _ = redeemer.redeem("SPRING", self.user.pk, uuid.uuid4())
        self.assertTrue(redemption["replayed"])
        self.assertEqual((redemption["use"], self.uses("SPRING")), (1, 1))

    def test_a_person_who_got_no_answer_sends_the_same_form_again(self):
        self.invite("SPRING")
        key = self.page()
        with override_settings(REDEEMER_URL=Proxy(lost=9).url, REDEEMER_TIMEOUT=0.3, REDEEMER_DEADLINE=0.5):
            self.assertContains(self.accept("SPRING", key), key, status_code=503)
        self.assertEqual(Membership.objects.count(), 0)
        self.assertContains(self.accept("SPRING", key), "You are in spring.")
        self.assertEqual((Membership.objects.count(), self.uses("SPRING")), (1, 1))

    def rush(self, path, data):
        """20 users at once; how many were let in."""
        clients = [Client() for _ in range(20)]
        for number, client in enumerate(clients):
            client.force_login(self.make_user(f"user-{number}"))

        def send(client):
            try:
                return client.post(path, data(client)).content.decode()
            finally:
                connection.close()

        with ThreadPoolExecutor(len(clients)) as pool:
            told = list(pool.map(send, clients))
        self.assertEqual(sum("ll places are taken" in page for page in told), 17)
        self.assertEqual(sum("You are in" in page for page in told), 3)
        self.assertEqual(Membership.objects.count(), 3)

    def test_of_many_who_want_the_last_places_as_many_get_in_as_there_are(self):
        self.invite("LAST", max_uses=3)
        self.rush("/accept/", lambda client: {"code": "LAST", "key": self.page(client)})
        self.assertEqual(self.uses("LAST"), 3)

    def test_the_view_before_let_in_as_many_too(self):
        Invite.objects.create(code="LAST", group="last", max_uses=3)
        self.rush("/before/", lambda client: {"code": "LAST"})

    def test_what_was_granted_to_a_process_that_died_before_its_insert_is_reconciled(self):
        self.invite("SPRING")
        # Another process of this application, on the same database, killed where nothing is written down yet.
        program = f"""
import os, signal, uuid, django
django.setup()
from signup import redeemer
redemption, problem = redeemer.redeem("SPRING", {self.user.pk}, uuid.uuid4())
print(redemption["id"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        env = os.environ | {
            "DJANGO_SETTINGS_MODULE": "signup.settings",
            "DATABASE": connection.settings_dict["NAME"],
            "REDEEMER_NAMESPACE": settings.REDEEMER_NAMESPACE,
        }
        killed = subprocess.run([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True)
        self.assertEqual(killed.returncode, -signal.SIGKILL)
        redemption = killed.stdout.strip()
        self.wait_for_ledger(redemption)
        self.assertFalse(Membership.objects.exists())
        for _ in range(2):
            call_command("reconcile", stdout=open(os.devnull, "w"))
            row = Membership.objects.get()
            self.assertEqual((str(row.redemption), row.user, row.ended_at), (redemption, self.user, None))
        # The person, who saw an error, tries again with a fresh form, and is in.
        self.assertContains(self.accept("SPRING"), "You are in spring.")
        self.assertEqual((Membership.objects.count(), self.uses("SPRING")), (1, 1))

    def test_reconciling_goes_on_where_it_stopped_and_can_begin_again(self):
        self.invite("SPRING")
        users = [self.make_user(f"user-{number}") for number in range(3)]
        granted = [redeemer.redeem("SPRING", user.pk, uuid.uuid4())[0] for user in users]
        self.wait_for_ledger(granted[-1]["id"])
        # The first attempt dies in the middle of a page.
        with patch.object(after.Membership.objects, "get_or_create", side_effect=[None, KeyboardInterrupt]):
            with self.assertRaises(KeyboardInterrupt):
                call_command("reconcile", stdout=open(os.devnull, "w"))
        for args in [], ["--from-start"]:
            call_command("reconcile", *args, stdout=open(os.devnull, "w"))
            self.assertEqual(Membership.objects.count(), 3)
            self.assertEqual(Followed.objects.get().position, granted[-1]["position"])

    def test_who_has_left_is_not_let_in_again_by_a_late_row(self):
        self.invite("SPRING")
        self.invite("SUMMER")
        spring = redeemer.redeem("SPRING", self.user.pk, uuid.uuid4())[0]
        after.record(spring)
        redeemer.ask("DELETE", f"/members/{self.user.pk}")
        Membership.objects.update(ended_at=timezone.now())
        after.record(spring)
        self.assertFalse(Membership.objects.filter(ended_at=None).exists())
        # Joined anew, then taken back, before this database knew of any of it.
        again = redeemer.redeem("SPRING", self.user.pk, uuid.uuid4())[0]
        redeemer.ask("POST", f"/redemptions/{again['id']}/rollback", {"reason": "paid back"})
        after.record(redeemer.ask("GET", f"/redemptions/{again['id']}"))
        self.assertFalse(Membership.objects.filter(ended_at=None).exists())
        # Joined anew, and the rows arrive in the wrong order.
        summer = redeemer.redeem("SUMMER", self.user.pk, uuid.uuid4())[0]
        Membership.objects.all().delete()
        for redemption in [summer, spring, summer]:
            after.record(redemption)
        self.assertEqual(Membership.objects.get(ended_at=None).group, "summer")
        self.assertEqual(Membership.objects.count(), 2)
