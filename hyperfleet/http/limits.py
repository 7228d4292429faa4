"""Limits of a request: bytes of its head and its body, and the time that it takes to arrive."""

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperfleet import errors
from hyperfleet.errors import Problem
from hyperfleet.settings.catalogue import Settings

# If a body is too large, up to this many times the limit is read and discarded: a client would miss the
# response if the connection closed while it was still sending.
DRAINED = 16


class Limited:
    """Passes on requests within the limits of the settings. Raises Problem for others."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.head, self.body = settings.max_header_size, settings.max_body_size
        self.time = settings.read_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        size = len(scope.get("raw_path", b"")) + len(scope["query_string"])
        if size + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self.head:
            detail = f"The address and the headers must have at most {self.head} bytes."
            raise Problem(errors.HEADERS_TOO_LARGE, detail)
        timed = self._timed(receive)
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.body:
            if headers.get("expect", "").lower() == "100-continue":
                # The client waits for 100 (Continue) before it sends the body, and does not get it.
                raise self._too_large({"Connection": "close"})
            await self._drain(timed)
            raise self._too_large()
        await self.app(scope, self._bounded(timed), send)

    def _timed(self, receive: Receive) -> Receive:
        end = asyncio.get_running_loop().time() + self.time
        whole = False

        async def timed() -> Message:
            nonlocal whole
            if whole:
                # Only the end of the connection can follow, and a handler may wait for that.
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
            if size > self.body:
                if message.get("more_body"):
                    await self._drain(receive)
                raise self._too_large()
            return message

        return bounded

    async def _drain(self, receive: Receive) -> None:
        left = self.body * DRAINED
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b"")) or 1
            if not message.get("more_body"):
                return

    def _too_large(self, headers: Mapping[str, str] | None = None) -> Problem:
        detail = f"The body must have at most {self.body} bytes."
        return Problem(errors.TOO_LARGE, detail, headers=headers)
