"""Connections to PostgreSQL: building connection strings, waiting for the server, classifying errors."""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from hyperfleet.errors import ConfigurationError, StartError
from hyperfleet.settings.catalogue import Settings

logger = logging.getLogger(__name__)


# With these, a network that drops packets is noticed within seconds instead of hours.
DEFAULTS = {
    "connect_timeout": "5",
    "application_name": "hyperfleet",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}

# Seconds within which a server that has accepted a connection must answer on it, at startup.
ANSWER = 5.0

# The client encoding, regardless of what the database, a role or libpq's variables set.
ENCODING = "UTF8"

# Matches errors that retrying cannot fix: an unknown user or database, a wrong password, or an invalid
# value of a libpq option. Only the text tells: libpq has no SQLSTATE for a connection that was not made.
HOPELESS = re.compile(
    r'authentication failed|FATAL: .*(role|database) "[^"]*" does not exist'
    r'|invalid "?\w+"? value:? "|weak sslmode "|could not match \d+ '
)

# The second exists from PostgreSQL 17 on.
LASTING = """
SELECT set_config(name, '0', true) FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')
"""


class Cursor(Protocol):
    """The result of a statement."""

    def fetchone(self) -> TupleRow | None:
        """Returns the next row, or None if there is none."""

    def fetchall(self) -> list[TupleRow]:
        """Returns all remaining rows."""

    def __iter__(self) -> Iterator[TupleRow]:
        """Iterates over all remaining rows."""


class Connection(Protocol):
    """What statements run on: a standalone connection or one from the pool."""

    def execute(self, statement: Any, values: Any = None, /) -> Cursor:
        """Runs a statement and returns its result."""


def conninfo(settings: Settings) -> str:
    """Returns the connection string given by the settings; empty if no database is configured.

    Raises ConfigurationError if libpq does not understand the string.
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
    return _completed(settings.database_url, given)


def read_conninfo(settings: Settings) -> str:
    """Returns the standbys' connection string; empty if there are none. Raises ConfigurationError."""
    return settings.read_database_url and _completed(settings.read_database_url, {})


def _completed(url: str, given: Mapping[str, str]) -> str:
    try:
        known: dict[str, Any] = {**conninfo_to_dict(url), **given}
        # With several servers, the next one must be reached before the request gives up.
        several = "," in f"{known.get('host', '')}{known.get('hostaddr', '')}"
        patience = {"connect_timeout": "2"} if several else {}
        return make_conninfo(**{**DEFAULTS, **patience, **known})
    except psycopg.ProgrammingError as error:
        told = f"The settings of the database are not understood: {reason(error)}"
        raise ConfigurationError(told) from None


def describe(conninfo: str) -> str:
    """Returns a connection string in a form safe to show: database, hosts and ports, no credentials."""
    known = conninfo_to_dict(conninfo)
    hosts = str(known.get("host") or known.get("hostaddr") or "").split(",")
    ports = str(known.get("port") or "").split(",")
    # A single port applies to all hosts.
    ports = ports * len(hosts) if len(ports) == 1 else ports
    where = ", ".join(
        f"socket {host}" if host.startswith("/") else f"{host or 'localhost'}:{port or 5432}"
        for host, port in zip(hosts, ports, strict=False)
    )
    return f"{known.get('dbname') or known.get('user') or 'default'} at {where}"


def connect(conninfo: str) -> psycopg.Connection[TupleRow]:
    """Opens a connection in autocommit mode, outside the pool.

    It leaves no prepared statements behind, since a pooler decides which session a client gets.
    """
    conn = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, client_encoding=ENCODING)
    # Overrides any default of a role or the database for the transactions that psycopg begins.
    conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return conn


def lasting(conn: Connection) -> None:
    """Lifts the time limits on the current transaction, idle or not, wherever they were set."""
    conn.execute(LASTING)


