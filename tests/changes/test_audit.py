"""The audit: which writes and rejections it records, how it is searched, and who can read it."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
import uvloop
from alike import BOTH_KINDS, at, create, delete, finalize, patch
from conftest import Api
from helpers_contract import NO_ID, check, problem
from issuer import Answer, JsonServer, change, key_pair, key_set
from process import Serving
from prometheus_client import CollectorRegistry

from hyperfleet import __version__
from hyperfleet.contract import document
from hyperfleet.database.pool import new_pool
from hyperfleet.observe import refusals as observe
from hyperfleet.observe.refusals import OF_ONE, Refusals, Refused

Json = dict[str, Any]
SYSTEM = "system@hyperfleet.local"


@pytest.fixture
def waiting(service: Callable[..., Api]) -> Api:
    """A service of the test's own, since each process records only some rejections per minute."""
    return service(required_adapters_cluster=("dns",), required_adapters_nodepool=("np",))


def audit(api: Api, search: str = "", **more: str) -> list[Json]:
    """The records, oldest first."""
    params = {"order": "asc", **({"search": search} if search else {}), **more}
    items: list[Json] = check(api.get("/audit", params=params))["items"]
    return items


def refusals(api: Api, count: int, search: str = "status>=400") -> list[Json]:
    """The rejected writes, which are recorded after the response."""
    end = time.monotonic() + 10
    while len(found := audit(api, search)) < count and time.monotonic() < end:
        time.sleep(0.02)
    assert len(found) == count, found
    return found


@BOTH_KINDS
def test_each_write_is_recorded_with_its_caller_and_its_request(waiting: Api, kind: str) -> None:
    api, one = waiting, create(waiting, kind)
    path = one["href"]
    check(patch(api, one, {"spec": {"n": 1}}, **{"X-Request-ID": "patch-1"}))
    body = {"generation": 1, "reason": "It was better."}
    check(api.post(at(one, "/rollback"), json=body, headers={"X-Request-ID": "back-1"}))
    check(api.delete(at(one), headers={"X-Request-ID": "delete-1"}), 202)
    last = api.read(one)
    reason = {"reason": "stuck"}
    check(api.post(at(one, "/force-delete"), json=reason, headers={"X-Request-ID": "force-1"}), 204)
    found = audit(api, f"id='{one['id']}'")
    assert [(r["action"], r["generation"], r["method"], r["path"]) for r in found] == [
        ("create", 1, "POST", path.rpartition("/")[0]),
        ("patch", 2, "PATCH", path),
        ("rollback", 3, "POST", f"{path}/rollback"),
        ("delete", 4, "DELETE", path),
        ("force-delete", 4, "POST", f"{path}/force-delete"),
    ]
    assert [r["request"] for r in found[1:]] == ["patch-1", "back-1", "delete-1", "force-1"]
    assert [r.get("reason") for r in found] == [
        *(None, None, "back to generation 1: It was better.", None, "stuck")
    ]
    assert {(r["by"], r["kind"], r["name"]) for r in found} == {(SYSTEM, kind, "one")}
    assert not any("status" in r or "code" in r for r in found)
    assert [r.get("resource") for r in found] == [None, None, None, None, last]


def test_the_end_of_a_deletion_is_recorded_with_the_last_state_of_the_resource(waiting: Api) -> None:
    cluster = waiting.cluster()
    pool = waiting.node_pool(cluster)
    delete(waiting, cluster)
    last = {one["id"]: waiting.read(one) for one in (cluster, pool)}
    check(finalize(waiting, cluster, 2, "dns"), 201)
    check(finalize(waiting, pool, 2, "np"), 201)
    found = audit(waiting, "action in ('delete', 'remove')")
    assert [(r["action"], r["kind"]) for r in found] == [
        *(("delete", "NodePool"), ("delete", "Cluster"), ("remove", "NodePool"), ("remove", "Cluster"))
    ]
    assert len({r["request"] for r in found[:2]}) == len({r["request"] for r in found[2:]}) == 1
    for record in found[2:]:
        gone, was = record["resource"], last[record["id"]]
        assert (gone["spec"], gone["generation"], gone["deleted_by"]) == (was["spec"], 2, SYSTEM)
        assert (record["name"], record["generation"]) == (was["name"], 2)
        assert record["reason"] == "finalized"


