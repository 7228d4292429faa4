"""Many or slow clients cost the others little: limits on requests, waiting and response size."""

import gzip
import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import requests
from conftest import Api
from helpers_contract import problem

from hyperfleet.database import together


def test_requests_beyond_max_requests_get_503_at_once_and_the_others_complete(
    service: Callable[..., Api], database: str
) -> None:
    api = service(max_requests=8, db_pool_size=4)
    clusters = [api.cluster(f"c-{number}") for number in range(12)]
    answers: Counter[int] = Counter()
    with ThreadPoolExecutor(12) as threads:
        with psycopg.connect(database) as conn:
            conn.execute("SELECT 1 FROM clusters FOR UPDATE")
            sent = [threads.submit(Api(api.url).report, cluster) for cluster in clusters]
            deadline = time.monotonic() + 10
            while sum(one.done() for one in sent) < 4:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            refused = problem(api.get("/clusters"), 503)
            assert refused["code"] == "HYPERFLEET-SVC-002"
            assert "8 requests" in refused["detail"]
        for one in sent:
            answers[one.result().status_code] += 1
    assert answers == {201: 8, 503: 4}
    assert api.get("/clusters").status_code == 200


def test_responses_are_compressed_on_request_if_that_saves_space(api: Api) -> None:
    cluster = api.cluster(spec={"text": "lorem ipsum " * 500})
    path = f"/clusters/{cluster['id']}"

    def ask(encoding: str | None, path: str = path) -> requests.Response:
        return api.get(path, headers={"Accept-Encoding": encoding}, stream=True)  # type: ignore[dict-item]

    for asked in ("gzip", "deflate, gzip;q=0.5", "*", "GZIP", "*;q=0, gzip"):
        answer = ask(asked)
        assert answer.headers["Content-Encoding"] == "gzip"
        raw = answer.raw.read(decode_content=False)
        assert len(raw) == int(answer.headers["Content-Length"]) < 1500
        assert json.loads(gzip.decompress(raw)) == cluster
        assert "Accept-Encoding" in answer.headers["Vary"]
        assert answer.headers["ETag"] == '"1"'
    for asked in (
        *("identity", "gzip;q=0", "gzip; q=0.000", "*;q=0.0", "br", "", "gzip;q=0, *"),
        *("gzip;q=0.", "gzip ;\tQ=0.00", "br,\tgzip;q=0"),
    ):
        answer = ask(asked)
        assert "Content-Encoding" not in answer.headers
        assert answer.json() == cluster
        assert "Accept-Encoding" in answer.headers["Vary"]
    assert "Content-Encoding" not in ask("gzip", "/compatibility").headers
    listed = ask("gzip", "/clusters")
    assert listed.headers["Content-Encoding"] == "gzip"
    assert listed.json()["items"] == [cluster]
    contract = ask("gzip", "//openapi")
    assert int(contract.headers["Content-Length"]) < 20_000
    # It is kept compressed, and not compressed once more.
    assert contract.headers["Content-Encoding"] == "gzip"
    assert contract.json()["openapi"] == ask("identity", "//openapi").json()["openapi"]
    refused = ask("gzip", "/clusters?search=" + "a" * 3000)
    assert refused.status_code == 400
    assert refused.json()["code"].startswith("HYPERFLEET-VAL")
    assert api.head(path, headers={"Accept-Encoding": "gzip"}).status_code == 200
    known = api.get(path, headers={"Accept-Encoding": "gzip", "If-None-Match": '"1"'})
    assert (known.status_code, known.content) == (304, b"")
    assert "Content-Length" not in known.headers


def test_slow_lists_leave_connections_for_other_requests(
    service: Callable[..., Api], database: str
) -> None:
    api = service(db_pool_size=4, statement_timeout=20)
    cluster = api.cluster()

    def listed(number: int) -> int:
        return Api(api.url).get(f"/clusters/{cluster['id']}/statuses?size={number}").status_code

    with ThreadPoolExecutor(8) as threads, psycopg.connect(database) as conn:
        conn.execute("LOCK TABLE adapter_statuses IN ACCESS EXCLUSIVE MODE")
        waiting = [threads.submit(listed, number) for number in range(1, 9)]
        time.sleep(0.5)
        for number in range(10):
            start = time.monotonic()
            assert api.read(cluster) == cluster
            api.cluster(f"new-{number}")
            assert time.monotonic() - start < 1
        conn.rollback()
        assert {one.result() for one in waiting} <= {200, 503}


def test_a_list_that_gets_no_connection_in_time_gets_503_with_retry_after(
    service: Callable[..., Api], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "POOL_TIMEOUT", 0.1)
    api = service(db_pool_size=2, statement_timeout=20)
    blocked = f"/clusters/{api.cluster()['id']}/statuses"
    waits = "SELECT count(*) FROM pg_locks WHERE relation = 'adapter_statuses'::regclass AND NOT granted"
    with ThreadPoolExecutor(1) as threads, psycopg.connect(database) as conn:
        conn.execute("LOCK TABLE adapter_statuses IN ACCESS EXCLUSIVE MODE")
        first = threads.submit(Api(api.url).get, blocked)
        while conn.execute(waits).fetchone() == (0,):
            time.sleep(0.01)
        answer = api.get("/nodepools")
        assert problem(answer, 503)["code"] == "HYPERFLEET-SVC-002"
        assert answer.headers["Retry-After"]
        conn.rollback()
        assert first.result().status_code == 200
    assert api.get("/nodepools").status_code == 200
