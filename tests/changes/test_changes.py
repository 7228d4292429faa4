"""The feed of changes as clients see it: what appears in it, its pages, its search and its errors."""

import base64

import psycopg
import pytest
from conftest import Api
from watchers import follow, now, told

FEED = "/changes"


def test_each_change_of_a_resource_appears_once_with_its_current_state(waiting: Api) -> None:
    api = waiting
    start = now(api)
    cluster = api.cluster("c1")
    path = f"/clusters/{cluster['id']}"
    pool = api.node_pool(cluster, "np1")
    assert api.patch(path, json={"labels": {"a": "b"}}).status_code == 200
    assert api.patch(path, json={"labels": {"a": "b"}}).status_code == 200
    assert api.report(cluster, "dns", observed_generation=2).status_code == 201
    assert api.delete(path).status_code == 202
    items, end = follow(api, start)
    assert told(items) == [
        ("created", "Cluster", "c1"),
        ("created", "NodePool", "np1"),
        ("updated", "Cluster", "c1"),
        ("status", "Cluster", "c1"),
        ("deleting", "NodePool", "np1"),
        ("deleting", "Cluster", "c1"),
    ]
    assert [one["generation"] for one in items] == [1, 1, 2, 2, 2, 3]
    assert [one.get("owner_id") for one in items] == [
        None,
        cluster["id"],
        None,
        None,
        cluster["id"],
        None,
    ]
    assert [one["by"] for one in items[:3]] == ["system@hyperfleet.local"] * 3
    assert items[3]["by"] == "dns"
    for one in items:
        of = {"Cluster": cluster, "NodePool": pool}[one["kind"]]
        assert one["id"] == of["id"]
        assert one["resource"] == api.read(of)
    versions = [one["version"] for one in items if one["kind"] == "Cluster"]
    assert versions == sorted(versions)
    assert f'"{versions[-1]}"' == api.get(path).headers["ETag"]
    assert api.post(f"{path}/force-delete", json={"reason": "test"}).status_code == 204
    gone, after = follow(api, end)
    assert told(gone) == [("removed", "NodePool", "np1"), ("removed", "Cluster", "c1")]
    assert all("resource" not in one for one in gone)
    assert follow(api, after) == ([], after)
    # A late reader gets all the changes, without the resources that are gone.
    late, _ = follow(api, start)
    assert told(late) == told(items) + told(gone)
    assert all("resource" not in one for one in late)


def test_a_report_that_repeats_the_last_one_is_not_a_change(api: Api) -> None:
    cluster = api.cluster()
    assert api.report(cluster).status_code == 201
    start, before = now(api), api.read(cluster)
    assert api.report(cluster, observed_time=None).status_code == 201
    assert api.read(cluster) != before
    assert follow(api, start)[0] == []
    for said in (
        {"conditions": [{"type": "Available", "status": "True", "reason": "Other"}]},
        {"conditions": [{"type": "Available", "status": "False", "reason": "Other"}]},
        {"adapter": "other"},
    ):
        assert api.report(cluster, **said).status_code == 201
        items, start = follow(api, start)
        assert [(one["change"], one["by"]) for one in items] == [("status", said.get("adapter", "dns"))]


def test_changes_without_a_report_or_a_new_generation_appear_too(
    api: Api, sql: psycopg.Connection
) -> None:
    cluster = api.cluster()
    assert api.report(cluster).status_code == 201
    start = now(api)
    # As an import does after a manual correction at the source.
    for what in ("spec = '{\"b\": 1}'", 'labels = \'{"b": "1"}\'', "updated_time = now()"):
        sql.execute(f"UPDATE clusters SET version = version + 1, {what}")
        items, start = follow(api, start)
        assert [(one["change"], one["by"]) for one in items] == [("updated", cluster["created_by"])]
    # As rules of mapped conditions may do: a reason moves from one condition to the next.
    for one, two in ((',"reason":"A"', ""), ("", ',"reason":"A"')):
        conditions = f'[{{"type":"X","status":"True"{one}}},{{"type":"Y","status":"True"{two}}}]'
        sql.execute(
            "UPDATE clusters SET version = version + 1, status = status || jsonb_build_object("
            "'conditions', %s::jsonb)",
            [conditions],
        )
        # These conditions are incomplete, so only the id is requested.
        items, start = follow(api, f"/changes?fields=id&after={start}")
        assert [one["change"] for one in items] == ["status"]