def test_an_immediate_removal_is_recorded_too(api: Api) -> None:
    cluster = api.cluster()
    pool = api.node_pool(cluster)
    delete(api, cluster)
    found = audit(api, "action!='create'")
    assert [(r["action"], r["id"]) for r in found] == [
        *(("remove", pool["id"]), ("delete", cluster["id"]), ("remove", cluster["id"]))
    ]


def test_writes_that_change_nothing_and_reports_are_not_recorded(api: Api) -> None:
    key = {"Idempotency-Key": "once"}
    for _ in range(2):
        body = {"name": "c1", "spec": {"n": 1}}
        check(api.post("/clusters", json=body, headers=key), 201)
    (cluster,) = check(api.get("/clusters"))["items"]
    check(patch(api, cluster, {"spec": {"n": 1}}))
    check(api.post(at(cluster, "/rollback"), json={"generation": 1}))
    assert api.report(cluster).status_code == 201
    assert api.put(at(cluster, "/statuses"), json={}).status_code == 400
    assert api.get("/clusters?page=0").status_code == 400
    check(api.post("/clusters", json={"name": "c2", "spec": {}}), 201)
    assert [(r["action"], r["name"]) for r in audit(api)] == [("create", "c1"), ("create", "c2")]
    assert refusals(api, 0) == []


def test_concurrent_creations_each_have_their_own_record(api: Api) -> None:
    # Creations at the same time share a statement.
    def make(number: int) -> str:
        body, mine = {"name": f"c{number}", "spec": {}}, {"X-Request-ID": f"request-{number}"}
        made = Api(api.url).post("/clusters", json=body, headers=mine)
        return str(check(made, 201)["id"])

    with ThreadPoolExecutor(8) as threads:
        ids = [*threads.map(make, range(40))]
    found = {r["request"]: (r["id"], r["name"]) for r in audit(api)}
    assert found == {f"request-{n}": (id_, f"c{n}") for n, id_ in enumerate(ids)}


def test_rejected_writes_are_recorded_with_status_and_code(waiting: Api) -> None:
    api, cluster = waiting, waiting.cluster()
    pool = api.node_pool(cluster)
    check(api.delete(at(pool)), 202)
    named = {"X-Request-ID": "refused"}
    tries: list[tuple[requests.Response, str, str, str | None, str]] = [
        (
            api.post("/clusters", json={"name": "c1", "spec": {}}, headers=named),
            *("create", "Cluster", None, "HYPERFLEET-CNF-001"),
        ),
        (api.post("/clusters", json={"name": "X"}), "create", "Cluster", None, ""),
        (
            patch(api, cluster, {"spec": {}}, **{"If-Match": '"9"'}),
            *("patch", "Cluster", cluster["id"], "HYPERFLEET-CNF-002"),
        ),
        (api.delete(f"/clusters/{NO_ID}"), "delete", "Cluster", NO_ID, "HYPERFLEET-NTF-001"),
        (api.delete("/clusters/strange"), "delete", "Cluster", None, "HYPERFLEET-NTF-001"),
        (
            api.post(at(cluster, "/force-delete"), json={"reason": "x"}),
            *("force-delete", "Cluster", cluster["id"], "HYPERFLEET-CNF-003"),
        ),
        (
            api.post(f"/nodepools/{pool['id']}/rollback", json={"generation": 1}),
            *("rollback", "NodePool", pool["id"], "HYPERFLEET-CNF-003"),
        ),
        (
            api.patch(f"/resources/{cluster['id']}", data="{"),
            *("patch", "Resource", cluster["id"], "HYPERFLEET-VAL-006"),
        ),
    ]
    found = refusals(api, len(tries))
    for record, (answer, action, kind, id_, code) in zip(found, tries, strict=True):
        assert record["status"] == answer.status_code
        assert record["code"] == answer.json()["code"]
        assert not code or record["code"] == code
        assert (record["action"], record["kind"], record.get("id")) == (action, kind, id_)
        assert (record["by"], record["method"]) == (SYSTEM, answer.request.method)
        assert record["request"] == answer.headers["X-Request-ID"]
        assert answer.url.endswith(record["path"])
    assert found[0]["request"] == "refused"


