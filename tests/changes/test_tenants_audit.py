"""The audit with tenants: each reads its own records and learns nothing about the others."""

import socket
import time
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alike import FINALIZED, answered, at
from conftest import Api
from tenant_world import Caller, World, everything, world

pytestmark = pytest.mark.slow

# A service of the module's own: only so many rejections per minute are recorded for each caller.
__all__ = ["world"]

Json = dict[str, Any]


def audit(api: Api, search: str = "", **more: str) -> list[Json]:
    """The records that a caller sees, oldest first."""
    params = {"order": "asc", **({"search": search} if search else {}), **more}
    items: list[Json] = answered(api.get("/audit", params=params))["items"]
    return items


def refusals(api: Api, count: int) -> list[Json]:
    """The rejected writes that a caller sees; they are recorded after the response."""
    end = time.monotonic() + 10
    while len(found := audit(api, "status>=400")) < count and time.monotonic() < end:
        time.sleep(0.02)
    assert len(found) == count, found
    return found


def test_the_audit_shows_a_tenant_only_its_own_records(world: World) -> None:
    org = f"org-{uuid4().hex[:8]}"
    a, b, whole, other = (
        *(world.caller(org, "a"), world.caller(org, "b")),
        *(world.caller(org), world.caller()),
    )
    assert audit(other) == []
    kept: dict[Caller, list[Json]] = {}
    for api in (a, b, other):
        kept[api] = [resource for resource, _ in everything(api)]
        cluster, _, channel = kept[api][:3]
        answered(api.patch(at(channel), json={"spec": {"n": 1}}))
        answered(api.post(at(channel, "/rollback"), json={"generation": 1}))
        # Removed at once; after an adapter's report; by force, with all that belongs to it.
        answered(api.delete(at(channel)), 202)
        answered(api.delete(at(kept[api][4])), 202)
        answered(api.delete(at(cluster)), 202)
        if api is b:
            assert api.post(at(cluster, "/force-delete"), json={"reason": "x"}).status_code == 204
        else:
            done = world.system.report(cluster, "dns", observed_generation=2, conditions=FINALIZED)
            assert done.status_code in (201, 204)
    for api in (a, b, other):
        found = audit(api)
        mine = {one["id"] for one in kept[api]}
        assert {record["id"] for record in found} == mine
        assert {record["id"] for record in audit(api, "action='create'")} == mine
        ends = {"remove", "force-delete"} if api is b else {"remove"}
        actions = {record["action"] for record in found}
        assert actions == {"create", "patch", "rollback", "delete"} | ends
        gone = {record["id"]: record for record in found if record["action"] in ends}
        assert gone.keys() == mine
        assert all(record["resource"]["id"] == id_ for id_, record in gone.items())
        assert not any(
            "tenancy" in record or "tenancy" in record.get("resource", {}) for record in found
        )
        total = answered(api.get("/audit", params={"total": "exact", "pageSize": "2"}))
        assert (total["total"], len(total["items"])) == (len(found), 2)
        assert [one["record"] for one in answered(api.get(f"{api.url}{total['next']}"))["items"]] == [
            record["record"] for record in found[::-1][2:4]
        ]
        assert audit(api, "id is not null or id is null") == found
        hidden = next(one for one in kept if one is not api)
        assert audit(api, f"id='{kept[hidden][0]['id']}'") == []
    assert {r["record"] for r in audit(whole)} == {r["record"] for api in (a, b) for r in audit(api)}
    everybody = {r["record"] for r in audit(world.system, pageSize="1000", order="desc")}
    assert everybody >= {r["record"] for api in (whole, other) for r in audit(api)}


