"""Clients that wait for changes: one statement now and then looks for all of them."""

import asyncio
import logging
from collections import defaultdict
from typing import Any, LiteralString, TypeAlias

import psycopg

from hyperfleet.changes.pages import under_way
from hyperfleet.database.reads import Reads
from hyperfleet.engine.greenlets import begin
from hyperfleet.errors import BUSY, Problem
from hyperfleet.lists.place import CHECKED, KNOWN, Place

logger = logging.getLogger(__name__)

# Seconds between two looks, and after one that failed.
POLL = 0.2
FAILED = 1.0
# Rows of one look; if there are more, the next one follows at once.
MOST = 1000

# What has come after a place, and for how many seconds the oldest change has been held back that may not
# be shown yet because an older transaction is still running.
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

# The kind and the owner that a client waits for; None means any.
Wish: TypeAlias = tuple[str | None, str | None]
# What a waiting client is told: a place up to which there is nothing for it, if known, and whether there
# may be something after that.
Woken: TypeAlias = asyncio.Future[tuple[Place | None, bool]]


class Waiting:
    """The clients that wait in this process.

    :param most: how many may wait
    """

    def __init__(self, reads: Reads, most: int) -> None:
        self.reads, self.most = reads, most
        self.count = 0
        # For how many seconds changes have been held back, as of the last look.
        self.delay = 0.0
        self.ended = False
        # Everything up to this place has been seen; None if nobody is looking.
        self.seen: Place | None = None
        self.waiting: dict[Wish, set[Woken]] = defaultdict(set)

    def admit(self) -> None:
        """Raises Problem if no more clients may wait."""
        if self.count >= self.most:
            raise Problem(BUSY, f"{self.most} clients are already waiting for changes; try again.")

    def idle(self, place: Place) -> bool:
        """Returns whether, as of a moment ago, nothing has come after a place."""
        return self.seen == place

    def beyond(self, place: Place) -> bool:
        """Returns whether something was seen after a place, which a standby may not have yet."""
        return self.seen is not None and self.seen.beyond(place)

    async def wait(self, place: Place, wish: Wish, seconds: float) -> tuple[Place, bool]:
        """Waits for something that a client may want after a place.

        Returns a place up to which there is nothing for it, and whether there is something after that:
        false if the time is over or the service ends. The place moves past what others wait for: it
        might be too old by the time something comes, and all that are woken together continue from the
        same place, whose page is read once.
        """
        if self.ended or seconds <= 0:
            return place, False
        if self.beyond(place):
            return place, True
        if self.seen is None:
            self.seen = place
            begin(self._look())
        loop = asyncio.get_running_loop()
        woken: Woken = loop.create_future()
        # The place at that moment: what is seen later may be what the client waits for.
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
        """Wakes all clients, which will find another replica."""
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
                    # Clients go on waiting, and are told when their time is over.
                    logger.debug("the feed could not be read: %s", type(error).__name__)
                    pause = FAILED
        finally:
            self.seen, self.delay = None, 0.0
            # The next client may start from another place, so those that still wait must ask again.
            self._wake(None, None)

    async def _once(self, seen: Place) -> float | None:
        """Looks and wakes clients; returns seconds until the next look, or None if the feed is new."""
        values: dict[str, Any] = {**seen._asdict(), "position": str(seen.position), "most": MOST}
        rows = await self.reads.fetch(SEEN, values)
        if self.reads.standbys and not (rows and rows[0][0]):
            # A standby may not have the place yet.
            rows = await self.reads.newest(SEEN, values)
        if not rows:
            # A dump is being restored, and the row that names the feed is not there yet.
            return None
        [(known, last, count, found, self.delay)] = rows
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
