"""The schema's migrations: what is applied, what is pending, and how to go forward and back.

yoyo reads and runs the SQL files; an advisory lock of PostgreSQL's keeps two runs apart. (yoyo's own
lock is a row in a table, which stays behind when a run is killed.)
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from hyperfleet.files import shipped

# Any number does, as long as it is always the same one.
LOCK = 4937015


@contextmanager
def _backend(conninfo: str) -> Iterator[Any]:
    # yoyo logs who migrates and looks the name up, which fails for a user id without an entry in
    # passwd, as container platforms hand them out.
    os.environ.setdefault("LOGNAME", "hyperfleet")
    parts: dict[str, Any] = conninfo_to_dict(conninfo)
    uri = DatabaseURI("postgresql+psycopg", None, None, None, None, parts.pop("dbname", ""), parts)
    with (
        psycopg.connect(conninfo, autocommit=True) as lock,
        PostgresqlPsycopgBackend(uri, "_yoyo_migration") as backend,
    ):
        lock.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        backend.init_database()
        yield backend


def _files() -> Any:
    return read_migrations(str(shipped("migrations")))


def apply(conninfo: str) -> list[str]:
    """Applies what is pending, each migration in a transaction; returns their names, oldest first.

    Waits for another run to finish. Raises psycopg.Error when a statement fails; the migrations
    before it stay.
    """
    with _backend(conninfo) as backend:
        pending = backend.to_apply(_files())
        backend.apply_migrations(pending)
        return [migration.id for migration in pending]


def roll_back(conninfo: str, count: int) -> list[str]:
    """Takes the newest ``count`` applied migrations back; returns their names, newest first."""
    with _backend(conninfo) as backend:
        newest = backend.to_rollback(_files())[:count]
        backend.rollback_migrations(newest)
        return [migration.id for migration in newest]


def names() -> list[str]:
    """The names of all migrations that this version ships, oldest first."""
    return list(_names())


@functools.cache
def _names() -> tuple[str, ...]:
    # Probes ask all day, and the files do not change while the process runs.
    return tuple(migration.id for migration in _files())


APPLIED = "SELECT migration_id FROM _yoyo_migration ORDER BY migration_id"


def applied(conn: psycopg.Connection[Any]) -> list[str]:
    """The names of the migrations that the database has; reads only, and needs no lock."""
    try:
        return [name for (name,) in conn.execute(APPLIED)]
    except psycopg.errors.UndefinedTable:
        return []


def pending(conn: psycopg.Connection[Any]) -> list[str]:
    """The names of the migrations that this version ships and the database lacks, oldest first."""
    have = set(applied(conn))
    return [name for name in names() if name not in have]
