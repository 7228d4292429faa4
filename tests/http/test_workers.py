"""Several worker processes serve together."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
import requests
from conftest import Api
from process import Serving
from small_disk import fill_up, small_disk

pytestmark = pytest.mark.slow


@pytest.fixture
def serving(database: str) -> Iterator[Serving]:
    with Serving("--no-auth", "--workers", "2", "--database-url", database) as server:
        yield server


def workers(server: Serving) -> list[int]:
    """Returns the ids of the worker processes, oldest first."""
    family = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return sorted(map(int, family.split()))


def wait_until_two(server: Serving) -> list[int]:
    deadline = time.monotonic() + 5
    while len(workers(server)) != 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return workers(server)


def started_at(pid: int) -> float:
    """Returns when the process started, in seconds since the machine did."""
    return int(Path(f"/proc/{pid}/stat").read_text().split()[21]) / os.sysconf("SC_CLK_TCK")


def counters_folder(server: Serving) -> Path:
    """Returns the folder with the counters of all processes."""
    open_files = (str(one.readlink()) for one in Path(f"/proc/{server.process.pid}/fd").iterdir())
    return Path(next(one for one in open_files if "hyperfleet-metrics-" in one)).parent


def samples(server: Serving, name: str) -> list[float]:
    lines = requests.get(server.metrics, timeout=5).text.splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]


def test_both_workers_serve_on_one_port_and_are_counted_together(serving: Serving) -> None:
    assert "Workers   2" in serving.output
    api = Api(serving.url)
    cluster = api.cluster()
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda _: Api(serving.url).read(cluster)["id"], range(64)))
    assert set(read) == {cluster["id"]}
    path = 'path="/api/hyperfleet/v1/clusters/-"'
    for _ in range(5):
        metrics = requests.get(serving.metrics, timeout=5).text
        (line,) = re.findall(rf"hyperfleet_api_requests_total{{.*{path}.*}} (\S+)", metrics)
        assert float(line) == 64
    assert samples(serving, "hyperfleet_db_connections_open")[0] >= 4
    assert samples(serving, "process_open_fds")[0] > 20
    for _ in range(6):
        assert requests.get(serving.health + "/readyz", timeout=5).status_code == 200
    # While one is stopped, the other answers; connections to the stopped one wait.
    for pid in workers(serving):
        os.kill(pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(32) as threads:
                answered = [*threads.map(lambda _: answers(serving), range(32))]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert {*answered} == {True, False}


def answers(server: Serving) -> bool:
    """Returns whether a request on a new connection is answered soon."""
    with suppress(requests.Timeout):
        return requests.get(f"{server.url}/api/hyperfleet", timeout=2).ok
    return False


def test_a_scrape_waits_for_a_worker_that_is_just_creating_its_counters(serving: Serving) -> None:
    assert requests.get(serving.metrics, timeout=5).status_code == 200
    begun = counters_folder(serving) / "counter_1.db"
    begun.touch()
    threading.Timer(0.2, begun.unlink).start()
    assert requests.get(serving.metrics, timeout=5).status_code == 200
    assert not begun.exists()


def test_killed_workers_leave_nothing_behind_but_their_counts(serving: Serving) -> None:
    def counted() -> float:
        metrics = requests.get(serving.metrics, timeout=5).text
        (line,) = re.findall(r"hyperfleet_api_requests_total{.*/compatibility.*} (\S+)", metrics)
        return float(line)

    def files() -> int:
        return len(list(counters_folder(serving).glob("*.db")))

    for _ in range(30):
        # Each on a new connection, so that both workers count.
        assert Api(serving.url).get("/compatibility").status_code == 200
    assert counted() == 30
    before = files()
    for _ in range(4):
        killed = wait_until_two(serving)[0]
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while killed in workers(serving):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        wait_until_two(serving)
        while list(counters_folder(serving).glob(f"*_{killed}.db")):
            assert time.monotonic() < deadline
            assert counted() == 30
    assert counted() == 30
    assert samples(serving, "hyperfleet_api_worker_restarts_total") == [4]
    assert files() <= before


def test_workers_serve_even_without_space_for_their_counters(serving: Serving) -> None:
    folder = counters_folder(serving)
    with small_disk(folder, "1m"):
        ballast = fill_up(folder)
        for pid in wait_until_two(serving):
            os.kill(pid, signal.SIGKILL)
        assert serving.says(f"metrics are incomplete: {folder}: No space left on device")
        served = wait_until_two(serving)
        clusters = [Api(serving.url).cluster(f"c{number}") for number in range(16)]
        assert requests.get(serving.metrics, timeout=5).status_code == 200
        assert workers(serving) == served
        ballast.unlink()
        for cluster in clusters:
            Api(serving.url).read(cluster)
        assert sum(samples(serving, "hyperfleet_api_requests_total")) >= 16
        assert samples(serving, "hyperfleet_api_resources{") == [16]
        assert workers(serving) == served


def test_the_next_start_removes_the_counters_of_a_killed_service_and_no_others(
    serving: Serving, database: str
) -> None:
    options = ("--no-auth", "--workers", "2", "--database-url", database)
    killed = Serving(*options)
    left, orphans = counters_folder(killed), wait_until_two(killed)
    killed.process.kill()
    killed.process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in orphans):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with Serving(*options) as following:
        assert not left.exists()
        own = counters_folder(following)
        assert own.exists()
        for server in (serving, following):
            assert samples(server, "hyperfleet_db_connections_open")[0] >= 1
    assert not own.exists()
    assert counters_folder(serving).exists()


def test_counters_stay_while_workers_of_a_killed_service_still_run(
    serving: Serving, database: str
) -> None:
    """Workers may take a while to exit."""
    folder, orphans = counters_folder(serving), wait_until_two(serving)
    for pid in orphans:
        os.kill(pid, signal.SIGSTOP)
    serving.process.kill()
    serving.process.wait()
    with Serving("--no-auth", "--workers", "2", "--database-url", database):
        assert folder.exists()
    for pid in orphans:
        os.kill(pid, signal.SIGCONT)


def test_a_dead_worker_is_replaced_within_a_second_and_only_its_requests_are_lost(
    serving: Serving,
) -> None:
    api = Api(serving.url)
    cluster = api.cluster()
    stop, loaded, failed, served = threading.Event(), threading.Event(), [0], [0]

    def load() -> None:
        while loaded.wait() and not stop.is_set():
            try:
                answer = requests.get(api.url + cluster["href"], timeout=10)
                assert answer.status_code == 200
                served[0] += 1
            except requests.RequestException:
                failed[0] += 1

    def wait_until_served(number: int) -> None:
        deadline = time.monotonic() + 60
        while served[0] < number:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            # A worker that dies sooner than a second after its start is replaced only after a pause.
            time.sleep(1.2)
            before = wait_until_two(serving)
            loaded.set()
            wait_until_served(served[0] + 50)
            killed = time.clock_gettime(time.CLOCK_BOOTTIME)
            os.kill(before[0], signal.SIGKILL)
            deadline = time.monotonic() + 60
            while len(new := {*workers(serving)} - {*before}) != 1:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            # Compare the start time: this test may notice the new worker later.
            assert started_at(new.pop()) - killed < 1
            wait_until_served(served[0] + 100)
            loaded.clear()
    finally:
        stop.set()
        loaded.set()
        for thread in threads:
            thread.join()
    # Requests that the dead workers had accepted are lost; connections in their queues are not.
    assert failed[0] <= 3 * 8
    assert served[0] > 200
    assert serving.output.count("has ended by SIGKILL") == 3
    assert samples(serving, "hyperfleet_db_connections_open")[0] <= 32


def test_sigterm_stops_all_workers_after_the_requests_in_progress(
    serving: Serving, database: str
) -> None:
    api = Api(serving.url)
    clusters = [api.cluster(f"c-{number}") for number in range(16)]
    with ThreadPoolExecutor(16) as threads, psycopg.connect(database) as lock:
        lock.execute("SELECT 1 FROM clusters FOR UPDATE")
        sent = [threads.submit(Api(api.url).report, cluster) for cluster in clusters]
        time.sleep(1)
        serving.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(requests.ConnectionError):
            requests.get(serving.url, timeout=5)
        lock.rollback()
        assert {one.result().status_code for one in sent} == {201}
    assert serving.process.wait(10) == 0
    assert "Traceback" not in serving.output


def test_sighup_reloads_the_schema_in_all_workers(database: str, tmp_path: Path) -> None:
    file = tmp_path / "schema.yaml"
    head = "openapi: 3.0.3\ncomponents: {schemas: {ClusterSpec: {required: ["
    file.write_text(head + "a]}}}\n")
    options = ("--no-auth", "--workers=2", "--database-url", database)
    with Serving(*options, "--openapi-schema-path", str(file)) as server:
        file.write_text(head + "b]}}}\n")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while server.output.count("is in force") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for number in range(12):
            made = Api(server.url).post("/clusters", json={"name": f"n{number}", "spec": {"b": 1}})
            assert made.status_code == 201
        # Also in a worker that replaces another one later.
        os.kill(workers(server)[0], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while server.output.count("is in force") < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for number in range(12, 24):
            made = Api(server.url).post("/clusters", json={"name": f"n{number}", "spec": {"b": 1}})
            assert made.status_code == 201
        assert server.stop() == 0


def test_workers_exit_when_the_process_that_started_them_is_killed(serving: Serving) -> None:
    orphans = wait_until_two(serving)
    serving.process.kill()
    serving.process.wait(5)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in orphans):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(requests.ConnectionError):
        requests.get(serving.url, timeout=5)


def test_workers_finish_their_requests_when_the_process_that_started_them_is_killed(
    serving: Serving, database: str
) -> None:
    api = Api(serving.url)
    cluster = api.cluster()
    with ThreadPoolExecutor(1) as threads, psycopg.connect(database) as lock:
        lock.execute("SELECT 1 FROM clusters FOR UPDATE")
        sent = threads.submit(Api(api.url).report, cluster)
        time.sleep(1)
        serving.process.kill()
        serving.process.wait(5)
        time.sleep(1)
        lock.rollback()
        assert sent.result().status_code == 201


def test_a_worker_that_does_not_stop_in_time_is_killed(database: str) -> None:
    arguments = ("--no-auth", "--workers=2", "--shutdown-timeout=0", "--database-url", database)
    with Serving(*arguments) as server:
        stuck = wait_until_two(server)[0]
        os.kill(stuck, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)
        assert not Path(f"/proc/{stuck}").exists()


def test_a_worker_that_dies_again_and_again_is_not_started_more_than_once_a_second(
    serving: Serving,
) -> None:
    killed: set[int] = set()
    wait_until_two(serving)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        for pid in {*workers(serving)} - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.01)
    assert len(killed) <= 2 * 5


def test_a_worker_that_replaces_another_has_the_log_level_of_the_others(database: str) -> None:
    arguments = ("--no-auth", "--workers=2", "--database-url", database, "--log-level=warning")
    with Serving(*arguments) as server:
        server.process.send_signal(signal.SIGUSR1)
        server.says("log level is now info")
        time.sleep(1.2)
        for pid in wait_until_two(server):
            os.kill(pid, signal.SIGKILL)
        Api(server.url).get("/clusters").raise_for_status()
        assert server.says("GET /api/hyperfleet/v1/clusters 200")


def test_a_port_in_use_is_refused_although_workers_share_theirs(serving: Serving, database: str) -> None:
    port = serving.url.rpartition(":")[2]
    with pytest.raises(AssertionError, match=f"Cannot listen on 127.0.0.1:{port}"):
        Serving("--no-auth", "--workers=2", "--database-url", database, "--port", port)
