"""References between resources are declared, created, shown and searched."""

from typing import Any
from uuid import uuid4

import declared_kinds
import pytest
from alike import answered, at, unique
from process import run_here
from reference_world import World, detail_of, faults, ids, shown, world

pytestmark = pytest.mark.slow

__all__ = ["world"]


def test_references_given_at_creation_are_shown_with_kind_and_href(world: World) -> None:
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
    # A change of something else needs no references, even if it is large or undoes another one.
    for number, spec in enumerate(({"a": 1}, {"a": "x" * 40_000}, {"a": "y" * 40_000}), 2):
        changed = answered(world.patch(pool, {"spec": spec}))
        assert (changed["generation"], changed["references"]) == (number, pool["references"])
    back = answered(world.api.post(f"{at(pool)}/rollback", json={"generation": 1}))
    assert (back["spec"], back["references"]) == (pool["spec"], pool["references"])
    pool = back
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
        assert "does not work with references" in detail_of(
            api.get("/clusters", params={"search": expression}), 400
        )
    for expression in ("references.wif_confg='a'", "references='a'", "references.wif_config=5"):
        answered(api.get("/clusters", params={"search": expression}), 400)
    answered(api.get("/clusters?orderBy=references.wif_config"), 400)
    image = world.make("Image")
    pool = world.make("NodePool", peer, references={"image": ids(image)})
    assert world.found(at(peer, "/nodepools"), ref_target_id=image["id"]) == {pool["id"]}
    assert world.found(at(one, "/nodepools"), ref_target_id=image["id"]) == set()


def test_an_empty_filter_by_references_counts_as_not_given(world: World) -> None:
    """As in the original, for scripts whose variable is not set."""
    api, wif = world.api, world.make("WifConfig")
    cluster = world.make("Cluster", references={"wif_config": ids(wif)})
    plain = answered(api.get("/clusters"))
    for query in ("ref_type=&ref_target_id=", "ref_type=%20", "ref_target_id=%20"):
        page = answered(api.get(f"/clusters?{query}"))
        assert page["items"] == plain["items"]
        answered(api.get("/" + page["changes"]))
    assert world.found("/clusters", ref_type="", ref_target_id=wif["id"]) == {cluster["id"]}


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
    peer = world.make("Cluster")
    of_peer = answered(api.get("/clusters", params={"ref_target_id": peer["id"]}))["changes"]
    one = world.make("Cluster", references={"wif_config": ids(wif)}, labels={"a": "b"})
    world.make("Cluster", references={"peers": ids(one)}, labels={"a": "b"})
    # References of every type count.
    beside = world.make("Cluster", references={"peers": ids(peer)})
    assert [item["id"] for item in answered(api.get("/" + of_peer))["items"]] == [beside["id"]]
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
    assert "is the name of another" in detail_of(world.api.post("/clusters", json=body), 409)
    assert len(world.found("/clusters", ref_target_id=wif["id"])) == 2


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
            "Zone require references to resources that cannot exist",
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
