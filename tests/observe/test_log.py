"""The log: JSON objects for machines, text for people, and no secrets in either."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from conftest import Api
from issuer import key_pair
from process import CLEAN, HYPERFLEET, Serving, free_port
from small_disk import fill_up, small_disk

from hyperfleet import __version__
from hyperfleet.observe.log import Secrets

pytestmark = pytest.mark.slow


class Logging(Serving):
    """A service that logs JSON, as it does if its output is not a terminal."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        super().__init__(*arguments, env={"HYPERFLEET_LOG_FORMAT": "", **(env or {})})

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def address(self, name: str) -> str:
        return next(event[name.lower()] for event in self.events if "api" in event)

    def last(self, **members: Any) -> dict[str, Any]:
        """Returns the newest event with these members; waits for it."""
        deadline = time.monotonic() + 5
        while True:
            for event in reversed(self.events):
                if members.items() <= event.items():
                    return event
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)


def test_a_failure_to_fetch_keys_is_logged_with_the_request_that_needed_them(database: str) -> None:
    with Logging("--jwk-cert-url=http://127.0.0.1:1/keys", "--database-url", database) as server:
        headers = {"X-Request-ID": "mine", "Authorization": f"Bearer {key_pair().token()}"}
        assert Api(server.url).get("/clusters", headers=headers).status_code == 503
        server.last(request_id="mine", logger="hyperfleet.auth.keys", level="warning")


def test_a_request_is_logged_as_one_json_object_with_all_its_fields(database: str) -> None:
    with Logging("--no-auth", "--database-url", database) as server:
        api = Api(server.url)
        trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
        answer = api.get(
            "/clusters/01950000-0000-7000-8000-000000000000?fields=name",
            headers={
                "X-Request-ID": "mine",
                "traceparent": f"00-{trace}-{parent}-01",
                "User-Agent": 'curl"\u00e9\\',
            },
        )
        event = server.last(request_id="mine")
        moment = datetime.fromisoformat(event.pop("timestamp"))
        assert moment.tzinfo is not None
        assert abs(moment.timestamp() - time.time()) < 60
        assert 0 < event.pop("duration_ms") < 5000
        assert event.pop("message").startswith("GET /api/hyperfleet/v1/clusters/01950000-")
        assert event == {
            "level": "info",
            "logger": "hyperfleet.request",
            "component": "api",
            "version": __version__,
            "hostname": os.uname().nodename,
            "request_id": "mine",
            "trace_id": trace,
            "span_id": parent,
            "method": "GET",
            "path": "/api/hyperfleet/v1/clusters/-",
            "status": 404,
            "code": "HYPERFLEET-NTF-001",
            "bytes": len(answer.content),
            "client": "127.0.0.1",
            "user_agent": 'curl"\u00e9\\',
        }
        assert answer.json()["code"] == "HYPERFLEET-NTF-001"
        cluster = api.cluster()
        api.report(cluster, observed_generation=7)
        discarded = server.last(reason="generation-ahead-of-resource")
        assert (discarded["kind"], discarded["id"], discarded["adapter"]) == (
            "Cluster",
            cluster["id"],
            "dns",
        )
        api.delete(f"/clusters/{cluster['id']}")
        api.report(cluster, observed_generation=2, conditions=[{"type": "Finalized", "status": "True"}])
        assert server.last(reason="finalized")["id"] == cluster["id"]


def test_the_duration_of_a_request_does_not_include_its_wait_for_changes(database: str) -> None:
    with Logging("--no-auth", "--database-url", database) as server:
        Api(server.url).get("/changes?wait=3", headers={"X-Request-ID": "mine"}).raise_for_status()
        assert server.last(request_id="mine", status=200)["duration_ms"] < 2500


def test_a_cluster_removed_with_its_last_node_pool_is_logged_too(database: str) -> None:
    with Logging("--no-auth", "--database-url", database) as server:
        api = Api(server.url)
        finalized = [{"type": "Finalized", "status": "True"}]
        for name, force in (("one", False), ("two", True)):
            cluster = api.cluster(name)
            pool = api.node_pool(cluster)
            path = f"/clusters/{cluster['id']}"
            api.report(cluster)
            api.report(pool)
            api.delete(path).raise_for_status()
            api.report(cluster, observed_generation=2, conditions=finalized).raise_for_status()
            if force:
                by_force = f"{path}/nodepools/{pool['id']}/force-delete"
                api.post(by_force, json={"reason": "lost"}).raise_for_status()
            else:
                api.report(pool, observed_generation=2, conditions=finalized).raise_for_status()
            assert server.last(id=pool["id"], kind="NodePool", reason="lost" if force else "finalized")
            assert server.last(id=cluster["id"], kind="Cluster", reason="finalized")
            assert api.get(path).status_code == 404


