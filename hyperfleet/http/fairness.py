"""Whose request is next: clients take turns, however many connections each of them has."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from starlette.types import ASGIApp, Receive, Scope, Send

from hyperfleet import errors
from hyperfleet.errors import Problem
from hyperfleet.http.aside import ASIDE
from hyperfleet.kinds import BASE

# Where the feed of changes is.
FEED = f"{BASE}/changes"
# Requests that are worked on before others have to wait for their turn: so many that statements which
# may be shared are, and so few that one who comes anew need not wait for long.
AT_ONCE = 8
# Seconds after which a request leaves its place to another, done or not: what waits for a lock or for
# its client keeps nobody from anything.
PATIENCE = 0.02

# The address, what the client calls itself, and the token that it shows: some come through one proxy.
# None of that is verified; whoever makes it up is served in the order of arrival, as all would be.
NAMES = (b"user-agent", b"authorization")
Client: TypeAlias = tuple[str, tuple[bytes, ...]]
Turn: TypeAlias = asyncio.Future[None]


class Fair:
    """Lets requests pass, one of each client in turn where more come than are worked on at once.

    :param most: how many may be under way; beyond that the newest of the client that has most of them
        waiting is refused, with Problem
    :param refused: told of each that is
    :param more: headers beside that tell clients apart
    :param followers: how many beside may follow the feed of changes: those who wait for the same come
        again at the same moment
    :param calm: what these wait for before they pass
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
        # The requests at a place, the oldest first, and when each took it.
        self.working: dict[object, float] = {}
        # The next client first.
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
                place = await self._turn(client or self._client(scope))
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

    async def _turn(self, client: Client) -> Turn:
        loop = asyncio.get_running_loop()
        turn: Turn = loop.create_future()
        self.waiting.setdefault(client, deque()).append(turn)
        self._next()
        try:
            await turn
        except BaseException:
            if self.working.pop(turn, None) is not None:
                # It came, but nobody is there any more.
                self._next()
            self._leave(client, turn)
            raise
        return turn

    def _leave(self, client: Client, turn: Turn) -> None:
        queue = self.waiting.get(client)
        if queue and turn in queue:
            queue.remove(turn)
            if not queue:
                del self.waiting[client]

    def _next(self) -> None:
        """Gives places to those who wait, as far as there are any."""
        now = time.monotonic()
        while self.waiting:
            if len(self.working) >= AT_ONCE:
                oldest = next(iter(self.working))
                left = self.working[oldest] + PATIENCE - now
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
        # With the name, so that two headers that are left out are not taken for each other.
        said = (b"%s:%s" % one for one in scope["headers"] if one[0] in self.names)
        return (address[0] if address else "", tuple(said))
