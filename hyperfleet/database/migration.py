"""The schema's migrations: which are applied or pending, and how to apply them and roll them back.

yoyo reads and runs the SQL files; a PostgreSQL advisory lock keeps two runs apart. (yoyo's own lock is a
row in a table, which is left behind when a run is killed.)
"""

import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from hyperfleet.database import connection
from hyperfleet.files import shipped

logger = logging.getLogger(__name__)


class MigrationRefused(Exception):
    """Nothing was migrated; the message says why, and what to do."""


# The number is arbitrary but must never change.
LOCK = 4937015
# Seconds before a migration that got no lock is retried, and the attempt at which that is logged.
PAUSE = 1.0
TOLD = 3


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """Runs migrations; those in a transaction do not wait long for a lock.

    A session waiting for a table blocks all that come after it, and a dump holds all tables to its end.
    """

    def begin(self) -> None:
        """Begins a transaction with a short lock timeout."""
        super().begin()
        # LOCAL, since a pooler may give the session to another client afterwards.
        self.execute("SET LOCAL lock_timeout = '500ms'")

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> None:
        """Applies a migration, and records it in the same transaction.

        So a run that dies in between can be repeated; a migration without a transaction is repeatable.
        """
        migration.load()
        if migration.use_transactions:
            self._do(migration, "apply", Backend.mark_one, force=force)
        else:
            super().apply_one(migration, force, mark)

    def rollback_one(self, migration: Any, force: bool = False) -> None:
        """Rolls a migration back, and removes its record in the same transaction."""
        migration.load()
        if migration.use_transactions:
            self._do(migration, "rollback", Backend.unmark_one, force=force)
        else:
            super().rollback_one(migration, force)

    def _do(self, migration: Any, what: str, note: Callable[..., None], *, force: bool) -> None:
        with self.copy() as own, own.transaction():
            migration.process_steps(own, what, force=force)
            note(own, migration, log=False)
        # Only after the commit: it looks up names, and others would wait for the locks meanwhile.
        self.log_migration(migration, what)

    def log_migration(self, migration: Any, operation: str) -> None:
        """Records when a migration was done. Uses a new connection, as does what follows, since the
        server may have closed the previous one, which was idle during the migration.
        """
        self.connection.close()
        self._connection = self.connect(self.uri)
        super().log_migration(migration, operation)


@contextmanager
def _backend(conninfo: str) -> Iterator[Any]:
    # yoyo logs who migrates and looks up the name, which fails for a user id that is not in passwd,
    # as on some container platforms.
    os.environ.setdefault("LOGNAME", "hyperfleet")
    parts: dict[str, Any] = conninfo_to_dict(conninfo)
    # As in connection.connect().
    parts["prepare_threshold"] = None
    parts["client_encoding"] = connection.ENCODING
    uri = DatabaseURI("postgresql+psycopg", None, None, None, None, parts.pop("dbname", ""), parts)
    with _turn(conninfo), Backend(uri, "_yoyo_migration") as backend:
        backend.init_database()
        yield backend


@contextmanager
def _turn(conninfo: str) -> Iterator[None]:
    # A transaction's lock, not a session's: a pooler keeps a session for one client only that long.
    with connection.connect(conninfo) as conn:
        _check(conn)
        while True:
            with conn.transaction():
                connection.lasting(conn)
                if conn.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK]).fetchone() == (True,):
                    # Ends the snapshot of the last statement, which CREATE INDEX CONCURRENTLY waits for.
                    conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                    yield
                    return
            time.sleep(0.2)


MAY_CREATE = """
SELECT current_user::text, current_database()::text, current_setting('server_encoding')::text,
       schema::text, coalesce(has_schema_privilege(current_user, schema, 'CREATE'), false)
FROM current_schema() AS schema
"""


def _check(conn: connection.Connection) -> None:
    row = conn.execute(MAY_CREATE).fetchone()
    assert row is not None
    user, database, encoding, schema, may = row
    if encoding != connection.ENCODING:
        # Such a database could not store every possible spec.
        raise MigrationRefused(
            f"The database {database} has the encoding {encoding}, but must have {connection.ENCODING}: "
            f"CREATE DATABASE ... ENCODING '{connection.ENCODING}' TEMPLATE template0;"
        )
    # If yoyo cannot create its own tables, it carries on and fails later because they are missing.
    if may:
        return
    schema = schema or "public"
    raise MigrationRefused(
        f"The role {user} may not create tables in the schema {schema} of the database {database}. "
        f'Its owner or a superuser can allow it: GRANT CREATE ON SCHEMA {schema} TO "{user}";'
    )


