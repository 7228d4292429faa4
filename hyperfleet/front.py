"""The outermost layer of the application: what holds for every request, whatever it asks for.

It gives each request an id, evens out what the contract does not distinguish (a slash at the end,
HEAD and GET), bounds the head and the body, turns every exception into one kind of error, tells
browsers what not to do with an answer, and logs a line.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

import psycopg
import starlette.exceptions
import uuid_utils
import werkzeug.exceptions
from connexion.exceptions import OAuthProblem, ProblemException, UnsupportedMediaTypeProblem
from prometheus_client import Counter
from psycopg_pool import PoolTimeout
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from werkzeug.http import parse_etags

from hyperfleet import database, errors, identity
from hyperfleet.contract.document import Route
from hyperfleet.errors import Problem
from hyperfleet.log import trace_id
from hyperfleet.protocol import Limits
from hyperfleet.validation import UNSURE

logger = logging.getLogger("hyperfleet.request")

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MEDIA_TYPE = re.compile(rb"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

HTTP_ERRORS = (
    starlette.exceptions.HTTPException,
    ProblemException,
    werkzeug.exceptions.HTTPException,
)
NOT_MIGRATED = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
)

# What a statement ran into that may be over the next time.
BLOCKED = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)

# What clients say of a body that nobody has told them the type of: curl the second, for example.
ANYTHING = (b"text/plain", b"application/x-www-form-urlencoded")

CUT_OFF = Problem(
    errors.BUSY,
    "The service stops before the request is done; it may have been carried out or not.",
    headers={"Connection": "close"},
)

# A client that is told that its body is too large is listened to for this many times the limit: it
# would miss the answer if the connection closed while it was sending.
PATIENCE = 16


# What a browser must not do with an answer: guess its type, show it in a frame, run anything of it,
# keep it, or tell others its address.
SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
DATA = [
    *SECURITY,
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]
# The page of Swagger UI has a script and a style in it, and loads the rest from here.
PAGE = [
    *SECURITY,
    (
        b"content-security-policy",
        b"default-src 'none'; connect-src 'self'; img-src 'self' data:; font-src 'self' data:; "
        b"style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; base-uri 'none'; "
        b"form-action 'none'; frame-ancestors 'none'",
    ),
]
# A year, as is usual; only said where it is true already (RFC 6797, 7.2).
HSTS = (b"strict-transport-security", b"max-age=31536000")


class Page(NamedTuple):
    """An answer that is always the same."""

    status: int
    headers: dict[str, str]
    content: bytes


class Front:
    """The application in its outermost layer.

    :param app: what is inside
    :param routes: the paths of the contract
    :param pages: what is answered here at once, by path
    :param limits: what a request may cost
    :param answers: counts all answers, by method and status
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[Route],
        pages: dict[str, Page],
        limits: Limits,
        answers: Counter,
    ) -> None:
        self.app = app
        self.routes = routes
        self.pages = pages
        self.limits = limits
        self.answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. An error becomes an answer, unless an answer was begun already."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else str(uuid_utils.uuid7())
        token = trace_id.set(request_id)
        # A request that was sent ahead on the same connection starts with what the last one left.
        identity.current.set("")
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    *_for_browsers(scope, message["headers"]),
                ]
            await send(message)

        try:
            await self._handle(self._plain(scope), self._timed(receive), answer)
        except Exception as error:
            if status:
                raise
            await send_problem(self._explain(error, scope), scope, answer)
        except asyncio.CancelledError:
            # The service stops, and waits no longer.
            if status:
                raise
            await send_problem(CUT_OFF, scope, answer)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.answers.labels(method, status).inc()
            logger.info(
                "%s %s %d %.1f ms",
                scope["method"],
                quote(scope["path"]),
                status,
                (time.perf_counter() - start) * 1000,
            )
            trace_id.reset(token)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = len(scope.get("raw_path", b"")) + len(scope["query_string"])
        if size + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self.limits.head:
            detail = f"The address and the headers must have at most {self.limits.head} bytes."
            raise Problem(errors.HEADERS_TOO_LARGE, detail)
        page = self.pages.get(scope["path"])
        if page is not None:
            if scope["method"] != "GET":
                raise Problem(errors.BAD_METHOD)
            tag = page.headers.get("etag", "")
            known = parse_etags(Headers(scope=scope).get("if-none-match"))
            if tag and (known.star_tag or known.contains_weak(tag.strip('"'))):
                await _send(send, 304, b"", {"etag": tag})
            else:
                await _send(send, page.status, page.content, page.headers)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self.limits.body:
            await self._drain(receive)
            raise self._too_large()
        await self.app(scope, self._bounded(receive), send)

    def _timed(self, receive: Receive) -> Receive:
        end = asyncio.get_running_loop().time() + self.limits.time
        whole = False

        async def timed() -> Message:
            nonlocal whole
            if whole:
                # Nothing more is to come but the end of the connection, for which a handler may wait.
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                headers = {"Connection": "close"}
                raise Problem(errors.TOO_SLOW, headers=headers) from None
            whole = not message.get("more_body", False)
            return message

        return timed

    def _bounded(self, receive: Receive) -> Receive:
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limits.body:
                if message.get("more_body"):
                    await self._drain(receive)
                raise self._too_large()
            return message

        return bounded

    async def _drain(self, receive: Receive) -> None:
        left = self.limits.body * PATIENCE
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b"")) or 1
            if not message.get("more_body"):
                return

    def _too_large(self) -> Problem:
        return Problem(errors.TOO_LARGE, f"The body must have at most {self.limits.body} bytes.")

    def _explain(self, error: Exception, scope: Scope) -> Problem:
        problem = explain(error)
        path = scope["path"].rstrip("/")
        fits = (route.methods for route in self.routes if route.pattern.fullmatch(path))
        if problem.entry.status == 405:
            # The router knows the methods of one route; the contract knows the path's.
            allow = ", ".join(sorted(next(fits, {"GET": [], "HEAD": []})))
            detail = f"{scope['method'][:20]} is not possible here; these methods are: {allow}."
            return Problem(errors.BAD_METHOD, detail, headers={"Allow": allow})
        if problem.entry.status == 415:
            sent = Headers(scope=scope).get("content-type", "").partition(";")[0].strip()[:100]
            taken = " and ".join(next(fits, {}).get(scope["method"], ())) or "no body"
            detail = f"The body was sent as {sent!r}; this operation takes {taken}, in UTF-8."
            return Problem(errors.UNSUPPORTED_TYPE, detail)
        return problem

    def _plain(self, scope: Scope) -> Scope:
        """The request without the differences that do not count."""
        plain = dict(scope)
        path = scope["path"]
        if "//" in path or CONTROL.search(path):
            # Routers disagree about these, and no resource is there.
            raise Problem(errors.NO_PATH)
        plain["headers"] = [
            (name, _media_type(value, scope["method"]) if name == b"content-type" else value)
            for name, value in scope["headers"]
        ]
        if (b"content-type", b"") in plain["headers"]:
            plain["headers"].remove((b"content-type", b""))
        kind, semicolon, rest = dict(plain["headers"]).get(b"content-type", b"").partition(b";")
        plain[UNSURE] = kind in ANYTHING
        if plain[UNSURE]:
            json_type = b"application/json" + semicolon + rest
            plain["headers"] = [
                (name, json_type if name == b"content-type" else value)
                for name, value in plain["headers"]
            ]
        if path.endswith("/") and not path.startswith("/openapi-ui/"):
            plain["path"] = path = path.rstrip("/") or "/"
            plain["raw_path"] = scope.get("raw_path", b"").rstrip(b"/") or b"/"
        if scope["method"] == "HEAD":
            # The server leaves the body of the answer out.
            plain["method"] = "GET"
        query: bytes = scope["query_string"]
        if not query.isascii():
            plain["query_string"] = b"".join(
                b"%%%02X" % byte if byte > 127 else bytes([byte]) for byte in query
            )
        return plain


