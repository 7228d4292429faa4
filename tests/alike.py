"""What tests do with resources of any kind."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import requests
from conftest import Api
from declared_kinds import ALIKE
from helpers_contract import JSON, check, condition, faults, problem

from hyperfleet.kinds import RESOURCES

Json = dict[str, Any]

MERGE = "application/merge-patch+json"
BOTH_KINDS = pytest.mark.parametrize("kind", ALIKE or ["Cluster", "NodePool"])
BOTH_TYPES = (JSON, MERGE)


def unique() -> str:
    """Returns a unique name."""
    return f"n{uuid4().hex[:8]}"


def answered(response: requests.Response, status: int = 200) -> Json:
    """Returns the body of a response with this status."""
    assert response.status_code == status, response.text
    found: Json = response.json()
    return found


def place(api: Api, kind: str, owner: str = "owner") -> str:
    """Returns the path to create resources of this kind at; creates an owner if they need one."""
    of = RESOURCES[kind]
    if of.parent is None:
        return f"/{of.segment}"
    members: Json = {"labels": {}, "spec": {}}
    return at(create(api, of.parent, owner, **members), f"/{of.segment}")


def create(api: Api, kind: str, name: str = "one", **members: Any) -> Json:
    """Creates a resource of this kind, and its owner if it needs one."""
    members = {"labels": {"env": "dev", "team": "a"}, "spec": {"version": "4.16", "nodes": 5}} | members
    made = api.post(place(api, kind, f"owner-of-{name}"), json={"name": name, **members})
    created: Json = check(made, 201)
    return created


def owner_left(kind: str) -> dict[str, int]:
    """Returns how many rows the owners of a resource made by :func:`create` have."""
    parent = RESOURCES[kind].parent
    return {RESOURCES[parent].table: 1} if parent else {}


def at(resource: Json, action: str = "") -> str:
    """Returns the path of a resource, for the client."""
    return "/" + resource["href"] + action


def collection(resource: Json) -> str:
    """Returns the path at which resources of its kind are created."""
    return "/" + resource["href"].rpartition("/")[0]


def patch(
    api: Api, resource: Json, body: Any, media_type: str = JSON, **headers: str
) -> requests.Response:
    return api.patch(
        at(resource), data=json.dumps(body), headers={"Content-Type": media_type, **headers}
    )


def merge(api: Api, resource: Json, body: Any) -> requests.Response:
    return patch(api, resource, body, MERGE)


def read(api: Api, resource: Json) -> tuple[str, Json]:
    """Returns a resource's entity tag, and the resource as it is now."""
    response = api.get(at(resource))
    return response.headers["ETag"], check(response)


def refused(response: requests.Response, status: int) -> Json:
    """Returns the problem in a response, with a status about the resource's state."""
    assert response.status_code == status, f"{response.status_code}: {response.text}"
    body: Json = response.json()
    assert faults(body, {"$ref": "#/components/schemas/ProblemDetails"}) == []
    assert body["status"] == status
    assert body["code"].startswith("HYPERFLEET-CNF-")
    return body


FINALIZED = [{"type": "Available", "status": "False"}, {"type": "Finalized", "status": "True"}]
ADAPTER = {"Cluster": "dns", "NodePool": "np", "Channel": "dns", "Version": "np"}
TABLES = ("clusters", "node_pools", "resources", "adapter_statuses", "labels")


def delete(api: Api, resource: Json, **headers: str) -> Json:
    marked: Json = check(api.delete(at(resource), headers=headers), 202)
    return marked


def finalize(api: Api, resource: Json, generation: int = 2, adapter: str = "") -> requests.Response:
    """Sends an adapter's last report: it has cleaned up."""
    return api.report(
        resource,
        adapter or ADAPTER[resource["kind"]],
        observed_generation=generation,
        conditions=FINALIZED,
    )


def gone(api: Api, *resources: Json) -> None:
    """Asserts that nothing in the API knows these resources any more."""
    for resource in resources:
        problem(api.get(at(resource)), 404)
        problem(api.get(at(resource, "/statuses")), 404)
        problem(api.delete(at(resource)), 404)
        problem(patch(api, resource, {"spec": {}}), 404)
        problem(api.post(at(resource, "/force-delete"), json={"reason": "x"}), 404)
        problem(finalize(api, resource), 404)
        listed = check(api.get(f"/{RESOURCES[resource['kind']].segment}"))
        assert resource["id"] not in [item["id"] for item in listed["items"]]


def left(sql: psycopg.Connection) -> dict[str, int]:
    """Returns the number of rows in each table that belongs to resources, except empty ones."""
    counts: dict[str, int] = {}
    for table in TABLES:
        row = sql.execute(f"SELECT count(*) FROM {table}").fetchone()
        if row and row[0]:
            counts[table] = row[0]
    return counts


SYSTEM = "system@hyperfleet.local"
AGGREGATED = ["Ready", "Available", "Reconciled", "LastKnownReconciled"]


def assert_is_new(resource: dict[str, Any], before: datetime) -> None:
    """Asserts what the service adds to a resource that has just been created."""
    id_ = UUID(resource["id"])
    assert id_.version == 7
    assert str(id_) == resource["id"]
    assert resource["generation"] == 1
    assert resource["created_by"] == resource["updated_by"] == SYSTEM
    assert "deleted_time" not in resource
    assert "deleted_by" not in resource
    created = resource["created_time"]
    assert resource["updated_time"] == created
    margin = timedelta(seconds=2)
    assert before - margin < datetime.fromisoformat(created) < datetime.now(UTC) + margin

    status = resource["status"]
    assert status["phase"] == "NotReady"
    assert status["observed_generation"] == 0
    assert status["adapters"] == []
    assert status["last_transition_time"] == status["last_updated_time"] == created
    assert sorted(one["type"] for one in status["conditions"]) == sorted(AGGREGATED)
    for one in status["conditions"]:
        assert one["status"] == "False"
        assert one["observed_generation"] == 1
        assert one["created_time"] == one["last_updated_time"] == one["last_transition_time"] == created
    assert condition(resource, "Ready")["reason"] == "ReconciledMissingAdapters"
    assert condition(resource, "Reconciled")["reason"] == "ReconciledMissingAdapters"
    assert condition(resource, "Available")["reason"] == "AdaptersMissingReports"
    assert condition(resource, "LastKnownReconciled")["reason"] == "AdaptersMissingReports"
