"""Turns: changes to the same resource wait for each other before they take a connection.

So each resource uses at most one connection of a process.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from hyperfleet.engine.greenlets import wait_for
from hyperfleet.errors import BUSY, Problem

# How many may wait for one resource, and for how many seconds.
LONGEST = 100
PATIENCE = 5.0


class Turns:
    """The queues for resources that are being changed.

    For plain functions in greenlets of one event loop (see :mod:`hyperfleet.engine.greenlets`).
    """

    def __init__(self) -> None:
        self.queues: dict[str, deque[asyncio.Future[None]]] = {}

    def longest(self) -> int:
        """Returns the length of the longest queue."""
        return max(map(len, self.queues.values()), default=0)

    @contextmanager
    def of(self, resource: str) -> Iterator[None]:
        """Waits for the caller's turn on a resource, which lasts for the block.

        Raises Problem (busy) if too many are waiting already, or if the turn does not come in time.
        """
        queue = self.queues.get(resource)
        if queue is None:
            self.queues[resource] = deque()
        elif len(queue) >= LONGEST:
            raise _busy(f"{LONGEST} requests are already waiting for their turn")
        else:
            wait_for(self._wait(queue, resource))
        try:
            yield
        finally:
            self._pass_on(resource)

    async def _wait(self, queue: deque[asyncio.Future[None]], resource: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(PATIENCE):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # The turn came, but too late.
                self._pass_on(resource)
            elif turn in queue:
                queue.remove(turn)
            if isinstance(error, TimeoutError):
                raise _busy(f"the turn of this request did not come within {PATIENCE:.0f} s") from None
            raise

    def _pass_on(self, resource: str) -> None:
        queue = self.queues[resource]
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self.queues[resource]


def _busy(why: str) -> Problem:
    return Problem(BUSY, f"Other requests are changing this resource, and {why}. Try again.")
