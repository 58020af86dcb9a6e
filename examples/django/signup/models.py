from django.conf import settings
from django.db import models
from django.db.models import Q, UniqueConstraint

User = settings.AUTH_USER_MODEL


class Membership(models.Model):
    user = models.ForeignKey(User, on_delete=models.CASCADE)
    group = models.CharField(max_length=128)
    redeemed_at = models.DateTimeField()
    # Rows are ended and never deleted: whoever is told of a redemption again must find it here.
    ended_at = models.DateTimeField(null=True)
    # New with redeemer, and what makes writing the same redemption twice harmless.
    redemption = models.UUIDField(null=True, unique=True)

    class Meta:
        constraints = [UniqueConstraint(fields=["user"], condition=Q(ended_at=None), name="one_group")]


class Followed(models.Model):
    """How far `reconcile` has read."""

    namespace = models.CharField(max_length=63, primary_key=True)
    position = models.CharField(max_length=64)


# What redeemer replaces.


class Invite(models.Model):
    code = models.CharField(max_length=64, unique=True)
    group = models.CharField(max_length=128)
    max_uses = models.PositiveIntegerField()
    active = models.BooleanField(default=True)


class Used(models.Model):
    invite = models.ForeignKey(Invite, on_delete=models.PROTECT)
    user = models.ForeignKey(User, on_delete=models.CASCADE)
