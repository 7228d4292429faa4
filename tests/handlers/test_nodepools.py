"""Node pools: each belongs to one cluster, and is found below that cluster only."""

from datetime import UTC, datetime

from alike import assert_is_new
from conftest import Api
from helpers_contract import BASE, NO_ID, check, problem


def test_a_created_node_pool_is_what_was_requested_and_reads_back_the_same(api: Api) -> None:
    cluster = api.cluster()
    before = datetime.now(UTC)
    asked = {
        "kind": "NodePool",
        "name": "worker-pool",
        "spec": {"instance_type": "m5.2xlarge", "replicas": 10, "disk_size": 200},
        "labels": {"pool_type": "worker"},
    }
    response = api.post(f"/clusters/{cluster['id']}/nodepools", json=asked)
    node_pool = check(response, 201)
    assert {key: node_pool[key] for key in asked} == asked
    assert node_pool["href"] == f"{BASE}/clusters/{cluster['id']}/nodepools/{node_pool['id']}"
    assert node_pool["owner_references"] == {
        "kind": "Cluster",
        "id": cluster["id"],
        "href": cluster["href"],
    }
    assert response.headers["Location"].removeprefix(api.url) == node_pool["href"]
    assert_is_new(node_pool, before)
    assert check(api.get(f"/{node_pool['href']}")) == node_pool
    assert check(api.get(f"/clusters/{cluster['id']}/nodepools"))["items"] == [node_pool]
    assert check(api.get("/nodepools"))["items"] == [node_pool]
    # The cluster is unchanged.
    assert check(api.get(f"/clusters/{cluster['id']}")) == cluster


def test_kind_and_labels_are_optional_and_what_the_service_sets_is_ignored(api: Api) -> None:
    cluster = api.cluster()
    before = datetime.now(UTC)
    extra = {"generation": 9, "owner_references": {"id": NO_ID}, "href": "/x", "status": 1}
    node_pool = api.node_pool(cluster, **extra)
    assert_is_new(node_pool, before)
    assert node_pool["kind"] == "NodePool"
    assert node_pool["labels"] == {}
    assert node_pool["owner_references"]["id"] == cluster["id"]


def test_a_name_is_unique_within_its_cluster_only(api: Api) -> None:
    first, second = api.cluster("c1"), api.cluster("c2")
    api.node_pool(first, "np1")
    problem(
        api.post(f"/clusters/{first['id']}/nodepools", json={"name": "np1", "spec": {}}), 409, "name"
    )
    assert api.node_pool(second, "np1")["name"] == "np1"
    assert api.node_pool(first, "np2")["name"] == "np2"
    # A cluster may have the name of a node pool.
    assert api.cluster("np1")["name"] == "np1"


def test_node_pools_are_listed_for_one_cluster_and_for_all(api: Api) -> None:
    first, second, empty = (api.cluster(f"c{i}") for i in range(3))
    pools = [api.node_pool(owner, f"np{i}") for i, owner in enumerate((first, second, first))]
    of_first = check(api.get(f"/clusters/{first['id']}/nodepools"))
    assert [one["id"] for one in of_first["items"]] == [pools[2]["id"], pools[0]["id"]]
    assert of_first["total"] == of_first["size"] == 2
    of_second = check(api.get(f"/clusters/{second['id']}/nodepools"))
    assert [one["id"] for one in of_second["items"]] == [pools[1]["id"]]
    assert of_second["total"] == 1
    none = check(api.get(f"/clusters/{empty['id']}/nodepools"))
    assert none.pop("changes").startswith("/api/hyperfleet/v1/changes?kind=NodePool&owner_id=")
    assert none == {
        "kind": "NodePoolList",
        "page": 1,
        "size": 0,
        "total": 0,
        "items": [],
    }
    of_all = check(api.get("/nodepools"))
    assert [one["id"] for one in of_all["items"]] == [one["id"] for one in reversed(pools)]
    assert of_all["total"] == 3
    second_page = check(api.get(f"/clusters/{first['id']}/nodepools?page=2&pageSize=1"))
    assert [one["id"] for one in second_page["items"]] == [pools[0]["id"]]
    assert (second_page["page"], second_page["size"], second_page["total"]) == (2, 1, 2)


def test_everything_below_an_unknown_cluster_is_not_found(api: Api) -> None:
    node_pool = api.node_pool(api.cluster())
    for id_ in (NO_ID, "abc", node_pool["id"]):
        problem(api.get(f"/clusters/{id_}/nodepools"), 404)
        problem(api.get(f"/clusters/{id_}/nodepools?size=0"), 404)
        problem(api.post(f"/clusters/{id_}/nodepools", json={"name": "np1", "spec": {}}), 404)
        problem(api.get(f"/clusters/{id_}/nodepools/{node_pool['id']}"), 404)
        problem(api.get(f"/clusters/{id_}/nodepools/{node_pool['id']}/statuses"), 404)
    assert check(api.get("/nodepools"))["total"] == 1


def test_a_node_pool_is_found_below_its_own_cluster_only(api: Api) -> None:
    own, other = api.cluster("c1"), api.cluster("c2")
    node_pool = api.node_pool(own)
    report = {
        "adapter": "dns",
        "observed_generation": 1,
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    assert check(api.get(f"/clusters/{own['id']}/nodepools/{node_pool['id']}")) == node_pool
    wrong = f"/clusters/{other['id']}/nodepools/{node_pool['id']}"
    problem(api.get(wrong), 404)
    problem(api.get(f"{wrong}/statuses"), 404)
    problem(api.put(f"{wrong}/statuses", json=report), 404)
    problem(api.post(f"{wrong}/statuses", json=report), 404)
    for id_ in (NO_ID, "abc", own["id"]):
        problem(api.get(f"/clusters/{own['id']}/nodepools/{id_}"), 404)
        problem(api.get(f"/clusters/{own['id']}/nodepools/{id_}/statuses"), 404)
        problem(api.put(f"/clusters/{own['id']}/nodepools/{id_}/statuses", json=report), 404)
    assert check(api.get(f"/clusters/{own['id']}/nodepools/{node_pool['id']}")) == node_pool


def test_invalid_requests_are_refused_with_the_names_of_their_fields(api: Api) -> None:
    cluster = api.cluster()
    path = f"/clusters/{cluster['id']}/nodepools"
    good = {"name": "np1", "spec": {}}
    for change, fields in (
        ({"kind": "Cluster"}, ["kind"]),
        ({"id": NO_ID}, ["id"]),
        ({"name": "a" * 64}, ["name"]),
        ({"name": "Np1"}, ["name"]),
        ({"name": 5}, ["name"]),
        ({"spec": "x"}, ["spec"]),
        ({"labels": {"k": "v" * 256}}, ["labels.k"]),
        ({"labels": {"k": 5}, "spec": None, "name": None}, ["labels.k", "spec", "name"]),
    ):
        problem(api.post(path, json={**good, **change}), 400, *fields)
    problem(api.post(path, json={}), 400, "name", "spec")
    assert check(api.get(path))["total"] == 0
    assert api.node_pool(cluster, "n" * 63)["name"] == "n" * 63


def test_reports_on_a_node_pool_are_also_listed_under_resources(api: Api) -> None:
    pool = api.node_pool(api.cluster())
    assert api.report(pool, "np").status_code == 201
    found = check(api.get(f"/resources/{pool['id']}/statuses"))
    assert [one["adapter"] for one in found["items"]] == ["np"]
