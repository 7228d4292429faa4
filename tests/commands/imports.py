"""Databases of originals to import from, and the import itself."""

import itertools
from collections.abc import Iterator

import psycopg
import psycopg.sql
import pytest
from conftest import made
from original import Original, uid
from process import run_here
from pytest_postgresql.executors import NoopExecutor

numbers = itertools.count(1)
A, B, C, D = (uid(number) for number in range(1, 5))
P, Q, R, S = (uid(number, 1) for number in range(1, 5))


@pytest.fixture
def empty(postgres: NoopExecutor) -> Iterator[str]:
    """The connection string of an empty database without migrations."""
    with made(postgres, f"original_{next(numbers)}") as conninfo:
        yield conninfo


@pytest.fixture
def first(empty: str) -> Iterator[Original]:
    """The database of an original of December 2025."""
    original = Original(empty)
    with original.conn:
        yield original


@pytest.fixture
def newest(empty: str) -> Iterator[Original]:
    """The database of the newest original."""
    original = Original(empty, newest=True)
    with original.conn:
        yield original


def fill(original: Original) -> None:
    """Stores what clients of the original would have, and nothing unusual."""
    original.cluster(A, "prod", generation=3, labels={"env": "prod", "tier": "gold"})
    original.cluster(B, "stage", spec={"n": 12345678901234567890, "pi": [1.5, None], "ü": "\t"})
    original.node_pool(P, "workers", A, generation=2)
    original.node_pool(Q, "workers", B, labels={})
    original.report(A, "dns", observed_generation=3)
    original.report(A, "validator", observed_generation=3, metadata={"attempt": 2, "job_name": "j"})
    original.report(B, "dns", "False")
    original.report(P, "np", resource_type="NodePool", observed_generation=2)


def take(database: str, original: Original | str, *more: str, code: int = 0) -> str:
    source = original.conninfo if isinstance(original, Original) else original
    ended = run_here("import", "--from-database", source, "--database-url", database, *more)
    assert ended.returncode == code, ended.stdout
    return ended.stdout


def numbers_of(sql: psycopg.Connection) -> tuple[int, int]:
    row = sql.execute("SELECT (SELECT count(*) FROM clusters), (SELECT count(*) FROM node_pools)")
    clusters, pools = row.fetchone() or (0, 0)
    return clusters, pools
