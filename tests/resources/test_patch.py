"""PATCH: what can be changed, what else a change affects, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alike import (
    BOTH_KINDS,
    BOTH_TYPES,
    MERGE,
    at,
    collection,
    create,
    merge,
    patch,
    read,
    refused,
)
from conftest import Api
from helpers_contract import JSON, NO_ID, check, condition, problem

from hyperfleet.auth import identity
from hyperfleet.kinds import RESOURCES

Json = dict[str, Any]


def label_rows(sql: psycopg.Connection, resource: Json) -> dict[str, str]:
    """Returns the labels that searches see."""
    rows = sql.execute(
        "SELECT key, value FROM labels WHERE owner_type = %s AND owner_id = %s",
        (resource["kind"], resource["id"]),
    )
    return dict(rows.fetchall())


# Changes


@BOTH_KINDS
def test_application_json_replaces_members_as_a_whole(api: Api, kind: str) -> None:
    resource = create(api, kind)
    changed = check(patch(api, resource, {"spec": {"version": "4.17", "gone": None}}))
    # In application/json, null is an ordinary value.
    assert changed["spec"] == {"version": "4.17", "gone": None}
    assert changed["labels"] == {"env": "dev", "team": "a"}
    assert changed["generation"] == 2
    changed = check(patch(api, resource, {"labels": {"zone": "b"}}))
    assert changed["labels"] == {"zone": "b"}
    assert changed["spec"] == {"version": "4.17", "gone": None}
    assert changed["generation"] == 3
    changed = check(patch(api, resource, {"spec": {}, "labels": {}}))
    assert (changed["spec"], changed["labels"]) == ({}, {})
    # One request is one change, however many members it has.
    assert changed["generation"] == 4
    assert read(api, resource)[1] == changed


@BOTH_KINDS
def test_merge_patch_merges_and_null_removes(api: Api, kind: str) -> None:
    resource = create(api, kind, spec={"version": "4.16", "net": {"cidr": "10/8", "mtu": 1500}})
    changed = check(
        merge(
            api,
            resource,
            {"spec": {"net": {"mtu": None, "v6": True}, "nodes": 3}, "labels": {"team": None}},
        )
    )
    assert changed["spec"] == {"version": "4.16", "net": {"cidr": "10/8", "v6": True}, "nodes": 3}
    assert changed["labels"] == {"env": "dev"}
    assert changed["generation"] == 2
    changed = check(merge(api, resource, {"labels": {"env": "prod", "absent": None, "new": ""}}))
    assert changed["labels"] == {"env": "prod", "new": ""}
    changed = check(merge(api, resource, {"labels": None}))
    assert changed["labels"] == {}
    assert changed["spec"] == {"version": "4.16", "net": {"cidr": "10/8", "v6": True}, "nodes": 3}
    assert changed["generation"] == 4
    assert read(api, resource)[1] == changed


# The examples of RFC 7396, appendix A, one level down, and cases that they leave open.
MERGES: list[tuple[Json, Json, Json]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    ({"a": "foo"}, {"a": {"b": "c"}}, {"a": {"b": "c"}}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    # In an array, null is an item.
    ({"a": [1]}, {"a": [None, {"b": None}]}, {"a": [None, {"b": None}]}),
    # What the patch does not name stays as it is.
    ({"a": None, "b": {"c": None}}, {"b": {"d": 1}}, {"a": None, "b": {"c": None, "d": 1}}),
]


@BOTH_KINDS
def test_merge_patch_follows_the_rfc(api: Api, kind: str) -> None:
    for index, (before, change, after) in enumerate(MERGES):
        resource = create(api, kind, f"r{index}", spec=before)
        assert check(merge(api, resource, {"spec": change}))["spec"] == after
        assert read(api, resource)[1]["spec"] == after


LOOK_EQUAL: list[tuple[Any, Any]] = [
    (1, True),
    (True, 1),
    (0, False),
    (False, 0),
    (1, "1"),
    (None, False),
    (None, 0),
    ("", None),
    ([], {}),
    ({}, []),
    ([], ""),
    ("", []),
    ("ab", ["a", "b"]),
    ({"a": "b"}, ["a"]),
    ([1, 2], [2, 1]),
    ([1], [True]),
    ({"b": [{"c": 1}]}, {"b": [{"c": True}]}),
    (2**53, 2**53 + 1),
    (0.1, 0.10000000000000002),
    ("é", "e\u0301"),
]


@pytest.mark.parametrize("media_type", BOTH_TYPES)
def test_values_that_only_look_equal_are_a_change(api: Api, media_type: str) -> None:
    for index, (before, after) in enumerate(LOOK_EQUAL):
        # In an array, since elsewhere null in a merge patch means removal.
        cluster = api.cluster(f"c{index}", spec={"a": [before]})
        changed = check(patch(api, cluster, {"spec": {"a": [after]}}, media_type))
        assert changed["generation"] == 2, (before, after)
        # Compared as text, since some of them are equal in Python, too.
        assert json.dumps(changed["spec"]) == json.dumps({"a": [after]})
        assert json.dumps(read(api, cluster)[1]["spec"]) == json.dumps({"a": [after]})


def test_repeating_numbers_that_a_double_cannot_hold_exactly_is_no_change(api: Api) -> None:
    spec = '{"spec": {"large": 1e23, "digits": 1.2345678901234567e17, "small": 0.1}}'
    cluster = api.cluster()
    headers = {"Content-Type": "application/json"}
    generations = [
        api.patch(f"/clusters/{cluster['id']}", data=spec, headers=headers).json()["generation"]
        for _ in range(3)
    ]
    assert generations == [2, 2, 2]


def test_changing_a_number_to_a_boolean_or_back_is_a_change(api: Api) -> None:
    cluster = api.cluster(spec={"a": 1})
    changed = check(patch(api, cluster, {"spec": {"a": True}}))
    assert (changed["generation"], changed["spec"]["a"]) == (2, True)
    assert changed["spec"]["a"] is True
    changed = check(merge(api, cluster, {"spec": {"a": 1}}))
    assert changed["generation"] == 3
    assert changed["spec"]["a"] is not True


@BOTH_KINDS
def test_a_patch_may_repeat_name_kind_and_id(api: Api, kind: str) -> None:
    resource = create(api, kind)
    same = {member: resource[member] for member in ("name", "kind", "id")}
    for media_type in (JSON, MERGE):
        assert check(patch(api, resource, same, media_type)) == resource
    changed = check(patch(api, resource, {**same, "labels": {}}))
    assert (changed["labels"], changed["generation"]) == ({}, 2)


@BOTH_KINDS
def test_a_resource_can_be_sent_back_as_read_with_a_change(api: Api, kind: str) -> None:
    resource = create(api, kind)
    edited = {**resource, "spec": {"version": "4.18"}}
    changed = check(patch(api, resource, edited))
    assert changed["spec"] == {"version": "4.18"}
    kept = ("id", "href", "name", "created_time", "created_by", "labels")
    assert [changed[member] for member in kept] == [resource[member] for member in kept]
    assert changed["generation"] == 2


@BOTH_KINDS
def test_members_that_a_patch_cannot_set_are_ignored(api: Api, kind: str) -> None:
    resource = create(api, kind)
    before = read(api, resource)
    others = {
        "generation": 99,
        "status": {"phase": "Ready"},
        "href": "/elsewhere",
        "created_time": "1999-01-01T00:00:00Z",
        "updated_by": "mallory",
        "deleted_time": "1999-01-01T00:00:00Z",
    }
    if parent := RESOURCES[kind].parent:
        others["owner_references"] = {"kind": parent, "id": NO_ID, "href": "/x"}
    for media_type in BOTH_TYPES:
        assert check(patch(api, resource, others, media_type)) == before[1]
        # Nor does null remove them.
        assert check(patch(api, resource, dict.fromkeys(others), media_type)) == before[1]
    assert read(api, resource) == before


# Effects of a change


@BOTH_KINDS
@pytest.mark.parametrize("media_type", BOTH_TYPES)
def test_a_patch_without_changes_writes_nothing(
    api: Api, sql: psycopg.Connection, kind: str, media_type: str
) -> None:
    spec = {"a": 1, "b": {"c": [1, None], "d": "x"}}
    resource = create(api, kind, spec=spec)
    before = read(api, resource)
    table = RESOURCES[kind].table
    row = sql.execute(f"SELECT xmin, version, document FROM {table}").fetchall()
    for body in (
        {},
        {"spec": spec},
        {"spec": {"b": {"d": "x", "c": [1, None]}, "a": 1}},
        {"labels": {"team": "a", "env": "dev"}},
        {"spec": spec, "labels": resource["labels"]},
    ):
        response = patch(api, resource, body, media_type)
        assert (response.headers["ETag"], check(response)) == before
    if media_type == MERGE:
        for body in ({"spec": {}}, {"labels": {}}, {"labels": {"absent": None}}, {"spec": {"z": None}}):
            response = patch(api, resource, body, media_type)
            assert (response.headers["ETag"], check(response)) == before
    assert read(api, resource) == before
    assert sql.execute(f"SELECT xmin, version, document FROM {table}").fetchall() == row


@BOTH_KINDS
@pytest.mark.parametrize("media_type", BOTH_TYPES)
def test_a_change_updates_generation_time_and_author(
    api: Api, kind: str, media_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = create(api, kind)
    for generation, body in ((2, {"spec": {"version": "4.17"}}), (3, {"labels": {"env": "prod"}})):
        tag, before = read(api, resource)
        # Without authentication, all callers have one name; pretend that another one comes along.
        monkeypatch.setattr(identity, "SYSTEM", f"editor-{generation}@example.com")
        response = patch(api, resource, body, media_type)
        changed = check(response)
        assert changed["generation"] == generation
        assert changed["updated_time"] > before["updated_time"]
        assert changed["updated_by"] == f"editor-{generation}@example.com"
        assert changed["created_by"] == resource["created_by"] == "system@hyperfleet.local"
        assert changed["created_time"] == resource["created_time"]
        assert "deleted_time" not in changed
        assert response.headers["ETag"] != tag
        assert read(api, resource) == (response.headers["ETag"], changed)
        # Repeating it is no change, whichever caller does it.
        monkeypatch.setattr(identity, "SYSTEM", "third@example.com")
        assert check(patch(api, resource, body, media_type)) == changed


@BOTH_KINDS
def test_a_replica_whose_clock_is_behind_dates_a_change_no_earlier_than_the_last_one(
    api: Api, sql: psycopg.Connection, kind: str
) -> None:
    resource = create(api, kind)
    table = RESOURCES[resource["kind"]].table
    sql.execute(f"UPDATE {table} SET updated_time = now() + interval '1 hour'")
    before = api.read(resource)["updated_time"]
    assert before > resource["updated_time"]
    # A large one is made under a lock.
    for spec in ({"n": 1}, {"n": "x" * 40_000}, {"n": 2}):
        changed = check(patch(api, resource, {"spec": spec}))
        assert changed["updated_time"] == before
        assert condition(changed, "Reconciled")["last_updated_time"] == before


@BOTH_KINDS
def test_the_status_is_refolded_for_the_new_generation(api: Api, kind: str) -> None:
    resource = create(api, kind)
    assert api.report(resource, "dns").status_code == 201
    before = api.read(resource)
    assert before["status"]["phase"] == "Ready"
    changed = check(merge(api, resource, {"spec": {"version": "4.17"}}))
    assert changed["status"]["phase"] == "NotReady"
    assert changed["status"]["observed_generation"] == 1
    assert changed["status"]["last_transition_time"] == changed["updated_time"]
    assert changed["status"]["adapters"] == before["status"]["adapters"]
    for type_ in ("Ready", "Reconciled"):
        now = condition(changed, type_)
        assert (now["status"], now["observed_generation"]) == ("False", 2)
        assert now["reason"] == "ReconciledMissingAdapters"
        # No adapter has reported at this generation, so the time is that of the change.
        assert now["last_updated_time"] == now["last_transition_time"] == changed["updated_time"]
    for type_ in ("Available", "LastKnownReconciled"):
        # A new spec in progress does not make a running cluster unavailable.
        assert condition(changed, type_) == condition(before, type_)
        assert condition(changed, type_)["status"] == "True"
        assert condition(changed, type_)["observed_generation"] == 1
    assert condition(changed, "DnsSuccessful") == condition(before, "DnsSuccessful")
    assert api.read(resource) == changed
    assert api.report(resource, "dns", observed_generation=2).status_code == 201
    settled = api.read(resource)
    assert settled["status"]["phase"] == "Ready"
    assert settled["generation"] == 2
    assert condition(settled, "Available")["observed_generation"] == 2


@BOTH_KINDS
def test_a_patch_without_changes_leaves_the_status_unchanged(api: Api, kind: str) -> None:
    resource = create(api, kind)
    api.report(resource, "dns")
    before = read(api, resource)
    assert before[1]["status"]["phase"] == "Ready"
    assert check(patch(api, resource, {"spec": resource["spec"]})) == before[1]
    assert read(api, resource) == before


@BOTH_KINDS
def test_labels_that_searches_see_follow_each_change(
    api: Api, sql: psycopg.Connection, kind: str
) -> None:
    resource = create(api, kind)
    bystander = api.cluster("bystander", labels={"env": "dev"})
    assert label_rows(sql, resource) == {"env": "dev", "team": "a"}
    for body, media_type in (
        ({"labels": {"env": "prod", "zone": "b"}}, JSON),
        ({"labels": {"zone": None, "new": "x"}}, MERGE),
        ({"spec": {"nodes": 1}}, JSON),
        ({"labels": {}}, MERGE),
        ({"labels": None}, MERGE),
        ({"labels": {"back": ""}}, JSON),
        ({"labels": {}}, JSON),
    ):
        changed = check(patch(api, resource, body, media_type))
        assert label_rows(sql, resource) == changed["labels"]
    assert label_rows(sql, bystander) == {"env": "dev"}


def test_changing_a_node_pool_does_not_change_its_cluster_or_vice_versa(api: Api) -> None:
    cluster = api.cluster()
    first, second = api.node_pool(cluster, "np1"), api.node_pool(cluster, "np2")
    before = read(api, cluster), read(api, second)
    check(patch(api, first, {"spec": {"replicas": 3}}))
    assert (read(api, cluster), read(api, second)) == before
    before = read(api, first), read(api, second)
    check(patch(api, cluster, {"spec": {"nodes": 3}}))
    assert (read(api, first), read(api, second)) == before


# Refusals


@BOTH_KINDS
def test_name_kind_and_id_cannot_be_changed(api: Api, kind: str) -> None:
    resource = create(api, kind)
    before = read(api, resource)
    other = {
        "name": "another",
        "kind": "NodePool" if kind == "Cluster" else "Cluster",
        "id": NO_ID,
    }
    for media_type in BOTH_TYPES:
        for member, value in other.items():
            for wrong in (value, "", 1, resource[member] + "x"):
                body = {member: wrong, "spec": {"x": 1}}
                problem(patch(api, resource, body, media_type), 400, member)
    assert read(api, resource) == before


@BOTH_KINDS
def test_all_changes_of_immutable_members_are_reported_at_once(api: Api, kind: str) -> None:
    resource = create(api, kind)
    body = {"name": "another", "id": NO_ID, "labels": {"k": 1}}
    named = {error["field"] for error in problem(patch(api, resource, body), 400)["errors"]}
    assert named & {"name", "id", "labels.k"}
    other = {"name": "another", "id": NO_ID, "kind": "NodePool" if kind == "Cluster" else "Cluster"}
    for media_type in BOTH_TYPES:
        problem(patch(api, resource, {**other, "spec": {"x": 1}}, media_type), 400, *other)
    assert read(api, resource)[1] == resource


@BOTH_KINDS
def test_spec_and_labels_must_stay_objects(api: Api, kind: str) -> None:
    resource = create(api, kind)
    before = read(api, resource)
    for media_type in BOTH_TYPES:
        for wrong in ([], "x", 1, True, False):
            problem(patch(api, resource, {"spec": wrong, "labels": {}}, media_type), 400, "spec")
            problem(patch(api, resource, {"labels": wrong, "spec": {}}, media_type), 400, "labels")
    # A resource cannot be without a spec.
    problem(merge(api, resource, {"spec": None, "labels": {}}), 400, "spec")
    assert read(api, resource) == before


def test_null_labels_and_spec_count_as_absent_in_application_json(api: Api) -> None:
    cluster = api.cluster(labels={"a": "b"})
    assert check(patch(api, cluster, {"labels": None, "spec": None})) == cluster
    problem(patch(api, cluster, {"labels": {"a": None}}), 400, "labels.a")
    assert read(api, cluster)[1] == cluster


@BOTH_KINDS
def test_labels_are_limited_as_in_a_creation(api: Api, kind: str) -> None:
    resource = create(api, kind)
    for media_type in BOTH_TYPES:
        for labels, field in (
            ({"k": "v" * 64}, "labels.k"),
            ({"k": 1}, "labels.k"),
            ({"k": True}, "labels.k"),
            ({"k": ["a"]}, "labels.k"),
            ({"k": {"a": "b"}}, "labels.k"),
            ({f"k{i}": "v" for i in range(257)}, "labels"),
            ({"k" * 64: "v"}, "labels"),
        ):
            body = problem(patch(api, resource, {"labels": labels}, media_type), 400)
            (error,) = body["errors"]
            assert error["field"] == field
    assert read(api, resource)[1] == resource


@BOTH_KINDS
def test_limits_on_labels_apply_to_the_result_of_a_merge_and_not_to_the_patch(
    api: Api, kind: str
) -> None:
    full = {f"k{i}": "v" for i in range(256)}
    resource = create(api, kind, labels=full)
    problem(merge(api, resource, {"labels": {"one-too-many": "v"}}), 400, "labels")
    assert read(api, resource)[1] == resource
    # More members than the limit, but fewer labels in the result.
    swap: Json = dict.fromkeys(full) | {f"n{i}": "w" for i in range(10)}
    assert check(merge(api, resource, {"labels": swap}))["labels"] == {f"n{i}": "w" for i in range(10)}
    edge = {"p" * 253 + "/" + "k" * 63: "v" * 63}
    assert check(merge(api, resource, {"labels": edge}))["labels"].items() >= edge.items()


@BOTH_KINDS
def test_labels_older_than_their_limits_do_not_prevent_other_changes(
    api: Api, sql: psycopg.Connection, kind: str
) -> None:
    resource, old = create(api, kind), {"not a key": "not a value!"}
    table = RESOURCES[resource["kind"]].table
    sql.execute(f"UPDATE {table} SET labels = %s WHERE id = %s", (json.dumps(old), resource["id"]))
    changed = check(patch(api, resource, {"spec": {"n": 1}}))
    assert (changed["labels"], changed["spec"]) == (old, {"n": 1})
    # They must not be kept in a change of the labels.
    problem(merge(api, resource, {"labels": {"new": "x"}}), 400)
    assert read(api, resource)[1] == changed
    assert check(patch(api, resource, {"labels": {"new": "x"}}))["labels"] == {"new": "x"}


@BOTH_KINDS
def test_the_result_must_match_the_providers_schema(
    service: Callable[..., Api], kind: str, tmp_path: Path
) -> None:
    schema = {
        "openapi": "3.0.3",
        "info": {"title": "A provider", "version": "1"},
        "paths": {},
        "components": {
            "schemas": {
                name: {
                    "type": "object",
                    "required": ["version"],
                    "properties": {
                        "version": {"type": "string"},
                        "nodes": {"type": "integer", "minimum": 1},
                    },
                }
                for name in ("ClusterSpec", "NodePoolSpec")
            }
        },
    }
    (tmp_path / "provider.yaml").write_text(json.dumps(schema))
    api = service(openapi_schema_path=str(tmp_path / "provider.yaml"))
    cluster = api.cluster("owner", spec={"version": "4.16"})
    resource = api.cluster(spec={"version": "4.16", "nodes": 2})
    if kind == "NodePool":
        resource = api.node_pool(cluster, spec={"version": "4.16", "nodes": 2})
    problem(patch(api, resource, {"spec": {"nodes": 2}}), 400, "spec.version")
    problem(merge(api, resource, {"spec": {"version": None}}), 400, "spec.version")
    problem(merge(api, resource, {"spec": {"nodes": 0}}), 400, "spec.nodes")
    assert read(api, resource)[1] == resource
    # Members that the patch omits count, since the result has them.
    assert check(merge(api, resource, {"spec": {"nodes": 3}}))["spec"] == {"version": "4.16", "nodes": 3}


@BOTH_KINDS
def test_a_patch_must_be_a_json_object(api: Api, kind: str) -> None:
    resource = create(api, kind)
    for media_type in BOTH_TYPES:
        for body in ([], "x", 1, None, True, [{"spec": {}}]):
            problem(patch(api, resource, body, media_type), 400)
        for text in ("", "{", '{"spec": {}}x', "{'spec': {}}", '{"spec": {"a": NaN}}'):
            problem(api.patch(at(resource), data=text, headers={"Content-Type": media_type}), 400)
    assert read(api, resource)[1] == resource


@BOTH_KINDS
def test_values_that_the_database_cannot_store_get_400(api: Api, kind: str) -> None:
    resource = create(api, kind)
    for media_type in BOTH_TYPES:
        for body in (
            '{"spec": {"a": "\\u0000"}}',
            '{"spec": {"\\u0000": 1}}',
            '{"labels": {"a": "\\u0000"}}',
            '{"spec": {"a": "\\ud800"}}',
            '{"spec": {"a": [' + "[" * 20_000 + "]" * 20_000 + "]}}",
        ):
            problem(api.patch(at(resource), data=body, headers={"Content-Type": media_type}), 400)
    assert read(api, resource)[1] == resource


@BOTH_KINDS
def test_other_media_types_are_refused(api: Api, kind: str) -> None:
    resource = create(api, kind)
    for media_type in (
        "application/json-patch+json",
        "application/strategic-merge-patch+json",
        "application/merge-patch",
        "application/xml",
    ):
        problem(patch(api, resource, {"spec": {"x": 1}}, media_type), 415)
    assert read(api, resource)[1] == resource


@BOTH_KINDS
def test_media_types_may_have_parameters(api: Api, kind: str) -> None:
    resource = create(api, kind)
    check(patch(api, resource, {"labels": {"a": "1"}}, "application/json; charset=utf-8"))
    changed = check(patch(api, resource, {"labels": {"b": "2"}}, f"{MERGE};charset=UTF-8"))
    assert changed["labels"] == {"a": "1", "b": "2"}


def test_content_types_are_case_insensitive(api: Api) -> None:
    cluster = api.cluster()
    assert check(patch(api, cluster, {"labels": {"a": "1"}}, "Application/JSON"))["labels"] == {"a": "1"}
    changed = check(patch(api, cluster, {"labels": {"b": "2"}}, "Application/Merge-Patch+JSON"))
    assert changed["labels"] == {"a": "1", "b": "2"}
    created = api.post(
        "/clusters", data='{"name": "c2", "spec": {}}', headers={"Content-Type": "APPLICATION/JSON"}
    )
    assert check(created, 201)["name"] == "c2"


@BOTH_KINDS
def test_patch_of_an_unknown_resource_gets_404(api: Api, kind: str) -> None:
    resource = create(api, kind)
    for media_type in BOTH_TYPES:
        for unknown in (NO_ID, "no-uuid", resource["id"] + "0"):
            response = api.patch(
                f"{collection(resource)}/{unknown}",
                data='{"spec": {"x": 1}}',
                headers={"Content-Type": media_type},
            )
            problem(response, 404)


def test_merge_patches_cannot_grow_a_resource_beyond_the_limit_of_a_body(api: Api) -> None:
    text = "x" * 600_000
    cluster = api.cluster(spec={"first": text})
    found = problem(patch(api, cluster, {"spec": {"second": text}}, MERGE), 400)
    assert [(one["field"], one["constraint"]) for one in found["errors"]] == [("body", "size")]
    assert "1048576 bytes as a whole" in found["errors"][0]["message"]
    assert read(api, cluster)[1] == cluster
    check(patch(api, cluster, {"spec": {"first": None, "second": text}}, MERGE))


def test_a_node_pool_can_only_be_changed_under_its_own_cluster(api: Api) -> None:
    node_pool = api.node_pool(api.cluster("c1"))
    other = api.cluster("c2")
    path = f"/clusters/{other['id']}/nodepools/{node_pool['id']}"
    problem(api.patch(path, json={"spec": {"x": 1}}), 404)
    # Nor is a node pool found among clusters.
    problem(api.patch(f"/clusters/{node_pool['id']}", json={"spec": {"x": 1}}), 404)
    assert read(api, node_pool)[1] == node_pool


@BOTH_KINDS
def test_a_marked_resource_cannot_be_changed(waiting: Api, kind: str) -> None:
    api, resource = waiting, create(waiting, kind)
    check(api.delete(at(resource)), 202)
    before = read(api, resource)
    for media_type in BOTH_TYPES:
        for body in ({"spec": {"x": 1}}, {"labels": {"x": "1"}}, {"spec": {}, "name": resource["name"]}):
            refused(patch(api, resource, {**body, "labels": {"y": "2"}}, media_type), 409)
    assert read(api, resource) == before
