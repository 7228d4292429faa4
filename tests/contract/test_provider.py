"""Specs in requests are validated against the provider's schemas, which /openapi shows."""
# ruff: noqa: E501 (tables of cases, a line for each)

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from conftest import Api
from provider_samples import AWS, AWS_POOL, GCP, GCP_POOL, PROVIDERS, WIDE, at, create

from hyperfleet.contract import faults as faults_module
from hyperfleet.contract.provider_document import read


def faults(response: requests.Response) -> list[tuple[str, str, str]]:
    assert response.status_code == 400, response.text
    answer = response.json()
    assert answer["code"].startswith("HYPERFLEET-VAL-00")
    assert [one["field"] for one in answer["details"]] == [one["field"] for one in answer["errors"]]
    return [(one["field"], one["message"], one["constraint"]) for one in answer["errors"]]


@pytest.fixture
def served(service: Callable[..., Api]) -> Callable[[str], Api]:
    return lambda name: service(openapi_schema_path=str(PROVIDERS / f"{name}.yaml"))


# Specs in requests --------------------------------------------------------------------------------

Case = tuple[str, Any, str, str, str]
P = "platform.gcp."

GCP_CASES: list[Case] = [
    (P + "diskSize", 5, "spec.platform.gcp.diskSize", "must be at least 10", "minimum"),
    (P + "diskSize", "5", "spec.platform.gcp.diskSize", "must be an integer", "type"),
    (P + "diskSize", 70000, "spec.platform.gcp.diskSize", "must be at most 65536", "maximum"),
    (P + "budget", 0, "spec.platform.gcp.budget", "must be greater than 0", "exclusiveMinimum"),
    (P + "region", "mars", "spec.platform.gcp.region", "must be one of us-central1, us-east1, europe-west1, asia-east1", "enum"),
    (P + "projectID", "goog-x1", "spec.platform.gcp.projectID", "must match the pattern ^(?!goog)[a-z][-a-z0-9]{4,28}[a-z0-9]$", "pattern"),
    (P + "network-", None, "spec.platform.gcp.network", "is required", "required"),
    (P + "network", "", "spec.platform.gcp.network", "must not be empty", "minLength"),
    (P + "network", None, "spec.platform.gcp.network", "must be a string", "type"),
    (P + "kmsKey", "no uri", "spec.platform.gcp.kmsKey", "must be a URI", "format"),
    (P + "serviceAccount", "robot", "spec.platform.gcp.serviceAccount", "must be an e-mail address", "format"),
    (P + "quota", 2**63, "spec.platform.gcp.quota", "must be an integer of 64 bits, from -9223372036854775808 to 9223372036854775807", "format"),
    (P + "startupScript", "*", "spec.platform.gcp.startupScript", "must be text in base64", "format"),
    (P + "labels.Team", "A B", "spec.platform.gcp.labels.Team", "must match the pattern ^[a-z0-9_-]{0,63}$", "pattern"),
    (P + "extra", 1, "spec.platform.gcp.extra", "is not a known member", "additionalProperties"),
    ("platform.aws", {}, "spec.platform.aws", "is not a known member", "additionalProperties"),
    ("zones", [], "spec.zones", "must have at least 1 item", "minItems"),
    ("zones", ["europe-west1-a"] * 2, "spec.zones", "must not have the same item twice", "uniqueItems"),
    ("zones", ["a-b1-a", "a-b1-b", "c"], "spec.zones[2]", "must match the pattern ^[a-z]+-[a-z]+[0-9]-[a-f]$", "pattern"),
    ("displayName", 5, "spec.displayName", "must be a string or null", "type"),
    ("displayName", "x" * 41, "spec.displayName", "must have at most 40 characters", "maxLength"),
    ("maintenance", {"day": "mon"}, "spec.maintenance.hour", "is required", "required"),
    ("maintenance", {"day": "mon", "hour": 1, "until": "now"}, "spec.maintenance.until", "must be a time as in RFC 3339, such as 2025-11-17T15:04:05Z", "format"),
    ("networking.mtu", 1502, "spec.networking.mtu", "must be a multiple of 4", "multipleOf"),
    ("networking.routes.behind.0.behind.0.to", 1, "spec.networking.routes.behind[0].behind[0].to", "must be a string", "type"),
    ("networking.apiAddress", "here", "spec.networking.apiAddress", "must fit one of the alternatives: must be an IPv4 address; or must be an IPv6 address", "anyOf"),
]  # fmt: skip
GCP_POOL_CASES: list[Case] = [
    ("replicas", 2**31, "spec.replicas", "must be at most 500", "maximum"),
    ("machineType", "x1", "spec.machineType", "must match the pattern ^(n2|n2d|e2|c3)-(standard|highmem|highcpu)-[0-9]+$", "pattern"),
    ("bootDisk.encrypted", "yes", "spec.bootDisk.encrypted", "must be one of on, off", "enum"),
    ("taints.0.effect", "Never", "spec.taints[0].effect", "must be one of NoSchedule, PreferNoSchedule, NoExecute", "enum"),
]  # fmt: skip
AWS_CASES: list[Case] = [
    ("platform.accountId", "1", "spec.platform.accountId", "must match the pattern ^[0-9]{12}$", "pattern"),
    ("platform.roleArns", ["x"], "spec.platform.roleArns[0]", "must match the pattern ^arn:aws:iam::[0-9]{12}:role/.+$", "pattern"),
    ("platform.type", "gke", "spec.platform.type", "must be one of rosa, eks, Outpost", "enum"),
    ("platform.type-", None, "spec.platform.type", "is required", "required"),
    ("platform", {"type": "eks"}, "spec.platform.version", "is required", "required"),
    ("platform", {"type": "Outpost"}, "spec.platform.outpostArn", "is required", "required"),
    ("platform", "rosa", "spec.platform", "must be an object", "type"),
    ("fips", "yes", "spec.fips", "must be a boolean or null", "type"),
    ("extra", 1, "spec.extra", "is not a known member", "unevaluatedProperties"),
    # Without a discriminator, a constant tells which alternative is meant.
    ("endpoint.vpc", "net-1", "spec.endpoint.vpc", "must match the pattern ^vpc-[0-9a-f]{8,17}$", "pattern"),
    ("endpoint", {"access": "public"}, "spec.endpoint.cidrs", "is required", "required"),
    # The discriminator belongs to a parent, which its children extend.
    ("identity.issuer-", None, "spec.identity.issuer", "is required", "required"),
    ("identity", {"kind": "Saml", "metadata": "x", "audience": "a"}, "spec.identity.audience", "must have at least 3 characters", "minLength"),
    ("identity.kind", "Password", "spec.identity.kind", "must be one of Oidc, Saml", "enum"),
]  # fmt: skip
AWS_POOL_CASES: list[Case] = [
    ("replicas", 0, "spec.replicas", "must be greater than 0", "exclusiveMinimum"),
    ("volume.iops", 5, "spec.volume.iops", "must be at least 100", "minimum"),
    ("volume", {"type": "gp3", "iops": 5}, "spec.volume.iops", "must be at least 3000", "minimum"),
    ("volume.type", "gp2", "spec.volume.type", "must be one of gp3, io2", "enum"),
    ("replicas-", None, "spec", "must fit one of the alternatives: replicas is required; or autoscaling is required", "oneOf"),
    ("autoscaling", {"min": 1, "max": 2}, "spec", "must fit exactly one of the alternatives, but fits several", "oneOf"),
]  # fmt: skip
WIDE_CASES: list[Case] = [
    ("compute.p000-", None, "spec.compute.p000", "is required", "required"),
    ("network.p041", 2**31, "spec.network.p041", "must be at most 10000", "maximum"),
    ("storage.p086", ["zone-1", "Z"], "spec.storage.p086[1]", "must match the pattern ^[a-z]+-[0-9]+$", "pattern"),
    ("security.p129.name", "A", "spec.security.p129.name", "must match the pattern ^[a-z]+$", "pattern"),
    ("addons.p200", 1, "spec.addons.p200", "is not a known member", "additionalProperties"),
    ("addons-", None, "spec.addons", "is required", "required"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "cluster", "pool", "cluster_cases", "pool_cases"),
    [
        ("gcp", GCP, GCP_POOL, GCP_CASES, GCP_POOL_CASES),
        ("aws", AWS, AWS_POOL, AWS_CASES, AWS_POOL_CASES),
        ("wide", WIDE, WIDE, WIDE_CASES, WIDE_CASES[:-1]),
    ],
    ids=["gcp", "aws", "wide"],
)
def test_valid_specs_are_stored_unchanged_and_each_invalid_one_gets_its_fault(
    served: Callable[[str], Api],
    name: str,
    cluster: dict[str, Any],
    pool: dict[str, Any],
    cluster_cases: list[Case],
    pool_cases: list[Case],
) -> None:
    api = served(name)
    for kind, good, cases in (("Cluster", cluster, cluster_cases), ("NodePool", pool, pool_cases)):
        created = create(api, good, kind)
        assert created.status_code == 201, created.text
        assert created.json()["spec"] == good
        for path, value, *expected in cases:
            found = faults(create(api, at(path, value, good), kind))
            assert found == [tuple(expected)], (path, value)
    assert api.get("/clusters").json()["total"] == 1
    assert api.get("/nodepools").json()["total"] == 1


