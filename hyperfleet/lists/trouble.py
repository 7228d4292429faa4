"""What is wrong with a search, as far as only the database can tell, or with the name of a kind."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from hyperfleet.errors import BAD_SEARCH, Problem, bad_parameter
from hyperfleet.kinds import RESOURCES
from hyperfleet.nearest import nearest


@contextmanager
def searching(searched: bool, timeout: float) -> Iterator[None]:
    """Raises Problem for a search that the database refuses within the block.

    :param searched: whether there is one, which may be what takes too long
    :param timeout: seconds after which a statement is ended
    """
    began = time.monotonic()
    try:
        yield
    except psycopg.errors.InvalidRegularExpression as error:
        raise bad_search(f"the regular expression is not valid: {error.diag.message_primary}") from None
    except psycopg.errors.InternalError_ as error:
        # What of a regular expression does not fit into what PostgreSQL allots at once; it tells that in
        # no other language.
        if not searched or "memory alloc" not in (error.diag.message_primary or ""):
            raise
        raise bad_search("the regular expression is too complex") from None
    except psycopg.errors.QueryCanceled:
        # An operator may cancel a statement too; the server says which it was in its own language only.
        if not searched or time.monotonic() - began < timeout:
            raise
        raise bad_search("takes too long; narrow it, or search by indexed fields") from None


def bad_search(message: str) -> Problem:
    """The error of a search that cannot be understood, or carried out."""
    return Problem(BAD_SEARCH, faults=[{"field": "search", "message": message, "constraint": "search"}])


def unknown_kind(name: str) -> Problem:
    """The error of a parameter ``kind`` that names none."""
    near = nearest(name, RESOURCES)
    other = f"did you mean {near}?" if near else f"expected one of {', '.join(RESOURCES)}"
    return bad_parameter("kind", f"is not a kind of resource; {other}", name)
