import os
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent

# Where redeemer is, and a key that may redeem; `reconcile` needs one that may read.
REDEEMER_URL = os.environ.get("REDEEMER_URL", "http://127.0.0.1:8080")
REDEEMER_KEY = os.environ.get("REDEEMER_KEY", "")
REDEEMER_NAMESPACE = os.environ.get("REDEEMER_NAMESPACE", "default")
# How long one request may take, and all its repeats together, in seconds: a person is waiting.
REDEEMER_TIMEOUT = 2.0
REDEEMER_DEADLINE = 6.0

DATABASE = os.environ.get("DATABASE", str(HERE / "db.sqlite3"))
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        # SQLite has no row locks: before.py is right only because a transaction here begins by locking the database.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 30},
        "TEST": {"NAME": DATABASE + ".test"},
    }
}
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "signup"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
ROOT_URLCONF = "signup.urls"
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/accept/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DEBUG = True
SECRET_KEY = "of an example on one's own machine"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
