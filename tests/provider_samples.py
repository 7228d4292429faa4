"""Specs of providers, how to post them, and broken documents."""
# ruff: noqa: E501 (a line for each document)

import json
import time
from pathlib import Path
from typing import Any

import requests
from conftest import Api

PROVIDERS = Path(__file__).parent / "providers"

GCP = {
    "release": {"version": "4.17.3", "channel": "fast"},
    "displayName": None,
    "platform": {
        "gcp": {
            "projectID": "my-project-1",
            "region": "europe-west1",
            "network": "default",
            "diskSize": 100,
            "kmsKey": "https://example.com/key",
            "serviceAccount": "robot@example.com",
            "budget": 0.5,
            "quota": 2**63 - 1,
            "startupScript": "aGVsbG8=",
            "labels": {"team": "a_b-1"},
        }
    },
    "zones": ["europe-west1-a", "europe-west1-b"],
    "networking": {
        "podCIDR": "10.0.0.0/16",
        "apiAddress": "2001:db8::1",
        "mtu": 1500,
        "routes": {"to": "a", "behind": [{"to": "b", "behind": [{"to": "c"}]}]},
    },
    "maintenance": None,
}
GCP_POOL = {
    "machineType": "n2-standard-8",
    "replicas": 3,
    "bootDisk": {"sizeGb": 20, "encrypted": "on"},
    "taints": [{"key": "gpu", "value": None, "effect": "NoSchedule"}],
}
AWS = {
    "region": "us-east-1",
    "fips": None,
    "platform": {
        "type": "rosa",
        "accountId": "123456789012",
        "roleArns": ["arn:aws:iam::123456789012:role/x"],
    },
    "endpoint": {"access": "private", "vpc": "vpc-0a1b2c3d"},
    "identity": {"kind": "Oidc", "issuer": "https://example.com"},
}
AWS_POOL = {"instanceType": "m5.xlarge", "replicas": 3, "volume": {"type": "io2", "iops": 5000}}
SHAPES: list[Any] = [
    "a-name",
    100,
    "large",
    True,
    0.5,
    "10.0.0.1",
    ["zone-1", "zone-2"],
    {"key": "value"},
    None,
    {"name": "abc", "weight": 5},
]
WIDE = {
    section: {f"p{number:03}": SHAPES[number % 10] for number in range(start, start + 40)}
    for start, section in zip(
        range(0, 200, 40), ("compute", "network", "storage", "security", "addons"), strict=True
    )
}


