"""``hyperfleet import`` takes over databases of the original, and reports what it cannot take over."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import psycopg.sql
import pytest
from conftest import Api, migrated
from imports import A, B, C, D, P, Q, R, S, empty, fill, first, newest, numbers, take
from original import Original, at, ksuid, shown, uid
from process import CLEAN, HYPERFLEET, run
from psycopg.types.json import Jsonb
from pytest_postgresql.executors import NoopExecutor

__all__ = ["empty", "first", "newest"]


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

    def says(*rows: tuple[str, str, int, float], created: float = 0) -> None:
        there = [
            {
                **{"type": name, "status": status, "observed_generation": generation, "reason": "R"},
                **{"created_time": shown(created), "last_updated_time": shown(8)},
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
    says((ready, "False", 2, 5), (available, "True", 1, 3), created=2.5)
    take(database, original)
    status = api.get(f"/clusters/{A}").json()["status"]
    assert (status["phase"], status["last_transition_time"]) == ("NotReady", shown(5))
    found = conditions(api, A)
    for name in ("Available", "LastKnownReconciled"):
        assert (found[name]["status"], found[name]["observed_generation"]) == ("True", 1)
        assert found[name]["last_transition_time"] == shown(3)
        assert found[name]["created_time"] == shown(0)
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


def test_all_members_of_a_resource_that_changed_in_the_original_are_replaced(
    newest: Original, api: Api, database: str
) -> None:
    fill(newest)
    take(database, newest)
    newest.conn.execute(
        """UPDATE resources SET generation = 4, spec = '{"nodes": 9}', updated_time = %s,
               updated_by = 'eve', deleted_time = %s, deleted_by = 'dan' WHERE id = %s""",
        [at(6), at(5), A],
    )
    newest.conn.execute("DELETE FROM resource_labels WHERE key = 'tier' AND resource_id = %s", [A])
    newest.conn.execute("UPDATE resource_labels SET value = 'dev' WHERE resource_id = %s", [A])
    output = take(database, newest)
    assert "clusters    0 new, 1 changed, 1 same, 0 removed" in output
    assert "reports     0 stored" in output
    cluster = api.get(f"/clusters/{A}").json()
    assert (cluster["labels"], cluster["spec"], cluster["generation"]) == (
        {"env": "dev"},
        {"nodes": 9},
        4,
    )
    assert (cluster["updated_time"], cluster["updated_by"]) == (shown(6), "eve")
    assert (cluster["deleted_time"], cluster["deleted_by"]) == (shown(5), "dan")
    for search, total in (("env='dev'", 1), ("env='prod'", 0), ("tier='gold'", 0)):
        assert api.get(f"/clusters?search=labels.{search}").json()["total"] == total, search


def test_of_two_clusters_with_one_name_the_one_being_deleted_is_not_imported(
    newest: Original, api: Api, database: str
) -> None:
    newest.cluster(A, "same", deleted_time=at(3))
    newest.cluster(B, "same")
    output = take(database, newest, code=3)
    assert f"cluster {A} 'same': its name is that of {B}" in output
    assert [one["id"] for one in api.get("/clusters").json()["items"]] == [B]


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


def test_rules_of_mapped_conditions_work_for_specs_with_numbers_too_large_for_a_double(
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


def test_an_import_completes_the_statuses_of_marked_clusters_that_a_killed_one_left(
    newest: Original, api: Api, database: str, sql: psycopg.Connection
) -> None:
    marked = {"deleted_time": at(3), "deleted_by": "eve@example.com"}
    newest.cluster(A, "leaving", **marked)
    newest.node_pool(P, "workers", A, **marked)
    done = [{"type": "Finalized", "status": "True"}, {"type": "Available", "status": "False"}]
    newest.report(A, "dns", conditions=done)

    def messages() -> list[str]:
        return [conditions(api, A)[name]["message"] for name in ("Ready", "Reconciled")]

    take(database, newest)
    assert messages() == ["Resources still belonging or referring to it: 1."] * 2
    sql.execute("UPDATE clusters SET status = replace(status::text, 'belonging', 'b')::jsonb")
    assert "clusters    0 new, 0 changed, 1 same" in take(database, newest)
    assert messages() == ["Resources still belonging or referring to it: 1."] * 2


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
    first.cluster(A.upper(), "with-a-uuid")
    output = take(database, first, code=3)
    assert "clusters    1 new, 0 changed, 0 same, 0 removed" in output
    assert api.get(f"/clusters/{A}").json()["labels"] == {"team": "a"}
    assert api.get("/clusters").json()["total"] == 2


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


def nested(levels: int, innermost: str = "") -> str:
    """An object with so many levels."""
    return '{"a":' + "[" * (levels - 1) + innermost + "]" * (levels - 1) + "}"


def test_an_import_accepts_as_many_levels_of_nesting_as_the_api(
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


def test_rows_nested_too_deeply_or_with_a_duplicate_id_are_reported_and_others_imported(
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


def test_names_of_node_pools_are_unique_within_their_cluster_whatever_their_tenant(
    newest: Original, api: Api, database: str
) -> None:
    for cluster, name, pool in ((A, "one", P), (B, "two", Q)):
        newest.cluster(cluster, name, tenancy={"org": "a"})
        newest.node_pool(pool, "workers", cluster, tenancy={"org": "a"})
    output = take(database, newest, "--tenant-enabled")
    assert "node pools  2 new" in output
    assert api.get("/nodepools").json()["total"] == 2
