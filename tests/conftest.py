"""A real PostgreSQL for every test: embedded, or the server that HYPERFLEET_TEST_DATABASE_URL names.

Each test has a database of its own, copied from a migrated template.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor

from hyperfleet import embedded, migration


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoopExecutor]:
    """The server, and the migrated template that each test's database is copied from."""
    given = os.environ.get("HYPERFLEET_TEST_DATABASE_URL")
    if given:
        yield from template(given)
    else:
        # A short path: the name of a Unix socket may have 107 bytes.
        with embedded.running(tmp_path_factory.mktemp("pg")) as conninfo:
            yield from template(conninfo)


def template(conninfo: str) -> Iterator[NoopExecutor]:
    parts = conninfo_to_dict(conninfo)
    server = NoopExecutor(
        host=str(parts.get("host") or "127.0.0.1"),
        port=parts.get("port") or 5432,
        user=str(parts.get("user") or "postgres"),
        password=str(parts.get("password") or ""),
        dbname=f"hyperfleet_test_{os.getpid()}",
        options="",
    )
    janitor = DatabaseJanitor(
        user=server.user,
        host=server.host,
        port=server.port,
        dbname=server.template_dbname,
        password=server.password,
        as_template=True,
    )
    with janitor:
        migration.apply(url(server, server.template_dbname))
        yield server


def url(server: NoopExecutor, dbname: str) -> str:
    return make_conninfo(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        dbname=dbname,
    )


@pytest.fixture
def database(postgres: NoopExecutor) -> Iterator[str]:
    """The connection string of a migrated, empty database of this test's own."""
    with DatabaseJanitor(
        user=postgres.user,
        host=postgres.host,
        port=postgres.port,
        dbname=postgres.dbname,
        template_dbname=postgres.template_dbname,
        password=postgres.password,
    ):
        yield url(postgres, postgres.dbname)


@pytest.fixture
def sql(database: str) -> Iterator[psycopg.Connection]:
    """A connection to this test's database, for a look behind the API."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent
