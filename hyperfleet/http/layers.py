"""The layers that every request passes through, outermost first."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from werkzeug.http import parse_etags

from hyperfleet import errors
from hyperfleet.auth import identity, tenants
from hyperfleet.contract.document import Route
from hyperfleet.contract.validation import UNSURE
from hyperfleet.errors import Problem
from hyperfleet.http import cors
from hyperfleet.http.aside import ASIDE, Aside
from hyperfleet.http.bridge import HEAD
from hyperfleet.http.compression import takes_gzip
from hyperfleet.http.problems import explain, send_bytes, send_problem
from hyperfleet.http.routing import ROUTE, UI
from hyperfleet.observe.log import code, span, without_secrets
from hyperfleet.observe.metrics import UNKNOWN, Requests
from hyperfleet.observe.refusals import Refusals, Refused
from hyperfleet.observe.tracing import Tracing, parent_of

logger = logging.getLogger("hyperfleet.request")

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MEDIA_TYPE = re.compile(rb"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
METHODS = (*cors.METHODS, "OPTIONS")
# The maximum number of characters of a path in a trace.
LONGEST = 500
METHODS_WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS")
# Version, trace, parent and flags (https://www.w3.org/TR/trace-context/, 3.2).
TRACE_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")

# Media types that clients send when nobody has set one; curl sends the second, for example.
ANYTHING = (b"text/plain", b"application/x-www-form-urlencoded")

CUT_OFF = Problem(
    errors.BUSY,
    "The service is shutting down and aborted the request, which may or may not have been carried out.",
    headers={"Connection": "close"},
)

# What a browser must not do with a response: guess its type, show it in a frame, run anything in it,
# store it, or tell other sites its address.
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
# The Swagger UI page contains an inline script and style, and loads the rest from this server.
PAGE = [
    *SECURITY,
    (
        b"content-security-policy",
        b"default-src 'none'; connect-src 'self'; img-src 'self' data:; font-src 'self' data:; "
        b"style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; base-uri 'none'; "
        b"form-action 'none'; frame-ancestors 'none'",
    ),
]
# A year, as is usual. Only sent over HTTPS (RFC 6797, 7.2).
HSTS = (b"strict-transport-security", b"max-age=31536000")


class Logged:
    """Gives each request an id, and logs, counts and times its response.

    :param share: the fraction of requests answered without an error that is logged, from 0 to 1
    :param farewell: called when the service stops, to end responses that could go on indefinitely
    """

    def __init__(
        self,
        app: ASGIApp,
        requests: Requests,
        refusals: Refusals,
        share: float,
        farewell: Callable[[], object],
    ) -> None:
        self.app = app
        self.requests, self.refusals = requests, refusals
        self.share, self.farewell = share, farewell
        # Set in each process if tracing is enabled.
        self.tracing: Tracing | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        start = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = identity.id_of(scope)
        token = identity.request_id.set(request_id)
        known = scope["method"] if scope["method"] in METHODS else ""
        traced = self._trace(known, scope, headers)
        # A pipelined request starts with the context of the previous one on its connection.
        identity.current.set("")
        tenants.current.set(None)
        status = size = 0
        # Filled in by the layer that finds the route.
        route: list[str] = []
        scope[ROUTE] = route
        aside = scope[ASIDE] = Aside()
        codes: list[str] = []
        code.set(codes)

        async def answer(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if traced is not None:
                    message["headers"].append((b"traceparent", parent_of(traced).encode()))
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            # Time spent waiting on purpose does not count.
            taken = (aside.since or time.perf_counter()) - start
            method = known or "other"
            path = route[0] if route else UNKNOWN
            self.requests.count(method, path, status, taken)
            if traced is not None and self.tracing is not None:
                self.tracing.end(traced, known, "".join(route[:1]), status)
            if codes:
                by = (identity.current.get(), request_id, tenants.current.get())
                self.refusals.saw(Refused(method, path, scope["path"], status, codes[0], *by))
            if logger.isEnabledFor(logging.INFO) and (
                self.share >= 1 or status >= 400 or random.random() < self.share  # noqa: S311
            ):
                answered = {"method": method, "path": path, "status": status}
                answered |= {"duration_ms": round(taken * 1000, 3), "bytes": size}
                _log(scope, headers, answered, codes)
            identity.request_id.reset(token)

    def refused(self, client: str, status: int) -> None:
        """Counts and logs input that was refused before it became a request."""
        self.requests.count("other", UNKNOWN, status, 0)
        more = {"method": "other", "path": UNKNOWN, "status": status, "client": client}
        logger.info(
            "refused input that was not a valid request or arrived too slowly: %d", status, extra=more
        )

    def _trace(self, method: str, scope: Scope, headers: Headers) -> Any:
        """Returns the span of a request if it is traced; else notes its traceparent for the log."""
        if self.tracing is not None:
            where = _address(scope)[:LONGEST]
            return self.tracing.begin(method, where, scope.get("scheme", "http"), headers)
        parent = TRACE_PARENT.fullmatch(headers.get("traceparent", ""))
        span.set((parent[1], parent[2]) if parent else None)
        return None


def _address(scope: Scope) -> str:
    """Returns the path of a request, percent-encoded and without secrets."""
    # Paths of resources contain neither character; other paths that do may contain a secret.
    where = scope["path"]
    where = without_secrets(where) if "=" in where or ":" in where else where
    return quote(where, safe="/*")


def _log(scope: Scope, headers: Headers, answered: Mapping[str, Any], codes: Sequence[str]) -> None:
    """Writes the log line of a request.

    :param answered: its method, path, status, duration and size
    :param codes: the codes of its errors, if any
    """
    said = scope["method"], _address(scope), answered["status"], answered["duration_ms"]
    more = {
        **answered,
        "client": (scope.get("client") or ("",))[0],
        "user_agent": without_secrets(headers.get("user-agent", "")[:200]),
    }
    if codes:
        more["code"] = codes[0]
    logger.info("%s %s %d %.1f ms", *said, extra=more)


class Browsers:
    """Adds the headers for browsers, except those that the response already has."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        headers = PAGE if scope["path"].startswith(UI) else DATA
        if scope.get("scheme") == "https":
            headers = [*headers, HSTS]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                more = [header for header in headers if header[0] not in names]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await self.app(scope, receive, answer)


