"""``hyperfleet import`` takes over databases of the original, and services over their API."""

import contextlib
import itertools
import json
import signal
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import declared_kinds
import psycopg
import psycopg.sql
import pytest
from conftest import Api, made, migrated
from issuer import JsonServer
from older import needs_setting
from original import Original, at, ksuid, shown, uid
from process import CLEAN, HYPERFLEET, Serving, run, run_here, start
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from pytest_postgresql.executors import NoopExecutor
from urllib3 import HTTPResponse

from hyperfleet.takeover.api import PATIENCE, RETRIES, Patience
from hyperfleet.takeover.api import Api as Source

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


@pytest.mark.parametrize("which", ["first", "newest"])
def test_the_service_shows_what_the_original_held(
    which: str, request: pytest.FixtureRequest, api: Api, database: str
) -> None:
    original: Original = request.getfixturevalue(which)
    fill(original)
    before = original.checksum()
    output = take(database, original)
    assert "clusters    2 new, 0 changed, 0 same, 0 removed" in output
    assert "node pools  2 new, 0 changed, 0 same, 0 removed" in output
    assert "reports     4 stored" in output
    assert "Everything was imported." in output
    assert original.checksum() == before

    cluster = api.get(f"/clusters/{A}").json()
    assert cluster["name"] == "prod"
    assert cluster["generation"] == 3
    assert cluster["labels"] == {"env": "prod", "tier": "gold"}
    assert cluster["spec"] == {"region": "eu-1", "nodes": 3}
    assert (cluster["created_time"], cluster["updated_time"]) == (shown(0), shown(1))
    assert (cluster["created_by"], cluster["updated_by"]) == ("ann@example.com", "bob@example.com")
    assert "deleted_time" not in cluster
    assert cluster["status"]["phase"] == "Ready"
    assert [one["adapter"] for one in cluster["status"]["adapters"]] == ["dns", "validator"]
    ready = next(c for c in cluster["status"]["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["last_transition_time"]) == ("True", shown(2))
    assert '"n":12345678901234567890' in api.get(f"/clusters/{B}").text.replace(" ", "")
    assert api.get(f"/clusters/{B}").json()["spec"]["ü"] == "\t"
    reports = api.get(f"/clusters/{A}/statuses").json()["items"]
    assert sorted(one["adapter"] for one in reports) == ["dns", "validator"]
    report = next(one for one in reports if one["adapter"] == "validator")
    assert (report["created_time"], report["last_report_time"]) == (shown(1.5), shown(2))
    assert report["metadata"] == {"attempt": 2, "job_name": "j"}
    assert report["data"] == {"zone": "z1"}
    assert report["conditions"][0] == {
        **{"adapter": "validator", "type": "Available", "status": "True"},
        **{"reason": "Made", "message": "It is so.", "observed_generation": 3},
        **{"created_at": shown(1.5), "updated_at": shown(2), "last_transition_time": shown(1.75)},
    }
    pool = api.get(f"/clusters/{A}/nodepools/{P}").json()
    assert (pool["generation"], pool["status"]["phase"]) == (2, "Ready")
    assert pool["owner_references"]["id"] == A
    assert api.get("/clusters?search=labels.tier='gold'").json()["total"] == 1
    assert api.get("/nodepools").json()["total"] == 2

    # From here on it behaves as if it had always been here.
    assert api.report(cluster, "dns", observed_generation=3).status_code == 201
    changed = api.patch(f"/clusters/{A}", json={"spec": {"nodes": 4}}).json()
    assert changed["generation"] == 4


def conditions(api: Api, id_: str) -> dict[str, Any]:
    return {one["type"]: one for one in api.get(f"/clusters/{id_}").json()["status"]["conditions"]}


@pytest.mark.parametrize("which", ["first", "newest"])
def test_a_cluster_available_in_the_original_stays_available(
    which: str, request: pytest.FixtureRequest, api: Api, database: str
) -> None:
    original: Original = request.getfixturevalue(which)
    names = ("Reconciled", "LastKnownReconciled") if original.newest else ("Ready", "Available")
    there = [
        {
            **{"type": name, "status": status, "observed_generation": generation, "reason": "R"},
            **{"created_time": shown(0), "last_updated_time": shown(2)},
            "last_transition_time": shown(minute),
        }
        for name, status, generation, minute in ((names[0], "False", 2, 1.2), (names[1], "True", 1, 0.5))
    ]
    more = {} if original.newest else {"status_conditions": there}
    original.cluster(A, "prod", generation=2, **more)
    if original.newest:
        for one in there:
            original.insert("resource_conditions", resource_id=A, **one)
    # Midway through a new generation: one adapter has reported it, the other has not yet.
    original.report(A, "dns", observed_generation=2)
    original.report(A, "validator", observed_generation=1)
    take(database, original)
    found = conditions(api, A)
    for name in ("Available", "LastKnownReconciled"):
        assert (found[name]["status"], found[name]["observed_generation"]) == ("True", 1)
        assert found[name]["last_transition_time"] == shown(0.5)
    assert (found["Ready"]["status"], found["Ready"]["last_transition_time"]) == ("False", shown(1.2))
    assert "validator (True at generation 1)" in found["Ready"]["message"]


@pytest.mark.parametrize("which", ["first", "newest"])
def test_a_cluster_that_became_available_between_two_imports_stays_available(
    which: str, request: pytest.FixtureRequest, api: Api, database: str
) -> None:
    original: Original = request.getfixturevalue(which)

    def says(*rows: tuple[str, str, int, float]) -> None:
        there = [
            {
                **{"type": name, "status": status, "observed_generation": generation, "reason": "R"},
                **{"created_time": shown(0), "last_updated_time": shown(8)},
                "last_transition_time": shown(minute),
            }
            for name, status, generation, minute in rows
        ]
        if original.newest:
            original.conn.execute("DELETE FROM resource_conditions")
            for one in there:
                original.insert("resource_conditions", resource_id=A, **one)
        else:
            original.conn.execute("UPDATE clusters SET status_conditions = %s", [Jsonb(there)])

    ready, available = (
        ("Reconciled", "LastKnownReconciled") if original.newest else ("Ready", "Available")
    )
    original.cluster(A, "prod")
    says((ready, "False", 1, 0), (available, "False", 1, 0))
    take(database, original)
    assert conditions(api, A)["Available"]["status"] == "False"
    # Available at generation 1; of generation 2, one adapter has reported, the other has not.
    original.conn.execute(
        f"UPDATE {'resources' if original.newest else 'clusters'} SET generation = 2, updated_time = %s",
        [at(5)],
    )
    original.report(A, "dns", observed_generation=2, last_report_time=at(8))
    original.report(A, "validator", observed_generation=1, last_report_time=at(3))
    says((ready, "False", 2, 5), (available, "True", 1, 3))
    take(database, original)
    found = conditions(api, A)
    for name in ("Available", "LastKnownReconciled"):
        assert (found[name]["status"], found[name]["observed_generation"]) == ("True", 1)
        assert found[name]["last_transition_time"] == shown(3)
    for name in ("Ready", "Reconciled"):
        assert (found[name]["status"], found[name]["last_transition_time"]) == ("False", shown(5))
        assert found[name]["created_time"] == shown(0)

    # Reports that came here since then count, until the original has newer ones.
    here = api.get(f"/clusters/{A}").json()
    for adapter in ("dns", "validator"):
        assert api.report(here, adapter, observed_generation=2).status_code in {200, 201}
    came = conditions(api, A)["Ready"]["last_transition_time"]
    original.conn.execute("UPDATE adapter_statuses SET updated_time = %s", [at(9)])
    take(database, original)
    assert conditions(api, A)["Ready"]["last_transition_time"] == came
    assert conditions(api, A)["Available"]["observed_generation"] == 2


def test_a_row_that_the_database_rejects_is_reported_and_the_others_are_imported(
    first: Original, api: Api, database: str
) -> None:
    fill(first)
    # Too large for any index of PostgreSQL.
    first.cluster(C, "large", labels={"k": "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(4000))})
    output = take(database, first, code=3)
    assert f"cluster {C} 'large': the database refuses it: index row " in output
    assert "clusters    2 new" in output
    assert api.get("/nodepools").json()["total"] == 2


def held_up(original: Original, database: str, sql: psycopg.Connection) -> Future[str]:
    """Starts an import and returns, once it waits for a lock, the future of its output."""
    arguments = ("import", "--from-database", original.conninfo, "--database-url", database)
    said: Future[str] = Future()
    threading.Thread(target=lambda: said.set_result(run(*arguments).stdout), daemon=True).start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    end = time.monotonic() + 30
    while sql.execute(waiting, [sql.info.dbname]).fetchone() == (0,):
        assert time.monotonic() < end
        time.sleep(0.02)
    return said


def test_a_cluster_whose_name_is_taken_during_the_import_is_not_imported(
    first: Original, database: str, sql: psycopg.Connection
) -> None:
    fill(first)
    with psycopg.connect(database) as other:
        other.execute(
            """INSERT INTO clusters
                   (id, name, labels, spec, status, created_time, updated_time, created_by, updated_by)
               VALUES (%s, 'prod', '{}', '{}', '{}', now(), now(), 'a', 'a')""",
            [D],
        )
        import_ = held_up(first, database, sql)
    output = import_.result(20)
    assert f"cluster {A} 'prod': its name is that of {D}" in output
    assert "clusters    1 new" in output


def test_the_planner_has_statistics_after_an_import(
    first: Original, database: str, sql: psycopg.Connection
) -> None:
    fill(first)
    take(database, first)
    tables = ["clusters", "node_pools", "adapter_statuses", "labels"]
    known = "SELECT relname FROM pg_class WHERE relname = ANY(%s) AND reltuples > 0"
    assert {row[0] for row in sql.execute(known, [tables])} == {*tables}


def test_a_second_import_changes_nothing(
    first: Original, database: str, sql: psycopg.Connection
) -> None:
    fill(first)
    take(database, first)

    def state() -> list[Any]:
        return [
            sql.execute(f"SELECT t.*, xmin::text FROM {table} t ORDER BY 1, 2").fetchall()
            for table in ("clusters", "node_pools", "adapter_statuses", "labels", "imports")
        ]

    before = state()
    output = take(database, first)
    assert "clusters    0 new, 0 changed, 2 same, 0 removed" in output
    assert "reports     0 stored" in output
    assert state() == before


def rule(folder: Path, when: str, message: str) -> Path:
    """A settings file with a rule that gives clusters the condition ``Seen``."""
    said = {"status": '"True"', "reason": '"Seen"', "message": message}
    output = {name: {"expression": text} for name, text in said.items()}
    seen = {"type": "Seen", "when": {"expression": when}, "output": output}
    file = folder / "rules.yaml"
    file.write_text(json.dumps({"entities": [{"kind": "Cluster", "conditions": [seen]}]}))
    return file


def test_rules_of_mapped_conditions_see_imported_specs_and_reports(
    first: Original, api: Api, database: str, tmp_path: Path
) -> None:
    fill(first)
    message = "toJson(resource.spec) + toJson(statuses[0].data)"
    rules = rule(tmp_path, 'statuses.exists(s, s.adapter == "dns")', message)
    take(database, first, "--config", str(rules))

    def messages(id_: str) -> list[str]:
        conditions = api.get(f"/clusters/{id_}").json()["status"]["conditions"]
        return [c["message"] for c in conditions if c["type"] == "Seen"]

    def expected(id_: str) -> list[str]:
        spec = api.get(f"/clusters/{id_}").json()["spec"]
        data = {
            r["adapter"]: r.get("data", {}) for r in api.get(f"/clusters/{id_}/statuses").json()["items"]
        }
        return [
            "".join(
                json.dumps(one, separators=(",", ":"), sort_keys=True) for one in (spec, data["dns"])
            )
        ]

    assert messages(A) == expected(A)
    # When a report arrives later, the other reports are those already here.
    first.report(A, "late", observed_generation=3)
    take(database, first, "--config", str(rules))
    assert messages(A) == expected(A)
    command = ("migrate", "--refold", "--database-url", database, "--config", str(rules))
    assert run(*command).stdout.splitlines()[-1] == "0 statuses changed."


def test_rules_of_mapped_conditions_work_for_specs_with_numbers_no_double_can_hold(
    first: Original, api: Api, database: str, tmp_path: Path
) -> None:
    first.cluster(A, "prod", spec={"n": 10**400})
    first.report(A, "dns")
    rules = rule(tmp_path, "true", "statuses[0].adapter")
    take(database, first, "--config", str(rules))
    found = api.get(f"/clusters/{A}").json()
    assert found["spec"] == {"n": 10**400}
    assert [one["message"] for one in found["status"]["conditions"] if one["type"] == "Seen"] == ["dns"]


def test_a_dry_run_reports_the_same_and_writes_nothing(
    first: Original, database: str, sql: psycopg.Connection
) -> None:
    fill(first)
    first.cluster(C, "Not_A_Name")
    dry = take(database, first, "--dry-run", code=3)
    for table in ("clusters", "node_pools", "adapter_statuses", "labels", "imports"):
        assert sql.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    real = take(database, first, code=3)
    assert "Nothing was written; this is what would have been:" in dry
    assert dry.splitlines()[2:] == real.splitlines()[2:]


def test_rows_that_the_first_generation_marked_as_deleted_are_not_imported(
    first: Original, api: Api, database: str
) -> None:
    fill(first)
    first.cluster(C, "prod-old", deleted_at=at(5))
    first.cluster(D, "gone", deleted_at=at(5))
    first.node_pool(R, "gone", A, deleted_at=at(5))
    first.node_pool(S, "under-what-is-gone", C)
    first.report(A, "old", deleted_at=at(5))
    output = take(database, first, code=3)
    assert f"node pool {S} 'under-what-is-gone': its cluster {C} is not here" in output
    assert "Not imported: 1\n" in output
    assert api.get("/clusters").json()["total"] == 2
    assert api.get("/nodepools").json()["total"] == 2
    assert api.get(f"/clusters/{A}/statuses").json()["total"] == 2


def test_a_cluster_being_deleted_is_imported_as_such_and_its_deletion_completes_here(
    newest: Original, service: Callable[..., Api], database: str
) -> None:
    settings = {"required_adapters_cluster": ("dns",), "required_adapters_nodepool": ("np",)}
    marked = {"deleted_time": at(3), "deleted_by": "eve@example.com", "generation": 2}
    newest.cluster(A, "leaving", **marked)
    newest.node_pool(P, "workers", A, **marked)
    newest.cluster(B, "leaving-too", deleted_time=at(3))
    newest.report(A, "dns", observed_generation=1)
    take(database, newest, "--required-adapters-cluster", "dns", "--required-adapters-nodepool", "np")
    api = service(**settings)
    cluster = api.get(f"/clusters/{A}").json()
    assert (cluster["deleted_time"], cluster["deleted_by"]) == (shown(3), "eve@example.com")
    reconciled = next(c for c in cluster["status"]["conditions"] if c["type"] == "Reconciled")
    assert (
        "dns (Finalized missing at generation 1)" in reconciled["message"]
        or "no report" in (reconciled["message"])
    )
    assert api.get(f"/clusters/{B}").json()["deleted_by"] == "bob@example.com"
    done = [{"type": "Finalized", "status": "True"}, {"type": "Available", "status": "False"}]
    assert api.report(cluster, "dns", observed_generation=2, conditions=done).status_code == 201
    waiting = api.get(f"/clusters/{A}").json()["status"]["conditions"]
    assert "Resources still belonging or referring to it: 1." in [
        c["message"] for c in waiting if c["type"] == "Reconciled"
    ]
    pool = api.get(f"/nodepools/{P}").json()
    assert api.report(pool, "np", observed_generation=2, conditions=done).status_code == 201
    assert api.get(f"/nodepools/{P}").status_code == 404
    assert api.get(f"/clusters/{A}").status_code == 404


def test_everything_that_cannot_be_imported_is_reported_with_the_reason(
    newest: Original, api: Api, database: str
) -> None:
    fill(newest)
    odd = [uid(number) for number in range(20, 40)]
    newest.cluster(odd[0], "Prod_West")
    newest.cluster(odd[1], "a" * 64)
    newest.cluster("not-a-uuid", "fine")
    newest.cluster(odd[2], "list", spec=Jsonb([1]))
    newest.cluster(odd[3], "prod", deleted_time=at(9), deleted_by="x")
    newest.cluster(odd[4], "tenant", tenancy={"org": "1"})
    newest.cluster(odd[5], "never", created_time="infinity")
    newest.cluster(odd[6], "zero", generation=0)
    newest.node_pool(odd[7], "orphan", "no-such")
    newest.node_pool(odd[8], "orphan-of", odd[0])
    newest.insert(
        "resources", id=odd[9], kind="Channel", name="stable", spec={}, created_by="a", updated_by="a"
    )
    newest.insert(
        "resource_references", source_id=A, ref_type="channel", target_id=odd[9], target_kind="Channel"
    )
    newest.report(B, "broken", conditions=Jsonb({"type": "Available"}))
    newest.report(B, "silent", conditions=Jsonb([]))
    newest.report(B, "strange", conditions=Jsonb([{"type": "Available", "status": "Maybe"}]))
    newest.report(B, "early", observed_generation=0)
    newest.report(B, "listed", data=Jsonb([1]))
    output = take(database, newest, code=3)
    lines = output.partition("Not imported: ")[2].splitlines()
    assert lines[0] == "17"
    for line in (
        f"cluster {odd[0]} 'Prod_West': its name must match the pattern",
        f"cluster {odd[1]} '{'a' * 64}': its name must have at most 63 characters",
        "cluster not-a-uuid 'fine': its id is not a UUID; --derive-ids makes one from it",
        f"cluster {odd[2]} 'list': its spec is not a JSON object",
        f"cluster {odd[3]} 'prod': its name is that of {A}",
        f"cluster {odd[4]} 'tenant': it belongs to a tenant",
        f"cluster {odd[5]} 'never': created_time is not a time",
        f"cluster {odd[6]} 'zero': its generation is not a whole number",
        f"node pool {odd[7]} 'orphan': its id is not a UUID",
        f"node pool {odd[8]} 'orphan-of': its cluster {odd[0]} is not here",
        f"Channel {odd[9]} 'stable': this service knows no such kind",
        f"reference {A} 'channel': references are not kept: Channel {odd[9]}",
        f"report {B} 'broken': conditions must be an array",
        f"report {B} 'silent': conditions must have at least 1 item",
        f"report {B} 'strange': conditions[0].status must be one of",
        f"report {B} 'early': observed_generation must be at least 1",
        f"report {B} 'listed': its data is not a JSON object",
    ):
        assert any(one.startswith("  " + line) for one in lines), (line, output)
    assert api.get("/clusters").json()["total"] == 2
    assert api.get(f"/clusters/{B}/statuses").json()["total"] == 1
    # None of this is recorded as done: the next run reports the same.
    assert take(database, newest, code=3).partition("Not imported: ")[2].splitlines() == lines


def test_ids_of_december_2025_become_uuids_with_derive_ids(
    first: Original, api: Api, database: str
) -> None:
    first.cluster(ksuid(1), "prod")
    first.node_pool(ksuid(2), "workers", ksuid(1))
    first.report(ksuid(1), "dns")
    output = take(database, first, code=3)
    assert f"cluster {ksuid(1)} 'prod': its id is not a UUID; --derive-ids makes one from it" in output
    assert "Everything was imported." in take(database, first, "--derive-ids")
    found = api.get(f"/clusters?search=labels.hyperfleet.io/original-id='{ksuid(1)}'").json()["items"]
    assert [one["name"] for one in found] == ["prod"]
    assert found[0]["status"]["phase"] == "Ready"
    pool = api.get(f"/clusters/{found[0]['id']}/nodepools").json()["items"][0]
    assert pool["labels"] == {"team": "a", "hyperfleet.io/original-id": ksuid(2)}
    assert "0 new, 0 changed, 1 same, 0 removed" in take(database, first, "--derive-ids")
    # Clients that still have the old ids can continue to use them.
    path = f"/clusters/{ksuid(1)}/nodepools/{ksuid(2)}"
    assert api.get(path).json() == pool
    for search in (f"id='{ksuid(2)}'", f"owner_id in ('{ksuid(3)}', '{ksuid(1)}')"):
        found = api.get("/nodepools", params={"search": search}).json()["items"]
        assert [one["id"] for one in found] == [pool["id"]]
    available = [{"type": "Available", "status": "True"}]
    report = {"adapter": "dns", "observed_generation": 1, "conditions": available}
    assert api.put(f"{path}/statuses", json=report).status_code == 201
    assert api.get(f"/clusters/{ksuid(1)}/statuses").json()["total"] == 1
    assert api.patch(f"/clusters/{ksuid(1)}", json={"labels": {"a": "b"}}).status_code == 200
    assert api.get(f"/clusters/{ksuid(3)}").status_code == 404
    # Without the option, no old id is imported, and nothing imported before is removed.
    first.cluster(A, "with-a-uuid")
    output = take(database, first, code=3)
    assert "clusters    1 new, 0 changed, 0 same, 0 removed" in output
    assert api.get("/clusters").json()["total"] == 2


def test_resources_created_or_changed_here_yield_only_to_newer_changes_in_the_original(
    first: Original, api: Api, database: str
) -> None:
    fill(first)
    own = api.cluster("own")
    taken = api.cluster("stage")
    output = take(database, first, code=3)
    assert f"cluster {B} 'stage': its name is that of {taken['id']}" in output
    assert f"node pool {Q} 'workers': its cluster {B} is not here" in output
    mine = api.patch(f"/clusters/{A}", json={"spec": {"mine": True}}).json()
    assert mine["generation"] == 4

    # A change in the original wins only if it is newer than the one here.
    first.conn.execute("UPDATE clusters SET updated_time = now() WHERE name = 'prod'")
    output = take(database, first, code=3)
    assert f"cluster {A} 'prod': it was changed here after the import, and is no newer there" in output
    assert api.get(f"/clusters/{A}").json() == mine
    first.conn.execute(
        "UPDATE clusters SET generation = 5, spec = '{\"theirs\": 1}' WHERE name = 'prod'"
    )
    take(database, first, code=3)
    theirs = api.get(f"/clusters/{A}")
    assert (theirs.json()["generation"], theirs.json()["spec"]) == (5, {"theirs": 1})
    assert theirs.headers["ETag"] != '"1"'

    # What was removed here does not return. What is gone there is removed, unless it was changed here.
    assert api.delete(f"/clusters/{A}/nodepools/{P}").status_code == 202
    api.post(f"/clusters/{A}/nodepools/{P}/force-delete", json={"reason": "test"})
    assert api.get(f"/nodepools/{P}").status_code == 404
    first.conn.execute("UPDATE node_pools SET updated_time = now()")
    output = take(database, first, code=3)
    assert f"node pool {P} 'workers': it was removed here after the import" in output
    here_only = api.node_pool(theirs.json(), "here-only")
    first.conn.execute("UPDATE clusters SET deleted_at = now() WHERE name = 'prod'")
    output = take(database, first, code=3)
    assert f"cluster {A} 'prod': it is gone there, and something belongs to it here" in output
    assert api.delete(api.url + here_only["href"]).status_code == 202
    assert api.patch(f"/clusters/{A}", json={"labels": {"kept": "here"}}).status_code == 200
    output = take(database, first, code=3)
    assert f"cluster {A} 'prod': it is gone there, and was changed here after the import" in output
    assert api.get(f"/clusters/{A}").json()["labels"] == {"kept": "here"}
    assert api.read(own) == own


def test_resources_referred_to_here_are_not_removed(
    first: Original, database: str, sql: psycopg.Connection, tmp_path: Path
) -> None:
    fill(first)
    take(database, first)
    kinds = [
        {"kind": "Cluster", "references": [{"ref_type": "peers", "target_kind": "Cluster"}]},
        {
            **{"kind": "Plan", "plural": "plans"},
            "references": [{"ref_type": "pool", "target_kind": "NodePool"}],
        },
    ]
    config = declared_kinds.file(tmp_path, kinds)
    with Serving("--no-auth", f"--config={config}", f"--database-url={database}") as serving:
        api = Api(serving.url)
        for path, references in (
            ("/plans", {"pool": [{"id": Q}]}),
            ("/clusters", {"peers": [{"id": A}]}),
        ):
            body = {"name": "mine", "spec": {}, "references": references}
            assert api.post(path, json=body).status_code == 201
        first.conn.execute("UPDATE node_pools SET deleted_at = now()")
        first.conn.execute("UPDATE clusters SET deleted_at = now() WHERE name = 'prod'")
        output = take(database, first, "--remove-most", code=3)
        assert f"cluster {A} 'prod': it is gone there, and something here refers to it" in output
        assert f"node pool {Q} 'workers': it is gone there, and something here refers to it" in output
        assert "node pools  0 new, 0 changed, 0 same, 1 removed" in output
        assert api.get(f"/clusters/{A}").status_code == api.get(f"/nodepools/{Q}").status_code == 200
        # A deleted resource refers to nothing.
        sql.execute("DELETE FROM resources")
        output = take(database, first, "--remove-most", code=3)
        assert "node pools  0 new, 0 changed, 0 same, 1 removed" in output


def test_the_newer_report_counts_wherever_it_came_from(first: Original, api: Api, database: str) -> None:
    fill(first)
    take(database, first)
    cluster = api.get(f"/clusters/{A}").json()
    bad = [{"type": "Available", "status": "False"}]
    assert api.report(cluster, "dns", observed_generation=3, conditions=bad).status_code == 201
    first.conn.execute(
        "UPDATE adapter_statuses SET last_report_time = %s, updated_time = now(),"
        " data = '{\"new\": 1}' WHERE resource_id = %s",
        [at(4), A],
    )
    assert "reports     1 stored" in take(database, first)
    reports = {one["adapter"]: one for one in api.get(f"/clusters/{A}/statuses").json()["items"]}
    assert reports["dns"]["conditions"][0]["status"] == "False"
    assert reports["validator"]["data"] == {"new": 1}
    assert api.get(f"/clusters/{A}").json()["status"]["phase"] == "NotReady"


def test_a_source_that_is_empty_now_removes_nothing(first: Original, api: Api, database: str) -> None:
    fill(first)
    take(database, first)
    first.conn.execute("TRUNCATE clusters, node_pools, adapter_statuses")
    output = take(database, first, code=3)
    assert "nothing is left there; kept here" in output
    assert api.get("/clusters").json()["total"] == 2


@pytest.mark.parametrize("hidden", ["resource_conditions", "resource_labels", "resource_references"])
def test_a_table_that_the_role_cannot_read_is_reported_and_not_skipped(
    hidden: str, newest: Original, database: str
) -> None:
    fill(newest)
    role = f"partial_{next(numbers)}"
    newest.conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        newest.conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        newest.conn.execute(f"REVOKE SELECT ON {hidden} FROM {role}")
        theirs = make_conninfo(newest.conninfo, user=role, password="secret")
        said = take(database, theirs, code=1)
        assert f"it lacks SELECT on {hidden}." in said
        newest.conn.execute(f"GRANT SELECT ON {hidden} TO {role}")
        assert "2 new" in take(database, theirs)
    finally:
        newest.conn.execute(f"DROP OWNED BY {role}")
        newest.conn.execute(f"DROP ROLE {role}")


def test_an_import_with_an_invalid_source_target_or_option_is_rejected(
    first: Original, database: str, empty: str, postgres: NoopExecutor
) -> None:
    with migrated(postgres, f"other_{next(numbers)}") as other:
        said = take(database, other, code=1)
        assert "is not a database of the original" in said
        assert "Tables found: _yoyo_log, _yoyo_migration" in said
        assert "clusters, feeds, generations, idempotency_keys" in said
    assert "is the one of this service" in take(database, database, code=1)
    assert "lacks migrations (0001.resources, " in take(empty, database, code=1)
    for arguments, says in (
        ((), "either --from-database or --from-api"),
        (("--from-database", "a=b", "--from-api", "http://h"), "either --from-database or --from-api"),
        (("--from-database", "mysql://u:secret@h/d"), "the scheme mysql is not postgresql"),
        (("--from-api", "http://u:secret@h"), "must not hold a user or a password"),
        (("--from-api", "ftp://h"), "must be a URL such as"),
        (
            ("--from-api", "http://h", "--follow", "--dry-run"),
            "Give either --follow or --dry-run, not both.",
        ),
        (("--from-api", "http://127.0.0.1:1", "--token", "secret"), "cannot be read"),
        (("--from-database", "postgresql://u:secret@127.0.0.1:1/d"), "The import failed"),
    ):
        ended = run_here("import", "--database-url", database, *arguments)
        assert ended.returncode in (1, 2)
        assert says in ended.stdout, ended.stdout
        assert "secret" not in ended.stdout
        assert "Traceback" not in ended.stdout


def test_a_role_with_select_on_each_column_suffices(newest: Original, database: str) -> None:
    fill(newest)
    role = f"columns_{next(numbers)}"
    newest.conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        newest.conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        newest.conn.execute(f"REVOKE SELECT ON resource_labels FROM {role}")
        columns = [
            name
            for (name,) in newest.conn.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'resource_labels'::regclass"
                " AND attnum > 0"
            )
        ]
        theirs = make_conninfo(newest.conninfo, user=role, password="secret")
        newest.conn.execute(f"GRANT SELECT ({', '.join(columns[1:])}) ON resource_labels TO {role}")
        assert "it lacks SELECT on resource_labels." in take(database, theirs, code=1)
        newest.conn.execute(f"GRANT SELECT ({columns[0]}) ON resource_labels TO {role}")
        take(database, theirs)
    finally:
        newest.conn.execute(f"DROP OWNED BY {role} CASCADE")
        newest.conn.execute(f"DROP ROLE {role}")


def test_a_role_that_can_only_read_suffices(first: Original, database: str, tmp_path: Path) -> None:
    fill(first)
    role = f"{first.conn.info.dbname}_reader"
    first.conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        first.conn.execute(f"GRANT SELECT ON clusters, node_pools, adapter_statuses TO {role}")
        theirs = make_conninfo(first.conninfo, user=role, password="secret")
        file = tmp_path / "url"
        file.write_text(theirs)
        ended = run_here("import", "--from-database-file", str(file), "--database-url", database)
        assert ended.returncode == 0, ended.stdout
        assert "secret" not in ended.stdout
    finally:
        first.conn.execute(f"DROP OWNED BY {role} CASCADE")
        first.conn.execute(f"DROP ROLE {role}")


def dump(sql: psycopg.Connection) -> list[Any]:
    return [
        sql.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3").fetchall()
        for table, columns in (
            ("clusters", "id, version, document"),
            ("node_pools", "id, version, document"),
            ("adapter_statuses", "owner_id, adapter, document"),
            ("labels", "owner_id, key, value, created_time"),
            ("imports", "owner_id, fingerprint, generation"),
        )
    ]


@pytest.mark.slow
def test_an_import_resumed_after_a_kill_ends_like_an_uninterrupted_one(
    first: Original, database: str, sql: psycopg.Connection, postgres: NoopExecutor
) -> None:
    first.fleet(3000, pools=1, reports=1)
    arguments = [HYPERFLEET, "import", "--from-database", first.conninfo, "--database-url", database]
    deadline = time.monotonic() + 60
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=CLEAN) as process:
        while sql.execute("SELECT count(*) >= 1000 FROM clusters").fetchone() != (True,):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    taken = sql.execute("SELECT count(*) FROM clusters").fetchone()
    assert taken is not None
    assert 1000 <= taken[0] < 3000, "killed midway"
    assert taken[0] % 500 == 0, "whole batches"
    assert sql.execute("SELECT count(*) FROM imports").fetchone() == taken, "with a record of each"
    output = take(database, first)
    assert "Everything was imported." in output
    assert f"clusters    {3000 - taken[0]} new, 0 changed, {taken[0]} same" in output
    with migrated(postgres, f"whole_{next(numbers)}") as other:
        take(other, first)
        with psycopg.connect(other) as conn:
            assert dump(conn) == dump(sql)


class Following:
    """A running ``import --follow``."""

    def __init__(self, *arguments: str) -> None:
        self.process = start("import", "--follow", *arguments)
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines += iter(self.process.stdout.readline, "")

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> float:
        started = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < started + seconds, self.lines
            time.sleep(0.05)
        return time.monotonic() - started

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "newest"])
def test_follow_imports_changes_within_seconds_and_ends_with_a_look_at_everything(
    which: str, request: pytest.FixtureRequest, api: Api, database: str
) -> None:
    original: Original = request.getfixturevalue(which)
    fill(original)
    following = Following("--from-database", original.conninfo, "--database-url", database)
    try:
        following.until(lambda: any(" all: 4 looked at, 4 new" in line for line in following.lines))
        table = "resources" if original.newest else "clusters"
        original.cluster(C, "fresh", updated_time="now")
        original.conn.execute(
            f"UPDATE {table} SET generation = 9, updated_time = now() WHERE name = 'stage'"
        )
        original.conn.execute(
            "UPDATE adapter_statuses SET last_report_time = now(), updated_time = now(),"
            " observed_generation = 2, data = '{\"v\": 2}' WHERE resource_id = %s",
            [P],
        )
        pools = "resources" if original.newest else "node_pools"
        original.conn.execute(f"DELETE FROM {pools} WHERE id = %s", [Q])
        took = following.until(lambda: api.get(f"/clusters/{C}").status_code == 200)
        assert took < 8
        following.until(lambda: api.get(f"/clusters/{B}").json()["generation"] == 9)
        following.until(lambda: '"v":2' in api.get(f"/nodepools/{P}/statuses").text.replace(" ", ""))
        following.until(lambda: api.get(f"/nodepools/{Q}").status_code == 404)
        # The last pass finds a change that the times do not show.
        original.conn.execute(
            "UPDATE adapter_statuses SET last_report_time = %s"
            " WHERE resource_id = %s AND adapter = 'dns'",
            [at(3), A],
        )
        assert following.stop() == 0, following.lines
    finally:
        following.process.kill()
    assert any(" all: " in line for line in following.lines[2:])
    assert "Everything was imported.\n" in following.lines
    reports = {one["adapter"]: one for one in api.get(f"/clusters/{A}/statuses").json()["items"]}
    assert reports["dns"]["last_report_time"] == shown(3)


