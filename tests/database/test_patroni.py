"""Patroni and etcd decide which server takes writes, and two services follow. The cost of each event is
printed (`make test-tools ARGS="tests/database/test_patroni.py -s"`).
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
import requests
from conftest import Api
from patroni_cluster import DYNAMIC, Cluster, Node, cluster, missing, until
from process import Serving
from writers import WRITERS, Writer, assert_nothing_is_lost, writers

from hyperfleet.database import migration

pytestmark = pytest.mark.tools

# Seconds within which Patroni has a new primary, even on a slow machine.
FAILOVER = DYNAMIC["ttl"] + 25
HEAD = "the primary", "no writes", "service's", "done", "503", "no answer", "slowest"


@contextmanager
def load(writing: list[Writer]) -> Iterator[None]:
    """Lets the writers write until the end of the block."""
    over = threading.Event()
    with ThreadPoolExecutor(WRITERS) as threads:
        asked = [threads.submit(writer.write, over) for writer in writing]
        try:
            yield
        finally:
            over.set()
        for one in asked:
            one.result()


def writes(node: Node, commit: str = "on") -> bool:
    """Returns whether a client on the node itself can write.

    :param commit: ``synchronous_commit``, which says what a commit waits for
    """
    options = f"-c synchronous_commit={commit}"
    try:
        with psycopg.connect(
            host=str(node.folder), user="postgres", options=options, autocommit=True
        ) as conn:
            # A standby may never return.
            bound = threading.Timer(60, conn.cancel)
            bound.start()
            try:
                conn.execute("CREATE TABLE IF NOT EXISTS probe (at timestamptz)")
                conn.execute("INSERT INTO probe VALUES (now())")
            finally:
                bound.cancel()
    except psycopg.Error:
        return False
    return True


def silent(running: Cluster) -> Node:
    """Returns the node whose Patroni does not respond."""
    return next(node for node in running.nodes if not node.ask("/patroni"))


def done(writing: list[Writer]) -> list[float]:
    """Returns when writes were acknowledged, in order."""
    return sorted(end for one in writing for _, end, status in list(one.tries) if status in (200, 201))


def pause(writing: list[Writer], began: float) -> tuple[float, float]:
    """Returns start and end of the longest time without an acknowledged write."""
    ends = done(writing)
    return max(zip([began, *ends], ends, strict=False), key=lambda pair: pair[1] - pair[0])


def show(*cells: object) -> None:
    print(f"{cells[0]:<34}" + "".join(f"{cell:>12}" for cell in cells[1:]), flush=True)


def through(running: Cluster, writing: list[Writer], name: str, event: Callable[[Node], None]) -> float:
    """Lets an event happen to the primary under load, and waits until the service writes to another one.

    Returns the seconds without writes.
    """
    for one in writing:
        one.tries.clear()
    began, old = time.monotonic(), running.primary()
    others = [node for node in running.nodes if node is not old]
    with load(writing), ThreadPoolExecutor(1) as beside:
        time.sleep(1)
        happening = beside.submit(event, old)
        until(lambda: any(writes(node) for node in others), FAILOVER)
        taken = time.monotonic()
        assert not writes(old, "local"), "two primaries at a time"
        happening.result()
        until(lambda: [end for end in done(writing) if end > taken], 20)
        time.sleep(1)
    since, end = pause(writing, began)
    assert_nothing_is_lost(Api(writing[0].url), writing)
    tries = [one for writer in writing for one in writer.tries]
    statuses = Counter(status for _, _, status in tries)
    slowest = max(end - start for start, end, _ in tries)
    show(
        name,
        f"{end - since:.1f} s",
        f"{max(0, end - taken):.1f} s",
        statuses[200] + statuses[201],
        statuses[503],
        statuses[0],
        f"{slowest:.1f} s",
    )
    assert not statuses[0], "a request got no response"
    return end - since


def test_no_acknowledged_write_is_lost_whatever_happens_to_the_primary() -> None:
    if reason := missing():
        pytest.skip(reason)
    with cluster() as running:
        migration.apply(running.url)
        arguments = "--no-auth", "--workers=1", "--database-url", running.url
        with Serving(*arguments) as first, Serving(*arguments) as second:
            writing = writers(Api(first.url), first.url, second.url)
            show(*HEAD)

            def switch_over(_: Node) -> None:
                running.switch_over()

            assert through(running, writing, "hands over", switch_over) < 15
            running.whole()
            assert through(running, writing, "dies with its machine", Node.kill) < FAILOVER
            silent(running).start()
            running.whole()
            assert through(running, writing, "loses its network", Node.unplug) < FAILOVER
            silent(running).plug()
            running.whole()
            assert through(running, writing, "loses all but its clients", running.part) < FAILOVER
            for one in first, second:
                assert requests.get(f"{one.health}/readyz", timeout=10).status_code == 200
            for node in running.nodes:
                node.plug()
            running.whole()
            without_etcd(running, writing)


def without_etcd(running: Cluster, writing: list[Writer]) -> None:
    """Stops etcd, so that no primary is left; reads continue if they may come from a standby."""
    anybody = running.url.replace("read-write", "prefer-standby")
    with Serving("--no-auth", "--workers=1", "--database-url", anybody) as reading:
        api, ready = Api(reading.url), f"{reading.health}/readyz"
        with load(writing):
            running.keeper.kill()
            until(lambda: not any(writes(node, "local") for node in running.nodes), FAILOVER)
            until(lambda: "read-only" in requests.get(ready, timeout=10).text, 10)
            assert [api.get("/clusters?size=1").status_code for _ in range(20)] == [200] * 20
            assert api.read(writing[0].cluster)["id"] == writing[0].cluster["id"]
            refused = api.post("/clusters", json={"name": "nowhere", "spec": {}})
            assert (refused.status_code, "read-only" in refused.json()["detail"]) == (503, True)
            running.keeper.start()
            back = time.monotonic()
            until(lambda: [end for end in done(writing) if end > back], FAILOVER)
        assert_nothing_is_lost(Api(writing[0].url), writing)
