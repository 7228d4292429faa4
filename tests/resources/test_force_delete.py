"""force-delete removes a resource whose deletion is stuck, and leaves an audit record."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import requests
from alike import (
    ADAPTER,
    BOTH_KINDS,
    at,
    collection,
    create,
    delete,
    finalize,
    gone,
    left,
    owner_left,
    read,
    refused,
)
from conftest import Api
from helpers_contract import NO_ID, check, condition, problem
from psycopg.rows import dict_row

from hyperfleet.auth import identity

pytestmark = pytest.mark.slow

Json = dict[str, Any]


def force(api: Api, resource: Json, reason: Any = "stuck") -> requests.Response:
    return api.post(at(resource, "/force-delete"), json={"reason": reason})


def audit(sql: psycopg.Connection) -> list[Json]:
    with sql.cursor(row_factory=dict_row) as cursor:
        forced = "SELECT * FROM audit WHERE action = 'force-delete' AND status IS NULL ORDER BY id"
        return cursor.execute(forced).fetchall()


@BOTH_KINDS
def test_force_delete_removes_a_marked_resource_and_leaves_only_an_audit_record(
    waiting: Api, sql: psycopg.Connection, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, resource = waiting, create(waiting, kind)
    api.report(resource, ADAPTER[kind])
    delete(api, resource)
    last = api.read(resource)
    monkeypatch.setattr(identity, "SYSTEM", "oncall@example.com")
    before = datetime.now(UTC)
    reason = "The adapter was removed; ticket 4711. Größe: ∞"
    response = force(api, resource, reason)
    check(response, 204)
    gone(api, resource)
    assert left(sql) == owner_left(kind)
    (record,) = audit(sql)
    assert record["actor"] == "oncall@example.com"
    assert record["reason"] == reason
    assert record["action"]
    assert record["resource_type"] == kind
    assert str(record["resource_id"]) == resource["id"]
    assert json.loads(record["document"]) == last
    assert abs(record["time"] - before) < timedelta(minutes=1)


def test_force_delete_of_a_cluster_removes_its_node_pools_and_records_each(
    waiting: Api, sql: psycopg.Connection
) -> None:
    api = waiting
    cluster, other = api.cluster("c1", labels={"a": "b"}), api.cluster("c2", labels={"a": "b"})
    pools = [api.node_pool(cluster, f"np{i}", labels={"a": "b"}) for i in range(3)]
    bystander = api.node_pool(other)
    for resource in (cluster, *pools, bystander):
        api.report(resource, "dns")
    delete(api, cluster)
    last = {resource["id"]: api.read(resource) for resource in (cluster, *pools)}
    kept = api.read(other), api.read(bystander)
    check(force(api, cluster, "all of it"), 204)
    gone(api, cluster, *pools)
    assert (api.read(other), api.read(bystander)) == kept
    assert left(sql) == {"clusters": 1, "node_pools": 1, "adapter_statuses": 1, "labels": 1}
    records = audit(sql)
    assert {str(record["resource_id"]): json.loads(record["document"]) for record in records} == last
    assert len(records) == len(last)
    assert {record["reason"] for record in records} == {"all of it"}
    assert {record["actor"] for record in records} == {"system@hyperfleet.local"}
    assert sorted(record["resource_type"] for record in records) == ["Cluster"] + ["NodePool"] * 3


def test_force_delete_removes_a_report_that_it_has_to_wait_for(
    waiting: Api, sql: psycopg.Connection, database: str
) -> None:
    cluster = waiting.cluster()
    pool = waiting.node_pool(cluster)
    delete(waiting, cluster)
    with psycopg.connect(database) as other, ThreadPoolExecutor(1) as threads:
        # As a report on the node pool does on another replica.
        other.execute("SELECT FROM node_pools FOR NO KEY UPDATE")
        other.execute(
            "INSERT INTO adapter_statuses (owner_type, owner_id, adapter, observed_generation, "
            "conditions, created_time, last_report_time) "
            "VALUES ('NodePool', %s, 'late', 1, '[]', now(), now())",
            [pool["id"]],
        )
        forcing = threads.submit(force, waiting, cluster)
        while not other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
            assert not forcing.done()
        other.commit()
        check(forcing.result(), 204)
    assert left(sql) == {}


def test_a_waiting_cluster_is_removed_when_its_last_node_pool_is_force_deleted(
    waiting: Api, sql: psycopg.Connection
) -> None:
    api, cluster = waiting, waiting.cluster()
    first, second = api.node_pool(cluster, "np1"), api.node_pool(cluster, "np2")
    delete(api, cluster)
    assert finalize(api, cluster).status_code == 201
    check(force(api, first), 204)
    gone(api, first)
    assert condition(api.read(cluster), "Reconciled")["reason"] == "ReconciledWaitingForChildren"
    check(force(api, second), 204)
    gone(api, second, cluster)
    assert left(sql) == {}
    forced = [str(r["resource_id"]) for r in audit(sql) if r["resource_type"] == "NodePool"]
    assert forced == [first["id"], second["id"]]


def test_force_delete_of_a_node_pool_keeps_a_cluster_that_is_not_finalized(
    waiting: Api, sql: psycopg.Connection
) -> None:
    api, cluster = waiting, waiting.cluster()
    pool = api.node_pool(cluster)
    delete(api, cluster)
    check(force(api, pool), 204)
    gone(api, pool)
    assert api.read(cluster)["generation"] == 2
    assert finalize(api, cluster).status_code == 201
    gone(api, cluster)
    assert [record["resource_type"] for record in audit(sql)] == ["NodePool"]


def test_force_delete_of_a_node_pool_leaves_an_unmarked_cluster_unchanged(waiting: Api) -> None:
    cluster = waiting.cluster()
    pool, sibling = waiting.node_pool(cluster, "np1"), waiting.node_pool(cluster, "np2")
    delete(waiting, pool)
    before = read(waiting, cluster), read(waiting, sibling)
    check(force(waiting, pool), 204)
    gone(waiting, pool)
    assert (read(waiting, cluster), read(waiting, sibling)) == before


@BOTH_KINDS
def test_force_delete_of_an_unmarked_resource_gets_409(
    waiting: Api, sql: psycopg.Connection, kind: str
) -> None:
    resource = create(waiting, kind)
    before = read(waiting, resource)
    refused(force(waiting, resource), 409)
    assert read(waiting, resource) == before
    assert audit(sql) == []


@BOTH_KINDS
def test_force_delete_of_an_unknown_resource_gets_404(
    waiting: Api, sql: psycopg.Connection, kind: str
) -> None:
    resource = create(waiting, kind)
    for unknown in (NO_ID, "no-uuid", resource["id"] + "0"):
        path = f"{collection(resource)}/{unknown}/force-delete"
        problem(waiting.post(path, json={"reason": "x"}), 404)
    delete(waiting, resource)
    check(force(waiting, resource), 204)
    problem(force(waiting, resource), 404)
    assert len(audit(sql)) == 1


def test_a_node_pool_can_only_be_force_deleted_under_its_own_cluster(waiting: Api) -> None:
    pool, other = waiting.node_pool(waiting.cluster("c1")), waiting.cluster("c2")
    delete(waiting, pool)
    path = f"/clusters/{other['id']}/nodepools/{pool['id']}/force-delete"
    problem(waiting.post(path, json={"reason": "x"}), 404)
    problem(waiting.post(f"/clusters/{pool['id']}/force-delete", json={"reason": "x"}), 404)
    assert waiting.read(pool)["generation"] == 2


@BOTH_KINDS
def test_a_reason_is_required_and_limited_to_1024_characters(
    waiting: Api, sql: psycopg.Connection, kind: str
) -> None:
    api, resource = waiting, create(waiting, kind)
    delete(api, resource)
    before = read(api, resource)
    for reason in ("", "x" * 1025, None, 1, [], {}, True, "a\0b"):
        problem(force(api, resource, reason), 400, "reason")
    path = at(resource, "/force-delete")
    problem(api.post(path, json={}), 400, "reason")
    for body in ([], "x", None):
        problem(api.post(path, json=body), 400)
    problem(api.post(path, data="reason=x", headers={"Content-Type": "text/plain"}), 415)
    assert read(api, resource) == before
    assert audit(sql) == []
    # The limit is in characters, not bytes.
    check(force(api, resource, "é" * 1024), 204)
    assert audit(sql)[0]["reason"] == "é" * 1024


def test_a_reason_of_one_character_is_accepted(waiting: Api, sql: psycopg.Connection) -> None:
    cluster = waiting.cluster()
    delete(waiting, cluster)
    check(force(waiting, cluster, "x"), 204)
    assert audit(sql)[0]["reason"] == "x"


@BOTH_KINDS
def test_the_log_says_in_one_line_who_removed_what_and_why(
    waiting: Api, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = create(waiting, kind)
    delete(waiting, resource)
    monkeypatch.setattr(identity, "SYSTEM", "oncall@example.com")
    with caplog.at_level(logging.INFO):
        check(force(waiting, resource, "first line\nERROR forged line"), 204)
    lines = [record.getMessage() for record in caplog.records if resource["id"] in record.getMessage()]
    (line,) = [line for line in lines if "first line" in line]
    assert "oncall@example.com" in line
    assert kind in line
    # The reason must not forge a second line.
    assert "\n" not in line


@BOTH_KINDS
def test_a_refused_force_delete_does_not_log_its_reason(
    waiting: Api, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    resource = create(waiting, kind)
    with caplog.at_level(logging.INFO):
        refused(force(waiting, resource, "very special reason"), 409)
    assert not any("very special reason" in record.getMessage() for record in caplog.records)


@BOTH_KINDS
def test_after_a_force_delete_the_name_is_free_and_the_record_remains(
    waiting: Api, sql: psycopg.Connection, kind: str
) -> None:
    resource = create(waiting, kind)
    delete(waiting, resource)
    check(force(waiting, resource), 204)
    body = {"name": resource["name"], "spec": {}}
    again = check(waiting.post(collection(resource), json=body), 201)
    delete(waiting, again)
    assert finalize(waiting, again).status_code == 201
    (record,) = audit(sql)
    assert str(record["resource_id"]) == resource["id"]
