"""Statements on connections of the pool.

What runs in a greenlet of the loop (see :mod:`hyperfleet.engine.greenlets`) calls :func:`fetch_one`,
:func:`session` and :func:`transaction` as plain functions.
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
from hyperfleet.database.session import Session, Together
from hyperfleet.engine.greenlets import wait_for

# As many members PostgreSQL expects of a list whose length it does not know. With fewer, a plan for the
# very values looks cheaper than one that is kept, and is made anew each time: a third of what PostgreSQL
# does for a read, a sixth for a report.
EXPECTED = 10


def filled(ids: Iterable[str]) -> str:
    """Ids, or names of kinds, for ``= ANY``, which repetitions are nothing to: the first one again and
    again where there are few. As the text of an array, with which psycopg has nothing left to do; as a
    list they would cost as much as a tenth of a read.
    """
    known = [*ids]
    return f"{{{','.join(known + known[:1] * (EXPECTED - len(known)))}}}"


def fetch_one(pool: Pool, statement: str, values: Mapping[str, Any]) -> TupleRow | None:
    """Runs one statement as its own transaction, in one round trip, and returns its first row."""
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
    """The same, on a connection that the caller has taken from the pool."""
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


class Rows:
    """What a statement has found; fetched when it is asked for, and timed until then."""

    def __init__(self, cursor: psycopg.AsyncCursor[TupleRow], saw: Callable[[], None]) -> None:
        self.cursor = cursor
        self.saw = saw

    def fetchone(self) -> TupleRow | None:
        """The next row, if there is one."""
        row = wait_for(self.cursor.fetchone())
        self.saw()
        return row

    def fetchall(self) -> list[TupleRow]:
        """All rows that are left."""
        rows = wait_for(self.cursor.fetchall())
        self.saw()
        return rows

    def __iter__(self) -> Iterator[TupleRow]:
        """All rows that are left."""
        return iter(self.fetchall())


class Statements:
    """A connection of the pool, for plain functions."""

    def __init__(self, pool: Pool, conn: Session) -> None:
        self.pool = pool
        self.conn = conn

    def execute(self, statement: Any, values: Any = None) -> Rows:
        """Runs a statement."""
        began = time.perf_counter()

        def saw() -> None:
            self.pool.heard(self.conn)
            self.pool.saw(statement, time.perf_counter() - began)

        return Rows(wait_for(self.conn.execute(statement, values)), saw)


@contextmanager
def session(pool: Pool, timeout: float | None = None) -> Iterator[Statements]:
    """A connection in autocommit mode for the block; ``timeout`` as in :meth:`Pool.getconn`."""
    conn = wait_for(pool.getconn(timeout))
    try:
        yield Statements(pool, conn)
    except psycopg.Error as error:
        wait_for(pool.blame(conn, error))
        raise
    finally:
        wait_for(pool.putconn(conn))


@contextmanager
def transaction(pool: Pool) -> Iterator[Connection]:
    """A transaction: commits at the end of the block, rolls back on an exception.

    Statements travel together until a result is fetched, and what is left travels with the COMMIT: a
    block that fetches once costs two round trips. An error of a statement surfaces at the next fetch
    or at the end of the block. Behind a pooler each statement travels for itself.
    """
    conn = wait_for(pool.getconn())
    try:
        wait_for(_begin(conn))
        yield Statements(pool, conn)
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


# What a shared session needs, for one transaction.
TRAVELLING = """/* settings */
SELECT set_config(key, value, true) FROM unnest(%s::text[], %s::text[]) AS s (key, value)
"""


async def _travel(conn: Session) -> None:
    if conn.travelling:
        await conn.execute(TRAVELLING, [[*conn.travelling], [*conn.travelling.values()]])


async def _begin(conn: Session) -> None:
    # After statements that travel together, PgBouncer 1.18 sometimes goes on holding the session for
    # this connection, idle as it is, and the next one waits for it.
    if conn.travelling is None:
        conn._pipeline = Together(conn)
        await conn._pipeline.__aenter__()
    await conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    await _travel(conn)


async def _commit(conn: Session) -> None:
    await conn.execute("COMMIT")
    if conn._pipeline:
        await conn._pipeline.__aexit__(None, None, None)


async def _roll_back(pool: Pool, conn: Session, error: BaseException) -> None:
    # What these say comes of the error that is raised already.
    with suppress(psycopg.Error):
        if conn._pipeline and conn.pgconn.pipeline_status != PipelineStatus.OFF:
            await conn._pipeline.__aexit__(type(error), error, error.__traceback__)
    conn._pipeline = None
    with suppress(psycopg.Error):
        if conn.info.transaction_status != TransactionStatus.IDLE:
            await conn.rollback()
    await pool.blame(conn, error)
