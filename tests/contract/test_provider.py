"""Specs are validated against the provider's schemas: requests, documents, reloads and /openapi."""

# ruff: noqa: E501 (tables of cases, a line for each)

import json
import logging
import shutil
import signal
import statistics
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
from provider_samples import AWS, AWS_POOL, BROKEN, GCP, GCP_POOL, HEAD, PROVIDERS, WIDE, at

from hyperfleet.contract import faults as faults_module
from hyperfleet.contract import provider
from hyperfleet.contract.provider_document import BrokenDocument, read
from hyperfleet.contract.schema import compile_schema
from hyperfleet.errors import StartError
from hyperfleet.settings.catalogue import Settings


def faults(response: requests.Response) -> list[tuple[str, str, str]]:
    assert response.status_code == 400, response.text
    answer = response.json()
    assert answer["code"].startswith("HYPERFLEET-VAL-00")
    assert [one["field"] for one in answer["details"]] == [one["field"] for one in answer["errors"]]
    return [(one["field"], one["message"], one["constraint"]) for one in answer["errors"]]


def create(api: Api, spec: Any, kind: str = "Cluster") -> requests.Response:
    """Posts a resource under a name of its own."""
    name = f"n{time.monotonic_ns()}"
    if kind == "Cluster":
        return api.post("/clusters", json={"name": name, "spec": spec})
    owner = api.get("/clusters").json()["items"][0]["id"]
    return api.post(f"/clusters/{owner}/nodepools", json={"name": name, "spec": spec})


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


# Schemas, one feature at a time -------------------------------------------------------------------


def compiled(
    tmp_path: Path, version: str, spec: Any, **named: Any
) -> Callable[[Any], list[tuple[str, str]]]:
    file = tmp_path / f"{time.monotonic_ns()}.yaml"
    document = {"openapi": version, "components": {"schemas": {"ClusterSpec": spec, **named}}}
    file.write_text(yaml.safe_dump(document))
    validator = read(file).validators["Cluster"]

    def check(value: Any) -> list[tuple[str, str]]:
        found = faults_module.faults(validator, value, ["spec"])
        return [(fault["field"], fault["constraint"]) for fault in found]

    return check


def test_openapi_3_0_is_validated_by_its_own_rules_where_it_differs_from_json_schema(
    tmp_path: Path,
) -> None:
    check = compiled(
        tmp_path,
        "3.0.3",
        {
            "properties": {
                "size": {"type": "string", "nullable": True, "enum": ["s", "m"]},
                "over": {"minimum": 3, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False},
                # Members beside a reference are ignored.
                "ref": {"$ref": "#/components/schemas/Text", "maxLength": 1},
                "some": {"nullable": True, "oneOf": [{"$ref": "#/components/schemas/Text"}]},
                "int32": {"type": "integer", "format": "int32"},
                "deep": {"$ref": "#/components/schemas/Outer/properties/in~1%6Eer"},
            }
        },
        Text={"type": "string"},
        Outer={"properties": {"in/ner": {"type": "boolean"}}},
    )  # fmt: skip
    assert (
        check(
            {
                "size": None,
                "over": 9,
                "ref": "long",
                "some": None,
                "int32": 1.0,
                "deep": True,
            }
        )
        == []
    )
    bad = {"size": "x", "over": 3, "ref": 1, "some": 1, "int32": 2**31, "deep": 1}
    assert check(bad) == [
        ("spec.size", "enum"),
        ("spec.over", "exclusiveMinimum"),
        ("spec.ref", "type"),
        ("spec.some", "oneOf"),
        ("spec.int32", "format"),
        ("spec.deep", "type"),
    ]


def test_openapi_3_1_is_validated_as_json_schema(tmp_path: Path) -> None:
    check = compiled(
        tmp_path,
        "3.1.0",
        {
            "properties": {
                "const": {"const": 5},
                "both": {"$ref": "#/components/schemas/Text", "maxLength": 1},
                "tuple": {"prefixItems": [{"type": "string"}], "items": False},
                "if": {"if": {"required": ["a"]}, "then": {"required": ["b"]}},
                "names": {"propertyNames": {"pattern": "^[a-z]+$"}},
                "needs": {"dependentRequired": {"a": ["b"]}},
                "local": {"$defs": {"n": {"type": "null"}}, "type": "null"},
            },
            "patternProperties": {"^x-": {"type": "integer"}},
        },
        Text={"type": "string"},
    )
    good = {"const": 5, "both": "a", "tuple": ["a"], "if": {"a": 1, "b": 2}, "x-a": 1}
    assert check({**good, "names": {"a": 1}, "local": None}) == []
    bad = {"const": "5", "both": "ab", "tuple": ["a", 1], "if": {"a": 1}, "x-a": "1"}
    assert set(check({**bad, "names": {"A": 1}, "needs": {"a": 1}, "local": 1})) == {
        ("spec.const", "const"),
        ("spec.both", "maxLength"),
        ("spec.tuple[1]", "items"),
        ("spec.if.b", "required"),
        ("spec.x-a", "type"),
        ("spec.names", "pattern"),
        ("spec.needs.b", "dependentRequired"),
        ("spec.local", "type"),
    }


