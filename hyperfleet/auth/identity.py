"""Who the caller of the current request is, and the request's id."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

SYSTEM = "system@hyperfleet.local"
MAX_LENGTH = 256

# The caller of the current request; empty until they are authenticated.
current: ContextVar[str] = ContextVar("caller", default="")
# The id of the current request.
request_id: ContextVar[str] = ContextVar("request_id", default="-")


def caller() -> str:
    """Returns the identity that a write is recorded under.

    With authentication, no write gets this far without one: see :mod:`hyperfleet.auth.guard`.
    """
    return current.get() or SYSTEM


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