@pytest.mark.slow
def test_a_transaction_timeout_does_not_end_a_follow(
    first: Original, api: Api, database: str, sql: psycopg.Connection
) -> None:
    needs_setting(sql, "transaction_timeout")
    fill(first)
    for conn in (first.conn, sql):
        name = psycopg.sql.Identifier(conn.info.dbname)
        conn.execute(psycopg.sql.SQL("ALTER DATABASE {} SET transaction_timeout = '2s'").format(name))
    following = Following("--from-database", first.conninfo, "--database-url", database)
    try:
        following.until(lambda: any(" all: 4 looked at, 4 new" in line for line in following.lines))
        time.sleep(3)
        first.cluster(C, "fresh", updated_time="now")
        following.until(lambda: api.get(f"/clusters/{C}").status_code == 200)
        assert following.stop() == 0, following.lines
    finally:
        following.process.kill()


@pytest.mark.slow
def test_follow_lets_a_name_pass_from_a_deleted_cluster_to_a_new_one(
    first: Original, api: Api, database: str
) -> None:
    fill(first)
    following = Following("--from-database", first.conninfo, "--database-url", database)
    try:
        following.until(lambda: len(following.lines) > 1)
        first.conn.execute("UPDATE node_pools SET deleted_at = now() WHERE id = %s", [Q])
        first.conn.execute("UPDATE clusters SET deleted_at = now() WHERE id = %s", [B])
        first.cluster(C, "stage", updated_time="now")
        following.until(lambda: api.get(f"/clusters/{C}").status_code == 200)
        assert api.get(f"/clusters/{B}").status_code == 404
        assert following.stop(signal.SIGINT) == 0, following.lines
    finally:
        following.process.kill()