class Errors:
    """Turns every exception into a problem response, unless a response has already begun.

    :param routes: the routes of the contract
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self.app = app
        self.routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as error:
            if begun:
                raise
            await send_problem(self._told(explain(error), scope), scope, answer)
        except asyncio.CancelledError:
            # The service is stopping and no longer waits for the request.
            if begun:
                raise
            await send_problem(CUT_OFF, scope, answer)

    def _told(self, problem: Problem, scope: Scope) -> Problem:
        """Returns the problem, completed with what the contract says about the requested path."""
        path = scope["path"].rstrip("/")
        fits = (route.methods for route in self.routes if route.pattern.fullmatch(path))
        if problem.entry.status == 405:
            # The router knows the methods of one route only; the contract knows all of the path's.
            allow = ", ".join(sorted(next(fits, {"GET": [], "HEAD": []})))
            detail = f"{scope['method'][:20]} is not possible here; use one of: {allow}."
            return Problem(errors.BAD_METHOD, detail, headers={"Allow": allow})
        if problem.entry.status == 415:
            # Includes the parameters, since the charset may be what is wrong.
            sent = Headers(scope=scope).get("content-type", "").strip()[:100]
            taken = " and ".join(next(fits, {}).get(scope["method"], ())) or "no body"
            detail = f"The body was sent as {sent!r}; this operation accepts {taken}, in UTF-8."
            return Problem(errors.UNSUPPORTED_TYPE, detail)
        return problem


class Plain:
    """Evens out what the contract does not distinguish: trailing slashes, HEAD, media type spelling."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. Raises Problem for a path or a media type that cannot exist."""
        plain = dict(scope)
        path = scope["path"]
        if "//" in path or CONTROL.search(path):
            # Routers disagree about such paths, and no resource has one.
            raise Problem(errors.NO_PATH)
        if path.endswith("/") and not path.startswith(f"{UI}/"):
            plain["path"] = path.rstrip("/") or "/"
        plain["headers"], plain[UNSURE] = _plain_headers(scope["headers"], scope["method"])
        if scope["method"] == "HEAD":
            # The server omits the body of the response.
            plain["method"], plain[HEAD] = "GET", True
        await self.app(plain, receive, send)


def _plain_headers(
    headers: Sequence[tuple[bytes, bytes]], method: str
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Returns headers with a normalized media type, and whether the body may be other than JSON.

    Drops an empty type; also an invalid one if the method has no body, otherwise raises Problem.
    """
    plain, unsure = [], False
    for name, value in headers:
        if name != b"content-type":
            plain.append((name, value))
            continue
        kind, semicolon, rest = value.partition(b";")
        kind = kind.strip().lower()
        if kind in ANYTHING:
            # Nobody has chosen their charset either; libraries set one for text.
            unsure, kind, semicolon, rest = True, b"application/json", b"", b""
        if MEDIA_TYPE.fullmatch(kind):
            plain.append((name, kind + semicolon + rest))
        elif kind and method not in METHODS_WITHOUT_BODY:
            raise Problem(errors.UNSUPPORTED_TYPE)
    return plain, unsure


class Page(NamedTuple):
    """A response that is always the same.

    :param zipped: the compressed content, for clients that accept gzip
    """

    status: int
    headers: dict[str, str]
    content: bytes
    zipped: bytes = b""


class Pages:
    """Serves fixed pages without passing the request on.

    :param pages: by path; may be changed while they are served
    """

    def __init__(self, app: ASGIApp, pages: dict[str, Page]) -> None:
        self.app = app
        self.pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        page = self.pages.get(scope["path"])
        if page is None:
            await self.app(scope, receive, send)
            return
        scope[ROUTE].append(scope["path"])
        if scope["method"] != "GET":
            raise Problem(errors.BAD_METHOD)
        tag = page.headers.get("etag", "")
        known = parse_etags(Headers(scope=scope).get("if-none-match"))
        if tag and known.contains_weak(tag.strip('"')):
            await send_bytes(send, 304, b"", {"etag": tag})
        elif page.zipped and takes_gzip(scope):
            headers = {**page.headers, "content-encoding": "gzip"}
            await send_bytes(send, page.status, page.zipped, headers)
        else:
            await send_bytes(send, page.status, page.content, page.headers)
