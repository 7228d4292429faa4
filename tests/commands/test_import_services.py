"""``hyperfleet import --from-api`` takes over services, and a broken answer removes nothing."""

import json
import signal
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg.sql
import pytest
from conftest import Api, migrated
from imports import A, P, numbers, numbers_of
from issuer import JsonServer
from original import shown, uid
from process import CLEAN, HYPERFLEET, run_here
from pytest_postgresql.executors import NoopExecutor
from urllib3 import HTTPResponse

from hyperfleet.takeover.api import PATIENCE, RETRIES, Patience
from hyperfleet.takeover.api import Api as Source


def test_another_instance_of_this_service_can_be_the_source(
    api: Api, service: Callable[..., Api], postgres: NoopExecutor, database: str
) -> None:
    cluster = api.cluster("prod", labels={"a": "b"}, spec={"n": 2**70})
    pool = api.node_pool(cluster, "workers")
    api.report(cluster, "dns", data={"zone": 1})
    api.report(pool, "np")
    for number in range(130):
        api.cluster(f"c{number}")
    waiting = api.cluster("waiting")
    api.report(waiting, "dns")
    assert api.delete(f"/clusters/{waiting['id']}").status_code == 202
    with migrated(postgres, f"second_{next(numbers)}") as other:
        ended = run_here("import", "--from-api", api.base, "--database-url", other)
        assert ended.returncode == 0, ended.stdout
        assert f"From the service {api.url} to " in ended.stdout
        assert "clusters    132 new" in ended.stdout
        there = service(other)
        for path in (f"/clusters/{cluster['id']}", f"/nodepools/{pool['id']}"):
            assert there.get(path).json() == api.get(path).json()
            assert there.get(path + "/statuses").json() == api.get(path + "/statuses").json()
        marked = there.get(f"/clusters/{waiting['id']}").json()
        assert marked["deleted_time"] == api.get(f"/clusters/{waiting['id']}").json()["deleted_time"]
        # What is gone there is removed here, too.
        gone = api.get("/clusters?search=name='c7'").json()["items"][0]
        assert api.delete(f"/clusters/{gone['id']}").status_code == 202
        ended = run_here("import", "--from-api", api.url, "--database-url", other)
        assert "clusters    0 new, 0 changed, 131 same, 1 removed" in ended.stdout
        assert there.get(f"/clusters/{gone['id']}").status_code == 404


# As the first generation answers: other names for times, no times of reports.
CLUSTER = {
    **{"id": A, "kind": "Cluster", "href": f"/api/hyperfleet/v1/clusters/{A}", "name": "prod"},
    **{"labels": {"env": "prod"}, "spec": {"region": "us-east-1"}, "generation": 1},
    **{"created_at": "2025-11-17T10:00:00.123456789Z", "updated_at": "2025-11-17T10:00:00.5+01:00"},
    **{"created_by": "ann", "updated_by": "ann"},
    "status": {"phase": "Ready", "observed_generation": 1, "adapters": []},
}
POOL = {
    **{"id": P, "kind": "NodePool", "name": "workers", "spec": {}},
    **{"owner_references": {"id": A, "kind": "Cluster"}, "created_by": "ann", "updated_by": "ann"},
    **{"created_at": "2025-11-17T10:00:00Z", "updated_at": "2025-11-17T10:00:00Z"},
}
REPORT = {
    **{"adapter": "dns-adapter", "observed_generation": 1, "data": {}},
    "conditions": [
        {
            **{"adapter": "dns-adapter", "type": "Ready", "status": "True", "observed_generation": 1},
            **{"reason": "Done", "message": "", "created_at": "2025-11-17T15:04:05Z"},
            "updated_at": "2025-11-17T15:14:05Z",
        },
        {
            **{"adapter": "dns-adapter", "type": "Health", "status": "True", "observed_generation": 1},
            **{"created_at": "2025-11-17T15:05:05Z", "updated_at": "2025-11-17T15:06:05Z"},
        },
    ],
}