def explain(error: Exception) -> Problem:  # noqa: PLR0911 (one line for each kind of error)
    """The problem that an exception of any layer is shown as."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, UnsupportedMediaTypeProblem):
        return Problem(errors.UNSUPPORTED_TYPE)
    if isinstance(error, HTTP_ERRORS):
        # Starlette, Connexion and Werkzeug each have a word of their own for it.
        names = ("status_code", "status", "code")
        status = next((getattr(error, name) for name in names if getattr(error, name, None)), 500)
        if status == 401:
            return _unauthorized(error)
        if status == 404:
            return Problem(errors.NO_PATH)
        if status == 405:
            return Problem(errors.BAD_METHOD)
        if 400 <= status < 500:
            return Problem(errors.BAD_REQUEST, str(getattr(error, "detail", None) or ""))
    busy = isinstance(error, PoolTimeout) and error.__cause__ is None
    if busy or isinstance(error, BLOCKED):
        return Problem(errors.BUSY)
    if database.unable(error) or isinstance(error, NOT_MIGRATED):
        reason = error.__cause__ if isinstance(error, PoolTimeout) else error
        logger.warning("database: %s: %s", type(reason).__name__, " ".join(str(reason).split()))
        return Problem(errors.NO_DATABASE, _what_lacks(error))
    logger.error("an unexpected error", exc_info=error)
    return Problem(errors.INTERNAL)


def _what_lacks(error: Exception) -> str:
    """What a client is told of a database that can't do its work; nothing of one that is away."""
    if isinstance(error, NOT_MIGRATED):
        return "The database's schema is not up to date."
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return "The database is read-only at present; try again later."
    if database.refused(error):
        return "The database takes no connection at present; try again later."
    return "" if database.absent(error) else "The database can't do this at present; try again later."