def test_a_long_enum_is_reported_as_its_first_20_values_and_the_number_of_others() -> None:
    def message(count: int) -> str:
        validator = compile_schema({"enum": [f"v{number}" for number in range(count)]})
        [found] = faults_module.faults(validator, "x", ["spec"])
        return found["message"]

    twenty = "must be one of " + ", ".join(f"v{number}" for number in range(20))
    assert message(20) == twenty
    assert message(22) == f"{twenty} and 2 more"


def test_a_value_of_the_wrong_type_is_reported_for_its_type_alone(tmp_path: Path) -> None:
    members = {"a": {"type": "string", "enum": ["x", "y"]}, "b": {"type": "string", "const": "x"}}
    check = compiled(tmp_path, "3.1.0", {"properties": members})
    assert check({"a": 5, "b": 5}) == [("spec.a", "type"), ("spec.b", "type")]
    assert check({"a": "z", "b": "z"}) == [("spec.a", "enum"), ("spec.b", "const")]


def test_circular_references_terminate(tmp_path: Path) -> None:
    tree = {"properties": {"left": {"$ref": "#/components/schemas/Tree"}, "n": {"type": "integer"}}}
    check = compiled(tmp_path, "3.0.3", {"$ref": "#/components/schemas/Tree"}, Tree=tree)
    value: dict[str, Any] = {"n": "x"}
    for _ in range(60):
        value = {"left": value}
    assert check(value) == [("spec" + ".left" * 60 + ".n", "type")]
    # This schema constrains nothing, but must not be followed forever.
    loop = {"$ref": "#/components/schemas/Loop"}
    assert compiled(tmp_path, "3.0.3", loop, Loop={"allOf": [loop]})({}) == []


def test_a_pattern_cannot_hang_the_service(tmp_path: Path) -> None:
    slow = {"type": "string", "pattern": r"^(([a-z])+.)+(?!q)[A-Z]([a-z])+$"}
    check = compiled(tmp_path, "3.0.3", {"properties": {"list": {"items": slow}}})
    start = time.thread_time()
    # A match that takes too long counts as none.
    assert check({"list": ["a" * 40 + "!"] * 1000})[0] == ("spec.list[0]", "pattern")
    assert check({"list": ["a" * 40 + "!"] * 20_000}) == [("spec.list[0]", "pattern")]
    assert time.thread_time() - start < 3
    assert check({"list": ["aaaaAa"] * 1000}) == []


def test_ambiguous_discriminators_leave_the_choice_to_the_schemas(tmp_path: Path) -> None:
    kinds = {"type": "object", "properties": {"t": {"enum": ["x", "y"]}, "n": {"type": "integer"}}}
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in "AB"]
    one = {"oneOf": refs, "discriminator": {"propertyName": "t"}}
    check = compiled(
        tmp_path, "3.0.3", one, A={**kinds, "required": ["a"]}, B={**kinds, "required": ["b"]}
    )
    assert check({"t": "x", "a": 1}) == []
    assert check({"t": "x"}) == [("spec", "oneOf")]
    # A discriminator does not select by lists.
    either = {"properties": {"t": {"enum": [["x"], "x"]}}, "required": ["a"]}
    check = compiled(tmp_path, "3.0.3", one, A=either, B={"properties": {"t": {"enum": ["y"]}}})
    assert check({"t": "x"}) == [("spec.a", "required")]
    assert check({"t": "y"}) == []
    # This is a key without a value in YAML.
    check = compiled(tmp_path, "3.0.3", {"oneOf": [{"required": ["t"]}], "discriminator": None})
    assert check({"u": 1}) == [("spec.t", "required")]


