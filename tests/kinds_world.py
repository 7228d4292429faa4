"""A service with kinds that an operator declares."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import declared_kinds
import pytest
import requests
from alike import FINALIZED, answered, at, unique
from conftest import Api, migrated
from process import Serving
from pytest_postgresql.executors import NoopExecutor

Json = dict[str, Any]

CHANNEL: Json = {"kind": "Channel", "plural": "channels"}
KINDS: list[Json] = [
    {"kind": "Cluster", "plural": "clusters", "name_min_len": 3, "name_max_len": 53},
    # Listed before their parent, since the order of the list does not matter.
    {"kind": "Rack", "plural": "racks", "parent_kind": "Zone", "on_parent_delete": "cascade"},
    {
        "kind": "Zone",
        "plural": "zones",
        "parent_kind": "Region",
        "on_parent_delete": "cascade",
        "required_adapters": ["zone"],
    },
    {"kind": "Region", "plural": "regions"},
    {"kind": "Channel", "plural": "channels", "spec_schema_name": "ChannelShape"},
    # Shares its schema with another kind.
    {"kind": "Mirror", "plural": "mirrors", "spec_schema_name": "ChannelShape"},
    {"kind": "Version", "plural": "versions", "parent_kind": "Channel"},
    {
        "kind": "WifConfig",
        "plural": "wif-configs",
        "name_min_len": 3,
        "name_max_len": 10,
        "required_adapters": ["wif"],
        "conditions": [
            {
                "type": "Heard",
                "when": {"expression": "statuses.exists(s, s.adapter == 'wif')"},
                "output": {
                    "status": {"expression": "'True'"},
                    "reason": {"expression": "resource.name"},
                    "message": {"expression": "'m'"},
                },
            }
        ],
    },
    {"kind": "Addon", "plural": "addons", "parent_kind": "Cluster", "on_parent_delete": "cascade"},
    {"kind": "Disk", "plural": "disks", "parent_kind": "NodePool", "on_parent_delete": "cascade"},
    {"kind": "Lease", "plural": "leases", "parent_kind": "Disk"},
]
PROVIDER = """
openapi: 3.0.0
info: {title: Specs, version: '1'}
paths: {}
components:
  schemas:
    ChannelShape:
      type: object
      properties: {stable: {type: boolean}}
"""


@dataclass
class World:
    """A running service and its database, in which each resource gets its own name."""

    server: Serving
    database: str
    api: Api

    def make(self, kind: str, above: Json | None = None, name: str = "", **members: Any) -> Json:
        """Creates a resource of a kind, below another one if given."""
        path = below(above, PLURALS[kind]) if above else f"/{PLURALS[kind]}"
        given = {"name": name or unique(), "spec": {}, **members}
        return answered(self.api.post(path, json=given), 201)

    def finalized(self, resource: Json, adapter: str, generation: int = 2) -> requests.Response:
        return self.api.report(resource, adapter, observed_generation=generation, conditions=FINALIZED)

    def deleted(self, resource: Json) -> Json:
        return answered(self.api.delete(at(resource)), 202)

    def status(self, resource: Json) -> int:
        return self.api.get(at(resource)).status_code


PLURALS = {one["kind"]: one["plural"] for one in KINDS} | {"NodePool": "nodepools"}


def below(above: Json, plural: str) -> str:
    """Returns the path of the children of a resource, which names no other owner."""
    return f"/{PLURALS[above['kind']]}/{above['id']}/{plural}"


def refused(response: requests.Response, status: int) -> str:
    """Returns the detail of a refusal."""
    return str(answered(response, status)["detail"])


@pytest.fixture(scope="module")
def world(postgres: NoopExecutor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "specs.yaml").write_text(PROVIDER)
    with (
        migrated(postgres, "kinds") as database,
        Serving(
            "--no-auth",
            "--validate-responses=all",
            f"--config={declared_kinds.file(folder, KINDS)}",
            f"--openapi-schema-path={folder / 'specs.yaml'}",
            f"--database-url={database}",
        ) as server,
    ):
        yield World(server, database, Api(server.url))