def test_a_list_links_to_the_changes_after_it(api: Api) -> None:
    first = api.cluster("c1")
    pool = api.node_pool(first, "np1")
    own = f"/clusters/{first['id']}/nodepools"
    links = {}
    for path in (
        "/clusters",
        "/nodepools",
        own,
        "/resources",
        "/clusters?search=name = 'c2'&fields=name",
    ):
        link = api.get(path).json()["changes"]
        assert follow(api, link)[0] == []
        links[path] = link
    second = api.cluster("c2")
    api.node_pool(second, "np2")
    other = api.node_pool(first, "np3")
    assert api.patch(api.url + pool["href"], json={"spec": {"a": 1}}).status_code == 200
    found = {path: told(follow(api, link)[0]) for path, link in links.items()}
    c2 = [("created", "Cluster", "c2")]
    np2, np3 = ("created", "NodePool", "np2"), ("created", "NodePool", "np3")
    changed = ("updated", "NodePool", "np1")
    assert found == {
        "/clusters": c2,
        "/nodepools": [np2, np3, changed],
        own: [np3, changed],
        "/resources": [*c2, np2, np3, changed],
        "/clusters?search=name = 'c2'&fields=name": c2,
    }
    [item] = follow(api, links["/clusters?search=name = 'c2'&fields=name"])[0]
    assert item["resource"] == {"id": second["id"], "name": "c2"}
    assert "changes" not in api.get(f"{own}/{other['id']}/statuses").json()
    assert api.get("/nodepools?size=0").json()["changes"]


def test_the_link_does_not_change_the_etag_of_a_list(api: Api) -> None:
    cluster = api.cluster("c1")
    before = api.get("/clusters")
    api.node_pool(cluster)
    after = api.get("/clusters")
    assert after.headers["ETag"] == before.headers["ETag"]
    assert after.json()["changes"] != before.json()["changes"]
    assert {**after.json(), "changes": ""} == {**before.json(), "changes": ""}
    known = {"If-None-Match": before.headers["ETag"]}
    assert api.get("/clusters", headers=known).status_code == 304


def test_a_client_of_an_older_generation_does_not_get_the_link(api: Api) -> None:
    api.cluster()
    strict = {"User-Agent": "OpenAPI-Generator/1.0.0/go"}
    assert set(api.get("/clusters", headers=strict).json()) == {"kind", "page", "size", "total", "items"}


def test_a_very_large_list_has_the_link_too(api: Api) -> None:
    for number in range(3):
        api.cluster(f"large{number}", spec={"text": "x" * 600_000})
    page = api.get("/clusters")
    assert page.headers.get("ETag") is None
    api.cluster("c1")
    items, _ = follow(api, page.json()["changes"])
    assert told(items) == [("created", "Cluster", "c1")]