def at(path: str, value: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of a spec with another value at a path; a path that ends in - is removed."""
    changed: Any = json.loads(json.dumps(spec))
    node, parts = changed, path.rstrip("-").split(".")
    for part in parts[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[int(part)]
    if path.endswith("-"):
        del node[parts[-1]]
    elif isinstance(node, list):
        node[int(parts[-1])] = value
    else:
        node[parts[-1]] = value
    return changed


HEAD = "openapi: 3.0.3\ncomponents:\n  schemas:\n    ClusterSpec:\n"
BROKEN = {
    "yaml": (HEAD + "   - x: [\n", "line 5, column 4: is not YAML: "),
    "twice": (HEAD + "      type: object\n      type: object\n", "line 6, column 7: is not YAML: found duplicate key \"type\""),
    "json": ('{"openapi": "3.0.3",\n "x": }', "line 2, column 7: is not JSON: Expecting value"),
    "text": ("hello", "line 1: is not an OpenAPI document: it must hold a mapping with the key openapi"),
    "swagger": ("swagger: '2.0'\n", "the key openapi is missing; OpenAPI 3.0 and 3.1 are understood"),
    "version": ("openapi: 4.0.0\n", "line 1: openapi: openapi is 4.0.0; OpenAPI 3.0 and 3.1 are understood"),
    "later": ("openapi: 3.10.0\n", "line 1: openapi: openapi is 3.10.0; OpenAPI 3.0 and 3.1 are understood"),
    "merged": ("x: &x {type: strng}\n" + HEAD + "      <<: *x\n", "line 5: components.schemas.ClusterSpec.type: must be one of array, "),
    "number": (HEAD + "      properties: {a: {pattern: 5}}\n", "line 5: components.schemas.ClusterSpec.properties.a.pattern: must be a string"),
    "list": (HEAD + "      patternProperties: [5]\n", "line 5: components.schemas.ClusterSpec.patternProperties: must be an object"),
    "schemas": ("openapi: 3.0.3\ncomponents: {schemas: [1]}\n", "line 2: components.schemas: must hold schemas by their names"),
    "type": (HEAD + "      properties:\n        a:\n          type: strng\n", "line 7: components.schemas.ClusterSpec.properties.a.type: must be one of array, boolean, integer, null, number, object, string"),
    "required": (HEAD + "      properties:\n        a: {required: true}\n", "line 6: components.schemas.ClusterSpec.properties.a.required: must be an array"),
    "pattern": (HEAD + "      properties: {a: {pattern: '['}}\n", "components.schemas.ClusterSpec.properties.a.pattern: must be a regular expression"),
    "large": (HEAD + "      properties:\n        a:\n          pattern: '^([a-z]{1,1000}){1,1000}$'\n", "line 7: components.schemas.ClusterSpec.properties.a.pattern: is a regular expression that is too large or uses unsupported syntax"),
    "keys": (HEAD + "      patternProperties: {'^[]$': {}}\n", "line 5: components.schemas.ClusterSpec.patternProperties.^[]$: is a regular expression that is too large or uses"),
    "nullable": (HEAD + "      nullable: 'yes'\n", "components.schemas.ClusterSpec.nullable: must be true or false"),
    "discriminator": (HEAD + "      discriminator: type\n", "components.schemas.ClusterSpec.discriminator: must be an object with a propertyName"),
    "infinite": (HEAD + "      default: .nan\n", "line 5: components.schemas.ClusterSpec.default: is not a number in JSON"),
    "infinite item": (HEAD + "      enum: [1, .inf]\n", "line 5: components.schemas.ClusterSpec.enum.1: is not a number in JSON"),
    "parent": (HEAD + "      discriminator: {propertyName: a}\n      properties: {b: {$ref: '#/components/schemas/A'}}\n    A: {allOf: 5}\n", "line 7: components.schemas.A.allOf: must be an array"),
    "discriminating": (HEAD + "      properties: {a: {$ref: '#/components/schemas/A'}}\n    B: {allOf: [{$ref: '#/components/schemas/A'}]}\n    A:\n      discriminator: {propertyName: a}\n      properties:\n        b: {type: strng}\n", "line 10: components.schemas.A.properties.b.type: must be one of array, "),
    "nowhere": (HEAD + "      $ref: '#/components/schemas/Gone'\n", "line 5: components.schemas.ClusterSpec.$ref: refers to #/components/schemas/Gone, which is not in this document"),
    "mapping": (HEAD + "      discriminator:\n        propertyName: a\n        mapping: {x: Gone}\n", "line 7: components.schemas.ClusterSpec.discriminator.mapping.x: refers to #/components/schemas/Gone, which is not in this document"),
    "date": (HEAD + "      default: 2025-13-45\n      type: strng\n", ": components.schemas.ClusterSpec.type: must be one of array, boolean, "),
    "nested": (HEAD + "      {type: strng, properties: " + "{a: {properties: " * 150 + "{}" + "}}" * 150 + "}\n", ": components.schemas.ClusterSpec.type: must be one of array, boolean, "),
    "deep": (HEAD.rstrip() + " " + "{items: " * 5000 + "{}" + "}" * 5000, "is nested too deeply"),
    "null": (HEAD, "components.schemas.ClusterSpec: must be a boolean or an object"),
    "elsewhere": (HEAD + "      $ref: '#/x-more/A'\nx-more: {A: {}}\n", "refers to #/x-more/A; what is referred to must be in components.schemas"),
    "anchor": (HEAD + "      $ref: '#here'\n", "refers to #here; what is referred to must be in components.schemas"),
    "remote": (HEAD + "      $ref: 'https://example.com/a.yaml#/A'\n", "refers to https://example.com/a.yaml#/A; nothing is fetched: put that schema into this document"),
    "file": (HEAD + "      $ref: 'file:///etc/passwd'\n", "refers to file:///etc/passwd; nothing is fetched"),
    "sibling": (HEAD + "      $ref: 'other.yaml#/A'\n", "refers to other.yaml#/A; nothing is fetched"),
    "itself": (HEAD + "      &a {properties: {a: *a}}\n", "a YAML anchor contains itself"),
}  # fmt: skip


def create(api: Api, spec: Any, kind: str = "Cluster") -> requests.Response:
    """Posts a resource under a name of its own."""
    name = f"n{time.monotonic_ns()}"
    if kind == "Cluster":
        return api.post("/clusters", json={"name": name, "spec": spec})
    owner = api.get("/clusters").json()["items"][0]["id"]
    return api.post(f"/clusters/{owner}/nodepools", json={"name": name, "spec": spec})
