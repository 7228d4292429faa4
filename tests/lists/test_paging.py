"""Pages that neither skip nor repeat items, exact totals, order, projection, and bounds on the work."""

import base64
import json
import random
import string
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from conftest import Api
from helpers_contract import BASE
from older import needs_small_expressions
from psycopg.types.json import Jsonb


def follow(api: Api, path: str) -> Iterator[dict[str, Any]]:
    """Yields the pages of a list, following their next links."""
    for _ in range(1000):
        answer = api.get(path)
        assert answer.status_code == 200, answer.text
        yield answer.json()
        if not (path := answer.json().get("next", "")):
            return
        path = api.url + path
    raise AssertionError("the links do not end")


def ids(pages: Any) -> list[str]:
    return [item["id"] for page in pages for item in page["items"]]


def test_next_links_lead_through_every_list_in_order_and_stop_at_its_end(api: Api) -> None:
    made = [api.cluster(f"c{number:02}", labels={"n": str(number % 3)}) for number in range(11)]
    newest_first = [cluster["id"] for cluster in reversed(made)]
    pages = list(follow(api, "/clusters?pageSize=4"))
    assert ids(pages) == newest_first
    assert [(page["page"], page["size"], page["total"]) for page in pages] == [
        (1, 4, 11),
        (2, 4, 11),
        (3, 3, 11),
    ]
    assert ids(follow(api, "/clusters?size=11")) == newest_first
    assert "next" not in api.get("/clusters?size=11").json()
    assert "next" not in api.get("/clusters?size=0").json()

    by_label = sorted(made, key=lambda c: (c["labels"]["n"], c["name"]))
    path = "/clusters?size=3&orderBy=labels.n,name"
    assert ids(follow(api, path)) == [cluster["id"] for cluster in by_label]
    mixed = sorted(sorted(made, key=lambda c: c["name"]), key=lambda c: c["labels"]["n"], reverse=True)
    path = "/clusters?size=2&orderBy=labels.n desc,name asc"
    assert ids(follow(api, path)) == [cluster["id"] for cluster in mixed]
    found = list(follow(api, "/clusters?size=2&search=labels.n='1'&order=asc"))
    assert ids(found) == [c["id"] for c in made if c["labels"]["n"] == "1"]
    assert {page["total"] for page in found} == {4}

    pools = [api.node_pool(made[0], f"p{number}") for number in range(5)]
    assert ids(follow(api, f"/clusters/{made[0]['id']}/nodepools?size=2")) == [
        p["id"] for p in reversed(pools)
    ]
    for number in range(5):
        api.report(made[0], f"adapter-{number}")
    listed = list(follow(api, f"/clusters/{made[0]['id']}/statuses?size=2"))
    adapters = [item["adapter"] for page in listed for item in page["items"]]
    assert adapters == [f"adapter-{number}" for number in reversed(range(5))]


def test_next_links_work_when_sort_keys_are_longer_than_a_link(api: Api) -> None:
    made = [api.cluster(f"c{number}") for number in range(6)]
    conditions = []
    for cluster, text in zip(made, ("b", "a", "\U0001f600", "\x01", "a", '"'), strict=True):
        said = {"type": "Available", "status": "True", "reason": text * 1024, "message": text * 32768}
        for adapter in ("dns", "dns2", "dns3", "dns4"):
            assert api.report(cluster, adapter, conditions=[said]).status_code == 201
        conditions.append((text, cluster["id"]))
    names = [f"status.conditions.Dns{n}Successful" for n in ("", "2", "3", "4")]
    order = ",".join([f"{name}.message" for name in names] + [f"{name}.reason" for name in names])
    path = f"/clusters?size=1&fields=id&orderBy={order}"
    assert ids(follow(api, path)) == [id_ for _, id_ in sorted(conditions)]


