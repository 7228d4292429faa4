"""Going on from a place: with the next page, with one that comes later, or with each as it comes."""

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
from hyperfleet.errors import GONE, Problem
from hyperfleet.lists.place import Place

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Seconds after which a stream says that it is still there.
BEAT = 15.0
# Seconds after which a stream ends: who goes on with another has to show anew who it is.
LASTS = 3600.0
# Seconds before the next look of who was woken for nothing.
PAUSE = 0.05
# So many are given the same page at a time.
SOME = 10


class Feed:
    """The feed of changes, for those who follow it.

    :param lists: one place for each page or list that is read at the same time
    :param most: how many may wait
    """

    def __init__(self, reads: Reads, lists: asyncio.Semaphore, most: int) -> None:
        self.reads, self.slots = reads, lists
        self.waiting = Waiting(reads, most)
        # Who wants a page that is about to be read.
        self.asked: dict[Hashable, list[asyncio.Future[Page]]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        # How many pages are being given to those who asked, and who comes again meanwhile.
        self.giving = 0
        self.held: list[asyncio.Future[None]] = []

    async def calm(self) -> None:
        """Waits while a page is given to many: who has it already, and comes again for the next one,
        lets the others have it first.
        """
        if self.giving:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.held.append(turn)
            await turn

    async def page(self, wanted: Wanted, after: Place | None, position: str = "") -> Page:
        """The page behind a place; None: an empty one, at the end of the feed. As :func:`pages.read`.

        It is read once for all who ask before it is: all that were woken at the same moment do. (A
        future that a thousand wait for is slow: each has its own.)
        """
        key = (after, position, *wanted.key)
        if key not in self.asked:
            newest = after is not None and self.waiting.beyond(after)
            read = partial(pages.read, self.reads, wanted, after, newest=newest, position=position)
            self.asked[key] = []
            task = asyncio.create_task(self._read(key, read))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
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
        """The text of the first page behind an empty one that is not; of an empty one where none comes
        within so many seconds.
        """
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
        """A page, and all that come behind it, as server-sent events. A database that is away is waited
        for; a feed that does not go on from here ends it.
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
                # Nothing else is a reason to list again, and is told to who goes on from here.
                if problem.entry.code == GONE:
                    said = json.dumps(problem.document("", "")).encode()
                    yield b"event: gone\ndata: %b\n\n" % said
                return
            except (psycopg.Error, TimeoutError):
                yield b":\n\n"
                await asyncio.sleep(FAILED)
                continue
            # What is not for this client is told no sooner than that the service is there: when it
            # happens to what a tenant does not see is none of its business.
            if page.items or loop.time() - told >= BEAT:
                yield page.events
                told, last = loop.time(), page.next
            if not page.items:
                await asyncio.sleep(PAUSE)


async def _each(asked: list[asyncio.Future[T]], answer: T) -> None:
    """Gives all the same answer."""
    for number, one in enumerate(asked):
        if number % SOME == 0:
            # Others are served in between.
            await asyncio.sleep(0)
        if not one.done():
            one.set_result(answer)
