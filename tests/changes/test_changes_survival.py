"""Watchers still have the whole fleet after PostgreSQL and worker processes are killed under load."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Api
from own_server import kill, own_server
from process import Serving
from watchers import Watcher, fleet, news
from writers import WRITERS, writers

pytestmark = pytest.mark.slow

WATCHERS, KILLS = 8, 3


def test_watchers_agree_with_the_lists_after_kills_of_postgresql_and_worker_processes() -> None:
    with (
        own_server() as server,
        Serving("--no-auth", "--workers=2", "--database-url", server.conninfo) as serving,
    ):
        api = Api(serving.url)
        writing = writers(api, serving.url)
        over, silent = threading.Event(), threading.Event()
        watching = [Watcher(serving.url, streams=bool(number % 2)) for number in range(WATCHERS)]
        first, dice = serving.process.pid, random.Random(0)
        with ThreadPoolExecutor(WRITERS + WATCHERS) as threads:
            watched = [threads.submit(one.follow, silent) for one in watching]
            written = [threads.submit(one.write, over) for one in writing]
            for _ in range(KILLS):
                time.sleep(1)
                kill(server.files)
                server.start_again()
                time.sleep(1)
                workers = Path(f"/proc/{first}/task/{first}/children").read_text().split()
                os.kill(int(dice.choice(workers)), signal.SIGKILL)
            time.sleep(1)
            over.set()
            for one in written:
                one.result(30)
            deadline = time.monotonic() + 20
            while api.get("/clusters?size=0").status_code != 200:
                assert time.monotonic() < deadline
            silent.set()
            for one in watched:
                one.result(60)
        expected = news(fleet(api))
        assert len(expected) > WRITERS
        for watcher in watching:
            assert watcher.wrong == []
            assert news(watcher.copy) == expected
            # They listed only once: nothing that a token refers to is lost when a server is killed.
            assert watcher.listed == 1
            assert watcher.told > WRITERS