def test_all_faults_of_body_and_spec_are_reported_at_once(served: Callable[[str], Api]) -> None:
    api = served("gcp")
    spec = at("platform.gcp.diskSize", 5, at("zones", ["x", "europe-west1-a", "y"], GCP))
    answer = api.post("/clusters", json={"name": "Not_A_Label", "labels": {"a": 1}, "spec": spec})
    fields = {field for field, _, _ in faults(answer)}
    assert fields == {"name", "labels.a", "spec.platform.gcp.diskSize", "spec.zones[0]", "spec.zones[2]"}
    assert answer.json()["detail"].count("; ") == 4

    cluster = api.cluster(spec=GCP)
    patch = {"labels": {"a": 1}, "spec": spec}
    fields = {field for field, _, _ in faults(api.patch(f"/clusters/{cluster['id']}", json=patch))}
    assert fields == {"labels.a", "spec.platform.gcp.diskSize", "spec.zones[0]", "spec.zones[2]"}

    # The contract forbids this, too, but it is reported only once.
    assert faults(api.post("/clusters", json={"name": "a", "spec": 5})) == [
        ("spec", "must be an object", "type")
    ]
    # A body of a megabyte gets a bounded number of faults, in bounded time.
    assert len(faults(create(api, at("zones", [1] * 9000, GCP)))) == faults_module.MAX_FAULTS
    start = time.process_time()
    answer = create(api, at("zones", [1] * 250_000, GCP))
    assert faults(answer) == [("spec.zones", "must not have the same item twice", "uniqueItems")]
    assert time.process_time() - start < 3


