"""The connection to PostgreSQL: where it is, how long to wait for it, and the pool."""

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from hyperfleet.errors import ConfigurationError, StartError
from hyperfleet.settings import Settings

logger = logging.getLogger(__name__)

Connection: TypeAlias = psycopg.Connection[TupleRow]
Cursor: TypeAlias = psycopg.Cursor[TupleRow]

# A request that gets no connection within this many seconds is told that the service is busy.
POOL_TIMEOUT = 3.0
# Seconds between two tries of a database that is away.
ASK_AGAIN = 0.4
# Seconds beyond those of its statements after which nothing is expected of a connection any more.
MARGIN = 5


def conninfo(settings: Settings) -> str:
    """The connection string that the settings ask for; empty: none was configured.

    Raises ConfigurationError for a string that libpq does not understand.
    """
    parts = {
        "host": settings.db_host,
        "port": settings.db_port,
        "dbname": settings.db_name,
        "user": settings.db_user,
        "password": settings.db_password,
        "sslmode": settings.db_sslmode,
        "sslrootcert": settings.db_rootcert,
    }
    given = {key: value for key, value in parts.items() if value}
    if not settings.database_url and not settings.db_host:
        if given:
            raise ConfigurationError(
                f"A database's {', '.join(given)} is set, but neither --db-host nor --database-url."
            )
        return ""
    # A network that swallows packets is noticed within seconds instead of hours.
    defaults = {
        "connect_timeout": "5",
        "application_name": "hyperfleet",
        "keepalives_idle": "10",
        "keepalives_interval": "3",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }
    try:
        return make_conninfo(
            **{**defaults, **conninfo_to_dict(settings.database_url), **given}  # type: ignore[arg-type]
        )
    except psycopg.ProgrammingError as error:
        # libpq quotes the string in its message, and a password may be in it.
        reason = str(error).partition('"')[0].strip()
        raise ConfigurationError(f"The settings of the database are not understood: {reason}") from None


def describe(conninfo: str) -> str:
    """The connection string as it may be shown: host, port and name, no user and no password."""
    known = conninfo_to_dict(conninfo)
    host, port = known.get("host") or "localhost", known.get("port") or "5432"
    where = f"socket {host}" if str(host).startswith("/") else f"{host}:{port}"
    return f"{known.get('dbname') or known.get('user') or 'default'} at {where}"


def connect(conninfo: str) -> Connection:
    """A connection of its own for what runs beside the service, in autocommit mode.

    Leaves no prepared statements behind: whose session it is, is a pooler's choice.
    """
    return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)


def wait(conninfo: str, timeout: float) -> bool:
    """Returns once the database answers; a line is logged for each try that failed.

    Tells whether a pooler such as PgBouncer is in between, which lends its sessions to one client
    after the other. It makes up the process id that PostgreSQL tells a client at its connection.

    Raises StartError when it has not answered within ``timeout`` seconds, or at once when
    it refuses the user, the password or the name, which no waiting mends.
    """
    deadline = time.monotonic() + timeout
    pause, tries = 0.5, 0
    while True:
        tries += 1
        try:
            with connect(conninfo) as conn:
                told = conn.info.backend_pid
                return conn.execute("SELECT pg_backend_pid()").fetchone() != (told,)
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())
            hopeless = isinstance(error, REFUSED) or "authentication failed" in reason
            left = deadline - time.monotonic()
            if hopeless or left <= 0:
                raise StartError(
                    f"The database {describe(conninfo)} cannot be reached "
                    f"({'1 try' if tries == 1 else f'{tries} tries'}): {reason}"
                ) from None
            logger.warning("database not reachable, try %d, %.0f s left: %s", tries, left, reason)
            time.sleep(min(pause, left))
            pause = min(pause * 2, 5)


REFUSED = (
    psycopg.errors.InvalidPassword,
    psycopg.errors.InvalidAuthorizationSpecification,
    psycopg.errors.InvalidCatalogName,
)


# What PostgreSQL's codes of errors begin with when it is the connection that is at fault, or the
# server's end; and when it can't do its work at present: the state of a transaction, as in a database
# that is read-only, a right that the role lacks, resources, an operator, the system.
ABSENT = ("08", "57P")
UNABLE = (*ABSENT, "25", "42501", "53", "57", "58")


def absent(error: Exception) -> bool:
    """Whether an error says that the database cannot be reached."""
    return _begins(error, ABSENT)


def unable(error: Exception) -> bool:
    """Whether an error says that the database, if it is to be had, can't do its work at present."""
    return _begins(error, UNABLE)


def refused(error: Exception) -> bool:
    """Whether an error says that the database is there and takes no connection: for a limit, a
    password, a rule.
    """
    # The server's word alone has a severity; libpq knows no SQLSTATE of a connection that was not made.
    return "FATAL:" in str(error.__cause__ if isinstance(error, PoolTimeout) else error)


def _begins(error: Exception, codes: tuple[str, ...]) -> bool:
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate:
        return error.sqlstate.startswith(codes)
    # Not from the server but from psycopg and its pool, which found none.
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


