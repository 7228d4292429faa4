"""Health endpoints: the checks, maintenance mode, and a start without a database."""

import json
import socket
import subprocess
import time
from pathlib import Path

import psycopg
import pytest
import requests
from conftest import Api
from issuer import KeyServer, key_pair, key_set, self_signed
from older import end_others
from own_server import own_server
from process import CLEAN, HYPERFLEET, Serving, free_port
from psycopg.conninfo import make_conninfo

pytestmark = pytest.mark.slow


def checks(server: Serving) -> tuple[int, dict[str, str]]:
    answer = requests.get(server.health + "/readyz?verbose", timeout=5)
    found = answer.json()["checks"]
    assert all(one["age_seconds"] is None or one["age_seconds"] >= 0 for one in found.values())
    assert (answer.json()["status"] == "ok") == (answer.status_code == 200)
    return answer.status_code, {name: one["state"] for name, one in found.items()}


def test_readyz_verbose_lists_each_check_with_its_state_and_age(
    database: str, sql: psycopg.Connection
) -> None:
    with (
        KeyServer(key_pair()) as keys,
        Serving(
            *("--any-caller", f"--jwk-cert-url={keys.url}", "--jwt-audiences=x"),
            *("--database-url", database, "--host=127.0.0.1"),
        ) as server,
    ):
        good = {
            "draining": "ok",
            "maintenance": "ok",
            "database": "ok",
            "writable": "ok",
            "migrations": "ok",
        }
        assert checks(server) == (200, {**good, f"keys {keys.url}": "not asked yet"})
        Api(server.url).get("/clusters", headers={"Authorization": f"Bearer {key_pair().token()}"})
        assert checks(server) == (200, {**good, f"keys {keys.url}": "ok"})
        time.sleep(0.3)
        found = requests.get(server.health + "/readyz?verbose", timeout=5).json()["checks"]
        assert found["database"]["age_seconds"] > 0.2
        assert 0.2 < found[f"keys {keys.url}"]["age_seconds"] < 30
        name = psycopg.sql.Identifier(sql.info.dbname)
        switch = psycopg.sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on")
        sql.execute(switch.format(name))
        end_others(sql)
        deadline = time.monotonic() + 5
        while checks(server)[1]["writable"] != "read-only":
            assert time.monotonic() < deadline
        assert checks(server) == (
            503,
            {**good, "writable": "read-only", f"keys {keys.url}": "ok"},
        )
        # Nothing is known of a database that cannot be reached.
        with psycopg.connect(make_conninfo(database, dbname="postgres"), autocommit=True) as other:
            allow = psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            other.execute(allow.format(name, psycopg.sql.SQL("false")))
            try:
                end_others(sql)
                code, found = checks(server)
            finally:
                other.execute(allow.format(name, psycopg.sql.SQL("true")))
        assert code == 503
        assert found["database"] not in ("ok", "read-only")
        assert (found["writable"], found["migrations"]) == ("unknown", "unknown")