def test_a_search_applies_to_current_resources_and_lets_removals_through(waiting: Api) -> None:
    api, query = waiting, "kind=Cluster&search=labels.env = 'prod'"
    start = now(api, query)
    one = api.cluster("one", labels={"env": "prod"})
    two = api.cluster("two", labels={"env": "test"})
    page = api.get(f"/changes?{query}&after={start}").json()
    assert told(page["items"]) == [("created", "Cluster", "one")]
    # Changes that did not match are skipped for good.
    assert api.get(f"/changes?{query}&after={page['next']}").json()["items"] == []
    assert api.patch(f"/clusters/{two['id']}", json={"labels": {"env": "prod"}}).status_code == 200
    assert api.patch(f"/clusters/{one['id']}", json={"labels": {"env": "test"}}).status_code == 200
    items = api.get(f"/changes?{query}&after={page['next']}").json()["items"]
    assert told(items) == [("updated", "Cluster", "two")]
    for cluster in (one, two):
        path = f"/clusters/{cluster['id']}"
        assert api.delete(path).status_code == 202
        assert api.post(f"{path}/force-delete", json={"reason": "x"}).status_code == 204
    items = api.get(f"/changes?{query}&after={start}").json()["items"]
    assert told(items) == [("removed", "Cluster", "one"), ("removed", "Cluster", "two")]


def test_small_pages_follow_each_other_without_gaps(api: Api) -> None:
    start = now(api)
    for number in range(7):
        api.cluster(f"c{number}")
    token, seen = start, []
    for size in (3, 3, 1):
        page = api.get(f"/changes?limit=3&after={token}").json()
        assert len(page["items"]) == size
        seen += [one["name"] for one in page["items"]]
        token = page["next"]
    assert seen == [f"c{number}" for number in range(7)]
    assert api.get(f"/changes?limit=3&after={token}").json() == {
        "kind": "ChangeList",
        "items": [],
        "next": token,
    }


def test_a_page_of_large_resources_has_fewer_items(api: Api) -> None:
    start = now(api)
    for number in range(4):
        api.cluster(f"large{number}", spec={"text": "x" * 600_000})
    first = api.get(f"/changes?after={start}").json()
    assert [one["name"] for one in first["items"]] == ["large0"]
    items, _ = follow(api, start)
    assert [one["name"] for one in items] == [f"large{number}" for number in range(4)]


@pytest.mark.parametrize(
    ("query", "field", "says"),
    [
        ("after=garbage", "after", "token"),
        ("after=", "after", ""),
        (f"after={base64.urlsafe_b64encode(bytes(35)).decode()}", "after", "token"),
        ("kind=cluster", "kind", "did you mean Cluster"),
        ("kind=AdapterStatus", "kind", "Cluster"),
        ("owner_id=x", "owner_id", "id"),
        ("limit=0", "limit", "from 1 to 1000"),
        ("limit=1001", "limit", "from 1 to 1000"),
        ("wait=61", "wait", "from 0 to 60"),
        ("wait=-1", "wait", "from 0 to 60"),
        ("fields=nonsense", "fields", "nonsense"),
        ("kind=Cluster&search=nonsense = 1", "search", "nonsense"),
        ("kind=Cluster&search=name ~= '('", "search", "regular expression"),
        ("since=1", "since", ""),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_an_invalid_parameter_is_rejected_by_name(
    api: Api, query: str, field: str, says: str, accept: str
) -> None:
    token = now(api)
    api.cluster()
    place = "" if "after" in query else f"&after={token}"
    answer = api.get(f"/changes?{query}{place}", headers={"Accept": accept})
    assert answer.status_code == 400, answer.text
    assert answer.headers["Content-Type"] in ("application/problem+json", "application/json")
    assert answer.json()["errors"][0]["field"] == field
    assert says in answer.json()["detail"]


def test_an_open_transaction_holds_back_the_changes_made_since_it_began(api: Api, database: str) -> None:
    token = now(api)
    with psycopg.connect(database) as other:
        other.execute("SELECT pg_current_xact_id()")
        api.cluster("c1")
        link = api.get("/clusters").json()["changes"]
        assert follow(api, token)[0] == []
        assert follow(api, link)[0] == []
        other.rollback()
    assert told(follow(api, token)[0]) == [("created", "Cluster", "c1")]
    # What the list already had appears once more, rather than never.
    assert told(follow(api, link)[0]) == [("created", "Cluster", "c1")]
