"""Errors in a search that only the database can detect, and unknown names of kinds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from hyperfleet.errors import BAD_SEARCH, Problem, bad_parameter
from hyperfleet.kinds import RESOURCES
from hyperfleet.nearest import expected


@contextmanager
def searching(searched: bool, timeout: float) -> Iterator[None]:
    """Raises Problem if the database rejects a search within the block.

    :param searched: whether there is a search, which may be what takes too long
    :param timeout: seconds after which the server cancels a statement
    """
    began = time.monotonic()
    try:
        yield
    except psycopg.errors.InvalidRegularExpression as error:
        raise bad_search(f"the regular expression is not valid: {error.diag.message_primary}") from None
    except psycopg.errors.InternalError_ as error:
        # A regular expression may need more memory than PostgreSQL allocates at once. That message is
        # never translated.
        if not searched or "memory alloc" not in (error.diag.message_primary or ""):
            raise
        raise bad_search("the regular expression is too complex") from None
    except psycopg.errors.QueryCanceled:
        # An operator may have cancelled the statement; the server tells which only in a translated text.
        if not searched or time.monotonic() - began < timeout:
            raise
        raise bad_search("takes too long; narrow it, or search by indexed fields") from None


def bad_search(message: str) -> Problem:
    """Returns the error for a search that cannot be understood or run."""
    return Problem(BAD_SEARCH, faults=[{"field": "search", "message": message, "constraint": "search"}])


def unknown_kind(name: str) -> Problem:
    """Returns the error for a parameter ``kind`` that names no kind of resource."""
    return bad_parameter("kind", f"is not a kind of resource; {expected(name, RESOURCES)}", name)