def test_a_member_that_the_intended_alternative_lacks_is_named(tmp_path: Path) -> None:
    disk = {"type": "object", "properties": {"size": {}}, "additionalProperties": False}
    check = compiled(tmp_path, "3.0.3", {"properties": {"disk": {"oneOf": [disk, {"type": "string"}]}}})
    assert check({"disk": {"size": 1, "sizee": 1}}) == [("spec.disk.sizee", "additionalProperties")]


def test_a_read_only_member_may_be_omitted_wherever_it_is_declared_read_only(tmp_path: Path) -> None:
    base = {"properties": {"id": {"type": "string", "readOnly": True}, "size": {"type": "integer"}}}
    own = {"required": ["id", "size"]}
    inner = {"$ref": SCHEMAS + "Base/properties/id"}
    for spec in (
        {"allOf": [{"$ref": SCHEMAS + "Base"}, own]},
        {"allOf": [{"$ref": SCHEMAS + "Base"}], **own},
        {"properties": {"id": inner, "size": {"type": "integer"}}, **own},
    ):
        check = compiled(tmp_path, "3.0.3", spec, Base=base)
        assert check({"size": 1}) == []
        assert {*check({"id": 1})} == {("spec.size", "required"), ("spec.id", "type")}
    # The schema that requires it may be elsewhere, too, and does require it where it is not read-only.
    needs = {"allOf": [{"$ref": SCHEMAS + "Own"}]}
    spec = {"allOf": [{"$ref": SCHEMAS + "Needs"}, {"$ref": SCHEMAS + "Base"}]}
    spec["properties"] = {"inner": {"$ref": SCHEMAS + "Needs"}}
    check = compiled(tmp_path, "3.0.3", spec, Base=base, Needs=needs, Own=own)
    assert check({"size": 1}) == []
    assert {*check({"id": 1})} == {("spec.size", "required"), ("spec.id", "type")}
    assert check({"size": 1, "inner": {}}) == [
        ("spec.inner.id", "required"),
        ("spec.inner.size", "required"),
    ]
    # The same holds for schemas that contain themselves.
    for wrapped in ({"$ref": SCHEMAS + "Base"}, {"allOf": [{"$ref": SCHEMAS + "Base"}]}, needs, spec):
        node = {**base, "required": ["id", "size"]}
        node["properties"] = {**node["properties"], "child": wrapped}
        check = compiled(tmp_path, "3.0.3", wrapped, Base=node, Needs=needs, Own={"allOf": [node]})
        assert check({"size": 1, "child": {"size": 1, "child": {"size": 1}}}) == []
        assert {*check({"size": 1, "child": {"size": 1, "child": {"id": 1}}})} == {
            ("spec.child.child.size", "required"),
            ("spec.child.child.id", "type"),
        }
    # References that end in the same name are still to different schemas.
    members = {"id": {"$ref": SCHEMAS + "Base/properties/size"}, "other": {"$ref": SCHEMAS + "size"}}
    spec = {"required": ["id"], "properties": members}
    check = compiled(tmp_path, "3.0.3", spec, Base=base, size={"readOnly": True})
    assert check({}) == [("spec.id", "required")]


SCHEMAS = "#/components/schemas/"
ANIMAL = {
    "type": "object",
    "required": ["kind"],
    "properties": {"kind": {"type": "string"}},
    "discriminator": {"propertyName": "kind"},
}


def extending(parent: str, member: str, **more: Any) -> dict[str, Any]:
    own = {"properties": {member: {"type": "integer"}}}
    return {"allOf": [{"$ref": SCHEMAS + parent}, own], **more}


