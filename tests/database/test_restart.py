"""PostgreSQL restarts under the service, which works as before once it is back."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Api
from own_server import BACKENDS, Server, fill, own_server
from process import Serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with own_server() as server:
        yield server


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    with Serving("--no-auth", "--workers=1", "--database-url", server.conninfo) as serving:
        yield Api(serving.url)


def restart(server: Server) -> None:
    server.restart("fast")


def crash(server: Server) -> None:
    server.restart("immediate")


def terminate(server: Server) -> None:
    server.ask(f"SELECT pg_terminate_backend(pid, 5000) FROM ({BACKENDS}) AS backends")


def one_by_one(api: Api) -> list[int]:
    return [api.get("/clusters").status_code for _ in range(40)]


def all_at_once(api: Api) -> list[int]:
    start = threading.Barrier(40)

    def ask(number: int) -> int:
        start.wait()
        if number % 4:
            return Api(api.url).get("/clusters").status_code
        body = {"name": f"c{time.monotonic_ns()}", "spec": {}}
        return Api(api.url).post("/clusters", json=body).status_code - 1

    with ThreadPoolExecutor(40) as threads:
        return list(threads.map(ask, range(40)))


@pytest.mark.parametrize("requests", [one_by_one, all_at_once])
@pytest.mark.parametrize("end", [restart, crash, terminate])
def test_no_request_fails_once_the_database_accepts_connections_again(
    server: Server, api: Api, end: Callable[[Server], None], requests: Callable[[Api], list[int]]
) -> None:
    fill(server, api)
    end(server)
    start = time.monotonic()
    assert requests(api) == [200] * 40
    assert time.monotonic() - start < 5


def test_a_request_during_a_restart_waits_until_it_is_over(server: Server, api: Api) -> None:
    fill(server, api)
    server.stop()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(Api(api.url).get, "/clusters") for _ in range(8)]
        time.sleep(0.3)
        server.start()
        back = time.monotonic()
        assert [one.result().status_code for one in waiting] == [200] * 8
    assert time.monotonic() - back < 2


def test_no_request_fails_after_an_outage_in_which_others_got_503(server: Server, api: Api) -> None:
    fill(server, api)
    server.stop()
    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(lambda _: Api(api.url).get("/clusters").status_code, range(16)))
    assert set(seen) == {503}
    server.start()
    start = time.monotonic()
    assert one_by_one(api) == [200] * 40
    assert time.monotonic() - start < 3