@contextmanager
def answering(conn: psycopg.Connection[TupleRow]) -> Iterator[None]:
    """Raises OperationalError if the block's statements take longer than :data:`ANSWER`, by hanging up.

    A pooler accepts connections even if it has no server session for them.
    """
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        with (
            suppress(OSError, psycopg.OperationalError),
            socket.socket(fileno=os.dup(conn.fileno())) as line,
        ):
            line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(ANSWER, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except psycopg.OperationalError as error:
        if not late.is_set():
            raise
        raise psycopg.OperationalError(f"no answer within {ANSWER:g} s") from error
    finally:
        timer.cancel()


def wait(conninfo: str, timeout: float) -> bool:
    """Waits until the database answers, logging each failed attempt.

    Returns whether a pooler such as PgBouncer, which shares its sessions between clients, is in between.
    A pooler invents the backend process id that it gives a client on connecting.

    Raises StartError if the database has not answered within ``timeout`` seconds, or at once if it
    rejects the user, the password or the database name, which waiting cannot fix.
    """
    deadline = time.monotonic() + timeout
    pause, tries = 0.5, 0
    while True:
        tries += 1
        try:
            with connect(conninfo) as conn, answering(conn):
                told = conn.info.backend_pid
                return conn.execute("SELECT pg_backend_pid()").fetchone() != (told,)
        except psycopg.OperationalError as error:
            said = reason(error)
            left = deadline - time.monotonic()
            if HOPELESS.search(said) or left <= 0:
                raise StartError(
                    f"The database {describe(conninfo)} cannot be reached "
                    f"({'1 try' if tries == 1 else f'{tries} tries'}): {said}"
                ) from None
            logger.warning("database not reachable, try %d, %.0f s left: %s", tries, left, said)
            time.sleep(min(pause, left))
            pause = min(pause * 2, 5)


def pooled(conninfo: str, otherwise: bool) -> bool:
    """Returns whether a pooler is in between, or ``otherwise`` if the server does not answer now."""
    try:
        return wait(conninfo, 0)
    except StartError:
        return otherwise


# Prefixes of SQLSTATEs. ABSENT: the connection failed or the server is shutting down. UNABLE: also when
# the server cannot do its work at present: a transaction state (such as a read-only database), a missing
# privilege, a lack of resources, an operator's intervention, a system error.
ABSENT = ("08", "57P")
UNABLE = (*ABSENT, "25", "42501", "53", "57", "58")


def absent(error: Exception) -> bool:
    """Returns whether an error means that the database cannot be reached."""
    return _begins(error, ABSENT)


def unable(error: Exception) -> bool:
    """Returns whether an error means that the database is unreachable or cannot work at present."""
    return _begins(error, UNABLE)


def refused(error: Exception) -> bool:
    """Returns whether an error means that the database is there but refuses the connection.

    The reason may be a connection limit, a password or an access rule.
    """
    # Only the server's messages carry a severity; libpq has no SQLSTATE for a connection never made.
    return "FATAL:" in str(cause(error))


def busy(error: Exception) -> bool:
    """Returns whether an error means that all connections are in use, not that none could be made."""
    return isinstance(error, PoolTimeout) and error.__cause__ is None


def reason(error: Exception) -> str:
    """Returns the message of an error on one line, for the log and for operators."""
    said = " ".join(str(cause(error)).split())
    # libpq quotes a string that it does not understand, and that may contain a password.
    quoting = isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None
    return said.partition('"')[0].strip() if quoting else said


def cause(error: Exception) -> BaseException:
    """Returns why a pool could not make a connection, if that is known; otherwise the error itself."""
    return error.__cause__ or error if isinstance(error, PoolTimeout) else error


def _begins(error: Exception, codes: tuple[str, ...]) -> bool:
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate:
        return error.sqlstate.startswith(codes)
    # Raised not by the server but by psycopg or its pool, for lack of a connection.
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or confused(error)


def confused(error: BaseException) -> bool:
    """Returns whether psycopg received more than a reply, as when the server shuts down right then."""
    return isinstance(error, psycopg.InternalError) and error.sqlstate is None