def test_next_links_work_with_labels_stored_before_their_length_was_limited(
    api: Api, sql: psycopg.Connection
) -> None:
    made = [api.cluster(f"c{number}")["id"] for number in range(3)]
    for cluster, char in zip(made, "bca", strict=True):
        labels = Jsonb({"long": char * 10000})
        sql.execute("UPDATE clusters SET labels = %s WHERE id = %s", (labels, cluster))
    path = "/clusters?size=1&fields=id&orderBy=labels.long"
    assert ids(follow(api, path)) == [made[2], made[0], made[1]]


def test_items_without_the_sort_field_come_last_in_either_direction(api: Api) -> None:
    some = [api.cluster(f"with-{n}", labels={"n": str(n)}) for n in range(3)]
    none = [api.cluster(f"without-{n}") for n in range(3)]
    up = ids(follow(api, "/clusters?size=2&orderBy=labels.n asc,name"))
    assert up == [c["id"] for c in some + none]
    down = ids(follow(api, "/clusters?size=2&orderBy=labels.n desc,name"))
    assert down == [c["id"] for c in some[::-1] + none]


def test_page_numbers_cover_the_list_from_both_ends(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    # With this bound, even a small table has deep pages.
    monkeypatch.setattr("hyperfleet.lists.page.DEEP", 3)
    made = [api.cluster(f"c{number:02}") for number in range(25)]
    wanted = [cluster["id"] for cluster in reversed(made)]
    pages = [api.get(f"/clusters?pageSize=4&page={number}").json() for number in range(1, 9)]
    assert ids(pages) == wanted
    assert [page["total"] for page in pages] == [25] * 8
    assert [page["size"] for page in pages] == [4, 4, 4, 4, 4, 4, 1, 0]
    named = [api.get(f"/clusters?pageSize=4&page={n}&orderBy=name").json() for n in range(1, 9)]
    assert ids(named) == wanted[::-1]
    for number in (2, 4, 5, 6):
        page = api.get(f"/clusters?pageSize=4&page={number}").json()
        # The token says which page follows.
        assert "page=" not in page["next"]
        behind = api.get(api.url + page["next"]).json()
        assert behind["page"] == number + 1
        assert ids([page, behind]) == wanted[(number - 1) * 4 : (number + 1) * 4]
    assert "next" not in api.get("/clusters?pageSize=5&page=5").json()
    assert "next" not in pages[6]
    # Those without the field come last in both directions.
    for cluster in made[:10]:
        answer = api.patch(f"/clusters/{cluster['id']}", json={"labels": {"n": cluster["name"]}})
        assert answer.status_code == 200, answer.text
    for direction, first in (("asc", wanted[:14:-1]), ("desc", wanted[15:])):
        order = f"orderBy=labels.n {direction},name desc"
        labelled = [api.get(f"/clusters?pageSize=4&page={n}&{order}").json() for n in range(1, 9)]
        assert ids(labelled) == [*first, *wanted[:15]]
    searched = [
        api.get(f"/clusters?pageSize=4&page={n}&search=name like 'c%25'").json() for n in range(1, 9)
    ]
    assert ids(searched) == wanted
    assert [page["total"] for page in searched] == [25] * 8


@pytest.mark.slow
def test_next_links_show_every_lasting_cluster_once_while_others_come_and_go(
    api: Api,
) -> None:
    lasting = [api.cluster(f"lasting-{number}")["id"] for number in range(40)]
    stop = threading.Event()

    def disturb(worker: int) -> None:
        mine, chance, number = Api(api.url), random.Random(worker), 0
        passing: list[dict[str, Any]] = []
        while not stop.is_set():
            number += 1
            if len(passing) < 5 or chance.random() < 0.5:
                passing.append(mine.cluster(f"passing-{worker}-{number}"))
            else:
                gone = passing.pop(chance.randrange(len(passing)))
                assert mine.delete(f"/clusters/{gone['id']}").status_code == 202

    with ThreadPoolExecutor(3) as threads:
        workers = [threads.submit(disturb, worker) for worker in range(3)]
        try:
            for order in ("created_time desc", "name", "updated_time,name desc"):
                for _ in range(4):
                    met = ids(follow(api, f"/clusters?size=3&orderBy={order}"))
                    assert sorted(i for i in met if i in set(lasting)) == sorted(lasting)
                    assert len(met) == len(set(met))
        finally:
            stop.set()
        for worker in workers:
            worker.result()


@pytest.mark.slow
def test_totals_are_exact_after_many_concurrent_writes(api: Api, sql: psycopg.Connection) -> None:
    def work(worker: int) -> None:
        mine = Api(api.url)
        for number in range(15):
            cluster = mine.cluster(f"c-{worker}-{number}")
            pool = mine.node_pool(cluster)
            assert pool
            if number % 3 == 0:
                mine.delete(f"/clusters/{cluster['id']}")
            mine.post("/clusters", json={"name": f"c-{worker}-0", "spec": {}})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    for path, table in (("/clusters", "clusters"), ("/nodepools", "node_pools")):
        [(count,)] = sql.execute(f"SELECT count(*) FROM {table}").fetchall()
        assert api.get(f"{path}?size=0").json()["total"] == count > 0
        assert api.get(f"{path}?size=7&page=3").json()["total"] == count
    [(rows,)] = sql.execute("SELECT count(*) FROM row_counts").fetchall()
    assert rows < 800, "differences are summed up from time to time"


def test_writers_do_not_wait_for_each_other_to_update_the_count(api: Api, database: str) -> None:
    with psycopg.connect(database) as other:
        other.execute(
            "INSERT INTO clusters SELECT gen_random_uuid(), 'uncommitted', 1, 1, '{}', '{}', '{}',"
            " now(), now(), 'me', 'me', NULL, NULL"
        )
        api.cluster("committed")
        assert api.get("/clusters?size=0").json()["total"] == 1
        other.commit()
    assert api.get("/clusters?size=0").json()["total"] == 2


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "%00",
        "é",
        base64.urlsafe_b64encode(b"[2]").decode(),
        base64.urlsafe_b64encode(b'[0, "2026-01-01", "x"]').decode(),
        base64.urlsafe_b64encode(b'[2, "2026-01-01", "\\u0000"]').decode(),
        base64.urlsafe_b64encode(b"[2, null, null]").decode(),
        base64.urlsafe_b64encode(b'[2, "never", "01a2036d-df33-776c-8a22-f6706d544dce"]').decode(),
        base64.urlsafe_b64encode(b'[2, "2026-01-01", "no uuid"]').decode(),
        base64.urlsafe_b64encode(b"[" * 5000).decode(),
        base64.urlsafe_b64encode(json.dumps([2, 1, 2]).encode()).decode(),
    ],
)
def test_an_invalid_continue_token_is_a_400_that_names_the_parameter(api: Api, token: str) -> None:
    answer = api.get("/clusters", params={"continue": token})
    assert answer.status_code == 400, answer.text
    assert answer.json()["errors"][0]["field"] == "continue"


