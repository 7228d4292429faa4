"""The history of a resource: its earlier generations, and the differences between them."""

import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
from typing import Any

import jsonpatch
import psycopg
import pytest
from alike import BOTH_KINDS, at, create, delete, finalize, patch
from conftest import Api
from helpers_contract import NO_ID, check, problem
from process import run_here
from round_trips import RoundTrips

from hyperfleet.changes import differences
from hyperfleet.database.pool import new_pool
from hyperfleet.engine import apart
from hyperfleet.kinds import RESOURCES

Json = dict[str, Any]


def ways(resource: Json) -> list[str]:
    """All paths that lead to a resource."""
    found = [at(resource), f"/resources/{resource['id']}"]
    if "owner_references" in resource:
        found.append(f"/{RESOURCES[resource['kind']].segment}/{resource['id']}")
    return found


def numbers(page: Json) -> list[int]:
    return [one["generation"] for one in page["items"]]


@BOTH_KINDS
def test_every_generation_has_its_labels_spec_time_caller_and_request(api: Api, kind: str) -> None:
    first = create(api, kind)
    second = check(patch(api, first, {"spec": {"a": [1, {"b": None}]}}, **{"X-Request-ID": "second"}))
    third = check(patch(api, first, {"labels": {"x": "y"}}, **{"X-Request-ID": "third"}))
    for way in ways(first):
        page = check(api.get(f"{way}/history"))
        assert (page["page"], page["size"], page["total"]) == (1, 3, 3)
        assert [one.get("request") for one in page["items"]][:2] == ["third", "second"]
        assert page["items"][2]["request"]
        for one, was in zip(page["items"], (third, second, first), strict=True):
            for name in ("generation", "labels", "spec"):
                assert one[name] == was[name]
            assert (one["time"], one["by"]) == (was["updated_time"], was["updated_by"])
            assert "deleted" not in one
            assert check(api.get(f"{way}/history/{one['generation']}")) == one


def test_history_is_paged_like_lists(api: Api) -> None:
    cluster = api.cluster()
    for number in range(6):
        check(patch(api, cluster, {"spec": {"n": number}}))
    path = at(cluster, "/history?size=3")
    seen = []
    while path:
        page = check(api.get(path))
        seen += numbers(page)
        path = page.get("next", "").removeprefix("/api/hyperfleet/v1")
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    assert numbers(check(api.get(at(cluster, "/history?pageSize=2&page=2")))) == [5, 4]
    shown = check(api.get(at(cluster, "/history?fields=time&total=none&size=1")))
    assert [one.keys() for one in shown["items"]] == [{"generation", "time"}]
    assert "total" not in shown
    assert check(api.get(at(cluster, "/history/2?fields=spec"))) == {"generation": 2, "spec": {"n": 0}}
    tag = api.get(at(cluster, "/history")).headers["ETag"]
    assert api.get(at(cluster, "/history"), headers={"If-None-Match": tag}).status_code == 304
    problem(api.get(at(cluster, "/history?size=1001")), 400, "size")


def test_a_page_of_large_generations_is_complete(api: Api) -> None:
    cluster = api.cluster(spec={"n": 0, "text": "x" * 500_000})
    for number in range(1, 5):
        check(patch(api, cluster, {"spec": {"n": number, "text": "y" * 500_000}}))
    page = check(api.get(at(cluster, "/history")))
    assert [one["spec"]["n"] for one in page["items"]] == [4, 3, 2, 1, 0]
    assert numbers(page) == [5, 4, 3, 2, 1]


def test_a_deletion_is_a_generation_of_the_cluster_and_of_its_node_pools(waiting: Api) -> None:
    cluster = waiting.cluster()
    pool = waiting.node_pool(cluster)
    check(waiting.delete(at(cluster), headers={"X-Request-ID": "the-end"}), 202)
    for resource in (cluster, pool):
        newest, oldest = check(waiting.get(at(resource, "/history")))["items"]
        assert (newest["generation"], newest["deleted"], newest["request"]) == (2, True, "the-end")
        assert (oldest["generation"], "deleted" in oldest) == (1, False)


