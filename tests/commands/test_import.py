"""``hyperfleet import``: from databases as originals make them, and over the API."""

import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Api, migrated, url
from issuer import JsonServer
from original import Original, at, ksuid, shown, uid
from process import CLEAN, HYPERFLEET, run, run_here
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor

numbers = itertools.count(1)
A, B, C, D = (uid(number) for number in range(1, 5))
P, Q, R, S = (uid(number, 1) for number in range(1, 5))


@pytest.fixture
def empty(postgres: NoopExecutor) -> Iterator[str]:
    """The connection string of an empty database that nobody has migrated."""
    name = f"{postgres.dbname}_original_{next(numbers)}"
    with DatabaseJanitor(
        user=postgres.user,
        host=postgres.host,
        port=postgres.port,
        dbname=name,
        password=postgres.password,
    ):
        yield url(postgres, name)


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
    """What its clients would have made of it, and nothing odd."""
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
    assert "All was taken." in output
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

    # It goes on as if it had always been here.
    assert api.report(cluster, "dns", observed_generation=3).status_code == 201
    changed = api.patch(f"/clusters/{A}", json={"spec": {"nodes": 4}}).json()
    assert changed["generation"] == 4


def conditions(api: Api, id_: str) -> dict[str, Any]:
    return {one["type"]: one for one in api.get(f"/clusters/{id_}").json()["status"]["conditions"]}


