"""Connections to PostgreSQL: where it is, how long to wait for it, and what its errors say of it."""

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


# A network that swallows packets is noticed within seconds instead of hours.
DEFAULTS = {
    "connect_timeout": "5",
    "application_name": "hyperfleet",
    "keepalives_idle": "10",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}

# Seconds within which who has taken a connection must answer on it, at the start.
ANSWER = 5.0

# What texts are sent and shown in, whatever the database, a role or libpq's variables have for others.
ENCODING = "UTF8"

# What a server says of a user, a password or a name that it does not know, and libpq of a word that it
# does not understand: words alone, since libpq has no SQLSTATE of a connection that was not made.
HOPELESS = re.compile(
    r'authentication failed|FATAL: .*(role|database) "[^"]*" does not exist'
    r'|invalid "?\w+"? value:? "|weak sslmode "|could not match \d+ '
)


class Cursor(Protocol):
    """What a statement has found."""

    def fetchone(self) -> TupleRow | None:
        """The next row, if there is one."""

    def fetchall(self) -> list[TupleRow]:
        """All rows that are left."""

    def __iter__(self) -> Iterator[TupleRow]:
        """All rows that are left."""


class Connection(Protocol):
    """What statements run on: a connection of its own, or one of the pool."""

    def execute(self, statement: Any, values: Any = None, /) -> Cursor:
        """Runs a statement."""


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
    return _completed(settings.database_url, given)


def read_conninfo(settings: Settings) -> str:
    """The connection string of the standbys that the settings name; empty: of none.

    Raises ConfigurationError for a string that libpq does not understand.
    """
    return settings.read_database_url and _completed(settings.read_database_url, {})


def _completed(url: str, given: Mapping[str, str]) -> str:
    try:
        known: dict[str, Any] = {**conninfo_to_dict(url), **given}
        # Of several servers, the next one must be found before the request gives up.
        several = "," in f"{known.get('host', '')}{known.get('hostaddr', '')}"
        patience = {"connect_timeout": "2"} if several else {}
        return make_conninfo(**{**DEFAULTS, **patience, **known})
    except psycopg.ProgrammingError as error:
        told = f"The settings of the database are not understood: {reason(error)}"
        raise ConfigurationError(told) from None


def describe(conninfo: str) -> str:
    """The connection string as it may be shown: host, port and name, no user and no password."""
    known = conninfo_to_dict(conninfo)
    hosts = str(known.get("host") or known.get("hostaddr") or "").split(",")
    ports = str(known.get("port") or "").split(",")
    # One port may be that of all.
    ports = ports * len(hosts) if len(ports) == 1 else ports
    where = ", ".join(
        f"socket {host}" if host.startswith("/") else f"{host or 'localhost'}:{port or 5432}"
        for host, port in zip(hosts, ports, strict=False)
    )
    return f"{known.get('dbname') or known.get('user') or 'default'} at {where}"


def connect(conninfo: str) -> psycopg.Connection[TupleRow]:
    """A connection of its own for what runs beside the service, in autocommit mode.

    Leaves no prepared statements behind: whose session it is, is a pooler's choice.
    """
    conn = psycopg.connect(conninfo, autocommit=True, prepare_threshold=None, client_encoding=ENCODING)
    # Of its transactions, whatever a role or a database has for others.
    conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return conn


@contextmanager
def answering(conn: psycopg.Connection[TupleRow]) -> Iterator[None]:
    """Hangs up where the block's statements take longer than :data:`ANSWER`, which raises
    OperationalError: a pooler takes connections that it has no session of the server for.
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
    """Whether a pooler is in between; ``otherwise`` where the server does not answer now."""
    try:
        return wait(conninfo, 0)
    except StartError:
        return otherwise


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
    return "FATAL:" in str(cause(error))


def busy(error: Exception) -> bool:
    """Whether an error says that all connections are in use, and not that none could be made."""
    return isinstance(error, PoolTimeout) and error.__cause__ is None


def reason(error: Exception) -> str:
    """What an error says, in one line for the log and for operators."""
    said = " ".join(str(cause(error)).split())
    # libpq quotes a string that it does not understand, and a password may be in it.
    quoting = isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None
    return said.partition('"')[0].strip() if quoting else said


def cause(error: Exception) -> BaseException:
    """What a pool met that gives no connection, if it met anything; any other error itself."""
    return error.__cause__ or error if isinstance(error, PoolTimeout) else error


def _begins(error: Exception, codes: tuple[str, ...]) -> bool:
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate:
        return error.sqlstate.startswith(codes)
    # Not from the server but from psycopg and its pool, which found none.
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or confused(error)


def confused(error: BaseException) -> bool:
    """Whether psycopg heard more than an answer, as where the server says goodbye right behind it."""
    return isinstance(error, psycopg.InternalError) and error.sqlstate is None
