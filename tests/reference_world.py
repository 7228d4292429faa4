"""A service with kinds that refer to each other, and its client."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import declared_kinds
import pytest
import requests
from alike import FINALIZED, MERGE, answered, at, unique
from conftest import Api, migrated
from process import Serving
from pytest_postgresql.executors import NoopExecutor

Json = dict[str, Any]

KINDS: list[Json] = [
    {
        "kind": "Cluster",
        "required_adapters": ["dns"],
        "references": [
            {"ref_type": "wif_config", "target_kind": "WifConfig", "max": 1},
            {"ref_type": "peers", "target_kind": "Cluster"},
        ],
    },
    {
        "kind": "NodePool",
        "references": [{"ref_type": "image", "target_kind": "Image", "min": 1, "max": 2}],
    },
    {"kind": "WifConfig", "plural": "wif-configs"},
    {"kind": "Image", "plural": "images", "required_adapters": ["registry"]},
    {"kind": "Region", "plural": "regions"},
    {
        "kind": "Zone",
        "plural": "zones",
        "parent_kind": "Region",
        "on_parent_delete": "cascade",
        "required_adapters": ["zone"],
        "references": [
            {"ref_type": "backup", "target_kind": "Zone"},
            {"ref_type": "home", "target_kind": "Region", "max": 1},
        ],
    },
]
PLURALS = {"Cluster": "clusters", "NodePool": "nodepools"} | {
    one["kind"]: one["plural"] for one in KINDS if "plural" in one
}


def detail_of(response: requests.Response, status: int) -> str:
    return str(answered(response, status)["detail"])


def faults(response: requests.Response, status: int = 400) -> list[tuple[str, str]]:
    return [(one["field"], one["message"]) for one in answered(response, status)["errors"]]


def ids(*resources: Json) -> list[Json]:
    return [{"id": one["id"]} for one in resources]


def shown(*resources: Json) -> list[Json]:
    """Returns references to these as responses show them."""
    return [{name: one[name] for name in ("kind", "id", "href")} for one in resources]


@dataclass
class World:
    """A running service and its database."""

    server: Serving
    database: str
    api: Api

    def path(self, kind: str, above: Json | None = None) -> str:
        return at(above, f"/{PLURALS[kind]}") if above else f"/{PLURALS[kind]}"

    def make(self, kind: str, above: Json | None = None, **members: Any) -> Json:
        given = {"name": unique(), "spec": {}, **members}
        return answered(self.api.post(self.path(kind, above), json=given), 201)

    def read(self, resource: Json) -> Json:
        return answered(self.api.get(at(resource)))

    def status(self, resource: Json) -> int:
        return self.api.get(at(resource)).status_code

    def patch(self, resource: Json, body: Json, **headers: str) -> requests.Response:
        return self.api.patch(at(resource), json=body, headers=headers)

    def merge(self, resource: Json, body: Json) -> requests.Response:
        return self.patch(resource, body, **{"Content-Type": MERGE})

    def delete(self, resource: Json) -> Json:
        return answered(self.api.delete(at(resource)), 202)

    def finalize(self, resource: Json, adapter: str, generation: int = 2) -> None:
        given = {"observed_generation": generation, "conditions": FINALIZED}
        assert self.api.report(resource, adapter, **given).status_code == 201

    def found(self, path: str, **query: str) -> set[str]:
        return {one["id"] for one in answered(self.api.get(path, params=query))["items"]}


@pytest.fixture(scope="module")
def world(postgres: NoopExecutor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        migrated(postgres, "references") as database,
        Serving(
            "--no-auth",
            "--validate-responses=all",
            f"--config={declared_kinds.file(tmp_path_factory.mktemp('references'), KINDS)}",
            f"--database-url={database}",
        ) as server,
    ):
        yield World(server, database, Api(server.url))