@pytest.mark.slow
def test_a_flood_of_rejections_is_cut_off_and_counted(database: str) -> None:
    with Serving("--no-auth", f"--database-url={database}") as serving:
        api = Api(serving.url)
        for number in range(OF_ONE + 15):
            problem(api.delete("/clusters/strange", headers={"X-Request-ID": f"{number}"}), 404)
        found = refusals(api, OF_ONE)
        assert [r["request"] for r in found] == [f"{n}" for n in range(OF_ONE)]
        shown = requests.get(serving.metrics, timeout=10).text
        (line,) = [one for one in shown.splitlines() if one.startswith("hyperfleet_audit_dropped_total")]
        assert float(line.rpartition(" ")[2]) == 15
        # Successful writes are still recorded.
        api.cluster("done")
        assert audit(api, "name='done'")[0]["action"] == "create"


def test_rejections_of_many_callers_are_limited_together(database: str, sql: psycopg.Connection) -> None:
    registry, path = CollectorRegistry(), "/api/hyperfleet/v1/clusters"

    def rejected(by: str, request: str) -> Refused:
        return Refused("POST", path, path + "/" * 600, 400, "HYPERFLEET-VAL-000", by, request)

    async def main() -> None:
        async with new_pool(database, 1) as pool:
            records = Refusals(pool, document.load(), registry, "")
            for number in range(320):
                records.saw(rejected(f"caller-{number % 16}", str(number)))
                if number == 160:
                    # Those stored already count as well.
                    await asyncio.sleep(0.3)
            while records.storing:
                await asyncio.sleep(0.05)
            # A minute later, they are recorded again, and no more of them than before.
            records.since -= 61
            for _ in range(25):
                records.saw(rejected("caller-0", "later"))
            while records.storing:
                await asyncio.sleep(0.05)

            # The service's own failures reject nothing.
            records.saw(rejected("caller-0", "failed")._replace(status=503))
            # What cannot be stored is counted.
            sql.execute("ALTER TABLE audit RENAME TO audit_elsewhere")
            for number in range(3):
                records.saw(rejected("caller-1", f"lost-{number}"))
            while records.storing:
                await asyncio.sleep(0.05)
            sql.execute("ALTER TABLE audit_elsewhere RENAME TO audit")

    uvloop.run(main())
    assert sql.execute("SELECT count(*) FROM audit").fetchone() == (320,)
    last = sql.execute("SELECT actor, length(path) FROM audit WHERE request = 'later'").fetchone()
    assert last == ("caller-0", 500)
    labels = {"component": "api", "version": __version__}
    assert registry.get_sample_value("hyperfleet_audit_dropped_total", labels) == 28


