"""Clusters: a client gets back what it sent, with what the service adds."""

from datetime import UTC, datetime
from typing import Any

from alike import assert_is_new
from conftest import Api
from helpers_contract import BASE, JSON, NO_ID, check, problem


def test_a_created_cluster_is_what_was_requested_and_reads_back_the_same(api: Api) -> None:
    before = datetime.now(UTC)
    asked = {
        "kind": "Cluster",
        "name": "production-cluster",
        "spec": {"region": "us-east-1", "version": "4.16", "nodes": 5},
        "labels": {"env": "production", "team": "platform"},
    }
    response = api.post("/clusters", json=asked)
    cluster = check(response, 201)
    assert {key: cluster[key] for key in asked} == asked
    assert cluster["href"] == f"{BASE}/clusters/{cluster['id']}"
    assert response.headers["Location"].removeprefix(api.url) == cluster["href"]
    assert_is_new(cluster, before)
    assert check(api.get(f"/clusters/{cluster['id']}")) == cluster
    assert check(api.get("/clusters"))["items"] == [cluster]


def test_kind_and_labels_are_optional(api: Api) -> None:
    cluster = check(api.post("/clusters", json={"name": "c1", "spec": {}}), 201)
    assert cluster["kind"] == "Cluster"
    assert cluster["labels"] == {}
    assert cluster["spec"] == {}


def test_members_that_the_service_sets_are_ignored(api: Api) -> None:
    before = datetime.now(UTC)
    extra = {
        "href": "/elsewhere",
        "generation": 99,
        "status": {"phase": "Ready"},
        "created_time": "1999-01-01T00:00:00Z",
        "updated_time": "yesterday",
        "created_by": "mallory",
        "deleted_time": "1999-01-01T00:00:00Z",
        "deleted_by": None,
    }
    cluster = check(api.post("/clusters", json={"name": "c1", "spec": {}, **extra}), 201)
    assert_is_new(cluster, before)
    assert cluster["href"] == f"{BASE}/clusters/{cluster['id']}"
    assert check(api.get(f"/clusters/{cluster['id']}")) == cluster


def test_a_spec_may_be_any_json_and_is_kept(api: Api) -> None:
    deep: Any = "bottom"
    for _ in range(20):
        deep = {"deeper": [deep]}
    spec = {
        "null": None,
        "bools": [True, False],
        "numbers": [0, -1, 1.5, 1e-7, 2**31, 2**53 + 1, 10**30, 0.1, 1e22],
        "empty": [{}, [], ""],
        "": "an empty name",
        "a.b[0]": "a name like a path",
        "unicode": "Zürich 東京 🚀 \u202e \ufffe \u2028",
        "controls": "\x01\x1f\x7f\t\n\r\\\"'",
        "sql": "'; DROP TABLE clusters; -- %s %(x)s {} $1",
        "long": "x" * 100_000,
        "deep": deep,
        "id": "an id in the spec is anybody's",
        "kind": "NodePool",
    }
    cluster = check(api.post("/clusters", json={"name": "c1", "spec": spec}), 201)
    assert cluster["spec"] == spec
    assert check(api.get(f"/clusters/{cluster['id']}"))["spec"] == spec
    assert check(api.get("/clusters"))["items"][0]["spec"] == spec


def test_null_for_a_required_member_counts_as_missing_and_a_number_as_a_wrong_type(
    api: Api,
) -> None:
    told = [
        [(error["field"], error["message"], error["constraint"]) for error in body["errors"]]
        for value in (None, 5)
        for body in [problem(api.post("/clusters", json={"name": value, "spec": value}), 400)]
    ]
    assert told == [
        [("name", "is required", "required"), ("spec", "is required", "required")],
        [("name", "must be a string", "type"), ("spec", "must be an object", "type")],
    ]


def test_names_within_the_bounds_are_accepted(api: Api) -> None:
    for name in ("a", "0", "a" * 63, "a-b", "a--b", "0-9", "xn--zrich-kva"):
        assert check(api.post("/clusters", json={"name": name, "spec": {}}), 201)["name"] == name


def test_names_beyond_the_bounds_are_refused(api: Api) -> None:
    bad = [
        "",
        "a" * 64,
        "a" * 100_000,
        "A",
        "a_b",
        "a.b",
        "-a",
        "a-",
        "a b",
        " a",
        "a ",
        "a\n",
        "é",
        "a/b",
        "١",
    ]
    for name in [*bad, None, 5, 1.5, True, ["a"], {"a": "b"}]:
        body = problem(api.post("/clusters", json={"name": name, "spec": {}}), 400)
        assert {error["field"] for error in body["errors"]} == {"name"}, name
    assert check(api.get("/clusters"))["total"] == 0


def test_a_name_is_unique_among_clusters(api: Api) -> None:
    first = api.cluster("c1")
    body = problem(api.post("/clusters", json={"name": "c1", "spec": {"other": 1}}), 409, "name")
    assert body["instance"] == f"{BASE}/clusters"
    assert check(api.get("/clusters"))["items"] == [first]
    # A refused name uses up nothing that the next creation needs.
    assert api.cluster("c2")["name"] == "c2"