class Session(psycopg.Connection[TupleRow]):
    """A connection of the pool. Behind a pooler of connections it is nobody's own, so ``travelling``
    holds what each transaction has to set for itself.
    """

    travelling: dict[str, str] | None = None


class Pool(ConnectionPool[Session]):
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
        super().__init__(*args, **kwargs)
        self.patience = patience
        # The connections in use, and when they have been so for too long.
        self.used: dict[Session, float] = {}
        self.lock = threading.Lock()
        threading.Thread(target=self._watch, name="database-watch", daemon=True).start()

    def _watch(self) -> None:
        """Hangs up where the answer does not come: a pooler that lost its server, or a server that is
        stopped, keeps the connection open and says nothing. TCP sees no fault in that.
        """
        while not self.closed:
            time.sleep(1)
            now = time.monotonic()
            with self.lock:
                for conn, end in self.used.items():
                    if end < now:
                        with suppress(OSError, psycopg.Error), _line(conn) as line:
                            line.shutdown(socket.SHUT_RDWR)

    def _connect(self, timeout: float | None = None) -> Session:
        # The pool tries in a thread of its own, and tells nobody but its log what it was told.
        try:
            conn = super()._connect(timeout)
        except Exception as error:
            self.trouble = error
            raise
        self.trouble = None
        return conn

    def getconn(self, timeout: float | None = None) -> Session:
        """A connection that the server has not closed, within ``timeout`` seconds.

        Raises PoolTimeout when there is none; its cause is why none could be made, if that is why.
        """
        timeout = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        while True:
            try:
                # Whoever asks makes the pool try the database, so it is asked again and again.
                conn = super().getconn(min(ASK_AGAIN, deadline - time.monotonic()))
            except PoolTimeout:
                if time.monotonic() < deadline:
                    continue
                raise PoolTimeout(f"no connection within {timeout:.1f} s") from self.trouble
            if _alive(conn) and not (_takes_no_writes(conn) and self._due()):
                return conn
            self.discard(conn)
            self.putconn(conn)

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Session]:
        """A connection, given back at the end of the block unless it is of no more use."""
        with super().connection(timeout) as conn:
            try:
                with self.lock:
                    self.used[conn] = time.monotonic() + self.patience
                yield conn
            except psycopg.Error as error:
                if conn.broken or isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                    self.discard(conn)
                raise
            finally:
                with self.lock:
                    del self.used[conn]

    def discard(self, conn: Session) -> None:
        """Closes a connection, and makes the idle ones anew: what befell one, such as a restart, will
        have befallen the others. Once a second, that it is not all the service does.
        """
        conn.close()
        if self._due():
            self.renewed = time.monotonic()
            self.drain()

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


def open_pool(conninfo: str, size: int, statement_timeout: float = 5, *, shared: bool = False) -> Pool:
    """A pool of at most ``size`` connections in autocommit mode; whoever opens it closes it.

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

    def configure(conn: Session) -> None:
        conn.travelling = wanted if shared else None

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
        open=True,
        # A few statements that take their time one after the other still get their answers.
        patience=2 * statement_timeout + MARGIN if statement_timeout else float("inf"),
    )


def fetch_one(pool: Pool, statement: str, values: Mapping[str, Any]) -> TupleRow | None:
    """Runs one statement as its own transaction, in one round trip, and returns its first row."""
    return _run(pool, statement, values).fetchone()


def fetch_all(pool: Pool, statement: str, values: Mapping[str, Any]) -> list[TupleRow]:
    """Runs one statement as its own transaction, in one round trip, and returns its rows.

    It is planned each time, for the very values: how to search for a label depends on which one.
    """
    return _run(pool, statement, values, prepare=False).fetchall()


def _run(pool: Pool, statement: str, values: Mapping[str, Any], prepare: bool | None = None) -> Cursor:
    with pool.connection() as conn:
        if conn.travelling is None:
            return conn.execute(statement, values, prepare=prepare)
        with _transaction(conn):
            return conn.execute(statement, values)


# What a shared session needs, for one transaction.
TRAVELLING = "SELECT set_config(key, value, true) FROM unnest(%s::text[], %s::text[]) AS s (key, value)"


@contextmanager
def transaction(pool: Pool) -> Iterator[Connection]:
    """A transaction: commits at the end of the block, rolls back on an exception.

    Statements travel together until a result is fetched, and what is left travels with the COMMIT: a
    block that fetches once costs two round trips. An error of a statement surfaces at the next fetch
    or at the end of the block. Behind a pooler each statement travels for itself.
    """
    with pool.connection() as conn, _transaction(conn):
        yield conn


@contextmanager
def _transaction(conn: Session) -> Iterator[None]:
    # After statements that travel together, PgBouncer 1.18 sometimes goes on holding the session for
    # this connection, idle as it is, and the next one waits for it.
    together = conn.pipeline() if conn.travelling is None else nullcontext()
    try:
        with together:
            conn.execute("BEGIN")
            if conn.travelling:
                conn.execute(TRAVELLING, [[*conn.travelling], [*conn.travelling.values()]])
            yield
            conn.execute("COMMIT")
    except BaseException:
        if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            conn.rollback()
        raise
