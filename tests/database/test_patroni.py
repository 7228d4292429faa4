"""Patroni and etcd decide who takes writes, and two services follow; what each event costs is printed
(`make test-tools ARGS="tests/database/test_patroni.py -s"`).
"""

import threading
import time
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

# Seconds within which Patroni has a new primary, at the latest, and the machine is a slow one.
FAILOVER = DYNAMIC["ttl"] + 25
HEAD = "event", "no writes", "writes", "503", "no answer", "slowest", "lost"


@contextmanager
def load(writing: list[Writer]) -> Iterator[None]:
    """The writers write until the end of the block."""
    over = threading.Event()
    with ThreadPoolExecutor(WRITERS) as threads:
        asked = [threads.submit(writer.write, over) for writer in writing]
        try:
            yield
        finally:
            over.set()
        for one in asked:
            one.result()


def takes_writes(node: Node) -> bool:
    """Whether a client that knows this node alone could write."""
    try:
        with psycopg.connect(
            host=node.address, port=5432, user="postgres", connect_timeout=2, autocommit=True
        ) as conn:
            return conn.execute("SHOW transaction_read_only").fetchone() == ("off",)
    except psycopg.OperationalError:
        return False


def without_writes(writing: list[Writer], began: float) -> float:
    """The longest time in which nobody was told that a write is done."""
    done = sorted(end for one in writing for _, end, status in one.tries if status in (200, 201))
    return max(after - before for before, after in zip([began, *done], done, strict=False))


def show(*cells: object) -> None:
    print(f"{cells[0]:<44}" + "".join(f"{cell:>11}" for cell in cells[1:]), flush=True)


def through(running: Cluster, writing: list[Writer], name: str, event: Callable[[Node], None]) -> float:
    """Lets something happen to the primary under load until another one takes writes; seconds without."""
    for one in writing:
        one.tries.clear()
    began, old = time.monotonic(), running.primary()
    with load(writing):
        time.sleep(2)
        event(old)

        def another() -> Node | None:
            found = running.leader()
            return found if found is not old else None

        new = until(another, FAILOVER)
        assert not takes_writes(old), "fenced before there is another"
        assert takes_writes(new)
        time.sleep(3)
    gone = without_writes(writing, began)
    tries = [one for writer in writing for one in writer.tries]
    statuses = [status for _, _, status in tries]
    slowest = max(end - start for start, end, _ in tries)
    assert_nothing_is_lost(Api(writing[0].url), writing)
    done = statuses.count(200) + statuses.count(201)
    times = f"{gone:.1f} s", done, statuses.count(503), statuses.count(0), f"{slowest:.1f} s", 0
    show(f"{name} ({old.number} to {new.number})", *times)
    assert not statuses.count(0), "the services answer, whatever becomes of the database"
    return gone


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_no_acknowledged_write_is_lost_whatever_becomes_of_the_primary() -> None:
    with cluster() as running:
        migration.apply(running.url)
        arguments = "--no-auth", "--workers=1", "--database-url", running.url
        with Serving(*arguments) as first, Serving(*arguments) as second:
            writing = writers(Api(first.url), first.url, second.url)
            show(*HEAD)

            def switch_over(_: Node) -> None:
                running.switch_over()

            assert through(running, writing, "switchover", switch_over) < 15
            running.whole()

            assert through(running, writing, "kill -9 of the primary's machine", Node.kill) < FAILOVER
            killed = next(node for node in running.nodes if not node.ask("/patroni"))
            killed.start()
            running.whole()

            assert through(running, writing, "the primary's network is cut", Node.unplug) < FAILOVER
            cut = next(node for node in running.nodes if not node.ask("/patroni"))
            cut.plug()
            running.whole()

            assert (
                through(running, writing, "cut from etcd and the others only", running.part) < FAILOVER
            )
            for one in first, second:
                assert requests.get(f"{one.health}/readyz", timeout=10).status_code == 200
