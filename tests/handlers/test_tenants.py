"""Tenants: callers cannot see, change, count or learn of what belongs to another tenant."""

import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import requests
from alike import FINALIZED, MERGE, answered, at
from conftest import Api
from starlette.datastructures import Headers
from tenant_world import Caller, World, everything, world

from hyperfleet.auth.identity import SYSTEM
from hyperfleet.auth.tenants import Tenants
from hyperfleet.errors import Problem
from hyperfleet.lists import tenants
from hyperfleet.settings import tenancy
from hyperfleet.settings.tenancy import Dimension

pytestmark = pytest.mark.slow

__all__ = ["world"]

Json = dict[str, Any]


def ids(response: requests.Response) -> list[str]:
    return [one["id"] for one in answered(response)["items"]]


def attempts(api: Api, one: Json, path: str) -> Iterator[requests.Response]:
    """Yields the responses to all that a client can do with a resource at one of its paths."""
    yield api.get(path)
    yield api.get(path, headers={"If-None-Match": '"1"'})
    yield api.patch(path, json={"spec": {"stolen": True}})
    yield api.patch(path, data='{"spec": {"stolen": true}}', headers={"Content-Type": MERGE})
    yield api.get(f"{path}/statuses")
    body = {
        "adapter": "dns",
        "observed_generation": one["generation"],
        "conditions": [{"type": "Available", "status": "True"}],
    }
    yield api.put(f"{path}/statuses", json=body)
    for past in ("history", "history/1", "history/1/diff", "transitions", "transitions?type=Available"):
        yield api.get(f"{path}/{past}")
    yield api.get(f"{path}/history/1/diff?to=1")
    # For a generation that is not kept, the error says which ones are.
    yield api.get(f"{path}/history/9")
    yield api.post(f"{path}/rollback", json={"generation": 1})
    yield api.post(f"{path}/rollback", json={"generation": 9})
    yield api.post(f"{path}/force-delete", json={"reason": "x"})
    yield api.delete(path)


def test_every_operation_on_a_resource_of_another_tenant_is_a_404_and_changes_nothing(
    world: World,
) -> None:
    one, other = world.caller(), world.caller()
    for resource, paths in everything(one):
        before = one.get(at(resource))
        for path in paths:
            assert answered(one.get(path))["id"] == resource["id"]
            refused = [answer.json() for answer in attempts(other, resource, path)]
            nothing = [(answer["status"], answer["code"]) for answer in refused]
            assert set(nothing) == {(404, "HYPERFLEET-NTF-001")}, (path, nothing)
            assert not any("kept" in answer["detail"] for answer in refused)
        after = one.get(at(resource))
        assert (after.text, after.headers["ETag"]) == (before.text, before.headers["ETag"])
        assert answered(one.get(at(resource, "/statuses")))["total"] == 0


def test_nothing_can_be_created_below_a_resource_of_another_tenant(world: World) -> None:
    one, other = world.caller(), world.caller()
    for resource, paths in everything(one):
        for plural in {"Cluster": ("nodepools", "addons"), "Channel": ("versions",)}.get(
            resource["kind"], ()
        ):
            answered(other.get(f"{paths[0]}/{plural}"), 404)
            for headers in ({}, {"Idempotency-Key": uuid4().hex}):
                made = other.post(
                    f"{paths[0]}/{plural}", json={"name": "x", "spec": {}}, headers=headers
                )
                answered(made, 404)


def test_lists_and_totals_contain_only_the_resources_of_the_tenant(world: World) -> None:
    one, other, none = world.caller(), world.caller(), world.caller()
    made = {api: [resource for resource, _ in everything(api)] for api in (one, other)}
    more = one.cluster("second", labels={"env": "x"})
    one.node_pool(more, "second")
    for api, count in ((one, 2), (other, 1), (none, 0)):
        assert answered(api.get("/clusters"))["total"] == count
        assert answered(api.get("/nodepools"))["total"] == count
        assert answered(api.get("/clusters?search=labels.env='x'"))["total"] == (api is one)
        assert answered(api.get("/resources"))["total"] == {2: 7, 1: 5, 0: 0}[count]
        assert ids(api.get("/resources?kind=Cluster")) == ids(api.get("/clusters"))
        for plural in ("channels", "versions", "addons"):
            assert answered(api.get(f"/{plural}"))["total"] == min(count, 1), plural
    assert set(ids(one.get("/clusters"))) == {made[one][0]["id"], more["id"]}
    assert ids(other.get("/clusters")) == [made[other][0]["id"]]
    for path in ("/clusters", "/nodepools", "/resources", "/versions"):
        assert not set(ids(one.get(path))) & set(ids(other.get(path)))
    assert answered(one.delete(at(made[one][1])), 202)
    # No adapter has to finalize the node pool.
    assert answered(one.get("/nodepools"))["total"] == 1
    # Pages by number.
    numbered = [ids(one.get(f"/clusters?pageSize=1&page={page}")) for page in (1, 2, 3)]
    assert sorted(map(len, numbered)) == [0, 1, 1]


