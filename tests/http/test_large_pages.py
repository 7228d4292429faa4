"""Pages larger than what the service keeps in memory for one client."""

import gzip
import http.client
import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from conftest import Api
from process import Serving

MIB = 1 << 20
BUSY = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
# Sizes such that a piece of a page holds one large document or several small ones.
SIZES = (10, 400_000, 300_000, 400_000, 1_500_000, 20, 900_000, 900_000, 30)


@pytest.fixture
def large(service: Callable[..., Api]) -> tuple[Api, list[dict[str, Any]]]:
    """A service, and its clusters of several sizes, newest first."""
    api = service(max_body_size=2 * MIB)
    clusters = [
        api.cluster(f"c-{number}", spec={"text": chr(97 + number) * size})
        for number, size in enumerate(SIZES)
    ]
    return api, clusters[::-1]


def raw(api: Api, request: str) -> tuple[bytes, bytes]:
    """Returns the raw head and body of the response, read until the connection ends."""
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line, line.makefile("rb") as answer:
        line.sendall(request.encode())
        head, _, body = answer.read().partition(b"\r\n\r\n")
        return head, body


def test_a_page_sent_in_pieces_is_as_complete_as_any_other(large: tuple[Api, list[Any]]) -> None:
    api, clusters = large
    page = api.get("/clusters")
    assert page.headers["Transfer-Encoding"] == "chunked"
    assert page.json() == {
        "kind": "ClusterList",
        "changes": page.json()["changes"],
        "page": 1,
        "size": len(clusters),
        "total": len(clusters),
        "items": clusters,
    }
    for size in range(1, len(clusters) + 1):
        first = api.get("/clusters", params={"size": size}).json()
        assert first["items"] == clusters[:size]
        assert (first["size"], first["total"]) == (size, len(clusters))
        if size < len(clusters):
            rest = requests.get(api.url + first["next"], timeout=30).json()
            assert rest["items"] == clusters[size : 2 * size]
    # In another order, and with a search.
    turned = api.get("/clusters", params={"orderBy": "name asc"}).json()
    assert turned["items"] == clusters[::-1]
    found = api.get("/clusters", params={"search": "name in ('c-4', 'c-6', 'c-7')"}).json()
    assert [one["name"] for one in found["items"]] == ["c-7", "c-6", "c-4"]


def test_a_page_sent_in_pieces_honors_gzip_and_fields(
    large: tuple[Api, list[Any]],
) -> None:
    api, clusters = large
    zipped = api.get("/clusters", headers={"Accept-Encoding": "gzip"}, stream=True)
    assert zipped.headers["Content-Encoding"] == "gzip"
    body = zipped.raw.read(decode_content=False)
    assert len(body) < 100_000
    assert json.loads(gzip.decompress(body))["items"] == clusters
    names = api.get("/clusters", params={"fields": "name"}).json()
    assert [one["name"] for one in names["items"]] == [one["name"] for one in clusters]
    assert all(set(one) == {"id", "name"} for one in names["items"])


