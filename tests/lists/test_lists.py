"""Lists: pages that neither skip nor repeat items, totals, bounds, and the default order."""

from typing import Any

import psycopg
import pytest
from conftest import Api
from helpers_contract import BASE, NO_ID, check, problem

LARGEST = 2**31 - 1


def names(page: dict[str, Any]) -> list[str]:
    return [item["name"] for item in page["items"]]


def paths(api: Api) -> dict[str, str]:
    """Returns the paths of lists, each with the kind of its list."""
    cluster = api.cluster("owner")
    node_pool = api.node_pool(cluster)
    return {
        "/clusters": "ClusterList",
        "/nodepools": "NodePoolList",
        f"/clusters/{cluster['id']}/nodepools": "NodePoolList",
        f"/clusters/{cluster['id']}/statuses": "AdapterStatusList",
        f"/clusters/{cluster['id']}/nodepools/{node_pool['id']}/statuses": "AdapterStatusList",
        "/errors": "ErrorList",
    }


def test_an_empty_list_is_a_page_without_items(api: Api) -> None:
    page = check(api.get("/clusters"))
    assert page.pop("changes")
    assert page == {
        "kind": "ClusterList",
        "page": 1,
        "size": 0,
        "total": 0,
        "items": [],
    }
    assert check(api.get("/nodepools"))["total"] == 0


def test_the_newest_come_first_across_pages(api: Api) -> None:
    created = [api.cluster(f"c{i}")["name"] for i in range(7)]
    newest_first = created[::-1]
    assert names(check(api.get("/clusters"))) == newest_first
    for parameter in ("pageSize", "size"):
        pages = [check(api.get(f"/clusters?page={number}&{parameter}=3")) for number in (1, 2, 3)]
        assert [names(page) for page in pages] == [newest_first[:3], newest_first[3:6], newest_first[6:]]
        assert [page["page"] for page in pages] == [1, 2, 3]
        assert [page["size"] for page in pages] == [3, 3, 1]
        assert [page["total"] for page in pages] == [7, 7, 7]
    both = check(api.get("/clusters?pageSize=2&size=2"))
    assert names(both) == newest_first[:2]


def test_a_page_past_the_end_is_empty_and_keeps_the_total(api: Api) -> None:
    api.cluster()
    for query in ("page=2", "page=3&pageSize=1", f"page={LARGEST}&pageSize=1000", f"page={LARGEST}"):
        page = check(api.get(f"/clusters?{query}"))
        assert page["items"] == []
        assert page["size"] == 0
        assert page["total"] == 1
        assert page["page"] == int(query.split("&")[0].removeprefix("page="))


def test_a_page_of_size_0_returns_only_the_total(api: Api) -> None:
    for path, kind in paths(api).items():
        for query in ("size=0", "pageSize=0", "pageSize=0&size=0", "page=2&size=0"):
            page = check(api.get(f"{path}?{query}"))
            assert page["kind"] == kind
            assert page["items"] == []
            assert page["size"] == 0
            assert page["total"] == check(api.get(path))["total"]


def test_pages_of_100_by_default_and_of_1000_return_each_item_once_in_the_same_order(
    api: Api, sql: psycopg.Connection
) -> None:
    api.cluster("c0")
    columns = [
        row[0]
        for row in sql.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_name = 'clusters' AND is_generated = 'NEVER'"
            " AND column_name NOT IN ('id', 'name')"
        )
    ]
    listed = ", ".join(columns)
    sql.execute(
        f"INSERT INTO clusters (id, name, {listed})"
        f" SELECT gen_random_uuid(), 'c' || n, {listed} FROM clusters, generate_series(1, 1100) n"
    )
    page = check(api.get("/clusters"))
    assert (page["size"], len(page["items"]), page["total"]) == (100, 100, 1101)
    # All have the same creation time, and random ids.
    seen = [
        item["id"]
        for number in (1, 2)
        for item in check(api.get(f"/clusters?page={number}&pageSize=1000"))["items"]
    ]
    assert len(seen) == len(set(seen)) == 1101
    seen_small = [
        item["id"]
        for number in range(1, 13)
        for item in api.get(f"/clusters?page={number}").json()["items"]
    ]
    assert seen_small == seen


@pytest.mark.parametrize("parameter", ["page", "pageSize", "size"])
def test_a_parameter_out_of_bounds_is_refused_with_its_name_and_bounds(api: Api, parameter: str) -> None:
    least, most = (1, LARGEST) if parameter == "page" else (0, 1000)
    for path in paths(api):
        for bad in (
            least - 1,
            most + 1,
            -(10**30),
            10**30,
            "x",
            "1.0",
            "1.5",
            "1e1",
            "0x1",
            "1_0",
            "1%201",
            "%091",
            "%C2%A01",
            "%2B1",
            "٣",
            "１",
            "true",
            "null",
            "1,2",
            "1;size=2",
        ):
            body = problem(api.get(f"{path}?{parameter}={bad}"), 400, parameter)
            (error,) = body["errors"]
            assert str(least) in error["message"], bad
            assert str(most) in error["message"], bad
            assert parameter in body["detail"]
        for good in (least, least + 1, most):
            check(api.get(f"{path}?{parameter}={good}"))


