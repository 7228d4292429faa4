"""Isolation of tenants against a model: random callers and operations, and nothing leaks."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg
import pytest
from conftest import MORE, Api, migrated
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from process import Serving
from pytest_postgresql.executors import NoopExecutor
from tenant_world import FILE

pytestmark = pytest.mark.slow

Json = dict[str, Any]

# The last one, a system caller, sees everything; the first one also sees what its projects have.
CALLERS: tuple[dict[str, str], ...] = (
    {"org": "a"},
    {"org": "a", "project": "one"},
    {"org": "a", "project": "two"},
    {"org": "b", "project": "one"},
    {"org": "b", "project": "one-more"},
    {},
)
KINDS = ("clusters", "nodepools", "channels", "versions")
ABOVE = {"nodepools": "clusters", "versions": "channels"}
NAMES = ("x", "y", "z")
WHO = st.sampled_from(CALLERS)
WHICH = st.sampled_from(range(24))


@dataclass(eq=False)
class Known:
    """A resource in the model."""

    plural: str
    id: str
    name: str
    tenancy: dict[str, str]
    owner: "Known | None"
    marked: bool = False
    reported: int = 0
    spec: int = 0

    def seen(self, caller: dict[str, str]) -> bool:
        return caller.items() <= self.tenancy.items()


class Isolation(RuleBasedStateMachine):
    """One service, several tenants."""

    url: ClassVar[str]
    sql: ClassVar[psycopg.Connection]

    @initialize()
    def empty(self) -> None:
        for table in ("node_pools", "clusters", "resources", "adapter_statuses", "labels"):
            self.sql.execute(f"DELETE FROM {table}")
        self.sql.execute("DELETE FROM idempotency_keys")
        self.known: list[Known] = []
        self.keys = Counter[str]()

    def api(self, caller: dict[str, str]) -> Api:
        api = Api(self.url)
        said = {f"X-{name.capitalize()}": value for name, value in caller.items()}
        api.headers.update(said or {"X-System": "true"})
        return api

    def one(self, which: int, *plurals: str) -> Known | None:
        some = [one for one in self.known if one.plural in (plurals or KINDS)]
        return some[which % len(some)] if some else None

    def paths(self, one: Known) -> list[str]:
        found = [f"/{one.plural}/{one.id}", f"/resources/{one.id}"]
        if one.owner:
            found.append(f"/{one.owner.plural}/{one.owner.id}/{one.plural}/{one.id}")
        return found

    def allowed(self, caller: dict[str, str], one: Known, status: int) -> int:
        """Returns the status of a write for which a caller with access gets ``status``."""
        if not caller:
            return 403
        return status if one.seen(caller) else 404

    @rule(caller=WHO, plural=st.sampled_from(KINDS), name=st.sampled_from(NAMES), which=WHICH)
    def create(self, caller: dict[str, str], plural: str, name: str, which: int) -> None:
        owner = self.one(which, ABOVE[plural]) if plural in ABOVE else None
        if plural in ABOVE and owner is None:
            return
        path = f"/{owner.plural}/{owner.id}/{plural}" if owner else f"/{plural}"
        # Each caller uses a key once; others use the same ones.
        self.keys[str(caller)] += 1
        headers = {"Idempotency-Key": f"key-{self.keys[str(caller)]}"} if which % 2 else {}
        answer = self.api(caller).post(path, json={"name": name, "spec": {}}, headers=headers)
        tenancy = owner.tenancy if owner else caller
        holders = [
            one.id
            for one in self.known
            if (one.plural, one.name, one.owner, one.tenancy) == (plural, name, owner, tenancy)
        ]
        if not caller:
            assert answer.status_code == 403
        elif owner and not owner.seen(caller):
            assert answer.status_code == 404
        elif owner and owner.marked:
            assert answer.status_code == 409
        elif holders:
            assert answer.status_code == 409
            assert holders[0] in answer.json()["detail"]
        else:
            assert answer.status_code == 201, answer.text
            self.known.append(Known(plural, answer.json()["id"], name, tenancy, owner))

    @rule(caller=WHO, which=WHICH, path=WHICH)
    def read(self, caller: dict[str, str], which: int, path: int) -> None:
        one = self.one(which)
        if one is None:
            return
        paths, api = self.paths(one), self.api(caller)
        answer = api.get(paths[path % len(paths)])
        reports = api.get(f"{paths[path % len(paths)]}/statuses")
        if not one.seen(caller):
            assert (answer.status_code, reports.status_code) == (404, 404)
            return
        document = answer.json()
        assert document["id"] == one.id
        assert document["spec"].get("n", 0) == one.spec
        assert ("deleted_time" in document) == one.marked
        assert reports.json()["total"] == one.reported

    @rule(caller=WHO, which=WHICH, path=WHICH)
    def change(self, caller: dict[str, str], which: int, path: int) -> None:
        one = self.one(which)
        if one is None:
            return
        paths = self.paths(one)
        answer = self.api(caller).patch(paths[path % len(paths)], json={"spec": {"n": one.spec + 1}})
        status = self.allowed(caller, one, 409 if one.marked else 200)
        assert answer.status_code == status, answer.text
        one.spec += status == 200

    @rule(caller=WHO, which=WHICH, path=WHICH)
    def report(self, caller: dict[str, str], which: int, path: int) -> None:
        one = self.one(which)
        if one is None:
            return
        paths = self.paths(one)
        body = {
            "adapter": f"adapter-{one.reported}",
            "observed_generation": 1,
            "conditions": [{"type": "Available", "status": "True"}],
        }
        answer = self.api(caller).put(f"{paths[path % len(paths)]}/statuses", json=body)
        assert answer.status_code == (201 if one.seen(caller) else 404), answer.text
        one.reported += one.seen(caller)

    @rule(caller=WHO, which=WHICH, path=WHICH)
    def mark(self, caller: dict[str, str], which: int, path: int) -> None:
        one = self.one(which)
        if one is None:
            return
        paths = self.paths(one)
        answer = self.api(caller).delete(paths[path % len(paths)])
        status = self.allowed(caller, one, 202)
        assert answer.status_code == status, answer.text
        if status == 202:
            for marked in [one, *(below for below in self.known if below.owner is one)]:
                marked.marked = True

    @rule(caller=WHO, which=WHICH, path=WHICH)
    def force(self, caller: dict[str, str], which: int, path: int) -> None:
        one = self.one(which)
        if one is None:
            return
        paths = self.paths(one)
        answer = self.api(caller).post(f"{paths[path % len(paths)]}/force-delete", json={"reason": "x"})
        status = self.allowed(caller, one, 204 if one.marked else 409)
        assert answer.status_code == status, answer.text
        if status == 204:
            self.known = [left for left in self.known if left is not one and left.owner is not one]

    @rule(caller=WHO, plural=st.sampled_from((*KINDS, "resources")), size=st.sampled_from((1, 2, 100)))
    def list(self, caller: dict[str, str], plural: str, size: int) -> None:
        expected = {
            one.id for one in self.known if plural in (one.plural, "resources") and one.seen(caller)
        }
        self.walk(caller, f"/{plural}?pageSize={size}", expected)

    @rule(caller=WHO, which=WHICH, size=st.sampled_from((1, 100)))
    def list_below(self, caller: dict[str, str], which: int, size: int) -> None:
        owner = self.one(which, "clusters", "channels")
        if owner is None:
            return
        plural = {"clusters": "nodepools", "channels": "versions"}[owner.plural]
        path = f"/{owner.plural}/{owner.id}/{plural}?pageSize={size}"
        if not owner.seen(caller):
            assert self.api(caller).get(path).status_code == 404
            return
        self.walk(caller, path, {one.id for one in self.known if one.owner is owner})

    @rule(caller=WHO, plural=st.sampled_from(KINDS), name=st.sampled_from(NAMES), said=WHO)
    def search(self, caller: dict[str, str], plural: str, name: str, said: dict[str, str]) -> None:
        asked = " and ".join([f"name='{name}'", *(f"tenancy.{k}='{v}'" for k, v in said.items())])
        found = self.api(caller).get(f"/{plural}", params={"search": asked}).json()
        expected = {
            one.id
            for one in self.known
            if (one.plural, one.name) == (plural, name) and one.seen(caller) and one.seen(said)
        }
        assert {one["id"] for one in found["items"]} == expected
        assert found["total"] == len(expected)

    def walk(self, caller: dict[str, str], path: str, expected: set[str]) -> None:
        """Asserts what all pages of a list show, and that repeated requests get 304."""
        api, found, link = self.api(caller), [], path
        while link:
            answer = api.get(link if link == path else f"{api.url}{link}")
            again = api.get(
                link if link == path else f"{api.url}{link}",
                headers={"If-None-Match": answer.headers["ETag"]},
            )
            assert again.status_code == 304
            page = answer.json()
            assert page["total"] == len(expected)
            found += [one["id"] for one in page["items"]]
            link = page.get("next", "")
        assert len(found) == len(expected)
        assert set(found) == expected


@pytest.fixture(scope="module")
def running(postgres: NoopExecutor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("tenants") / "config.yaml"
    file.write_text(FILE.replace("plural: channels", "plural: channels, required_adapters: [none]"))
    file.write_text(
        file.read_text().replace("plural: versions", "plural: versions, required_adapters: [none]")
    )
    with (
        migrated(postgres, "tenants_model") as database,
        Serving(
            "--no-auth",
            "--validate-responses=all",
            f"--config={file}",
            f"--database-url={database}",
            "--required-adapters-cluster=none",
            "--required-adapters-nodepool=none",
        ) as server,
        psycopg.connect(database, autocommit=True) as sql,
    ):
        Isolation.url, Isolation.sql = server.url, sql
        yield server.url


def test_random_callers_see_and_change_only_what_is_theirs(running: str) -> None:
    run_state_machine_as_test(
        Isolation,
        settings=settings(
            max_examples=30 * MORE,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=MORE == 1,
            suppress_health_check=list(HealthCheck),
        ),
    )
