"""The layers that every request passes, the outermost first."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import uuid_utils
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
from hyperfleet.observe.log import code, shown, span, trace_id
from hyperfleet.observe.metrics import UNKNOWN, Requests
from hyperfleet.observe.refusals import Refusals, Refused
from hyperfleet.observe.tracing import Tracing, parent_of

logger = logging.getLogger("hyperfleet.request")

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
MEDIA_TYPE = re.compile(rb"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
METHODS = (*cors.METHODS, "OPTIONS")
# Characters of an address in a trace.
LONGEST = 500
BODILESS = ("GET", "HEAD", "DELETE", "OPTIONS")
# Version, trace, parent and flags (https://www.w3.org/TR/trace-context/, 3.2).
TRACE_PARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

# What clients say of a body that nobody has told them the type of: curl the second, for example.
ANYTHING = (b"text/plain", b"application/x-www-form-urlencoded")

CUT_OFF = Problem(
    errors.BUSY,
    "The service is stopping and cut the request off; it may or may not have been carried out.",
    headers={"Connection": "close"},
)

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


class Logged:
    """Gives each request an id, and logs, counts and times its answer.

    :param share: how many of the requests that were not refused are logged, from 0 to 1
    :param farewell: ends at the end of the service what would go on for as long as its clients like
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
        # Set where traces are made, in each process.
        self.tracing: Tracing | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        start = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else str(uuid_utils.uuid7())
        token = trace_id.set(request_id)
        known = scope["method"] if scope["method"] in METHODS else ""
        traced = self._trace(known, scope, headers)
        # A request that was sent ahead on the same connection starts with what the last one left.
        identity.current.set("")
        tenants.current.set(None)
        status = size = 0
        # The layer that finds the route puts it in.
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
            # Who waits on purpose is not slow.
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
            trace_id.reset(token)

    def refused(self, client: str, status: int) -> None:
        """Counts and logs what was refused before it was a request."""
        self.requests.count("other", UNKNOWN, status, 0)
        more = {"method": "other", "path": UNKNOWN, "status": status, "client": client}
        logger.info("what arrived was not a request, or arrived too slowly: %d", status, extra=more)

    def _trace(self, method: str, scope: Scope, headers: Headers) -> Any:
        """The span of a request where traces are made; else what its client says of its own is noted."""
        if self.tracing is not None:
            where = _address(scope)[:LONGEST]
            return self.tracing.begin(method, where, scope.get("scheme", "http"), headers)
        parent = TRACE_PARENT.fullmatch(headers.get("traceparent", ""))
        span.set((parent[1], parent[2]) if parent else None)
        return None


def _address(scope: Scope) -> str:
    """The path of a request, as it may be shown."""
    # The address of a resource has none of these; what has them may hold a secret.
    where = scope["path"]
    where = shown(where) if "=" in where or ":" in where else where
    return quote(where, safe="/*")


def _log(scope: Scope, headers: Headers, answered: Mapping[str, Any], codes: Sequence[str]) -> None:
    """Writes the line of a request.

    :param answered: how, and in what time
    :param codes: of errors, if there were any
    """
    said = scope["method"], _address(scope), answered["status"], answered["duration_ms"]
    more = {
        **answered,
        "client": (scope.get("client") or ("",))[0],
        "user_agent": shown(headers.get("user-agent", "")[:200]),
    }
    if codes:
        more["code"] = codes[0]
    logger.info("%s %s %d %.1f ms", *said, extra=more)


class Browsers:
    """Tells browsers what not to do with an answer, unless the answer says so itself."""

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
    """Turns every exception into one kind of error, unless an answer was begun already.

    :param routes: the paths of the contract
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
            # The service stops, and waits no longer.
            if begun:
                raise
            await send_problem(CUT_OFF, scope, answer)

    def _told(self, problem: Problem, scope: Scope) -> Problem:
        """The problem, with what the contract knows of the path that was asked for."""
        path = scope["path"].rstrip("/")
        fits = (route.methods for route in self.routes if route.pattern.fullmatch(path))
        if problem.entry.status == 405:
            # The router knows the methods of one route; the contract knows the path's.
            allow = ", ".join(sorted(next(fits, {"GET": [], "HEAD": []})))
            detail = f"{scope['method'][:20]} is not possible here; use one of: {allow}."
            return Problem(errors.BAD_METHOD, detail, headers={"Allow": allow})
        if problem.entry.status == 415:
            # With its parameters: the charset may be what is wrong.
            sent = Headers(scope=scope).get("content-type", "").strip()[:100]
            taken = " and ".join(next(fits, {}).get(scope["method"], ())) or "no body"
            detail = f"The body was sent as {sent!r}; this operation accepts {taken}, in UTF-8."
            return Problem(errors.UNSUPPORTED_TYPE, detail)
        return problem


class Plain:
    """Evens out what the contract does not distinguish: a slash at the end, HEAD and GET, the spelling
    of a media type.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. Raises Problem for a path or a type that there is not."""
        plain = dict(scope)
        path = scope["path"]
        if "//" in path or CONTROL.search(path):
            # Routers disagree about these, and no resource is there.
            raise Problem(errors.NO_PATH)
        if path.endswith("/") and not path.startswith(f"{UI}/"):
            plain["path"] = path.rstrip("/") or "/"
            plain["raw_path"] = scope.get("raw_path", b"").rstrip(b"/") or b"/"
        plain["headers"], plain[UNSURE] = _plain_headers(scope["headers"], scope["method"])
        if scope["method"] == "HEAD":
            # The server leaves the body of the answer out.
            plain["method"], plain[HEAD] = "GET", True
        query: bytes = scope["query_string"]
        if not query.isascii():
            plain["query_string"] = b"".join(
                b"%%%02X" % byte if byte > 127 else bytes([byte]) for byte in query
            )
        await self.app(plain, receive, send)


def _plain_headers(
    headers: Sequence[tuple[bytes, bytes]], method: str
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """The headers with a media type in the spelling that everybody knows, without one where there is no
    body to have one; and whether the body may be something else than the JSON that it is taken for.
    """
    plain, unsure = [], False
    for name, value in headers:
        if name != b"content-type":
            plain.append((name, value))
            continue
        kind, semicolon, rest = value.partition(b";")
        kind = kind.strip().lower()
        if kind in ANYTHING:
            # Their charset is one that nobody has told them either, as a library's for texts.
            unsure, kind, semicolon, rest = True, b"application/json", b"", b""
        if MEDIA_TYPE.fullmatch(kind):
            plain.append((name, kind + semicolon + rest))
        elif kind and method not in BODILESS:
            raise Problem(errors.UNSUPPORTED_TYPE)
    return plain, unsure


class Page(NamedTuple):
    """An answer that is always the same.

    :param zipped: the content compressed, for who takes that
    """

    status: int
    headers: dict[str, str]
    content: bytes
    zipped: bytes = b""


class Pages:
    """Answers at once what is always the same.

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
        if tag and (known.star_tag or known.contains_weak(tag.strip('"'))):
            await send_bytes(send, 304, b"", {"etag": tag})
        elif page.zipped and takes_gzip(scope):
            headers = {**page.headers, "content-encoding": "gzip"}
            await send_bytes(send, page.status, page.zipped, headers)
        else:
            await send_bytes(send, page.status, page.content, page.headers)
