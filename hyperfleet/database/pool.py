"""The connections that are kept open between requests. The pool lives on the event loop."""

import asyncio
import logging
import os
import select
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, LiteralString, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from hyperfleet.database import connection
from hyperfleet.database.session import Session

logger = logging.getLogger(__name__)

# A request that gets no connection within this many seconds is told that the service is busy.
POOL_TIMEOUT = 3.0
# Seconds between two tries of a database that is away.
ASK_AGAIN = 0.4
# Seconds beyond those of its statements after which nothing is expected of a connection any more.
MARGIN = 5

# Documents are of some kilobytes: to compress them is a tenth of a report and a fifth of a creation with
# what servers do by default, and next to nothing with this, where the server has it.
COMPRESSION: LiteralString = """/* compression */
SELECT set_config(name, 'lz4', false) FROM pg_settings
WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)
"""

# Who has waited for a row goes on with what it has become, and is not told to begin anew, whatever the
# database or a role has for others.
ISOLATED = r"-c default_transaction_isolation=read\ committed"


class Pool(AsyncConnectionPool[Session]):
    """The connections that are kept open between requests.

    psycopg's pool pauses for seconds when it meets dead connections. This one throws them away and
    goes on, so that a database which has come back is used at once.
    """

    # Told the name of each statement, its seconds, and what it failed of.
    told: Callable[[str, float, psycopg.Error | None], None] | None = None
    # Seconds after which a statement is slow.
    slow = float("inf")
    # When all connections were last made anew.
    renewed = float("-inf")
    # Why no connection could be made, since one could.
    trouble: Exception | None = None

    def __init__(self, *args: Any, statement_timeout: float, shared: bool, **kwargs: Any) -> None:
        """:param statement_timeout: seconds after which the server gives up a statement; 0: never
        :param shared: whether a pooler shares the sessions out: each statement is a round trip then, and
            so are the beginning and the end of a transaction
        """
        super().__init__(*args, open=False, **kwargs)
        self.statement_timeout, self.shared = statement_timeout, shared
        # Seconds after which nobody waits for an answer on a connection any more. A few statements that
        # take their time one after the other still get their answers.
        self.patience = 2 * statement_timeout + MARGIN if statement_timeout else float("inf")
        # The connections in use, and when they have been so for too long.
        self.used: dict[Session, float] = {}
        # Those that hang up, which nobody else holds.
        self.hanging: set[asyncio.Task[None]] = set()

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

        And tries for those who wait to make the connections that could not be made before.
        """
        while True:
            await asyncio.sleep(ASK_AGAIN)
            self._forget()
            if self._waiting:
                self._maybe_grow_pool()
            now = time.monotonic()
            for conn, end in self.used.items():
                if end < now:
                    self.used[conn] = float("inf")
                    task = asyncio.create_task(conn.abandon())
                    self.hanging.add(task)
                    task.add_done_callback(self.hanging.discard)

    def _forget(self) -> None:
        """Lets go of those whose time was over, who would be in the queue until a connection comes."""
        while self._waiting and self._waiting[0].error is not None:
            self._waiting.popleft()

    def get_stats(self) -> dict[str, int]:
        """How the pool is doing, as psycopg's has it."""
        self._forget()
        return super().get_stats()

    async def _connect(self, timeout: float | None = None) -> Session:
        # The pool tries in a task of its own, and tells nobody but its log what it was told.
        try:
            conn = await super()._connect(timeout)
        except Exception as error:
            if self.trouble is None:
                logger.warning("%s cannot be reached: %s", self.name, connection.reason(error))
            self.trouble = error
            raise
        if self.trouble is not None:
            logger.warning("%s is reached again", self.name)
            self.trouble = None
        return conn

    async def getconn(self, timeout: float | None = None) -> Session:
        """A connection that the server has not closed, within ``timeout`` seconds.

        Raises PoolTimeout when there is none; its cause is why none could be made, if that is why.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            conn = self._take() or await self._given(deadline)
            if _alive(conn) and not (_takes_no_writes(conn) and self._due()):
                self.used[conn] = time.monotonic() + self.patience
                return conn
            try:
                await self.discard(conn)
            finally:
                await self.putconn(conn)

    def heard(self, conn: Session) -> None:
        """Has a connection in use be waited for anew, since the server has answered on it."""
        if conn in self.used:
            self.used[conn] = time.monotonic() + self.patience

    def _take(self) -> Session | None:
        """A connection that is idle, if there is one; in turn, so that none is forgotten by what is in
        between. psycopg's own way to give, and to take back, costs as much as a statement; what must be
        waited for is left to it.
        """
        if self._closed or not self._pool:
            return None
        conn = self._pool.popleft()
        self._nconns_min = min(self._nconns_min, len(self._pool))
        conn._pool = self
        return conn

    async def _given(self, deadline: float) -> Session:
        try:
            conn = await super().getconn(deadline - time.monotonic())
        except PoolTimeout as error:
            if self.told is not None:
                self.told("connection", 0, error)
            raise error from self.trouble
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # Who is cancelled in the moment in which it gets a connection is not told by psycopg's
            # pool, and would go on as if nobody had.
            await self.putconn(conn)
            raise asyncio.CancelledError
        return conn

    async def putconn(self, conn: Session) -> None:
        """Takes a connection back, also where the caller is cancelled meanwhile."""
        self.used.pop(conn, None)
        if self._waiting or self._closed or not self._stays(conn):
            # To hand it to who has just begun to wait may take a turn of the loop.
            await asyncio.shield(super().putconn(conn))
            return
        conn._pool = None
        self._pool.append(conn)

    def _stays(self, conn: Session) -> bool:
        idle = conn.pgconn.transaction_status == TransactionStatus.IDLE and conn._pool is self
        return idle and conn._created_at > self._drained_at and conn._expire_at > time.monotonic()

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

    def saw(self, statement: str, seconds: float, error: psycopg.Error | None = None) -> None:
        """Hears of a statement that has ended, which begins with its name: ``/* name */``."""
        name = statement[3 : statement.index(" */")] if statement.startswith("/* ") else "other"
        if self.told is not None:
            self.told(name, seconds, error)
        if seconds > self.slow:
            logger.warning("slow statement: %s took %.3f s", name, seconds, extra={"statement": name})

    async def blame(self, conn: Session, error: BaseException) -> None:
        """Closes a connection, if it is of no more use after this error."""
        read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
        if conn.broken or read_only or connection.confused(error):
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
    return conn.pgconn.parameter_status(b"default_transaction_read_only") == b"on"


def new_pool(
    conninfo: str,
    size: int,
    statement_timeout: float = 5,
    *,
    shared: bool = False,
    name: str = "the database",
    history: int = 100,
) -> Pool:
    """A pool of at most ``size`` connections in autocommit mode; whoever enters it has them.

    Autocommit makes a single statement cost one round trip; what takes several says so itself. The
    database ends a statement that takes longer than ``statement_timeout``, in seconds; 0 is no bound.

    :param shared: sessions are shared with other clients, transaction by transaction, as ``wait``
        found out: nothing may be left in one
    :param name: what the log calls the server
    :param history: how many past generations of each resource what is written leaves
    """
    milliseconds = round(statement_timeout * 1000)
    wanted = {
        "statement_timeout": f"{milliseconds}ms",
        # Who waited for a lock is to be told so, and not that it asked for too much.
        "lock_timeout": f"{milliseconds * 9 // 10}ms",
        # A process that is stopped must not hold its locks for ever.
        "idle_in_transaction_session_timeout": f"{milliseconds * 2}ms",
        # That a standby was not waited for is a warning, and nothing else says so.
        "client_min_messages": "warning",
        # Pages are small: compiling a plan, or starting workers for it, takes longer than running it.
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        # What the triggers of migrations/0013.history.sql look at.
        "hyperfleet.history": str(history),
    }
    kwargs: dict[str, Any] = {"autocommit": True, "client_encoding": connection.ENCODING}
    if shared:
        kwargs["prepare_threshold"] = None
    else:
        own = conninfo_to_dict(conninfo).get("options", os.environ.get("PGOPTIONS", ""))
        own = " ".join([str(own), *(f"-c {name}={value}" for name, value in wanted.items())])
        conninfo = make_conninfo(conninfo, options=f"{own} {ISOLATED}".strip())

    async def configure(conn: Session) -> None:
        conn.travelling = wanted if shared else None
        conn.adapt()
        # Of transactions that psycopg begins, as of all behind a pooler.
        await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        if not shared:
            await conn.execute(COMPRESSION)

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
        name=name,
        statement_timeout=statement_timeout,
        shared=shared,
    )
