"""The connections that are kept open between requests, and the statements on them.

The pool lives on the event loop. What runs in a greenlet of it (see :mod:`hyperfleet.greenlets`) calls
:func:`fetch_one`, :func:`fetch_all`, :func:`session` and :func:`transaction` as plain functions.
"""

import asyncio
import json
import os
import re
import select
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Self, TypeVar, cast

import orjson
import psycopg
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg.waiting import Ready, Wait
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from hyperfleet.database.connection import Connection
from hyperfleet.greenlets import wait_for

T = TypeVar("T")

# Seconds in which a server must have given up what it is asked to.
GIVE_UP = 5.0
# A request that gets no connection within this many seconds is told that the service is busy.
POOL_TIMEOUT = 3.0
# Seconds between two tries of a database that is away.
ASK_AGAIN = 0.4
# Seconds beyond those of its statements after which nothing is expected of a connection any more.
MARGIN = 5


class Raw(Loader):
    """Texts that only pass through: what a statement casts to ``bpchar``, which costs nothing, comes as
    the bytes that it is.
    """

    def load(self, data: Buffer) -> bytes:
        """The bytes."""
        return bytes(data)


# Integers that orjson may not hold; JSON has no bound for them, and PostgreSQL none that matters.
LARGE = re.compile(rb"[0-9]{18}")


def _dumps(value: Any) -> bytes:
    """JSON text of a value."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value).encode()


def _loads(text: bytes | str) -> Any:
    """The value of JSON text."""
    known = text.encode() if isinstance(text, str) else text
    return json.loads(known) if LARGE.search(known) else orjson.loads(known)


class Session(psycopg.AsyncConnection[TupleRow]):
    """A connection of the pool. Behind a pooler of connections it is nobody's own, so ``travelling``
    holds what each transaction has to set for itself.
    """

    travelling: dict[str, str] | None = None

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Lets the loop do other things until what ``gen`` does with the server is done.

        As psycopg's own, but the loop is told of the socket once and not for each 8 kB that come, which
        makes half of what a page of a list costs.
        """
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        try:
            return await _wait(gen, self.pgconn.socket)
        except OSError as error:
            raise psycopg.OperationalError("the socket of the connection is closed") from error
        except asyncio.CancelledError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await self._end(gen, interval)
            raise

    async def _end(self, gen: PQGen[Any], interval: float) -> None:
        """Asks the server to give up what it does, so that the connection can be used again."""
        try:
            await self._try_cancel(timeout=GIVE_UP)
            await super().wait(gen, interval, GIVE_UP)
        except psycopg.errors.QueryCanceled:
            pass
        except BaseException:
            # In a state that nobody knows.
            self.pgconn.finish()


async def _wait(gen: PQGen[T], fd: int) -> T:
    try:
        state = next(gen)
    except StopIteration as done:
        return cast(T, done.value)
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] | None = None
    told = False

    def wake() -> None:
        if readable is not None and not readable.done():
            readable.set_result(None)

    try:
        while True:
            if state & Wait.W:
                poll = select.poll()
                poll.register(fd, select.POLLIN * bool(state & Wait.R) | select.POLLOUT)
                events = poll.poll(0)
                if not events:
                    # More than the server takes at once; seldom enough.
                    await asyncio.sleep(0.001)
                    continue
                ready = Ready.W * bool(events[0][1] & ~select.POLLIN)
                ready |= Ready.R * bool(events[0][1] & ~select.POLLOUT)
            else:
                readable = loop.create_future()
                if not told:
                    loop.add_reader(fd, wake)
                    told = True
                await readable
                ready = Ready.R
            state = gen.send(Ready(ready))
    except StopIteration as done:
        return cast(T, done.value)
    finally:
        if told:
            loop.remove_reader(fd)


class Together(psycopg.AsyncPipeline):
    """Statements that travel together: they are sent when a result is asked for, in one message.

    psycopg's own pipeline sends each at once, which makes most of what a report costs.
    """

    def _communicate_gen(self) -> PQGen[None]:
        return
        yield

    def _fetch_gen(self, *, flush: bool) -> PQGen[None]:
        while self.command_queue:
            self.command_queue.popleft()()
        yield from super()._fetch_gen(flush=flush or bool(self.result_queue))


