"""Defaults of a database that are meant for other programs, such as an encoding, change no response."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from conftest import Api, made, maintenance, numbers
from process import run
from psycopg import sql as composed
from psycopg.conninfo import conninfo_to_dict
from pytest_postgresql.executors import NoopExecutor

from hyperfleet.database import migration

pytestmark = pytest.mark.slow

DEFAULTS = {
    "client_encoding": "LATIN1",
    "default_transaction_isolation": "serializable",
    "standard_conforming_strings": "off",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "row_security": "off",
    "quote_all_identifiers": "on",
}
TEXT = "Ä ß İ € 😀 a\\b'\""


def with_defaults(postgres: NoopExecutor, conninfo: str) -> None:
    for key, value in DEFAULTS.items():
        change = composed.SQL("ALTER DATABASE {} SET {} = {}").format(
            composed.Identifier(str(conninfo_to_dict(conninfo)["dbname"])),
            composed.Identifier(key),
            value,
        )
        maintenance(postgres).execute(change)


def test_values_are_returned_and_found_as_they_were_sent(
    postgres: NoopExecutor, database: str, service: Callable[..., Api]
) -> None:
    with_defaults(postgres, database)
    api = service()
    spec = {TEXT: TEXT, "t": TEXT, "n": 0.1, "large": 123456789012345678901234567890, "null": None}
    cluster = api.cluster("alpha", spec=spec, labels={"a": "NULL"})
    assert api.read(cluster) == cluster
    assert cluster["spec"] == spec
    age = datetime.now(UTC) - datetime.fromisoformat(cluster["created_time"])
    assert abs(age) < timedelta(minutes=5)
    condition = {"type": "Available", "status": "True", "message": TEXT}
    observed = "2026-03-01T12:00:00.123456+05:45"
    report = api.report(cluster, conditions=[condition], observed_time=observed, data=spec).json()
    assert report["data"] == spec
    assert report["last_report_time"] == "2026-03-01T06:15:00.123456Z"
    for search in (
        "spec.t='{}'".format(TEXT.replace("'", "''")),
        "spec.t like '%€%'",
        "labels.a='NULL'",
        "status.last_updated_time<'2026-03-01T06:16:00Z'",
    ):
        found = api.get("/clusters", params={"search": search}).json()
        assert [item["name"] for item in found["items"]] == ["alpha"], search
    assert api.get(f"/clusters/{cluster['id']}/history/1").json()["spec"] == spec


def test_concurrent_changes_get_no_serialization_error(
    postgres: NoopExecutor, database: str, service: Callable[..., Api]
) -> None:
    with_defaults(postgres, database)
    # Two, since changes of one cluster queue within a service.
    apis = [service(), service()]
    cluster = apis[0].cluster()

    def change(number: int) -> int:
        path = f"/clusters/{cluster['id']}"
        return Api(apis[number % 2].url).patch(path, json={"spec": {"n": number}}).status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(change, range(40))) == {200}
    assert apis[0].read(cluster)["generation"] == 41


def test_a_migration_completes(postgres: NoopExecutor) -> None:
    with made(postgres, str(next(numbers))) as conninfo:
        with_defaults(postgres, conninfo)
        done = run("migrate", "--database-url", conninfo)
        assert done.returncode == 0, done.stdout
        with psycopg.connect(conninfo, client_encoding="UTF8") as conn:
            assert migration.pending(conn) == []


@contextmanager
def encoded(postgres: NoopExecutor, encoding: str) -> Iterator[str]:
    with made(postgres, str(next(numbers))) as conninfo:
        name = composed.Identifier(str(conninfo_to_dict(conninfo)["dbname"]))
        maintenance(postgres).execute(composed.SQL("DROP DATABASE {}").format(name))
        statement = "CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0"
        maintenance(postgres).execute(composed.SQL(statement).format(name, encoding))
        yield conninfo


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_with_an_encoding_other_than_utf8_is_refused(
    postgres: NoopExecutor, encoding: str
) -> None:
    with encoded(postgres, encoding) as conninfo:
        done = run("migrate", "--database-url", conninfo)
    assert done.returncode == 1
    assert f"has the encoding {encoding}, but must have UTF8: CREATE DATABASE" in done.stdout