@pytest.mark.parametrize("which", ["first", "newest"])
def test_what_ran_there_goes_on_running_here(
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
    # In the middle of a new generation, which one adapter has seen and the other has not yet.
    original.report(A, "dns", observed_generation=2)
    original.report(A, "validator", observed_generation=1)
    take(database, original)
    found = conditions(api, A)
    for name in ("Available", "LastKnownReconciled"):
        assert (found[name]["status"], found[name]["observed_generation"]) == ("True", 1)
        assert found[name]["last_transition_time"] == shown(0.5)
    assert (found["Ready"]["status"], found["Ready"]["last_transition_time"]) == ("False", shown(1.2))
    assert "validator (True at generation 1)" in found["Ready"]["message"]


def test_a_row_that_the_database_refuses_is_told_and_the_others_are_taken(
    first: Original, api: Api, database: str
) -> None:
    fill(first)
    # No index of PostgreSQL's takes as much.
    first.cluster(C, "large", labels={"k": "".join(chr(0x4E00 + n * 7919 % 20000) for n in range(4000))})
    output = take(database, first, code=3)
    assert f"cluster {C} 'large': the database refuses it: index row " in output
    assert "clusters    2 new" in output
    assert api.get("/nodepools").json()["total"] == 2


def test_who_takes_a_name_while_it_is_imported_has_it(
    first: Original, database: str, sql: psycopg.Connection
) -> None:
    fill(first)
    outputs: list[str] = []
    arguments = ("import", "--from-database", first.conninfo, "--database-url", database)
    import_ = threading.Thread(target=lambda: outputs.append(run(*arguments).stdout))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
    with psycopg.connect(database) as other:
        other.execute(
            """INSERT INTO clusters
                   (id, name, labels, spec, status, created_time, updated_time, created_by, updated_by)
               VALUES (%s, 'prod', '{}', '{}', '{}', now(), now(), 'a', 'a')""",
            [D],
        )
        import_.start()
        end = time.monotonic() + 30
        while sql.execute(waiting, [sql.info.dbname]).fetchone() == (0,):
            assert time.monotonic() < end
            time.sleep(0.02)
    import_.join(20)
    assert f"cluster {A} 'prod': its name is that of {D}" in outputs[0]
    assert "clusters    1 new" in outputs[0]


def test_a_second_run_changes_nothing(first: Original, database: str, sql: psycopg.Connection) -> None:
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


def test_rules_of_mapped_conditions_see_what_is_taken(
    first: Original, api: Api, database: str, tmp_path: Path
) -> None:
    fill(first)
    rules = tmp_path / "rules.yaml"
    rules.write_text("""
entities:
  - kind: Cluster
    conditions:
      - type: Seen
        when: {expression: 'statuses.exists(s, s.adapter == "dns")'}
        output:
          status: {expression: '"True"'}
          reason: {expression: '"Seen"'}
          message: {expression: 'toJson(resource.spec) + toJson(statuses[0].data)'}
""")
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
    # Of a report that comes later, the others are those that are here.
    first.report(A, "late", observed_generation=3)
    take(database, first, "--config", str(rules))
    assert messages(A) == expected(A)
    command = ("migrate", "--refold", "--database-url", database, "--config", str(rules))
    assert run(*command).stdout.splitlines()[-1] == "0 statuses changed."


def test_a_dry_run_reports_the_same_and_writes_nothing(
    first: Original, database: str, sql: psycopg.Connection
) -> None:
    fill(first)
    first.cluster(C, "Not_A_Name")
    dry = take(database, first, "--dry-run", code=3)
    for table in ("clusters", "node_pools", "adapter_statuses", "labels", "imports"):
        assert sql.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    real = take(database, first, code=3)
    assert "Nothing was written; this is what would be:" in dry
    assert dry.splitlines()[2:] == real.splitlines()[2:]


def test_what_the_first_generation_no_longer_shows_is_not_taken(
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
    assert "Not taken: 1\n" in output
    assert api.get("/clusters").json()["total"] == 2
    assert api.get("/nodepools").json()["total"] == 2
    assert api.get(f"/clusters/{A}/statuses").json()["total"] == 2


def test_what_is_being_deleted_is_taken_as_that_and_ends_here(
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
    assert "Node pools are left: 1." in [c["message"] for c in waiting if c["type"] == "Reconciled"]
    pool = api.get(f"/nodepools/{P}").json()
    assert api.report(pool, "np", observed_generation=2, conditions=done).status_code == 201
    assert api.get(f"/nodepools/{P}").status_code == 404
    assert api.get(f"/clusters/{A}").status_code == 404


def test_what_cannot_be_taken_is_told_with_the_reason(newest: Original, api: Api, database: str) -> None:
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
    lines = output.partition("Not taken: ")[2].splitlines()
    assert lines[0] == "17"
    for line in (
        f"cluster {odd[0]} 'Prod_West': its name must match the pattern",
        f"cluster {odd[1]} '{'a' * 64}': its name must have at most 63 characters",
        "cluster not-a-uuid 'fine': its id is no UUID; --derive-ids makes one of it",
        f"cluster {odd[2]} 'list': its spec is no JSON object",
        f"cluster {odd[3]} 'prod': its name is that of {A}",
        f"cluster {odd[4]} 'tenant': it belongs to a tenant",
        f"cluster {odd[5]} 'never': created_time is no time",
        f"cluster {odd[6]} 'zero': its generation is no whole number",
        f"node pool {odd[7]} 'orphan': its id is no UUID",
        f"node pool {odd[8]} 'orphan-of': its cluster {odd[0]} is not here",
        f"Channel {odd[9]} 'stable': this service knows no such kind",
        f"reference {A} 'channel': references are not kept: Channel {odd[9]}",
        f"report {B} 'broken': conditions must be an array",
        f"report {B} 'silent': conditions must have at least 1 item",
        f"report {B} 'strange': conditions[0].status must be one of",
        f"report {B} 'early': observed_generation must be at least 1",
        f"report {B} 'listed': its data is no JSON object",
    ):
        assert any(one.startswith("  " + line) for one in lines), (line, output)
    assert api.get("/clusters").json()["total"] == 2
    assert api.get(f"/clusters/{B}/statuses").json()["total"] == 1
    # Nothing of this is remembered as done: the next run says the same.
    assert take(database, newest, code=3).partition("Not taken: ")[2].splitlines() == lines


def test_ids_of_december_become_uuids_where_that_is_wanted(
    first: Original, api: Api, database: str
) -> None:
    first.cluster(ksuid(1), "prod")
    first.node_pool(ksuid(2), "workers", ksuid(1))
    first.report(ksuid(1), "dns")
    output = take(database, first, code=3)
    assert f"cluster {ksuid(1)} 'prod': its id is no UUID; --derive-ids makes one of it" in output
    assert "All was taken." in take(database, first, "--derive-ids")
    found = api.get(f"/clusters?search=labels.hyperfleet.io/original-id='{ksuid(1)}'").json()["items"]
    assert [one["name"] for one in found] == ["prod"]
    assert found[0]["status"]["phase"] == "Ready"
    pool = api.get(f"/clusters/{found[0]['id']}/nodepools").json()["items"][0]
    assert pool["labels"] == {"team": "a", "hyperfleet.io/original-id": ksuid(2)}
    assert "0 new, 0 changed, 1 same, 0 removed" in take(database, first, "--derive-ids")
    # Who still has the old ids goes on with them.
    path = f"/clusters/{ksuid(1)}/nodepools/{ksuid(2)}"
    assert api.get(path).json() == pool
    available = [{"type": "Available", "status": "True"}]
    report = {"adapter": "dns", "observed_generation": 1, "conditions": available}
    assert api.put(f"{path}/statuses", json=report).status_code == 201
    assert api.get(f"/clusters/{ksuid(1)}/statuses").json()["total"] == 1
    assert api.patch(f"/clusters/{ksuid(1)}", json={"labels": {"a": "b"}}).status_code == 200
    assert api.get(f"/clusters/{ksuid(3)}").status_code == 404
    # Without the option nothing is taken, and nothing that was taken goes.
    first.cluster(A, "with-a-uuid")
    output = take(database, first, code=3)
    assert "clusters    1 new, 0 changed, 0 same, 0 removed" in output
    assert api.get("/clusters").json()["total"] == 2


def test_what_was_created_or_changed_here_is_not_touched(
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

    # A change there that is no newer than the one here does not win; one that is does.
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

    # What was removed here does not come back; what is gone there goes, unless it was changed here.
    assert api.delete(f"/clusters/{A}/nodepools/{P}").status_code == 202
    api.post(f"/clusters/{A}/nodepools/{P}/force-delete", json={"reason": "test"})
    assert api.get(f"/nodepools/{P}").status_code == 404
    first.conn.execute("UPDATE node_pools SET updated_time = now()")
    output = take(database, first, code=3)
    assert f"node pool {P} 'workers': it was removed here after the import" in output
    api.node_pool(theirs.json(), "here-only")
    first.conn.execute("UPDATE clusters SET deleted_at = now() WHERE name = 'prod'")
    output = take(database, first, code=3)
    assert f"cluster {A} 'prod': it is gone there, and has node pools here" in output
    assert api.read(own) == own


def test_a_newer_report_counts_wherever_it_came_from(first: Original, api: Api, database: str) -> None:
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


def test_a_source_that_has_lost_everything_removes_nothing(
    first: Original, api: Api, database: str
) -> None:
    fill(first)
    take(database, first)
    first.conn.execute("TRUNCATE clusters, node_pools, adapter_statuses")
    output = take(database, first, code=3)
    assert "nothing is there any more; kept here" in output
    assert api.get("/clusters").json()["total"] == 2


def test_it_refuses_to_run_where_that_cannot_be_meant(
    first: Original, database: str, empty: str, postgres: NoopExecutor
) -> None:
    with migrated(postgres, f"other_{next(numbers)}") as other:
        said = take(database, other, code=1)
        assert "is no database of the original" in said
        assert "Tables found: _yoyo_log, _yoyo_migration" in said
        assert "clusters, idempotency_keys" in said
    assert "is the one of this service" in take(database, database, code=1)
    assert "lacks migrations (0001.resources, " in take(empty, database, code=1)
    for arguments, says in (
        ((), "either --from-database or --from-api"),
        (("--from-database", "a=b", "--from-api", "http://h"), "either --from-database or --from-api"),
        (("--from-database", "mysql://u:secret@h/d"), "the scheme mysql is not postgresql"),
        (("--from-api", "http://u:secret@h"), "must not hold a user or a password"),
        (("--from-api", "ftp://h"), "must be a URL such as"),
        (("--from-api", "http://h", "--follow", "--dry-run"), "contradict each other"),
        (("--from-api", "http://127.0.0.1:1", "--token", "secret"), "cannot be read"),
        (("--from-database", "postgresql://u:secret@127.0.0.1:1/d"), "The import failed"),
    ):
        ended = run_here("import", "--database-url", database, *arguments)
        assert ended.returncode in (1, 2)
        assert says in ended.stdout, ended.stdout
        assert "secret" not in ended.stdout
        assert "Traceback" not in ended.stdout


def test_a_role_that_may_only_read_suffices(first: Original, database: str, tmp_path: Path) -> None:
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
def test_it_goes_on_after_a_kill_and_ends_as_if_there_had_been_none(
    first: Original, database: str, sql: psycopg.Connection, postgres: NoopExecutor
) -> None:
    first.fleet(3000)
    arguments = [HYPERFLEET, "import", "--from-database", first.conninfo, "--database-url", database]
    deadline = time.monotonic() + 60
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=CLEAN) as process:
        while sql.execute("SELECT count(*) >= 1000 FROM clusters").fetchone() != (True,):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    taken = sql.execute("SELECT count(*) FROM clusters").fetchone()
    assert taken is not None
    assert 1000 <= taken[0] < 9000
    assert taken[0] % 500 == 0, "whole batches"
    assert sql.execute("SELECT count(*) FROM imports").fetchone() is not None
    output = take(database, first)
    assert "All was taken." in output
    assert f"clusters    {3000 - taken[0]} new, 0 changed, {taken[0]} same" in output
    with migrated(postgres, f"whole_{next(numbers)}") as other:
        take(other, first)
        with psycopg.connect(other) as conn:
            assert dump(conn) == dump(sql)


class Following:
    """A running ``import --follow``."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [HYPERFLEET, "import", "--follow", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**CLEAN, "PYTHONUNBUFFERED": "1"},
        )
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
def test_follow_takes_changes_within_seconds_and_ends_with_a_look_at_everything(
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
        # A change that the times do not tell is found by the last look.
        original.conn.execute(
            "UPDATE adapter_statuses SET last_report_time = %s"
            " WHERE resource_id = %s AND adapter = 'dns'",
            [at(3), A],
        )
        assert following.stop() == 0, following.lines
    finally:
        following.process.kill()
    assert any(" all: " in line for line in following.lines[2:])
    assert "All was taken.\n" in following.lines
    reports = {one["adapter"]: one for one in api.get(f"/clusters/{A}/statuses").json()["items"]}
    assert reports["dns"]["last_report_time"] == shown(3)


@pytest.mark.slow
def test_follow_lets_a_name_go_from_one_to_the_next(first: Original, api: Api, database: str) -> None:
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


def test_another_instance_of_this_service_is_a_source(
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
        # What is gone there goes here, too.
        gone = api.get("/clusters?search=name='c7'").json()["items"][0]
        assert api.delete(f"/clusters/{gone['id']}").status_code == 202
        ended = run_here("import", "--from-api", api.url, "--database-url", other)
        assert "clusters    0 new, 0 changed, 131 same, 1 removed" in ended.stdout
        assert there.get(f"/clusters/{gone['id']}").status_code == 404


# As the first generation answers: times under other names, no times of reports.
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
    """A service that answers as the first generation did; it wants a token."""
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


def test_a_service_of_the_first_generation_is_a_source(
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
        assert f"report {uid(101)}: its reports are no JSON" in ended.stdout
        assert "sesame" not in ended.stdout
    assert {method for method, *_ in old.asked} == {"GET"}
    cluster = api.get(f"/clusters/{A}").json()
    assert cluster["created_time"] == "2025-11-17T10:00:00.123456Z"
    # It was never changed before it was created.
    assert cluster["updated_time"] == cluster["created_time"]
    assert cluster["status"]["phase"] == "Ready"
    assert api.get("/clusters").json()["total"] == 26
    report = api.get(f"/clusters/{A}/statuses").json()["items"][0]
    assert report["created_time"] == "2025-11-17T15:04:05.000000Z"
    assert report["last_report_time"] == "2025-11-17T15:14:05.000000Z"
    assert report["conditions"][0]["reason"] == "Done"
    assert api.get(f"/nodepools/{P}").json()["generation"] == 1


def test_the_command_is_there_and_says_what_it_does() -> None:
    said = run("import", "--help").stdout
    for flag in ("--from-database", "--from-api", "--token-file", "--dry-run", "--follow"):
        assert flag in said
