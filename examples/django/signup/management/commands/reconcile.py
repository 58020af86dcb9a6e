"""Writes down what redeemer has granted and this database does not know, after a crash or as a job every minute."""

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import IntegrityError

from signup import redeemer
from signup.after import record
from signup.models import Followed, Membership


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser):
        parser.add_argument("--from-start", action="store_true", help="after redeemer's ledger was restored or mended")

    def handle(self, from_start, **options):
        followed, _ = Followed.objects.get_or_create(namespace=settings.REDEEMER_NAMESPACE)
        before = Membership.objects.count()
        for page in redeemer.redemptions(None if from_start else followed.position):
            for redemption in page:
                try:
                    record(redemption)
                except IntegrityError as error:
                    self.stderr.write(f"redemption {redemption['id']} of user {redemption['user']}: {error}")
            # Only now: whoever dies before this line reads the page again, which changes nothing.
            followed.position = page[-1]["position"]
            followed.save()
        self.stdout.write(f"{Membership.objects.count() - before} written, up to {followed.position or 'the start'}")
