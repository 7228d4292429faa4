"""The database is reachable but cannot work: it is read-only, or out of disk or connections."""

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import requests
from conftest import Api
from own_server import Server, fill, own_server
from process import Serving
from psycopg.conninfo import conninfo_to_dict, make_conninfo

pytestmark = pytest.mark.slow

END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
GONE = f"""{END}
WHERE application_name = 'hyperfleet' AND datname = %(name)s
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with own_server() as server:
        yield server


@pytest.fixture
def serving(database: str) -> Iterator[Serving]:
    with Serving("--no-auth", "--database-url", database) as serving:
        yield serving


def ready(serving: Serving) -> tuple[int, dict[str, object]]:
    answer = requests.get(serving.health + "/readyz", timeout=5)
    return answer.status_code, answer.json()


def create(api: Api, name: str = "c") -> requests.Response:
    return api.post("/clusters", json={"name": f"{name}-{time.monotonic_ns()}", "spec": {}})


def assert_reads_only(api: Api, serving: Serving, cluster: dict[str, object]) -> None:
    path = f"/clusters/{cluster['id']}"
    for _ in range(3):
        for refused in (create(api), api.patch(path, json={"spec": {"a": 1}}), api.report(cluster)):
            assert (refused.status_code, refused.json()["code"]) == (503, "HYPERFLEET-SVC-001")
            assert "read-only" in refused.json()["detail"]
            assert refused.headers["Retry-After"]
        assert api.read(cluster) == cluster
        assert api.get("/clusters").status_code == 200
        assert ready(serving) == (503, {"status": "unavailable", "database": "read-only"})


@pytest.mark.parametrize("asked_meanwhile", [True, False])
def test_a_read_only_database_serves_reads_and_takes_writes_once_it_is_writable_again(
    serving: Serving, sql: psycopg.Connection, asked_meanwhile: bool
) -> None:
    api = Api(serving.url)
    cluster = api.cluster()
    name = psycopg.sql.Identifier(sql.info.dbname)
    switch = psycopg.sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
    sql.execute(switch.format(name, psycopg.sql.SQL("on")))
    sql.execute(GONE, {"name": sql.info.dbname})
    # The client notices that a session has ended once the server's process has exited.
    ended = time.monotonic()
    while "read-only" not in create(api).json()["detail"]:
        assert time.monotonic() - ended < 2
    assert_reads_only(api, serving, cluster)
    sql.execute(switch.format(name, psycopg.sql.SQL("off")))
    back = time.monotonic()
    if asked_meanwhile:
        while create(api).status_code != 201:
            assert time.monotonic() - back < 2
            time.sleep(0.05)
    time.sleep(max(0, back + 2 - time.monotonic()))
    assert [create(api).status_code for _ in range(20)] == [201] * 20
    assert ready(serving)[0] == 200


def test_a_standby_serves_reads_and_takes_writes_once_it_is_promoted(server: Server) -> None:
    with Serving("--no-auth", "--workers=1", "--database-url", server.conninfo) as serving:
        api = Api(serving.url)
        cluster = api.cluster("standing-by")
        fill(server, api)
        (server.files / "standby.signal").touch()
        server.restart("fast")
        try:
            assert server.ask("SELECT pg_is_in_recovery()") == [(True,)]
            assert_reads_only(api, serving, cluster)
        finally:
            assert server.ask("SELECT pg_promote()") == [(True,)]
        promoted = time.monotonic()
        while create(api).status_code != 201:
            assert time.monotonic() - promoted < 2
        assert [create(api).status_code for _ in range(20)] == [201] * 20
        assert ready(serving)[0] == 200


@pytest.mark.parametrize(
    ("sqlstate", "status", "code"),
    [
        ("25006", 503, "HYPERFLEET-SVC-001"),
        ("42704", 503, "HYPERFLEET-SVC-001"),
        ("42P10", 503, "HYPERFLEET-SVC-001"),
        ("53100", 503, "HYPERFLEET-SVC-001"),
        ("53200", 503, "HYPERFLEET-SVC-001"),
        ("53300", 503, "HYPERFLEET-SVC-001"),
        ("57P03", 503, "HYPERFLEET-SVC-001"),
        ("58030", 503, "HYPERFLEET-SVC-001"),
        ("58P01", 503, "HYPERFLEET-SVC-001"),
        ("57014", 503, "HYPERFLEET-SVC-002"),
        ("55P03", 503, "HYPERFLEET-SVC-002"),
        ("55000", 500, "HYPERFLEET-INT-001"),
        ("XX000", 500, "HYPERFLEET-INT-001"),
    ],
)
def test_each_sqlstate_gets_its_own_status_and_code(
    api: Api, sql: psycopg.Connection, sqlstate: str, status: int, code: str
) -> None:
    cluster = api.cluster()
    sql.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$"
        f" BEGIN RAISE EXCEPTION 'no space in /var/lib/secret' USING ERRCODE = '{sqlstate}'; END $$"
    )
    sql.execute(
        "CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON clusters FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    for answer in (create(api), api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": 1}})):
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert "secret" not in answer.text
        if status == 503 and not sqlstate.startswith("57P"):
            assert "not reachable" not in answer.text
    sql.execute("DROP TRIGGER fail ON clusters")
    assert create(api).status_code == 201


@pytest.fixture
def role(sql: psycopg.Connection) -> Iterator[str]:
    """A role of this test, without privileges."""
    name = f"{sql.info.dbname}_role"
    sql.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    yield name
    sql.execute(f"DROP OWNED BY {name} CASCADE")
    sql.execute(f"DROP ROLE {name}")


@pytest.fixture
def theirs(database: str, role: str) -> str:
    """The connection string of that role."""
    return make_conninfo(database, user=role, password="secret")


def assert_refused(api: Api, serving: Serving, why: str) -> None:
    answer = create(api)
    assert (answer.status_code, answer.json()["code"]) == (503, "HYPERFLEET-SVC-001")
    assert "refuses connections" in answer.json()["detail"]
    assert why not in answer.text
    assert ready(serving) == (503, {"status": "unavailable", "database": "refuses connections"})
    assert why in serving.output


def test_a_database_that_admits_no_one_is_reported_as_refusing_connections(server: Server) -> None:
    name = psycopg.sql.Identifier(str(conninfo_to_dict(server.conninfo)["dbname"]))
    allow = psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    admin = make_conninfo(server.conninfo, dbname="template1")
    with (
        Serving("--no-auth", "--workers=1", "--database-url", server.conninfo) as serving,
        psycopg.connect(admin, autocommit=True) as conn,
    ):
        api = Api(serving.url)
        assert create(api).status_code == 201
        conn.execute(allow.format(name, psycopg.sql.SQL("false")))
        conn.execute(GONE, {"name": conninfo_to_dict(server.conninfo)["dbname"]})
        ended = time.monotonic()
        while "refuses connections" not in create(api).json()["detail"]:
            assert time.monotonic() - ended < 2
        assert_refused(api, serving, "not currently accepting connections")
        conn.execute(allow.format(name, psycopg.sql.SQL("true")))
        assert create(api).status_code == 201


def test_a_revoked_privilege_gets_503_and_is_named_in_the_log(
    role: str, theirs: str, sql: psycopg.Connection
) -> None:
    sql.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    with Serving("--no-auth", "--workers=1", "--database-url", theirs) as serving:
        api = Api(serving.url)
        assert create(api).status_code == 201
        sql.execute(f"REVOKE INSERT ON clusters FROM {role}")
        answer = create(api)
        assert (answer.status_code, answer.json()["code"]) == (503, "HYPERFLEET-SVC-001")
        assert "permission" not in answer.text
        assert serving.says("permission denied for table clusters")
        assert api.get("/clusters").json()["total"] == 1
        sql.execute(f"GRANT INSERT ON clusters TO {role}")
        assert create(api).status_code == 201


def take_the_only_connection(sql: psycopg.Connection, theirs: str) -> psycopg.Connection:
    """Takes the service's only connection, which the server needs a moment to free."""
    deadline = time.monotonic() + 10
    while True:
        sql.execute(GONE, {"name": sql.info.dbname})
        try:
            return psycopg.connect(theirs)
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_all_workers_read_a_changed_password_from_the_passfile(tmp_path: Path) -> None:
    def write(password: str) -> None:
        """Swaps a link to the file, as Kubernetes does for mounted Secrets."""
        file = tmp_path / password
        file.write_text(f"*:*:*:changing:{password}\n")
        file.chmod(0o600)
        link = tmp_path / "link"
        link.symlink_to(file)
        link.replace(tmp_path / "passfile")

    with own_server() as server:
        server.ask("CREATE ROLE changing LOGIN PASSWORD 'before'")
        server.ask("GRANT ALL ON ALL TABLES IN SCHEMA public TO changing")
        rules = server.files / "pg_hba.conf"
        rules.write_text("local all changing scram-sha-256\n" + rules.read_text())
        server.ask("SELECT pg_reload_conf()")
        write("before")
        # The embedded server's own values are for clients that need no password.
        own = {"require_auth": "scram-sha-256", "passfile": str(tmp_path / "passfile")}
        theirs = make_conninfo(server.conninfo, user="changing", **own)
        with Serving("--no-auth", "--workers=2", "--database-url", theirs) as serving:
            assert create(Api(serving.url)).status_code == 201
            server.ask("ALTER ROLE changing PASSWORD 'after'")
            # Existing connections stay open.
            assert {create(Api(serving.url)).status_code for _ in range(8)} == {201}
            server.ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'changing'"
            )
            ended = time.monotonic()
            while "refuses connections" not in create(Api(serving.url)).text:
                assert time.monotonic() - ended < 5
            write("after")
            # A connection that failed is retried after a moment.
            time.sleep(1)
            assert {create(Api(serving.url)).status_code for _ in range(8)} == {201}


def test_too_many_connections_get_503_until_there_is_room(
    role: str, theirs: str, sql: psycopg.Connection
) -> None:
    sql.execute(f"ALTER ROLE {role} CONNECTION LIMIT 1")
    sql.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    with Serving("--no-auth", "--workers=1", "--database-url", theirs) as serving:
        api = Api(serving.url)
        assert create(api).status_code == 201
        with take_the_only_connection(sql, theirs):
            assert_refused(api, serving, "too many connections")
        assert create(api).status_code == 201
        assert ready(serving)[0] == 200


def test_a_database_error_is_not_reported_as_an_absent_database(
    role: str, theirs: str, sql: psycopg.Connection
) -> None:
    with Serving("--no-auth", "--workers=1", "--database-url", theirs) as serving:
        assert ready(serving) == (503, {"status": "unavailable", "database": "error"})
        assert serving.says("permission denied")
        assert Api(serving.url).get("/clusters").status_code == 503
        sql.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        assert ready(serving)[0] == 200