def test_the_audit_is_paged_searched_and_ordered_like_other_lists(api: Api) -> None:
    made = [api.cluster(f"c{number}") for number in range(5)]
    check(patch(api, made[0], {"spec": {"n": 1}}))
    page = check(api.get("/audit?size=4"))
    assert [r["name"] for r in page["items"]] == ["c0", "c4", "c3", "c2"]
    assert "total" not in page
    rest = check(api.get(f"//{page['next'].removeprefix('/')}"))
    assert [r["name"] for r in rest["items"]] == ["c1", "c0"]
    assert "next" not in rest
    assert check(api.get("/audit?total=exact&size=1"))["total"] == 6
    assert check(api.get("/audit?total=exact&size=0&search=action='patch'"))["total"] == 1
    ordered = check(api.get("/audit?orderBy=name desc,time"))["items"]
    assert [r["name"] for r in ordered] == ["c4", "c3", "c2", "c1", "c0", "c0"]
    moment = page["items"][0]["time"]
    for search, count in {
        f"time>='{moment}'": 1,
        f"time<'{moment}'": 5,
        f"by='{SYSTEM}' and kind='Cluster'": 6,
        "kind='NodePool'": 0,
        f"id='{made[0]['id']}'": 2,
        "name like 'c%' and generation=2": 1,
        f"request='{page['items'][0]['request']}'": 1,
        "method='PATCH'": 1,
        "status=404": 0,
    }.items():
        assert len(audit(api, search)) == count, search
    shown = check(api.get("/audit?fields=by,action&size=1"))["items"]
    assert [one.keys() for one in shown] == [{"record", "by", "action"}]
    tag = api.get("/audit").headers["ETag"]
    assert api.get("/audit", headers={"If-None-Match": tag}).status_code == 304
    found = problem(api.get("/audit?search=unheard='1'"), 400, "search")
    assert "use a field such as record or time" in found["detail"]
    problem(api.get("/audit?search=labels.a='1'"), 400, "search")
    problem(api.get("/audit?orderBy=spec.a"), 400, "orderBy")
    problem(api.get("/audit?fields=spec"), 400, "fields")
    problem(api.get("/audit?continue=x"), 400, "continue")
    problem(api.get("/audit?total=some"), 400, "total")


def test_records_without_the_newer_members_are_shown(api: Api, sql: psycopg.Connection) -> None:
    sql.execute(
        "INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, document) "
        "VALUES (now(), 'ann', 'force-delete', 'stuck', 'Cluster', %s, '{}')",
        [NO_ID],
    )
    (record,) = audit(api)
    assert record.keys() == {"record", "time", "by", "action", "kind", "id", "reason", "resource"}


def test_a_page_of_large_records_is_complete(api: Api) -> None:
    for number in range(4):
        delete(api, api.cluster(f"c{number}", spec={"text": f"{number}" * 500_000}))
    found = audit(api, "action='remove'")
    assert [r["resource"]["spec"]["text"][0] for r in found] == ["0", "1", "2", "3"]


def test_records_older_than_the_limit_are_removed(
    database: str,
    sql: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert observe.SECONDS == 60
    monkeypatch.setattr(observe, "SECONDS", 0.05)
    sql.execute(
        "INSERT INTO audit (time, actor, action, resource_type) "
        "SELECT now() - make_interval(days => n), 'x', 'create', 'Cluster' FROM generate_series(1, 50) n"
    )

    async def forget(days: int, statements: int = 2) -> None:
        times = [time.monotonic()]
        async with new_pool(database, 1) as pool, asyncio.timeout(20):
            pool.on_statement = lambda *_: times.append(time.monotonic())
            task = asyncio.create_task(observe.forgetting(pool, days))
            while not task.done() and len(times) <= statements:
                await asyncio.sleep(0.01)
            assert task.done() == (not days)
            task.cancel()
        assert all(later - earlier >= 0.05 for earlier, later in itertools.pairwise(times))

    for days, left in ((0, 50), (30, 29), (1, 0)):
        asyncio.run(forget(days))
        assert sql.execute("SELECT count(*) FROM audit").fetchone() == (left,)
    # More than are removed at a time.
    sql.execute(
        "INSERT INTO audit (time, actor, action, resource_type) "
        "SELECT now() - interval '9 days', 'x', 'create', 'Cluster' FROM generate_series(1, 1500)"
    )
    asyncio.run(forget(1))
    assert sql.execute("SELECT count(*) FROM audit").fetchone() == (0,)
    assert "audit" not in caplog.text
    sql.execute("ALTER TABLE audit RENAME TO audit_elsewhere")
    asyncio.run(forget(1))
    assert 'could not delete old audit records for now: relation "audit" does not' in caplog.text


Start = Callable[..., Api]


@pytest.fixture
def start(service: Start, tmp_path: Path) -> Start:
    """Starts services that require tokens signed with one key."""
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(key_set(key_pair())))
    return lambda **settings: service(no_auth=False, jwk_cert_url="", jwk_cert_file=keys, **settings)


