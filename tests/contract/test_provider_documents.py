"""Provider documents: broken and missing files, reloads, and what readiness and metrics say of them."""
# ruff: noqa: E501 (messages, a line for each)

import asyncio
import json
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from conftest import Api
from process import Serving, run
from provider_samples import AWS, BROKEN, GCP, HEAD, PROVIDERS, WIDE, create

from hyperfleet.contract import provider
from hyperfleet.contract.provider_document import BrokenDocument, read
from hyperfleet.errors import StartError
from hyperfleet.settings.catalogue import Settings

# Files that are missing or broken -----------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_document_is_reported_with_file_and_place(name: str, tmp_path: Path) -> None:
    text, expected = BROKEN[name]
    file = tmp_path / "provider.yaml"
    file.write_text(text)
    with pytest.raises(BrokenDocument) as raised:
        read(file)
    assert raised.value.faults[0].startswith(str(file))
    assert expected in raised.value.faults[0]
    assert len(raised.value.faults) == 1


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_a_document_may_have_what_only_yaml_or_only_json_has(tmp_path: Path, form: str) -> None:
    file = tmp_path / "provider"
    text = (
        HEAD
        + "      properties:\n        404: {enum: ['😀', true], default: 2025-11-17}\n        yes: {}\n"
    )
    if form == "json":
        # Windows marks texts, and programs may escape what is not ASCII.
        told = {"enum": ["😀", True], "default": "2025-11-17"}
        spec = {"properties": {"404": told, "yes": {}}}
        text = json.dumps({"openapi": "3.0.3", "components": {"schemas": {"ClusterSpec": spec}}})
    file.write_bytes(("\ufeff" + text).encode())
    document = read(file)
    assert document.schemas["ClusterSpec"]["properties"] == {
        "404": {"enum": ["😀", True], "default": "2025-11-17"},
        "yes": {},
    }
    assert document.warnings == []


def test_a_discriminator_may_have_an_empty_mapping(tmp_path: Path) -> None:
    file = tmp_path / "provider.yaml"
    file.write_text(HEAD + "      discriminator:\n        propertyName: a\n        mapping:\n")
    assert "Cluster" in read(file).validators


def test_every_fault_and_warning_is_reported_but_only_for_schemas_that_the_specs_use(
    tmp_path: Path,
) -> None:
    file = tmp_path / "provider.yaml"
    file.write_text(
        HEAD
        + "      properties: {a: {type: x}, b: {minimum: '1'}}\n    Unused: {type: 5, $ref: 'http://x'}\n"
    )
    with pytest.raises(BrokenDocument) as raised:
        read(file)
    assert [line.split(": ", 1)[1].split(":")[0] for line in raised.value.faults] == [
        "components.schemas.ClusterSpec.properties.a.type",
        "components.schemas.ClusterSpec.properties.b.minimum",
    ]
    file.write_text(HEAD + "      properties: {a: {minimun: 5, format: cidr, x-own: 1}}\n")
    warnings = read(file).warnings
    file.write_text(
        HEAD
        + "      properties: {a: {$ref: '#/components/schemas/A', nullable: true, title: A}}\n"
        + "    A: {allOf: [{$ref: '#/components/schemas/A', format: cidr}]}\n"
    )
    warnings += read(file).warnings
    assert warnings == [
        "components.schemas.ClusterSpec.properties.a.minimun: is not a known keyword; it is not checked",
        "components.schemas.ClusterSpec.properties.a.format: cidr is not a known format; it is not checked",
        "components.schemas.ClusterSpec.properties.a.nullable: is ignored: OpenAPI 3.0 ignores what is beside a $ref",
        "components.schemas.A.allOf.0.format: is ignored: OpenAPI 3.0 ignores what is beside a $ref",
    ]
    file.write_text(
        HEAD.replace("3.0.3", "3.1.0")
        + "      properties: {a: {type: string, nullable: true}, b: {items: {}, additionalItems: false}}\n"
        + "      $ref: '#/components/schemas/A'\n    A: {$ref: '#/components/schemas/B', maximun: 5, maxLength: 5}\n    B: {}\n"
    )
    assert read(file).warnings == [
        "components.schemas.ClusterSpec.properties.a.nullable: is not checked in OpenAPI 3.1: use type: [..., 'null']",
        "components.schemas.ClusterSpec.properties.b.additionalItems: is not checked in OpenAPI 3.1: use items, beside prefixItems",
        "components.schemas.A.maximun: is not a known keyword; it is not checked",
    ]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BrokenDocument, match="is not UTF-8"):
        read(file)
    with pytest.raises(BrokenDocument, match="cannot be read: Is a directory"):
        read(tmp_path)


