"""The deadline of a request, whatever it waits for."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperfleet import errors
from hyperfleet.errors import Problem
from hyperfleet.http.aside import ASIDE


class Deadline:
    """Ends requests that are not answered in time. Raises Problem for them.

    The time that a client takes to send its request or to read the response is limited elsewhere.

    :param seconds: from the end of a request to the start of its response
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        loop, begun = asyncio.get_running_loop(), False
        try:
            async with asyncio.timeout(self.seconds) as limit:

                async def heard() -> Message:
                    limit.reschedule(None)
                    message = await receive()
                    if not begun:
                        limit.reschedule(loop.time() + self.seconds)
                    return message

                async def answer(message: Message) -> None:
                    nonlocal begun
                    if not begun:
                        begun = True
                        limit.reschedule(None)
                    await send(message)

                def aside() -> None:
                    nonlocal begun
                    begun = True
                    limit.reschedule(None)

                scope[ASIDE].leaving.append(aside)
                await self.app(scope, heard, answer)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Problem(
                errors.BUSY,
                f"The request was not completed within {self.seconds:g} s; it may still be carried out.",
            ) from None
