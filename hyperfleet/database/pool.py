"""The pool of connections kept open between requests; it lives on the event loop."""

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
from hyperfleet.engine.greenlets import begin

logger = logging.getLogger(__name__)

# Seconds that a request waits for a connection before it is told that the service is busy.
POOL_TIMEOUT = 3.0
# Seconds between two attempts to connect to a database that is away.
ASK_AGAIN = 0.4
# Seconds on top of the statement timeouts after which a connection is considered dead.
MARGIN = 5

# Settings that not all servers have, and that would be errors there in the connection string.
# Documents are a few kilobytes: compressing them by a server's default method takes a tenth of a report
# and a fifth of a creation. lz4, where the server has it, costs next to nothing.
# A session that a server ends for being idle may be one that a request has just taken.
SUPPORTED: LiteralString = """/* session_settings */
SELECT set_config(name, 'lz4', false) FROM pg_settings
WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)
UNION ALL
SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'
"""

# After waiting for a row, a transaction continues with its new version instead of failing with a
# serialization error, whatever default the database or a role sets.
ISOLATED = r"-c default_transaction_isolation=read\ committed"


class Pool(AsyncConnectionPool[Session]):
    """The connections kept open between requests.

    psycopg's pool backs off for seconds when it meets dead connections. This one discards them and
    carries on, so that a database is used again as soon as it is back.
    """

    # Called with each statement's name, its duration in seconds, and its error if it failed.
    on_statement: Callable[[str, float, psycopg.Error | None], None] | None = None
    # Statements that take more than this many seconds are logged as slow.
    slow = float("inf")
    # When all idle connections were last replaced.
    renewed = float("-inf")
    # The last error on connecting, if no attempt has succeeded since.
    trouble: Exception | None = None

    def __init__(self, *args: Any, statement_timeout: float, shared: bool, **kwargs: Any) -> None:
        """:param statement_timeout: seconds after which the server cancels a statement; 0 means never
        :param shared: whether a pooler shares sessions between clients; then each statement is a round
            trip, and so are the beginning and the end of a transaction
        """
        super().__init__(*args, open=False, **kwargs)
        self.statement_timeout, self.shared = statement_timeout, shared
        # Seconds after which an answer on a connection is no longer awaited. It leaves time for the
        # answers of a few slow statements in a row.
        self.patience = 2 * statement_timeout + MARGIN if statement_timeout else float("inf")
        # The connections in use, and the time at which each will have been so for too long.
        self.used: dict[Session, float] = {}

    async def __aenter__(self) -> Self:
        """Opens the pool, until the end of the block."""
        self.watch = asyncio.create_task(self._watch())
        return await super().__aenter__()

    async def close(self, timeout: float = 5) -> None:
        """Closes the idle connections now, and those in use when they are returned."""
        self.watch.cancel()
        await super().close(timeout)

    async def _watch(self) -> None:
        """Hangs up connections whose answer is overdue, and reconnects for requests that are waiting.

        A pooler that lost its server, or a stopped server process, keeps the connection open without
        answering, which TCP does not notice.
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
                    # Nobody gets it after this, since the cancellation may arrive late.
                    conn._expire_at = now
                    begin(conn.abandon())

    def _forget(self) -> None:
        """Drops timed-out requests from the queue, where they would stay until a connection comes."""
        while self._waiting and self._waiting[0].error is not None:
            self._waiting.popleft()

    def get_stats(self) -> dict[str, int]:
        """Returns the pool's statistics, with the same keys as psycopg's."""
        self._forget()
        return super().get_stats()

    async def _connect(self, timeout: float | None = None) -> Session:
        # The pool connects in a task of its own and reports errors only to its log.
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
        """Returns a connection that the server has not closed, within ``timeout`` seconds.

        Raises PoolTimeout if there is none; its cause, if any, is why none could be made.
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
        """Restarts the time limit of a connection in use, since the server has answered on it."""
        if conn in self.used:
            self.used[conn] = time.monotonic() + self.patience

    def _take(self) -> Session | None:
        """Returns an idle connection, or None; in rotation, so that no proxy drops one for being idle.

        psycopg's own way of lending and taking back costs as much as a statement; it is used only when a
        request has to wait.
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
            if self.on_statement is not None:
                self.on_statement("connection", 0, error)
            raise error from self.trouble
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # psycopg's pool swallows a cancellation that coincides with the arrival of a connection, and
            # the task would carry on as if it had not been cancelled.
            await self.putconn(conn)
            raise asyncio.CancelledError
        return conn

    async def putconn(self, conn: Session) -> None:
        """Returns a connection to the pool, even if the caller is cancelled meanwhile."""
        self.used.pop(conn, None)
        if self._waiting or self._closed or not self._stays(conn):
            # Handing it to a request that has just begun to wait may take a turn of the loop.
            await asyncio.shield(super().putconn(conn))
            return
        conn._pool = None
        self._pool.append(conn)

    def _stays(self, conn: Session) -> bool:
        idle = conn.pgconn.transaction_status == TransactionStatus.IDLE and conn._pool is self
        return idle and conn._created_at > self._drained_at and conn._expire_at > time.monotonic()

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Session]:
        """Lends a connection for the block; it is returned, or closed if it is no longer usable."""
        conn = await self.getconn(timeout)
        try:
            yield conn
        except psycopg.Error as error:
            await self.blame(conn, error)
            raise
        finally:
            await self.putconn(conn)

    def saw(self, statement: str, seconds: float, error: psycopg.Error | None = None) -> None:
        """Reports a statement that has ended, by the name that it begins with: ``/* name */``."""
        name = statement[3 : statement.index(" */")] if statement.startswith("/* ") else "other"
        if self.on_statement is not None:
            self.on_statement(name, seconds, error)
        if seconds > self.slow:
            logger.warning("slow statement: %s took %.3f s", name, seconds, extra={"statement": name})

    async def blame(self, conn: Session, error: BaseException) -> None:
        """Closes the connection if it is not usable after this error."""
        read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
        if conn.broken or read_only or connection.confused(error):
            await self.discard(conn)

    async def discard(self, conn: Session) -> None:
        """Closes a connection, and replaces the idle ones at most once a second.

        What broke one connection, such as a restart, has probably broken the others too.
        """
        await conn.close()
        if self._due():
            self.renewed = time.monotonic()
            await self.drain()

    def _due(self) -> bool:
        return time.monotonic() - self.renewed > 1


def _alive(conn: Session) -> bool:
    """Returns whether the server has kept an idle connection open.

    Looks at the socket instead of running a query, which saves a round trip: an idle connection has
    nothing to read unless the server has said goodbye or hung up.
    """
    if conn.closed:
        return False
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return not poll.poll(0)


def _takes_no_writes(conn: Session) -> bool:
    """Returns whether the session began as read-only, which it stays even if new ones no longer are.

    PostgreSQL 14 and later report this unasked; with older servers it is always false.
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
    """Returns a pool of at most ``size`` connections in autocommit mode; ``async with`` opens it.

    With autocommit, a single statement costs one round trip; a group of statements opens a transaction.
    The server cancels a statement after ``statement_timeout`` seconds; 0 means no limit.

    :param shared: a pooler shares sessions between clients, transaction by transaction, as ``wait``
        reports it: nothing may be left behind in a session
    :param name: what the log calls the server
    :param history: how many past generations are kept of each resource that is written
    """
    milliseconds = round(statement_timeout * 1000)
    wanted = {
        "statement_timeout": f"{milliseconds}ms",
        # Shorter than the above, so that waiting for a lock is reported as such.
        "lock_timeout": f"{milliseconds * 9 // 10}ms",
        # A stopped process must not hold its locks for ever.
        "idle_in_transaction_session_timeout": f"{milliseconds * 2}ms",
        # A commit that did not wait for its standby is reported only as a warning.
        "client_min_messages": "warning",
        # Pages are small: JIT compilation or starting parallel workers takes longer than the query.
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        # Read by the triggers of migrations/0013.history.sql.
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
        # For transactions that psycopg begins, as it does for each statement behind a pooler.
        await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        if not shared:
            await conn.execute(SUPPORTED)

    return Pool(
        conninfo,
        connection_class=Session,
        kwargs=kwargs,
        min_size=min(2, size),
        max_size=size,
        timeout=POOL_TIMEOUT,
        configure=configure,
        # How long the pool itself retries a connection that fails; afterwards _watch() does, on demand.
        reconnect_timeout=ASK_AGAIN,
        name=name,
        statement_timeout=statement_timeout,
        shared=shared,
    )