def test_a_patch_is_validated_as_the_whole_spec_that_results_from_it(
    served: Callable[[str], Api],
) -> None:
    api = served("gcp")
    cluster = api.cluster(spec=GCP)
    pool = api.node_pool(cluster, spec=GCP_POOL)
    merge = {"Content-Type": "application/merge-patch+json"}
    disk = {"spec": {"platform": {"gcp": {"diskSize": 5}}}}
    path = f"/clusters/{cluster['id']}"
    # A merge patch may carry part of a spec, since the merged spec is validated; a replacement may not.
    field = "spec.platform.gcp.diskSize"
    assert faults(api.patch(path, data=json.dumps(disk), headers=merge)) == [
        (field, "must be at least 10", "minimum")
    ]
    assert {one for one, _, _ in faults(api.patch(path, json=disk))} == {
        *(field, "spec.release", "spec.platform.gcp.projectID"),
        *("spec.platform.gcp.region", "spec.platform.gcp.network"),
    }
    gone = {"spec": {"release": None}}
    assert faults(api.patch(path, data=json.dumps(gone), headers=merge)) == [
        ("spec.release", "is required", "required")
    ]
    replicas = json.dumps({"spec": {"replicas": 501}})
    assert faults(api.patch(f"{path}/nodepools/{pool['id']}", data=replicas, headers=merge)) == [
        ("spec.replicas", "must be at most 500", "maximum")
    ]
    assert api.read(cluster) == cluster
    disk["spec"]["platform"]["gcp"]["diskSize"] = 50
    patched = api.patch(path, data=json.dumps(disk), headers=merge)
    assert patched.status_code == 200, patched.text
    assert patched.json()["spec"] == at("platform.gcp.diskSize", 50, GCP)
    replaced = api.patch(path, json={"spec": GCP})
    assert (replaced.status_code, replaced.json()["generation"]) == (200, 3)


