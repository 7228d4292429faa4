"""The end of changes that are old: a few at a time, now and then."""

import asyncio
import logging
import random

import psycopg

from hyperfleet.database import connection
from hyperfleet.database.pool import Pool
from hyperfleet.database.statements import fetch

logger = logging.getLogger(__name__)

# Seconds between two looks, and between two statements where there is more to remove; and its rows.
LOOK = 60.0
PAUSE = 0.2
MOST = 1000

# The oldest rows, from the last that was removed on: entries of the index that are dead are not looked
# through again and again. Nothing is removed that is behind a row which stays, and what was removed last
# is kept in mind, by which those who come from before it are told. One process at a time.
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
    """Removes some of the changes that are older; returns how many."""
    [(count,)] = await fetch(pool, REMOVE, {"seconds": seconds, "most": MOST})
    return int(count)


async def removing(pool: Pool, seconds: float) -> None:
    """Removes changes that are older, for as long as the service runs."""
    while True:
        # Processes that were started together take turns.
        await asyncio.sleep(LOOK * random.uniform(0.5, 1.5))  # noqa: S311
        try:
            while await remove(pool, seconds) == MOST:
                await asyncio.sleep(PAUSE)
        except (psycopg.Error, TimeoutError) as error:
            logger.warning("old changes could not be removed: %s", connection.reason(error))
