"""What an import does where resources here were changed, removed or created independently of it."""

import threading
import time
from concurrent.futures import Future
from pathlib import Path

import declared_kinds
import psycopg
import psycopg.sql
from conftest import Api
from imports import A, B, C, D, P, Q, R, empty, fill, first, newest, take
from original import Original, at
from process import Serving, run

__all__ = ["empty", "first", "newest"]


def blocked_import(original: Original, database: str, sql: psycopg.Connection) -> Future[str]:
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
        import_ = blocked_import(first, database, sql)
    output = import_.result(20)
    assert f"cluster {A} 'prod': its name is that of {D}" in output
    assert "clusters    1 new" in output


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
    assert (
        f"cluster {A} 'prod': it was changed here after the import, and is not newer at the source"
        in output
    )
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


def test_a_dry_run_takes_into_account_what_the_import_would_remove(
    newest: Original, api: Api, database: str
) -> None:
    fill(newest)
    take(database, newest)
    newest.conn.execute("DELETE FROM resources WHERE id = ANY(%s)", [[B, Q]])
    newest.cluster(C, "stage")
    newest.node_pool(R, "below-what-is-gone", B)
    dry = take(database, newest, "--dry-run", code=3)
    assert api.get(f"/clusters/{B}").status_code == 200
    real = take(database, newest, code=3)
    assert dry.splitlines()[2:] == real.splitlines()[2:]
    assert "clusters    1 new, 0 changed, 1 same, 1 removed" in real
    assert f"node pool {R} 'below-what-is-gone': its cluster {B} is not here" in real
    assert api.get(f"/clusters/{C}").json()["name"] == "stage"


def test_the_newer_report_counts_wherever_it_came_from(first: Original, api: Api, database: str) -> None:
    fill(first)
    take(database, first)
    cluster = api.get(f"/clusters/{A}").json()
    bad = [{"type": "Available", "status": "False"}]
    assert api.report(cluster, "dns", observed_generation=3, conditions=bad).status_code == 201
    first.conn.execute(
        "UPDATE adapter_statuses SET last_report_time = %s, updated_time = now(),"
        " data = '{\"new\": 1}', metadata = '{\"n\": 2}' WHERE resource_id = %s",
        [at(4), A],
    )
    output = take(database, first)
    assert "clusters    0 new, 1 changed, 1 same, 0 removed" in output
    assert "reports     1 stored" in output
    reports = {one["adapter"]: one for one in api.get(f"/clusters/{A}/statuses").json()["items"]}
    assert reports["dns"]["conditions"][0]["status"] == "False"
    assert (reports["validator"]["data"], reports["validator"]["metadata"]) == ({"new": 1}, {"n": 2})
    assert api.get(f"/clusters/{A}").json()["status"]["phase"] == "NotReady"
    # A report about a newer generation counts as newer, whatever its time.
    for generation, stored in ((2, 0), (4, 1)):
        first.conn.execute(
            "UPDATE adapter_statuses SET observed_generation = %s, last_report_time = %s"
            " WHERE resource_id = %s AND adapter = 'dns'",
            [generation, at(10_000_000 if generation == 2 else 5), A],
        )
        assert f"reports     {stored} stored" in take(database, first), generation
    reports = {one["adapter"]: one for one in api.get(f"/clusters/{A}/statuses").json()["items"]}
    assert reports["dns"]["observed_generation"] == 4


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
        assert f"cluster {C} 'three': it was changed here after the import, and is not newer" in output
        assert "Not imported: 1\n" in output
    assert api.get(f"/clusters/{A}").json()["spec"] == {"fixed": True}
    assert api.get(f"/clusters/{B}").json()["labels"] == {"team": "a", "new": "label"}
    assert api.get("/clusters?search=labels.new='label'").json()["total"] == 1
    assert api.get(f"/clusters/{C}").json()["spec"] == {"mine": True}
    assert api.get(f"/clusters/{D}/statuses").json()["total"] == 1
    assert api.get(f"/clusters/{A}").headers["ETag"] != tags[A]
    # Also when its time was set back.
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
        first = blocked_import(newest, database, sql)
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
        import_ = blocked_import(newest, database, sql)
    said = f"cluster {A} 'prod': it is already here, and did not come from an import"
    assert said in import_.result(20)
    assert sql.execute("SELECT name FROM clusters").fetchall() == [("mine",)]
