"""Those who wait for changes: one statement now and then asks for all of them."""

import asyncio
import logging
from collections import defaultdict
from typing import Any, LiteralString, TypeAlias

import psycopg

from hyperfleet.changes.pages import under_way
from hyperfleet.database.reads import Reads
from hyperfleet.errors import BUSY, Problem
from hyperfleet.lists.place import CHECKED, KNOWN, Place

logger = logging.getLogger(__name__)

# Seconds between two looks, and after one that failed.
POLL = 0.2
FAILED = 1.0
# Rows of one look; where there are more, the next one follows at once.
MOST = 1000

# What has come behind a place, and for how long the oldest change has been held back that may not be
# shown yet, since an older transaction still runs.
_SEEN: LiteralString = """/* changes_seen */
WITH found AS MATERIALIZED (
    SELECT position, sequence, kind, owner_id, {checked} AS checked
    FROM changes WHERE (position, sequence) > (%(position)s::xid8, %(sequence)s::bigint)
      AND position < pg_snapshot_xmin(pg_current_snapshot())
    ORDER BY position, sequence LIMIT %(most)s
)
SELECT replace(epoch::text, '-', '') = %(epoch)s
       AND {known},
       (SELECT concat_ws(' ', position, sequence, checked) FROM found
        ORDER BY position DESC, sequence DESC LIMIT 1),
       (SELECT count(*) FROM found),
       (SELECT json_agg(DISTINCT jsonb_build_array(kind, owner_id)) FROM found),
       coalesce((SELECT extract(epoch FROM clock_timestamp() - time)::float8 FROM changes
                 WHERE position >= pg_snapshot_xmin(pg_current_snapshot())
                 ORDER BY position, sequence LIMIT 1), 0)
FROM feeds ORDER BY since DESC LIMIT 1
"""
SEEN: LiteralString = _SEEN.format(checked=CHECKED, known=KNOWN)

# What somebody waits for: a kind, and an owner; None: any.
Wish: TypeAlias = tuple[str | None, str | None]
# What one who waits is told: a place up to which there is nothing, where one is known, and whether there
# is something behind it.
Woken: TypeAlias = asyncio.Future[tuple[Place | None, bool]]


class Waiting:
    """Who waits in this process.

    :param most: how many may wait
    """

    def __init__(self, reads: Reads, most: int) -> None:
        self.reads, self.most = reads, most
        self.count = 0
        # Seconds, as far as was looked lately.
        self.delay = 0.0
        self.ended = False
        # Up to where all that came was seen; None: nobody looks.
        self.seen: Place | None = None
        self.waiting: dict[Wish, set[Woken]] = defaultdict(set)
        self.task: asyncio.Task[None] | None = None

    def admit(self) -> None:
        """Raises Problem where no more may wait."""
        if self.count >= self.most:
            raise Problem(BUSY, f"{self.most} clients are already waiting for changes; try again.")

    def idle(self, place: Place) -> bool:
        """Whether nothing has come behind a place, as was seen a moment ago."""
        return self.seen == place

    def beyond(self, place: Place) -> bool:
        """Whether something was seen behind a place, which a standby may not have yet."""
        return self.seen is not None and self.seen.beyond(place)

    async def wait(self, place: Place, wish: Wish, seconds: float) -> tuple[Place, bool]:
        """Waits for something that comes behind a place. Returns the place up to which there is nothing,
        and whether there is something behind that; there is not where the time is over, or the service
        ends. What others wait for has been passed by: it may be too old to go on from when something
        comes, and all who are woken by the same go on from the same place, whose page is read once.
        """
        if self.ended or seconds <= 0:
            return place, False
        if self.beyond(place):
            return place, True
        if self.seen is None:
            self.seen = place
            self.task = asyncio.create_task(self._look())
        loop = asyncio.get_running_loop()
        woken: Woken = loop.create_future()
        # As far as was looked when it is told: what is seen after that may be what is waited for.
        timer = loop.call_later(seconds, lambda: _tell(woken, self.seen, found=False))
        self.waiting[wish].add(woken)
        self.count += 1
        try:
            passed, found = await woken
        finally:
            timer.cancel()
            self.count -= 1
            self.waiting[wish].discard(woken)
            if not self.waiting[wish]:
                del self.waiting[wish]
        return passed if passed and passed.beyond(place) else place, found

    def end(self) -> None:
        """Sends all home, who find another replica."""
        self.ended = True
        self._wake(None, None, found=False)

    def _wake(self, wishes: set[Wish] | None, passed: Place | None, *, found: bool = True) -> None:
        for wish in list(self.waiting) if wishes is None else wishes & self.waiting.keys():
            for woken in self.waiting[wish]:
                _tell(woken, passed, found=found)

    async def _look(self) -> None:
        pause: float | None = POLL
        try:
            while pause is not None:
                await asyncio.sleep(pause)
                if not self.count or self.seen is None:
                    return
                try:
                    pause = await self._once(self.seen)
                except (psycopg.Error, TimeoutError) as error:
                    # They wait as long as they want to, and are told then.
                    logger.debug("the feed could not be read: %s", type(error).__name__)
                    pause = FAILED
        finally:
            self.seen, self.delay = None, 0.0
            # Who comes next has it looked from another place on: who still waits comes again, too.
            self._wake(None, None)

    async def _once(self, seen: Place) -> float | None:
        """Looks, and wakes whom it concerns. Returns the seconds until the next look; None: it is
        another feed now, which those who ask again are told.
        """
        values: dict[str, Any] = {**seen._asdict(), "position": str(seen.position), "most": MOST}
        [(known, last, count, found, self.delay)] = await self.reads.fetch(SEEN, values)
        if not known and self.reads.standbys:
            # It may be the standby that does not have it yet.
            [(known, last, count, found, self.delay)] = await self.reads.newest(SEEN, values)
        if not known:
            return POLL if await under_way(self.reads.primary, seen) else None
        if count:
            self.seen = Place.parse(f"{seen.epoch} {last}")
            wishes: set[Wish] = {(None, None)}
            for kind, owner in found:
                wishes |= {(kind, None), (None, owner), (kind, owner)}
            self._wake(wishes, seen)
        return 0.0 if count == MOST else POLL


def _tell(woken: Woken, passed: Place | None, *, found: bool) -> None:
    if not woken.done():
        woken.set_result((passed, found))
