"""``hyperfleet schema check`` checks documents, and specs stored in a database or behind a service."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import declared_kinds
import psycopg
import pytest
import requests
from conftest import Api, made
from helpers_contract import BASE
from issuer import JsonServer
from process import run, run_here
from provider_samples import AWS, BROKEN, GCP, GCP_POOL, PROVIDERS, at
from psycopg.types.json import Jsonb
from pytest_postgresql.executors import NoopExecutor

GCP_FILE = str(PROVIDERS / "gcp.yaml")


def test_a_document_can_be_checked_on_its_own(tmp_path: Path) -> None:
    for name, version in (("gcp", "3.0.3"), ("aws", "3.1.0"), ("wide", "3.0.3")):
        good = run_here("schema", "check", str(PROVIDERS / f"{name}.yaml"))
        assert good.returncode == 0, good.stdout
        assert f"{name}.yaml: OpenAPI {version}" in good.stdout
        assert good.stdout.count("  ok\n") == 2

    assert run("schema", "check", GCP_FILE).returncode == 0
    file = tmp_path / "provider.yaml"
    file.write_text(BROKEN["type"][0])
    bad = run_here("schema", "check", str(file))
    assert bad.returncode == 1
    assert f"{file}, line 7: components.schemas.ClusterSpec.properties.a.type" in bad.stdout
    file.write_text("openapi: 3.0.3\ncomponents: {schemas: {NodePoolSpec: {minimun: 1}}}\n")
    half = run_here("schema", "check", str(file))
    assert half.returncode == 0
    assert "ClusterSpec   missing: such specs are not validated" in half.stdout
    assert "warning: components.schemas.NodePoolSpec.minimun: is not a known keyword" in half.stdout
    gone = run_here("schema", "check", str(tmp_path / "gone.yaml"))
    assert (gone.returncode, "cannot be read: No such file" in gone.stdout) == (1, True)


@pytest.fixture
def filled(api: Api, sql: psycopg.Connection) -> Api:
    """1,231 clusters, 30 of which would break, and two node pools, one of which would."""
    cluster = api.cluster("good", spec=GCP)
    api.node_pool(cluster, "good", spec=GCP_POOL)
    api.node_pool(cluster, "bad", spec=at("replicas", 1000, GCP_POOL))
    rows = [(f"bad-{n:04}", Jsonb(AWS)) for n in range(30)] + [
        (f"good-{n:04}", Jsonb(GCP)) for n in range(1200)
    ]
    with sql.cursor() as cursor:
        cursor.executemany(
            """INSERT INTO clusters
                   (id, name, labels, spec, status, created_time, updated_time, created_by, updated_by)
               SELECT gen_random_uuid(), %s, labels, %s, status, now(), now(), created_by, updated_by
               FROM clusters WHERE name = 'good'""",
            rows,
        )
    return api


@pytest.mark.slow
def test_stored_specs_are_checked_in_a_database_and_behind_a_service(
    filled: Api, database: str, tmp_path: Path
) -> None:
    outputs = []
    for against, env in (
        (database, {}),
        ("database", {"HYPERFLEET_DATABASE_URL": database}),
        (filled.url, {}),
        (filled.base, {"HYPERFLEET_TOKEN": "not needed"}),
    ):
        ended = run_here("schema", "check", GCP_FILE, "--against", against, env=env)
        assert ended.returncode == 1, ended.stdout
        assert "Clusters: 30 of 1231 stored specs would break" in ended.stdout
        assert "Node pools: 1 of 2 stored specs would break" in ended.stdout
        assert "    spec.replicas: must be at most 500" in ended.stdout
        # The output is bounded: twenty resources, five errors each.
        assert ended.stdout.count("  bad-") == 20
        assert "  and 10 more\n" in ended.stdout
        assert "    spec.release: is required" in ended.stdout
        assert "Checking clusters" in ended.stdout
        outputs.append(ended.stdout)
    assert len(outputs[0].splitlines()) < 200
    # A document that all of them satisfy.
    file = tmp_path / "open.yaml"
    file.write_text("openapi: 3.0.3\ncomponents: {schemas: {ClusterSpec: {type: object}}}\n")
    fine = run_here("schema", "check", str(file), "--against", database)
    assert fine.returncode == 0, fine.stdout
    assert "Clusters: 0 of 1231 stored specs would break" in fine.stdout
    assert "Node pools:" not in fine.stdout


def test_deletions_while_a_service_is_read_hide_none_of_the_other_resources(
    filled: Api, sql: psycopg.Connection
) -> None:
    asked = []

    def answer(
        _method: str, path: str, _body: bytes, _headers: Any
    ) -> tuple[int, dict[str, str], bytes]:
        got = requests.get(filled.url + path, timeout=30)
        asked.append(path)
        if len(asked) == 1:
            gone = [item["id"] for item in got.json()["items"][:100]]
            sql.execute("DELETE FROM clusters WHERE id = ANY(%s::uuid[])", [gone])
        return got.status_code, {"Content-Type": "application/json"}, got.content

    with JsonServer(answer) as between:
        ended = run_here("schema", "check", GCP_FILE, "--against", between.url)
    assert len(asked) == 4
    assert "of 1231 stored specs would break" in ended.stdout, "100 were read before their deletion"


def test_the_token_is_sent_to_the_given_service_only(tmp_path: Path) -> None:
    tokens: list[str] = []

    def answer(_method: str, path: str, _body: bytes, headers: Any) -> tuple[int, dict[str, str], bytes]:
        tokens.append(headers["Authorization"])
        if not path.startswith("/moved"):
            return 307, {"Location": f"/moved{path}"}, b""
        link = b'{"items": [], "total": 1, "next": "@%s/stolen"}' % elsewhere.url[7:].encode()
        return 200, {"Content-Type": "application/json"}, link

    def stolen(*_: object) -> tuple[int, dict[str, str], bytes]:
        tokens.append("stolen")
        return 404, {}, b""

    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    netrc.chmod(0o600)
    with JsonServer(answer) as server, JsonServer(stolen) as elsewhere:
        env = {"HYPERFLEET_TOKEN": "mine", "NETRC": str(netrc)}
        ended = run_here("schema", "check", GCP_FILE, "--against", server.url, env=env)
    assert (ended.returncode, "it links to somewhere else" in ended.stdout) == (1, True), ended.stdout
    assert tokens == ["Bearer mine"] * 2


def test_an_invalid_address_is_reported_without_its_password() -> None:
    for against, says in (
        ("mysql://me:secret@db.example/fleet", "--against: the scheme mysql is not postgresql"),
        ("password secret", "--against must be a URL"),
    ):
        ended = run_here("schema", "check", GCP_FILE, "--against", against)
        assert ended.returncode != 0
        assert says in ended.stdout
        assert "secret" not in ended.stdout


def test_an_unreachable_database_or_service_is_reported_without_a_traceback(
    service: Callable[..., Api],
) -> None:
    for against, says in (
        ("postgresql://nobody@127.0.0.1:1/none", "The database cannot be read"),
        ("http://127.0.0.1:1", "The service cannot be read"),
        (service().url + "/elsewhere", "The service cannot be read"),
    ):
        ended = run_here("schema", "check", GCP_FILE, "--against", against)
        assert (ended.returncode, says in ended.stdout) == (1, True), ended.stdout
        assert "Traceback" not in ended.stdout


@pytest.mark.parametrize(
    "content",
    [
        b"[1]",
        b'{"status": "ok"}',
        b'{"items": 1, "total": 1}',
        b'{"items": []}',
        b'{"items": [null], "total": 1}',
        b'{"items": [], "total": null}',
        b'{"items": [], "total": 1, "next": 2}',
        b'{"items": [{"id": ["i"], "name": "n", "spec": {}}], "total": 1}',
        b'{"kind": "PodList", "items": [{"metadata": {"name": "p"}, "spec": {}}], "total": 1}',
    ],
)
def test_a_service_that_is_not_this_api_is_reported(content: bytes) -> None:
    with JsonServer(lambda *_: (200, {}, content)) as server:
        ended = run_here("schema", "check", GCP_FILE, "--against", server.url)
    said = "The service cannot be read: it does not answer like the HyperFleet API."
    assert (ended.returncode, said in ended.stdout) == (1, True), ended.stdout


def test_a_list_of_a_service_also_ends_with_a_link_that_is_null() -> None:
    content = b'{"items": [{"id": "i", "name": "n", "spec": {}}], "total": 1, "next": null}'
    with JsonServer(lambda *_: (200, {}, content)) as server:
        ended = run_here("schema", "check", GCP_FILE, "--against", server.url)
    assert "of 1 stored specs" in ended.stdout, ended.stdout


@pytest.mark.parametrize("largest", [100, 500], ids=["refuses-large-pages", "shortens-them"])
def test_all_pages_of_an_original_are_checked_whose_lists_have_no_links(largest: int) -> None:
    """It also creates a cluster after its first page, which shifts the others."""
    names = [f"n{number:04}" for number in range(1200)]

    def answer(
        _method: str, path: str, _body: bytes, _headers: Any
    ) -> tuple[int, dict[str, str], bytes]:
        query = dict(parse_qsl(urlsplit(path).query))
        if int(query["pageSize"]) > largest:
            return 400, {}, b"{}"
        first = (int(query.get("page", "1")) - 1) * 100
        shown = names[first : first + 100] if "/clusters" in path else []
        items = [{"id": name, "name": name, "spec": {}} for name in shown]
        body = {"items": items, "page": 1, "size": len(items), "total": len(names) if shown else 0}
        if shown and not first:
            names.insert(0, "new")
        return 200, {}, json.dumps(body).encode()

    with JsonServer(answer) as server:
        ended = run_here("schema", "check", GCP_FILE, "--against", server.url)
    assert "Clusters: 1200 of 1200 stored specs would break" in ended.stdout, ended.stdout


def test_a_list_that_ends_before_its_total_is_reported() -> None:
    content = b'{"items": [{"id": "i", "name": "n", "spec": {}}], "total": 2}'
    with JsonServer(lambda *_: (200, {}, content)) as server:
        ended = run_here("schema", "check", GCP_FILE, "--against", server.url)
    said = "The service cannot be read: it shows 1 items of 2"
    assert (ended.returncode, said in ended.stdout) == (1, True), ended.stdout


def test_checking_against_a_missing_embedded_database_does_not_create_it(tmp_path: Path) -> None:
    folder = tmp_path / "misspelt"
    ended = run_here("schema", "check", GCP_FILE, "--against=database", f"--data-dir={folder}")
    assert (ended.returncode, f"no database in {folder}" in ended.stdout) == (1, True), ended.stdout
    assert not folder.exists()


def test_a_database_without_migrations_is_reported(postgres: NoopExecutor) -> None:
    with made(postgres, "unmigrated") as database:
        ended = run_here("schema", "check", GCP_FILE, "--against", database)
    assert (ended.returncode, "lacks migrations" in ended.stdout) == (1, True), ended.stdout
    assert "relation" not in ended.stdout


def test_a_kind_that_the_service_does_not_serve_yet_has_no_specs_to_break(
    filled: Api, tmp_path: Path
) -> None:
    config = declared_kinds.file(tmp_path, [{"kind": "Channel", "plural": "channels"}])
    document = tmp_path / "provider.yaml"
    document.write_text(
        "openapi: 3.0.3\n"
        "components: {schemas: {ChannelSpec: {type: object}, ClusterSpec: {type: object}}}\n"
    )
    ended = run_here("schema", "check", str(document), f"--config={config}", "--against", filled.url)
    assert ended.returncode == 0, ended.stdout
    assert "Clusters: 0 of 1231 stored specs" in ended.stdout
    assert "Channels: 0 of 0 stored specs" in ended.stdout


def test_one_kind_with_a_spec_that_would_break_fails_the_check_and_so_does_one_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    def answer(
        _method: str, path: str, _body: bytes, _headers: Any
    ) -> tuple[int, dict[str, str], bytes]:
        broken = b'{"items": [{"id": "1", "name": "bad", "spec": {}}], "total": 1}'
        status = 200 if path.startswith((BASE + "/clusters?", BASE + "/node")) else 403
        return status, {}, broken if "/clusters?" in path else b'{"items": [], "total": 0}'

    config = declared_kinds.file(tmp_path, [{"kind": "Channel", "plural": "channels"}])
    document = tmp_path / "provider.yaml"
    document.write_text("openapi: 3.0.3\ncomponents: {schemas: {ChannelSpec: {type: object}}}\n")
    with JsonServer(answer) as server:
        ended = run_here("schema", "check", GCP_FILE, "--against", server.url + BASE + "/")
        assert ended.returncode == 1
        assert "Clusters: 1 of 1 stored specs" in ended.stdout
        assert "Node pools: 0 of 0 stored specs" in ended.stdout
        ended = run_here("schema", "check", str(document), f"--config={config}", "--against", server.url)
    assert (ended.returncode, "The service cannot be read: 403" in ended.stdout) == (1, True), (
        ended.stdout
    )