def test_another_instance_of_this_service_can_be_the_source(
    api: Api, service: Callable[..., Api], postgres: NoopExecutor, database: str
) -> None:
    cluster = api.cluster("prod", labels={"a": "b"}, spec={"n": 2**70})
    pool = api.node_pool(cluster, "workers")
    api.report(cluster, "dns", data={"zone": 1})
    api.report(pool, "np")
    for number in range(130):
        api.cluster(f"c{number}")
    waiting = api.cluster("waiting")
    api.report(waiting, "dns")
    assert api.delete(f"/clusters/{waiting['id']}").status_code == 202
    with migrated(postgres, f"second_{next(numbers)}") as other:
        ended = run_here("import", "--from-api", api.base, "--database-url", other)
        assert ended.returncode == 0, ended.stdout
        assert f"From the service {api.url} to " in ended.stdout
        assert "clusters    132 new" in ended.stdout
        there = service(other)
        for path in (f"/clusters/{cluster['id']}", f"/nodepools/{pool['id']}"):
            assert there.get(path).json() == api.get(path).json()
            assert there.get(path + "/statuses").json() == api.get(path + "/statuses").json()
        marked = there.get(f"/clusters/{waiting['id']}").json()
        assert marked["deleted_time"] == api.get(f"/clusters/{waiting['id']}").json()["deleted_time"]
        # What is gone there is removed here, too.
        gone = api.get("/clusters?search=name='c7'").json()["items"][0]
        assert api.delete(f"/clusters/{gone['id']}").status_code == 202
        ended = run_here("import", "--from-api", api.url, "--database-url", other)
        assert "clusters    0 new, 0 changed, 131 same, 1 removed" in ended.stdout
        assert there.get(f"/clusters/{gone['id']}").status_code == 404


