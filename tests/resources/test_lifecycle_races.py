"""Concurrent requests to two replicas, many times over, never break an invariant."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
import requests
from alike import at, delete, finalize, left, patch
from conftest import Api
from helpers_contract import check, condition

pytestmark = pytest.mark.slow

Json = dict[str, Any]
Action = Callable[[Api], requests.Response]

ROUNDS = 200
# The most seconds between the starts of a round's requests: about as long as one takes, so that
# they overlap in every order and at every stage.
SPREAD = 0.012


class Racers:
    """Threads, each with its own session, alternately on one replica and the other."""

    def __init__(self, replicas: tuple[Api, Api], most: int, seed: int) -> None:
        self.sessions = [Api(replicas[index % 2].url) for index in range(most)]
        self.threads = ThreadPoolExecutor(most)
        self.random = random.Random(seed)

    def race(self, *actions: Action) -> list[requests.Response]:
        """Starts requests at about the same time; returns the responses, none of them a server error."""
        start = threading.Barrier(len(actions))
        # Which action goes to which replica changes from round to round.
        sessions = self.random.sample(self.sessions, len(actions))

        def run(action: Action, session: Api, delay: float) -> requests.Response:
            start.wait(30)
            time.sleep(delay)
            return action(session)

        running = [
            self.threads.submit(
                run, action, session, self.random.choice((0, self.random.random())) * SPREAD
            )
            for action, session in zip(actions, sessions, strict=True)
        ]
        answers = [one.result(60) for one in running]
        for answer in answers:
            assert answer.status_code < 500, answer.text
        return answers


@contextmanager
def racers(one: Api, two: Api, most: int = 4, seed: int = 1) -> Iterator[Racers]:
    with ExitStack() as stack:
        threads = Racers((one, two), most, seed)
        stack.enter_context(threads.threads)
        for session in threads.sessions:
            stack.enter_context(session)
        yield threads


def codes(answers: list[requests.Response]) -> tuple[int, ...]:
    return tuple(answer.status_code for answer in answers)


def create(path: str, name: str, **headers: str) -> Action:
    return lambda api: api.post(path, json={"name": name, "spec": {}}, headers=headers)


def remove(resource: Json) -> Action:
    return lambda api: api.delete(at(resource))


def force(resource: Json) -> Action:
    return lambda api: api.post(at(resource, "/force-delete"), json={"reason": "race"})


def last_report(resource: Json, generation: int = 2) -> Action:
    return lambda api: finalize(api, resource, generation)


def orphans(sql: psycopg.Connection) -> list[Any]:
    """Returns rows without an owner, and unmarked node pools of a marked cluster."""
    return sql.execute(
        """
        SELECT 'pool of no cluster', id FROM node_pools
            WHERE owner_id NOT IN (SELECT id FROM clusters)
        UNION ALL
        SELECT 'living pool of a marked cluster', node_pools.id FROM node_pools
            JOIN clusters ON clusters.id = owner_id
            WHERE clusters.deleted_time IS NOT NULL AND node_pools.deleted_time IS NULL
        UNION ALL
        SELECT 'report of nothing', owner_id FROM adapter_statuses WHERE owner_id NOT IN
            (SELECT id FROM clusters UNION ALL SELECT id FROM node_pools)
        UNION ALL
        SELECT 'label of nothing', owner_id FROM labels WHERE owner_id NOT IN
            (SELECT id FROM clusters UNION ALL SELECT id FROM node_pools)
        """
    ).fetchall()


def ended(api: Api, *resources: Json) -> bool:
    return all(api.get(at(resource)).status_code == 404 for resource in resources)


def finish(api: Api, cluster: Json) -> None:
    """Repeats reports that came too early in the race, for whatever is still there."""
    pools = api.get(at(cluster, "/nodepools"))
    if pools.status_code == 200:
        assert "deleted_time" in api.read(cluster)
        for pool in check(pools)["items"]:
            assert finalize(api, pool).status_code == 201
        assert finalize(api, cluster).status_code in (201, 404)


REQUIRED = {"required_adapters_cluster": ("dns",), "required_adapters_nodepool": ("np",)}


def test_a_cluster_marked_during_a_creation_never_keeps_an_unmarked_node_pool(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    one, two = service(**REQUIRED), service(**REQUIRED)
    seen: Counter[tuple[int, ...]] = Counter()
    with racers(one, two) as threads:
        for index in range(ROUNDS):
            cluster = one.cluster(f"c{index}")
            path = at(cluster, "/nodepools")
            created, deleted = threads.race(create(path, "np1"), remove(cluster))
            check(deleted, 202)
            seen[codes([created])] += 1
            pools = check(two.get(path))["items"]
            if created.status_code == 201:
                assert [pool["id"] for pool in pools] == [created.json()["id"]]
                assert "deleted_time" in pools[0]
                assert pools[0]["generation"] == 2
            else:
                assert created.status_code == 409
                assert pools == []
    assert orphans(sql) == []
    # If only one happened, the requests did not overlap.
    assert set(seen) == {(201,), (409,)}, seen


def test_a_cluster_removed_during_a_creation_never_leaves_a_node_pool_behind(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    one, two = service(), service()
    seen: Counter[int] = Counter()
    with racers(one, two, seed=2) as threads:
        for index in range(ROUNDS):
            cluster = one.cluster(f"c{index}", labels={"a": "b"})
            path = at(cluster, "/nodepools")
            created, deleted = threads.race(create(path, "np1"), remove(cluster))
            check(deleted, 202)
            assert created.status_code in (201, 404, 409)
            seen[created.status_code] += 1
    assert left(sql) == {}
    assert seen[201] > 0
    assert seen[404] + seen[409] > 0, seen


@pytest.mark.parametrize("kind", ["Cluster", "NodePool"])
def test_two_concurrent_requests_with_one_key_create_one_resource(
    service: Callable[..., Api], sql: psycopg.Connection, kind: str
) -> None:
    one, two = service(), service()
    path = "/clusters" if kind == "Cluster" else at(one.cluster("owner"), "/nodepools")
    with racers(one, two, seed=3) as threads:
        for index in range(ROUNDS):
            twice = create(path, f"r{index}", **{"Idempotency-Key": f"key-{index}"})
            first, second = threads.race(twice, twice)
            assert codes([first, second]) == (201, 201)
            assert first.content == second.content
            assert first.headers["ETag"] == second.headers["ETag"]
            assert check(two.get(at(first.json()))) == first.json()
    table = "clusters" if kind == "Cluster" else "node_pools"
    row = sql.execute(f"SELECT count(*), count(DISTINCT name) FROM {table} WHERE name <> 'owner'")
    assert row.fetchone() == (ROUNDS, ROUNDS)


def test_of_two_different_concurrent_requests_with_one_key_one_is_refused(
    service: Callable[..., Api],
) -> None:
    one, two = service(), service()
    with racers(one, two, seed=4) as threads:
        for index in range(ROUNDS // 4):
            key = {"Idempotency-Key": f"key-{index}"}
            answers = threads.race(
                create("/clusters", f"a{index}", **key), create("/clusters", f"b{index}", **key)
            )
            assert sorted(codes(answers)) == [201, 422]
    assert check(one.get("/clusters?size=0"))["total"] == ROUNDS // 4


def test_of_two_concurrent_creations_with_one_name_one_is_refused(service: Callable[..., Api]) -> None:
    one, two = service(), service()
    with racers(one, two, seed=5) as threads:
        for index in range(ROUNDS // 4):
            keyed = [
                create("/clusters", f"c{index}", **{"Idempotency-Key": f"{k}-{index}"}) for k in "ab"
            ]
            assert sorted(codes(threads.race(*keyed))) == [201, 409]
    assert check(one.get("/clusters?size=0"))["total"] == ROUNDS // 4


def test_of_two_concurrent_changes_with_the_same_if_match_one_is_refused(
    service: Callable[..., Api],
) -> None:
    one, two = service(), service()
    cluster = one.cluster()
    pool = one.node_pool(cluster)

    def change(resource: Json, tag: str, value: str) -> Action:
        return lambda api: patch(api, resource, {"spec": {"by": value}}, **{"If-Match": tag})

    with racers(one, two, seed=6) as threads:
        for index in range(ROUNDS):
            resource = (cluster, pool)[index % 2]
            tag = one.get(at(resource)).headers["ETag"]
            answers = threads.race(
                change(resource, tag, f"her-{index}"), change(resource, tag, f"his-{index}")
            )
            assert sorted(codes(answers)) == [200, 412]
            (winner,) = [answer for answer in answers if answer.status_code == 200]
            now = two.get(at(resource))
            assert (now.headers["ETag"], check(now)) == (winner.headers["ETag"], check(winner))
    assert (one.read(cluster)["generation"], one.read(pool)["generation"]) == (101, 101)


def test_concurrent_changes_without_if_match_are_all_applied_and_counted(
    service: Callable[..., Api],
) -> None:
    one, two = service(), service()
    cluster = one.cluster()

    def merge(label: str) -> Action:
        return lambda api: patch(
            api, cluster, {"labels": {label: "x"}}, media_type="application/merge-patch+json"
        )

    with racers(one, two, seed=7) as threads:
        for index in range(ROUNDS // 8):
            labels = [f"l{index}-{n}" for n in range(4)]
            answers = threads.race(*map(merge, labels))
            assert codes(answers) == (200,) * 4
            # Each is merged into the result of the others, and each is a generation.
            assert one.read(cluster)["labels"].keys() >= set(labels)
            generations = sorted(answer.json()["generation"] for answer in answers)
            assert generations == list(range(4 * index + 2, 4 * index + 6))


def test_concurrent_deletes_mark_a_resource_once(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    one, two = service(**REQUIRED), service(**REQUIRED)
    with racers(one, two, seed=8) as threads:
        for index in range(ROUNDS // 4):
            cluster = one.cluster(f"c{index}")
            pool = one.node_pool(cluster)
            answers = threads.race(remove(cluster), remove(cluster), remove(pool))
            assert codes(answers) == (202, 202, 202)
            now = two.read(cluster)
            assert now["generation"] == two.read(pool)["generation"] == 2
            assert answers[0].json()["deleted_time"] == answers[1].json()["deleted_time"]
            assert now["deleted_time"] == answers[0].json()["deleted_time"]
    assert orphans(sql) == []


def test_a_patch_concurrent_with_a_delete_never_changes_a_marked_resource(
    service: Callable[..., Api],
) -> None:
    one, two = service(**REQUIRED), service(**REQUIRED)
    seen: Counter[int] = Counter()
    with racers(one, two, seed=9) as threads:
        for index in range(ROUNDS // 4):
            cluster = one.cluster(f"c{index}")
            changed, deleted = threads.race(
                lambda api, cluster=cluster: patch(api, cluster, {"spec": {"x": 1}}),  # type: ignore[misc]
                remove(cluster),
            )
            assert deleted.status_code == 202
            seen[changed.status_code] += 1
            now = two.read(cluster)
            if changed.status_code == 200:
                assert "deleted_time" not in changed.json()
                assert (now["spec"], now["generation"]) == ({"x": 1}, 3)
            else:
                assert changed.status_code == 409
                assert (now["spec"], now["generation"]) == ({}, 2)
    # If only one happened, the requests did not overlap.
    assert set(seen) == {200, 409}, seen


def test_concurrent_last_reports_on_a_cluster_and_its_node_pools_remove_them_all(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    one, two = service(**REQUIRED), service(**REQUIRED)
    with racers(one, two, seed=10) as threads:
        for index in range(ROUNDS // 2):
            cluster = one.cluster(f"c{index}", labels={"a": "b"})
            pools = [one.node_pool(cluster, name, labels={"a": "b"}) for name in ("np1", "np2")]
            delete(one, cluster)
            answers = threads.race(*map(last_report, (cluster, *pools)))
            # The last one sees that the others are done, so nothing waits forever.
            assert codes(answers) == (201, 201, 201)
            assert ended(two, cluster, *pools)
    assert left(sql) == {}


def test_a_report_concurrent_with_a_delete_leaves_the_status_at_the_marked_generation(
    service: Callable[..., Api],
) -> None:
    one, two = service(**REQUIRED), service(**REQUIRED)
    with racers(one, two, seed=11) as threads:
        for index in range(ROUNDS // 4):
            cluster = one.cluster(f"c{index}")
            reported, deleted = threads.race(
                lambda api, cluster=cluster: api.report(cluster),  # type: ignore[misc]
                remove(cluster),
            )
            assert (reported.status_code, deleted.status_code) == (201, 202)
            now = two.read(cluster)
            assert now["status"]["phase"] == "NotReady"
            assert condition(now, "Reconciled")["observed_generation"] == 2
            # The report made it available at generation 1, whether it came before or after.
            assert condition(now, "Available")["status"] == "True"
            assert condition(now, "Available")["observed_generation"] == 1


def test_concurrent_removals_of_every_kind_neither_block_nor_leave_anything_behind(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    one, two = service(**REQUIRED), service(**REQUIRED)
    with racers(one, two, most=8, seed=12) as threads:
        for index in range(ROUNDS // 2):
            cluster = one.cluster(f"c{index}", labels={"a": "b"})
            first, second = (one.node_pool(cluster, name, labels={"a": "b"}) for name in ("np1", "np2"))
            if index % 3:
                delete(one, cluster)
            else:
                delete(one, first)
            ends = [
                last_report(cluster),
                last_report(first),
                last_report(second),
                remove(cluster),
                remove(first),
                force(first),
                # Every other time, the cluster must be removed without force.
                force(cluster) if index % 2 else remove(second),
                create(at(cluster, "/nodepools"), "np3"),
            ]
            threads.random.shuffle(ends)
            for answer in threads.race(*ends):
                assert answer.status_code in (201, 202, 204, 404, 409), answer.text
            assert orphans(sql) == []
            finish(one, cluster)
            assert ended(two, cluster, first, second)
    assert left(sql) == {}


def test_a_last_report_that_waits_for_a_delete_on_another_replica_removes_the_resource(
    service: Callable[..., Api], database: str
) -> None:
    one, other = (service(required_adapters_cluster=("dns",)) for _ in range(2))
    cluster = one.cluster()
    with psycopg.connect(database) as conn, ThreadPoolExecutor(2) as threads:

        def waiting() -> int:
            return len(conn.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall())

        conn.execute("SELECT FROM clusters FOR UPDATE")
        deletion = threads.submit(one.delete, at(cluster))
        while waiting() < 1:
            assert not deletion.done()
        # It was sent before the replica could know that the deletion is a new generation.
        last = threads.submit(finalize, other, cluster)
        while waiting() < 2:
            assert not last.done()
        conn.rollback()
        check(deletion.result(), 202)
        check(last.result(), 201)
    assert other.get(at(cluster)).status_code == 404
