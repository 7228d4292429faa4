"""Who the caller of the current request is, and the request's id."""

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import uuid_utils
from starlette.datastructures import Headers
from starlette.types import Scope

SYSTEM = "system@hyperfleet.local"
MAX_LENGTH = 256

# The caller of the current request; empty until they are authenticated.
current: ContextVar[str] = ContextVar("caller", default="")
# The id of the current request.
request_id: ContextVar[str] = ContextVar("request_id", default="-")
# The scope's key for it, and the ids of clients that are kept.
REQUEST_ID = "hyperfleet.request_id"
KEPT = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def caller() -> str:
    """Returns the identity that a write is recorded under.

    With authentication, no write gets this far without one: see :mod:`hyperfleet.auth.guard`.
    """
    return current.get() or SYSTEM


def id_of(scope: Scope) -> str:
    """Returns the id of a request: the client's, if it can be kept, or one made on the first call."""
    known: str | None = scope.get(REQUEST_ID)
    if known is None:
        given = Headers(scope=scope).get("x-request-id", "")
        known = scope[REQUEST_ID] = given if KEPT.fullmatch(given) else str(uuid_utils.uuid7())
    return known


def from_claims(claims: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns the identity in a token's claims: the first of the named claims that is usable as one.

    :param claims: those of a verified token
    :param names: names of claims, the preferred one first
    :return: the identity without surrounding blanks; empty if no claim is usable. One that is too long
        is skipped rather than cut, since two callers could become one; so is one that is not printable,
        which could forge a log line or look like another.
    """
    for name in names:
        value = claims.get(name)
        if isinstance(value, str) and (found := usable(value)):
            return found
    return ""


def usable(text: str) -> str:
    """Returns a text as an identity, without surrounding blanks; empty if it cannot be one."""
    text = text.strip()
    return text if len(text) <= MAX_LENGTH and text.isprintable() else ""