def test_fields_shows_only_the_named_members_and_always_the_id(api: Api) -> None:
    cluster = api.cluster("shown", labels={"app.kubernetes.io/name": "x", "b": "y"})
    api.report(cluster)
    [item] = api.get("/clusters?fields=name,status.phase,labels.b").json()["items"]
    assert item == {
        "id": cluster["id"],
        "name": "shown",
        "labels": {"b": "y"},
        "status": {"phase": "Ready"},
    }
    [item] = api.get("/clusters?fields=spec").json()["items"]
    assert item == {"id": cluster["id"], "spec": {}}
    [report] = api.get(f"/clusters/{cluster['id']}/statuses?fields=observed_generation").json()["items"]
    assert report == {"adapter": "dns", "observed_generation": 1}
    refused = api.get("/clusters?fields=name,nonsense")
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["field"] == "fields"
    assert "owner" not in refused.json()["detail"]
    assert "status" in refused.json()["detail"]


def test_a_list_without_its_total_has_the_same_pages_to_the_end(api: Api) -> None:
    for number in range(7):
        api.cluster(f"c{number}", labels={"odd": str(number % 2)})
    for first in ("/clusters?size=3", "/clusters?size=2&search=labels.odd='1'", "/clusters?size=0"):
        path, pages = first + "&total=none", 0
        while path:
            page = api.get(path).json()
            whole = api.get(path.replace("total=none", "total=exact")).json()
            assert "total" in whole
            assert page == {
                name: value.replace("total=exact", "total=none") if name == "next" else value
                for name, value in whole.items()
                if name != "total"
            }
            path = page.get("next", "").removeprefix(BASE)
            pages += 1
        assert pages == {"/clusters?size=3": 3, "/clusters?size=0": 1}.get(first, 2)
    refused = api.get("/clusters?total=all")
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["field"] == "total"