@pytest.fixture
def remote() -> Iterator[tuple[str, list[str]]]:
    """Yields the URL of a server that would serve any schema, and the paths requested from it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_remote_references_are_never_fetched(remote: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = remote
    (tmp_path / "near.yaml").write_text("A: {type: string}\n")
    file = tmp_path / "provider.yaml"
    for spec in (
        {"$ref": f"{url}/a.json"},
        {"properties": {"a": {"items": {"$ref": f"{url}/a.json#/A"}}}},
        {"$id": f"{url}/base/", "properties": {"a": {"$ref": "a.json"}}},
        {"properties": {"a": {"$ref": "near.yaml#/A"}}},
        {"$dynamicRef": f"{url}/a.json#x"},
    ):
        for version in ("3.0.3", "3.1.0"):
            if "$dynamicRef" in spec and version == "3.0.3":
                continue
            document = {"openapi": version, "components": {"schemas": {"ClusterSpec": spec}}}
            file.write_text(yaml.safe_dump(document))
            with pytest.raises(BrokenDocument, match="nothing is fetched"):
                read(file)
    # A URL that only names a schema, without a reference to it, is not fetched either.
    spec = {"$id": f"{url}/base/", "$schema": f"{url}/dialect", "type": "object"}
    document = {"openapi": "3.1.0", "components": {"schemas": {"ClusterSpec": spec}}}
    file.write_text(yaml.safe_dump({**document, "jsonSchemaDialect": f"{url}/dialect"}))
    assert "Cluster" in read(file).validators
    assert asked == []


def test_a_missing_file_prevents_the_start_unless_schema_required_is_false(
    tmp_path: Path, service: Callable[..., Api], caplog: pytest.LogCaptureFixture
) -> None:
    missing = tmp_path / "missing.yaml"
    with pytest.raises(StartError, match="cannot be read: No such file"):
        provider.load(Settings(openapi_schema_path=str(missing)))
    api = service(openapi_schema_path=str(missing), schema_required=False)
    assert create(api, {"any": 1}).status_code == 201
    assert f"{missing}: cannot be read: No such file or directory" in caplog.text
    assert f"SPECS ARE NOT VALIDATED: fix {missing} and send SIGHUP" in caplog.text


@pytest.mark.slow
def test_a_refused_start_names_the_faulty_line_the_check_command_and_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "provider.yaml"
    file.write_text(BROKEN["type"][0])
    for given in (["--openapi-schema-path", str(file)], []):
        env = {} if given else {"OPENAPI_SCHEMA_PATH": str(file)}
        ended = run("serve", "--no-auth", "--port=0", "--data-dir", str(tmp_path / "d"), *given, env=env)
        assert ended.returncode == 1
        assert f"{file}, line 7: components.schemas.ClusterSpec.properties.a.type" in ended.stdout
        assert f"'hyperfleet schema check {file}'" in ended.stdout
        assert "--schema-required=false" in ended.stdout
        assert "Traceback" not in ended.stdout
    assert not (tmp_path / "d").exists()
    config = tmp_path / "config.yaml"
    config.write_text(f"openapi_schema_path: {file}\n")
    assert run("serve", "--no-auth", "--port=0", "--config", str(config)).returncode == 1


@pytest.mark.parametrize(("count", "more"), [(20, ""), (22, "and 2 more")])
def test_at_most_twenty_faults_of_a_document_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int, more: str
) -> None:
    file = tmp_path / "provider.yaml"
    file.write_text(HEAD + "      properties:\n" + "".join(f"        p{n}: 5\n" for n in range(count)))
    with pytest.raises(StartError):
        provider.load(Settings(openapi_schema_path=str(file)))
    lines = [one.getMessage() for one in caplog.records if one.name == provider.__name__]
    assert sum("ClusterSpec.properties.p" in line for line in lines) == 20
    assert [line for line in lines if " more" in line] == ([f"provider schema: {more}"] if more else [])


# Reloads, readiness and metrics -------------------------------------------------------------------


def sample(server: Serving, name: str) -> str:
    lines = requests.get(server.metrics, timeout=5).text.splitlines()
    return next(line.rpartition(" ")[2] for line in lines if line.startswith(name))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_sighup_reloads_the_file_and_a_broken_one_changes_nothing(database: str, tmp_path: Path) -> None:
    file = tmp_path / "provider.yaml"
    shutil.copy(PROVIDERS / "gcp.yaml", file)
    env = {"OPENAPI_SCHEMA_PATH": str(file), "HYPERFLEET_DATABASE_URL": database}
    with Serving("--no-auth", "--workers=1", env=env) as server:
        api = Api(server.url)

        def hup(says: str) -> None:
            said = len(server.lines)
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: says in "".join(server.lines[said:]))

        def members() -> set[str]:
            shown = api.get("//openapi").json()["components"]["schemas"]["ClusterSpec"]
            return set(shown["properties"])

        def state() -> Any:
            return requests.get(server.health + "/readyz", timeout=5).json()["provider_schema"]

        assert create(api, GCP).status_code == 201
        assert create(api, AWS).status_code == 400
        assert "platform" in members()
        assert state() == {"status": "ok", "validated": ["Cluster", "NodePool"]}

        file.write_text(BROKEN["type"][0])
        hup("the one read before stays in force")
        assert "line 7: components.schemas.ClusterSpec.properties.a.type" in server.output
        assert create(api, GCP).status_code == 201
        assert create(api, AWS).status_code == 400
        assert "platform" in members()
        assert "stays in force" in state()["status"]
        assert sample(server, "hyperfleet_provider_schema_ok") == "0.0"
        assert sample(server, 'hyperfleet_spec_validation{kind="Cluster"}') == "1.0"

        shutil.copy(PROVIDERS / "aws.yaml", file)
        hup("OpenAPI 3.1.0, is in force")
        assert create(api, AWS).status_code == 201
        assert create(api, GCP).status_code == 400
        assert "endpoint" in members()
        assert state()["status"] == "ok"
        assert sample(server, "hyperfleet_provider_schema_ok") == "1.0"
        assert server.stop() == 0


def test_a_reload_that_fails_leaves_the_document_in_force(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = PROVIDERS / "gcp.yaml"
    loaded = provider.load(Settings(openapi_schema_path=str(file)))
    document = loaded.document
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert not asyncio.run(loaded.reload())
    assert f"{file}: the process that reads it has ended without an answer" in caplog.text
    assert "stays in force" in loaded.trouble
    assert loaded.document is document


def large(count: int, answer: str) -> str:
    """Returns a document with ``count`` schemas, about 0.9 kB each; specs must have this ``answer``."""
    schemas: dict[str, Any] = {
        f"Part{n}": {
            "type": "object",
            "description": f"Part number {n} of a machine that is described here at length.",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
                "size": {"type": "integer", "format": "int32", "minimum": n, "maximum": n + 1000},
                "zones": {"type": "array", "items": {"type": "string", "enum": ["a", "b", "c"]}},
                "mode": {"oneOf": [{"enum": ["fast", "slow"]}, {"type": "number", "minimum": 0.5}]},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }
        for n in range(count)
    }
    parts = {name: {"$ref": f"#/components/schemas/{name}"} for name in schemas}
    spec = {"type": "object", "properties": {"answer": {"enum": [answer]}, **parts}}
    named = {"ClusterSpec": spec, "NodePoolSpec": spec, **schemas}
    return yaml.safe_dump({"openapi": "3.0.3", "components": {"schemas": named}}, sort_keys=False)


@pytest.mark.slow
def test_a_reload_does_not_block_requests_and_the_last_file_wins(database: str, tmp_path: Path) -> None:
    file = tmp_path / "provider.yaml"
    file.write_text(large(1, "first"))
    env = {"OPENAPI_SCHEMA_PATH": str(file), "HYPERFLEET_DATABASE_URL": database}
    with Serving("--no-auth", "--workers=1", env=env) as server:
        api = Api(server.url)
        second = large(650, "second")
        assert 550_000 < len(second) < 800_000
        file.write_text(second)
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        # While that is being read, the file changes again, and several signals announce it.
        file.write_text(large(650, "third"))
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
        taken, deadline = [], time.monotonic() + 120
        while server.output.count("is in force") < 3:
            assert time.monotonic() < deadline
            start = time.monotonic()
            assert api.get("/compatibility").status_code == 200
            taken.append(time.monotonic() - start)
            time.sleep(0.02)
        # On a busy machine, all requests take longer.
        usual = statistics.median(taken)
        assert max(taken) < 1 + 10 * usual, (
            "without a process of its own, a reload takes several seconds"
        )
        assert create(api, {"answer": "third", "Part7": {"name": "a", "size": 7}}).status_code == 201
        assert create(api, {"answer": "third", "Part7": {"name": "a", "size": 6}}).status_code == 400
        assert create(api, {"answer": "second"}).status_code == 400
        shown = api.get("//openapi").json()["components"]["schemas"]["ClusterSpec"]["properties"]
        assert shown["answer"] == {"enum": ["third"]}
        # A reload in progress does not delay the stop.
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 3
        assert "Traceback" not in server.output


@pytest.mark.slow
def test_readyz_and_a_metric_say_that_specs_are_not_validated_until_the_file_is_fixed(
    database: str, tmp_path: Path
) -> None:
    file = tmp_path / "provider.yaml"
    arguments = ("--no-auth", "--openapi-schema-path", str(file), "--schema-required=false")
    with Serving(*arguments, env={"HYPERFLEET_DATABASE_URL": database}) as server:
        ready = requests.get(server.health + "/readyz", timeout=5)
        assert (ready.status_code, ready.json()["provider_schema"]) == (
            200,
            {"status": "the file could not be read; specs are not validated", "validated": []},
        )
        assert sample(server, 'hyperfleet_spec_validation{kind="Cluster"}') == "0.0"
        assert sample(server, "hyperfleet_provider_schema_ok") == "0.0"
        assert create(Api(server.url), {"any": 1}).status_code == 201
        shutil.copy(PROVIDERS / "wide.yaml", file)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: sample(server, 'hyperfleet_spec_validation{kind="NodePool"}') == "1.0")
        assert create(Api(server.url), {"any": 1}).status_code == 400
        assert create(Api(server.url), WIDE).status_code == 201