def bearer(name: str) -> dict[str, str]:
    token = key_pair().token(email=f"{name}@example.com", username=name)
    return {"Authorization": f"Bearer {token}"}


def test_only_callers_on_its_access_list_can_read_the_audit(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "auditors.yaml"
    file.write_text("- claim: email\n  pattern: ^ann@\n")
    api = start(audit_acl_file=file)
    ann, bob = bearer("ann"), bearer("bob")
    body = {"name": "c1", "spec": {}}
    cluster = check(api.post("/clusters", json=body, headers=bob), 201)
    found = problem(api.get("/audit", headers=bob), 403)
    assert found["detail"] == "Only callers in the audit's access list may read the audit."
    problem(api.get("/audit"), 401)
    assert api.head("/audit", headers=bob).status_code == 403
    (record,) = check(api.get("/audit", headers=ann))["items"]
    assert (record["by"], record["id"]) == ("bob@example.com", cluster["id"])
    # Everything else is open to both, even the history of a resource.
    check(api.get(at(cluster, "/history"), headers=bob))
    # The file is read again when it changes.
    change(file, "- claim: email\n  pattern: ^bob@example\n")
    check(api.get("/audit", headers=bob))
    problem(api.get("/audit", headers=ann), 403)


def test_nobody_can_read_the_audit_without_an_access_list(start: Start) -> None:
    problem(start().get("/audit", headers=bearer("ann")), 403)


def test_rejections_of_known_callers_are_recorded_and_those_of_unknown_ones_are_not(
    start: Start, tmp_path: Path
) -> None:
    auditors, let_in = tmp_path / "auditors.yaml", tmp_path / "acl.yaml"
    auditors.write_text("- claim: email\n  pattern: ^ann@\n")
    let_in.write_text("- claim: email\n  pattern: ^ann@\n")
    api = start(audit_acl_file=auditors, acl_file=let_in)
    body = {"name": "c1", "spec": {}}
    problem(api.post("/clusters", json=body), 401)
    problem(api.post("/clusters", json=body, headers={"Authorization": "Bearer x.y.z"}), 401)
    problem(api.post("/clusters", json=body, headers=bearer("bob")), 403)
    api.headers.update(bearer("ann"))
    (record,) = refusals(api, 1)
    assert (record["by"], record["status"], record["code"]) == (
        *("bob@example.com", 403),
        "HYPERFLEET-AUZ-001",
    )


def test_the_access_review_can_allow_reading_the_audit_too(start: Start, tmp_path: Path) -> None:
    asked: list[tuple[str, str, str]] = []

    def answer(_method: str, path: str, content: bytes, _headers: Any) -> Answer:
        said: Json = {"access_token": "t", "expires_in": 300}
        if path != "/token":
            body = json.loads(content)
            asked.append((body["account_username"], body["action"], body["resource_type"]))
            said = {"allowed": body["account_username"] == "ann"}
        return 200, {"Content-Type": "application/json"}, json.dumps(said).encode()

    auditors = tmp_path / "auditors.yaml"
    auditors.write_text("- claim: email\n  pattern: ^cid@\n")
    with JsonServer(answer) as ocm:
        api = start(
            enable_authz=True,
            audit_acl_file=auditors,
            ocm_base_url=ocm.url,
            ocm_token_url=f"{ocm.url}/token",
            ocm_client_id="id",
            ocm_client_secret="secret",
        )
        check(api.get("/audit", headers=bearer("ann")))
        problem(api.get("/audit", headers=bearer("bob")), 403)
        check(api.get("/audit", headers=bearer("cid")))
    assert asked == [("ann", "get", "Audit"), ("bob", "get", "Audit")]
