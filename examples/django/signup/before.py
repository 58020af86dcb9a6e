"""Before: the invite's row is locked, uses are counted, and everything happens in one transaction.

Exact as long as every path that touches an invite takes the same lock. All who use one code stand in one line, the
count grows with every use, and whoever asks again after a lost answer is told "already a member".
"""

from django import forms
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.shortcuts import render
from django.utils import timezone

from .models import Invite, Membership, Used


class AcceptForm(forms.Form):
    code = forms.CharField(max_length=64)


@login_required
def accept(request):
    form = AcceptForm(request.POST or None)
    message = try_code(request.user, form.cleaned_data["code"]) if form.is_valid() else ""
    return render(request, "form.html", {"form": form, "message": message})


@transaction.atomic
def try_code(user, code):
    invite = Invite.objects.select_for_update().filter(code=code, active=True).first()
    if invite is None:
        return "There is no such code, or all places are taken."
    if Membership.objects.filter(user=user, ended_at=None).exists():
        return "You are in a group already."
    used = Used.objects.filter(invite=invite).count()
    if used >= invite.max_uses:
        return "All places are taken."
    Membership.objects.create(user=user, group=invite.group, redeemed_at=timezone.now())
    Used.objects.create(invite=invite, user=user)
    if used + 1 == invite.max_uses:
        invite.active = False
        invite.save()
    return f"You are in {invite.group}."
