from django.contrib.auth.views import LoginView
from django.urls import path

from . import after, before

urlpatterns = [
    path("login/", LoginView.as_view(template_name="form.html")),
    path("before/", before.accept),
    path("accept/", after.accept),
]
