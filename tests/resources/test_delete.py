"""DELETE marks a resource, waits for adapters to finalize it, and removes it."""

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from alike import (
    ADAPTER,
    BOTH_KINDS,
    FINALIZED,
    MERGE,
    at,
    collection,
    create,
    delete,
    finalize,
    gone,
    left,
    merge,
    owner_left,
    patch,
    read,
    refused,
)
from conftest import Api
from helpers_contract import NO_ID, check, condition, problem

from hyperfleet.auth import identity

pytestmark = pytest.mark.slow

Json = dict[str, Any]

# The mark


@BOTH_KINDS
def test_delete_marks_the_resource_and_leaves_it_to_its_adapters(
    waiting: Api, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, resource = waiting, create(waiting, kind)
    tag, before = read(api, resource)
    monkeypatch.setattr(identity, "SYSTEM", "remover@example.com")
    response = api.delete(at(resource))
    marked = check(response, 202)
    assert marked["deleted_time"] > before["updated_time"]
    assert marked["deleted_by"] == "remover@example.com"
    assert marked["generation"] == 2
    same = ("kind", "id", "href", "name", "labels", "spec", "created_time", "created_by")
    assert [marked[member] for member in same] == [before[member] for member in same]
    assert response.headers["ETag"] != tag
    assert read(api, resource) == (response.headers["ETag"], marked)
    for type_ in ("Ready", "Reconciled"):
        assert condition(marked, type_)["status"] == "False"
        assert condition(marked, type_)["observed_generation"] == 2
        # No adapter has reported at this generation, so the time is that of the deletion.
        assert condition(marked, type_)["last_updated_time"] == marked["updated_time"]
    assert marked["status"]["last_updated_time"] == marked["updated_time"] == marked["deleted_time"]
    listed = check(api.get(collection(resource)))
    assert (listed["total"], listed["items"]) == (1, [marked])


@BOTH_KINDS
def test_delete_refolds_the_status(waiting: Api, kind: str) -> None:
    api, resource = waiting, create(waiting, kind)
    api.report(resource, ADAPTER[kind])
    before = api.read(resource)
    assert before["status"]["phase"] == "Ready"
    marked = delete(api, resource)
    assert marked["status"]["phase"] == "NotReady"
    assert marked["status"]["observed_generation"] == 1
    for type_ in ("Ready", "Reconciled"):
        assert condition(marked, type_)["status"] == "False"
        assert condition(marked, type_)["reason"] == "ReconciledMissingAdapters"
        assert condition(marked, type_)["last_transition_time"] == marked["deleted_time"]
    for type_ in ("Available", "LastKnownReconciled"):
        assert condition(marked, type_) == condition(before, type_)
        assert condition(marked, type_)["status"] == "True"


@BOTH_KINDS
def test_a_repeated_delete_returns_the_same_and_changes_nothing(
    waiting: Api, sql: psycopg.Connection, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, resource = waiting, create(waiting, kind)
    first = api.delete(at(resource))
    check(first, 202)
    rows = sql.execute("SELECT xmin, document FROM clusters").fetchall()
    rows += sql.execute("SELECT xmin, document FROM node_pools").fetchall()
    monkeypatch.setattr(identity, "SYSTEM", "another@example.com")
    for _ in range(2):
        again = api.delete(at(resource))
        assert check(again, 202) == first.json()
        assert again.headers["ETag"] == first.headers["ETag"]
    assert read(api, resource) == (first.headers["ETag"], first.json())
    after = sql.execute("SELECT xmin, document FROM clusters").fetchall()
    after += sql.execute("SELECT xmin, document FROM node_pools").fetchall()
    assert after == rows


@BOTH_KINDS
def test_a_repeated_delete_keeps_reports(waiting: Api, kind: str) -> None:
    api, resource = waiting, create(waiting, kind)
    delete(api, resource)
    assert api.report(resource, "other", observed_generation=2).status_code == 201
    before = read(api, resource)
    assert delete(api, resource) == before[1]
    assert read(api, resource) == before


@BOTH_KINDS
def test_delete_raises_the_generation_of_a_changed_resource_by_one(waiting: Api, kind: str) -> None:
    api, resource = waiting, create(waiting, kind)
    check(patch(api, resource, {"spec": {"x": 1}}))
    check(merge(api, resource, {"labels": None}))
    assert delete(api, resource)["generation"] == 4


def test_a_marked_cluster_takes_no_new_node_pool(waiting: Api) -> None:
    cluster = waiting.cluster()
    delete(waiting, cluster)
    before = read(waiting, cluster)
    response = waiting.post(at(cluster, "/nodepools"), json={"name": "np1", "spec": {}})
    refused(response, 409)
    assert check(waiting.get(at(cluster, "/nodepools")))["total"] == 0
    assert read(waiting, cluster) == before


def test_a_cluster_with_a_marked_node_pool_takes_another_and_can_be_changed(waiting: Api) -> None:
    cluster = waiting.cluster()
    delete(waiting, waiting.node_pool(cluster, "np1"))
    waiting.node_pool(cluster, "np2")
    assert check(patch(waiting, cluster, {"spec": {"x": 1}}))["generation"] == 2


@BOTH_KINDS
def test_the_name_of_a_marked_resource_stays_taken_until_it_is_gone(waiting: Api, kind: str) -> None:
    api, resource = waiting, create(waiting, kind)
    body = {"name": resource["name"], "spec": {}}
    delete(api, resource)
    assert refused(api.post(collection(resource), json=body), 409)["errors"][0]["field"] == "name"
    assert finalize(api, resource).status_code == 201
    again = check(api.post(collection(resource), json=body), 201)
    assert again["id"] != resource["id"]
    assert again["generation"] == 1
    assert "deleted_time" not in again


@BOTH_KINDS
def test_delete_of_an_unknown_resource_gets_404(api: Api, kind: str) -> None:
    resource = create(api, kind)
    for unknown in (NO_ID, "no-uuid", resource["id"] + "0"):
        problem(api.delete(f"{collection(resource)}/{unknown}"), 404)
    assert read(api, resource)[1] == resource


def test_a_node_pool_can_only_be_deleted_under_its_own_cluster(api: Api) -> None:
    node_pool, other = api.node_pool(api.cluster("c1")), api.cluster("c2")
    problem(api.delete(f"/clusters/{other['id']}/nodepools/{node_pool['id']}"), 404)
    problem(api.delete(f"/clusters/{node_pool['id']}"), 404)
    assert api.read(node_pool) == node_pool


# Cascading


def test_deleting_a_cluster_marks_its_node_pools_and_no_others(
    waiting: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = waiting
    cluster, other = api.cluster("c1"), api.cluster("c2")
    pools = [api.node_pool(cluster, f"np{i}") for i in range(3)]
    bystander = api.node_pool(other)
    api.report(pools[0], "np")
    check(patch(api, pools[1], {"spec": {"replicas": 1}}))
    tags = [read(api, pool)[0] for pool in pools]
    monkeypatch.setattr(identity, "SYSTEM", "remover@example.com")
    delete(api, cluster)
    for pool, tag, generation in zip(pools, tags, (2, 3, 2), strict=True):
        now, marked = read(api, pool)
        assert now != tag
        assert marked["generation"] == generation
        assert marked["deleted_by"] == "remover@example.com"
        assert marked["deleted_time"] >= pool["created_time"]
        assert condition(marked, "Reconciled")["status"] == "False"
        assert condition(marked, "Reconciled")["observed_generation"] == generation
        assert condition(marked, "Reconciled")["last_updated_time"] == marked["updated_time"]
        refused(patch(api, pool, {"spec": {"x": 1}}), 409)
    assert api.read(pools[0])["status"]["phase"] == "NotReady"
    assert condition(api.read(pools[0]), "Available")["status"] == "True"
    assert check(api.get(at(cluster, "/nodepools")))["total"] == 3
    assert (api.read(other), api.read(bystander)) == (other, bystander)


def test_a_replica_whose_clock_is_behind_dates_a_deletion_no_earlier_than_the_last_change(
    waiting: Api, sql: psycopg.Connection
) -> None:
    cluster = waiting.cluster()
    pools = [waiting.node_pool(cluster, f"np{hours}") for hours in (0, 2, 3)]
    for pool, hours in zip(pools, (0, 2, 3), strict=True):
        values = (f"{hours} hours", pool["id"])
        sql.execute("UPDATE node_pools SET updated_time = now() + %s::interval WHERE id = %s", values)
    sql.execute("UPDATE clusters SET updated_time = now() + interval '1 hour'")
    whole = [cluster, *pools]
    before = [waiting.read(one)["updated_time"] for one in whole]
    delete(waiting, cluster)
    marked = [waiting.read(one) for one in whole]
    # The node pools are marked together with the cluster, so at its time, unless theirs is later.
    assert [one["updated_time"] for one in marked] == [max(time, before[0]) for time in before]
    for one in marked:
        assert one["deleted_time"] == one["updated_time"]
        assert condition(one, "Reconciled")["last_updated_time"] == one["deleted_time"]


def test_deleting_a_cluster_leaves_a_node_pool_that_is_already_marked_unchanged(
    waiting: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = waiting.cluster()
    pool = waiting.node_pool(cluster)
    delete(waiting, pool)
    before = read(waiting, pool)
    monkeypatch.setattr(identity, "SYSTEM", "another@example.com")
    delete(waiting, cluster)
    assert read(waiting, pool) == before


def test_deleting_a_node_pool_leaves_its_cluster_and_siblings_unchanged(waiting: Api) -> None:
    cluster = waiting.cluster()
    first, second = waiting.node_pool(cluster, "np1"), waiting.node_pool(cluster, "np2")
    before = read(waiting, cluster), read(waiting, second)
    delete(waiting, first)
    assert (read(waiting, cluster), read(waiting, second)) == before
    assert finalize(waiting, first).status_code == 201
    gone(waiting, first)
    assert (read(waiting, cluster), read(waiting, second)) == before


# Removal


@BOTH_KINDS
def test_a_resource_that_no_adapter_must_finalize_is_removed_at_once(
    api: Api, sql: psycopg.Connection, kind: str
) -> None:
    resource = create(api, kind)
    response = api.delete(at(resource))
    marked = check(response, 202)
    assert marked["generation"] == 2
    assert marked["deleted_by"] == "system@hyperfleet.local"
    assert marked["deleted_time"] >= resource["created_time"]
    gone(api, resource)
    # The owner of a node pool remains.
    assert left(sql) == owner_left(kind)


def test_a_cluster_and_node_pools_that_no_adapter_must_finalize_are_removed_at_once(
    api: Api, sql: psycopg.Connection
) -> None:
    cluster = api.cluster(labels={"a": "b"})
    pools = [api.node_pool(cluster, f"np{i}", labels={"c": "d"}) for i in range(3)]
    bystander = api.cluster("bystander", labels={"a": "b"})
    delete(api, cluster)
    gone(api, cluster, *pools)
    assert left(sql) == {"clusters": 1, "labels": 1}
    assert api.read(bystander) == bystander


@BOTH_KINDS
def test_without_required_adapters_all_that_have_reported_must_finalize(
    api: Api, sql: psycopg.Connection, kind: str
) -> None:
    resource = create(api, kind)
    for adapter in ("dns", "validation"):
        api.report(resource, adapter)
    delete(api, resource)
    assert finalize(api, resource, adapter="dns").status_code == 201
    # An adapter that first reports now must finalize, too.
    assert api.report(resource, "late", observed_generation=2).status_code == 201
    assert finalize(api, resource, adapter="validation").status_code == 201
    assert condition(api.read(resource), "Reconciled")["status"] == "False"
    assert finalize(api, resource, adapter="late").status_code == 201
    gone(api, resource)
    assert left(sql) == owner_left(kind)


@BOTH_KINDS
def test_if_adapters_are_required_exactly_those_must_finalize(
    service: Callable[..., Api], sql: psycopg.Connection, kind: str
) -> None:
    both = ("one", "two")
    api = service(required_adapters_cluster=both, required_adapters_nodepool=both)
    resource = create(api, kind)
    for adapter in ("one", "onlooker"):
        api.report(resource, adapter)
    delete(api, resource)
    assert finalize(api, resource, adapter="onlooker").status_code == 201
    assert finalize(api, resource, adapter="one").status_code == 201
    assert api.read(resource)["generation"] == 2
    assert condition(api.read(resource), "Reconciled")["reason"] == "ReconciledMissingAdapters"
    assert finalize(api, resource, adapter="two").status_code == 201
    gone(api, resource)
    assert left(sql) == owner_left(kind)


@BOTH_KINDS
def test_only_finalized_true_at_the_current_generation_counts(waiting: Api, kind: str) -> None:
    api, resource = waiting, create(waiting, kind)
    # Before the deletion, Finalized means nothing.
    assert finalize(api, resource, generation=1).status_code == 201
    assert "deleted_time" not in api.read(resource)
    delete(api, resource)
    assert api.read(resource)["generation"] == 2
    assert finalize(api, resource, generation=1).status_code == 201
    assert finalize(api, resource, generation=3).status_code == 204
    for conditions in (
        [{"type": "Finalized", "status": "False"}],
        [{"type": "Finalized", "status": "Unknown"}],
        [{"type": "Available", "status": "True"}],
        [{"type": "finalized", "status": "True"}],
        [{"type": "Available", "status": "False"}],
    ):
        response = api.report(resource, ADAPTER[kind], observed_generation=2, conditions=conditions)
        assert response.status_code == 201
        assert condition(api.read(resource), "Reconciled")["status"] == "False"
    response = finalize(api, resource, generation=2)
    assert response.status_code == 201
    assert response.json()["adapter"] == ADAPTER[kind]
    assert [one["type"] for one in response.json()["conditions"]] == ["Available", "Finalized"]
    gone(api, resource)


@BOTH_KINDS
def test_a_discarded_report_removes_nothing(waiting: Api, kind: str) -> None:
    api, resource = waiting, create(waiting, kind)
    delete(api, resource)
    pending = [{"type": "Finalized", "status": "False"}]
    api.report(resource, ADAPTER[kind], observed_generation=2, conditions=pending)
    before = read(api, resource)
    late = api.report(
        resource,
        ADAPTER[kind],
        observed_generation=2,
        observed_time="2020-01-01T00:00:00Z",
        conditions=FINALIZED,
    )
    assert late.status_code == 204
    assert read(api, resource) == before


def test_a_finalized_cluster_is_removed_with_the_last_of_its_node_pools(
    waiting: Api, sql: psycopg.Connection
) -> None:
    api, cluster = waiting, waiting.cluster(labels={"a": "b"})
    first, second = (api.node_pool(cluster, name, labels={"c": "d"}) for name in ("np1", "np2"))
    delete(api, cluster)
    assert finalize(api, cluster).status_code == 201
    for leaving, remaining in ((None, (first, second)), (first, (second,))):
        if leaving:
            assert finalize(api, leaving).status_code == 201
            gone(api, leaving)
        for type_ in ("Ready", "Reconciled"):
            now = condition(api.read(cluster), type_)
            assert (now["status"], now["reason"]) == ("False", "ReconciledWaitingForChildren")
            assert now["observed_generation"] == 2
        assert [pool["id"] for pool in check(api.get(at(cluster, "/nodepools")))["items"]] == [
            pool["id"] for pool in reversed(remaining)
        ]
    assert finalize(api, second).status_code == 201
    gone(api, cluster, first, second)
    assert left(sql) == {}


def test_a_cluster_whose_node_pools_are_gone_waits_for_its_own_adapters(
    waiting: Api, sql: psycopg.Connection
) -> None:
    api, cluster = waiting, waiting.cluster()
    pools = [api.node_pool(cluster, name) for name in ("np1", "np2")]
    delete(api, cluster)
    marked = read(api, cluster)
    for pool in pools:
        assert finalize(api, pool).status_code == 201
    gone(api, *pools)
    # That makes no difference as long as its adapters are not done.
    assert read(api, cluster) == marked
    now = condition(api.read(cluster), "Reconciled")
    assert (now["status"], now["reason"]) == ("False", "ReconciledMissingAdapters")
    assert finalize(api, cluster).status_code == 201
    gone(api, cluster)
    assert left(sql) == {}


def test_a_cluster_that_no_adapter_must_finalize_still_waits_for_its_node_pools(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api = service(required_adapters_nodepool=("np",))
    cluster = api.cluster()
    pool = api.node_pool(cluster)
    marked = delete(api, cluster)
    assert condition(marked, "Reconciled")["reason"] == "ReconciledWaitingForChildren"
    assert api.read(cluster) == marked
    assert finalize(api, pool).status_code == 201
    gone(api, cluster, pool)
    assert left(sql) == {}


def test_deleting_a_cluster_removes_node_pools_that_no_adapter_must_finalize_at_once(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api = service(required_adapters_cluster=("dns",))
    cluster = api.cluster()
    silent, heard = api.node_pool(cluster, "np1"), api.node_pool(cluster, "np2")
    api.report(heard, "np")
    delete(api, cluster)
    gone(api, silent)
    assert api.read(heard)["generation"] == 2
    assert finalize(api, heard).status_code == 201
    gone(api, heard)
    assert finalize(api, cluster).status_code == 201
    gone(api, cluster)
    assert left(sql) == {}


def test_a_waiting_cluster_is_removed_with_a_node_pool_that_was_deleted_before_it(waiting: Api) -> None:
    api, cluster = waiting, waiting.cluster()
    check(patch(api, cluster, {"spec": {"x": 1}}))
    pool = api.node_pool(cluster)
    delete(api, pool)
    delete(api, cluster)
    assert finalize(api, cluster, generation=3).status_code == 201
    assert condition(api.read(cluster), "Reconciled")["reason"] == "ReconciledWaitingForChildren"
    assert finalize(api, pool).status_code == 201
    gone(api, cluster, pool)


def test_removing_the_last_node_pool_keeps_a_cluster_that_is_not_marked(api: Api) -> None:
    cluster = api.cluster()
    pool = api.node_pool(cluster)
    delete(api, pool)
    gone(api, pool)
    assert api.read(cluster) == cluster


@BOTH_KINDS
def test_removal_leaves_no_rows_of_the_resource_and_all_rows_of_others(
    waiting: Api, sql: psycopg.Connection, kind: str
) -> None:
    api, resource = waiting, create(waiting, kind)
    other = create(api, kind, "other")
    for adapter in (ADAPTER[kind], "onlooker"):
        api.report(resource, adapter)
        api.report(other, adapter)
    before = read(api, other), left(sql)
    delete(api, resource)
    assert left(sql) == before[1]
    assert finalize(api, resource).status_code == 201
    for table in ("adapter_statuses", "labels"):
        rows = sql.execute(f"SELECT DISTINCT owner_id::text FROM {table}").fetchall()
        assert rows == [(other["id"],)]
    assert read(api, other) == before[0]
    assert check(api.get(at(other, "/statuses")))["total"] == 2


@BOTH_KINDS
def test_adapters_may_report_on_a_marked_resource(waiting: Api, kind: str) -> None:
    api, resource = waiting, create(waiting, kind)
    delete(api, resource)
    tag, marked = read(api, resource)
    progress = [{"type": "Available", "status": "False", "reason": "Draining", "message": "3 left"}]
    response = api.report(resource, ADAPTER[kind], observed_generation=2, conditions=progress)
    assert response.status_code == 201
    now, reported = read(api, resource)
    assert now != tag
    assert reported["status"]["adapters"][0]["reason"] == "Draining"
    kept = ("generation", "deleted_time", "deleted_by", "updated_time", "spec", "labels")
    assert [reported[member] for member in kept] == [marked[member] for member in kept]


def test_merge_patches_and_patches_without_change_of_a_marked_resource_are_refused(waiting: Api) -> None:
    cluster = waiting.cluster()
    delete(waiting, cluster)
    refused(patch(waiting, cluster, {"spec": {"x": 1}}, MERGE), 409)
    # Even one that would change nothing.
    refused(patch(waiting, cluster, {"spec": cluster["spec"]}), 409)


# Large clusters


def many(api: Api, sql: psycopg.Connection, number: int) -> tuple[Json, list[str]]:
    """Creates a cluster with this number of node pools; returns it, and their ids."""
    cluster = api.cluster("large")
    api.report(cluster, "dns")
    pool = api.node_pool(cluster, "first")
    api.report(pool, "np")
    columns = "owner_id, labels, spec, status, created_time, updated_time, created_by, updated_by"
    sql.execute(
        f"INSERT INTO node_pools (id, name, {columns}) SELECT gen_random_uuid(), 'n' || n, {columns}"
        " FROM node_pools, generate_series(2, %s) n",
        [number],
    )
    sql.execute(
        "INSERT INTO adapter_statuses (owner_type, owner_id, adapter, observed_generation, conditions,"
        " created_time, last_report_time) SELECT owner_type, id, adapter, observed_generation,"
        " conditions, r.created_time, last_report_time FROM adapter_statuses r, node_pools p"
        " WHERE owner_type = 'NodePool' AND p.name <> 'first'"
    )
    return cluster, [str(row[0]) for row in sql.execute("SELECT id FROM node_pools")]


def eventually(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end, "not within 30 s"


def slow(sql: psycopg.Connection, what: str) -> None:
    """Makes each change of a node pool take 10 ms."""
    sql.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.01); RETURN coalesce(NEW, OLD); END $$"
    )
    sql.execute(f"CREATE TRIGGER slow BEFORE {what} ON node_pools FOR EACH ROW EXECUTE FUNCTION slow()")


def test_a_deletion_that_exceeds_the_timeouts_still_completes(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api = service(request_timeout=1, statement_timeout=2)
    cluster, pools = many(api, sql, 250)
    slow(sql, "UPDATE")
    assert api.delete(at(cluster)).status_code == 503
    # A repeated request waits for the first one, and finds it done.
    eventually(lambda: api.delete(at(cluster)).status_code == 202)
    rows = sql.execute("SELECT id, generation, status FROM node_pools WHERE deleted_time IS NOT NULL")
    marked = {str(id_): (generation, status["phase"]) for id_, generation, status in rows}
    assert marked == dict.fromkeys(pools, (2, "NotReady"))
    assert api.read(cluster)["generation"] == 2


def test_a_force_delete_that_exceeds_the_timeouts_still_completes(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api = service(request_timeout=1, statement_timeout=2)
    cluster, pools = many(api, sql, 250)
    eventually(lambda: api.delete(at(cluster)).status_code == 202)
    slow(sql, "DELETE")
    by_force = f"{at(cluster)}/force-delete"
    assert api.post(by_force, json={"reason": "stuck"}).status_code == 503
    eventually(lambda: api.post(by_force, json={"reason": "stuck"}).status_code == 404)
    assert left(sql) == {}
    records = sql.execute("SELECT resource_id::text FROM audit WHERE document IS NOT NULL").fetchall()
    assert sorted(id_ for (id_,) in records) == sorted([cluster["id"], *pools])