def test_no_line_contains_a_secret_a_spec_or_a_search(database: str) -> None:
    with Logging("--no-auth", "--database-url", database, "--log-level=debug") as server:
        api = Api(server.url)
        api.cluster("one", spec={"hidden": "sesame-1"}, labels={"l": "sesame-2"})
        api.get("/clusters", params={"search": "name = 'sesame-3'"})
        api.get("/clusters?search=name='sesame-4")
        api.get("/clusters", headers={"Authorization": "Bearer sesame-5.sesame-5.sesame-5"})
        api.post("/clusters", json={"name": "two", "spec": {}, "password": "sesame-6"})
        api.post("/clusters", json={"name": "sesame\n7", "spec": {}})
        api.get("/clusters/%0Asesame\n8")
        server.last(status=201)
        time.sleep(0.2)
        agent = {"User-Agent": "curl token=sesame-8 Bearer sesame-9.sesame-9.sesame-9"}
        api.get("/clusters", headers=agent)
        api.get("/clusters&access_token=sesame-9")
        server.last(status=404, method="GET", path="unknown")
        for number in (*range(1, 7), 8, 9):
            assert f"sesame-{number}" not in server.output
        # Each line is an object, so no client has forged one.
        assert all(event["message"] for event in server.events)


def test_values_named_like_secrets_are_hidden_in_any_notation() -> None:
    secrets = Secrets(("password", "token"))
    for text in (
        "password=sesame",
        "PASSWORD: sesame",
        'db_password="sesame and more"',
        "{'access_token': 'sesame'}",
        "Authorization: Bearer sesame.sesame.sesame.sesame",
        "host=x password=sesame port=1",
    ):
        assert "sesame" not in secrets.hide(text), text
    assert secrets.hide("host=x password=y port=1") == "host=x password=*** port=1"
    assert secrets.value("ocm_token", "x") == "***"
    assert secrets.hide("tokens of this issuer are accepted") == "tokens of this issuer are accepted"


