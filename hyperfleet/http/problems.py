"""Errors of every layer, as the one object that clients receive (RFC 9457)."""

import json
import logging
from collections.abc import Mapping
from urllib.parse import quote

import psycopg
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Scope, Send

from hyperfleet import errors
from hyperfleet.auth.identity import request_id
from hyperfleet.database import connection
from hyperfleet.errors import Problem
from hyperfleet.observe.log import code, trace_id

logger = logging.getLogger("hyperfleet.request")

# Statuses without a body, and without a Content-Length (RFC 9110, 8.6).
STATUSES_WITHOUT_BODY = (204, 304)

NOT_MIGRATED = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    # While a dump is being restored, before the constraints that a statement names or needs exist.
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidColumnReference,
)

# Failures of statements that may succeed when retried.
BLOCKED = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)


def explain(error: Exception) -> Problem:  # noqa: PLR0911 (one line for each kind of error)
    """Returns the problem that an exception of any layer is reported as."""
    if isinstance(error, Problem):
        return error
    # Starlette's exceptions, which Connexion's are derived from.
    if isinstance(error, HTTPException):
        if error.status_code == 401:
            # Connexion found no token to check.
            return errors.refusal(errors.NO_TOKEN)
        if error.status_code == 404:
            return Problem(errors.NO_PATH)
        if error.status_code == 405:
            return Problem(errors.BAD_METHOD)
        if 400 <= error.status_code < 500:
            return Problem(errors.BAD_REQUEST, error.detail or "")
    if connection.busy(error) or isinstance(error, BLOCKED):
        return Problem(errors.BUSY)
    if connection.unable(error) or isinstance(error, NOT_MIGRATED):
        sort = type(connection.cause(error)).__name__
        logger.warning("database: %s: %s", sort, connection.reason(error))
        return Problem(errors.NO_DATABASE, _what_lacks(error))
    logger.error("an unexpected error", exc_info=error)
    return Problem(errors.INTERNAL)


def _what_lacks(error: Exception) -> str:
    """Returns what to tell clients about a database that cannot work; empty if it is unreachable."""
    if isinstance(error, NOT_MIGRATED):
        return "The database's schema is not up to date."
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return "The database is read-only at present; try again later."
    if connection.refused(error):
        return "The database refuses connections at present; try again later."
    return "" if connection.absent(error) else "The database cannot do this at present; try again later."


def render(problem: Problem, path: str, accept: str) -> tuple[bytes, dict[str, str]]:
    """Returns the body and headers of a problem, and notes its code for the log.

    The type is ``application/json`` if ``accept`` names that and not ``application/problem+json``.
    """
    told = code.get()
    if told is not None:
        told.append(problem.entry.code)
    accepted = {one.partition(";")[0].strip() for one in accept.lower().split(",")}
    old = "application/json" in accepted and "application/problem+json" not in accepted
    media_type = "application/json" if old else "application/problem+json"
    body = json.dumps(problem.document(quote(path), trace_id.get() or request_id.get())).encode()
    return body, {"content-type": media_type, **problem.headers}


async def send_problem(problem: Problem, scope: Scope, send: Send) -> None:
    """Sends a problem."""
    body, headers = render(problem, scope["path"], Headers(scope=scope).get("accept", ""))
    await send_bytes(send, problem.entry.status, body, headers)


async def send_bytes(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """Sends a response with its whole body."""
    pairs = encoded(status, headers, body)
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def encoded(status: int, headers: Mapping[str, str], body: object = None) -> list[tuple[bytes, bytes]]:
    """Returns the headers of a response for ASGI, with the length of the body if that is known."""
    pairs = [
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()
    ]
    if isinstance(body, bytes) and status not in STATUSES_WITHOUT_BODY:
        pairs.append((b"content-length", b"%d" % len(body)))
    return pairs
