"""What lets the next request of who has written see what was written, whichever server answers it."""

from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Methods that change nothing.
READING = ("GET", "HEAD", "OPTIONS")
# Whoever is told of what others have written may want to see it.
CONFLICTS = (409, 412)


class Positioned:
    """Adds ``Hyperfleet-Position`` to the answers of writes.

    :param app: the API
    :param written: a position that all acknowledged writes are before
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