def test_an_empty_number_or_size_counts_as_not_given(api: Api) -> None:
    """As in every version of the original, for scripts whose variable is not set."""
    api.cluster("one")
    api.cluster("two")
    for path in paths(api):
        whole = check(api.get(path))
        same = check(api.get(f"{path}?page=&pageSize=&size=%20"))
        assert (same["page"], same["items"]) == (1, whole["items"])
        first = check(api.get(f"{path}?page=&pageSize=&size=1"))
        assert first["items"] == whole["items"][:1]
        if "next" in first:
            rest = check(api.get(first["next"].removeprefix(BASE)))
            assert rest["items"] == whole["items"][1:2]
    assert "next" in check(api.get("/clusters?page=&pageSize=&size=1"))


def test_blanks_around_a_number_or_size_are_ignored(api: Api) -> None:
    """As in every version of the original, for scripts that align numbers."""
    api.cluster("another")
    for path in paths(api):
        for size in ("size=%20%201%20", "pageSize=+1"):
            page = check(api.get(f"{path}?page=%202&{size}"))
            assert page["page"] == 2
            assert page["items"] == check(api.get(f"{path}?page=2&size=1"))["items"]
        problem(api.get(f"{path}?page=%200%20"), 400, "page")


def test_faults_of_several_parameters_are_reported_together(api: Api) -> None:
    problem(api.get("/clusters?page=0&pageSize=1001&size=x"), 400, "page", "pageSize", "size")


def test_aliases_must_not_contradict_each_other(api: Api) -> None:
    for path in paths(api):
        body = problem(api.get(f"{path}?pageSize=1&size=2"), 400)
        assert {error["field"] for error in body["errors"]} <= {"size", "pageSize"}
        assert "pageSize" in body["detail"]
        assert "size" in body["detail"].replace("pageSize", "")
        problem(api.get(f"{path}?pageSize=0&size=1"), 400)
        check(api.get(f"{path}?pageSize=1&size=1"))
        if path != "/errors":
            problem(api.get(f"{path}?orderBy=created_time&order=created_time desc"), 400)
            check(api.get(f"{path}?orderBy=created_time desc&order=created_time desc"))


def test_lists_below_a_missing_resource_are_not_found(api: Api) -> None:
    cluster = api.cluster()
    for path in (
        f"/clusters/{NO_ID}/nodepools",
        f"/clusters/{NO_ID}/statuses",
        f"/clusters/{cluster['id']}/nodepools/{NO_ID}/statuses",
    ):
        problem(api.get(path), 404)
        problem(api.get(f"{path}?size=0"), 404)
        problem(api.get(f"{path}?page=7"), 404)


def test_reports_are_listed_page_by_page(api: Api) -> None:
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    for resource in (cluster, node_pool):
        for number in range(5):
            assert api.report(resource, f"adapter-{number}").status_code == 201
        path = "/" + resource["href"] + "/statuses"
        whole = check(api.get(path))
        assert (whole["page"], whole["size"], whole["total"]) == (1, 5, 5)
        # Like every list, the newest first.
        assert [item["adapter"] for item in whole["items"]] == [f"adapter-{i}" for i in range(4, -1, -1)]
        pages = [check(api.get(f"{path}?page={number}&pageSize=2")) for number in (1, 2, 3, 4)]
        assert [item for page in pages for item in page["items"]] == whole["items"]
        assert [page["size"] for page in pages] == [2, 2, 1, 0]
        # A later report of the same adapter adds no item.
        assert api.report(resource, "adapter-0").status_code == 201
        assert check(api.get(path))["total"] == 5


def test_search_finds_resources_by_name_and_by_id(api: Api) -> None:
    first, second = api.cluster("c1"), api.cluster("c2")
    pool = api.node_pool(first, "np1")
    api.node_pool(second, "np1")
    assert check(api.get("/clusters", params={"search": "name='c1'"}))["items"] == [first]
    assert check(api.get("/clusters", params={"search": f"id='{second['id']}'"}))["items"] == [second]
    assert check(api.get("/clusters", params={"search": "name='c3'"}))["total"] == 0
    assert check(api.get("/nodepools", params={"search": "name='np1'"}))["total"] == 2
    own = check(api.get(f"/clusters/{first['id']}/nodepools", params={"search": "name='np1'"}))
    assert own["items"] == [pool]
    assert own["total"] == 1
    for bad in ("nonsense", "name=", "name='c1", "nosuch='x'", "' OR 1=1", "name='c1' OR"):
        problem(api.get("/clusters", params={"search": bad}), 400, "search")


def test_search_finds_reports_by_adapter(api: Api) -> None:
    cluster = api.cluster()
    for adapter in ("dns", "validation"):
        api.report(cluster, adapter)
    found = check(api.get(f"/clusters/{cluster['id']}/statuses", params={"search": "adapter='dns'"}))
    assert [item["adapter"] for item in found["items"]] == ["dns"]
    assert found["total"] == 1
