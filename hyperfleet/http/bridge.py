"""The bridge from ASGI to the handlers, which run within a Flask request but without a thread."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import flask
from a2wsgi.wsgi import build_environ
from flask.sessions import NullSession
from starlette.types import Receive, Scope, Send

from hyperfleet import errors
from hyperfleet.contract.validation import CALL
from hyperfleet.engine import greenlets
from hyperfleet.engine.response import Later, Response
from hyperfleet.errors import Problem
from hyperfleet.http.aside import ASIDE
from hyperfleet.http.problems import encoded, explain, render

logger = logging.getLogger(__name__)

# The scope's key that marks a HEAD request, which is routed as GET.
HEAD = "hyperfleet.head"

# How many pieces of large responses are made at once, so that those that are read quickly leave memory
# and connections to other requests.
PIECES = 2

# Bytes of a stream that are sent at once. Many clients may get the same stream, and the unread part is
# copied for each.
SLICE = 32768

Headers: TypeAlias = list[tuple[bytes, bytes]]


class Bridge:
    """Calls the function of an operation, in a greenlet and within a Flask request context.

    Connexion has already found the operation and validated its arguments, so Flask's routing and
    Connexion's parameter binding, which would repeat that, are skipped.

    :param application: the Flask application whose requests they are
    """

    def __init__(self, application: flask.Flask) -> None:
        self.application = application
        self.pieces = asyncio.Semaphore(PIECES)
        # Flask's routing and its sessions are not used.
        application.create_url_adapter = lambda _request: None  # type: ignore[method-assign, assignment]
        none = NullSession()
        application.session_interface.open_session = lambda *_: none  # type: ignore[method-assign]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. Raises Problem if there is no operation."""
        if CALL not in scope:
            raise Problem(errors.NO_PATH)
        environ: Any = build_environ(scope, io.BytesIO())  # type: ignore[arg-type]
        status, headers, content = await greenlets.run(self._answer, environ, *scope[CALL])
        if isinstance(content, Later) and content.pieces is not None and scope.get(HEAD):
            # The pieces may never end, and the next request of the connection would wait for them.
            content = iter(())
        if isinstance(content, Later):
            scope[ASIDE].step()
            gone = asyncio.create_task(_gone(receive))
            try:
                if content.pieces is not None:
                    await self._follow(status, headers, content.pieces, gone, send)
                    return
                found = await self._awaited(content, environ, gone)
            finally:
                gone.cancel()
            if found is None:
                return
            status, headers, content = found
        if not isinstance(content, bytes):
            if scope["http_version"] != "1.0" or scope.get(HEAD):
                pieces = iter(()) if scope.get(HEAD) else content
                await self._stream(status, headers, pieces, receive, send)
                return
            # HTTP/1.0 has no chunked encoding, so the length must be known.
            content = await greenlets.run(b"".join, content)
            headers += encoded(status, {}, content)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _stream(
        self, status: int, headers: Headers, content: Iterator[bytes], receive: Receive, send: Send
    ) -> None:
        """Sends a response in pieces, each made once the client has taken the previous one."""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        gone = asyncio.create_task(_gone(receive))
        try:
            while True:
                # The server only notices that the client is slow when the loop runs.
                await asyncio.sleep(0)
                # Waits until the client has taken what was sent before.
                await send({"type": "http.response.body", "body": b"", "more_body": True})
                async with self.pieces:
                    if gone.done():
                        # Returns without the end, so that the part sent so far does not look complete.
                        return
                    piece = await greenlets.run(next, content, None)
                    if piece is None:
                        break
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    del piece
        except Exception as error:
            # The head has been sent. The missing end tells the client that the response is incomplete.
            logger.warning("an answer was cut off: %s", explain(error))
            return
        finally:
            gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _awaited(
        self, later: Later, environ: dict[str, Any], gone: asyncio.Task[None]
    ) -> tuple[int, Headers, bytes] | None:
        """Waits for the body of a response, and returns None if the client goes away first."""
        assert later.body is not None
        found = asyncio.ensure_future(later.body())
        try:
            await asyncio.wait([found, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not found.done():
                found.cancel()
        if found.cancelled() or not found.done():
            return None
        try:
            content = found.result()
        except Exception as error:
            return _failed(error, environ)
        return 200, encoded(200, later.headers, content), content

    async def _follow(
        self,
        status: int,
        headers: Headers,
        pieces: AsyncIterator[bytes],
        gone: asyncio.Task[None],
        send: Send,
    ) -> None:
        """Sends the pieces of a response as they come, until they end or the client goes away."""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        following = asyncio.create_task(_sent(pieces, send))
        try:
            await asyncio.wait([following, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            following.cancel()
        if following.done() and not following.cancelled() and (error := following.exception()):
            # The missing end tells the client that the response is incomplete.
            logger.warning("an answer was cut off: %s", error)

    def _answer(
        self, environ: dict[str, Any], handler: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[int, Headers, bytes | Iterator[bytes] | Later]:
        try:
            with self.application.request_context(environ):
                answer: Response | Later = handler(**arguments)
            if isinstance(answer, Later):
                return 200, encoded(200, answer.headers), answer
            status, headers, content = answer
            return status, encoded(status, headers, content), content
        except Exception as error:
            # Rendered here, so that it is checked against the contract like every response.
            return _failed(error, environ)


def _failed(error: Exception, environ: dict[str, Any]) -> tuple[int, Headers, bytes]:
    problem = explain(error)
    content, headers = render(problem, environ["asgi.scope"]["path"], environ.get("HTTP_ACCEPT", ""))
    return problem.entry.status, encoded(problem.entry.status, headers, content), content


async def _sent(pieces: AsyncIterator[bytes], send: Send) -> None:
    async for piece in pieces:
        for at in range(0, len(piece), SLICE):
            # If the client is slow, the server notices when the loop runs, and send() then waits.
            await asyncio.sleep(0)
            part = piece[at : at + SLICE]
            await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    """Waits until the client has disconnected or cannot be read from any more."""
    with suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass
