"""Fairness: clients take turns, however many connections each of them has."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from hyperfleet import errors
from hyperfleet.errors import Problem
from hyperfleet.http.aside import ASIDE, Aside
from hyperfleet.kinds import BASE

# The path of the feed of changes.
FEED = f"{BASE}/changes"
# Requests that are worked on at once; others wait for their turn. Enough to let requests share
# statements, and few enough that a new client does not wait long.
AT_ONCE = 8
# Seconds after which a request's slot goes to another, finished or not, so that a request that waits for
# a lock or for its client holds up nobody.
SLOT_LASTS = 0.02

# Clients are told apart by address, User-Agent and token, because some share a proxy. None of that is
# verified: a client that makes it up is served in order of arrival, as without turns.
NAMES = (b"user-agent", b"authorization")
Client: TypeAlias = tuple[str, tuple[bytes, ...]]
Turn: TypeAlias = asyncio.Future[None]


class Fair:
    """Passes on requests; if more come than are worked on at once, one of each client in turn.

    :param most: how many may be in progress; beyond that, the newest request of the client with the most
        requests waiting is refused with Problem
    :param refused: called for each refused request
    :param more: names of further headers that tell clients apart
    :param followers: how many more may follow the feed of changes, since followers that wait for the
        same change all return at the same moment
    :param calm: awaited by followers before they pass
    """

    def __init__(
        self,
        app: ASGIApp,
        most: int,
        refused: Callable[[], object],
        more: Iterable[str],
        followers: int,
        calm: Callable[[], Awaitable[None]],
    ) -> None:
        self.app = app
        self.most, self.followers, self.calm = most, followers, calm
        self.refused = refused
        self.names = frozenset((*NAMES, *(name.lower().encode() for name in more)))
        self.under_way = self.following = 0
        # The requests that hold a slot, oldest first, and when each of them got it.
        self.working: dict[object, float] = {}
        # The requests that wait, by client; the next client first.
        self.waiting: dict[Client, deque[Turn]] = {}
        self.overdue: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        client = None
        follows = scope["path"] == FEED and self.following < self.followers
        if not follows and self.under_way >= self.most:
            client = self._client(scope)
            self._make_room(client)
        place: object = object()
        left = False
        self.under_way += not follows
        self.following += follows

        def leave() -> None:
            nonlocal left
            if left:
                return
            left = True
            self.under_way -= not follows
            self.following -= follows
            if self.working.pop(place, None) is not None and self.waiting:
                self._next()

        try:
            if follows:
                await self.calm()
            if len(self.working) < AT_ONCE:
                self.working[place] = time.monotonic()
            else:
                try:
                    place = await self._turn(client or self._client(scope), scope[ASIDE])
                except ClientDisconnect:
                    # Whatever its request would cost is better spent on those that wait.
                    return
            scope[ASIDE].leaving.append(leave)
            await self.app(scope, receive, send)
        finally:
            leave()

    def _make_room(self, client: Client) -> None:
        self.refused()
        refusal = Problem(errors.BUSY, f"The service already works on {self.most} requests; try again.")
        greedy = max(self.waiting, key=lambda one: len(self.waiting[one]), default=client)
        queue = self.waiting.get(greedy, deque())
        if len(queue) <= len(self.waiting.get(client, ())) + 1:
            raise refusal
        turn = queue[-1]
        self._leave(greedy, turn)
        turn.set_exception(refusal)

    async def _turn(self, client: Client, aside: Aside) -> Turn:
        """Waits for a request's turn. Raises ClientDisconnect if the client goes away meanwhile."""
        loop = asyncio.get_running_loop()
        turn: Turn = loop.create_future()

        def gone() -> None:
            if not turn.done():
                turn.set_exception(ClientDisconnect())

        aside.gone = gone
        self.waiting.setdefault(client, deque()).append(turn)
        self._next()
        try:
            await turn
        except BaseException:
            if self.working.pop(turn, None) is not None:
                # The turn came, but the request was cancelled at the same time.
                self._next()
            self._leave(client, turn)
            raise
        finally:
            aside.gone = None
        return turn

    def _leave(self, client: Client, turn: Turn) -> None:
        queue = self.waiting.get(client)
        if queue and turn in queue:
            queue.remove(turn)
            if not queue:
                del self.waiting[client]

    def _next(self) -> None:
        """Gives free slots to waiting requests."""
        now = time.monotonic()
        while self.waiting:
            if len(self.working) >= AT_ONCE:
                oldest = next(iter(self.working))
                left = self.working[oldest] + SLOT_LASTS - now
                if left > 0:
                    if self.overdue is None:
                        loop = asyncio.get_running_loop()
                        self.overdue = loop.call_later(left, self._look_again)
                    return
                del self.working[oldest]
            client, queue = next(iter(self.waiting.items()))
            del self.waiting[client]
            turn = queue.popleft()
            if queue:
                self.waiting[client] = queue
            if not turn.done():
                self.working[turn] = now
                turn.set_result(None)

    def _look_again(self) -> None:
        self.overdue = None
        self._next()

    def _client(self, scope: Scope) -> Client:
        address = scope.get("client")
        # Includes the names, since two clients may send the same value in different headers.
        said = (b"%s:%s" % one for one in scope["headers"] if one[0] in self.names)
        return (address[0] if address else "", tuple(said))