def test_defaults_are_not_filled_in_and_read_only_members_may_be_omitted(
    served: Callable[[str], Api], service: Callable[..., Api], tmp_path: Path
) -> None:
    spec = at("release.channel-", None, GCP)
    assert create(served("gcp"), spec).json()["spec"] == spec
    document = yaml.safe_load((PROVIDERS / "gcp.yaml").read_text())
    document["components"]["schemas"]["Release"]["required"] = ["version", "image"]
    file = tmp_path / "p.json"
    file.write_text(json.dumps(document))
    api = service(openapi_schema_path=str(file))
    assert create(api, GCP).status_code == 201


SECRETS = """
openapi: 3.0.3
info: {title: t, version: '1'}
paths: {}
components:
  schemas:
    ClusterSpec:
      type: object
      properties:
        pin: {type: string, pattern: '^[0-9]+$'}
        word: {type: string, format: password, minLength: 8}
        inner: {writeOnly: true, type: object, properties: {seed: {type: integer}}}
        list: {type: array, items: {allOf: [{$ref: '#/components/schemas/Hidden'}, {maxLength: 3}]}}
        either: {oneOf: [{type: integer}, {$ref: '#/components/schemas/Hidden'}]}
        plain: {type: string, maxLength: 3}
        login:
          oneOf:
            - {type: object, required: [by], properties: {by: {enum: [a]}, word: {$ref: '#/components/schemas/Long'}}}
            - {type: object, required: [by], properties: {by: {enum: [b]}}}
      patternProperties: {^word-: {$ref: '#/components/schemas/Long'}}
    Long: {type: string, writeOnly: true, minLength: 8}
    Hidden: {type: string, format: password}
"""


def test_values_that_the_schema_marks_as_secret_are_not_echoed(
    service: Callable[..., Api], tmp_path: Path
) -> None:
    file = tmp_path / "schema.yaml"
    file.write_text(SECRETS)
    api = service(openapi_schema_path=str(file))
    for spec in (
        {"word": "hush"},
        {"inner": {"seed": "hush"}},
        {"inner": "hush"},
        {"list": ["hush"]},
        {"either": ["hush"]},
        {"login": {"by": "a", "word": "hush"}},
        {"word-1": "hush"},
    ):
        answer = create(api, spec)
        assert answer.status_code == 400
        assert "hush" not in answer.text, answer.text
    assert create(api, {"plain": "told"}).json()["errors"][0]["value"] == "told"


