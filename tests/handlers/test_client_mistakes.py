"""Mistakes of clients: parameters, members and fields that do not exist, and what errors say."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests
from client_requests import MERGE, REPORT_BODY, statuses
from conftest import Api
from helpers_contract import NO_ID, check, problem


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("pagesize=5", "pageSize"),
        ("page_size=5", "pageSize"),
        ("limit=5", "pageSize"),
        ("labelSelector=a%3Db", "search"),
        ("serach=name%3D'a'", "search"),
        ("order_by=name", "orderBy"),
        ("Page=2", "page"),
        ("field=name", "fields"),
        ("offset=3", "page"),
    ],
)
def test_an_unknown_parameter_is_refused_and_the_intended_one_suggested(
    api: Api, query: str, meant: str
) -> None:
    cluster = api.cluster()
    name = query.partition("=")[0]
    for url in ("/clusters", "/nodepools", f"/clusters/{cluster['id']}/nodepools", statuses(cluster)):
        body = problem(api.get(f"{url}?{query}"), 400, name)
        assert body["errors"][0]["message"].endswith(f"did you mean {meant}?")


def test_parameter_names_of_other_apis_are_refused_with_our_name_for_them(api: Api) -> None:
    meant = {
        "pageSize": ("limit", "per_page", "perPage", "page_size", "maxResults"),
        "search": ("labelSelector", "fieldSelector", "filter", "q", "query"),
        "orderBy": ("sort", "sortBy", "sort_by", "order_by"),
        "fields": ("select", "include"),
        "page": ("offset", "start"),
        "continue": ("next", "cursor", "pageToken", "page_token"),
    }
    sent = [name for names in meant.values() for name in names]
    errors = problem(api.get("/clusters", params=dict.fromkeys(sent, "1")), 400)["errors"]
    told = {error["field"]: error["message"].split("; ")[1] for error in errors}
    assert told == {n: f"did you mean {ours}?" for ours, names in meant.items() for n in names}


def test_an_unknown_parameter_is_refused_everywhere_and_changes_nothing(api: Api) -> None:
    cluster = api.cluster()
    url = f"/clusters/{cluster['id']}"
    for answer in (
        api.get("//api/hyperfleet?x=1"),
        api.get("/compatibility?x=1"),
        api.get("/errors?x=1"),
        api.get("/errors/HYPERFLEET-NTF-001?x=1"),
        api.get(url + "?x=1"),
        api.post("/clusters?x=1", json={"name": "c2", "spec": {}}),
        api.patch(url + "?x=1", json={"labels": {"a": "b"}}),
        api.delete(url + "?x=1"),
        api.put(statuses(cluster) + "?x=1", json=REPORT_BODY),
        api.post(url + "/force-delete?x=1", json={"reason": "x"}),
    ):
        problem(answer, 400, "x")
    assert api.read(cluster) == cluster
    assert check(api.get("/clusters"))["total"] == 1


@pytest.mark.parametrize(
    "query",
    [
        *("page=x&page=1", "size=1&size=1", "search=bad+bad&search=name='a'", "orderBy=zz&orderBy=name"),
        *("fields=name&fields=nmae", "fields=*&fields=name"),
    ],
)
def test_a_parameter_given_twice_is_refused(api: Api, query: str) -> None:
    name = query.partition("=")[0]
    errors = problem(api.get(f"/clusters?{query}"), 400, name)["errors"]
    assert "may be given once only" in [error["message"] for error in errors]


def test_parameters_that_an_original_declares_are_accepted_and_have_no_effect(api: Api) -> None:
    cluster = api.cluster()
    for collection in ("clusters", "resources"):
        assert check(api.get(f"/{collection}/{cluster['id']}?search=name%3D'other'")) == cluster
    query = "page=1&pageSize=5&orderBy=name&order=asc&search=x"
    assert check(api.get(f"/compatibility?{query}")) == check(api.get("/compatibility"))


@pytest.mark.parametrize(("member", "meant"), [("label", "labels"), ("spce", "spec"), ("nmae", "name")])
def test_an_unknown_member_of_a_body_is_refused_and_the_nearest_one_suggested(
    api: Api, member: str, meant: str
) -> None:
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    body = {"name": "c2", "spec": {}, member: {}}
    answers = [
        api.post("/clusters", json=body),
        api.post(f"/clusters/{cluster['id']}/nodepools", json=body),
    ]
    for resource in (cluster, node_pool):
        url = api.url + resource["href"]
        answers += [
            api.patch(url, json={member: {}}),
            api.patch(url, data=json.dumps({member: {}}), headers=MERGE),
        ]
    for answer in answers:
        error = problem(answer, 400, member)["errors"][0]
        assert error["message"] == f"is not a known member; did you mean {meant}?"
    assert check(api.get("/clusters"))["total"] == check(api.get("/nodepools"))["total"] == 1


def test_what_a_get_returns_can_be_sent_back(api: Api) -> None:
    cluster = api.cluster(labels={"a": "b"})
    node_pool = api.node_pool(cluster)
    api.report(cluster)
    for resource in (cluster, node_pool):
        whole = api.read(resource)
        url = api.url + resource["href"]
        assert check(api.patch(url, json=whole)) == whole
        assert check(api.patch(url, data=json.dumps(whole), headers=MERGE)) == whole
        copied = {**whole, "name": "copy"}
        collection = url.rpartition("/")[0]
        problem(api.post(collection, json=copied), 400, "id")
        del copied["id"]
        check(api.post(collection, json=copied), 201)


def test_unknown_members_of_a_report_are_ignored(api: Api) -> None:
    report = {**REPORT_BODY, "adaptor": "x", "conditions": [{**REPORT_BODY["conditions"][0], "x": 1}]}  # type: ignore[dict-item]
    stored = check(api.put(statuses(api.cluster()), json=report), 201)
    assert "adaptor" not in stored
    assert "x" not in stored["conditions"][0]


@pytest.mark.parametrize(
    ("search", "meant"),
    [
        ("nmae='a'", "name"),
        ("status.fase='Ready'", "status.phase"),
        ("createdtime>'2026-01-01T00:00:00Z'", "created_time"),
        ("label.a='b'", "labels.KEY"),
    ],
)
def test_an_unknown_search_field_is_refused_with_the_nearest_one_instead_of_all(
    api: Api, search: str, meant: str
) -> None:
    answer = problem(api.get("/clusters", params={"search": search}), 400, "search")
    assert answer["code"] == "HYPERFLEET-VAL-007"
    message = answer["errors"][0]["message"]
    assert f"did you mean {meant}?" in message
    assert "updated_by" not in message


def test_a_name_conflict_names_the_holder_and_says_if_it_is_being_deleted(
    service: Callable[..., Api],
) -> None:
    api = service(required_adapters_cluster=("dns",), required_adapters_nodepool=("dns",))
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    pools = f"/clusters/{cluster['id']}/nodepools"
    for resource, collection in ((node_pool, pools), (cluster, "/clusters")):
        body = {"name": resource["name"], "spec": {}}
        for headers in ({}, {"Idempotency-Key": "k1"}):
            taken = problem(api.post(collection, json=body, headers=headers), 409, "name")
            assert taken["code"] == "HYPERFLEET-CNF-001"
            assert resource["id"] in taken["detail"]
            assert "deleted" not in taken["detail"]
            assert taken["errors"][0]["value"] == resource["name"]
    check(api.delete(f"/clusters/{cluster['id']}"), 202)
    taken = problem(api.post("/clusters", json={"name": "c1", "spec": {}}), 409, "name")
    assert f"{cluster['id']}, which is being deleted" in taken["detail"]
    refused = problem(api.post(pools, json={"name": "new", "spec": {}}), 409)
    assert refused["code"] == "HYPERFLEET-CNF-003"


def test_force_deleting_what_is_not_marked_says_to_delete_it_first(api: Api) -> None:
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    for resource in (cluster, node_pool):
        answer = api.post(f"{api.url}{resource['href']}/force-delete", json={"reason": "x"})
        body = problem(answer, 409)
        assert body["code"] == "HYPERFLEET-CNF-003"
        assert "DELETE it first" in body["detail"]


CODES: list[tuple[str, str, dict[str, Any], int, str, str]] = [
    ("GET", "//nowhere", {}, 404, "NTF-000", "not-found"),
    ("GET", f"/clusters/{NO_ID}", {}, 404, "NTF-001", "not-found"),
    ("GET", f"/nodepools/{NO_ID}", {}, 404, "NTF-001", "not-found"),
    ("POST", "/clusters", {"json": {}}, 400, "VAL-000", "validation-error"),
    ("POST", "/clusters", {"json": {"name": "a"}}, 400, "VAL-001", "validation-error"),
    ("POST", "/clusters", {"json": {"name": 1, "spec": {}}}, 400, "VAL-002", "validation-error"),
    ("POST", "/clusters", {"json": {"name": "A", "spec": {}}}, 400, "VAL-003", "validation-error"),
    ("POST", "/clusters", {"json": {"name": "a" * 64, "spec": {}}}, 400, "VAL-004", "validation-error"),
    ("GET", "/clusters?page=0", {}, 400, "VAL-004", "validation-error"),
    ("GET", "/clusters?page=0&size=-1", {}, 400, "VAL-000", "validation-error"),
    ("POST", "/clusters", {"data": b"{"}, 400, "VAL-006", "malformed-request"),
    ("GET", "/clusters?search=name", {}, 400, "VAL-007", "validation-error"),
    ("PUT", "/clusters", {}, 405, "VAL-101", "bad-request"),
    ("POST", "/clusters", {"json": {"name": "taken", "spec": {}}}, 409, "CNF-001", "conflict"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "code", "slug"), CODES)
def test_errors_have_the_codes_and_types_of_the_original(
    api: Api, method: str, path: str, body: dict[str, Any], status: int, code: str, slug: str
) -> None:
    api.cluster("taken")
    answer = problem(api.request(method, path, **body), status)
    assert answer["code"] == f"HYPERFLEET-{code}"
    assert answer["type"] == f"https://api.hyperfleet.io/errors/{slug}"
    explained = check(api.get(f"/errors/{answer['code']}"))
    assert (explained["status"], explained["title"]) == (status, answer["title"])


def test_the_catalogue_of_errors_is_paged(api: Api) -> None:
    whole = check(api.get("/errors"))
    assert whole["total"] == whole["size"] == len(whole["items"])
    size = whole["total"] // 2 - 1
    pages = [check(api.get(f"/errors?pageSize={size}&page={number}")) for number in range(1, 5)]
    assert [one for page in pages for one in page["items"]] == whole["items"]
    assert [page["size"] for page in pages] == [size, size, whole["total"] - 2 * size, 0]
    assert {page["total"] for page in pages} == {whole["total"]}


def test_error_codes_that_the_original_does_not_have_are_numbered_from_100(api: Api) -> None:
    original = {
        *(f"VAL-00{n}" for n in range(8)),
        *("AUT-001", "AUT-002", "AUT-003", "AUZ-001", "NTF-000", "NTF-001"),
        *("CNF-001", "CNF-002", "CNF-003", "INT-001", "SVC-001", "SVC-002"),
    }
    codes = {one["code"].removeprefix("HYPERFLEET-") for one in api.get("/errors").json()["items"]}
    assert original <= codes
    assert all(int(code[-3:]) >= 100 for code in codes - original)


def test_an_error_carries_the_value_if_it_is_short_and_not_secret(api: Api) -> None:
    def value(field: str, **body: Any) -> Any:
        errors = problem(api.post("/clusters", json={"name": "a", "spec": {}, **body}), 400)["errors"]
        return next(error for error in errors if error["field"] == field).get("value", "none")

    assert value("name", name="A") == "A"
    assert value("name", name=5) == 5
    assert value("name", name="a" * 64) == "a" * 64
    assert value("name", name="a" * 65) == "none"
    assert value("name", name=["a"]) == "none"
    assert value("labels.k", labels={"k": "two words"}) == "two words"
    for name in ("my-token", "pass", "pwd", "db-pw", "auth", "cookie", "jwt", "cert", "creds"):
        assert value(f"labels.{name}", labels={name: "hush hush"}) == "none"
    assert value("name", name=10**100) == "none"
    (error,) = problem(api.get("/clusters?size=1001"), 400, "size")["errors"]
    assert error["value"] == 1001


def test_errors_that_the_contract_cannot_express_carry_the_value_too(api: Api) -> None:
    def value(answer: requests.Response, field: str) -> Any:
        (error,) = problem(answer, 400, field)["errors"]
        return error.get("value", "none")

    cluster = api.cluster()
    url = f"/clusters/{cluster['id']}"
    assert value(api.patch(url, json={"name": "other"}), "name") == "other"
    ahead = "2999-01-01T00:00:00Z"
    condition = {"type": "Available", "status": "True"}
    body = {"adapter": "a", "observed_generation": 1, "conditions": [condition], "observed_time": ahead}
    assert value(api.put(url + "/statuses", json=body), "observed_time") == ahead
    for name, wrong in (("orderBy", "colour desc"), ("fields", "colour"), ("fields", "*,name")):
        assert value(api.get("/clusters", params={name: wrong}), name) == wrong
    assert value(api.get("/clusters?colour=red"), "colour") == "red"
    assert value(api.get("/clusters?fields=name,*"), "fields") == "name,*"


def test_one_mistake_is_one_fault_with_its_own_code(api: Api) -> None:
    cluster = api.cluster()

    def fault(answer: requests.Response) -> tuple[str, str, str]:
        body = problem(answer, 400)
        (error,) = body["errors"]
        return body["code"], error["field"], error["constraint"]

    def fault_of_cluster(**body: Any) -> tuple[str, str, str]:
        return fault(api.post("/clusters", json={"name": "a", "spec": {}, **body}))

    assert fault_of_cluster(name="") == ("HYPERFLEET-VAL-004", "name", "minLength")
    assert fault_of_cluster(name=None) == ("HYPERFLEET-VAL-001", "name", "required")
    assert fault_of_cluster(spec=None) == ("HYPERFLEET-VAL-001", "spec", "required")
    assert fault_of_cluster(name=5) == ("HYPERFLEET-VAL-002", "name", "type")
    assert fault_of_cluster(kind=5) == ("HYPERFLEET-VAL-002", "kind", "type")

    def fault_of_condition(**condition: Any) -> tuple[str, str, str]:
        conditions = [{"type": "Available", "status": "True", **condition}]
        body = {"adapter": "a", "observed_generation": 1, "conditions": conditions}
        return fault(api.put(statuses(cluster), json=body))

    assert fault_of_condition(status=True) == ("HYPERFLEET-VAL-002", "conditions[0].status", "type")
    assert fault_of_condition(status=None) == ("HYPERFLEET-VAL-001", "conditions[0].status", "required")
    assert fault_of_condition(status="") == ("HYPERFLEET-VAL-002", "conditions[0].status", "enum")
    assert fault_of_condition(type="") == ("HYPERFLEET-VAL-004", "conditions[0].type", "minLength")


def test_an_error_truncates_the_name_of_a_very_long_member(api: Api) -> None:
    answer = api.post("/clusters", json={"name": "a", "spec": {}, "x" * 100_000: 1})
    assert problem(answer, 400)["errors"][0]["field"] == "x" * 100
    assert len(answer.content) < 5_000
