"""Removes old changes, a few at a time."""

import asyncio
import logging
import random

import psycopg

from hyperfleet.database import connection
from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import fetch

logger = logging.getLogger(__name__)

# Seconds between two rounds, seconds between two statements of a round, and rows for each.
LOOK = 60.0
PAUSE = 0.2
MOST = 1000

# Removes the oldest rows, beginning after the last one removed: so dead index entries are not scanned
# again and again. No row is removed if an earlier one stays. The last removed row is recorded, which
# tells whether a client's place is still covered. SKIP LOCKED leaves it to one process at a time.
REMOVE = """/* changes_remove */
WITH feed AS (
    SELECT epoch, removed_position, removed_sequence FROM feeds ORDER BY since DESC LIMIT 1
    FOR UPDATE SKIP LOCKED
), oldest AS (
    SELECT changes.position, changes.sequence,
           bool_and(time < now() - make_interval(secs => %(seconds)s))
               OVER (ORDER BY changes.position, changes.sequence) AS old
    FROM (
        SELECT * FROM changes
        WHERE (position, sequence) > (SELECT removed_position, removed_sequence FROM feed)
          AND position < pg_snapshot_xmin(pg_current_snapshot())
        ORDER BY position, sequence LIMIT %(most)s
    ) AS changes
), gone AS (
    DELETE FROM changes USING oldest
    WHERE oldest.old AND (changes.position, changes.sequence) = (oldest.position, oldest.sequence)
    RETURNING changes.position, changes.sequence
), last AS (
    SELECT position, sequence FROM gone ORDER BY position DESC, sequence DESC LIMIT 1
), kept AS (
    UPDATE feeds SET removed_position = last.position, removed_sequence = last.sequence
    FROM last, feed WHERE feeds.epoch = feed.epoch
)
SELECT count(*) FROM gone
"""


async def remove(pool: Pool, seconds: float) -> int:
    """Removes up to :data:`MOST` of the changes older than ``seconds``; returns how many."""
    [(count,)] = await fetch(pool, REMOVE, {"seconds": seconds, "most": MOST})
    return int(count)


async def removing(pool: Pool, seconds: float) -> None:
    """Removes changes older than ``seconds``, for as long as the service runs."""
    while True:
        # Random, so that processes started together take turns.
        await asyncio.sleep(LOOK * random.uniform(0.5, 1.5))  # noqa: S311
        try:
            while await remove(pool, seconds) == MOST:
                await asyncio.sleep(PAUSE)
        except (psycopg.Error, TimeoutError) as error:
            logger.warning("old changes could not be removed: %s", connection.reason(error))