def test_only_the_newest_generations_are_kept_and_a_lower_limit_is_reached_step_by_step(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api = service(history=30)
    cluster = api.cluster()
    other = api.cluster("c2")
    check(patch(api, other, {"spec": {"n": 1}}))
    for number in range(40):
        check(patch(api, cluster, {"spec": {"n": number}}))
    assert numbers(check(api.get(at(cluster, "/history")))) == [*range(41, 10, -1)]
    found = problem(api.get(at(cluster, "/history/10")), 404)
    assert found["detail"] == "Generation 10 of this cluster is not kept; kept: 11 to 41."
    # Each write removes a few.
    api = service(history=2)
    kept = []
    for number in range(100, 106):
        check(patch(api, cluster, {"spec": {"n": number}}))
        kept.append(check(api.get(at(cluster, "/history")))["total"] - 1)
    assert kept == [21, 12, 3, 2, 2, 2]
    api = service(history=0)
    check(patch(api, cluster, {"spec": {}}))
    assert numbers(check(api.get(at(cluster, "/history")))) == [48]
    assert numbers(check(api.get(at(other, "/history")))) == [2, 1]
    assert sql.execute("SELECT count(*) FROM generations").fetchone() == (1,)


def test_generations_written_by_the_previous_version_are_kept_without_their_request(
    api: Api, sql: psycopg.Connection
) -> None:
    cluster = api.cluster(spec={"a": 1})
    # The previous version knows neither the column nor the tables.
    change = (
        "UPDATE clusters SET spec = %s, generation = generation + 1, version = version + 1, "
        "updated_by = 'older'"
    )
    sql.execute("UPDATE clusters SET request = NULL")
    sql.execute(change, ['{"a": 2}'])
    sql.execute(change, ['{"a": 3}'])
    page = check(api.get(at(cluster, "/history")))
    assert [(one["generation"], one["spec"], one["by"]) for one in page["items"]] == [
        (3, {"a": 3}, "older"),
        (2, {"a": 2}, "older"),
        (1, {"a": 1}, "system@hyperfleet.local"),
    ]
    assert not any("request" in one for one in page["items"])


def test_an_import_that_lowers_the_generation_leaves_no_duplicates(
    api: Api, sql: psycopg.Connection
) -> None:
    cluster = api.cluster()
    for number in range(4):
        check(patch(api, cluster, {"spec": {"n": number}}))
    sql.execute("UPDATE clusters SET generation = 3")
    assert numbers(check(api.get(at(cluster, "/history")))) == [3, 2, 1]
    sql.execute("UPDATE clusters SET generation = 7")
    assert numbers(check(api.get(at(cluster, "/history")))) == [7, 3, 2, 1]
    found = problem(api.get(at(cluster, "/history/5")), 404)
    assert found["detail"].endswith("kept: 1 to 3, 7.")


@BOTH_KINDS
def test_history_is_removed_with_its_resource_and_the_audit_keeps_the_last_state(
    waiting: Api, sql: psycopg.Connection, kind: str
) -> None:
    resource = create(waiting, kind)
    check(patch(waiting, resource, {"spec": {"last": 1}}))
    delete(waiting, resource)
    last = waiting.read(resource)
    adapter = "dns" if kind in ("Cluster", "Channel") else "np"
    check(finalize(waiting, resource, 3, adapter), 201)
    for action in ("/history", "/history/1", "/history/1/diff", "/transitions"):
        problem(waiting.get(at(resource, action)), 404)
    problem(waiting.post(at(resource, "/rollback"), json={"generation": 1}), 404)
    for table in ("generations", "transitions"):
        row = sql.execute(f"SELECT count(*) FROM {table} WHERE owner_id = %s", [resource["id"]])
        assert row.fetchone() == (0,)
    (end,) = check(waiting.get(f"/audit?search=id='{resource['id']}' and action='remove'"))["items"]
    assert end["resource"]["spec"] == last["spec"] == {"last": 1}
    assert (end["generation"], end["reason"], end["kind"]) == (3, "finalized", kind)


@BOTH_KINDS
def test_the_difference_turns_one_generation_into_the_other(api: Api, kind: str) -> None:
    specs = [
        {"a": 1, "list": [1, 2, 3], "gone": {"deep": True}},
        {"a": True, "list": [1, 3, {"x": "y/~"}], "new/~": None},
        {"a": True, "list": [], "big": 2**70},
    ]
    resource = create(api, kind, spec=specs[0], labels={"a": "1"})
    for number, spec in enumerate(specs[1:]):
        check(patch(api, resource, {"spec": spec, "labels": {"b": str(number)}}))
    for way in ways(resource):
        kept = {one["generation"]: one for one in check(api.get(f"{way}/history"))["items"]}
        wanted = {n: {"labels": one["labels"], "spec": one["spec"]} for n, one in kept.items()}
        for before in (1, 2, 3):
            for after in (1, 2, 3):
                found = check(api.get(f"{way}/history/{before}/diff?to={after}"))
                assert (found["from"], found["to"]) == (before, after)
                assert (found["operations"] == []) == (before == after)
                made = jsonpatch.apply_patch(wanted[before], found["operations"])
                assert json.dumps(made, sort_keys=True) == json.dumps(wanted[after], sort_keys=True)
        assert check(api.get(f"{way}/history/1/diff"))["to"] == 3


def test_large_generations_are_compared_in_detail_or_if_too_costly_replaced_as_a_whole(
    api: Api,
) -> None:
    many = {f"k{number}": {"n": number} for number in range(5000)}
    cluster = api.cluster(spec=many)
    check(patch(api, cluster, {"spec": {**many, "k17": {"n": "other"}}}))
    found = check(api.get(at(cluster, "/history/1/diff")))
    assert found["operations"] == [{"op": "replace", "path": "/spec/k17/n", "value": "other"}]
    # The path of each of its 20,000 operations would have 300,000 characters.
    long = "k" * 300_000
    check(patch(api, cluster, {"spec": {long: {str(n): n for n in range(20_000)}}}))
    check(patch(api, cluster, {"spec": {long: {str(n): -n for n in range(20_000)}}}))
    found = check(api.get(at(cluster, "/history/3/diff")))
    assert [(one["op"], one["path"]) for one in found["operations"]] == [("replace", "/spec")]
    assert found["operations"][0]["value"][long]["7"] == -7


def test_operations_much_longer_than_the_generations_are_replaced_as_a_whole(api: Api) -> None:
    # Each of 2,000 operations would repeat the key in its path: ten times as much as both specs.
    long = "k" * 1000
    cluster = api.cluster(spec={long: {str(n): n for n in range(1, 2000)}})
    check(patch(api, cluster, {"spec": {long: {str(n): -n for n in range(1, 2000)}}}))
    found = check(api.get(at(cluster, "/history/1/diff")))
    assert [(one["op"], one["path"]) for one in found["operations"]] == [("replace", "/spec")]
    assert found["operations"][0]["value"][long]["7"] == -7


def test_large_generations_are_replaced_as_a_whole_if_no_process_can_be_started(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"k{number}": number for number in range(5000)}
    cluster = api.cluster(spec=many)
    check(patch(api, cluster, {"spec": {**many, "k17": "other"}}))
    # As if the machine had no room for another process.
    monkeypatch.setattr(sys, "executable", "/nowhere")
    found = check(api.get(at(cluster, "/history/1/diff")))
    assert [(one["op"], one["path"]) for one in found["operations"]] == [("replace", "/spec")]


def test_small_documents_are_compared_within_a_fifth_of_a_second() -> None:
    # Small documents are compared on the event loop and must not block it: this is the worst case.
    count = (differences.SMALL - 5) // 4
    one, other = [n % 10 for n in range(count)], [n * 7 % 10 for n in range(count)]
    assert len(json.dumps([one, other], separators=(",", ":"))) <= differences.SMALL
    start = time.thread_time()
    assert differences.between(one, other)
    assert time.thread_time() - start < 0.2


@BOTH_KINDS
def test_missing_generations_get_404_and_invalid_numbers_are_rejected(api: Api, kind: str) -> None:
    resource = create(api, kind)
    for way in ways(resource):
        for path in ("/history/2", "/history/2/diff", "/history/1/diff?to=2", "/history/2147483647"):
            detail = problem(api.get(way + path), 404)["detail"]
            missing = path.removesuffix("/diff").rpartition("/history/")[2].rpartition("=")[2]
            assert detail.startswith(f"Generation {missing} of this ")
            assert detail.endswith(" is not kept; kept: 1.")
        for number in ("0", "-1", "2147483648", "x", "1.0", "1e3"):
            problem(api.get(f"{way}/history/{number}"), 400, "generation")
            problem(api.get(f"{way}/history/{number}/diff"), 400, "generation")
            problem(api.get(f"{way}/history/1/diff?to={number}"), 400, "to")
        problem(api.get(f"{way}/history?search=x"), 400, "search")
        stranger = way.replace(resource["id"], NO_ID)
        for path in ("/history", "/history/1", "/history/1/diff", "/transitions"):
            problem(api.get(stranger + path), 404)
            problem(api.get(stranger.replace(NO_ID, "x") + path), 404)


def test_a_node_pool_has_its_history_only_under_its_own_cluster(api: Api) -> None:
    pool, other = api.node_pool(api.cluster()), api.cluster("c2")
    for path in ("history", "history/1", "history/1/diff", "transitions"):
        problem(api.get(f"/clusters/{other['id']}/nodepools/{pool['id']}/{path}"), 404)
    path = f"/clusters/{other['id']}/nodepools/{pool['id']}/rollback"
    problem(api.post(path, json={"generation": 1}), 404)


def test_each_read_takes_one_round_trip_and_a_rollback_two(
    database: str, service: Callable[..., Api]
) -> None:
    wire = RoundTrips(database)
    api = service(wire.conninfo, pool=new_pool(wire.conninfo, 1))
    cluster = api.cluster()

    def trips(method: str, path: str, body: Any = None) -> int:
        wire.reset()
        assert api.request(method, at(cluster, path), json=body).ok
        return wire.count

    requests = (
        (2, "PATCH", ""),
        (1, "GET", "/history"),
        (1, "GET", "/transitions"),
        (1, "GET", "/history/1"),
        (1, "GET", "/history/1/diff"),
        (2, "POST", "/rollback"),
    )
    more: dict[str, list[int]] = defaultdict(list)
    for number in range(12):
        for expected, method, path in requests:
            body = {"PATCH": {"spec": {"n": number}}, "POST": {"generation": 1}}.get(method)
            taken = trips(method, path, body)
            assert taken >= expected
            if taken > expected:
                more[path].append(taken - expected)
    # A statement that is used often is prepared, which takes one more, once per connection.
    for spent in more.values():
        assert len(spent) <= 2
        assert sum(spent) <= 2
    wire.close()


@pytest.mark.parametrize("bad", ["-1", "10001", "x"])
def test_an_invalid_number_of_generations_to_keep_is_rejected(bad: str) -> None:
    done = run_here("serve", "--no-auth", f"--history={bad}")
    assert done.returncode == 2
    assert "--history" in done.stdout


def test_large_comparisons_that_get_no_turn_are_answered_with_a_whole_replacement(
    service: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = service(request_timeout=120)
    api.timeout = 150
    monkeypatch.setattr(differences, "PATIENCE", 0.2)
    # A comparison has two seconds of CPU time, which take longer when all else comes first.
    monkeypatch.setattr(differences, "SECONDS", 100)
    cluster = api.cluster(spec={f"k{number}": number for number in range(2000)})
    check(patch(api, cluster, {"spec": {f"k{number}": -number for number in range(2000)}}))
    compared, answer, answered = [0], apart.answer, Semaphore(0)

    async def slowly(*given: Any, **named: Any) -> bytes:
        """Waits until the requests that arrived meanwhile have been answered."""
        compared[0] += 1
        await asyncio.to_thread(lambda: [answered.acquire(timeout=60) for _ in range(5)])
        return await answer(*given, **named)

    monkeypatch.setattr(apart, "answer", slowly)

    def compare(_: int) -> tuple[int, int]:
        found = check(Api(api.url).get(at(cluster, "/history/1/diff"), timeout=api.timeout))
        answered.release()
        return len(found["operations"]), len(found["operations"][0]["path"])

    with ThreadPoolExecutor(6) as threads:
        found = sorted(threads.map(compare, range(6)))
    # One had its turn, and the others got a single operation.
    assert compared == [1]
    assert found == [(1, len("/spec"))] * 5 + [(1999, len("/spec/k1"))]
