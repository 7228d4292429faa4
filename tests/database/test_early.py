"""A standby can show a change before its primary does, for example while a COMMIT waits for another
standby. A client that has seen the change there gets no response that contradicts it.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from own_server import frozen, of, own_server, standby, waited_for
from process import Serving
from tenant_world import FILE, Caller

pytestmark = pytest.mark.slow


@dataclass
class Pair:
    """Two replicas that read from one standby, and write to a primary that waits for another one."""

    one: str
    other: str
    slow: Path
    threads: ThreadPoolExecutor

    @contextmanager
    def waiting(self, write: Callable[[], Any], shown: Callable[[], Any]) -> Iterator[Future[Any]]:
        """Within the block, a write waits for its standby, and the other standby shows it."""
        with frozen(self.slow):
            waits = self.threads.submit(write)
            deadline = time.monotonic() + 4
            while not shown():
                assert time.monotonic() < deadline
            yield waits
            assert not waits.done()
        waits.result()

    def answered(
        self,
        write: Callable[[], Any],
        shown: Callable[[], Any],
        then: Callable[[], requests.Response],
    ) -> requests.Response:
        """Returns the response to a request made meanwhile, once the write no longer waits."""
        with self.waiting(write, shown):
            asked = self.threads.submit(then)
            time.sleep(0.5)
        return asked.result()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    file = tmp_path_factory.mktemp("early") / "config.yaml"
    file.write_text(FILE)
    with ExitStack() as stack:
        primary = stack.enter_context(own_server())
        slow = stack.enter_context(standby(primary, "second", synchronous=False))
        quick = stack.enter_context(standby(primary, "third", synchronous=False))
        servings = [
            stack.enter_context(
                Serving(
                    *("--no-auth", f"--config={file}", "--database-url", primary.conninfo),
                    *("--read-database-url", of(primary, [quick])),
                )
            )
            for _ in range(2)
        ]
        stack.enter_context(waited_for(primary, "second"))
        threads = stack.enter_context(ThreadPoolExecutor(4))
        urls = [serving.url for serving in servings]
        yield Pair(urls[0], urls[1], Path(slow) / "postgresql", threads)


def test_a_report_on_a_generation_that_only_a_standby_shows_is_not_discarded(pair: Pair) -> None:
    one, other = (Caller(url, org="reports") for url in (pair.one, pair.other))
    cluster = one.cluster()
    path = f"/clusters/{cluster['id']}"
    reported = pair.answered(
        lambda: one.patch(path, json={"spec": {"a": 1}}),
        lambda: other.get(path).json()["generation"] == 2,
        lambda: Caller(pair.other, org="reports").report(cluster, observed_generation=2),
    )
    assert reported.status_code == 201
    assert other.get(f"{path}/statuses").json()["items"][0]["observed_generation"] == 2
    # A report on a generation that no server has is discarded.
    assert other.report(cluster, observed_generation=3).status_code == 204


def test_an_entity_tag_that_only_a_standby_shows_is_accepted_in_if_match(pair: Pair) -> None:
    one, other = (Caller(url, org="tags") for url in (pair.one, pair.other))
    cluster = one.cluster()
    path = f"/clusters/{cluster['id']}"
    seen = {}

    def shown() -> bool:
        found = other.get(path)
        seen["If-Match"] = found.headers["ETag"]
        return bool(found.json()["generation"] == 2)

    changed = pair.answered(
        lambda: one.patch(path, json={"spec": {"a": 1}}),
        shown,
        lambda: Caller(pair.other, org="tags").patch(path, json={"spec": {"a": 2}}, headers=seen),
    )
    assert changed.status_code == 200
    assert changed.json()["generation"] == 3
    assert other.patch(path, json={"spec": {"a": 4}}, headers=seen).status_code == 412


def test_a_large_page_includes_an_item_that_only_a_standby_shows(pair: Pair) -> None:
    one, other = (Caller(url, org="pages") for url in (pair.one, pair.other))
    for number in range(3):
        one.cluster(f"c{number}", spec={"much": "x" * 700_000})
    with pair.waiting(
        lambda: one.cluster("c3", spec={"much": "x" * 700_000}),
        lambda: other.get("/clusters?search=name='c3'").json()["total"],
    ):
        page = other.get("/clusters?order=name").json()
    assert [item["name"] for item in page["items"]] == ["c0", "c1", "c2", "c3"]
    assert page["size"] == page["total"] == 4


def test_a_tenant_that_only_a_standby_shows_does_not_break_the_lists_of_another(pair: Pair) -> None:
    whole, part = Caller(pair.other, org="tenants"), Caller(pair.one, org="tenants", project="new")
    whole.cluster("old")
    system = Caller(pair.other, system="true")
    with pair.waiting(
        lambda: part.cluster("new"),
        lambda: system.get("/clusters?search=name='new'").json()["total"],
    ):
        for path in ("/clusters", "/clusters?search=name!='x'", "/resources", "/nodepools"):
            assert whole.get(path).status_code == 200
        assert [item["name"] for item in whole.get("/clusters").json()["items"]] == ["old"]
    deadline = time.monotonic() + 5
    while whole.get("/clusters").json()["total"] != 2:
        assert time.monotonic() < deadline