def test_a_page_sent_in_pieces_reaches_http_1_0_clients_and_head_has_no_body(
    large: tuple[Api, list[Any]],
) -> None:
    api, clusters = large
    head, body = raw(api, "GET /api/hyperfleet/v1/clusters HTTP/1.0\r\nHost: a\r\n\r\n")
    assert b"200 OK" in head
    assert b"chunked" not in head.lower()
    assert json.loads(body)["items"] == clusters
    head, body = raw(
        api, "HEAD /api/hyperfleet/v1/clusters HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    assert b"200 OK" in head
    assert body == b""


def test_a_large_list_of_reports_is_complete_and_ordered(service: Callable[..., Api]) -> None:
    api = service(max_body_size=2 * MIB)
    cluster, other = api.cluster("a"), api.cluster("b")
    for number in range(4):
        for one in (cluster, other):
            data = {"of": one["name"], "text": "x" * 700_000}
            assert api.report(one, f"adapter-{number}", data=data).status_code == 201
    page = api.get(f"/clusters/{cluster['id']}/statuses").json()
    assert [one["adapter"] for one in page["items"]] == [f"adapter-{n}" for n in (3, 2, 1, 0)]
    assert {one["data"]["of"] for one in page["items"]} == {"a"}
    assert page["size"] == page["total"] == 4


@pytest.fixture
def heavy(service: Callable[..., Api]) -> Api:
    """A service with more data than the buffers of a connection hold."""
    api = service(max_body_size=8 * MIB)
    for number in range(12):
        api.cluster(f"c-{number}", spec={"text": "x" * 3_000_000})
    return api


def test_clusters_deleted_or_changed_while_a_page_is_read_are_left_out_or_new(
    heavy: Api, sql: psycopg.Connection
) -> None:
    host, port = heavy.url.removeprefix("http://").split(":")
    line = http.client.HTTPConnection(host, int(port))
    line.connect()
    assert line.sock
    line.request("GET", "/api/hyperfleet/v1/clusters?orderBy=name")
    answer = line.getresponse()
    begun = answer.read(1000)
    sql.execute("DELETE FROM clusters WHERE name = 'c-8'")
    sql.execute("""UPDATE clusters SET spec = '{"new": 1}' WHERE name = 'c-9'""")
    page = json.loads(begun + answer.read())
    names = [one["name"] for one in page["items"]]
    assert names == ["c-0", "c-1", "c-10", "c-11", *(f"c-{number}" for number in (2, 3, 4, 5, 6, 7, 9))]
    assert page["size"] == 11
    assert page["items"][-1]["spec"] == {"new": 1}


def test_a_page_interrupted_by_a_database_error_is_visibly_incomplete(
    heavy: Api, sql: psycopg.Connection
) -> None:
    answer = heavy.get("/clusters", stream=True)
    assert answer.status_code == 200
    sql.execute("ALTER TABLE clusters RENAME TO gone")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        len(answer.content)
    sql.execute("ALTER TABLE gone RENAME TO clusters")
    assert len(heavy.get("/clusters").json()["items"]) == 12


def read_nothing(api: Api, path: str) -> socket.socket:
    """Returns a connection whose client has sent a request and reads nothing of the response."""
    host, port = api.url.removeprefix("http://").split(":")
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect((host, int(port)))
    line.sendall(f"GET /api/hyperfleet/v1{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return line


@pytest.mark.slow
def test_a_client_that_reads_nothing_is_disconnected_and_a_slow_one_is_not(
    service: Callable[..., Api],
) -> None:
    api = service(write_timeout=1, max_body_size=8 * 1024 * 1024)
    for number in range(4):
        api.cluster(f"c-{number}", spec={"text": "x" * 2_000_000})
    slow = read_nothing(api, "/clusters")
    taken = 0
    stuck = [read_nothing(api, "/clusters") for _ in range(16)]
    start = time.monotonic()
    while time.monotonic() - start < 4:
        taken += len(slow.recv(200_000))
        time.sleep(0.05)
    assert taken > 200_000
    while taken < 8_000_000:
        more = slow.recv(1 << 20)
        assert more
        taken += len(more)
    for line in stuck:
        line.settimeout(2)
        left = b"x"
        try:
            while left:
                left = line.recv(1 << 20)
        except ConnectionResetError:
            left = b""
        assert left == b"", "the service did not hang up"
    assert api.get("/compatibility").status_code == 200


def resident(process: int) -> float:
    """Returns the resident memory of a process in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


@pytest.mark.slow
def test_many_readers_and_stalled_readers_of_large_pages_cost_little_memory_and_time(
    database: str, sql: psycopg.Connection
) -> None:
    arguments = ("--no-auth", "--workers=1", "--database-url", database, "--max-body-size", str(2 * MIB))
    with Serving(*arguments) as serving, ExitStack() as lines, ThreadPoolExecutor(8) as threads:
        api = Api(serving.url)
        for number in range(24):
            api.cluster(f"c-{number}", spec={"text": "x" * MIB})
        # All pages together have 12 times as much as what is allowed here.
        before = resident(serving.process.pid)
        for _ in range(60):
            lines.enter_context(read_nothing(api, "/clusters"))

        def read() -> int:
            with requests.get(f"{api.base}/clusters", stream=True, timeout=60) as answer:
                return sum(map(len, answer.iter_content(MIB)))

        reading = [threads.submit(read) for _ in range(8)]
        most, served = 0.0, 0
        while not all(one.done() for one in reading):
            most = max(most, resident(serving.process.pid))
            start = time.monotonic()
            assert api.get("/clusters", params={"size": 0}).json()["total"] == 24
            assert time.monotonic() - start < 5
            served += 1
        assert {one.result() > 24 * MIB for one in reading} == {True}
        assert served > 5
        assert most - before < 2 * 68, (
            "one piece per client, and as much again for all that is in progress"
        )
        assert sql.execute(BUSY).fetchone() == (1,), (
            "clients that do not read hold connections to the database"
        )