def test_a_discriminator_also_selects_schemas_that_extend_a_child(tmp_path: Path) -> None:
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}}}
    cat, lion = extending("Animal", "lives"), extending("Cat", "mane")
    check = compiled(tmp_path, "3.0.3", pet, Animal=ANIMAL, Cat=cat, Lion=lion)
    assert check({"pet": {"kind": "Cat", "mane": "any"}}) == []
    assert check({"pet": {"kind": "Lion", "lives": 1, "mane": 1}}) == []
    assert check({"pet": {"kind": "Lion", "lives": "x", "mane": "y"}}) == [
        ("spec.pet.lives", "type"),
        ("spec.pet.mane", "type"),
    ]
    # The schema in between may have a discriminator, too, and offers a choice like its parent.
    own = {"discriminator": {"propertyName": "kind"}}
    check = compiled(tmp_path, "3.0.3", pet, Animal=ANIMAL, Cat={**cat, **own}, Lion=lion)
    assert check({"pet": {"kind": "Cat", "lives": 9}}) == []
    assert check({"pet": {"kind": "Lion", "lives": 1, "mane": 1}}) == []
    assert check({"pet": {"kind": "Lion", "lives": "x"}}) == [("spec.pet.lives", "type")]
    assert check({"pet": {"kind": "CatBase"}}) == [("spec.pet.kind", "enum")]
    # A parent that its own mapping names is an alternative itself.
    targets = {"some": SCHEMAS + "Animal", "cat": "Cat"}
    some = {**ANIMAL, "discriminator": {"propertyName": "kind", "mapping": targets}}
    check = compiled(tmp_path, "3.0.3", pet, Animal=some, Cat=cat)
    assert check({"pet": {"kind": "some", "lives": "any"}}) == []
    assert check({"pet": {"kind": "cat", "lives": "x"}}) == [("spec.pet.lives", "type")]


@pytest.mark.parametrize("mapping", [{}, {"cat": SCHEMAS + "Cat", "dog": SCHEMAS + "Dog"}])
def test_a_grandchild_without_a_value_of_its_own_is_not_an_alternative(
    tmp_path: Path, mapping: dict[str, str]
) -> None:
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}}}
    animal = {**ANIMAL, "discriminator": {"propertyName": "kind", "mapping": mapping}}
    cat, dog = extending("Animal", "lives"), extending("Animal", "bark")
    cat["allOf"][1]["properties"]["kind"] = {"enum": ["cat"]}
    dog["allOf"][1]["properties"]["kind"] = {"enum": ["dog"]}
    lion = extending("Cat", "mane")
    check = compiled(tmp_path, "3.0.3", pet, Animal=animal, Cat=cat, Dog=dog, Lion=lion)
    assert check({"pet": {"kind": "cat", "mane": "any"}}) == []
    assert check({"pet": {"kind": "cat", "lives": "x"}}) == [("spec.pet.lives", "type")]
    assert check({"pet": {"kind": "Lion"}}) == [("spec.pet.kind", "enum")]


def test_a_mapping_takes_precedence_over_values_inherited_from_the_parent(tmp_path: Path) -> None:
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}}}
    targets = {"dog": SCHEMAS + "Dog", "lion": SCHEMAS + "Lion"}
    animal = {
        **ANIMAL,
        "properties": {"kind": {"enum": ["cat", "dog", "lion"]}},
        "discriminator": {"propertyName": "kind", "mapping": targets},
    }
    cat = extending("Animal", "lives", discriminator={"propertyName": "kind"})
    dog, lion = extending("Animal", "bark"), extending("Cat", "mane")
    check = compiled(tmp_path, "3.0.3", pet, Animal=animal, Cat=cat, Dog=dog, Lion=lion)
    assert check({"pet": {"kind": "cat", "lives": "x"}}) == [("spec.pet.lives", "type")]
    assert check({"pet": {"kind": "dog", "lives": "any"}}) == []
    assert check({"pet": {"kind": "lion", "mane": "x"}}) == [("spec.pet.mane", "type")]


def test_a_parent_with_a_discriminator_keeps_its_name_and_its_parts(tmp_path: Path) -> None:
    animal = {**ANIMAL, "properties": {"kind": {"type": "string"}, "age": {"format": "years"}}}
    sort = {"$ref": SCHEMAS + "Animal/properties/kind"}
    pet = {"properties": {"pet": {"$ref": SCHEMAS + "Animal"}, "sort": sort}}
    named = {"ClusterSpec": pet, "Animal": animal, "Cat": extending("Animal", "lives")}
    file = tmp_path / "provider.json"
    file.write_text(json.dumps({"openapi": "3.0.3", "components": {"schemas": named}}))
    document = read(file)
    assert document.schemas == named
    assert document.warnings == [
        "components.schemas.Animal.properties.age.format: years is not a known format; it is not checked"
    ]
    check = compiled(tmp_path, "3.0.3", pet, Animal=animal, Cat=named["Cat"])
    assert check({"pet": {"kind": "Cat", "lives": 9}, "sort": "Cat"}) == []
    assert check({"sort": 5}) == [("spec.sort", "type")]


