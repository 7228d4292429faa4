"""Following the feed from a place: with the next page, with a later one, or with a stream."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from functools import partial
from typing import TypeVar

import psycopg

from hyperfleet.changes import pages
from hyperfleet.changes.pages import Page, Wanted
from hyperfleet.changes.waiting import FAILED, Waiting
from hyperfleet.database.reads import Reads
from hyperfleet.database.together import slot
from hyperfleet.engine.greenlets import begin
from hyperfleet.errors import GONE, Problem
from hyperfleet.lists.place import Place

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Seconds after which a silent stream sends a sign of life.
BEAT = 15.0
# Seconds after which a stream ends, since clients must authenticate again from time to time.
LASTS = 3600.0
# Seconds before a client woken for nothing looks again.
PAUSE = 0.05
# How many clients get the same page before others are served in between.
SOME = 10


class Feed:
    """The feed of changes, for its followers.

    :param lists: has a slot for each page or list that may be read at the same time
    :param most: how many clients may wait
    """

    def __init__(self, reads: Reads, lists: asyncio.Semaphore, most: int) -> None:
        self.reads, self.slots = reads, lists
        self.waiting = Waiting(reads, most)
        # Those that want a page that is about to be read.
        self.asked: dict[Hashable, list[asyncio.Future[Page]]] = {}
        # How many pages are being handed out, and the requests that are held back meanwhile.
        self.giving = 0
        self.held: list[asyncio.Future[None]] = []

    async def calm(self) -> None:
        """Waits while a page is being handed out to many clients.

        A client that already has it, and asks for the next one, lets the others have it first.
        """
        if self.giving:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.held.append(turn)
            await turn

    async def page(self, wanted: Wanted, after: Place | None, position: str = "") -> Page:
        """Returns the page after a place, as :func:`pages.read` does; for None, an empty one at the end.

        It is read once for all that ask before the reading begins, such as those woken together. (A
        future awaited by a thousand tasks is slow, so each has its own.)
        """
        key = (after, position, *wanted.key)
        if key not in self.asked:
            newest = after is not None and self.waiting.beyond(after)
            read = partial(pages.read, self.reads, wanted, after, newest=newest, position=position)
            self.asked[key] = []
            begin(self._read(key, read))
        answer: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self.asked[key].append(answer)
        return await answer

    async def _read(self, key: Hashable, read: Callable[[], Awaitable[Page]]) -> None:
        asked: list[asyncio.Future[Page]] = []
        try:
            async with slot(self.slots):
                asked = self.asked.pop(key)
                page = await read()
        except BaseException as error:
            for answer in asked or self.asked.pop(key):
                if not answer.done():
                    answer.set_exception(error)
        else:
            self.giving += 1
            try:
                await _each(asked, page)
            finally:
                self.giving -= 1
            if not self.giving:
                held, self.held = self.held, []
                await _each(held, None)

    async def later(self, wanted: Wanted, page: Page, seconds: float) -> bytes:
        """Returns the text of the next page with changes, or after ``seconds``, of an empty one."""
        loop = asyncio.get_running_loop()
        end, wish = loop.time() + seconds, (wanted.kind, wanted.owner_id)
        while not page.items:
            place, found = await self.waiting.wait(page.next, wish, end - loop.time())
            if not found:
                return Page([], place).text
            page = await self.page(wanted, place)
            if not page.items:
                await asyncio.sleep(PAUSE)
        return page.text

    async def stream(self, wanted: Wanted, page: Page) -> AsyncIterator[bytes]:
        """Yields a page, and all after it, as server-sent events.

        Waits for a database that is away; ends if the feed cannot be continued from here.
        """
        loop, wish = asyncio.get_running_loop(), (wanted.kind, wanted.owner_id)
        yield page.events
        begun = told = loop.time()
        last = page.next
        while not self.waiting.ended and loop.time() - begun < LASTS:
            place, found = await self.waiting.wait(page.next, wish, BEAT)
            if not found:
                page = Page([], place)
                yield b":\n\n" if place == last else page.events
                told, last = loop.time(), place
                continue
            try:
                page = await self.page(wanted, place)
            except Problem as problem:
                # No other problem is a reason to list again; a client that reconnects is told of it.
                if problem.entry.code == GONE:
                    said = json.dumps(problem.document("", "")).encode()
                    yield b"event: gone\ndata: %b\n\n" % said
                return
            except (psycopg.Error, TimeoutError):
                yield b":\n\n"
                await asyncio.sleep(FAILED)
                continue
            # Changes that this client may not see do not show any sooner than the sign of life would:
            # a tenant must not learn when something happens to what it cannot see.
            if page.items or loop.time() - told >= BEAT:
                yield page.events
                told, last = loop.time(), page.next
            if not page.items:
                await asyncio.sleep(PAUSE)


async def _each(asked: list[asyncio.Future[T]], answer: T) -> None:
    """Gives all the same answer."""
    for number, one in enumerate(asked):
        if number % SOME == 0:
            # Lets others be served in between.
            await asyncio.sleep(0)
        if not one.done():
            one.set_result(answer)
