"""The schema's migrations: what is applied, what is pending, and how to go forward and back.

yoyo reads and runs the SQL files; an advisory lock of PostgreSQL's keeps two runs apart. (yoyo's own
lock is a row in a table, which stays behind when a run is killed.)
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
    """Why nothing was migrated, and what helps."""


# Any number does, as long as it is always the same one.
LOCK = 4937015
# Seconds before the next try of a migration that got no lock, and the try that is told of.
PAUSE = 1.0
TOLD = 3


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """Runs migrations, those in a transaction without waiting for a lock for long: who waits for a table
    keeps all who come after from it, and a dump holds all tables until it is done.
    """

    def begin(self) -> None:
        """Begins a transaction."""
        super().begin()
        # Of this transaction alone: whose session it is, is a pooler's choice.
        self.execute("SET LOCAL lock_timeout = '500ms'")

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> None:
        """Applies a migration. That it is done is noted by the transaction that does it, so that whoever
        ends in between, or is killed, may be run again; one without a transaction can be anyway.
        """
        migration.load()
        if migration.use_transactions:
            self._do(migration, "apply", Backend.mark_one, force=force)
        else:
            super().apply_one(migration, force, mark)

    def rollback_one(self, migration: Any, force: bool = False) -> None:
        """Takes a migration back, and the note of it in the same way."""
        migration.load()
        if migration.use_transactions:
            self._do(migration, "rollback", Backend.unmark_one, force=force)
        else:
            super().rollback_one(migration, force)

    def _do(self, migration: Any, what: str, note: Callable[..., None], *, force: bool) -> None:
        with self.copy() as own, own.transaction():
            migration.process_steps(own, what, force=force)
            note(own, migration, log=False)
        # Not before: it looks names up, which others would wait for.
        self.log_migration(migration, what)


@contextmanager
def _backend(conninfo: str) -> Iterator[Any]:
    # yoyo logs who migrates and looks the name up, which fails for a user id without an entry in
    # passwd, as container platforms hand them out.
    os.environ.setdefault("LOGNAME", "hyperfleet")
    parts: dict[str, Any] = conninfo_to_dict(conninfo)
    # As connection.connect() has it.
    parts["prepare_threshold"] = None
    parts["client_encoding"] = connection.ENCODING
    uri = DatabaseURI("postgresql+psycopg", None, None, None, None, parts.pop("dbname", ""), parts)
    with _turn(conninfo), Backend(uri, "_yoyo_migration") as backend:
        backend.init_database()
        yield backend


@contextmanager
def _turn(conninfo: str) -> Iterator[None]:
    # The lock ends with its transaction, which a pooler leaves to who began it; sessions it doesn't.
    with connection.connect(conninfo) as conn:
        _check(conn)
        while True:
            with conn.transaction():
                conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
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
        # It could not hold all that may be in a spec.
        raise MigrationRefused(
            f"The database {database} has the encoding {encoding}, but must have {connection.ENCODING}: "
            f"CREATE DATABASE ... ENCODING '{connection.ENCODING}' TEMPLATE template0;"
        )
    # yoyo goes on when it can't make its own tables, and then fails for the lack of them.
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
    """Takes the step for each, and returns their names. One that got no lock has left nothing behind,
    and is tried again.
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
    """Applies what is pending, each migration in a transaction; returns their names, oldest first.

    :param told: called with the name of each migration as soon as it is applied
    Waits for another run to finish. Raises MigrationRefused for a role that may not create tables,
    psycopg.Error when a statement fails; the migrations before it stay.
    """
    with _backend(conninfo) as backend:
        return _each(backend.apply_one, backend.to_apply(_files()), told)


def roll_back(
    conninfo: str, count: int, told: Callable[[str], object] = lambda _name: None
) -> list[str]:
    """Takes the newest ``count`` applied migrations back; returns their names, newest first.

    :param told: as :func:`apply` has it
    Raises MigrationRefused when a newer version has applied what this one can't take back.
    """
    with _backend(conninfo) as backend, connection.connect(conninfo) as conn:
        refuse_unknown(conn)
        return _each(backend.rollback_one, backend.to_rollback(_files())[:count], told)


@functools.cache
def names() -> Sequence[str]:
    """The names of all migrations that this version ships, oldest first."""
    # Probes ask all day, and the files do not change while the process runs.
    return [migration.id for migration in _files()]


APPLIED = "/* migrations */ SELECT migration_id FROM _yoyo_migration ORDER BY migration_id"


def applied(conn: connection.Connection) -> list[str]:
    """The names of the migrations that the database has; reads only, and needs no lock."""
    try:
        return [name for (name,) in conn.execute(APPLIED)]
    except psycopg.errors.UndefinedTable:
        return []


def pending(conn: connection.Connection) -> list[str]:
    """The names of the migrations that this version ships and the database lacks, oldest first."""
    have = set(applied(conn))
    return [name for name in names() if name not in have]


def unknown(conn: connection.Connection) -> list[str]:
    """The names of the migrations that the database has and this version does not ship."""
    return [name for name in applied(conn) if name not in names()]


def refuse_unknown(conn: connection.Connection) -> None:
    """Raises MigrationRefused when a newer version has applied what this one can't take back."""
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
# At the beginning of a line: not what a function does when it is called.
ROWS = re.compile(r"^DELETE FROM ([a-z_]+)", re.MULTILINE)


def drops(name: str) -> list[str]:
    """What the rollback of a migration drops, such as ``table clusters`` or ``rows of audit``; tables
    come first, since what they hold goes with them.
    """
    text = shipped("migrations").joinpath(f"{name}.rollback.sql").read_text(encoding="utf-8")
    anew = set(MADE_ANEW.findall(text))
    found = [f"rows of {what}" for what in ROWS.findall(text)]
    found += [f"{sort.lower()} {what}" for sort, what in DROP.findall(text) if what not in anew]
    return sorted(dict.fromkeys(found), key=lambda what: not what.startswith("table"))
