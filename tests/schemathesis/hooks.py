"""What a JSON Schema can not say.

Requests that are to be accepted are mended here where the service rightly refuses what their schema allows: bounds in
bytes, fields that depend on each other, values that only the service knows. And they are steered to what is there, or
nearly all of them would end at a namespace that nobody made. Requests that are to be refused are sent as they are.
"""

from urllib.parse import quote, unquote

import schemathesis

# Namespaces that a request has made; what is fixed of them can not be set again.
made = {"default"}
# Cursors that lists have given, by path.
cursors = {}

BYTES_MAX = {"user": 128, "group": 128, "email": 254}


def shortened(text, bytes_max):
    # What stands in a path is percent-encoded already, which makes it longer.
    plain = unquote(text)
    if plain != text:
        return quote(shortened(plain, bytes_max), safe="")
    return text.encode("utf-8", "surrogatepass")[:bytes_max].decode("utf-8", "ignore") or "x"


def mended_code(text):
    """What can be a code in a namespace that is not lenient."""
    # What stands in a path is percent-encoded already.
    return text.replace(" ", "").replace("%20", "")[:64] or "WELCOME"


def mend_body(case, body):
    if isinstance(body.get("code"), str):
        body["code"] = mended_code(body["code"])
    for name, bytes_max in BYTES_MAX.items():
        if name != "email" and isinstance(body.get(name), str):
            body[name] = shortened(body[name], bytes_max)
    if isinstance(body.get("email"), str) and len(body["email"].encode()) > BYTES_MAX["email"]:
        body["email"] = "alice@example.com"
    # No replicas here, and a fast run.
    if body.get("durability") == "replicated":
        body["durability"] = "ledger"
    for name in ("starts_at", "expires_at"):
        if isinstance(body.get(name), str) and not "1971" <= body[name][:4] <= "9998":
            body[name] = None
    # The window must have a length; times may have any offset, so no two are compared here.
    if body.get("starts_at") and body.get("expires_at"):
        body["expires_at"] = None
    # A window that ends before the one that the invite has begins.
    if case.method.upper() == "PATCH" and (body.get("starts_at") or body.get("expires_at")):
        body["starts_at"] = None
    # A key ends in the future; one for admins is never tied.
    if "role" in body:
        body["expires_at"] = None
        if body["role"] == "admin":
            body["namespaces"] = None
    # The name of a host must lead somewhere.
    if isinstance(body.get("url"), str):
        body["url"] = "http://127.0.0.1:9/hook"
    # A metadata object has at most 4096 bytes.
    if len(repr(body.get("metadata"))) > 500:
        body["metadata"] = None
    if "pattern" in body:
        body["count"] = min(body["count"], 20)
        # Enough different codes for that many, and not more random characters than there may be.
        if not 8 <= body["pattern"].count("#") <= 20:
            body["pattern"] = "TEST-########"
    if "membership" in body or "code_check" in body or "code_case" in body:
        # What codes are elsewhere, they are here; else no request that guesses one would be right.
        body["code_case"], body["code_check"] = None, None
        if case.path_parameters.get("ns") in made:
            body["membership"] = None
    # One that a namespace had before can not be chosen again; and there are 16 partitions.
    if "spread" in body:
        if case.method.upper() == "PATCH" or case.path_parameters.get("ns") in made:
            del body["spread"]
        elif body["spread"] is not None:
            body["spread"] = min(int(body["spread"]), 16)
    for name in [name for name in body if name.startswith("rate_")]:
        if isinstance(body[name], str):
            body[name] = "100000/60"


@schemathesis.hook
def before_call(context, case, kwargs):
    path, query = case.path_parameters, case.query
    is_namespace = case.operation.path == "/v1/namespaces/{ns}"
    # The one that all others use.
    if is_namespace and case.method.upper() == "DELETE" and path["ns"] == "default":
        path["ns"] = "gone"
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if path and "ns" in path and not is_namespace:
        path["ns"] = "default"
    # schemathesis takes the quotation marks of some values for JSON's.
    revision = case.headers and case.headers.get("If-Match")
    if revision and revision.isdigit():
        case.headers["If-Match"] = f'"{revision}"'
    for place in (path, query):
        for name in ("code", "prefix"):
            if place and isinstance(place.get(name), str):
                place[name] = mended_code(place[name])
        for name in ("user", "group"):
            if place and isinstance(place.get(name), str):
                place[name] = shortened(place[name], BYTES_MAX[name])
        for name in ("after", "before"):
            if place and isinstance(place.get(name), str) and not "1971" <= place[name][:4] <= "9998":
                del place[name]
    # A position of another partition than that of the namespace.
    for name in ("after", "after_position"):
        if query and "/" in str(query.get(name)):
            query[name] = "6/1-1"
    # Statistics have a bounded number of steps, up to a moment after the first one.
    if case.operation.path.endswith("/stats"):
        for name in ("from", "to"):
            if query:
                query.pop(name, None)
    if query and "cursor" in query:
        known = cursors.get(case.operation.path)
        if known:
            query["cursor"] = known
        else:
            del query["cursor"]
    # The first line of CSV names columns that there are.
    if isinstance(case.body, str) and case.media_type == "text/csv":
        columns = "user,group" if case.operation.path.endswith("/members") else "code,group,max_uses"
        case.body = f"{columns}\n{case.body}"
    if isinstance(case.body, dict):
        mend_body(case, case.body)
    # What is mended is what was meant. Else it would be looked at again, what stands in a path percent-encoded, and
    # taken for something that must be refused.
    case._sync_validated_hashes()


@schemathesis.hook
def after_call(context, case, response):
    if is_list(response):
        cursor = response.json().get("next_cursor")
        if cursor:
            cursors[case.operation.path] = cursor
    if case.method.upper() == "PUT" and response.status_code == 201 and case.path_parameters:
        made.add(case.path_parameters.get("ns"))


def is_list(response):
    kinds = response.headers.get("content-type") or [""]
    return response.status_code == 200 and "application/json" in kinds[0]
