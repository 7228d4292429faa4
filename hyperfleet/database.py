"""The connection to PostgreSQL: where it is, how long to wait for it, and the pool."""

import logging
import select
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

import click
import flask
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from hyperfleet.settings import Settings

logger = logging.getLogger(__name__)

Connection: TypeAlias = psycopg.Connection[TupleRow]
Pool: TypeAlias = ConnectionPool[Connection]

# A request that gets no connection within this many seconds is told that the service is busy.
POOL_TIMEOUT = 3.0


def conninfo(settings: Settings) -> str:
    """The connection string that the settings ask for; empty: none was configured.

    Raises click.UsageError for a string that libpq does not understand.
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
            raise click.UsageError(
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
        raise click.UsageError(f"--database-url is not understood: {reason}") from None


def describe(conninfo: str) -> str:
    """The connection string as it may be shown: host, port and name, no user and no password."""
    known = conninfo_to_dict(conninfo)
    host, port = known.get("host") or "localhost", known.get("port") or "5432"
    where = f"socket {host}" if str(host).startswith("/") else f"{host}:{port}"
    return f"{known.get('dbname') or known.get('user') or 'default'} at {where}"


def wait(conninfo: str, timeout: float) -> None:
    """Returns once the database answers; a line is logged for each try that failed.

    Raises click.ClickException when it has not answered within ``timeout`` seconds, or at once when
    it refuses the user, the password or the name, which no waiting mends.
    """
    deadline = time.monotonic() + timeout
    pause, tries = 0.5, 0
    while True:
        tries += 1
        try:
            psycopg.connect(conninfo).close()
            return
        except psycopg.OperationalError as error:
            reason = " ".join(str(error).split())
            hopeless = isinstance(error, REFUSED) or "authentication failed" in reason
            left = deadline - time.monotonic()
            if hopeless or left <= 0:
                raise click.ClickException(
                    f"The database {describe(conninfo)} is not to be had "
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


def _alive(connection: Connection) -> None:
    """Raises psycopg.OperationalError for a connection that the server closed while it was idle.

    A look at the socket instead of a query: no round trip. An idle connection has nothing to read
    unless the server said goodbye.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        connection.pgconn.consume_input()
        if connection.pgconn.status != psycopg.pq.ConnStatus.OK:
            raise psycopg.OperationalError("the server closed the connection")


# Pages are small: compiling a plan, or starting workers for it, takes longer than running it.
SESSION = """
SELECT set_config('statement_timeout', %s, false), set_config('jit', 'off', false),
       set_config('max_parallel_workers_per_gather', '0', false)
"""


def open_pool(conninfo: str, size: int, statement_timeout: float = 5) -> Pool:
    """A pool of at most ``size`` connections in autocommit mode; whoever opens it closes it.

    Autocommit makes a single statement cost one round trip; what takes several says so itself. The
    database ends a statement that takes longer than ``statement_timeout``, in seconds; 0 is no bound.
    """

    def configure(conn: Connection) -> None:
        conn.execute(SESSION, [f"{round(statement_timeout * 1000)}ms"])

    return ConnectionPool(
        conninfo,
        kwargs={"autocommit": True},
        min_size=min(2, size),
        max_size=size,
        timeout=POOL_TIMEOUT,
        check=_alive,
        configure=configure,
        # How long a broken connection is tried to be made anew, with ever longer pauses; what is given
        # up is made anew by the next request, which is sooner.
        reconnect_timeout=3,
        name="hyperfleet",
        open=True,
    )


def connection() -> AbstractContextManager[Connection]:
    """A connection of the running application's pool, given back at the end of the block."""
    pool: Pool = flask.current_app.extensions["pool"]
    return pool.connection()


def fetch_one(statement: str, values: dict[str, Any]) -> TupleRow | None:
    """Runs one statement as its own transaction, in one round trip, and returns its first row."""
    with connection() as conn:
        return conn.execute(statement, values).fetchone()


def fetch_all(statement: str, values: dict[str, Any]) -> list[TupleRow]:
    """Runs one statement as its own transaction, in one round trip, and returns its rows.

    It is planned each time, for the very values: how to search for a label depends on which one.
    """
    with connection() as conn:
        return conn.execute(statement, values, prepare=False).fetchall()


@contextmanager
def transaction() -> Iterator[Connection]:
    """A transaction in pipeline mode: commits at the end of the block, rolls back on an exception.

    Statements travel together until a result is fetched, and what is left travels with the COMMIT: a
    block that fetches once costs two round trips. An error of a statement surfaces at the next fetch
    or at the end of the block.
    """
    with connection() as conn:
        try:
            with conn.pipeline():
                conn.execute("BEGIN")
                yield conn
                conn.execute("COMMIT")
        except BaseException:
            if conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                conn.rollback()
            raise