def test_a_next_link_of_one_tenant_shows_another_tenant_only_its_own_resources(world: World) -> None:
    one, other = world.caller(), world.caller()
    for number in range(3):
        one.cluster(f"c{number}")
    theirs = other.cluster()
    link = answered(one.get("/clusters?pageSize=1"))["next"]
    followed = answered(other.get(f"{other.url}{link}"))
    assert [item["id"] for item in followed["items"]] in ([], [theirs["id"]])
    assert followed["total"] == 1
    assert len(ids(one.get(f"{one.url}{link}"))) == 1


def test_names_are_unique_within_a_tenant(world: World) -> None:
    one, other = world.caller(), world.caller()
    for path in ("/clusters", "/channels", "/resources"):
        body = {"name": "same", "spec": {}} | ({"kind": "Channel"} if path == "/resources" else {})
        if path != "/resources":
            theirs = {api: answered(api.post(path, json=body), 201) for api in (one, other)}
        for api in (one, other):
            taken = answered(api.post(path, json=body), 409)
            assert taken["code"] == "HYPERFLEET-CNF-001"
            # The conflict names the resource of this tenant.
            assert theirs[api]["id"] in taken["detail"]


def test_many_tenants_can_create_resources_of_the_same_names_at_once(world: World) -> None:
    callers = [world.caller() for _ in range(8)]
    jobs = [(api, f"n{number % 5}") for number in range(10) for api in callers]
    with ThreadPoolExecutor(16) as threads:
        made = list(
            threads.map(
                lambda job: Caller(world.url, org=str(job[0].headers["X-Org"])).post(
                    "/clusters", json={"name": job[1], "spec": {}}
                ),
                jobs,
            )
        )
    assert sorted(answer.status_code for answer in made) == [201] * 40 + [409] * 40
    for api in callers:
        page = answered(api.get("/clusters"))
        assert page["total"] == 5
        assert sorted(item["name"] for item in page["items"]) == [f"n{number}" for number in range(5)]


def test_reads_that_share_a_statement_show_each_tenant_its_own_resources(world: World) -> None:
    """All callers request the same addresses at the same time, so that statements are shared."""
    callers = [world.caller() for _ in range(4)]
    mine = {str(api.headers["X-Org"]): api.cluster()["id"] for api in callers}
    everyone = [*mine]

    def ask(job: tuple[int, str]) -> None:
        number, org = job
        api = Caller(world.url, org=org)
        whose = everyone[number % len(everyone)]
        for _ in range(5):
            assert ids(api.get("/clusters")) == [mine[org]]
            assert api.get(f"/clusters/{mine[whose]}").status_code == (200 if org == whose else 404)
            report = api.report(
                {"href": f"/api/hyperfleet/v1/clusters/{mine[whose]}"},
                f"a{number}",
                observed_generation=1,
            )
            assert report.status_code in ((201, 204) if org == whose else (404,))
            searched = answered(api.get("/clusters?search=name='c1'"))
            assert (searched["total"], searched["items"][0]["id"]) == (1, mine[org])

    with ThreadPoolExecutor(24) as threads:
        list(threads.map(ask, itertools.product(range(6), everyone)))


def test_entity_tags_of_one_tenant_do_not_match_for_another(world: World) -> None:
    one, other = world.caller(), world.caller()
    cluster, theirs = one.cluster(), other.cluster()
    tag = one.get("/clusters").headers["ETag"]
    assert one.get("/clusters", headers={"If-None-Match": tag}).status_code == 304
    answer = other.get("/clusters", headers={"If-None-Match": tag})
    assert ids(answer) == [theirs["id"]]
    assert other.get(at(cluster), headers={"If-None-Match": "*"}).status_code == 404
    assert other.patch(at(cluster), json={"spec": {}}, headers={"If-Match": "*"}).status_code == 404


