"""PostgreSQL is killed in the middle of writes: each acknowledged one is stored, once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from conftest import Api
from own_server import kill, own_server
from process import Serving
from writers import WRITERS, assert_nothing_is_lost, writers

pytestmark = pytest.mark.slow

# At most: each slows the writers down, and the longer they take, the more kills there would be.
KILLS = 8


def test_every_acknowledged_write_survives_kills_of_the_server_and_is_stored_once() -> None:
    with (
        own_server() as server,
        Serving("--no-auth", "--workers=2", "--database-url", server.conninfo) as serving,
    ):
        api = Api(serving.url)
        writing = writers(api, serving.url)
        over = threading.Event()

        def killing() -> int:
            kills = 0
            while not over.wait(1.0) and kills < KILLS:
                kill(server.files)
                kills += 1
                server.start_again()
            return kills

        def scraping() -> float:
            slowest = 0.0
            while not over.wait(0.2):
                began = time.monotonic()
                assert requests.get(serving.metrics, timeout=10).status_code == 200
                slowest = max(slowest, time.monotonic() - began)
            return slowest

        with ThreadPoolExecutor(WRITERS + 2) as threads:
            killer, scraper = threads.submit(killing), threads.submit(scraping)
            asked = [threads.submit(writer.write) for writer in writing]
            try:
                for one in asked:
                    one.result()
            finally:
                over.set()
            assert killer.result() >= 2
            # Less than a second on an idle machine.
            assert scraper.result() < 3
        deadline = time.monotonic() + 10
        while api.get("/clusters?size=0").status_code != 200:
            assert time.monotonic() < deadline

        assert_nothing_is_lost(api, writing)