def _unauthorized(error: Exception) -> Problem:
    """What Connexion finds before it asks the verifier: no token, or half a header."""
    if isinstance(error, OAuthProblem) and "Invalid" in (error.detail or ""):
        return errors.refusal(errors.INVALID_TOKEN, "The Authorization header has no token.")
    return errors.refusal(errors.NO_TOKEN)


def _media_type(value: bytes, method: str) -> bytes:
    """A media type in the spelling that everybody knows; empty where there is no body to have one."""
    kind, semicolon, rest = value.partition(b";")
    kind = kind.strip().lower()
    if MEDIA_TYPE.fullmatch(kind):
        return kind + semicolon + rest
    if not kind or method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        return b""
    raise Problem(errors.UNSUPPORTED_TYPE)


def render(problem: Problem, path: str, accept: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a problem: ``application/json`` for a client that asks for that alone."""
    accepted = {one.partition(";")[0].strip() for one in accept.lower().split(",")}
    old = "application/json" in accepted and "application/problem+json" not in accepted
    media_type = "application/json" if old else "application/problem+json"
    body = json.dumps(problem.document(quote(path), trace_id.get())).encode()
    return body, {"content-type": media_type, **problem.headers}


async def send_problem(problem: Problem, scope: Scope, send: Send) -> None:
    """Sends a problem."""
    body, headers = render(problem, scope["path"], Headers(scope=scope).get("accept", ""))
    await _send(send, problem.entry.status, body, headers)


async def _send(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    pairs = [
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()
    ]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _for_browsers(scope: Scope, given: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that an answer has for browsers, but those that it has given itself."""
    headers = PAGE if scope["path"].startswith("/openapi-ui") else DATA
    if scope.get("scheme") == "https":
        headers = [*headers, HSTS]
    names = {name.lower() for name, _ in given}
    return [header for header in headers if header[0] not in names]