def test_a_list_is_modified_as_soon_as_a_new_project_of_its_tenant_has_a_resource(
    world: World,
) -> None:
    org = f"org-{uuid4().hex[:8]}"
    whole = world.caller(org)
    first = whole.get("/clusters")
    assert ids(first) == []
    for number in range(3):
        made = world.caller(org, f"project-{number}").cluster()
        again = whole.get("/clusters", headers={"If-None-Match": first.headers["ETag"]})
        assert made["id"] in ids(again)
        assert answered(again)["total"] == number + 1
        first = again


def test_tenants_can_use_the_same_idempotency_key(world: World) -> None:
    one, other = world.caller(), world.caller()
    key = {"Idempotency-Key": uuid4().hex}
    body = {"name": "once", "spec": {}}
    first = answered(one.post("/clusters", json=body, headers=key), 201)
    theirs = answered(other.post("/clusters", json=body, headers=key), 201)
    assert first["id"] != theirs["id"]
    assert answered(one.post("/clusters", json=body, headers=key), 201) == first
    assert answered(other.post("/clusters", json=body, headers=key), 201) == theirs


def test_what_callers_see_is_remembered_for_those_who_asked_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenants, "CALLERS", 2)
    monkeypatch.setattr(tenants.page, "page", lambda *_: (None, None))
    reader: Any = SimpleNamespace(newest=lambda *_: [])
    remembering = tenants.TenantLists()
    for org in ("a", "b", "a", "c"):
        remembering.page(reader, "Cluster", {}, {"org": org})
    assert [json.loads(caller)["org"] for caller in remembering.known] == ["a", "c"]


def test_a_caller_with_fewer_dimensions_sees_more(world: World) -> None:
    org = f"org-{uuid4().hex[:8]}"
    a, b, whole = world.caller(org, "a"), world.caller(org, "b"), world.caller(org)
    made = [api.cluster() for api in (a, b, whole)]
    assert sorted(ids(whole.get("/clusters"))) == sorted(one["id"] for one in made)
    assert answered(whole.get("/clusters?pageSize=1"))["total"] == 3
    assert ids(a.get("/clusters")) == [made[0]["id"]]
    assert a.get(at(made[2])).status_code == 404
    # A child has the tenancy of its owner.
    pool = whole.node_pool(made[0])
    assert ids(a.get("/nodepools")) == [pool["id"]]
    assert ids(a.get(at(made[0], "/nodepools"))) == [pool["id"]]
    assert b.get(at(pool)).status_code == 404
    assert answered(b.get("/nodepools"))["total"] == 0
    assert answered(whole.get("/resources"))["total"] == 4


def test_a_search_can_name_the_tenancy(world: World) -> None:
    org = f"org-{uuid4().hex[:8]}"
    a, b, whole = world.caller(org, "a"), world.caller(org, "b"), world.caller(org)
    made = [api.cluster() for api in (a, b, whole)]
    for api in (whole, world.system):
        for search, expected in (
            (f"tenancy.org='{org}' and tenancy.project='a'", made[:1]),
            (f"tenancy.org='{org}' and tenancy.project in ('a','b')", made[:2]),
            (f"tenancy.org='{org}' and tenancy.project is null", made[2:]),
            (f"tenancy.org='{org}' and not tenancy.project='a'", made[1:]),
            (f"tenancy.org='{org}' or tenancy.org='nobody'", made),
            ("tenancy.org='nobody'", []),
        ):
            found = answered(api.get("/clusters", params={"search": search}))
            assert sorted(one["id"] for one in found["items"]) == sorted(one["id"] for one in expected)
            assert found["total"] == len(expected), search
            everywhere = answered(api.get("/resources", params={"search": search}))
            assert everywhere["total"] == len(expected)
    assert answered(b.get("/clusters", params={"search": "tenancy.project='a'"}))["total"] == 0
    assert answered(b.get("/clusters", params={"search": "not tenancy.project='x'"}))["total"] == 1
    assert "tenancy" not in made[0]


