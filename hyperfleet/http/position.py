"""The position that lets a client read its own writes, whichever server answers."""

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Methods that change nothing.
READING = ("GET", "HEAD", "OPTIONS")
# Statuses about what others have written, which the client may want to read next.
CONFLICTS = (409, 412)


class Positioned:
    """Adds ``Hyperfleet-Position`` to responses to writes.

    :param app: the API
    :param written: returns a position that is not before any acknowledged write
    """

    def __init__(self, app: ASGIApp, written: Callable[[], Awaitable[str]]) -> None:
        self.app, self.written = app, written

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["method"] in READING:
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and (
                message["status"] < 300 or message["status"] in CONFLICTS
            ):
                position = (await self.written()).encode()
                message["headers"] = [*message["headers"], (b"hyperfleet-position", position)]
            await send(message)

        await self.app(scope, receive, answer)