# As the first generation answers: other names for times, no times of reports.
CLUSTER = {
    **{"id": A, "kind": "Cluster", "href": f"/api/hyperfleet/v1/clusters/{A}", "name": "prod"},
    **{"labels": {"env": "prod"}, "spec": {"region": "us-east-1"}, "generation": 1},
    **{"created_at": "2025-11-17T10:00:00.123456789Z", "updated_at": "2025-11-17T10:00:00.5+01:00"},
    **{"created_by": "ann", "updated_by": "ann"},
    "status": {"phase": "Ready", "observed_generation": 1, "adapters": []},
}
POOL = {
    **{"id": P, "kind": "NodePool", "name": "workers", "spec": {}},
    **{"owner_references": {"id": A, "kind": "Cluster"}, "created_by": "ann", "updated_by": "ann"},
    **{"created_at": "2025-11-17T10:00:00Z", "updated_at": "2025-11-17T10:00:00Z"},
}
REPORT = {
    **{"adapter": "dns-adapter", "observed_generation": 1, "data": {}},
    "conditions": [
        {
            **{"adapter": "dns-adapter", "type": "Ready", "status": "True", "observed_generation": 1},
            **{"reason": "Done", "message": "", "created_at": "2025-11-17T15:04:05Z"},
            "updated_at": "2025-11-17T15:14:05Z",
        }
    ],
}