def test_labels_up_to_their_bounds_are_accepted(api: Api) -> None:
    for index, labels in enumerate(
        (
            {},
            {"k": ""},
            {"k": "v" * 63},
            {"p" * 253 + "/" + "n" * 63: "v"},
            {f"k{i}": str(i) for i in range(256)},
            {"app.kubernetes.io/name": "x", "A-b_c.9": "V-1_2.3", "0": "0"},
        )
    ):
        cluster = check(
            api.post("/clusters", json={"name": f"c{index}", "spec": {}, "labels": labels}), 201
        )
        assert cluster["labels"] == labels
        assert check(api.get(f"/clusters/{cluster['id']}"))["labels"] == labels


def test_labels_beyond_their_bounds_are_refused(api: Api) -> None:
    for labels, field in (
        ({"k": "v" * 64}, "labels.k"),
        ({"k": "two words"}, "labels.k"),
        ({"k": "-v"}, "labels.k"),
        ({"k": "v."}, "labels.k"),
        ({"k": "東京"}, "labels.k"),
        ({"k": 1}, "labels.k"),
        ({"k": None}, "labels.k"),
        ({"k": True}, "labels.k"),
        ({"k": {"a": "b"}}, "labels.k"),
        ({"k": ["a"]}, "labels.k"),
        ({f"k{i}": "v" for i in range(257)}, "labels"),
        ([], "labels"),
        ("k=v", "labels"),
        ({"k" * 64: "v"}, "labels"),
        ({"": "v"}, "labels"),
        ({"two words": "v"}, "labels"),
        ({"Zürich": "v"}, "labels"),
        ({"_k": "v"}, "labels"),
        ({"a/b/c": "v"}, "labels"),
        ({"/k": "v"}, "labels"),
        ({"Prefix/k": "v"}, "labels"),
        ({"p" * 254 + "/k": "v"}, "labels"),
    ):
        body = problem(api.post("/clusters", json={"name": "c1", "spec": {}, "labels": labels}), 400)
        (error,) = body["errors"]
        assert error["field"] == field
        # In words, not as the regular expression that checks it.
        assert "[-A-Za-z0-9_.]{0,61}" not in error["message"]
    assert check(api.get("/clusters"))["total"] == 0


def test_a_creation_with_an_id_or_the_wrong_kind_is_refused(api: Api) -> None:
    for id_ in (NO_ID, " ", 1, False):
        problem(api.post("/clusters", json={"id": id_, "name": "c1", "spec": {}}), 400, "id")
    for kind in ("NodePool", "cluster", "", 1):
        problem(api.post("/clusters", json={"kind": kind, "name": "c1", "spec": {}}), 400, "kind")
    assert check(api.get("/clusters"))["total"] == 0


def test_an_empty_id_in_a_creation_counts_as_absent(api: Api) -> None:
    """As in every version of the original, for clients that send all members of their type."""
    cluster = check(api.post("/clusters", json={"id": "", "name": "c1", "spec": {}}), 201)
    assert cluster["id"]
    pool = api.post(f"/clusters/{cluster['id']}/nodepools", json={"id": "", "name": "n", "spec": {}})
    assert check(pool, 201)["id"]
    body = {"kind": "Cluster", "id": "", "name": "c2", "spec": {}}
    assert check(api.post("/resources", json=body), 201)["id"]


def test_several_faults_are_reported_together_each_with_its_field(api: Api) -> None:
    body = problem(
        api.post("/clusters", json={"kind": "X", "id": "x", "labels": {"a": 1, "b": 2}, "spec": []}),
        400,
        "kind",
        "id",
        "name",
        "labels.a",
        "labels.b",
        "spec",
    )
    by_field = {error["field"]: error for error in body["errors"]}
    assert by_field["name"]["constraint"] == "required"
    assert by_field["labels.a"]["constraint"] == "type"
    assert all(field in body["detail"] for field in by_field)
    problem(api.post("/clusters", json={}), 400, "name", "spec")
    for spec in (None, [], "x", 1, True):
        problem(api.post("/clusters", json={"name": "c1", "spec": spec}), 400, "spec")


def test_a_cluster_that_does_not_exist_is_not_found(api: Api) -> None:
    api.cluster()
    for id_ in (
        NO_ID,
        "abc",
        "1",
        "null",
        "00000000-0000-0000-0000-000000000000",
        NO_ID + "0",
        NO_ID[:-1],
    ):
        body = problem(api.get(f"/clusters/{id_}"), 404)
        assert body["instance"] == f"{BASE}/clusters/{id_}"


def test_the_id_of_a_node_pool_is_not_found_among_clusters(api: Api) -> None:
    node_pool = api.node_pool(api.cluster())
    problem(api.get(f"/clusters/{node_pool['id']}"), 404)
    problem(api.get(f"/clusters/{node_pool['id']}/nodepools"), 404)
    problem(api.get(f"/clusters/{node_pool['id']}/statuses"), 404)


def test_creation_accepts_json_with_and_without_parameters_of_the_media_type(api: Api) -> None:
    for index, kind in enumerate((JSON, "application/json; charset=utf-8", "application/json;")):
        body = f'{{"name": "c{index}", "spec": {{}}}}'
        check(api.post("/clusters", data=body, headers={"Content-Type": kind}), 201)


def test_creation_accepts_the_media_type_of_json_in_any_case(api: Api) -> None:
    body = '{"name": "c1", "spec": {}}'
    check(api.post("/clusters", data=body, headers={"Content-Type": "Application/JSON"}), 201)