def test_without_a_file_or_a_schema_for_the_kind_any_object_is_accepted(
    service: Callable[..., Api], api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert create(api, {"anything": [1, None]}).status_code == 201
    file = tmp_path / "half.yaml"
    file.write_text("openapi: 3.0.0\ncomponents: {schemas: {ClusterSpec: {required: [a]}}}\n")
    half = service(openapi_schema_path=str(file))
    assert faults(create(half, {})) == [("spec.a", "is required", "required")]
    assert create(half, {"any": 1}, "NodePool").status_code == 201
    # A service of the test before may still log that its database is gone.
    told = ("hyperfleet.contract.provider", logging.WARNING)
    lines = [line for name, level, line in caplog.record_tuples if (name, level) == told]
    assert lines == [f"{file} has no NodePoolSpec: the spec of a NodePool is not validated"]
    # The contract that the service ships works as a provider's document, too, and accepts any spec.
    shipped = read(Path("openapi/openapi.yaml"))
    assert set(shipped.validators) == {"Cluster", "NodePool"}
    assert [*faults_module.faults(shipped.validators["Cluster"], {"any": 1})] == []


# /openapi -----------------------------------------------------------------------------------------


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict) and isinstance(node.get("$ref"), str):
        yield node["$ref"]
    elif isinstance(node, dict | list):
        for inner in node.values() if isinstance(node, dict) else node:
            yield from references(inner)


def test_openapi_shows_the_schemas_of_the_provider(served: Callable[[str], Api], api: Api) -> None:
    open_spec = api.get("//openapi").json()["components"]["schemas"]["ClusterSpec"]
    assert "properties" not in open_spec

    gcp = served("gcp")
    shown = gcp.get("//openapi").json()
    assert gcp.get("/openapi").json() == shown
    schemas = shown["components"]["schemas"]

    def behind(node: Any) -> Any:
        return schemas[node["$ref"].rpartition("/")[2]] if "$ref" in node else node

    for name in ("ClusterCreateRequest", "Cluster"):
        assert schemas[name]["properties"]["spec"] == {"$ref": "#/components/schemas/ClusterSpec"}
    spec = schemas["ClusterSpec"]
    assert spec["required"] == ["release", "platform"]
    platform = behind(spec["properties"]["platform"])
    assert behind(platform["properties"]["gcp"])["properties"]["diskSize"]["minimum"] == 10
    pool = shown["components"]["schemas"]["NodePoolSpec"]
    assert "machineType" in pool["properties"]
    # Every reference resolves.
    for reference in references(shown):
        kind, name = reference.removeprefix("#/components/").split("/")
        assert name in shown["components"][kind]
    assert "to" in schemas["Route"]["properties"]
    assert gcp.get("//openapi-ui/").status_code == 200

    aws = served("aws").get("//openapi").json()
    assert aws["openapi"].startswith("3.0")
    spec = aws["components"]["schemas"]["ClusterSpec"]
    assert spec["properties"]["fips"] == {"type": "boolean", "nullable": True}
    schemas = aws["components"]["schemas"]
    rosa = behind(behind(spec["properties"]["platform"])["oneOf"][0])
    assert rosa["properties"]["type"] == {"enum": ["rosa"]}