@pytest.mark.parametrize("mapping", [{}, {"1": SCHEMAS + "One", "2": "Two"}], ids=["none", "strings"])
def test_a_discriminator_may_select_by_values_that_are_not_strings(
    tmp_path: Path, mapping: dict[str, str]
) -> None:
    one, two = (
        {
            "required": ["version"],
            "properties": {"version": {"type": "integer", "enum": [number]}, "size": {"type": type_}},
        }
        for number, type_ in ((1, "integer"), (2, "string"))
    )
    refs = [{"$ref": SCHEMAS + name} for name in ("One", "Two")]
    choice = {"oneOf": refs, "discriminator": {"propertyName": "version", "mapping": mapping}}
    check = compiled(tmp_path, "3.0.3", choice, One=one, Two=two)
    assert check({"version": 1, "size": 1}) == check({"version": 2, "size": "s"}) == []
    assert check({"version": 2, "size": 1}) == [("spec.size", "type")]
    assert check({"version": "1", "size": 1}) == [("spec.version", "enum")]


@pytest.mark.parametrize(
    "null",
    [
        {"type": "null"},
        {"type": ["null"], "description": "None of them."},
        {"const": None},
        {"enum": [None]},
        {"$ref": SCHEMAS + "None"},
    ],
    ids=["type", "types", "const", "enum", "ref"],
)
def test_a_null_alternative_does_not_disable_the_discriminator(
    tmp_path: Path, null: dict[str, Any]
) -> None:
    refs = [{"$ref": SCHEMAS + name} for name in ("One", "Two")]
    choice = {"oneOf": [*refs, null], "discriminator": {"propertyName": "kind"}}
    one, two = (
        {"type": "object", "properties": {"size": {"type": name}}} for name in ("integer", "string")
    )
    named = {"One": one, "Two": two, "None": {"type": "null"}}
    check = compiled(tmp_path, "3.1.0", {"properties": {"a": choice}}, **named)
    assert check({"a": None}) == check({"a": {"kind": "One"}}) == check({"a": {"kind": "Two"}}) == []
    assert check({"a": {"kind": "Two", "size": 1}}) == [("spec.a.size", "type")]
    assert check({"a": {"kind": "Three"}}) == [("spec.a.kind", "enum")]
    assert check({"a": 5}) == [("spec.a", "type")]


# Files that are missing or broken -----------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_document_is_reported_with_its_file_and_the_place(name: str, tmp_path: Path) -> None:
    text, expected = BROKEN[name]
    file = tmp_path / "provider.yaml"
    file.write_text(text)
    with pytest.raises(BrokenDocument) as raised:
        read(file)
    assert raised.value.faults[0].startswith(str(file))
    assert expected in raised.value.faults[0]


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
        HEAD + "      properties: {a: {$ref: '#/components/schemas/A', nullable: true}}\n    A: {}\n"
    )
    warnings += read(file).warnings
    assert warnings == [
        "components.schemas.ClusterSpec.properties.a.minimun: is not a known keyword; it is not checked",
        "components.schemas.ClusterSpec.properties.a.format: cidr is not a known format; it is not checked",
        "components.schemas.ClusterSpec.properties.a.nullable: is ignored: OpenAPI 3.0 ignores what is beside a $ref",
    ]
    file.write_text(
        HEAD.replace("3.0.3", "3.1.0")
        + "      properties: {a: {type: string, nullable: true}, b: {items: {}, additionalItems: false}}\n"
    )
    assert read(file).warnings == [
        "components.schemas.ClusterSpec.properties.a.nullable: is not checked in OpenAPI 3.1: use type: [..., 'null']",
        "components.schemas.ClusterSpec.properties.b.additionalItems: is not checked in OpenAPI 3.1: use items, beside prefixItems",
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
def test_a_refused_start_names_the_line_the_command_to_check_it_and_the_setting(tmp_path: Path) -> None:
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
        },
        "items": {},
        "additionalProperties": False,
    }


def test_schemas_with_names_that_the_contract_uses_are_renamed_in_openapi(
    service: Callable[..., Api], tmp_path: Path
) -> None:
    file = tmp_path / "provider.yaml"
    ref = {"$ref": "#/components/schemas/ClusterStatus"}
    document = {
        "openapi": "3.0.3",
        "components": {
            "schemas": {
                "ClusterSpec": {"type": "object", "properties": {"a": ref}},
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
    assert "on" in shown["ProviderClusterStatus"]["properties"]
    assert create(api, {"a": {"on": True, "next": {"on": 1}}}).status_code == 400