class Pool(AsyncConnectionPool[Session]):
    """The connections that are kept open between requests.

    psycopg's pool pauses for seconds when it meets dead connections. This one throws them away and
    goes on, so that a database which has come back is used at once.
    """

    # When all connections were last made anew.
    renewed = float("-inf")
    # Why no connection could be made, since one could.
    trouble: Exception | None = None

    def __init__(self, *args: Any, patience: float, **kwargs: Any) -> None:
        """:param patience: seconds after which nobody waits for an answer on a connection any more"""
        super().__init__(*args, open=False, **kwargs)
        self.patience = patience
        # The connections in use, and when they have been so for too long.
        self.used: dict[Session, float] = {}

    async def __aenter__(self) -> Self:
        """Opens the pool; it is closed at the end of the block."""
        self.watch = asyncio.create_task(self._watch())
        return await super().__aenter__()

    async def close(self, timeout: float = 5) -> None:
        """Closes the connections, those in use when they are given back."""
        self.watch.cancel()
        await super().close(timeout)

    async def _watch(self) -> None:
        """Hangs up where the answer does not come: a pooler that lost its server, or a server that is
        stopped, keeps the connection open and says nothing. TCP sees no fault in that.
        """
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for conn, end in self.used.items():
                if end < now:
                    with suppress(OSError, psycopg.Error), _line(conn) as line:
                        line.shutdown(socket.SHUT_RDWR)

    async def _connect(self, timeout: float | None = None) -> Session:
        # The pool tries in a task of its own, and tells nobody but its log what it was told.
        try:
            conn = await super()._connect(timeout)
        except Exception as error:
            self.trouble = error
            raise
        self.trouble = None
        return conn

    async def getconn(self, timeout: float | None = None) -> Session:
        """A connection that the server has not closed, within ``timeout`` seconds.

        Raises PoolTimeout when there is none; its cause is why none could be made, if that is why.
        """
        timeout = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        while True:
            try:
                # Whoever asks makes the pool try the database, so it is asked again and again.
                conn = await super().getconn(min(ASK_AGAIN, deadline - time.monotonic()))
            except PoolTimeout:
                if time.monotonic() < deadline:
                    continue
                raise PoolTimeout(f"no connection within {timeout:.1f} s") from self.trouble
            if _alive(conn) and not (_takes_no_writes(conn) and self._due()):
                self.used[conn] = time.monotonic() + self.patience
                return conn
            await self.discard(conn)
            await self.putconn(conn)

    async def putconn(self, conn: Session) -> None:
        """Takes a connection back."""
        self.used.pop(conn, None)
        await super().putconn(conn)

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Session]:
        """A connection, given back at the end of the block unless it is of no more use."""
        conn = await self.getconn(timeout)
        try:
            yield conn
        except psycopg.Error as error:
            await self.blame(conn, error)
            raise
        finally:
            await self.putconn(conn)

    async def blame(self, conn: Session, error: BaseException) -> None:
        """Closes a connection, if it is of no more use after this error."""
        if conn.broken or isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            await self.discard(conn)

    async def discard(self, conn: Session) -> None:
        """Closes a connection, and makes the idle ones anew: what befell one, such as a restart, will
        have befallen the others. Once a second, that it is not all the service does.
        """
        await conn.close()
        if self._due():
            self.renewed = time.monotonic()
            await self.drain()

    def _due(self) -> bool:
        return time.monotonic() - self.renewed > 1


def _line(conn: Session) -> socket.socket:
    return socket.socket(fileno=os.dup(conn.fileno()))


def _alive(conn: Session) -> bool:
    """Whether the server has kept a connection that was idle.

    A look at the socket instead of a query: no round trip. An idle connection has nothing to read
    unless the server said goodbye, or hung up.
    """
    if conn.closed:
        return False
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return not poll.poll(0)


def _takes_no_writes(conn: Session) -> bool:
    """Whether the session was begun as one that only reads, which it stays when others no longer are.

    Known without asking, from PostgreSQL 14 on.
    """
    return conn.info.parameter_status("default_transaction_read_only") == "on"


def new_pool(conninfo: str, size: int, statement_timeout: float = 5, *, shared: bool = False) -> Pool:
    """A pool of at most ``size`` connections in autocommit mode; whoever enters it has them.

    Autocommit makes a single statement cost one round trip; what takes several says so itself. The
    database ends a statement that takes longer than ``statement_timeout``, in seconds; 0 is no bound.

    :param shared: sessions are shared with other clients, transaction by transaction, as ``wait``
        found out: nothing may be left in one
    """
    wanted = {
        "statement_timeout": f"{round(statement_timeout * 1000)}ms",
        # Pages are small: compiling a plan, or starting workers for it, takes longer than running it.
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
    }
    kwargs: dict[str, Any] = {"autocommit": True}
    if shared:
        kwargs["prepare_threshold"] = None
    else:
        own = conninfo_to_dict(conninfo).get("options") or os.environ.get("PGOPTIONS", "")
        options = " ".join([str(own), *(f"-c {name}={value}" for name, value in wanted.items())])
        conninfo = make_conninfo(conninfo, options=options.strip())

    async def configure(conn: Session) -> None:
        conn.travelling = wanted if shared else None
        conn.adapters.register_loader("bpchar", Raw)
        set_json_dumps(_dumps, conn)
        set_json_loads(_loads, conn)

    return Pool(
        conninfo,
        connection_class=Session,
        kwargs=kwargs,
        min_size=min(2, size),
        max_size=size,
        timeout=POOL_TIMEOUT,
        configure=configure,
        # How long a connection that can't be made is tried to be made; then by who needs it.
        reconnect_timeout=ASK_AGAIN,
        name="hyperfleet",
        # A few statements that take their time one after the other still get their answers.
        patience=2 * statement_timeout + MARGIN if statement_timeout else float("inf"),
    )