def test_an_order_by_an_unknown_field_is_a_400_that_lists_known_fields(api: Api) -> None:
    refused = api.get("/clusters?orderBy=nonsense desc")
    assert refused.status_code == 400
    [fault] = refused.json()["errors"]
    assert fault["field"] == "orderBy"
    for good in ("name", "created_time", "labels.KEY", "status.phase"):
        assert good in fault["message"]


def test_a_search_that_takes_too_long_is_a_400_that_says_so(
    service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    api = service(statement_timeout=0.5)
    sql.execute(
        "INSERT INTO clusters SELECT gen_random_uuid(), 'c' || n, 1, 1, '{}',"
        " jsonb_build_object('x', repeat('ab', 3000)), '{\"conditions\": []}', now(), now(), 'm', 'm',"
        " NULL, NULL"
        " FROM generate_series(1, 3000) AS n"
    )
    # Each of them takes a tenth of a second.
    search = " or ".join(f"spec.x ~= '(a|b|ab)*{end}'" for end in string.ascii_lowercase[2:20])
    answer = api.get("/clusters", params={"search": search})
    assert answer.status_code == 400, answer.text
    assert "takes too long" in answer.json()["detail"]
    assert api.get("/clusters?size=0").status_code == 200


def test_a_regular_expression_that_is_too_large_for_postgresql_is_a_400_that_says_so(
    api: Api, sql: psycopg.Connection
) -> None:
    needs_small_expressions(sql)
    link = api.get("/clusters", params={"search": "spec.x ~= '(x{1,200}){1,200}'"}).json()["changes"]
    cluster = api.cluster("c1", spec={"x": "x"})
    lists = ("/clusters", "/resources", f"/clusters/{cluster['id']}/nodepools", "/nodepools")
    api.node_pool(cluster, spec={"x": "x"})
    for path in lists:
        for more in ({}, {"total": "none"}, {"size": "0"}):
            search = "name is not null and spec.x ~! '(x{1,200}){1,200}'"
            answer = api.get(path, params={"search": search, **more})
            assert (answer.status_code, answer.json()["code"]) == (400, "HYPERFLEET-VAL-007"), path
            assert "too complex" in answer.json()["detail"]
    answer = api.get("/" + link)
    assert (answer.status_code, answer.json()["code"]) == (400, "HYPERFLEET-VAL-007"), answer.text


def test_a_search_that_waits_for_a_lock_or_is_cancelled_by_an_operator_is_a_503(
    service: Callable[..., Api], database: str, sql: psycopg.Connection
) -> None:
    search = {"search": "name = 'c1'"}
    api = service(statement_timeout=0.5)
    with sql.transaction():
        sql.execute("LOCK TABLE clusters")
        answer = api.get("/clusters", params=search)
    assert (answer.status_code, answer.json()["code"]) == (503, "HYPERFLEET-SVC-002"), answer.text
    assert int(answer.headers["Retry-After"]) > 0

    api = service(statement_timeout=30)
    with psycopg.connect(database) as other, ThreadPoolExecutor(1) as thread:
        other.execute("LOCK TABLE clusters")
        asked = thread.submit(api.get, "/clusters", params=search)
        # Not in the transaction of the lock, where pg_stat_activity would not change any more.
        while not sql.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        ).fetchall():
            time.sleep(0.01)
        assert asked.result().status_code == 503
