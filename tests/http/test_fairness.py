"""Clients are served in turn, however many connections each of them has."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
import requests
from conftest import Api
from helpers_contract import problem

from hyperfleet.http import fairness

Service = Callable[..., Api]


class Clients:
    """Requests of several clients, told apart by one header, and the order in which they finish."""

    def __init__(self, api: Api, threads: ThreadPoolExecutor) -> None:
        self.api = api
        self.threads = threads
        self.ended: list[str] = []

    def send(self, header: str, name: str) -> Future[requests.Response]:
        def ask() -> requests.Response:
            answer = Api(self.api.url).get("/clusters?size=1", headers={header: name})
            self.ended.append(name)
            return answer

        sent = self.threads.submit(ask)
        # Requests must arrive in the order in which they are sent.
        time.sleep(0.02)
        return sent


@pytest.fixture
def one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets only one request be in progress at a time, however long it takes."""
    monkeypatch.setattr(fairness, "AT_ONCE", 1)
    monkeypatch.setattr(fairness, "SLOT_LASTS", 60.0)


@contextmanager
def held(database: str) -> Iterator[None]:
    """Makes reads of clusters wait until the block ends."""
    with psycopg.connect(database) as conn:
        conn.execute("LOCK TABLE clusters IN ACCESS EXCLUSIVE MODE")
        yield


@pytest.mark.usefixtures("one_place")
@pytest.mark.parametrize("header", ["User-Agent", "Authorization"])
def test_a_client_with_one_request_is_served_before_the_backlog_of_a_busy_client(
    service: Service, database: str, header: str
) -> None:
    api = service()
    with ThreadPoolExecutor(32) as threads:
        clients = Clients(api, threads)
        with held(database):
            sent = [clients.send(header, "many") for _ in range(20)]
            sent += [clients.send(header, "one"), clients.send(header, "other")]
        assert {one.result().status_code for one in sent} == {200}
    # The first of the many was already in progress, and the second was next.
    assert clients.ended.index("one") <= 3
    assert clients.ended.index("other") <= 5


@pytest.mark.usefixtures("one_place")
def test_at_the_request_limit_the_newest_request_of_the_busiest_client_is_refused(
    service: Service, database: str
) -> None:
    api = service(max_requests=6)
    with ThreadPoolExecutor(32) as threads:
        clients = Clients(api, threads)
        with held(database):
            many = [clients.send("User-Agent", "many") for _ in range(6)]
            refused = problem(clients.send("User-Agent", "many").result(), 503)
            assert "6 requests" in refused["detail"]
            one = clients.send("User-Agent", "one")
            assert problem(many[5].result(), 503)["code"] == refused["code"]
            assert not one.done()
        assert one.result().status_code == 200
        assert [answer.result().status_code for answer in many[:5]] == [200] * 5


@pytest.mark.usefixtures("one_place")
def test_clients_that_disconnect_while_queued_do_not_hold_up_later_requests(
    service: Service, database: str
) -> None:
    api = service(max_requests=6)
    with ThreadPoolExecutor(32) as threads:
        clients = Clients(api, threads)
        # Places that were not given back would be used up by the second time.
        for _ in range(2):
            with held(database):
                first = clients.send("User-Agent", "first")
                for _ in range(4):
                    with pytest.raises(requests.exceptions.ReadTimeout):
                        requests.get(f"{api.base}/clusters", timeout=0.05)
                later = clients.send("User-Agent", "later")
            assert first.result().status_code == later.result().status_code == 200
            assert [api.get("/clusters").status_code for _ in range(10)] == [200] * 10


@pytest.mark.usefixtures("one_place")
def test_requests_whose_clients_disconnect_while_queued_are_dropped_at_once(
    service: Service, database: str
) -> None:
    api = service(max_requests=6)
    with ThreadPoolExecutor(32) as threads:
        clients = Clients(api, threads)
        with held(database):
            first = clients.send("User-Agent", "first")
            # Enough to fill all places three times, with requests that would change something.
            for number in range(18):
                with pytest.raises(requests.exceptions.ReadTimeout):
                    body = {"kind": "Cluster", "name": f"late-{number}", "spec": {}}
                    requests.post(f"{api.base}/clusters", json=body, timeout=0.05)
            later = [clients.send("User-Agent", "later") for _ in range(5)]
            assert not any(one.done() for one in [first, *later])
        assert first.result().json()["total"] == 0
        assert [one.result().status_code for one in later] == [200] * 5
    assert api.get("/clusters").json()["total"] == 0


def test_reports_waiting_for_a_row_lock_leave_room_for_reads(service: Service, database: str) -> None:
    api = service(max_requests=200, db_pool_size=8)
    cluster = api.cluster()
    with ThreadPoolExecutor(64) as threads:
        with psycopg.connect(database) as conn:
            conn.execute("SELECT 1 FROM clusters FOR UPDATE")
            waiting = [threads.submit(Api(api.url).report, cluster, f"a-{n}") for n in range(64)]
            for _ in range(20):
                assert api.read(cluster) == cluster
            assert not any(one.done() for one in waiting)
        assert {one.result().status_code for one in waiting} == {201}
