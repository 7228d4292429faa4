"""References between resources are created, shown and searched, and never dangle."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import declared_kinds
import psycopg
import pytest
import requests
from alike import FINALIZED, MERGE, answered, at, unique
from conftest import Api, migrated
from process import Serving, run_here
from pytest_postgresql.executors import NoopExecutor

pytestmark = pytest.mark.slow

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


def said(response: requests.Response, status: int) -> str:
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


def test_references_given_at_creation_are_shown_with_kind_and_href(
    world: World,
) -> None:
    wif, peer = world.make("WifConfig"), world.make("Cluster")
    assert "references" not in peer
    given = {"wif_config": ids(wif), "peers": [{"id": peer["id"], "kind": "Cluster", "href": "/x"}]}
    made = world.make("Cluster", references=given)
    assert made["references"] == {"wif_config": shown(wif), "peers": shown(peer)}
    assert made["generation"] == 1
    assert world.read(made) == made
    listed = answered(world.api.get("/clusters", params={"search": f"id='{made['id']}'"}))["items"]
    assert listed == [made]
    assert answered(world.api.get(f"/resources/{made['id']}")) == made
    some = answered(world.api.get("/resources", params={"search": f"id='{made['id']}'"}))["items"]
    assert some == [made]
    only = answered(world.api.get(at(made), params={"fields": "references.wif_config.id"}))
    assert only == {"id": made["id"], "references": {"wif_config": ids(wif)}}
    image = world.make("Image")
    pool = world.make("NodePool", peer, references={"image": ids(image)})
    assert pool["references"] == {"image": shown(image)}
    # Also at the endpoint for all kinds.
    body = {"kind": "Cluster", "name": unique(), "spec": {}, "references": {"wif_config": ids(wif)}}
    assert answered(world.api.post("/resources", json=body), 201)["references"] == {
        "wif_config": shown(wif)
    }


def test_invalid_references_are_reported_with_field_and_reason(world: World) -> None:
    api, wif, image = world.api, world.make("WifConfig"), world.make("Image")
    owner = world.make("Cluster")

    def wrong(path: str, given: Any) -> list[tuple[str, str]]:
        body = {"name": unique(), "spec": {}} | ({} if given is None else {"references": given})
        return faults(api.post(path, json=body))

    absent = str(uuid4())
    place = "references.wif_config[0].id"
    for id_ in (absent, image["id"], "x", ""):
        assert wrong("/clusters", {"wif_config": [{"id": id_}]}) == [
            (place, "must be the id of an existing wif config")
        ], id_
    assert wrong("/clusters", {"wif_config": ids(wif, wif)}) == [
        ("references.wif_config", "must have at most 1 item")
    ]
    assert wrong("/clusters", {"peers": ids(owner, owner)}) == [
        ("references.peers[1].id", "names a cluster that is already named")
    ]
    [(field, message)] = wrong("/clusters", {"wif_config": [{"id": wif["id"], "kind": "Image"}]})
    assert (field, message) == ("references.wif_config[0].kind", "must be WifConfig")
    [(field, message)] = wrong("/clusters", {"wif_confg": ids(wif)})
    assert (field, message) == (
        "references.wif_confg",
        "is not a known member; did you mean wif_config?",
    )
    assert wrong("/clusters", {"wif_config": [{"kind": "WifConfig"}]}) == [(place, "is required")]
    assert wrong("/clusters", {"wif_config": wif["id"]})[0][1] == "must be an array or null"
    assert wrong("/clusters", [])[0] == ("references", "must be an object or null")
    assert wrong("/wif-configs", {"peers": []}) == [("references", "is not a known member")]
    pools = at(owner, "/nodepools")
    assert wrong(pools, None) == [("references", "is required")]
    assert wrong(pools, {}) == [("references.image", "is required")]
    assert wrong(pools, {"image": []}) == [("references.image", "must have at least 1 item")]
    three = ids(image, world.make("Image"), world.make("Image"))
    assert wrong(pools, {"image": three}) == [("references.image", "must have at most 2 items")]
    body = {"kind": "WifConfig", "name": unique(), "spec": {}, "references": {"peers": ids(owner)}}
    assert faults(api.post("/resources", json=body)) == [("references", "is not a known member")]
    for kind in ("wif-configs", "resources"):
        got = api.patch(f"/{kind}/{wif['id']}", json={"references": {"peers": ids(owner)}})
        assert faults(got) == [("references", "is not a known member")]
    # Go clients send null for what they do not have, which counts as absent.
    made = answered(
        api.post("/clusters", json={"name": unique(), "spec": {}, "references": {"wif_config": None}}),
        201,
    )
    assert "references" not in made
    made = answered(api.post("/clusters", json={"name": unique(), "spec": {}, "references": None}), 201)
    assert "references" not in made
    # No reference of a refused request is kept.
    assert world.found("/clusters", ref_target_id=image["id"]) == set()


def test_a_patch_replaces_all_references_and_raises_the_generation(world: World) -> None:
    one, other, peer = world.make("WifConfig"), world.make("WifConfig"), world.make("Cluster")
    cluster = world.make("Cluster", references={"wif_config": ids(one), "peers": ids(peer)})
    changed = answered(world.patch(cluster, {"references": {"wif_config": ids(other)}}))
    assert changed["references"] == {"wif_config": shown(other)}
    assert changed["generation"] == 2
    assert changed["updated_time"] > cluster["updated_time"]
    assert world.read(cluster) == changed
    # Repeating it changes nothing, and patching something else keeps the references.
    for body in ({"references": {"wif_config": shown(other), "peers": []}}, {"labels": {}}):
        assert answered(world.patch(cluster, body)) == changed
    changed = answered(world.patch(cluster, {"spec": {"a": 1}}))
    assert changed["references"] == {"wif_config": shown(other)}
    both = {"references": {"peers": ids(peer)}, "labels": {"a": "b"}}
    changed = answered(world.patch(cluster, both))
    assert (changed["references"], changed["labels"]) == ({"peers": shown(peer)}, {"a": "b"})
    assert changed["generation"] == 4
    changed = answered(world.patch(cluster, {"references": {}}))
    assert "references" not in changed
    assert "references" not in world.read(cluster)
    # Both targets can be deleted again.
    for target in (one, other):
        world.delete(target)
    for body, place in (
        ({"wif_config": ids(one)}, "references.wif_config[0].id"),
        ({"wif_config": ids(peer, peer)}, "references.wif_config"),
        ({"images": []}, "references.images"),
    ):
        assert [field for field, _ in faults(world.patch(cluster, {"references": body}))] == [place]
    pool = world.make("NodePool", cluster, references={"image": ids(world.make("Image"))})
    assert faults(world.patch(pool, {"references": {}})) == [("references.image", "is required")]
    # null counts as absent, even where references are required.
    assert answered(world.patch(pool, {"references": None})) == pool
    assert answered(world.api.patch(f"/resources/{pool['id']}", json={"references": None})) == pool


def test_a_merge_patch_changes_only_the_reference_types_that_it_names(world: World) -> None:
    wif, peer = world.make("WifConfig"), world.make("Cluster")
    cluster = world.make("Cluster", references={"wif_config": ids(wif)})
    changed = answered(world.merge(cluster, {"references": {"peers": ids(peer)}}))
    assert changed["references"] == {"wif_config": shown(wif), "peers": shown(peer)}
    assert answered(world.merge(cluster, {"references": {}})) == changed
    changed = answered(world.merge(cluster, {"references": {"wif_config": None}}))
    assert changed["references"] == {"peers": shown(peer)}
    for given, place in (
        ({"peers": "x"}, "references.peers"),
        ({"peers": [1]}, "references.peers[0]"),
        ({"peers": [{"id": 5}]}, "references.peers[0].id"),
        ({"more": 7}, "references.more"),
        ({"peers": ids(wif)}, "references.peers[0].id"),
        # These are refused although they would change nothing.
        ({"more": []}, "references.more"),
        ({"peers": [{**ids(peer)[0], "kind": "WifConfig"}]}, "references.peers[0].kind"),
    ):
        assert [field for field, _ in faults(world.merge(cluster, {"references": given}))] == [place]
    assert answered(world.merge(cluster, {"references": {"peers": ids(peer)}})) == changed
    assert answered(world.merge(cluster, {"references": changed["references"]})) == changed
    assert "references" not in answered(world.merge(cluster, {"references": None}))
    pool = world.make("NodePool", cluster, references={"image": ids(world.make("Image"))})
    got = world.merge(pool, {"references": None})
    assert [field for field, _ in faults(got)] == ["references"]


def test_lists_can_be_filtered_by_references(world: World) -> None:
    api, wif, other = world.api, world.make("WifConfig"), world.make("WifConfig")
    peer = world.make("Cluster")
    one = world.make("Cluster", references={"wif_config": ids(wif)}, labels={"a": "b"})
    two = world.make("Cluster", references={"wif_config": ids(wif), "peers": ids(peer)})
    three = world.make("Cluster", references={"wif_config": ids(other)})
    a, b, c = (made["id"] for made in (one, two, three))
    for path in ("/clusters", "/resources"):
        for query, expected in (
            ({"ref_type": "wif_config", "ref_target_id": wif["id"]}, {a, b}),
            ({"ref_type": "peers", "ref_target_id": wif["id"]}, set()),
            ({"ref_target_id": peer["id"]}, {b}),
            ({"ref_target_id": str(uuid4())}, set()),
            ({"ref_target_id": "x"}, set()),
            ({"ref_target_id": wif["id"], "search": "labels.a='b'"}, {a}),
            ({"search": f"references.wif_config='{wif['id']}'"}, {a, b}),
            ({"search": f"references.wif_config in ('{wif['id']}', '{other['id']}')"}, {a, b, c}),
            ({"search": f"references.wif_config='{wif['id']}' and not references.peers is null"}, {b}),
            ({"search": f"references.wif_config='{other['id']}' or id='{a}'"}, {a, c}),
            ({"search": "references.wif_config='x'"}, set()),
        ):
            assert world.found(path, **query) == expected, (path, query)
        kind = " and kind='Cluster'"
        left = world.found(path, search=f"references.wif_config!='{wif['id']}'{kind}", pageSize="1000")
        assert c in left
        assert peer["id"] in left
        assert not {a, b} & left
        unset = world.found(path, search=f"references.wif_config is null{kind}", pageSize="1000")
        assert peer["id"] in unset
        assert not {a, b, c} & unset
    assert {a, b, c} <= world.found("/clusters", ref_type="wif_config", pageSize="1000")
    # Across pages, with a total.
    query = {"ref_target_id": wif["id"], "pageSize": "1"}
    page = answered(api.get("/clusters", params=query))
    assert (page["total"], [item["id"] for item in page["items"]]) == (2, [b])
    following = answered(api.get("/" + page["next"]))
    assert [item["id"] for item in following["items"]] == [a]
    for path in ("/clusters", "/resources", "/wif-configs", at(peer, "/nodepools"), "/nodepools"):
        [(field, _)] = faults(api.get(path, params={"ref_type": "wif_confg"}))
        assert field == "ref_type"
    assert "did you mean wif_config?" in faults(api.get("/clusters?ref_type=wif_confg"))[0][1]
    assert "refers to nothing" in faults(api.get("/wif-configs?ref_type=x"))[0][1]
    for expression in ("references.wif_config > 'a'", "references.wif_config like 'a%'"):
        assert "does not work with references" in said(
            api.get("/clusters", params={"search": expression}), 400
        )
    for expression in ("references.wif_confg='a'", "references='a'", "references.wif_config=5"):
        answered(api.get("/clusters", params={"search": expression}), 400)
    answered(api.get("/clusters?orderBy=references.wif_config"), 400)
    image = world.make("Image")
    pool = world.make("NodePool", peer, references={"image": ids(image)})
    assert world.found(at(peer, "/nodepools"), ref_target_id=image["id"]) == {pool["id"]}
    assert world.found(at(one, "/nodepools"), ref_target_id=image["id"]) == set()


def test_the_changes_link_of_a_list_filtered_by_references_keeps_the_filter(world: World) -> None:
    api, wif, other = world.api, world.make("WifConfig"), world.make("WifConfig")
    lists = [
        (path, query)
        for path in ("/clusters", "/resources")
        for query in (
            {"ref_type": "wif_config", "ref_target_id": wif["id"], "fields": "name"},
            {"ref_target_id": wif["id"], "search": "name='x' or labels.a='b'"},
            {"ref_type": "wif_config", "search": "labels.a='b'"},
            # The largest searches that are allowed.
            {"ref_target_id": wif["id"], "search": " or ".join(["labels.a='b'"] * 100)},
            {"ref_target_id": wif["id"], "search": f"{'(' * 32}labels.a='b'{')' * 32}"},
            {"ref_target_id": wif["id"], "search": f"labels.a='b' or name='{'x' * 4073}'"},
        )
    ]
    links = [answered(api.get(path, params=query))["changes"] for path, query in lists]
    strange = api.get("/clusters", params={"ref_target_id": "it's"})
    none = api.get("/wif-configs", params={"ref_target_id": wif["id"]})
    nothing = [answered(page)["changes"] for page in (strange, none)]
    one = world.make("Cluster", references={"wif_config": ids(wif)}, labels={"a": "b"})
    world.make("Cluster", references={"peers": ids(one)}, labels={"a": "b"})
    two = world.make("Cluster", references={"wif_config": ids(other)}, labels={"a": "c"})
    world.make("WifConfig", labels={"a": "b"})
    for link in links:
        assert [item["id"] for item in answered(api.get("/" + link))["items"]] == [one["id"]], link
    for link in nothing:
        assert answered(api.get("/" + link))["items"] == [], link
    assert answered(world.patch(two, {"references": {"wif_config": ids(wif)}}))["generation"] == 2
    told = answered(api.get("/" + links[0]))["items"]
    assert {item["id"] for item in told} == {one["id"], two["id"]}


def test_entity_tags_change_with_references(world: World) -> None:
    api, wif = world.api, world.make("WifConfig")
    cluster = world.make("Cluster", references={"wif_config": ids(wif)})
    listed = api.get("/clusters", params={"ref_target_id": wif["id"]})
    tags = {"list": listed.headers["ETag"], "one": api.get(at(cluster)).headers["ETag"]}

    def known(path: str, tag: str, **query: str) -> int:
        return api.get(path, params=query, headers={"If-None-Match": tag}).status_code

    assert known("/clusters", tags["list"], ref_target_id=wif["id"]) == 304
    assert known(at(cluster), tags["one"]) == 304
    stale = world.patch(cluster, {"references": {}}, **{"If-Match": '"7"'})
    assert stale.status_code == 412
    changed = world.patch(cluster, {"references": {}}, **{"If-Match": tags["one"]})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tags["one"]
    assert known("/clusters", tags["list"], ref_target_id=wif["id"]) == 200
    assert known(at(cluster), tags["one"]) == 200


def test_a_creation_with_references_can_be_repeated_with_its_key(world: World) -> None:
    wif, key = world.make("WifConfig"), {"Idempotency-Key": str(uuid4())}
    body = {"name": unique(), "spec": {}, "references": {"wif_config": ids(wif)}}
    first = world.api.post("/clusters", json=body, headers=key)
    again = world.api.post("/clusters", json=body, headers=key)
    assert answered(first, 201) == answered(again, 201)
    assert first.headers["Location"] == again.headers["Location"]
    assert first.json()["references"] == {"wif_config": shown(wif)}
    other = {**body, "references": {}}
    assert world.api.post("/clusters", json=other, headers=key).status_code == 422
    # A refusal leaves the key free.
    key, body["name"] = {"Idempotency-Key": str(uuid4())}, unique()
    wrong = {**body, "references": {"wif_config": [{"id": str(uuid4())}]}}
    faults(world.api.post("/clusters", json=wrong, headers=key))
    answered(world.api.post("/clusters", json=body, headers=key), 201)
    # A name that is taken is a conflict and leaves no references behind.
    assert "is the name of another" in said(world.api.post("/clusters", json=body), 409)
    assert len(world.found("/clusters", ref_target_id=wif["id"])) == 2


def test_deleting_a_referenced_resource_is_refused_naming_its_referrers(world: World) -> None:
    api, wif = world.api, world.make("WifConfig")
    clusters = [world.make("Cluster", references={"wif_config": ids(wif)}) for _ in range(4)]
    detail = said(api.delete(at(wif)), 409)
    assert (
        sum(f"the cluster {one['name']} ({one['id']}) refers to it" in detail for one in clusters) == 3
    )
    assert "as wif_config, and there are others" in detail
    assert "deleted_time" not in world.read(wif)
    for one in clusters[1:]:
        answered(world.patch(one, {"references": {}}))
    detail = said(api.delete(f"/resources/{wif['id']}"), 409)
    assert f"{clusters[0]['name']} ({clusters[0]['id']}) refers to it as wif_config." in detail
    answered(world.patch(clusters[0], {"references": {}}))
    world.delete(wif)
    assert world.status(wif) == 404


def test_a_resource_referenced_by_a_marked_one_is_removed_after_it(world: World) -> None:
    wif = world.make("WifConfig")
    cluster = world.make("Cluster", references={"wif_config": ids(wif)})
    assert world.api.report(cluster, "dns").status_code == 201
    world.delete(cluster)
    marked = world.delete(wif)
    assert marked["deleted_time"]
    assert world.read(wif)["generation"] == 2
    # No adapter must finalize it, but the cluster that refers to it still exists and may need it.
    assert world.delete(wif) == world.read(wif)
    messages = [one["message"] for one in world.read(wif)["status"]["conditions"]]
    assert "Resources still belonging or referring to it: 1." in messages
    assert world.status(wif) == 200
    [(field, message)] = faults(
        world.api.post(
            "/clusters",
            json={"name": unique(), "spec": {}, "references": {"wif_config": ids(wif)}},
        )
    )
    assert (field, message) == (
        "references.wif_config[0].id",
        "names a wif config that is being deleted",
    )
    assert world.found("/clusters", ref_target_id=wif["id"]) == {cluster["id"]}
    world.finalize(cluster, "dns")
    assert [world.status(one) for one in (cluster, wif)] == [404, 404]


def test_another_delete_completes_a_removal_that_a_dead_process_left_undone(world: World) -> None:
    wif = world.make("WifConfig")
    cluster = world.make("Cluster", references={"wif_config": ids(wif)})
    assert world.api.report(cluster, "dns").status_code == 201
    world.delete(cluster)
    world.delete(wif)
    with psycopg.connect(world.database) as conn:
        # What a process leaves that dies right after committing the cluster's removal.
        conn.execute("DELETE FROM clusters WHERE id = %s", [cluster["id"]])
    assert world.status(wif) == 200
    world.delete(wif)
    assert world.status(wif) == 404


def test_a_chain_of_references_is_removed_when_its_first_referrer_is(world: World) -> None:
    last = world.make("Cluster")
    chain = [last]
    for _ in range(3):
        chain.append(world.make("Cluster", references={"peers": ids(chain[-1])}))
    for one in chain:
        assert world.api.report(one, "dns").status_code == 201
    for one in chain[1:]:
        assert world.api.delete(at(one)).status_code == (202 if one is chain[-1] else 409)
    for one in (*chain[-2:0:-1], last):
        world.delete(one)
    # Those that are referred to finish first, and wait.
    for one in chain[:-1]:
        world.finalize(one, "dns")
    assert [world.status(one) for one in chain] == [200] * 4
    world.finalize(chain[-1], "dns")
    assert [world.status(one) for one in chain] == [404] * 4


def test_force_delete_removes_a_resource_and_all_references_to_it(world: World) -> None:
    api, wif, peer = world.api, world.make("WifConfig"), world.make("Cluster")
    cluster = world.make("Cluster", references={"wif_config": ids(wif), "peers": ids(peer)})
    assert api.report(cluster, "dns").status_code == 201
    said(api.post(at(wif, "/force-delete"), json={"reason": "x"}), 409)
    world.delete(cluster)
    tag = api.get(at(cluster)).headers["ETag"]
    world.delete(wif)
    assert api.post(at(wif, "/force-delete"), json={"reason": "x"}).status_code == 204
    assert world.status(wif) == 404
    left = api.get(at(cluster), headers={"If-None-Match": tag})
    assert answered(left)["references"] == {"peers": shown(peer)}
    assert world.found("/clusters", ref_target_id=wif["id"]) == set()
    # A forced removal of the referrer frees what it refers to.
    world.delete(peer)
    world.finalize(peer, "dns")
    assert world.status(peer) == 200
    assert api.post(at(cluster, "/force-delete"), json={"reason": "x"}).status_code == 204
    assert [world.status(one) for one in (cluster, peer)] == [404, 404]
    with psycopg.connect(world.database) as conn:
        query = "SELECT document FROM audit WHERE resource_id = %s AND action = 'force-delete'"
        [(document,)] = conn.execute(query, [cluster["id"]]).fetchall()
        assert f'"id": "{peer["id"]}"' in document


def test_a_reference_to_a_child_keeps_its_parent_from_being_deleted(world: World) -> None:
    api, region, other = world.api, world.make("Region"), world.make("Region")
    zone = world.make("Zone", region)
    outside = world.make("Zone", other, references={"backup": ids(zone)})
    detail = said(api.delete(at(region)), 409)
    assert f"the zone {outside['name']} ({outside['id']}) refers to its zone {zone['id']}" in detail
    assert "deleted_time" not in world.read(zone)
    answered(world.patch(outside, {"references": {}}))
    world.delete(region)
    world.finalize(zone, "zone")
    assert [world.status(one) for one in (zone, region)] == [404, 404]


def test_references_between_resources_deleted_together_do_not_block_them(world: World) -> None:
    api, region = world.api, world.make("Region")
    one = world.make("Zone", region, references={"home": ids(region)})
    two = world.make("Zone", region, references={"backup": ids(one)})
    answered(world.patch(one, {"references": {"backup": ids(two), "home": ids(region)}}))
    for zone in (one, two):
        said(api.delete(at(zone)), 409)
        assert api.report(zone, "zone").status_code == 201
    generation = world.read(one)["generation"] + 1
    world.delete(region)
    world.finalize(one, "zone", generation)
    assert [world.status(each) for each in (one, two, region)] == [404, 200, 200]
    world.finalize(two, "zone")
    assert [world.status(each) for each in (two, region)] == [404, 404]
    with psycopg.connect(world.database) as conn:
        rows = conn.execute(
            "SELECT count(*) FROM resource_references WHERE %s IN (source_id, target_id)", [one["id"]]
        ).fetchone()
    assert rows == (0,)


def test_a_resource_may_refer_to_itself(world: World) -> None:
    zone = world.make("Zone", world.make("Region"))
    changed = answered(world.patch(zone, {"references": {"backup": ids(zone)}}))
    assert changed["references"] == {"backup": shown(zone)}
    world.delete(zone)
    world.finalize(zone, "zone", 3)
    assert world.status(zone) == 404


def test_concurrent_writes_leave_no_dangling_reference_and_cause_no_deadlock(world: World) -> None:
    """After concurrent creations, patches and deletions, all references lead to what exists."""
    region = world.make("Region")
    zones = [world.make("Zone", region) for _ in range(6)]
    wifs = [world.make("WifConfig") for _ in range(6)]
    strange: list[str] = []

    def work(seed: int) -> None:
        chance, api = random.Random(seed), Api(world.server.url)
        for _ in range(40):
            zone, wif = chance.choice(zones), chance.choice(wifs)
            others = ids(*chance.sample(zones, 2))
            match chance.randrange(7):
                case 0:
                    body = {"name": unique(), "spec": {}, "references": {"wif_config": ids(wif)}}
                    got = api.post("/clusters", json=body)
                case 1:
                    body = {"name": unique(), "spec": {}, "references": {"backup": others}}
                    got = api.post(at(region, "/zones"), json=body)
                    if got.status_code == 201 and chance.random() < 0.5:
                        zones[chance.randrange(len(zones))] = got.json()
                case 2 | 3:
                    got = api.patch(at(zone), json={"references": {"backup": others}})
                case 4:
                    got = api.delete(at(zone))
                    if got.status_code == 202 and chance.random() < 0.5:
                        api.post(at(zone, "/force-delete"), json={"reason": "x"})
                case 5:
                    got = api.delete(at(wif))
                    if got.status_code == 202:
                        made = api.post("/wif-configs", json={"name": unique(), "spec": {}})
                        wifs[wifs.index(wif)] = made.json() if wif in wifs else wif
                case _:
                    got = api.report(zone, "zone")
            if got.status_code >= 500:
                strange.append(got.text)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert not strange
    with psycopg.connect(world.database) as conn:
        dangling = conn.execute(
            "SELECT source.id, one.value FROM all_resources AS source, jsonb_each(source.refs) AS of, "
            "jsonb_array_elements(of.value) AS one WHERE NOT EXISTS ("
            "SELECT FROM all_resources AS target WHERE target.id = (one.value ->> 'id')::uuid)"
        ).fetchall()
        differing = conn.execute(
            "SELECT count(*) FROM all_resources AS source, jsonb_each(source.refs) AS of, "
            "jsonb_array_elements(of.value) AS one WHERE NOT EXISTS ("
            "SELECT FROM resource_references AS row WHERE row.source_id = source.id "
            "AND row.ref_type = of.key AND row.target_id = (one.value ->> 'id')::uuid)"
        ).fetchone()
        marked = conn.execute(
            "SELECT count(*) FROM resource_references AS r "
            "JOIN all_resources AS t ON t.id = r.target_id AND t.deleted_time IS NOT NULL "
            "JOIN all_resources AS s ON s.id = r.source_id AND s.deleted_time IS NULL"
        ).fetchone()
    assert dangling == []
    assert differing == (0,)
    assert marked == (0,)
    assert "deadlock" not in world.server.output


def test_replicas_that_list_the_kinds_in_different_orders_do_not_deadlock(
    database: str, sql: psycopg.Connection, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As in a rollout: each changes a resource that refers to the one that the other changes."""
    given = [
        {"kind": kind, "plural": plural, "references": [{"ref_type": "to", "target_kind": other}]}
        for kind, plural, other in (("Left", "lefts", "Right"), ("Right", "rights", "Left"))
    ]
    with ExitStack() as stack:
        apis = []
        for some in (given, given[::-1]):
            file = declared_kinds.file(tmp_path_factory.mktemp("list"), some)
            options = ("--no-auth", f"--config={file}", f"--database-url={database}")
            apis.append(Api(stack.enter_context(Serving(*options)).url))
        pair = [
            answered(apis[0].post(f"/{one['plural']}", json={"name": "one", "spec": {}}), 201)
            for one in given
        ]
        threads = stack.enter_context(ThreadPoolExecutor(2))

        def change(which: int) -> int:
            body = {"references": {"to": ids(pair[1 - which])}}
            return apis[which].patch(at(pair[which]), json=body).status_code

        for first in (0, 1):
            with sql.transaction():
                # The first waits for its own row, the second for the one that it refers to.
                sql.execute("SELECT FROM resources WHERE id = %s FOR UPDATE", [pair[first]["id"]])
                changes = []
                for number, which in enumerate((first, 1 - first), 1):
                    changes.append(threads.submit(change, which))
                    wait_for_waiting(sql, number)
            assert [one.result(30) for one in changes] == [200, 200]
            for which in (0, 1):
                answered(apis[which].patch(at(pair[which]), json={"references": {}}))