def test_a_rejected_write_is_recorded_for_the_tenant_that_it_concerns(world: World) -> None:
    org = f"org-{uuid4().hex[:8]}"
    one, whole, other = world.caller(org, "a"), world.caller(org), world.caller()
    cluster = one.cluster()
    before = {record["record"] for record in audit(world.system, "status>=400", pageSize="1000")}
    # Recorded for the caller's tenant: resources that do not exist for it, and those without an id.
    for _ in range(2):
        answered(other.patch(at(cluster), json={"spec": {}}), 404)
    answered(other.post("/clusters", json={"name": "X", "spec": {}}), 400)
    answered(other.post(at(cluster, "/nodepools"), json={"name": "p", "spec": {}}), 404)
    answered(whole.post("/clusters", json={"name": "X", "spec": {}}), 400)
    # Recorded for the resource's tenant: writes by callers that see the resource.
    answered(one.post(at(cluster, "/force-delete"), json={"reason": "x"}), 409)
    answered(whole.post(at(cluster, "/rollback"), json={"generation": 7}), 404)
    # Recorded for no tenant: writes by a system caller, and by a caller that names no tenant.
    answered(world.system.delete(at(cluster)), 403)
    answered(Api(world.url).delete(at(cluster)), 403)
    theirs = refusals(other, 4)
    assert [(r["action"], r["status"], r.get("id")) for r in theirs] == [
        *(("patch", 404, cluster["id"]), ("patch", 404, cluster["id"])),
        *(("create", 400, None), ("create", 404, None)),
    ]
    mine = refusals(one, 2)
    assert [(r["action"], r["status"]) for r in mine] == [("force-delete", 409), ("rollback", 404)]
    above = refusals(whole, 3)
    assert [r for r in above if r["action"] != "create"] == mine
    assert audit(other, "status is null") == []
    end = time.monotonic() + 10
    while time.monotonic() < end:
        found = audit(world.system, "status>=400", pageSize="1000")
        new = [r for r in found if r["record"] not in before]
        if len(new) >= 9:
            break
    assert len(new) == 9
    assert {r["record"] for r in new} > {r["record"] for r in (*theirs, *above)}
    assert sum(r["action"] == "delete" and r["status"] == 403 for r in new) == 2


def test_rejections_of_several_tenants_stored_together_keep_their_order(world: World) -> None:
    callers = [world.caller() for _ in range(3)]
    numbers = [f"refused-{number}" for number in range(15)]
    with psycopg.connect(world.database) as conn:
        # The first waits for the lock; the others are stored together after it.
        conn.execute("LOCK TABLE audit IN SHARE MODE")
        for number in numbers:
            for caller in callers:
                bad = {"name": "X", "spec": {}}
                answered(caller.post("/clusters", json=bad, headers={"X-Request-ID": number}), 400)
    for caller in callers:
        assert [record["request"] for record in refusals(caller, 15)] == numbers


def test_a_tenant_with_many_rejections_does_not_use_up_the_audit_of_others(world: World) -> None:
    """Without tokens, all callers have the same name."""
    one, other = world.caller(), world.caller()
    for _ in range(25):
        answered(one.post("/clusters", json={"name": "X", "spec": {}}), 400)
    answered(other.post("/clusters", json={"name": "X", "spec": {}}), 400)
    refusals(other, 1)
    refusals(one, 20)


def test_the_rejection_of_a_pipelined_request_is_not_recorded_for_another_tenant(world: World) -> None:
    one, system = world.caller(), world.system
    name = f"ahead-{uuid4().hex[:8]}"
    head = "Host: x\r\nContent-Type: application/json\r\n"
    bad = '{"name":"X","spec":{}}'
    first = (
        f"POST /api/hyperfleet/v1/clusters HTTP/1.1\r\n{head}X-Org: {one.headers['X-Org']}\r\n"
        f"Content-Length: {len(bad)}\r\n\r\n{bad}"
    )
    second = (
        f"POST /api/hyperfleet/v1/clusters HTTP/1.1\r\n{head}X-Request-ID: {name}\r\n"
        f"Connection: close\r\nContent-Length: {len(bad)}\r\n\r\n{bad}"
    )
    where = world.url.removeprefix("http://").split(":")
    with socket.create_connection((where[0], int(where[1])), timeout=10) as conn:
        conn.sendall((first + second).encode())
        text = b"".join(iter(lambda: conn.recv(65536), b""))
    assert b" 400 " in text and b" 403 " in text
    end = time.monotonic() + 10
    while not (found := audit(system, f"request='{name}'")) and time.monotonic() < end:
        time.sleep(0.02)
    assert [record["status"] for record in found] == [403]
    assert audit(one, f"request='{name}'") == []
    assert len(refusals(one, 1)) == 1
