"""The feed with tenants: each sees its own changes, and not even when those of others happen."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from alike import answered, at
from conftest import Api
from tenant_world import World, world
from watchers import follow, now, told

pytestmark = pytest.mark.slow

__all__ = ["world"]

PATHS = ("/history", "/history/1", "/history/1/diff", "/transitions")


def test_each_tenant_sees_only_its_own_changes_including_removals(world: World) -> None:
    one, other = world.caller(), world.caller()
    start = now(world.system)
    mine = one.cluster("mine")
    answered(one.patch(at(mine), json={"spec": {"a": 1}}))
    world.system.report(mine, observed_generation=2)
    assert [path for path in PATHS if other.get(at(mine, path)).status_code != 404] == []
    assert other.post(at(mine, "/rollback"), json={"generation": 1}).status_code == 404
    answered(one.delete(at(mine)), 202)
    assert one.post(at(mine, "/force-delete"), json={"reason": "x"}).status_code == 204
    yours = other.cluster("yours")
    for api, name, changes in (
        (one, "mine", ["created", "updated", "status", "deleting", "removed"]),
        (other, "yours", ["created"]),
    ):
        items, _ = follow(api, start)
        assert [(item["name"], item["change"]) for item in items] == [(name, one) for one in changes]
        assert told(follow(api, f"/changes?owner_id={mine['id']}&after={start}")[0]) == []
    assert len(follow(world.system, start)[0]) == 6
    assert (
        follow(other, f"/changes?kind=Cluster&search=name = 'yours'&after={start}")[0][0]["id"]
        == (yours["id"])
    )


def test_tenants_that_wait_at_the_same_place_get_pages_of_their_own(world: World) -> None:
    callers = [world.caller() for _ in range(4)]
    start = now(world.system)

    def wait(api: Api) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = answered(api.get(f"/changes?after={start}&wait=10"))["items"]
        return items

    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(wait, api) for api in callers]
        time.sleep(0.5)
        made = [Api.cluster(api, f"c{number}")["id"] for number, api in enumerate(callers)]
        found = [{item["id"] for item in one.result()} for one in waiting]
    assert found == [{id_} for id_ in made]


def test_a_stream_does_not_show_when_resources_of_another_tenant_change(world: World) -> None:
    one, other = world.caller(), world.caller()
    lines: list[bytes] = []
    headers = {"Accept": "text/event-stream"}
    with one.get("/changes", headers=headers, stream=True, timeout=20) as stream:

        def read() -> None:
            for line in stream.iter_lines(chunk_size=None):
                lines.append(line)
                if line.startswith(b"data"):
                    return

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.5)
        begun = len(lines)
        for number in range(3):
            other.cluster(f"c{number}")
            time.sleep(0.5)
        assert lines[begun:] == []
        one.cluster("own")
        reader.join(10)
    assert json.loads(lines[-1].removeprefix(b"data: "))["name"] == "own"


def test_a_resource_moved_to_another_tenant_is_removed_for_one_and_created_for_the_other(
    world: World,
) -> None:
    one, other = world.caller(), world.caller()
    start = now(world.system)
    cluster = one.cluster("given")
    late = now(world.system)
    with psycopg.connect(world.database, autocommit=True) as conn:
        conn.execute(
            "UPDATE clusters SET tenancy = jsonb_build_object('org', %s::text) WHERE id = %s",
            [other.headers["X-Org"], cluster["id"]],
        )
    assert told(follow(one, late)[0]) == [("removed", "Cluster", "given")]
    assert told(follow(other, late)[0]) == [("created", "Cluster", "given")]
    assert follow(other, start)[0][0]["resource"] == other.read(cluster)
    # A late reader does not see the resource, which belongs to another tenant now.
    items, _ = follow(one, start)
    assert [(item["change"], "resource" in item) for item in items] == [
        ("created", False),
        ("removed", False),
    ]
    assert [(item["change"], "resource" in item) for item in follow(world.system, late)[0]] == [
        ("removed", False),
        ("created", True),
    ]