def test_a_system_caller_sees_everything_and_writes_only_statuses(world: World) -> None:
    one, system = world.caller(), world.system
    for said in ("true", "TRUE", "True "):
        assert Caller(world.url, system=said).get("/clusters").status_code == 200
    for said in ("false", "1", "yes", ""):
        assert Caller(world.url, system=said).get("/clusters").status_code == 403
    # A system caller remains one, even if it names a tenant as well.
    both = Caller(world.url, system="true", org="nobody")
    for resource, paths in everything(one):
        for path, api in itertools.product(paths, (system, both)):
            assert answered(api.get(path))["id"] == resource["id"]
            assert api.head(path).status_code == 200
            answered(api.get(f"{path}/statuses"))
            for past in ("history", "history/1", "history/1/diff", "transitions"):
                answered(api.get(f"{path}/{past}"))
            for write in (
                api.post(f"{path}/rollback", json={"generation": 1}),
                api.patch(path, json={"spec": {"a": 1}}),
                api.delete(path),
                api.post(f"{path}/force-delete", json={"reason": "x"}),
                api.post("/clusters", json={"name": "x", "spec": {}}),
                api.post("/resources", json={"kind": "Channel", "name": "x", "spec": {}}),
            ):
                assert answered(write, 403)["code"] == "HYPERFLEET-AUZ-001"
        assert system.report(resource, "dns").status_code == 201
        assert answered(one.get(at(resource, "/statuses")))["total"] == 1
    assert answered(system.get("/clusters"))["total"] >= 1


def test_reports_of_a_system_caller_complete_the_deletion_by_a_tenant(world: World) -> None:
    one, other, system = world.caller(), world.caller(), world.system
    cluster = one.cluster()
    one.node_pool(cluster)
    answered(one.delete(at(cluster)), 202)
    assert other.post(at(cluster, "/force-delete"), json={"reason": "x"}).status_code == 404
    done = system.report(cluster, "dns", observed_generation=2, conditions=FINALIZED)
    assert done.status_code in (201, 204)
    for api in (one, system):
        assert api.get(at(cluster)).status_code == 404
    assert answered(one.get("/clusters"))["total"] == answered(one.get("/nodepools"))["total"] == 0
    # Marked, then force-deleted with its node pool.
    cluster = one.cluster()
    pool = one.node_pool(cluster)
    answered(one.delete(at(cluster)), 202)
    assert one.post(at(cluster, "/force-delete"), json={"reason": "x"}).status_code == 204
    assert system.get(at(pool)).status_code == 404


def test_a_caller_without_a_valid_tenant_is_refused(world: World) -> None:
    for headers in (
        {},
        {"X-Project": "p"},
        {"X-Org": ""},
        {"X-Org": "a b"},
        {"X-Org": "a" * 64},
        {"X-Org": "ä".encode()},
        {"X-Org": "a,b"},
        {"X-Org": "a", "X-Project": "p/q"},
        {"X-Org": '{"a":1}'},
    ):
        for path in ("/clusters", f"/clusters/{uuid4()}", "/resources", "/compatibility"):
            api = Api(world.url)
            refused = answered(api.get(path, headers=headers), 403)
            assert refused["code"] == "HYPERFLEET-AUZ-001"
    # With two headers, it is unknown which one the client itself has sent.
    with Api(world.url) as api:
        assert api.answer(("X-Org", "a"), ("X-Org", "b"))[0] == 403
        # The contract and the errors are public, and an unknown path is a 404 for everyone.
        for path in ("/openapi", "/errors", "/errors/HYPERFLEET-AUZ-001", "//api/hyperfleet/v1"):
            assert api.get(path).status_code == 200, path
        assert api.get("/nothing").status_code == 404
    for value in ("a", "A.b_c-9", "a" * 63, "padded "):
        assert Caller(world.url, org=value).get("/clusters").status_code == 200


def test_a_caller_without_any_dimension_is_refused_even_if_settings_require_none() -> None:
    dimensions = (Dimension("X-Org", "org", required=False),)
    settings: Any = SimpleNamespace(tenant_system_header="X-System", tenant_dimensions=dimensions)
    layer = Tenants(lambda *_: None, settings, {})  # type: ignore[arg-type]
    assert layer.tenancy(Headers({"X-Org": "a"})) == {"org": "a"}
    assert layer.tenancy(Headers({"X-System": "true"})) == {}
    with pytest.raises(Problem, match="No header names the tenant"):
        layer.tenancy(Headers({"X-Other": "a"}))


