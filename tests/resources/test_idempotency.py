"""Idempotency-Key: a creation can be repeated until its response arrives."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import requests
from alike import BOTH_KINDS, at, delete, gone, patch, place, read, refused
from conftest import Api
from helpers_contract import NO_ID, check, problem
from process import Serving

from hyperfleet.auth import identity

pytestmark = pytest.mark.slow

Json = dict[str, Any]

KEY = "7a9c2f0e-create"
BODY: Json = {"name": "one", "spec": {"nodes": 3}, "labels": {"a": "b"}}


def post(api: Api, path: str, body: Json, key: str | bytes = KEY) -> requests.Response:
    return api.post(path, json=body, headers={"Idempotency-Key": key})


def same(first: requests.Response, again: requests.Response) -> None:
    """Asserts that the repeated request got the first response."""
    assert check(again, 201) == first.json()
    assert again.content == first.content
    for header in ("Location", "ETag", "Content-Type"):
        assert again.headers[header] == first.headers[header]


def total(api: Api, path: str) -> int:
    return int(check(api.get(path, params={"size": 0}))["total"])


def age_keys(sql: psycopg.Connection, age: str) -> None:
    sql.execute("UPDATE idempotency_keys SET created_time = now() - %s::interval", (age,))


@BOTH_KINDS
def test_a_repeated_request_gets_the_first_response_and_creates_nothing(
    api: Api, sql: psycopg.Connection, kind: str
) -> None:
    path = place(api, kind)
    first = post(api, path, BODY)
    resource = check(first, 201)
    assert {member: resource[member] for member in BODY} == BODY
    rows = sql.execute("SELECT xmin FROM clusters").fetchall()
    for _ in range(3):
        same(first, post(api, path, BODY))
    # Also with its members in another order.
    same(first, post(api, path, dict(reversed(BODY.items()))))
    assert total(api, path) == 1
    assert read(api, resource) == (first.headers["ETag"], resource)
    assert sql.execute("SELECT xmin FROM clusters").fetchall() == rows


@BOTH_KINDS
def test_without_a_key_a_repeated_creation_is_a_conflict(api: Api, kind: str) -> None:
    path = place(api, kind)
    check(api.post(path, json=BODY), 201)
    refused(api.post(path, json=BODY), 409)
    # A new key does not match what was created without it.
    refused(post(api, path, BODY), 409)


@BOTH_KINDS
def test_another_replica_gives_the_same_response(service: Callable[..., Api], kind: str) -> None:
    one, two = service(), service()
    path = place(one, kind)
    first = post(one, path, BODY)
    check(first, 201)
    same_location = first.headers["Location"].removeprefix(one.url)
    again = post(two, path, BODY)
    assert check(again, 201) == first.json()
    assert again.headers["Location"].removeprefix(two.url) == same_location == first.json()["href"]
    assert total(two, path) == 1


def test_keys_survive_a_restart(database: str) -> None:
    settings = {"HYPERFLEET_DATABASE_URL": database}
    with Serving("--no-auth", env=settings) as server, Api(server.url) as api:
        path = place(api, "NodePool")
        cluster, pool = post(api, "/clusters", BODY, "for-cluster"), post(api, path, BODY, "for-pool")
        assert (cluster.status_code, pool.status_code) == (201, 201)
    with Serving("--no-auth", env=settings) as server, Api(server.url) as api:
        assert post(api, "/clusters", BODY, "for-cluster").json() == cluster.json()
        assert post(api, path, BODY, "for-pool").json() == pool.json()
        refused(post(api, "/clusters", {**BODY, "name": "two"}, "for-cluster"), 422)
        assert total(api, path) == 1


@BOTH_KINDS
def test_the_first_response_is_repeated_even_if_the_resource_is_changed_or_deleted(
    api: Api, kind: str
) -> None:
    path = place(api, kind)
    first = post(api, path, BODY)
    resource = check(first, 201)
    check(patch(api, resource, {"spec": {"nodes": 4}}))
    same(first, post(api, path, BODY))
    assert api.read(resource)["spec"] == {"nodes": 4}
    delete(api, resource)
    gone(api, resource)
    same(first, post(api, path, BODY))
    gone(api, resource)
    assert total(api, path) == 0


def test_the_first_response_is_repeated_even_if_the_cluster_is_marked(waiting: Api) -> None:
    api, cluster = waiting, waiting.cluster("owner")
    path = at(cluster, "/nodepools")
    first = post(api, path, BODY)
    check(first, 201)
    delete(api, cluster)
    same(first, post(api, path, BODY))
    refused(post(api, path, {**BODY, "name": "two"}, "another-key"), 409)


@BOTH_KINDS
def test_the_same_key_with_another_request_is_refused(api: Api, kind: str) -> None:
    path = place(api, kind)
    first = post(api, path, BODY)
    check(first, 201)
    for other in (
        {**BODY, "name": "two"},
        {**BODY, "spec": {"nodes": 4}},
        {**BODY, "spec": {"nodes": "3"}},
        {**BODY, "labels": {}},
        {"name": "one", "spec": {"nodes": 3}},
    ):
        refused(post(api, path, other), 422)
    assert total(api, path) == 1
    same(first, post(api, path, BODY))


def test_true_and_1_are_different_requests(api: Api) -> None:
    check(post(api, "/clusters", {"name": "one", "spec": {"a": 1}}), 201)
    refused(post(api, "/clusters", {"name": "one", "spec": {"a": True}}), 422)


def test_the_same_key_for_another_collection_is_refused(api: Api) -> None:
    one, two = place(api, "NodePool", "c1"), place(api, "NodePool", "c2")
    first = post(api, one, BODY)
    check(first, 201)
    refused(post(api, two, BODY), 422)
    refused(post(api, "/clusters", BODY), 422)
    assert total(api, two) == 0
    same(first, post(api, one, BODY))


@BOTH_KINDS
def test_a_request_with_another_key_is_another_creation(api: Api, kind: str) -> None:
    path = place(api, kind)
    first = post(api, path, BODY)
    check(first, 201)
    refused(post(api, path, BODY, "another-key"), 409)
    # Keys are case-sensitive.
    refused(post(api, path, BODY, KEY.upper()), 409)
    second = post(api, path, {**BODY, "name": "two"}, "another-key")
    assert check(second, 201)["id"] != first.json()["id"]
    same(first, post(api, path, BODY))
    same(second, post(api, path, {**BODY, "name": "two"}, "another-key"))


@BOTH_KINDS
def test_a_key_is_kept_for_24_hours_and_no_longer(api: Api, sql: psycopg.Connection, kind: str) -> None:
    path = place(api, kind)
    first = post(api, path, BODY)
    check(first, 201)
    age_keys(sql, "23 hours 59 minutes")
    same(first, post(api, path, BODY))
    refused(post(api, path, {**BODY, "name": "two"}), 422)
    age_keys(sql, "24 hours 1 minute")
    # Now it is an ordinary creation with a name that is taken.
    refused(post(api, path, BODY), 409)
    second = post(api, path, {**BODY, "name": "two"})
    assert check(second, 201)["id"] != first.json()["id"]
    # From now on, the key stands for this one.
    same(second, post(api, path, {**BODY, "name": "two"}))
    refused(post(api, path, BODY), 422)
    assert total(api, path) == 2


def test_a_new_key_removes_those_that_have_expired(api: Api, sql: psycopg.Connection) -> None:
    for number in range(3):
        check(post(api, "/clusters", {**BODY, "name": f"c{number}"}, f"key-{number}"), 201)
    age_keys(sql, "24 hours 1 minute")
    check(post(api, "/clusters", BODY), 201)
    assert sql.execute("SELECT key FROM idempotency_keys").fetchall() == [(KEY,)]


def test_a_new_key_removes_ten_expired_ones_at_most_the_oldest_first_and_waits_for_none(
    api: Api, sql: psycopg.Connection, database: str
) -> None:
    for number in range(15):
        check(post(api, "/clusters", {**BODY, "name": f"c{number}"}, f"key-{number:02}"), 201)
    # From the oldest to the newest, but not in the order in which they were stored.
    age = "created_time - interval '25 hours' - interval '1 second' * ((right(key, 2)::int * 7) % 15)"
    sql.execute(f"UPDATE idempotency_keys SET created_time = {age}")
    keys = [key for (key,) in sql.execute("SELECT key FROM idempotency_keys ORDER BY created_time")]
    with psycopg.connect(database) as other:
        # Another request is just removing it.
        other.execute("SELECT FROM idempotency_keys WHERE key = %s FOR UPDATE", [keys[0]])
        check(api.post("/clusters", json=BODY, headers={"Idempotency-Key": KEY}, timeout=3), 201)
    left = {key for (key,) in sql.execute("SELECT key FROM idempotency_keys")}
    assert left == {keys[0], *keys[11:], KEY}


def test_a_trailing_slash_makes_no_difference_to_a_key(api: Api) -> None:
    first = post(api, "/clusters", BODY)
    same(first, post(api, "/clusters/", BODY))


def test_a_repeated_request_does_not_extend_the_24_hours(api: Api, sql: psycopg.Connection) -> None:
    first = post(api, "/clusters", BODY)
    age_keys(sql, "23 hours")
    same(first, post(api, "/clusters", BODY))
    sql.execute("UPDATE idempotency_keys SET created_time = created_time - interval '61 minutes'")
    refused(post(api, "/clusters", BODY), 409)


@BOTH_KINDS
def test_a_creation_that_failed_leaves_the_key_free(
    service: Callable[..., Api], sql: psycopg.Connection, kind: str
) -> None:
    api = service(required_adapters_cluster=("dns",))
    path = place(api, kind)
    check(api.post(path, json={"name": "taken", "spec": {}}), 201)
    problem(post(api, path, {**BODY, "name": "No Name"}), 400)
    problem(post(api, path, {**BODY, "labels": {"a": 1}}), 400)
    refused(post(api, path, {**BODY, "name": "taken"}), 409)
    problem(post(api, f"/clusters/{NO_ID}/nodepools", BODY), 404)
    marked = api.cluster("marked")
    delete(api, marked)
    refused(post(api, at(marked, "/nodepools"), BODY), 409)
    assert sql.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (0,)
    first = post(api, path, BODY)
    check(first, 201)
    same(first, post(api, path, BODY))


@BOTH_KINDS
def test_a_key_counts_only_for_its_caller(api: Api, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place(api, kind)
    first = post(api, path, BODY)
    check(first, 201)
    monkeypatch.setattr(identity, "SYSTEM", "another@example.com")
    # Another caller's key counts as none: neither its response nor a 422 is for this caller.
    refused(post(api, path, BODY), 409)
    second = post(api, path, {**BODY, "name": "two"})
    assert check(second, 201)["created_by"] == "another@example.com"
    same(second, post(api, path, {**BODY, "name": "two"}))
    monkeypatch.undo()
    same(first, post(api, path, BODY))
    assert total(api, path) == 2


@BOTH_KINDS
def test_keys_are_limited_to_255_visible_ascii_characters(api: Api, kind: str) -> None:
    path = place(api, kind)
    for key in ("", "k" * 256, "two words", "a\tb", "ключ".encode(), b"\xff", b"caf\xe9"):
        problem(post(api, path, BODY, key), 400)
    assert total(api, path) == 0
    for index, key in enumerate(("k" * 255, "!", "~", '"quoted"\';--', "%00\\u0000", "a,b")):
        body = {**BODY, "name": f"r{index}"}
        first = post(api, path, body, key)
        check(first, 201)
        same(first, post(api, path, body, key))


def test_keys_are_ignored_by_get_and_patch(api: Api) -> None:
    cluster = check(post(api, "/clusters", BODY), 201)
    key = {"Idempotency-Key": KEY}
    assert check(api.get(at(cluster), headers=key)) == cluster
    assert check(patch(api, cluster, {"spec": {"x": 1}}, **key))["generation"] == 2
    assert check(patch(api, cluster, {"spec": {"x": 2}}, **key))["generation"] == 3
