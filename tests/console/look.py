"""Starts a service with something in it, says where its console is, and waits."""

from furnish import furnish
from service import KEY, Service

own = Service().start()
try:
    furnish(own.wait_until_ready())
    input(f"{own.url}/console\nkey: {KEY}\nEnter ends it. ")
except (EOFError, KeyboardInterrupt):
    pass
finally:
    own.close()