@pytest.fixture
def old() -> Iterator[JsonServer]:
    """A service that answers like the first generation, and requires a token."""
    base = "/api/hyperfleet/v1"
    extra = [{**CLUSTER, "id": uid(n), "name": f"c{n}"} for n in range(100, 125)]
    lists: dict[str, list[Any]] = {
        "/clusters": [CLUSTER, *extra],
        "/nodepools": [POOL],
        f"/clusters/{A}/statuses": [REPORT],
    }

    def answer(_method: str, path: str, _body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Authorization") != "Bearer sesame":
            return 401, {}, b"{}"
        path, _, query = path.removeprefix(base).partition("?")
        if path == f"/clusters/{uid(101)}/statuses":
            return 200, {}, b'{"items": [NaN'
        page = int(dict(part.split("=") for part in query.split("&"))["page"])
        items = lists.get(path, [])
        shown = items[(page - 1) * 20 : page * 20]
        body = {"kind": "List", "page": page, "size": len(shown), "total": len(items), "items": shown}
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()

    with JsonServer(answer) as server:
        yield server


def test_a_service_of_the_first_generation_can_be_the_source(
    old: JsonServer, api: Api, database: str, tmp_path: Path
) -> None:
    arguments = ("import", "--from-api", old.url, "--database-url", database)
    refused = run_here(*arguments)
    assert (refused.returncode, "/clusters answers 401" in refused.stdout) == (1, True)
    token = tmp_path / "token"
    token.write_text("sesame\n")
    for given, env in (
        (("--token-file", str(token)), {}),
        (("--token-file", str(token)), {"HYPERFLEET_TOKEN": "other"}),
        (("--token", "sesame"), {}),
        ((), {"HYPERFLEET_TOKEN": "sesame"}),
    ):
        ended = run_here(*arguments, *given, env=env)
        assert ended.returncode == 3, ended.stdout
        assert f"report {uid(101)}: its reports are not JSON" in ended.stdout
        assert "sesame" not in ended.stdout
    assert {method for method, *_ in old.asked} == {"GET"}
    cluster = api.get(f"/clusters/{A}").json()
    assert cluster["created_time"] == "2025-11-17T10:00:00.123456Z"
    # Its update time preceded its creation, which cannot be right.
    assert cluster["updated_time"] == cluster["created_time"]
    assert cluster["status"]["phase"] == "Ready"
    assert api.get("/clusters").json()["total"] == 26
    report = api.get(f"/clusters/{A}/statuses").json()["items"][0]
    assert report["created_time"] == "2025-11-17T15:04:05.000000Z"
    assert report["last_report_time"] == "2025-11-17T15:14:05.000000Z"
    assert report["conditions"][0]["reason"] == "Done"
    assert api.get(f"/nodepools/{P}").json()["generation"] == 1


BASE = "/api/hyperfleet/v1"
Over = Callable[[str, dict[str, str]], Any]


def there(number: int, kind: int = 0, **more: Any) -> dict[str, Any]:
    """A cluster, or with kind 1 a node pool, as a service shows it."""
    own: dict[str, Any] = {"kind": "Cluster", "name": f"c{number}"}
    if kind:
        own = {"kind": "NodePool", "name": f"p{number}", "owner_references": {"id": uid(number)}}
    return {
        **{"id": uid(number, kind), "spec": {}, "labels": {}, "generation": 1, **own},
        **{"created_time": shown(0), "updated_time": shown(0), "created_by": "a", "updated_by": "a"},
        **more,
    }


def listed(items: list[Any], total: Any = None, **more: Any) -> dict[str, Any]:
    total = len(items) if total is None else total
    return {"kind": "List", "page": 1, "size": len(items), "total": total, "items": items, **more}


class Service:
    """A service with clusters and node pools; ``over`` can override its answers.

    ``over`` returns a value, a status alone, bytes, a whole answer, or None for the usual answer.
    """

    def __init__(self, clusters: list[Any], pools: list[Any]) -> None:
        self.clusters, self.pools = clusters, pools
        self.over: Over = lambda _path, _query: None

    def __call__(self, _method: str, path: str, _body: bytes, _headers: Any) -> Any:
        path, _, rest = path.removeprefix(BASE).partition("?")
        query = dict(part.split("=") for part in rest.split("&") if part)
        answer = self.over(path, query)
        if answer is None:
            answer = self.usual(path, query)
        if isinstance(answer, tuple):
            return answer
        if isinstance(answer, int):
            return answer, {}, b"{}"
        return 200, {}, answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def usual(self, path: str, query: dict[str, str]) -> Any:
        if path.endswith("/statuses"):
            return listed([])
        items = {"/clusters": self.clusters, "/nodepools": self.pools}.get(path)
        if items is None:
            return 404
        page, size = int(query["page"]), int(query["pageSize"])
        return listed(items[(page - 1) * size : page * size], len(items))


@pytest.fixture
def fleet() -> Iterator[tuple[Service, str]]:
    """A service with 120 clusters and 50 node pools, and its address."""
    service = Service(
        [there(number) for number in range(1, 121)], [there(number, 1) for number in range(1, 51)]
    )
    with JsonServer(service) as server:
        yield service, server.url


def ask(database: str, url: str, *more: str, code: int = 0) -> str:
    ended = run_here("import", "--from-api", url, "--database-url", database, *more)
    assert "Traceback" not in ended.stdout
    assert ended.returncode == code, ended.stdout
    return ended.stdout


WRONG: dict[str, tuple[Over, int, str]] = {
    "no list": (
        lambda path, _: 404 if path == "/nodepools" else None,
        *(1, "/nodepools answers 404."),
    ),
    "the same page again and again": (
        lambda path, _: listed([there(n) for n in range(1, 101)], 120) if path == "/clusters" else None,
        *(1, "/clusters shows 100 items, but its total is 120."),
    ),
    "an empty second page": (
        lambda path, query: listed([], 120) if path == "/clusters" and query["page"] != "1" else None,
        *(1, "/clusters shows 100 items, but its total is 120."),
    ),
    "a link to itself": (
        lambda path, _: (
            listed([there(1)], 10**9, next=f"{BASE}/clusters?a=b") if path == "/clusters" else None
        ),
        *(1, "/clusters shows 1 items, but its total is 1000000000."),
    ),
    "no node pools": (
        lambda path, _: listed([]) if path == "/nodepools" else None,
        *(3, f"node pool {uid(7, 1)}: the source is empty; kept here"),
    ),
    "few clusters": (
        lambda path, _: listed([there(n) for n in range(1, 21)]) if path == "/clusters" else None,
        *(3, f"cluster {uid(77)}: it is gone from the source, like most of the import; kept here"),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_implausible_list_removes_nothing(
    wrong: str, fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet
    over, code, says = WRONG[wrong]
    if code == 1:
        service.over = over
        assert says in ask(database, url, "--dry-run", code=1), "on a first import, too"
        service.over = lambda _path, _query: None
    ask(database, url)
    assert numbers_of(sql) == (120, 50)
    service.over = over
    assert says in ask(database, url, code=code)
    assert numbers_of(sql) == (120, 50)
    service.over = lambda _path, _query: None
    assert "0 new, 0 changed, 120 same, 0 removed" in ask(database, url)


def test_remove_most_allows_an_import_to_remove_most_resources(
    fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet
    ask(database, url)
    service.clusters, service.pools = service.clusters[:30], []
    dry = ask(database, url, "--remove-most", "--dry-run")
    real = ask(database, url, "--remove-most")
    assert dry.splitlines()[2:] == real.splitlines()[2:]
    assert "node pools  0 new, 0 changed, 0 same, 50 removed" in real
    assert numbers_of(sql) == (30, 0)


def test_half_of_an_import_may_be_gone_from_a_service(
    fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet
    ask(database, url)
    service.clusters = service.clusters[:60]
    assert "0 new, 0 changed, 60 same, 60 removed" in ask(database, url)
    assert numbers_of(sql) == (60, 50)
    service.clusters = service.clusters[:29]
    assert "29 same, 0 removed" in ask(database, url, code=3)
    assert numbers_of(sql) == (60, 50)


def test_a_resource_that_slips_to_another_page_while_a_list_is_read_is_not_removed(
    fleet: tuple[Service, str], database: str
) -> None:
    service, url = fleet
    ask(database, url)

    def over(path: str, query: dict[str, str]) -> Any:
        # One of the first page is removed after that was read: the first of the second page moves there.
        if path == "/clusters" and query["page"] == "2" and len(service.clusters) == 120:
            del service.clusters[77]
        return None

    service.over = over
    assert "clusters    0 new, 0 changed, 119 same, 0 removed" in ask(database, url)
    # The removed one had been listed, so that only the next import misses it.
    assert "clusters    0 new, 0 changed, 119 same, 1 removed" in ask(database, url)


def test_the_links_of_a_service_are_followed_where_it_has_any(
    fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet

    def over(path: str, query: dict[str, str]) -> Any:
        if path != "/clusters":
            return None
        if query.get("continue") != "x":
            return listed(service.clusters[:100], 120, next=f"{BASE}/clusters?continue=x")
        return listed(service.clusters[100:], 120)

    service.over = over
    assert "clusters    120 new" in ask(database, url)
    assert numbers_of(sql) == (120, 50)


def test_of_two_clusters_with_one_name_the_one_being_deleted_is_not_imported_over_the_api(
    fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet
    marked = {"deleted_time": shown(1), "deleted_by": "a"}
    service.clusters = [there(1, name="same", **marked), there(2, name="same"), there(3, **marked)]
    service.pools = []
    output = ask(database, url, code=3)
    assert f"cluster {uid(1)} 'same': its name is that of {uid(2)}" in output
    assert numbers_of(sql) == (2, 0)


def test_a_list_that_shifts_while_it_is_read_is_read_again_and_each_item_imported_once(
    fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet
    reads: list[str] = []

    def over(path: str, query: dict[str, str]) -> Any:
        if path != "/clusters" or query["page"] != "2":
            return None
        reads.append(path)
        # At first, only the ids are read.
        return listed(service.clusters[101:], 120) if len(reads) == 2 else None

    service.over = over
    assert "clusters    120 new" in ask(database, url)
    assert len(reads) == 3
    assert numbers_of(sql) == (120, 50)


def test_resources_read_over_the_api_are_not_all_held_in_memory(fleet: tuple[Service, str]) -> None:
    service, url = fleet
    service.clusters = [there(number, spec={"large": "x" * 20_000}) for number in range(3000)]
    tracemalloc.start()
    try:
        with Source(url, "").look(None, ()) as look:
            batch = next(look.batches("Cluster"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (look.count("Cluster"), len(batch)) == (3000, 500)
    assert peak < 45e6, "all of them take 60 MB"


def test_clusters_being_deleted_are_read_with_the_number_of_their_node_pools(
    fleet: tuple[Service, str],
) -> None:
    service, url = fleet
    service.clusters = [there(1, deleted_time=shown(1)), there(2)]
    service.over = lambda path, _: listed([there(1, 1)]) if path.endswith("/nodepools") else None
    with Source(url, "").look(None, ()) as look:
        [batch] = look.batches("Cluster")
    # Otherwise they would be reconciled until their node pools are imported.
    assert [(raw.id, raw.children) for raw in batch] == [(uid(2), 0), (uid(1), 1)]


def test_missing_reports_of_an_existing_resource_are_reported(
    fleet: tuple[Service, str], database: str, sql: psycopg.Connection
) -> None:
    service, url = fleet
    gone, odd = f"/clusters/{uid(1)}", f"/clusters/{uid(2)}"
    service.pools = [there(3, 1), there(4, 1, owner_references=[{"id": uid(4)}])]

    def over(path: str, _query: dict[str, str]) -> Any:
        if path.removesuffix("/statuses") in (gone, odd):
            return there(2) if path == odd else 404
        return None

    service.over = over
    output = ask(database, url, code=3)
    assert f"report {uid(2)}: its reports are not found, although it is" in output
    assert f"node pool {uid(4, 1)} 'p4': it names no cluster" in output
    assert "Not imported: 2\n" in output
    assert numbers_of(sql) == (119, 1)


def test_reports_with_integers_too_large_for_a_double_are_imported(
    fleet: tuple[Service, str], api: Api, database: str
) -> None:
    service, url = fleet
    service.clusters, service.pools = [there(1, spec={"n": 10**400}), there(2)], []
    conditions = [{"type": "Available", "status": "True"}]
    report = {"adapter": "dns", "observed_generation": 1, "conditions": conditions}
    texts = [b'{"n": -1%s}' % (b"0" * 400), b'{"n": 1e400}']

    def over(path: str, _query: dict[str, str]) -> Any:
        if not path.endswith("/statuses"):
            return None
        answer = json.dumps(listed([{**report, "data": "it"}])).encode()
        return answer.replace(b'"it"', texts[path != f"/clusters/{uid(1)}/statuses"])

    service.over = over
    output = ask(database, url, code=3)
    [shown] = api.get(f"/clusters/{uid(1)}/statuses").json()["items"]
    assert shown["data"] == {"n": -(10**400)}
    assert output.endswith(
        f"Not imported: 1\n  report {uid(2)}: it holds a number that is out of range\n"
    )


# Deeper than any Python parses: 3.13 stops at ten thousand levels.
DEEP = b"[" * 300_000 + b"]" * 300_000


@pytest.mark.parametrize(
    ("clusters", "code", "says"),
    [
        ([{"name": "c1"}], 1, "/clusters shows an item without id."),
        ([there(1, id=5)], 1, "/clusters shows an item without id."),
        ([there(1, id=None)], 1, "/clusters shows an item without id."),
        ([there(1, id="a\ud800")], 1, "/clusters shows an item without id."),
        ([there(1, id="../secret?x=")], 3, "cluster ../secret?x= 'c1': its id is not a UUID"),
        (
            [there(1, name="a\ud800")],
            3,
            f"cluster {uid(1)}: it holds a character that PostgreSQL cannot",
        ),
        ([there(1, spec={"a": "\ud800"})], 3, "its spec holds a character that PostgreSQL cannot"),
        ([there(1, spec={"a": {"b": "\ud800"}})], 3, "'c1': its spec holds a character"),
        # Appended to the address, it would lead to another server, with the token.
        ({**listed([there(1)]), "next": "@elsewhere/"}, 1, "/clusters links to somewhere else."),
        ("many", 1, "/clusters has no total."),
        ([1], 1, "/clusters has no total."),
        (b'{"items": [{"id": "x", "spec": ' + DEEP + b'}], "total": 1}', 1, "JSON of too many levels."),
    ],
)
def test_a_broken_answer_is_reported_in_one_line(
    clusters: Any, code: int, says: str, fleet: tuple[Service, str], database: str
) -> None:
    service, url = fleet
    service.pools = []
    answer = clusters
    if isinstance(clusters, str) or clusters == [1]:
        answer = {**listed([there(1)]), "total": clusters}
    elif isinstance(clusters, list):
        answer = listed([*clusters, there(2)])
    asked = iter([listed([there(2)])])
    # The first request only checks whether anything answers.
    service.over = lambda path, query: (
        None if path != "/clusters" else next(asked) if query["pageSize"] == "1" else answer
    )
    output = ask(database, url, code=code)
    assert says in output
    assert code == 1 or "clusters    1 new" in output


def test_each_resource_with_an_invalid_member_is_reported(
    fleet: tuple[Service, str], database: str
) -> None:
    service, url = fleet
    strange: list[tuple[dict[str, Any], str]] = [
        ({"labels": ["a"]}, "its labels are not a mapping of strings"),
        ({"labels": {"a": 1}}, "its labels are not a mapping of strings"),
        ({"labels": {"a": "\0"}}, "its labels hold a character that PostgreSQL cannot"),
        ({"created_by": 5}, "its created_by is not text"),
        ({"updated_by": "\0"}, "its updated_by is not text"),
        ({"deleted_time": shown(0), "deleted_by": []}, "its deleted_by is not text"),
        ({"deleted_time": "soon"}, "deleted_time is not a time"),
        ({"generation": True}, "its generation is not a whole number from 1 to 2147483647"),
        ({"generation": 2**31}, "its generation is not a whole number from 1 to 2147483647"),
        ({"spec": None}, "its spec is not a JSON object"),
        ({"id": "no value of a label"}, "its id cannot be the value of a label, where it would be kept"),
    ]
    odd = [there(number + 1, **more) for number, (more, _) in enumerate(strange)]
    service.clusters, service.pools = [there(0), *odd], []
    lines = ask(database, url, "--derive-ids", code=3).partition("Not imported: ")[2].splitlines()
    assert lines[0] == str(len(strange))
    for number, (more, reason) in enumerate(strange):
        about = f"  cluster {more.get('id', uid(number + 1))} 'c{number + 1}': {reason}"
        assert any(line.startswith(about) for line in lines), (about, lines)


def test_an_invalid_source_url_is_reported(database: str) -> None:
    for address in ("http://[::1", "http://h:99999"):
        assert "--from-api is not a URL: " in ask(database, address, code=2)


def test_the_waits_that_a_source_asks_for_are_bounded() -> None:
    for asked, waits in (("3600", 10), ("2", 2), ("Thu, 01 Jan 2099 00:00:00 GMT", 10)):
        answer = HTTPResponse(headers={"Retry-After": asked}, status=429)
        assert Patience(3).get_retry_after(answer) == waits
    assert Patience(3).get_retry_after(HTTPResponse(status=429)) is None
    assert RETRIES * PATIENCE <= 30


def test_sigterm_ends_a_waiting_import_at_once(fleet: tuple[Service, str], database: str) -> None:
    service, url = fleet
    asked = threading.Event()

    def over(path: str, _query: dict[str, str]) -> Any:
        if path.endswith("/statuses"):
            asked.set()
            return 429, {"Retry-After": "3600"}, b"{}"
        return None

    service.over = over
    arguments = [HYPERFLEET, "import", "--from-api", url, "--database-url", database]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=CLEAN) as process:
        try:
            assert asked.wait(30)
            time.sleep(0.5)
            process.terminate()
            assert process.wait(5) == 128 + signal.SIGTERM
            assert process.stderr
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
