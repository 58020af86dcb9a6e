"""After: redeemer decides, and this database writes down what it has decided."""

import uuid
from datetime import datetime

from django import forms
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.shortcuts import render

from . import redeemer
from .models import Membership


class AcceptForm(forms.Form):
    code = forms.CharField(max_length=64)
    # The Idempotency-Key. It is in the page before anything is asked, so a double click, a reload and a second try
    # after a timeout all send the same one.
    key = forms.UUIDField(widget=forms.HiddenInput, initial=uuid.uuid4)


@login_required
def accept(request):
    form = AcceptForm(request.POST or None)
    if not form.is_valid():
        return render(request, "form.html", {"form": form})
    code, key = form.cleaned_data["code"], form.cleaned_data["key"]
    # No transaction is open here: nobody waits for a lock while we wait for an answer.
    redemption, problem = redeemer.redeem(code, request.user.pk, key, request.META["REMOTE_ADDR"])
    if redemption:
        record(redemption)
        return render(request, "form.html", {"message": f"You are in {redemption['group']}."})
    message = redeemer.MESSAGES.get(problem["code"], redeemer.OUR_MISTAKE)
    if problem is redeemer.NO_ANSWER:
        # The same form with the same key: the next try learns what became of this one.
        return render(request, "form.html", {"form": form, "message": message}, status=503)
    # A definite no. Another try is another attempt, with a key of its own.
    return render(request, "form.html", {"form": AcceptForm(initial={"code": code}), "message": message}, status=409)


@transaction.atomic
def record(redemption):
    """Writes down a redemption. Again, late, and from two places at once it changes nothing more."""
    user, at = redemption["user"], datetime.fromisoformat(redemption["redeemed_at"])
    others = Membership.objects.filter(user_id=user).exclude(redemption=redemption["id"])
    # Whoever is let into a group has left the one before, also if nobody has told this database.
    others.filter(ended_at=None, redeemed_at__lte=at).update(ended_at=at)
    was_left = others.filter(redeemed_at__gt=at).exists()
    Membership.objects.get_or_create(
        redemption=redemption["id"],
        defaults={
            "user_id": user,
            "group": redemption["group"],
            "redeemed_at": at,
            "ended_at": at if was_left else None,
        },
    )
    if redemption["rolled_back_at"]:
        Membership.objects.filter(redemption=redemption["id"], ended_at=None).update(ended_at=redemption["rolled_back_at"])
