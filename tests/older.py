"""Requests to PostgreSQL that older versions of the server need in another form."""

import time

import psycopg
import pytest

# Seconds within which a session publishes its counters.
TOLD = 1.5


def end_others(sql: psycopg.Connection) -> None:
    """Ends all other sessions of this database, and waits until they are gone."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    sql.execute(f"SELECT pg_terminate_backend(pid) {others}")
    deadline = time.monotonic() + 5
    while sql.execute(f"SELECT pid {others}").fetchall():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def flush_counters(sql: psycopg.Connection) -> None:
    """Has the session's counters published before they are read, where the server can do that."""
    if sql.info.server_version >= 150_000:
        sql.execute("SELECT pg_stat_force_next_flush()")
    else:
        time.sleep(TOLD)


def needs_counted_plans(sql: psycopg.Connection) -> None:
    """Skips the test if the server does not report how often it planned a prepared statement."""
    if sql.info.server_version < 140_000:
        pytest.skip("PostgreSQL counts the plans of a prepared statement from 14 on")


def needs_small_expressions(sql: psycopg.Connection) -> None:
    """Skips the test if the server can compile every regular expression that a search may contain."""
    if sql.info.server_version < 150_000:
        pytest.skip("PostgreSQL has room for this regular expression before 15")


def needs_setting(sql: psycopg.Connection, name: str) -> None:
    """Skips the test where the server does not know a setting."""
    if not sql.execute("SELECT FROM pg_settings WHERE name = %s", [name]).fetchall():
        pytest.skip(f"PostgreSQL {sql.info.server_version // 10_000} has no {name}")