def test_a_broken_key_file_is_reported_until_it_is_repaired(database: str, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    good = json.dumps(key_set(key_pair()))
    file.write_text(good)
    name = f"keys {file}"
    with Serving(
        *("--jwk-cert-url=", f"--jwk-cert-file={file}", "--host=127.0.0.1"),
        *("--database-url", database),
    ) as server:
        assert checks(server)[1][name] == "ok"
        for text, told in (("{", "the last ones are in force"), (good, "ok")):
            file.write_text(text)
            deadline = time.monotonic() + 5
            while (found := checks(server))[1][name] != told:
                assert time.monotonic() < deadline, found
            assert found[0] == 200
            token = {"Authorization": f"Bearer {key_pair().token()}"}
            assert Api(server.url).get("/clusters", headers=token).status_code == 200


def test_an_operator_can_put_all_workers_into_maintenance_and_back(database: str) -> None:
    with Serving("--no-auth", "--workers=2", "--database-url", database) as server:

        def status(path: str) -> set[int]:
            return {requests.get(server.health + path, timeout=5).status_code for _ in range(12)}

        assert requests.get(server.health + "/healthcheck", timeout=5).json() == {}
        assert requests.post(server.health + "/healthcheck/down", timeout=5).status_code == 200
        assert status("/readyz") == status("/healthcheck") == {503}
        assert status("/healthz") == {200}
        down = requests.get(server.health + "/healthcheck", timeout=5)
        assert down.json() == {"maintenance_status": "maintenance mode"}
        # Requests that still come are served.
        assert Api(server.url).get("/clusters").status_code == 200
        assert checks(server)[1]["maintenance"] == "down"
        assert requests.post(server.health + "/healthcheck/up", timeout=5).status_code == 200
        assert status("/readyz") == status("/healthcheck") == {200}
        assert requests.get(server.health + "/healthcheck/down", timeout=5).status_code == 405


def test_only_local_clients_can_start_maintenance(database: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but that of itself")
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this machine has no address but that of itself")
    arguments = ["--no-auth", "--health-host=0.0.0.0", "--database-url", database]
    # This makes uvicorn trust X-Forwarded-For from anyone.
    with Serving(*arguments, env={"FORWARDED_ALLOW_IPS": "*"}) as server:
        port = server.health.rpartition(":")[2]
        refused = requests.post(f"http://{own}:{port}/healthcheck/down", timeout=5)
        assert refused.status_code == 403
        # Nor may a client that claims to be local.
        for said in ("127.0.0.1", "::1"):
            forged = requests.post(
                f"http://{own}:{port}/healthcheck/down", headers={"X-Forwarded-For": said}, timeout=5
            )
            assert forged.status_code == 403
        assert requests.get(f"http://{own}:{port}/readyz", timeout=5).status_code == 200


def test_a_service_started_without_its_database_stays_alive_and_waits_for_it(
    tmp_path: Path,
) -> None:
    ports = [free_port() for _ in range(3)]
    api, health = (f"http://127.0.0.1:{port}" for port in ports[:2])
    with own_server() as server:
        server.stop()
        names = ("port", "health-port", "metrics-port")
        arguments = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
        process = subprocess.Popen(
            [HYPERFLEET, "serve", "--no-auth", *arguments, "--database-url", server.conninfo],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=CLEAN,
        )
        try:
            wait_for(f"{health}/healthz", 200)
            for _ in range(3):
                assert requests.get(f"{health}/readyz", timeout=5).status_code == 503
                refused = requests.get(f"{api}/api/hyperfleet/v1/clusters", timeout=5)
                assert (refused.status_code, refused.json()["code"]) == (503, "HYPERFLEET-SVC-001")
                assert refused.headers["Retry-After"]
                assert process.poll() is None
            server.start()
            wait_for(f"{health}/readyz", 200)
            assert requests.get(f"{api}/api/hyperfleet/v1/clusters", timeout=5).status_code == 200
        finally:
            process.terminate()
        assert process.wait(20) == 0


def test_without_its_database_a_service_reports_that_over_https_too(tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    ports, away = [free_port() for _ in range(3)], free_port()
    api, health, metrics = (f"https://127.0.0.1:{port}" for port in ports)
    names = ("port", "health-port", "metrics-port")
    arguments = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    arguments += ["--enable-https", "--enable-health-check-https", "--enable-metrics-https"]
    arguments += [f"--https-cert-file={cert}", f"--https-key-file={key}"]
    arguments += [f"--database-url=postgresql://postgres@127.0.0.1:{away}/postgres"]
    process = subprocess.Popen(
        [HYPERFLEET, "serve", "--no-auth", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=CLEAN,
    )
    try:
        wait_for(f"{health}/healthz", 200, verify=str(cert))
        wait_for(f"{metrics}/metrics", 503, verify=str(cert))
        wait_for(f"{api}/api/hyperfleet/v1/clusters", 503, verify=str(cert))
        found = requests.get(f"{health}/readyz?verbose", timeout=5, verify=str(cert))
        assert found.status_code == 503
        assert found.json()["checks"]["database"] == {"state": "not reachable", "age_seconds": None}
    finally:
        process.terminate()
    assert process.wait(20) == 0


def wait_for(url: str, status: int, verify: str | bool = True) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if requests.get(url, timeout=5, verify=verify).status_code == status:
                return
        except requests.ConnectionError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)