def test_the_headers_of_a_request_do_not_affect_the_next_one_on_its_connection(world: World) -> None:
    one = world.caller()
    cluster = one.cluster()
    with requests.Session() as session:
        session.trust_env = False
        url = f"{world.url}{'/' + cluster['href'].lstrip('/')}"
        for headers, status in (
            ({"X-Org": str(one.headers["X-Org"])}, 200),
            ({}, 403),
            ({"X-System": "true"}, 200),
            ({"X-Org": "nobody"}, 404),
            ({}, 403),
        ):
            assert session.get(url, headers=headers, timeout=10).status_code == status


def test_large_pages_contain_only_the_resources_of_the_tenant(world: World) -> None:
    one, other = world.caller(), world.caller()
    spec = {"text": "x" * 300_000}
    mine = [one.cluster(f"large-{number}", spec=spec)["id"] for number in range(6)]
    other.cluster("large-0", spec=spec)
    assert ids(one.get("/clusters"))[::-1] == mine
    assert len(ids(other.get("/clusters"))) == 1


def test_a_resource_that_an_operator_moves_to_another_tenant_is_counted_there(world: World) -> None:
    one, other, system = world.caller(), world.caller(), world.system
    cluster = one.cluster()
    whole = answered(system.get("/clusters"))["total"]
    with psycopg.connect(world.database, autocommit=True) as conn:
        conn.execute(
            "UPDATE clusters SET tenancy = jsonb_build_object('org', %s::text) WHERE id = %s",
            [other.headers["X-Org"], cluster["id"]],
        )
    assert answered(one.get("/clusters"))["total"] == 0
    assert answered(other.get("/clusters"))["total"] == 1
    assert ids(other.get("/clusters")) == [cluster["id"]]
    assert answered(system.get("/clusters"))["total"] == whole


def test_totals_are_exact_while_counts_are_summed_up(world: World) -> None:
    """Every fiftieth statement sums up what the others have left."""
    one = world.caller()
    for number in range(120):
        cluster = one.cluster(f"n{number}")
        if number % 3 == 0:
            answered(one.delete(at(cluster)), 202)
            one.post(at(cluster, "/force-delete"), json={"reason": "x"})
    assert answered(one.get("/clusters?pageSize=1"))["total"] == 80
    assert answered(one.get("/resources?pageSize=1"))["total"] == 80


def test_references_cannot_lead_to_a_resource_of_another_tenant(world: World) -> None:
    one, other = world.caller(), world.caller()
    channel = answered(one.post("/channels", json={"name": "c", "spec": {}}), 201)
    body = {"name": "r", "spec": {}, "references": {"channel": [{"id": channel["id"]}]}}
    refused = answered(other.post("/users", json=body), 400)
    assert "must be the id of an existing channel" in refused["detail"]
    user = answered(other.post("/users", json={"name": "r", "spec": {}}), 201)
    answered(other.patch(at(user), json={"references": body["references"]}), 400)
    own = answered(one.post("/users", json=body), 201)
    search = {"search": f"references.channel='{channel['id']}'"}
    assert ids(one.get("/users", params=search)) == [own["id"]]
    assert ids(other.get("/users", params=search)) == []
    assert one.delete(at(channel)).status_code == 409
    assert other.delete(at(channel)).status_code == 404


def test_only_its_tenant_and_system_callers_see_the_past_of_a_resource(world: World) -> None:
    one, other = world.caller(), world.caller()
    for resource, paths in everything(one):
        answered(one.patch(at(resource), json={"spec": {"n": 2}}))
        assert world.system.report(resource, "dns", observed_generation=2).status_code == 201
        for path, api in itertools.product(paths, (one, world.system)):
            history = answered(api.get(f"{path}/history"))
            assert [past["generation"] for past in history["items"]] == [2, 1]
            assert answered(api.get(f"{path}/history/1"))["spec"] == {}
            assert answered(api.get(f"{path}/history/1/diff"))["operations"]
            assert answered(api.get(f"{path}/transitions"))["total"] >= 1
        # Even just after the tenant itself has requested the same address.
        for path, past in itertools.product(paths, ("history", "transitions")):
            tag = one.get(f"{path}/{past}").headers["ETag"]
            answered(other.get(f"{path}/{past}", headers={"If-None-Match": tag}), 404)
        back = answered(one.post(at(resource, "/rollback"), json={"generation": 1}))
        assert (back["generation"], back["spec"]) == (3, {})