def wait_for_waiting(sql: psycopg.Connection, number: int) -> None:
    """Returns once this number of sessions wait for a lock in this database."""
    end = time.monotonic() + 10
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    while sql.execute(query).fetchone() != (number,):
        assert time.monotonic() < end
        # Within a transaction, the view does not change by itself.
        sql.execute("SELECT pg_stat_clear_snapshot()")
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("references", "told"),
    [
        ("x", "Zone.references must be a list"),
        ([{"ref_type": "a"}], "Zone.references[0] lacks target_kind"),
        ([{"ref_type": "a", "target_kind": "Zone", "mx": 1}], "Zone.references[0].mx is not supported"),
        ([{"ref_type": "a b", "target_kind": "Zone"}], "Zone.references[0].ref_type must match"),
        ([{"ref_type": "a", "target_kind": "Zon"}], "a leads to Zon, which is not a known kind"),
        ([{"ref_type": "a", "target_kind": "Zone", "min": -1}], "min must be a number from 0 to 1000"),
        ([{"ref_type": "a", "target_kind": "Zone", "max": 1001}], "max must be a number from 0 to 1000"),
        ([{"ref_type": "a", "target_kind": "Zone", "min": 2, "max": 1}], "min is 2, which is more"),
        (
            [{"ref_type": "a", "target_kind": "Zone", "min": 1}],
            "Zone must refer to resources that cannot exist",
        ),
        ([{"ref_type": "a", "target_kind": "Zone"}] * 2, "has the type a twice"),
    ],
)
def test_a_mistake_in_the_declaration_of_references_is_reported(
    tmp_path: Any, references: Any, told: str
) -> None:
    file = declared_kinds.file(tmp_path, [{"kind": "Zone", "plural": "zones", "references": references}])
    ended = run_here("config", "--check", "--no-auth", "--config", file)
    assert ended.returncode != 0
    assert told in " ".join(ended.stdout.split())


def test_the_contract_describes_the_declared_references(world: World) -> None:
    schemas = answered(world.api.get("/openapi"))["components"]["schemas"]
    request = schemas["NodePoolCreateRequest"]
    assert "references" in request["required"]
    image = request["properties"]["references"]["properties"]["image"]
    assert (image["minItems"], image["maxItems"]) == (1, 2)
    assert "references" in schemas["Cluster"]["properties"]
    assert "references" not in schemas["WifConfig"]["properties"]
    assert "references" not in schemas["WifConfigCreateRequest"]["properties"]
