"""A service that keeps tenants apart, and its clients."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from alike import answered, at
from conftest import Api, migrated
from process import Serving
from pytest_postgresql.executors import NoopExecutor

Json = dict[str, Any]

FILE = """
server:
  tenant:
    enabled: true
    system_header: X-System
    dimensions:
      - {header: X-Org, key: org, required: true}
      - {header: X-Project, key: project}
entities:
  - {kind: Channel, plural: channels}
  - {kind: Version, plural: versions, parent_kind: Channel, on_parent_delete: cascade}
  - {kind: Addon, plural: addons, parent_kind: Cluster, on_parent_delete: restrict}
  - kind: User
    plural: users
    references:
      - {ref_type: channel, target_kind: Channel}
      - {ref_type: spare, target_kind: Channel}
  - kind: Seat
    plural: seats
    parent_kind: Channel
    on_parent_delete: cascade
    references: [{ref_type: channel, target_kind: Channel}]
"""


class Caller(Api):
    """A client behind a gateway that sets the headers of its tenant."""

    def __init__(self, url: str, **said: str) -> None:
        super().__init__(url)
        self.headers.update({f"X-{name.capitalize()}": value for name, value in said.items()})


@dataclass
class World:
    """A running service; each of its clients gets a tenant of its own."""

    url: str
    database: str

    def caller(self, org: str = "", project: str = "") -> Caller:
        said = {"org": org or f"org-{uuid4().hex[:8]}"} | ({"project": project} if project else {})
        return Caller(self.url, **said)

    @property
    def system(self) -> Caller:
        return Caller(self.url, system="true")


@pytest.fixture(scope="module")
def world(postgres: NoopExecutor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    file = tmp_path_factory.mktemp("tenants") / "config.yaml"
    file.write_text(FILE)
    with (
        migrated(postgres, "tenants") as database,
        Serving(
            "--no-auth",
            "--validate-responses=all",
            f"--config={file}",
            f"--database-url={database}",
            env={"HYPERFLEET_REQUIRED_ADAPTERS_CLUSTER": "dns"},
        ) as server,
    ):
        yield World(server.url, database)


def everything(api: Api) -> list[tuple[Json, list[str]]]:
    """Creates a resource of each kind; returns each with its paths."""
    cluster = api.cluster()
    pool = api.node_pool(cluster)
    channel = answered(api.post("/channels", json={"name": "c", "spec": {}}), 201)
    version = answered(api.post(at(channel, "/versions"), json={"name": "v", "spec": {}}), 201)
    addon = answered(api.post(at(cluster, "/addons"), json={"name": "a", "spec": {}}), 201)
    plurals = {"Cluster": "clusters", "NodePool": "nodepools", "Channel": "channels"}
    plurals |= {"Version": "versions", "Addon": "addons"}
    return [
        (
            one,
            list(
                dict.fromkeys(
                    (at(one), f"/{plurals[one['kind']]}/{one['id']}", f"/resources/{one['id']}")
                )
            ),
        )
        for one in (cluster, pool, channel, version, addon)
    ]