def refers(channel: Json, name: str = "r") -> Json:
    return {"name": name, "spec": {}, "references": {"channel": [{"id": channel["id"]}]}}


def channel(api: Api, name: str = "c") -> Json:
    return answered(api.post("/channels", json={"name": name, "spec": {}}), 201)


def test_references_lead_only_to_what_everyone_who_sees_the_resource_can_see(world: World) -> None:
    """A caller with fewer dimensions sees what several projects have, but cannot link it across them."""
    org = f"org-{uuid4().hex[:8]}"
    a, b, whole = world.caller(org, "a"), world.caller(org, "b"), world.caller(org)
    channels = {api: channel(api) for api in (a, b, whole)}
    user = answered(a.post("/users", json={"name": "u", "spec": {}}), 201)
    for other in (b, whole):
        body = refers(channels[other])
        refused = answered(whole.patch(at(user), json={"references": body["references"]}), 400)
        assert "must be the id of an existing channel" in refused["detail"]
        # A child has the dimensions of its owner.
        answered(whole.post(at(channels[a], "/seats"), json=body), 400)
        answered(a.post(at(channels[a], "/seats"), json=body), 400)
    assert "references" not in answered(a.get(at(user)))
    for api in (a, whole):
        own = refers(channels[a], f"by-{'project' if api is a else 'org'}")
        answered(api.patch(at(user), json={"references": own["references"]}))
        answered(api.post(at(channels[a], "/seats"), json=own), 201)
    # Only callers who see the whole organization see this user, and they see the channel, too.
    answered(whole.post("/users", json=refers(channels[b])), 201)
    # For b, this channel does not exist.
    answered(b.post(at(channels[a], "/seats"), json=refers(channels[b])), 404)


def test_a_refused_deletion_names_only_referrers_that_the_caller_can_see(world: World) -> None:
    org = f"org-{uuid4().hex[:8]}"
    one, whole = world.caller(org, "a"), world.caller(org)
    kept = channel(one)
    hidden = [
        answered(whole.post("/users", json=refers(kept, f"hidden-{number}")), 201) for number in (1, 2)
    ]
    # One that refers to it twice is still one.
    twice = {"references": {"channel": [{"id": kept["id"]}], "spare": [{"id": kept["id"]}]}}
    answered(whole.patch(at(hidden[0]), json=twice))
    refused = answered(one.delete(at(kept)), 409)
    assert "2 resources that you cannot see refer to it" in refused["detail"]
    for user in hidden:
        assert user["id"] not in str(refused)
        assert user["name"] not in str(refused)
    own = answered(one.post("/users", json=refers(kept, "mine")), 201)
    answered(whole.delete(at(hidden[0])), 202)
    refused = answered(one.delete(at(kept)), 409)
    assert f"mine ({own['id']}) refers to it as channel" in refused["detail"]
    assert "1 resource that you cannot see refers to it" in refused["detail"]
    assert "hidden" not in str(refused)
    told = answered(whole.delete(at(kept)), 409)["detail"]
    assert "hidden-2" in told
    assert "mine" in told


def test_requests_on_resources_of_another_tenant_do_not_wait_for_locks(world: World) -> None:
    one, other = world.caller(), world.caller()
    kept, mine = channel(one), channel(other)
    user = answered(one.post("/users", json=refers(kept)), 201)
    both = [kept["id"], user["id"]]
    requests_ = (
        lambda: other.patch(at(user), json={"references": refers(kept)["references"]}, timeout=3),
        lambda: other.patch(at(user), json={"references": refers(mine)["references"]}, timeout=3),
        lambda: other.patch(at(user), json={"spec": {"a": "x" * 40_000}}, timeout=3),
        lambda: other.post(at(user, "/rollback"), json={"generation": 1}, timeout=3),
        lambda: other.post(at(kept, "/force-delete"), json={"reason": "x"}, timeout=3),
        lambda: other.post(at(kept, "/versions"), json={"name": "v", "spec": {}}, timeout=3),
        lambda: other.post(at(kept, "/seats"), json=refers(mine), timeout=3),
        lambda: other.post("/users", json=refers(kept), timeout=3),
        lambda: other.delete(at(kept), timeout=3),
        lambda: other.report(kept, "dns"),
    )
    with psycopg.connect(world.database) as conn:
        conn.execute("SELECT FROM resources WHERE id = ANY(%s) FOR UPDATE", [both])
        for answer in requests_:
            assert answer().status_code in (400, 404)

    def lockers() -> list[Any]:
        """Returns the last transaction that has locked each of them."""
        with psycopg.connect(world.database) as conn:
            return conn.execute(
                "SELECT id, xmax::text FROM resources WHERE id = ANY(%s) ORDER BY id", [both]
            ).fetchall()

    # Nor do they take locks, for which the tenant's own requests would wait.
    before = lockers()
    for number, answer in enumerate(requests_):
        assert answer().status_code in (400, 404)
        assert lockers() == before, number
    answered(one.patch(at(user), json={"references": refers(kept)["references"]}))
    assert lockers() != before


