"""What tests ask of a PostgreSQL that servers of older versions are asked for in other ways."""

import time

import psycopg
import pytest

# Seconds within which a session tells what it has counted.
TOLD = 1.5


def end_others(sql: psycopg.Connection) -> None:
    """Ends all other sessions of this database; they are gone when it returns."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    sql.execute(f"SELECT pg_terminate_backend(pid) {others}")
    deadline = time.monotonic() + 5
    while sql.execute(f"SELECT pid {others}").fetchall():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def flush_counters(sql: psycopg.Connection) -> None:
    """Has what a session has counted told before it is read, where the server can be asked to."""
    if sql.info.server_version >= 150_000:
        sql.execute("SELECT pg_stat_force_next_flush()")
    else:
        time.sleep(TOLD)


def needs_counted_plans(sql: psycopg.Connection) -> None:
    """Skips the test where the server does not say how often it planned a prepared statement."""
    if sql.info.server_version < 140_000:
        pytest.skip("PostgreSQL counts the plans of a prepared statement from 14 on")


def needs_small_expressions(sql: psycopg.Connection) -> None:
    """Skips the test where the server makes room for every regular expression that a search may have."""
    if sql.info.server_version < 150_000:
        pytest.skip("PostgreSQL has room for this regular expression before 15")