def _files() -> Any:
    return read_migrations(str(shipped("migrations")))


def _each(
    step: Callable[[Any], None], migrations: Iterable[Any], told: Callable[[str], object]
) -> list[str]:
    """Runs the step for each migration, calls ``told`` with its name, and returns all names.

    A migration that got no lock has changed nothing, and is retried until it gets one.
    """
    done = []
    for one in migrations:
        tries = 0
        while one.id not in done:
            try:
                step(one)
                done.append(one.id)
                told(one.id)
            except psycopg.errors.LockNotAvailable:
                tries += 1
                if tries == TOLD:
                    logger.warning("%s waits for older transactions, such as a dump", one.id)
                time.sleep(PAUSE)
    return done


def apply(conninfo: str, told: Callable[[str], object] = lambda _name: None) -> list[str]:
    """Applies all pending migrations, each in a transaction; returns their names, oldest first.

    :param told: called with the name of each migration as soon as it is applied
    Waits for another run to finish. Raises MigrationRefused if the role may not create tables or the
    database's encoding is not UTF8, and psycopg.Error if a statement fails; earlier migrations stay.
    """
    with _backend(conninfo) as backend:
        return _each(backend.apply_one, backend.to_apply(_files()), told)


def roll_back(
    conninfo: str, count: int, told: Callable[[str], object] = lambda _name: None
) -> list[str]:
    """Rolls back the newest ``count`` applied migrations; returns their names, newest first.

    :param told: called with the name of each migration as soon as it is rolled back
    Raises MigrationRefused if a newer version has applied migrations that this version does not know.
    """
    with _backend(conninfo) as backend:
        with connection.connect(conninfo) as conn:
            refuse_unknown(conn)
        return _each(backend.rollback_one, backend.to_rollback(_files())[:count], told)


@functools.cache
def names() -> Sequence[str]:
    """Returns the names of all migrations that this version ships, oldest first."""
    # Cached: probes call this constantly, and the files do not change while the process runs.
    return [migration.id for migration in _files()]


APPLIED = "/* migrations */ SELECT migration_id FROM _yoyo_migration ORDER BY migration_id"


def applied(conn: connection.Connection) -> list[str]:
    """Returns the names of the migrations applied to the database; only reads, and needs no lock."""
    try:
        return [name for (name,) in conn.execute(APPLIED)]
    except psycopg.errors.UndefinedTable:
        return []


def pending(conn: connection.Connection) -> list[str]:
    """Returns the names of the shipped migrations that the database lacks, oldest first."""
    have = set(applied(conn))
    return [name for name in names() if name not in have]


def unknown(conn: connection.Connection) -> list[str]:
    """Returns the names of the applied migrations that this version does not ship."""
    return [name for name in applied(conn) if name not in names()]


def refuse_unknown(conn: connection.Connection) -> None:
    """Raises MigrationRefused if a newer version has applied migrations unknown to this one."""
    strange = unknown(conn)
    if strange:
        raise MigrationRefused(
            f"A newer version has applied {', '.join(strange)}, which must be rolled back first: "
            "use that version's migrate --rollback."
        )


DROP = re.compile(
    r"DROP (TABLE|COLUMN|INDEX|FUNCTION|TRIGGER|STATISTICS) (?:CONCURRENTLY )?(?:IF EXISTS )?([a-z_]+)"
)
MADE_ANEW = re.compile(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY ([a-z_]+)")
# Only at the beginning of a line, not inside the body of a function.
ROWS = re.compile(r"^DELETE FROM ([a-z_]+)", re.MULTILINE)


def drops(name: str) -> list[str]:
    """Returns what a migration's rollback drops, such as ``table clusters`` or ``rows of audit``.

    Tables come first, since their contents go with them.
    """
    text = shipped("migrations").joinpath(f"{name}.rollback.sql").read_text(encoding="utf-8")
    anew = set(MADE_ANEW.findall(text))
    found = [f"rows of {what}" for what in ROWS.findall(text)]
    found += [f"{sort.lower()} {what}" for sort, what in DROP.findall(text) if what not in anew]
    return sorted(dict.fromkeys(found), key=lambda what: not what.startswith("table"))
