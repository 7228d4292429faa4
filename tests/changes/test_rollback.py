"""A rollback repeats an earlier generation as a new one, under today's rules."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from alike import BOTH_KINDS, at, create, delete, patch, read, refused
from conftest import Api
from helpers_contract import check, faults, problem

from hyperfleet.kinds import RESOURCES

Json = dict[str, Any]


def back(api: Api, resource: Json, generation: Any, **headers: str) -> requests.Response:
    return api.post(at(resource, "/rollback"), json={"generation": generation}, headers=headers)


@BOTH_KINDS
def test_a_rollback_restores_labels_and_spec_as_a_new_generation(api: Api, kind: str) -> None:
    first = create(api, kind)
    check(patch(api, first, {"spec": {"version": "4.17"}, "labels": {"env": "prod"}}))
    response = back(api, first, 1, **{"X-Request-ID": "undo"})
    again = check(response)
    assert (again["spec"], again["labels"]) == (first["spec"], first["labels"])
    assert again["generation"] == 3
    assert (response.headers["ETag"], again) == read(api, first)
    segment = RESOURCES[kind].segment
    for label, count in (("dev", 1), ("prod", 0)):
        found = check(api.get(f"/{segment}?search=labels.env='{label}' and id='{first['id']}'"))
        assert found["total"] == count
    newest = check(api.get(at(first, "/history")))["items"][0]
    assert (newest["generation"], newest["request"]) == (3, "undo")


def test_every_path_of_a_resource_has_a_rollback(api: Api) -> None:
    pool = api.node_pool(api.cluster(), spec={"n": 0})
    for number, path in enumerate(
        (at(pool), f"/nodepools/{pool['id']}", f"/resources/{pool['id']}"), start=1
    ):
        check(patch(api, pool, {"spec": {"n": number}}))
        body = {"generation": 1, "reason": "x"}
        assert check(api.post(f"{path}/rollback?fields=spec", json=body))["spec"] == {"n": 0}


@BOTH_KINDS
def test_a_rollback_to_the_current_state_changes_nothing(api: Api, kind: str) -> None:
    first = create(api, kind)
    check(patch(api, first, {"spec": {"n": 1}}))
    check(patch(api, first, {"spec": first["spec"]}))
    before = read(api, first)
    for generation in (1, 3):
        response = back(api, first, generation)
        assert (response.headers["ETag"], check(response)) == before
    assert read(api, first) == before


@BOTH_KINDS
def test_a_rollback_honours_if_match(api: Api, kind: str) -> None:
    first = create(api, kind)
    tag, _ = read(api, first)
    check(patch(api, first, {"spec": {"n": 1}}))
    assert refused(back(api, first, 1, **{"If-Match": tag}), 412)["code"] == "HYPERFLEET-CNF-002"
    tag, _ = read(api, first)
    assert check(back(api, first, 1, **{"If-Match": tag}))["generation"] == 3


def test_a_rollback_requires_if_match_where_other_writes_do(service: Callable[..., Api]) -> None:
    api = service(require_if_match=True)
    cluster = api.cluster()
    assert refused(back(api, cluster, 1), 428)["code"] == "HYPERFLEET-CNF-100"
    check(back(api, cluster, 1, **{"If-Match": "*"}))


@BOTH_KINDS
def test_a_resource_being_deleted_cannot_be_rolled_back(waiting: Api, kind: str) -> None:
    first = create(waiting, kind)
    check(patch(waiting, first, {"spec": {"n": 1}}))
    delete(waiting, first)
    found = refused(back(waiting, first, 1), 409)
    assert found["code"] == "HYPERFLEET-CNF-003"
    assert waiting.read(first)["generation"] == 3


@BOTH_KINDS
def test_a_rollback_to_a_generation_that_is_not_kept_gets_404(api: Api, kind: str) -> None:
    first = create(api, kind)
    check(patch(api, first, {"spec": {"n": 1}}))
    assert "kept: 1 to 2." in problem(back(api, first, 3), 404)["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "generation"),
        ({"generation": None}, "generation"),
        ({"generation": 0}, "generation"),
        ({"generation": 1.5}, "generation"),
        ({"generation": "1"}, "generation"),
        ({"generation": 2**31}, "generation"),
        ({"generation": 1, "reason": ""}, "reason"),
        ({"generation": 1, "reason": "x" * 1025}, "reason"),
        ({"generation": 1, "reason": 7}, "reason"),
        ({"generation": 1, "spec": {}}, "spec"),
    ],
)
def test_a_body_that_breaks_the_contract_is_rejected(api: Api, body: Json, field: str) -> None:
    cluster = api.cluster()
    problem(api.post(at(cluster, "/rollback"), json=body), 400, field)


def test_a_body_as_go_clients_send_it_is_accepted(api: Api) -> None:
    cluster = api.cluster()
    check(patch(api, cluster, {"spec": {"n": 1}}))
    text = '{"generation": 1.0, "reason": null}'
    response = api.post(
        at(cluster, "/rollback"), data=text, headers={"Content-Type": "application/json"}
    )
    assert check(response)["generation"] == 3


def test_a_spec_that_the_provider_no_longer_allows_is_rejected(
    api: Api, service: Callable[..., Api], tmp_path: Path
) -> None:
    cluster = api.cluster(spec={"size": "huge"})
    check(patch(api, cluster, {"spec": {"size": "small"}}))
    file = tmp_path / "provider.yaml"
    file.write_text("""
openapi: 3.0.3
info: {title: t, version: '1'}
paths: {}
components:
  schemas:
    ClusterSpec: {type: object, properties: {size: {type: string, enum: [small, large]}}}
""")
    strict = service(openapi_schema_path=str(file))
    problem(back(strict, cluster, 1), 400, "spec.size")
    assert strict.read(cluster)["generation"] == 2
    check(back(strict, cluster, 2))


def test_labels_that_the_contract_no_longer_allows_are_rejected(
    api: Api, sql: psycopg.Connection
) -> None:
    cluster = api.cluster()
    check(patch(api, cluster, {"spec": {"n": 1}}))
    sql.execute("""UPDATE generations SET labels = '{"not a key": "x"}'""")
    found = back(api, cluster, 1)
    assert found.status_code == 400, found.text
    assert faults(found.json(), {"$ref": "#/components/schemas/ProblemDetails"}) == []
    assert api.read(cluster)["generation"] == 2


@pytest.mark.slow
def test_concurrent_rollbacks_and_patches_are_serialized(api: Api) -> None:
    cluster = api.cluster(spec={"n": -1})

    def change(number: int) -> int:
        own = Api(api.url)
        answer = back(own, cluster, 1) if number % 2 else patch(own, cluster, {"spec": {"n": number}})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["generation"])

    with ThreadPoolExecutor(8) as threads:
        made = [*threads.map(change, range(60))]
    items = check(api.get(at(cluster, "/history")))["items"][::-1]
    assert [one["generation"] for one in items] == [*range(1, len(items) + 1)]
    assert len(items) - 1 == max(made) - 1 >= 31
    # Each generation differs from the one before, and each patch has left one.
    specs = [one["spec"]["n"] for one in items]
    assert all(before != after for before, after in pairwise(specs))
    assert sorted({n for n in specs if n >= 0}) == [*range(0, 60, 2)]