# Logs as the service does, and waits for a line before each but the first of its statements.
LOGS = """
import logging, sys
from hyperfleet.observe import log
log.configure("info", sys.argv[1], ("password",), sys.stdout)
for statement in sys.argv[2:]:
    exec(statement)
    print("done", file=sys.stderr, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_each_event_is_one_line_without_secrets_in_both_formats(form: str) -> None:
    command = [sys.executable, "-c", LOGS, form, r"logging.error('a\nb\rc password=sesame d')"]
    done = subprocess.run(command, capture_output=True, text=True, input="\n", check=True, env=CLEAN)
    [line] = done.stdout.splitlines()
    assert "a\\nb\\rc password=*** d" in line


def test_a_line_that_was_cut_off_is_ended_and_counts_as_lost() -> None:
    reading, writing = os.pipe()
    # The seventh does not fit into the pipe, which holds 64 kB.
    statements = ["for _ in range(10): logging.error('x' * 10_000)", "logging.error('after')"]
    process = subprocess.Popen(
        [sys.executable, "-c", LOGS, "json", *statements],
        **{"stdout": writing, "stdin": subprocess.PIPE, "stderr": subprocess.PIPE},
        **{"text": True, "env": CLEAN},
    )
    os.close(writing)
    with process, os.fdopen(reading) as output:
        assert process.stderr and process.stdin
        assert process.stderr.readline() == "done\n"
        text = os.read(reading, 1 << 17).decode()
        process.stdin.write("\n\n")
        process.stdin.close()
        lines = (text + output.read()).splitlines()
    assert [json.loads(line)["message"] for line in lines[:6] + lines[7:]] == [
        *["x" * 10_000] * 6,
        "4 lines were lost: nobody read them",
        "after",
    ]


def test_libraries_log_warnings_only_at_each_level_that_shows_them() -> None:
    say = "[logging.getLogger('asyncio').{}('of %s', log.logging.root.level) for _ in '.']"
    statements = [
        *("log.change_level(-5)", say.format("warning"), "log.change_level(5)", say.format("info")),
        *(say.format("warning"), "log.change_level(-1)", say.format("warning")),
    ]
    command = [sys.executable, "-c", LOGS, "json", *statements]
    done = subprocess.run(command, capture_output=True, text=True, input="\n" * 7, check=True, env=CLEAN)
    said = [json.loads(line)["message"] for line in done.stdout.splitlines()]
    assert said == [
        *("the log level is now error", "the log level is now debug", "of 10"),
        *("the log level is now info", "of 20"),
    ]


def test_slow_statements_are_logged_by_name_and_sampling_never_omits_errors(
    database: str, sql: psycopg.Connection
) -> None:
    arguments = ["--no-auth", "--database-url", database, "--slow-statement=0.2", "--access-log=0"]
    with Logging(*arguments) as server:
        api = Api(server.url)
        cluster = api.cluster()
        for _ in range(20):
            api.get("/clusters").raise_for_status()
        api.get("/nothing")
        assert server.last(status=404)
        assert not [event for event in server.events if event.get("status", 500) < 400]
        with sql.transaction():
            sql.execute("LOCK TABLE clusters")
            asked = threading.Thread(target=Api(api.url).read, args=(cluster,))
            asked.start()
            time.sleep(0.5)
        asked.join()
        slow = server.last(statement="clusters_read")
        assert slow["level"] == "warning"
        assert "0." in slow["message"]


@pytest.mark.parametrize("count", [1, 2])
def test_signals_change_the_log_level_of_all_workers(database: str, count: int) -> None:
    arguments = ["--no-auth", "--database-url", database, f"--workers={count}", "--log-level=warning"]
    with Logging(*arguments) as server:
        Api(server.url).get("/clusters").raise_for_status()
        server.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 5
        while len([e for e in server.events if "log level is now info" in e["message"]]) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        before = len(server.events)
        for _ in range(16):
            Api(server.url).get("/clusters").raise_for_status()
        while len(server.events) < before + 16:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for _ in range(2):
            server.process.send_signal(signal.SIGUSR2)
            time.sleep(0.3)
        before = len(server.events)
        for _ in range(8):
            Api(server.url).get("/clusters").raise_for_status()
        # Lines are written after the response; once the service has stopped, all are there.
        server.stop()
        assert not [e for e in server.events[before:] if e["logger"] == "hyperfleet.request"]


def test_text_is_written_on_a_terminal(database: str) -> None:
    master, terminal = os.openpty()
    process = subprocess.Popen(
        [
            *(HYPERFLEET, "serve", "--no-auth", "--port=0", "--health-port=0", "--metrics-port=0"),
            *("--database-url", database),
        ],
        stdout=terminal,
        env=CLEAN,
    )
    os.close(terminal)
    text = b""
    while b"Access" not in text:
        text += os.read(master, 65536)
    process.terminate()
    assert process.wait(20) == 0
    os.close(master)
    assert text.startswith(b"HyperFleet API ")


def test_text_is_written_if_log_format_is_text(database: str) -> None:
    with Serving("--no-auth", "--database-url", database, "--log-format=text") as server:
        assert server.output.startswith("HyperFleet API ")
        Api(server.url).get("/clusters").raise_for_status()
        deadline = time.monotonic() + 5
        while " INFO hyperfleet.request [" not in server.output:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("count", [1, 2])
def test_a_stalled_log_reader_blocks_no_one_and_learns_that_lines_were_lost(
    database: str, count: int
) -> None:
    reading, writing = os.pipe()
    port = free_port()
    process = subprocess.Popen(
        [
            *(HYPERFLEET, "serve", "--no-auth", f"--port={port}", "--health-port=0", "--metrics-port=0"),
            *("--database-url", database, f"--workers={count}"),
        ],
        stdout=writing,
        env=CLEAN,
    )
    os.close(writing)
    try:
        api = Api(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 30
        while True:
            try:
                api.get("/compatibility")
                break
            except requests.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        # About 300 kB of lines, into a pipe that holds 64.
        for _ in range(800):
            assert api.get("/compatibility", timeout=5).status_code == 200
        text = b""
        os.set_blocking(reading, False)
        deadline = time.monotonic() + 5
        while b"lines were lost" not in text:
            assert time.monotonic() < deadline
            try:
                text += os.read(reading, 1 << 20)
            except BlockingIOError:
                # The next line that is logged brings the message.
                Api(api.url).get("/compatibility")
        assert all(json.loads(line) for line in text.splitlines()[:-1])
    finally:
        process.terminate()
        os.close(reading)
    assert process.wait(20) == 0


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_full_disk_under_the_log_blocks_no_one_and_lost_lines_are_reported_later(
    database: str, tmp_path: Path, form: str
) -> None:
    port, errors = free_port(), tmp_path / "errors"
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", "64k"):
        ballast, lines = fill_up(tmp_path / "disk"), tmp_path / "disk" / "log"
        with lines.open("a") as output, errors.open("w") as beside:
            process = subprocess.Popen(
                [
                    *(HYPERFLEET, "serve", "--no-auth", f"--port={port}", f"--log-format={form}"),
                    *("--health-port=0", "--metrics-port=0", "--workers=2", "--database-url", database),
                ],
                stdout=output,
                stderr=beside,
                env=CLEAN,
            )
        try:
            api = Api(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + 90
            while True:
                try:
                    # A request is logged before the next one on its connection gets its response.
                    for _ in range(3):
                        api.get("/clusters").raise_for_status()
                    break
                except requests.ConnectionError:
                    assert time.monotonic() < deadline and process.poll() is None, errors.read_text()
                    time.sleep(0.05)
            ballast.unlink()
            deadline = time.monotonic() + 20
            while "lines were lost: they could not be written" not in lines.read_text():
                assert time.monotonic() < deadline
                api.get("/clusters").raise_for_status()
            assert errors.read_text() == ""
        finally:
            process.terminate()
            process.wait(20)
