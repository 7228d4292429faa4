"""Statements on connections of the pool.

Code in a greenlet of the loop (see :mod:`hyperfleet.engine.greenlets`) calls :func:`fetch_one` and
:func:`transaction` as plain functions.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import TupleRow

from hyperfleet.database.connection import Connection
from hyperfleet.database.pool import Pool
from hyperfleet.database.session import OneMessagePipeline, Session
from hyperfleet.engine.greenlets import wait_for

# The length that PostgreSQL assumes for an array of unknown length. For a shorter one, a plan for the
# given values looks cheaper than the cached plan and is made anew each time, which is a third of
# PostgreSQL's work for a read and a sixth for a report.
EXPECTED = 10


def filled(ids: Iterable[str]) -> str:
    """Returns ids, or names of kinds, as an array for ``= ANY``, padded with the first one.

    It is an array's text, which psycopg need not convert; a list would cost up to a tenth of a read.
    """
    known = [*ids]
    return f"{{{','.join(known + known[:1] * (EXPECTED - len(known)))}}}"


def fetch_one(pool: Pool, statement: str, values: Mapping[str, Any]) -> TupleRow | None:
    """Runs one statement as its own transaction, in one round trip; returns its first row, or None."""
    rows = wait_for(fetch(pool, statement, values))
    return rows[0] if rows else None


async def fetch(
    pool: Pool, statement: str, values: Mapping[str, Any], prepare: bool | None = None
) -> list[TupleRow]:
    """Runs one statement as its own transaction, in one round trip, and returns its rows."""
    async with pool.connection() as conn:
        return await fetch_on(pool, conn, statement, values, prepare)


async def fetch_on(
    pool: Pool, conn: Session, statement: str, values: Mapping[str, Any], prepare: bool | None
) -> list[TupleRow]:
    """Does the same as :func:`fetch` on a connection that the caller has taken from the pool."""
    began = time.perf_counter()
    try:
        if conn.travelling is None:
            rows = await conn.rows(statement, values, prepare)
        else:
            async with conn.transaction():
                await _travel(conn)
                cursor = await conn.execute(statement, values)
            rows = await cursor.fetchall()
    except psycopg.Error as error:
        pool.saw(statement, time.perf_counter() - began, error)
        raise
    pool.saw(statement, time.perf_counter() - began)
    return rows


class PlainCursor:
    """The result of a statement, fetched on demand and timed until then."""

    def __init__(self, cursor: psycopg.AsyncCursor[TupleRow], saw: Callable[[], None]) -> None:
        self.cursor = cursor
        self.saw = saw

    def fetchone(self) -> TupleRow | None:
        """Returns the next row, or None if there is none."""
        row = wait_for(self.cursor.fetchone())
        self.saw()
        return row

    def fetchall(self) -> list[TupleRow]:
        """Returns all remaining rows."""
        rows = wait_for(self.cursor.fetchall())
        self.saw()
        return rows

    def __iter__(self) -> Iterator[TupleRow]:
        """Iterates over all remaining rows."""
        return iter(self.fetchall())


class PlainConnection:
    """A connection of the pool, for plain functions."""

    def __init__(self, pool: Pool, conn: Session) -> None:
        self.pool = pool
        self.conn = conn

    def execute(self, statement: Any, values: Any = None) -> PlainCursor:
        """Runs a statement and returns its result."""
        began = time.perf_counter()

        def saw() -> None:
            self.pool.heard(self.conn)
            self.pool.saw(statement, time.perf_counter() - began)

        return PlainCursor(wait_for(self.conn.execute(statement, values)), saw)


@contextmanager
def transaction(pool: Pool) -> Iterator[Connection]:
    """Opens a transaction: commits at the end of the block, rolls back on an exception.

    Statements are sent together when a result is fetched, and the rest with the COMMIT: a block that
    fetches once costs two round trips. An error of a statement surfaces at the next fetch or at the end
    of the block. Behind a pooler, each statement is sent by itself.
    """
    conn = wait_for(pool.getconn())
    try:
        wait_for(_begin(conn))
        yield PlainConnection(pool, conn)
        began = time.perf_counter()
        wait_for(_commit(conn))
        pool.saw("/* commit */", time.perf_counter() - began)
    except BaseException as error:
        if isinstance(error, psycopg.Error):
            pool.saw("/* transaction */", 0, error)
        wait_for(_roll_back(pool, conn, error))
        raise
    finally:
        conn._pipeline = None
        wait_for(pool.putconn(conn))


# Settings for one transaction in a session shared by a pooler.
TRAVELLING = """/* settings */
SELECT set_config(key, value, true) FROM unnest(%s::text[], %s::text[]) AS s (key, value)
"""


async def _travel(conn: Session) -> None:
    if conn.travelling:
        await conn.execute(TRAVELLING, [[*conn.travelling], [*conn.travelling.values()]])


async def _begin(conn: Session) -> None:
    # After a pipeline, PgBouncer 1.18 sometimes keeps the session for this connection although it is
    # idle, and the next client waits for it.
    if conn.travelling is None:
        conn._pipeline = OneMessagePipeline(conn)
        await conn._pipeline.__aenter__()
    await conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    await _travel(conn)


async def _commit(conn: Session) -> None:
    await conn.execute("COMMIT")
    if conn._pipeline:
        await conn._pipeline.__aexit__(None, None, None)


async def _roll_back(pool: Pool, conn: Session, error: BaseException) -> None:
    # Errors here follow from the one that is being raised.
    with suppress(psycopg.Error):
        if conn._pipeline and conn.pgconn.pipeline_status != PipelineStatus.OFF:
            await conn._pipeline.__aexit__(type(error), error, error.__traceback__)
    conn._pipeline = None
    with suppress(psycopg.Error):
        if conn.info.transaction_status != TransactionStatus.IDLE:
            await conn.rollback()
    await pool.blame(conn, error)