@pytest.fixture
def old() -> Iterator[JsonServer]:
    """A service that answers like the first generation, and requires a token."""
    base = "/api/hyperfleet/v1"
    extra = [{**CLUSTER, "id": uid(n), "name": f"c{n}"} for n in range(100, 125)]
    lists: dict[str, list[Any]] = {
        "/clusters": [CLUSTER, *extra],
        "/nodepools": [POOL],
        f"/clusters/{A}/statuses": [REPORT],
    }

    def answer(_method: str, path: str, _body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Authorization") != "Bearer sesame":
            return 401, {}, b"{}"
        path, _, query = path.removeprefix(base).partition("?")
        if path == f"/clusters/{uid(101)}/statuses":
            return 200, {}, b'{"items": [NaN'
        page = int(dict(part.split("=") for part in query.split("&"))["page"])
        items = lists.get(path, [])
        shown = items[(page - 1) * 20 : page * 20]
        body = {"kind": "List", "page": page, "size": len(shown), "total": len(items), "items": shown}
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()

    with JsonServer(answer) as server:
        yield server


def test_a_service_of_the_first_generation_can_be_the_source(
    old: JsonServer, api: Api, database: str, tmp_path: Path
) -> None:
    arguments = ("import", "--from-api", old.url, "--database-url", database)
    refused = run_here(*arguments)
    assert (refused.returncode, "/clusters answers 401" in refused.stdout) == (1, True)
    token = tmp_path / "token"
    token.write_text("sesame\n")
    for given, env in (
        (("--token-file", str(token)), {}),
        (("--token", "sesame"), {}),
        ((), {"HYPERFLEET_TOKEN": "sesame"}),
    ):
        ended = run_here(*arguments, *given, env=env)
        assert ended.returncode == 3, ended.stdout
        assert f"report {uid(101)}: its reports are not JSON" in ended.stdout
        assert "sesame" not in ended.stdout
    assert {method for method, *_ in old.asked} == {"GET"}
    cluster = api.get(f"/clusters/{A}").json()
    assert cluster["created_time"] == "2025-11-17T10:00:00.123456Z"
    # The update time was before the creation, which cannot be.
    assert cluster["updated_time"] == cluster["created_time"]
    assert cluster["status"]["phase"] == "Ready"
    assert api.get("/clusters").json()["total"] == 26
    report = api.get(f"/clusters/{A}/statuses").json()["items"][0]
    assert report["created_time"] == "2025-11-17T15:04:05.000000Z"
    assert report["last_report_time"] == "2025-11-17T15:14:05.000000Z"
    assert report["conditions"][0]["reason"] == "Done"
    assert api.get(f"/nodepools/{P}").json()["generation"] == 1


BASE = "/api/hyperfleet/v1"
Over = Callable[[str, dict[str, str]], Any]


def there(number: int, kind: int = 0, **more: Any) -> dict[str, Any]:
    """A cluster, or with kind 1 a node pool, as a service shows it."""
    own: dict[str, Any] = {"kind": "Cluster", "name": f"c{number}"}
    if kind:
        own = {"kind": "NodePool", "name": f"p{number}", "owner_references": {"id": uid(number)}}
    return {
        **{"id": uid(number, kind), "spec": {}, "labels": {}, "generation": 1, **own},
        **{"created_time": shown(0), "updated_time": shown(0), "created_by": "a", "updated_by": "a"},
        **more,
    }


def listed(items: list[Any], total: Any = None, **more: Any) -> dict[str, Any]:
    total = len(items) if total is None else total
    return {"kind": "List", "page": 1, "size": len(items), "total": total, "items": items, **more}


class Service:
    """A service with clusters and node pools; ``over`` can override its answers.

    ``over`` returns a value, a status alone, bytes, a whole answer, or None for the usual answer.
    """

    def __init__(self, clusters: list[Any], pools: list[Any]) -> None:
        self.clusters, self.pools = clusters, pools
        self.over: Over = lambda _path, _query: None

    def __call__(self, _method: str, path: str, _body: bytes, _headers: Any) -> Any:
        path, _, rest = path.removeprefix(BASE).partition("?")
        query = dict(part.split("=") for part in rest.split("&") if part)
        answer = self.over(path, query)
        if answer is None:
            answer = self.usual(path, query)
        if isinstance(answer, tuple):
            return answer
        if isinstance(answer, int):
            return answer, {}, b"{}"
        return 200, {}, answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def usual(self, path: str, query: dict[str, str]) -> Any:
        if path.endswith("/statuses"):
            return listed([])
        items = {"/clusters": self.clusters, "/nodepools": self.pools}.get(path)
        if items is None:
            return 404
        page, size = int(query["page"]), int(query["pageSize"])
        return listed(items[(page - 1) * size : page * size], len(items))


@pytest.fixture
def fleet() -> Iterator[tuple[Service, str]]:
    """A service with 120 clusters and 50 node pools, and its address."""
    service = Service(
        [there(number) for number in range(1, 121)], [there(number, 1) for number in range(1, 51)]
    )
    with JsonServer(service) as server:
        yield service, server.url


def ask(database: str, url: str, *more: str, code: int = 0) -> str:
    ended = run_here("import", "--from-api", url, "--database-url", database, *more)
    assert "Traceback" not in ended.stdout
    assert ended.returncode == code, ended.stdout
    return ended.stdout


def numbers_of(sql: psycopg.Connection) -> tuple[int, int]:
    row = sql.execute("SELECT (SELECT count(*) FROM clusters), (SELECT count(*) FROM node_pools)")
    clusters, pools = row.fetchone() or (0, 0)
    return clusters, pools


WRONG: dict[str, tuple[Over, int, str]] = {
    "no list": (
        lambda path, _: 404 if path == "/nodepools" else None,
        *(1, "/nodepools answers 404."),
    ),
    "the same page again and again": (
        lambda path, _: listed([there(n) for n in range(1, 101)], 120) if path == "/clusters" else None,
        *(1, "/clusters shows 100 items, but its total is 120."),
    ),
    "an empty second page": (
        lambda path, query: listed([], 120) if path == "/clusters" and query["page"] != "1" else None,
        *(1, "/clusters shows 100 items, but its total is 120."),
    ),
    "a link to itself": (
        lambda path, _: (
            listed([there(1)], 10**9, next=f"{BASE}/clusters?a=b") if path == "/clusters" else None
        ),
        *(1, "/clusters shows 1 items, but its total is 1000000000."),
    ),
    "no node pools": (
        lambda path, _: listed([]) if path == "/nodepools" else None,
        *(3, f"node pool {uid(7, 1)}: nothing is left there; kept here"),
    ),
    "few clusters": (
        lambda path, _: listed([there(n) for n in range(1, 21)]) if path == "/clusters" else None,
        *(3, f"cluster {uid(77)}: it is gone there, as most of them are; kept here"),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_implausible_list_removes_nothing(
    wrong: str, fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet
    over, code, says = WRONG[wrong]
    if code == 1:
        service.over = over
        assert says in ask(database, url, "--dry-run", code=1), "on a first import, too"
        service.over = lambda _path, _query: None
    ask(database, url)
    assert numbers_of(sql) == (120, 50)
    service.over = over
    assert says in ask(database, url, code=code)
    assert numbers_of(sql) == (120, 50)
    service.over = lambda _path, _query: None
    assert "0 new, 0 changed, 120 same, 0 removed" in ask(database, url)


def test_most_resources_are_removed_with_remove_most(
    fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet
    ask(database, url)
    service.clusters, service.pools = service.clusters[:30], []
    dry = ask(database, url, "--remove-most", "--dry-run")
    real = ask(database, url, "--remove-most")
    assert dry.splitlines()[2:] == real.splitlines()[2:]
    assert "node pools  0 new, 0 changed, 0 same, 50 removed" in real
    assert numbers_of(sql) == (30, 0)


def test_resources_read_over_the_api_are_not_all_held_in_memory(fleet: tuple[Service, str]) -> None:
    service, url = fleet
    service.clusters = [there(number, spec={"large": "x" * 20_000}) for number in range(3000)]
    tracemalloc.start()
    try:
        with Source(url, "").look(None, ()) as look:
            batch = next(look.batches("Cluster"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (look.count("Cluster"), len(batch)) == (3000, 500)
    assert peak < 45e6, "all of them take 60 MB"


def test_missing_reports_of_an_existing_resource_are_reported(
    fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet
    gone, odd = f"/clusters/{uid(1)}", f"/clusters/{uid(2)}"
    service.pools = [there(3, 1), there(4, 1, owner_references=[{"id": uid(4)}])]

    def over(path: str, _query: dict[str, str]) -> Any:
        if path.removesuffix("/statuses") in (gone, odd):
            return there(2) if path == odd else 404
        return None

    service.over = over
    output = ask(database, url, code=3)
    assert f"report {uid(2)}: its reports are not found, although it is" in output
    assert f"node pool {uid(4, 1)} 'p4': it names no cluster" in output
    assert "Not imported: 2\n" in output
    assert numbers_of(sql) == (119, 1)


def test_reports_with_integers_that_no_double_can_hold_are_imported(
    fleet: tuple[Service, str], api: Api, database: str
) -> None:
    service, url = fleet
    service.clusters, service.pools = [there(1, spec={"n": 10**400}), there(2)], []
    conditions = [{"type": "Available", "status": "True"}]
    report = {"adapter": "dns", "observed_generation": 1, "conditions": conditions}
    texts = [b'{"n": -1%s}' % (b"0" * 400), b'{"n": 1e400}']

    def over(path: str, _query: dict[str, str]) -> Any:
        if not path.endswith("/statuses"):
            return None
        answer = json.dumps(listed([{**report, "data": "it"}])).encode()
        return answer.replace(b'"it"', texts[path != f"/clusters/{uid(1)}/statuses"])

    service.over = over
    output = ask(database, url, code=3)
    [shown] = api.get(f"/clusters/{uid(1)}/statuses").json()["items"]
    assert shown["data"] == {"n": -(10**400)}
    assert output.endswith(
        f"Not imported: 1\n  report {uid(2)}: it holds a number that is out of range\n"
    )


# Deeper than any Python parses: 3.13 stops at ten thousand levels.
DEEP = b"[" * 300_000 + b"]" * 300_000


@pytest.mark.parametrize(
    ("clusters", "code", "says"),
    [
        ([{"name": "c1"}], 1, "/clusters shows an item without id."),
        ([there(1, id=5)], 1, "/clusters shows an item without id."),
        ([there(1, id=None)], 1, "/clusters shows an item without id."),
        ([there(1, id="a\ud800")], 1, "/clusters shows an item without id."),
        ([there(1, id="../secret?x=")], 3, "cluster ../secret?x= 'c1': its id is not a UUID"),
        (
            [there(1, name="a\ud800")],
            3,
            f"cluster {uid(1)}: it holds a character that PostgreSQL cannot",
        ),
        ([there(1, spec={"a": "\ud800"})], 3, "its spec holds a character that PostgreSQL cannot"),
        ([there(1, spec={"a": {"b": "\ud800"}})], 3, "'c1': its spec holds a character"),
        ("many", 1, "/clusters has no total."),
        ([1], 1, "/clusters has no total."),
        (b'{"items": [{"id": "x", "spec": ' + DEEP + b'}], "total": 1}', 1, "JSON of too many levels."),
    ],
)
def test_a_broken_answer_is_reported_in_one_line(
    clusters: Any, code: int, says: str, fleet: tuple[Service, str], database: str
) -> None:
    service, url = fleet
    service.pools = []
    answer = clusters
    if isinstance(clusters, str) or clusters == [1]:
        answer = {**listed([there(1)]), "total": clusters}
    elif isinstance(clusters, list):
        answer = listed([*clusters, there(2)])
    asked = iter([listed([there(2)])])
    # The first request only checks whether anything answers.
    service.over = lambda path, query: (
        None if path != "/clusters" else next(asked) if query["pageSize"] == "1" else answer
    )
    output = ask(database, url, code=code)
    assert says in output
    assert code == 1 or "clusters    1 new" in output


def test_each_resource_with_an_invalid_member_is_reported(
    fleet: tuple[Service, str], database: str
) -> None:
    service, url = fleet
    strange: list[tuple[dict[str, Any], str]] = [
        ({"labels": ["a"]}, "its labels are not a mapping of strings"),
        ({"labels": {"a": 1}}, "its labels are not a mapping of strings"),
        ({"labels": {"a": "\0"}}, "its labels hold a character that PostgreSQL cannot"),
        ({"created_by": 5}, "its created_by is not text"),
        ({"updated_by": "\0"}, "its updated_by is not text"),
        ({"deleted_time": shown(0), "deleted_by": []}, "its deleted_by is not text"),
        ({"deleted_time": "soon"}, "deleted_time is not a time"),
        ({"generation": True}, "its generation is not a whole number from 1 to 2147483647"),
        ({"generation": 2**31}, "its generation is not a whole number from 1 to 2147483647"),
        ({"spec": None}, "its spec is not a JSON object"),
        ({"id": "no value of a label"}, "its id cannot be the value of a label, where it would be kept"),
    ]
    odd = [there(number + 1, **more) for number, (more, _) in enumerate(strange)]
    service.clusters, service.pools = [there(0), *odd], []
    lines = ask(database, url, "--derive-ids", code=3).partition("Not imported: ")[2].splitlines()
    assert lines[0] == str(len(strange))
    for number, (more, reason) in enumerate(strange):
        about = f"  cluster {more.get('id', uid(number + 1))} 'c{number + 1}': {reason}"
        assert any(line.startswith(about) for line in lines), (about, lines)


def test_an_invalid_source_url_is_reported(database: str) -> None:
    for address in ("http://[::1", "http://h:99999"):
        assert "--from-api is not a URL: " in ask(database, address, code=2)


def nested(levels: int, innermost: str = "") -> str:
    """An object with so many levels."""
    return '{"a":' + "[" * (levels - 1) + innermost + "]" * (levels - 1) + "}"


def test_an_import_accepts_as_many_levels_as_the_api(
    newest: Original, api: Api, database: str, sql: psycopg.Connection
) -> None:
    bodies = [nested(63), nested(62, '"[[\\"["'), nested(64), nested(64, "1"), nested(1015)]
    codes = []
    for number, spec in enumerate(bodies):
        newest.cluster(uid(number + 1), f"there-{number}")
        newest.conn.execute(
            "UPDATE resources SET spec = %s::jsonb WHERE name = %s", [spec, f"there-{number}"]
        )
        body = f'{{"name": "here-{number}", "spec": {spec}}}'
        headers = {"Content-Type": "application/json"}
        codes.append(api.post("/clusters", data=body, headers=headers).status_code)
    assert codes == [201, 201, 400, 400, 400]
    output = take(database, newest, code=3)
    for number, code in enumerate(codes):
        told = f"cluster {uid(number + 1)} 'there-{number}': its spec has more than 63 levels" in output
        assert told == (code == 400), number
    assert api.get("/clusters").json()["total"] == 4


def test_rows_too_deep_or_with_a_duplicate_id_are_reported_and_the_others_imported(
    newest: Original, api: Api, database: str
) -> None:
    fill(newest)
    escaped = nested(6000)[:-1] + ',"b":"\\u0001"}'

    def change(column: str, value: str, number: int) -> None:
        newest.cluster(uid(number), f"c{number}")
        newest.conn.execute(
            psycopg.sql.SQL("UPDATE resources SET {} = %s::jsonb WHERE id = %s").format(
                psycopg.sql.Identifier(column)
            ),
            [value, uid(number)],
        )

    change("spec", escaped, 20)
    change("tenancy", nested(100), 21)
    for column, value in (
        ("conditions", "[" * 3000 + "]" * 3000),
        ("data", escaped),
        ("metadata", nested(300)),
    ):
        newest.report(B, f"deep-{column}")
        newest.conn.execute(
            psycopg.sql.SQL("UPDATE adapter_statuses SET {} = %s::jsonb WHERE adapter = %s").format(
                psycopg.sql.Identifier(column)
            ),
            [value, f"deep-{column}"],
        )
    upper, lower = "019B0000-0000-7000-8000-ABCDEF000001", "019b0000-0000-7000-8000-abcdef000001"
    newest.cluster(upper, "upper")
    newest.cluster(lower, "lower")
    output = take(database, newest, code=3)
    lines = output.partition("Not imported: ")[2].splitlines()
    assert lines[0] == "6", output
    for line in (
        f"cluster {uid(20)} 'c20': its spec has more than 63 levels",
        f"cluster {uid(21)}: it has more than 64 levels",
        f"report {B}: it has more than 64 levels",
        f"report {B} 'deep-data': its data has more than 63 levels",
        f"report {B} 'deep-metadata': its metadata has more than 63 levels",
    ):
        assert "  " + line in lines, (line, output)
    assert f"its id is that of {upper}, apart from case" in output or (
        f"its id is that of {lower}, apart from case" in output
    )
    assert api.get("/clusters").json()["total"] == 3
    assert api.get(f"/clusters/{B}/statuses").json()["total"] == 1
    assert take(database, newest, code=3).partition("Not imported: ")[2].splitlines() == lines


@contextlib.contextmanager
def another(original: Original, *, newest: bool) -> Iterator[Original]:
    """Another original, at the address of the first one, which moves elsewhere."""
    name = original.conn.info.dbname
    original.conn.close()
    server = make_conninfo(original.conninfo, dbname="postgres")
    with psycopg.connect(server, autocommit=True) as conn:
        rename = psycopg.sql.SQL("ALTER DATABASE {} RENAME TO {}")
        old, moved = psycopg.sql.Identifier(name), psycopg.sql.Identifier(f"{name}_moved")
        conn.execute(rename.format(old, moved))
        conn.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(old))
        try:
            other = Original(original.conninfo, newest=newest)
            with other.conn:
                yield other
        finally:
            conn.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(moved))


def test_another_original_at_the_same_address_removes_nothing_of_the_first(
    newest: Original, database: str, sql: psycopg.Connection
) -> None:
    for number in range(1, 6):
        newest.cluster(uid(number), f"eu-{number}")
    take(database, newest)
    with another(newest, newest=True) as other:
        other.cluster(uid(77), "us-1")
        # What both have counts as imported from the last one.
        other.cluster(uid(5), "eu-5")
        output = take(database, other)
        assert "clusters    1 new, 0 changed, 1 same, 0 removed" in output
        assert "Left alone, as they came from another original: 4 resources\n" in output
        assert numbers_of(sql) == (6, 0)
        other.conn.execute("DELETE FROM resources WHERE name = 'eu-5'")
        assert "1 removed" in take(database, other)


def test_a_database_is_recognized_at_another_address(
    newest: Original, database: str, sql: psycopg.Connection
) -> None:
    for number in range(1, 6):
        newest.cluster(uid(number), f"eu-{number}")
    take(database, newest)
    # Most of it is gone, which is accepted of a database whose identity is certain.
    newest.conn.execute("DELETE FROM resources WHERE name <> 'eu-3'")
    host = newest.conn.info.host
    other = make_conninfo(newest.conninfo, host=f"{host},{host}", port=f"{newest.conn.info.port}")
    assert "clusters    0 new, 0 changed, 1 same, 4 removed" in take(database, other)
    assert numbers_of(sql) == (1, 0)


def test_a_database_of_uncertain_identity_does_not_remove_most_resources(
    newest: Original, database: str, sql: psycopg.Connection
) -> None:
    for number in range(1, 6):
        newest.cluster(uid(number), f"eu-{number}")
    role = f"{newest.conn.info.dbname}_reader"
    newest.conn.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    newest.conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        newest.conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        theirs = make_conninfo(newest.conninfo, user=role, password="secret")
        take(database, theirs)
        newest.conn.execute("DELETE FROM resources WHERE name IN ('eu-1', 'eu-2')")
        assert "2 removed" in take(database, theirs)
        newest.conn.execute("DELETE FROM resources WHERE name IN ('eu-3', 'eu-4')")
        output = take(database, theirs, code=3)
        assert f"cluster {C}: it is gone there, as most of them are; kept here, unless" in output
        assert numbers_of(sql) == (3, 0)
        assert "2 removed" in take(database, theirs, "--remove-most")
        assert numbers_of(sql) == (1, 0)
    finally:
        newest.conn.execute(f"DROP OWNED BY {role} CASCADE")
        newest.conn.execute(f"DROP ROLE {role}")


def test_a_change_without_a_new_time_is_imported_unless_the_copy_here_was_changed(
    newest: Original, api: Api, database: str
) -> None:
    for id_, name in ((A, "one"), (B, "two"), (C, "three"), (D, "four")):
        newest.cluster(id_, name)
    take(database, newest)
    tags = {id_: api.get(f"/clusters/{id_}").headers["ETag"] for id_ in (A, B, C, D)}
    newest.conn.execute("UPDATE resources SET spec = '{\"fixed\": true}' WHERE id IN (%s, %s)", [A, C])
    newest.insert("resource_labels", resource_id=B, key="new", value="label")
    # A report alone does not make an imported resource count as changed.
    newest.report(D, "dns")
    api.patch(f"/clusters/{C}", json={"spec": {"mine": True}})
    for _ in range(2):
        output = take(database, newest, code=3)
        assert f"cluster {C} 'three': it was changed here after the import, and is no newer" in output
        assert "Not imported: 1\n" in output
    assert api.get(f"/clusters/{A}").json()["spec"] == {"fixed": True}
    assert api.get(f"/clusters/{B}").json()["labels"] == {"team": "a", "new": "label"}
    assert api.get("/clusters?search=labels.new='label'").json()["total"] == 1
    assert api.get(f"/clusters/{C}").json()["spec"] == {"mine": True}
    assert api.get(f"/clusters/{D}/statuses").json()["total"] == 1
    assert api.get(f"/clusters/{A}").headers["ETag"] != tags[A]
    # Also if the time was set back.
    newest.conn.execute(
        "UPDATE resources SET spec = '{}', updated_time = %s WHERE id = %s", [at(0.5), A]
    )
    assert "1 changed" in take(database, newest, code=3)
    assert api.get(f"/clusters/{A}").json()["spec"] == {}
    assert "0 changed, 3 same" in take(database, newest, code=3)


def test_a_resource_that_comes_back_has_none_of_its_former_etags(
    newest: Original, api: Api, database: str
) -> None:
    for id_, name in ((A, "stays"), (B, "back"), (C, "removed-here")):
        newest.cluster(id_, name)
    take(database, newest)
    tags = set()
    for generation in range(2, 5):
        newest.conn.execute("UPDATE resources SET generation = %s WHERE name = 'back'", [generation])
        take(database, newest)
        tags.add(api.get(f"/clusters/{B}").headers["ETag"])
    tags.add(api.get(f"/clusters/{C}").headers["ETag"])
    assert api.delete(f"/clusters/{C}").status_code == 202
    api.post(f"/clusters/{C}/force-delete", json={"reason": "test"})
    newest.conn.execute("DELETE FROM resources WHERE id IN (%s, %s)", [B, C])
    assert "clusters    0 new, 0 changed, 1 same, 1 removed" in take(database, newest)
    assert "0 removed" in take(database, newest)
    newest.cluster(B, "back", spec={"other": 1})
    newest.cluster(C, "removed-here", spec={"other": 1})
    assert "clusters    2 new" in take(database, newest)
    for id_ in (B, C):
        back = api.get(f"/clusters/{id_}")
        assert back.headers["ETag"] not in tags
        again = api.get(f"/clusters/{id_}", headers={"If-None-Match": ", ".join(tags)})
        assert (again.status_code, again.json()["spec"]) == (200, {"other": 1})
    newest.conn.execute("DELETE FROM resources WHERE id = %s", [B])
    assert "1 removed" in take(database, newest), "it counts as imported, like any other"


def test_two_imports_cannot_write_at_the_same_time(
    newest: Original, database: str, sql: psycopg.Connection
) -> None:
    newest.cluster(A, "prod")
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE clusters IN EXCLUSIVE MODE")
        first = held_up(newest, database, sql)
        assert "Another import into this database is running." in take(database, newest, code=1)
        take(database, newest, "--dry-run")
    assert "Everything was imported." in first.result(20)
    take(database, newest)


def test_a_cluster_created_during_the_import_is_not_overwritten(
    newest: Original, database: str, sql: psycopg.Connection
) -> None:
    newest.cluster(A, "prod")
    with psycopg.connect(database) as other:
        other.execute(
            """INSERT INTO clusters
                   (id, name, labels, spec, status, created_time, updated_time, created_by, updated_by)
               VALUES (%s, 'mine', '{}', '{}', '{}', now(), now(), 'a', 'a')""",
            [A],
        )
        import_ = held_up(newest, database, sql)
    said = f"cluster {A} 'prod': it is already here, and did not come from an import"
    assert said in import_.result(20)
    assert sql.execute("SELECT name FROM clusters").fetchall() == [("mine",)]


def test_the_waits_that_a_source_asks_for_are_bounded() -> None:
    for asked, waits in (("3600", 10), ("2", 2), ("Thu, 01 Jan 2099 00:00:00 GMT", 10)):
        answer = HTTPResponse(headers={"Retry-After": asked}, status=429)
        assert Patience(3).get_retry_after(answer) == waits
    assert Patience(3).get_retry_after(HTTPResponse(status=429)) is None
    assert RETRIES * PATIENCE <= 30


def test_sigterm_ends_a_waiting_import_at_once(fleet: tuple[Service, str], database: str) -> None:
    service, url = fleet
    asked = threading.Event()

    def over(path: str, _query: dict[str, str]) -> Any:
        if path.endswith("/statuses"):
            asked.set()
            return 429, {"Retry-After": "3600"}, b"{}"
        return None

    service.over = over
    arguments = [HYPERFLEET, "import", "--from-api", url, "--database-url", database]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=CLEAN) as process:
        try:
            assert asked.wait(30)
            time.sleep(0.5)
            process.terminate()
            assert process.wait(5) == 128 + signal.SIGTERM
            assert process.stderr
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_the_help_of_import_lists_its_options() -> None:
    said = run("import", "--help").stdout
    for flag in ("--from-database", "--from-api", "--token-file", "--dry-run", "--follow"):
        assert flag in said


def test_resources_of_tenants_are_imported_only_with_tenant_enabled(
    newest: Original, api: Api, database: str, sql: psycopg.Connection
) -> None:
    newest.cluster(A, "same", tenancy={"org": "a"})
    newest.cluster(B, "same", tenancy={"org": "b", "project": "p"})
    newest.node_pool(P, "workers", A)
    newest.cluster(uid(20), "odd", tenancy={"org": "a b"})
    newest.cluster(uid(21), "odd-too", tenancy={"org": 1})
    newest.cluster(uid(22), "listed", tenancy=Jsonb(["org"]))
    refused = take(database, newest, code=3)
    assert refused.count("it belongs to a tenant") == 5
    output = take(database, newest, "--tenant-enabled", code=3)
    assert f"cluster {uid(22)} 'listed': its tenancy is not a mapping of at most 8 strings" in output
    assert output.count("its tenancy has a key or a value that no tenant can have here") == 2
    assert sql.execute(
        "SELECT id::text, tenancy FROM all_resources ORDER BY tenancy, id"
    ).fetchall() == [
        (A, {"org": "a"}),
        (P, {"org": "a"}),
        (B, {"org": "b", "project": "p"}),
    ]
    counted = "SELECT table_name, sum(difference) FROM tenant_counts GROUP BY table_name ORDER BY 1"
    assert sql.execute(counted).fetchall() == [("clusters", 2), ("node_pools", 1)]
    assert "2 same" in take(database, newest, "--tenant-enabled", code=3)
