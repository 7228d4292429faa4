"""No request exceeds its timeout, whatever it waits for."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from conftest import Api
from own_server import frozen, own_server
from process import Serving

pytestmark = pytest.mark.slow


def timed(ask: Callable[[], requests.Response]) -> tuple[int, float, str]:
    began = time.monotonic()
    answer = ask()
    return answer.status_code, time.monotonic() - began, answer.json().get("detail", "")


def sixteen_requests(url: str, clusters: list[dict[str, Any]]) -> list[Callable[[], requests.Response]]:
    """Returns requests of all sorts, four per cluster, that all need the clusters table."""
    requests_: list[Callable[[], requests.Response]] = []
    for number, one in enumerate(clusters):
        path = f"/clusters/{one['id']}"
        body = {"name": f"new{number}", "spec": {}}
        requests_ += [
            lambda path=path: Api(url).get(path),  # type: ignore[misc]
            lambda path=path: Api(url).patch(path, json={"spec": {"a": 1}}),  # type: ignore[misc]
            lambda one=one: Api(url).report(one),  # type: ignore[misc]
            lambda body=body: Api(url).post("/clusters", json=body),  # type: ignore[misc]
        ]
    return requests_


def test_sixteen_requests_blocked_by_a_lock_get_503_in_time_and_leave_no_session_waiting(
    database: str, sql: psycopg.Connection
) -> None:
    arguments = [
        "--no-auth",
        "--database-url",
        database,
        "--request-timeout=1",
        "--statement-timeout=60",
    ]
    with Serving(*arguments, "--database-url", database) as server:
        api = Api(server.url)
        clusters = [api.cluster(f"c{number}") for number in range(4)]
        for _ in range(3):
            with ThreadPoolExecutor(16) as threads, sql.transaction():
                sql.execute("LOCK TABLE clusters")
                ends = list(threads.map(timed, sixteen_requests(server.url, clusters)))
            assert {status for status, _, _ in ends} == {503}, ends
            assert max(seconds for _, seconds, _ in ends) < 2
            assert all("within 1 s" in detail for _, _, detail in ends)
            assert timed(lambda: api.get("/clusters"))[0] == 200
            assert api.report(clusters[0]).status_code == 201
        # No session still waits in the database for a request that has been answered.
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        assert sql.execute(waiting).fetchone() == (0,)


def test_requests_to_a_frozen_database_get_503_in_time() -> None:
    with (
        own_server() as server,
        Serving(
            *("--no-auth", "--workers=1", "--request-timeout=1"), "--database-url", server.conninfo
        ) as serving,
    ):
        api = Api(serving.url)
        clusters = [api.cluster(f"c{number}") for number in range(4)]
        with frozen(server.files), ThreadPoolExecutor(16) as threads:
            ends = list(threads.map(timed, sixteen_requests(serving.url, clusters)))
        assert {status for status, _, _ in ends} == {503}, ends
        assert max(seconds for _, seconds, _ in ends) < 3
        deadline = time.monotonic() + 10
        while api.get("/clusters").status_code != 200:
            assert time.monotonic() < deadline


def test_the_time_that_a_client_takes_to_send_does_not_count_as_request_time(database: str) -> None:
    arguments = ["--no-auth", "--database-url", database, "--request-timeout=0.5"]
    with Serving(*arguments) as server:

        def slowly() -> Any:
            for part in (b'{"name": "slow', b'ly", "spec"', b": {}}"):
                time.sleep(0.4)
                yield part

        answer = requests.post(
            f"{server.url}/api/hyperfleet/v1/clusters",
            data=slowly(),
            headers={"Content-Type": "application/json"},
            timeout=10,
        )
        assert answer.status_code == 201, answer.text


def test_the_time_that_a_client_takes_to_read_does_not_count_as_request_time(
    service: Callable[..., Api],
) -> None:
    large = 8 * 1024 * 1024
    writer, api = service(max_body_size=large), service(max_body_size=large, request_timeout=1)
    cluster, where = writer.cluster(spec={"text": "x" * 2_000_000}), urlsplit(api.url)
    # Pipelined, and more than the sockets on both sides hold: a response waits for the one before it.
    asked = f"GET {cluster['href']} HTTP/1.1\r\nHost: x\r\n"
    with socket.create_connection((where.hostname, where.port), 20) as connection:
        connection.sendall((f"{asked}\r\n" * 9 + f"{asked}Connection: close\r\n\r\n").encode())
        time.sleep(2.5)
        received = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 10
    assert len(received) > 10 * 2_000_000