def test_openapi_3_1_schemas_are_shown_as_openapi_3_0(
    service: Callable[..., Api], tmp_path: Path
) -> None:
    zone = {"$ref": "#/components/schemas/Zone"}
    members = {
        **{"any": True, "none": False, "one": {"const": 5}, "above": {"exclusiveMinimum": 3}},
        **{"several": {"type": ["string", "integer", "null"]}, "maybe": {"type": ["string", "null"]}},
        **{"zone": {**zone, "description": "Where."}, "like": {"examples": ["a", "b"]}},
        "both": {"type": ["string", "integer"], "anyOf": [{"maxLength": 3}, {"minimum": 5}]},
        "short": {**zone, "allOf": [{"maxLength": 3}]},
        "nothing": {"anyOf": [zone, {"type": "null"}]},
    }
    spec = {"properties": members, "items": True, "additionalProperties": False}
    file = tmp_path / "provider.json"
    schemas = {"ClusterSpec": spec, "Zone": {"type": "string"}}
    file.write_text(json.dumps({"openapi": "3.1.0", "components": {"schemas": schemas}}))
    shown = service(openapi_schema_path=str(file)).get("//openapi").json()
    several = [{"type": "string"}, {"type": "integer"}]
    assert shown["components"]["schemas"]["ClusterSpec"] == {
        "properties": {
            **{"any": {}, "none": {"not": {}}, "one": {"enum": [5]}},
            "above": {"minimum": 3, "exclusiveMinimum": True},
            "several": {"anyOf": several, "nullable": True},
            "maybe": {"type": "string", "nullable": True},
            "zone": {"allOf": [zone], "description": "Where."},
            "like": {"example": "a"},
            "both": {"anyOf": [{"maxLength": 3}, {"minimum": 5}], "allOf": [{"anyOf": several}]},
            "short": {"allOf": [zone, {"maxLength": 3}]},
            "nothing": {"anyOf": [zone, {"enum": [None], "nullable": True}]},
        },
        "items": {},
        "additionalProperties": False,
    }


@pytest.mark.parametrize("name", ["NodePool", "ClusterResponse", "RollbackBody", "cluster_id"])
def test_client_generators_find_no_name_twice_in_openapi(
    service: Callable[..., Api], tmp_path: Path, name: str
) -> None:
    # The provider's document may also use the name that the schema would get instead.
    own = (name, "Provider" + name)
    refs = {one: {"$ref": f"#/components/schemas/{one}"} for one in own}
    schemas = {
        "ClusterSpec": {"properties": refs},
        own[0]: {"type": "string"},
        own[1]: {"type": "number"},
    }
    file = tmp_path / "provider.json"
    file.write_text(json.dumps({"openapi": "3.0.3", "components": {"schemas": schemas}}))
    shown = service(openapi_schema_path=str(file)).get("//openapi").json()["components"]
    kinds = ("schemas", "responses", "requestBodies", "parameters")
    names = [one for kind in kinds for one in shown[kind]]
    assert len(names) == len({*names})
    for one, type_ in zip(own, ("string", "number"), strict=True):
        ref = shown["schemas"]["ClusterSpec"]["properties"][one]["$ref"]
        assert shown["schemas"][ref.rpartition("/")[2]] == {"type": type_}


def test_schemas_with_names_that_the_contract_uses_are_renamed_in_openapi(
    service: Callable[..., Api], tmp_path: Path
) -> None:
    file = tmp_path / "provider.yaml"
    ref = {"$ref": "#/components/schemas/ClusterStatus"}
    # A mapping may have mere names.
    targets = {"propertyName": "on", "mapping": {"x": "ClusterStatus"}}
    choice = {"oneOf": [ref], "discriminator": targets}
    document = {
        "openapi": "3.0.3",
        "components": {
            "schemas": {
                "ClusterSpec": {"type": "object", "properties": {"a": ref, "b": choice}},
                "ClusterStatus": {
                    "type": "object",
                    "properties": {"on": {"type": "boolean"}, "next": ref},
                },
            }
        },
    }
    file.write_text(json.dumps(document))
    api = service(openapi_schema_path=str(file))
    shown = api.get("//openapi").json()["components"]["schemas"]
    assert "phase" in shown["ClusterStatus"]["properties"]
    assert shown["ClusterSpec"]["properties"]["a"] == {
        "$ref": "#/components/schemas/ProviderClusterStatus"
    }
    assert shown["ClusterSpec"]["properties"]["b"]["discriminator"]["mapping"] == {
        "x": "#/components/schemas/ProviderClusterStatus"
    }
    assert "on" in shown["ProviderClusterStatus"]["properties"]
    assert create(api, {"a": {"on": True, "next": {"on": 1}}}).status_code == 400