def test_requests_on_a_resource_that_another_tenant_is_changing_are_answered_at_once(
    world: World,
) -> None:
    """Waiting would reveal that the resource exists."""
    one, other = world.caller(), world.caller()
    cluster, new = one.cluster(), {"name": "new", "spec": {}}
    with psycopg.connect(world.database) as conn, ThreadPoolExecutor(1) as threads:
        conn.execute("SELECT FROM clusters WHERE id = %s FOR UPDATE", [cluster["id"]])
        changing = threads.submit(one.patch, at(cluster), json={"spec": {"n": 1}})
        try:
            until = time.monotonic() + 5
            while not conn.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                assert time.monotonic() < until
            for answer in (
                lambda: other.patch(at(cluster), json={"spec": {}}, timeout=3),
                lambda: other.delete(at(cluster), timeout=3),
                lambda: other.post(
                    at(cluster, "/nodepools"), json={"name": "pool", "spec": {}}, timeout=3
                ),
                lambda: other.post(at(cluster, "/addons"), json=new, timeout=3),
                lambda: other.post(at(cluster, "/force-delete"), json={"reason": "x"}, timeout=3),
            ):
                answered(answer(), 404)
        finally:
            conn.rollback()
        answered(changing.result())


def test_a_creation_does_not_wait_for_that_of_another_tenant_with_the_same_name(world: World) -> None:
    one, other, new = world.caller(), world.caller(), {"name": "same", "spec": {}}
    claimant = f"{SYSTEM}\n{tenancy.text({'org': one.headers['X-Org']})}"
    with psycopg.connect(world.database) as conn, ThreadPoolExecutor(1) as threads:
        # The creation waits for another request with its key.
        conn.execute(
            "INSERT INTO idempotency_keys (caller, key, request, created_time) "
            "VALUES (%s, 'key', '', now())",
            [claimant],
        )
        key = {"Idempotency-Key": "key"}
        creating = threads.submit(one.post, "/clusters", json=new, headers=key)
        try:
            until = time.monotonic() + 5
            while not conn.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                assert time.monotonic() < until
            answered(other.post("/clusters", json=new, timeout=3), 201)
            assert not creating.done()
        finally:
            conn.rollback()
        answered(creating.result(), 201)


def test_whitespace_that_http_does_not_recognize_is_part_of_a_header_value(world: World) -> None:
    for name, space in itertools.product(("X-System", "X-Org"), ("\xa0", "\x85")):
        said = {name: f"{space}true".encode("latin-1")}
        assert Api(world.url).get("/clusters", headers=said).status_code == 403


def test_the_change_feed_shows_no_content_of_a_resource_moved_to_another_tenant(world: World) -> None:
    one, other = world.caller(), world.caller()
    start = answered(one.get("/changes"))["next"]
    cluster = one.cluster(spec={"secret": 1})
    with psycopg.connect(world.database, autocommit=True) as conn:
        conn.execute(
            "UPDATE clusters SET tenancy = jsonb_build_object('org', %s::text) WHERE id = %s",
            [other.headers["X-Org"], cluster["id"]],
        )
    answered(other.patch(at(cluster), json={"spec": {"secret": 2}}))
    told = answered(one.get("/changes", params={"after": start}))["items"]
    assert [item["change"] for item in told] == ["created", "removed"]
    assert "secret" not in str(told)
    theirs = answered(other.get("/changes", params={"after": start}))["items"]
    assert [item["change"] for item in theirs] == ["created", "updated"]
    assert [item["resource"]["spec"] for item in theirs] == [{"secret": 2}] * 2
