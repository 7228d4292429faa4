"""The service agrees with a model in memory under random requests of several clients to two replicas.

The model is written from the contract. Every response is compared with it, and so is what the other
replica shows right after; lists are compared item by item, with their totals. The expected status is
that of the reference fold.
"""

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import fold_reference as reference
import psycopg
import pytest
import requests
from alike import MERGE
from conftest import MORE, Api
from helpers_contract import JSON, check
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from modelled import CONDITIONS, LABELS, MERGES, REPLACEMENTS, SPECS, Resource, merged, text

pytestmark = pytest.mark.slow

Json = dict[str, Any]

NAMES = ("a", "b", "c")
KEYS = (None, None, None, "key-1", "key-2")
ADAPTERS = ("dns", "np", "validation")
LONG_AGO = "2020-01-01T00:00:00Z"
LISTS = ("clusters", "nodepools", "of-cluster")
WISHES = ("none", "none", "any", "current", "stale")
# Numbers of a resource and a client. Sampled, since integers() prefers the ends of its range.
ANY = st.sampled_from(range(24))
LIVING = st.sampled_from(range(22))
NUMBER = st.sampled_from(range(4))


class Lifecycle(RuleBasedStateMachine):
    """One fleet with several clients."""

    # Set by the test for all runs, since starting a service takes longer than a run.
    clients: ClassVar[list[Api]]
    sql: ClassVar[psycopg.Connection]
    required: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self) -> None:
        super().__init__()
        for table in (
            "node_pools",
            "clusters",
            "adapter_statuses",
            "labels",
            "audit",
            "idempotency_keys",
        ):
            self.sql.execute(f"DELETE FROM {table}")
        self.known: list[Resource] = []
        self.forced: list[str] = []
        self.keys: dict[str, tuple[str, bytes]] = {}
        self.ticks = itertools.count()

    # Shared by the rules

    def now(self) -> str:
        return reference.text(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self.ticks)))

    def living(self, kind: str | None = None) -> list[Resource]:
        return [one for one in self.known if not one.gone and kind in (None, one.kind)]

    def pick(self, which: int, kind: str | None = None) -> Resource:
        """Returns mostly an existing resource, now and then a removed one."""
        living = self.living(kind)
        known = [one for one in self.known if kind in (None, one.kind)]
        return known[which % len(known)] if which >= 22 or not living else living[which % len(living)]

    def client(self, number: int) -> Api:
        return self.clients[number % len(self.clients)]

    def saw(self, resource: Resource, response: requests.Response) -> None:
        """Asserts that a response agrees with the model, and that its tag stands for no other text."""
        resource.agrees(response.json())
        tag = response.headers["ETag"]
        assert resource.versions.setdefault(tag, response.content) == response.content

    def look(self, *resources: Resource | None) -> None:
        """Asserts what clients see of these, alternately on one replica and the other."""
        for number, resource in enumerate(resources):
            if resource is None:
                continue
            response = self.client(len(self.known) + number).get(resource.path)
            if resource.gone:
                assert response.status_code == 404, response.text
            else:
                check(response)
                self.saw(resource, response)

    def tag(self, resource: Resource, wish: str) -> tuple[dict[str, str], bool]:
        """Returns the If-Match header of this sort, and whether it holds."""
        if wish == "none":
            return {}, True
        if wish == "any":
            return {"If-Match": "*"}, not resource.gone
        current = self.clients[0].get(resource.path).headers.get("ETag", '"none"')
        if wish == "current":
            return {"If-Match": f'"other", {current}'}, not resource.gone
        old = [tag for tag in resource.versions if tag != current]
        return {"If-Match": f"{old[0]}, W/{current}" if old else f"W/{current}"}, False

    def leave(self, resource: Resource) -> None:
        """Removes a resource with its node pools, and its owner if that waited for nothing else."""
        resource.gone = True
        for pool in resource.pools:
            pool.gone = True
        if resource.owner:
            resource.owner.pools.remove(resource)
            if resource.owner.marked:
                resource.owner.refold(self.now())
                self.leave_if_finished(resource.owner)

    def leave_if_finished(self, resource: Resource) -> None:
        if not resource.gone and resource.finished:
            self.leave(resource)

    def mark(self, resource: Resource) -> None:
        resource.marked = True
        resource.generation += 1
        for pool in list(resource.pools):
            if not pool.marked:
                self.mark(pool)
                # Whether the owner goes, too, is decided after all of its node pools.
                if pool.finished:
                    pool.gone = True
                    resource.pools.remove(pool)
        resource.refold(self.now())

    # Requests

    @initialize(pools=st.sampled_from([0, 1, 2]))
    def start(self, pools: int) -> None:
        """Starts with some resources, so that there is more to delete than to create."""
        for name in NAMES[:2]:
            self.create("/clusters", None, {"name": name, "spec": {}, "labels": {"k": "1"}}, None, 0)
        for name in NAMES[:pools]:
            owner = self.known[0]
            self.create(owner.path + "/nodepools", owner, {"name": name, "spec": {"a": 1}}, None, 1)

    @rule(
        name=st.sampled_from(NAMES),
        spec=st.sampled_from(SPECS),
        labels=st.sampled_from(LABELS),
        key=st.sampled_from(KEYS),
        number=NUMBER,
    )
    def create_cluster(self, name: str, spec: Json, labels: Json, key: str | None, number: int) -> None:
        self.create("/clusters", None, {"name": name, "spec": spec, "labels": labels}, key, number)

    @rule(
        which=ANY,
        name=st.sampled_from(NAMES),
        labels=st.sampled_from(LABELS),
        key=st.sampled_from(KEYS),
        number=NUMBER,
    )
    def create_node_pool(
        self, which: int, name: str, labels: Json, key: str | None, number: int
    ) -> None:
        owner = self.pick(which, "Cluster")
        body = {"name": name, "spec": {"replicas": 1}, "labels": labels}
        self.create(owner.path + "/nodepools", owner, body, key, number)

    def create(
        self, path: str, owner: Resource | None, body: Json, key: str | None, number: int
    ) -> None:
        headers = {"Idempotency-Key": key} if key else {}
        response = self.client(number).post(path, json=body, headers=headers)
        request = path + text(body)
        siblings = owner.pools if owner else self.living("Cluster")
        if key in self.keys:
            first, answer = self.keys[key]
            assert response.status_code == (201 if first == request else 422), response.text
            assert first != request or response.content == answer
        elif owner and owner.gone:
            assert response.status_code == 404, response.text
        elif (owner and owner.marked) or body["name"] in [one.name for one in siblings]:
            assert response.status_code == 409, response.text
        else:
            document = check(response, 201)
            kind = "NodePool" if owner else "Cluster"
            made = Resource(
                kind,
                document["id"],
                document["href"],
                body["name"],
                body["spec"],
                body.get("labels", {}),
                owner,
                self.required[kind],
                self.now(),
            )
            made.refold(made.at)
            if owner:
                owner.pools.append(made)
            self.known.append(made)
            self.saw(made, response)
            assert response.headers["Location"].endswith(made.href)
            if key:
                self.keys[key] = request, response.content
            self.look(made, owner)

    @precondition(lambda self: self.living())
    @rule(
        which=ANY,
        body=st.sampled_from(REPLACEMENTS),
        wish=st.sampled_from(WISHES),
        number=NUMBER,
    )
    def replace(self, which: int, body: Json, wish: str, number: int) -> None:
        resource = self.pick(which)
        # In application/json, null counts as absent.
        given = {name: value for name, value in body.items() if value is not None}
        labels, spec = given.get("labels", resource.labels), given.get("spec", resource.spec)
        self.change(resource, body, JSON, (labels, spec), wish, number)

    @precondition(lambda self: self.living())
    @rule(
        which=ANY,
        body=st.sampled_from(MERGES),
        wish=st.sampled_from(WISHES),
        number=NUMBER,
    )
    def merge(self, which: int, body: Json, wish: str, number: int) -> None:
        resource = self.pick(which)
        result = merged({"labels": resource.labels, "spec": resource.spec}, body)
        self.change(resource, body, MERGE, (result.get("labels", {}), result.get("spec")), wish, number)

    def change(
        self,
        resource: Resource,
        body: Json,
        media_type: str,
        result: tuple[Any, Any],
        wish: str,
        number: int,
    ) -> None:
        header, holds = self.tag(resource, wish)
        response = self.client(number).patch(
            resource.path, data=json.dumps(body), headers={"Content-Type": media_type, **header}
        )
        labels, spec = result
        objections = set()
        if resource.gone:
            objections = {404}
        elif resource.marked:
            objections = {409} if holds else {409, 412}
        elif not holds:
            objections = {412}
        if (
            any(body.get(name) is not None for name in ("name", "kind"))
            or not isinstance(spec, dict)
            or not isinstance(labels, dict)
            or not all(isinstance(value, str) for value in labels.values())
        ):
            # An invalid body may be refused before the state is checked.
            objections = objections | {400}
        if objections:
            assert response.status_code in objections, response.text
        else:
            check(response)
            if text([labels, spec]) == text([resource.labels, resource.spec]):
                assert response.headers["ETag"] in resource.versions
            else:
                assert response.headers["ETag"] not in resource.versions
                resource.labels, resource.spec = labels, spec
                resource.generation += 1
                resource.refold(self.now())
            self.saw(resource, response)
        self.look(resource, resource.owner)

    @rule(which=ANY, wish=st.sampled_from(WISHES), number=NUMBER)
    def delete(self, which: int, wish: str, number: int) -> None:
        self.remove(self.pick(which), wish, number)

    @precondition(lambda self: any(not one.marked for one in self.living()))
    @rule(which=LIVING, number=NUMBER)
    def delete_one_that_nobody_has_deleted(self, which: int, number: int) -> None:
        unmarked = [one for one in self.living() if not one.marked]
        self.remove(unmarked[which % len(unmarked)], "none", number)

    def remove(self, resource: Resource, wish: str, number: int) -> None:
        header, holds = self.tag(resource, wish)
        response = self.client(number).delete(resource.path, headers=header)
        pools = list(resource.pools)
        if resource.gone:
            assert response.status_code == 404, response.text
        elif not holds:
            assert response.status_code == 412, response.text
        else:
            check(response, 202)
            if resource.marked:
                assert response.headers["ETag"] in resource.versions
            else:
                assert response.headers["ETag"] not in resource.versions
                self.mark(resource)
            self.saw(resource, response)
            self.leave_if_finished(resource)
        self.look(resource, resource.owner, *pools)

    @rule(which=ANY, reason=st.sampled_from(["stuck", "stuck", ""]), number=NUMBER)
    def force_delete(self, which: int, reason: str, number: int) -> None:
        self.force(self.pick(which), reason, number)

    @precondition(lambda self: any(one.marked for one in self.living()))
    @rule(which=LIVING, number=NUMBER)
    def force_delete_one_that_is_marked(self, which: int, number: int) -> None:
        marked = [one for one in self.living() if one.marked]
        self.force(marked[which % len(marked)], "stuck", number)

    def force(self, resource: Resource, reason: str, number: int) -> None:
        response = self.client(number).post(resource.path + "/force-delete", json={"reason": reason})
        pools = list(resource.pools)
        if not reason:
            # Whether the body or the state is checked first is not specified.
            other = {404} if resource.gone else set() if resource.marked else {409}
            assert response.status_code in {400} | other, response.text
        elif resource.gone:
            assert response.status_code == 404, response.text
        elif not resource.marked:
            assert response.status_code == 409, response.text
        else:
            check(response, 204)
            self.forced += [one.id for one in (resource, *pools)]
            self.leave(resource)
        self.look(resource, resource.owner, *pools)

    @precondition(lambda self: self.living())
    @rule(
        which=ANY,
        adapter=st.sampled_from(ADAPTERS),
        lag=st.sampled_from([0, 0, 0, 0, 1, -1]),
        conditions=st.sampled_from(CONDITIONS),
        late=st.sampled_from([False, False, False, True]),
        method=st.sampled_from(["PUT", "POST"]),
        number=NUMBER,
    )
    def report(
        self,
        which: int,
        adapter: str,
        lag: int,
        conditions: tuple[tuple[str, str], ...],
        late: bool,
        method: str,
        number: int,
    ) -> None:
        resource = self.pick(which)
        self.tell(resource, adapter, max(1, resource.generation - lag), conditions, late, method, number)
        self.look(resource, resource.owner)

    @precondition(lambda self: self.living())
    @rule(
        which=LIVING,
        conditions=st.sampled_from([CONDITIONS[0], CONDITIONS[7]]),
        number=NUMBER,
    )
    def all_report_the_same(
        self, which: int, conditions: tuple[tuple[str, str], ...], number: int
    ) -> None:
        """Without this, all adapters would hardly ever agree."""
        resource = self.pick(which)
        for adapter in resource.required or tuple(resource.reports) or ADAPTERS[:1]:
            self.tell(resource, adapter, resource.generation, conditions, False, "PUT", number)
        self.look(resource, resource.owner)

    @precondition(lambda self: any(one.marked for one in self.living()))
    @rule(which=LIVING, number=NUMBER)
    def adapters_clean_up(self, which: int, number: int) -> None:
        """All adapters that must finalize a marked resource do so."""
        marked = [one for one in self.living() if one.marked]
        resource = marked[which % len(marked)]
        for adapter in resource.required or tuple(resource.reports):
            self.tell(resource, adapter, resource.generation, CONDITIONS[7], False, "POST", number)
        self.look(resource, resource.owner)

    def tell(
        self,
        resource: Resource,
        adapter: str,
        generation: int,
        conditions: tuple[tuple[str, str], ...],
        late: bool,
        method: str,
        number: int,
    ) -> None:
        stored = resource.reports.get(adapter)
        body: Json = {
            "adapter": adapter,
            "observed_generation": generation,
            "conditions": [{"type": t, "status": s, "reason": "R" + s} for t, s in conditions],
        }
        # Late only where it is discarded: otherwise the stored time would differ from the model's.
        if late and stored and stored["observed_generation"] == generation:
            body["observed_time"] = LONG_AGO
        response = self.client(number).request(method, resource.path + "/statuses", json=body)
        told_at = {"observed_time": None, **body}
        if resource.gone:
            assert response.status_code == 404, response.text
        elif reference.discarded(resource.generation, stored, told_at):
            check(response, 204)
        else:
            answer = check(response, 201)
            at = self.now()
            resource.reports[adapter] = reference.merged(stored, told_at, at)
            assert (answer["adapter"], answer["observed_generation"]) == (adapter, generation)
            assert [(c["type"], c["status"]) for c in answer["conditions"]] == list(conditions)
            resource.refold(at)
            self.leave_if_finished(resource)

    # Reads

    @rule(which=ANY, number=NUMBER)
    def get(self, which: int, number: int) -> None:
        resource = self.pick(which)
        response = self.client(number).get(resource.path)
        assert response.status_code == (404 if resource.gone else 200)
        if not resource.gone:
            self.saw(resource, response)
            tag = response.headers["ETag"]
            again = self.client(number + 1).get(resource.path, headers={"If-None-Match": f'"x", {tag}'})
            assert (again.status_code, again.content) == (304, b"")
        self.list_reports(resource, number)

    @rule(
        which=ANY,
        what=st.sampled_from(LISTS),
        page=st.sampled_from([1, 1, 2, 3]),
        size=st.sampled_from([0, 1, 2, 3, 100]),
        label=st.sampled_from([None, None, ("k", "1"), ("k", "2"), ("l", "1")]),
        number=NUMBER,
    )
    def list_resources(
        self,
        which: int,
        what: str,
        page: int,
        size: int,
        label: tuple[str, str] | None,
        number: int,
    ) -> None:
        cluster = self.pick(which, "Cluster")
        query: Json = {"page": page, "pageSize": size}
        if label:
            query["search"] = f"labels.{label[0]}='{label[1]}'"
        if what == "of-cluster":
            path, expected = cluster.path + "/nodepools", cluster.pools
        else:
            path, expected = f"/{what}", self.living("Cluster" if what == "clusters" else "NodePool")
        response = self.client(number).get(path, params=query)
        if what == "of-cluster" and cluster.gone:
            assert response.status_code == 404, response.text
            return
        if label:
            expected = [one for one in expected if one.labels.get(label[0]) == label[1]]
        newest_first = expected[::-1]
        self.agree_page(check(response), newest_first[(page - 1) * size :][:size], len(expected))

    def agree_page(self, page: Json, expected: list[Resource], total: int) -> None:
        assert (page["total"], page["size"]) == (total, len(expected))
        assert [item["id"] for item in page["items"]] == [one.id for one in expected]
        for item, resource in zip(page["items"], expected, strict=True):
            resource.agrees(item)

    def list_reports(self, resource: Resource, number: int) -> None:
        response = self.client(number).get(resource.path + "/statuses")
        if resource.gone:
            assert response.status_code == 404, response.text
            return
        page = check(response)
        assert page["total"] == len(resource.reports)
        # A dictionary keeps its keys in the order of insertion, even if they are set again.
        assert [item["adapter"] for item in page["items"]] == list(resource.reports)[::-1]
        for item in page["items"]:
            stored = resource.reports[item["adapter"]]
            assert item["observed_generation"] == stored["observed_generation"]
            assert [(c["type"], c["status"]) for c in item["conditions"]] == [
                (c["type"], c["status"]) for c in stored["conditions"]
            ]

    def teardown(self) -> None:
        """At the end, both replicas show the same, and nothing of removed resources is left."""
        for api in self.clients[:2]:
            for kind, path in (("Cluster", "/clusters"), ("NodePool", "/nodepools")):
                expected = self.living(kind)[::-1]
                self.agree_page(check(api.get(path)), expected, len(expected))
        living = {one.id: one for one in self.living()}
        rows = self.sql.execute("SELECT owner_id::text, key, value FROM labels").fetchall()
        assert sorted(rows) == sorted(
            (i, *pair) for i, one in living.items() for pair in one.labels.items()
        )
        rows = self.sql.execute("SELECT owner_id::text, adapter FROM adapter_statuses").fetchall()
        assert sorted(rows) == sorted(
            (i, adapter) for i, one in living.items() for adapter in one.reports
        )
        rows = self.sql.execute(
            "SELECT resource_id::text FROM audit WHERE document IS NOT NULL"
        ).fetchall()
        assert {row[0] for row in rows} >= set(self.forced)


@pytest.mark.parametrize(
    "required",
    [
        {"Cluster": (), "NodePool": ()},
        {"Cluster": ("dns", "validation"), "NodePool": ("np",)},
        {"Cluster": (), "NodePool": ("np",)},
    ],
    ids=["none-required", "all-required", "required-on-node-pools"],
)
def test_the_service_agrees_with_the_model(
    service: Callable[..., Api], sql: psycopg.Connection, required: dict[str, tuple[str, ...]]
) -> None:
    replicas = [
        service(
            required_adapters_cluster=required["Cluster"],
            required_adapters_nodepool=required["NodePool"],
        )
        for _ in range(2)
    ]
    # Two more sessions, one on each replica.
    clients = [*replicas, *(Api(replica.url) for replica in replicas)]

    class Fleet(Lifecycle):
        pass

    Fleet.clients, Fleet.sql, Fleet.required = clients, sql, required
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=20 * MORE,
            stateful_step_count=40,
            deadline=None,
            derandomize=MORE == 1,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
