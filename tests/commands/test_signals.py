"""Signals under load lose no request; SIGHUP and SIGTERM end what they should, and nothing else."""

import fcntl
import os
import shlex
import signal
import socket
import ssl
import subprocess
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import requests
from conftest import Api
from issuer import self_signed
from process import CLEAN, HYPERFLEET, Serving

pytestmark = pytest.mark.slow

HEAD = "openapi: 3.0.3\ncomponents: {schemas: {ClusterSpec: {required: ["


def test_sigterm_loses_none_of_two_hundred_requests_in_flight(
    database: str, sql: psycopg.Connection
) -> None:
    with Serving("--no-auth", "--workers=2", "--database-url", database) as server:
        sessions = [Api(server.url) for _ in range(200)]
        for one in sessions:
            assert one.get("/compatibility").status_code == 200

        def write(number: int) -> int:
            body = {"name": f"c{number}", "spec": {}}
            return sessions[number].post("/clusters", json=body).status_code

        with ThreadPoolExecutor(200) as threads:
            with sql.transaction():
                sql.execute("LOCK TABLE clusters")
                sent = [threads.submit(write, number) for number in range(200)]
                wait_until_in_flight(server, 200)
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            assert {one.result() for one in sent} == {201}
        assert server.process.wait(10) == 0
    assert sql.execute("SELECT count(*) FROM clusters").fetchone() == (200,)


def test_a_client_connecting_during_sigterm_is_answered_and_does_not_delay_the_exit(
    database: str, sql: psycopg.Connection, tmp_path: Path
) -> None:
    """The TLS handshake follows the signal; without TLS, the connection would have to meet it."""
    cert, key = self_signed(tmp_path)
    options: tuple[str, ...] = ("--enable-https", f"--https-cert-file={cert}", f"--https-key-file={key}")
    options += (
        "--no-auth",
        "--database-url",
        database,
        "--statement-timeout=30",
        "--request-timeout=30",
    )
    with Serving(*options) as server:
        api, where = Api(server.url), urlsplit(server.url)
        api.verify = str(cert)
        context = ssl.create_default_context(cafile=str(cert))
        place = (where.hostname, where.port)
        with (
            ThreadPoolExecutor(1) as threads,
            socket.create_connection(place, 20) as used,
            socket.create_connection(place, 20) as idle,
        ):
            with sql.transaction():
                sql.execute("LOCK TABLE clusters")
                sent = threads.submit(api.post, "/clusters", json={"name": "c1", "spec": {}})
                wait_until_in_flight(server, 1)
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
                with (
                    context.wrap_socket(used, server_hostname=where.hostname) as first,
                    context.wrap_socket(idle, server_hostname=where.hostname) as second,
                ):
                    first.sendall(b"GET /api/hyperfleet HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    answer = b"".join(iter(lambda: first.recv(65536), b""))
                    assert answer.startswith(b"HTTP/1.1 200")
                    assert b"\r\nconnection: close\r\n" in answer.lower()
                    assert second.recv(1) == b""
            assert sent.result().status_code == 201
        assert server.process.wait(10) == 0


def in_flight(server: Serving) -> float:
    lines = requests.get(server.metrics, timeout=5).text.splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("hyperfleet_api_requests_in_flight{")
    )


def wait_until_in_flight(server: Serving, count: int) -> None:
    deadline = time.monotonic() + 10
    while in_flight(server) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_sighup_under_load_loses_no_request_and_applies_to_all_that_follow(
    database: str, tmp_path: Path
) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text(HEAD + "a]}}}\n")
    arguments = ["--no-auth", "--workers=2", "--database-url", database]
    with Serving(*arguments, "--openapi-schema-path", str(file)) as server:
        over = threading.Event()
        statuses: list[set[int]] = [set() for _ in range(8)]

        def write(number: int) -> None:
            api, step = Api(server.url), 0
            while not over.is_set():
                step += 1
                # Valid under both schemas.
                body = {"name": f"w{number}-{step}", "spec": {"a": 1, "b": 1}}
                statuses[number].add(api.post("/clusters", json=body).status_code)
                # Leaves time for the worker processes to read the file.
                time.sleep(0.05)

        with ThreadPoolExecutor(8) as threads:
            writing = [threads.submit(write, number) for number in range(8)]
            for letter in "babab":
                file.write_text(f"{HEAD}{letter}]}}}}}}\n")
                before = server.output.count("is in force")
                server.process.send_signal(signal.SIGHUP)
                deadline = time.monotonic() + 20
                while server.output.count("is in force") < before + 2:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            over.set()
            for one in writing:
                one.result()
        assert set().union(*statuses) == {201}
        for number in range(8):
            refused = Api(server.url).post("/clusters", json={"name": f"n{number}", "spec": {"a": 1}})
            assert refused.status_code == 400
        assert server.stop() == 0


def _kill(group: int) -> None:
    """Kills what is left of a group of processes."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@pytest.mark.parametrize(
    ("how", "ends"),
    [
        ("{}; true", True),
        ("trap '' HUP; {}; true", False),
        ("set -m; {} & wait; true", False),
        # In a script, the service shares its process group, which keeps the terminal until it ends.
        ("{} & wait; true", False),
    ],
)
def test_closing_the_terminal_ends_the_service_unless_it_is_meant_to_stay(
    database: str, how: str, ends: bool, request: pytest.FixtureRequest
) -> None:
    def log_in() -> None:
        """Gives the shell the terminal, and the signals that the tests may be ignoring."""
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    mine, theirs = os.openpty()
    options = ["--no-auth", "--workers=2", "--port=0", "--health-port=0", "--metrics-port=0"]
    command = [HYPERFLEET, "serve", *options, "--database-url", database]
    shell = subprocess.Popen(
        ["/bin/sh", "-c", how.format(shlex.join(command))],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=CLEAN,
        start_new_session=True,
        preexec_fn=log_in,  # noqa: PLW1509 (no lock is taken)
    )
    request.addfinalizer(partial(_kill, shell.pid))
    os.close(theirs)
    told = b""
    while b"Access" not in told:
        told += os.read(mine, 1 << 12)
    address = told.decode().partition("API")[2].split()[2].removesuffix("/api/hyperfleet/v1")
    [served] = psutil.Process(shell.pid).children()
    workers = served.children()
    os.kill(served.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert requests.get(f"{address}/api/hyperfleet", timeout=5).status_code == 200
    os.close(mine)
    left = psutil.wait_procs([served, *workers], 10 if ends else 2)[1]
    assert (left == []) == ends
    if not ends:
        os.kill(served.pid, signal.SIGHUP)
        time.sleep(0.5)
        assert requests.get(f"{address}/api/hyperfleet", timeout=5).status_code == 200
        served.terminate()
        assert psutil.wait_procs(left, 10)[1] == []
    shell.wait(10)


def test_sigterm_ends_a_command_that_runs_as_pid_1() -> None:
    first = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*first, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a PID namespace needs root")
    words = [*first, HYPERFLEET, "watch", "--url=http://127.0.0.1:1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "no answer" in process.stderr.readline()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children), signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM
        finally:
            process.kill()
