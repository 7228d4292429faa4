"""Who the caller is, and which request it is."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

SYSTEM = "system@hyperfleet.local"
MAX_LENGTH = 256

# The caller of the request at hand; empty while nobody has shown who they are.
current: ContextVar[str] = ContextVar("caller", default="")
# The id of the request at hand.
request_id: ContextVar[str] = ContextVar("request_id", default="-")


def caller() -> str:
    """The identity that a write is recorded under.

    With authentication, no write gets this far without one: see :mod:`hyperfleet.auth.guard`.
    """
    return current.get() or SYSTEM


def from_claims(claims: Mapping[str, Any], names: Iterable[str]) -> str:
    """The identity that a token's claims give: the first of the named claims that can be one.

    :param claims: of a token that was verified
    :param names: of claims, the preferred one first
    :return: without blanks around it; empty when no claim will do. One that is too long is passed over
        and not cut, as two callers could become one; so is one that is not printable, which could
        forge a line of a log or look like another.
    """
    for name in names:
        value = claims.get(name)
        if isinstance(value, str) and (found := usable(value)):
            return found
    return ""


def usable(text: str) -> str:
    """A text as an identity, without blanks around it; empty when it can be none."""
    text = text.strip()
    return text if len(text) <= MAX_LENGTH and text.isprintable() else ""