def fetch_one(pool: Pool, statement: str, values: Mapping[str, Any]) -> TupleRow | None:
    """Runs one statement as its own transaction, in one round trip, and returns its first row."""
    rows = wait_for(fetch(pool, statement, values))
    return rows[0] if rows else None


def fetch_all(pool: Pool, statement: str, values: Mapping[str, Any]) -> list[TupleRow]:
    """Runs one statement as its own transaction, in one round trip, and returns its rows.

    It is planned each time, for the very values: how to search for a label depends on which one.
    """
    return wait_for(fetch(pool, statement, values, prepare=False))


async def fetch(
    pool: Pool, statement: str, values: Mapping[str, Any], prepare: bool | None = None
) -> list[TupleRow]:
    """Runs one statement as its own transaction, in one round trip, and returns its rows."""
    async with pool.connection() as conn:
        if conn.travelling is None:
            cursor = await conn.execute(statement, values, prepare=prepare)
        else:
            async with conn.transaction():
                await _travel(conn)
                cursor = await conn.execute(statement, values)
        return await cursor.fetchall()


class Rows:
    """What a statement has found; fetched when it is asked for."""

    def __init__(self, cursor: psycopg.AsyncCursor[TupleRow]) -> None:
        self.cursor = cursor

    def fetchone(self) -> TupleRow | None:
        """The next row, if there is one."""
        return wait_for(self.cursor.fetchone())

    def fetchall(self) -> list[TupleRow]:
        """All rows that are left."""
        return wait_for(self.cursor.fetchall())

    def __iter__(self) -> Iterator[TupleRow]:
        """All rows that are left."""
        return iter(self.fetchall())


class Statements:
    """A connection of the pool, for plain functions."""

    def __init__(self, conn: Session) -> None:
        self.conn = conn

    def execute(self, statement: Any, values: Any = None) -> Rows:
        """Runs a statement."""
        return Rows(wait_for(self.conn.execute(statement, values)))


@contextmanager
def session(pool: Pool, timeout: float | None = None) -> Iterator[Statements]:
    """A connection in autocommit mode for the block; ``timeout`` as in :meth:`Pool.getconn`."""
    conn = wait_for(pool.getconn(timeout))
    try:
        yield Statements(conn)
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
    conn, together = wait_for(_begin(pool))
    try:
        yield Statements(conn)
        wait_for(_commit(conn, together))
    except BaseException as error:
        wait_for(_roll_back(pool, conn, together, error))
        raise
    finally:
        conn._pipeline = None
        wait_for(pool.putconn(conn))


# What a shared session needs, for one transaction.
TRAVELLING = "SELECT set_config(key, value, true) FROM unnest(%s::text[], %s::text[]) AS s (key, value)"


async def _travel(conn: Session) -> None:
    if conn.travelling:
        await conn.execute(TRAVELLING, [[*conn.travelling], [*conn.travelling.values()]])


async def _begin(pool: Pool) -> tuple[Session, Any]:
    conn = await pool.getconn()
    # After statements that travel together, PgBouncer 1.18 sometimes goes on holding the session for
    # this connection, idle as it is, and the next one waits for it.
    together = conn._pipeline = Together(conn) if conn.travelling is None else None
    try:
        if together:
            await together.__aenter__()
        await conn.execute("BEGIN")
        await _travel(conn)
    except BaseException as error:
        await _roll_back(pool, conn, together, error)
        conn._pipeline = None
        await pool.putconn(conn)
        raise
    return conn, together


async def _commit(conn: Session, together: Any) -> None:
    await conn.execute("COMMIT")
    if together:
        await together.__aexit__(None, None, None)


async def _roll_back(pool: Pool, conn: Session, together: Any, error: BaseException) -> None:
    # What these say comes of the error that is raised already.
    with suppress(psycopg.Error):
        if conn.pgconn.pipeline_status != PipelineStatus.OFF:
            await together.__aexit__(type(error), error, error.__traceback__)
    conn._pipeline = None
    with suppress(psycopg.Error):
        if conn.info.transaction_status != TransactionStatus.IDLE:
            await conn.rollback()
    await pool.blame(conn, error)
