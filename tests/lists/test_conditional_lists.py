"""Conditional requests for lists: 304 as long as a list is unchanged, and only then."""

import asyncio
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
import requests
from conftest import Api
from helpers_contract import check
from older import flush_counters

from hyperfleet.database.together import Rounds
from hyperfleet.lists import tags as tags_module
from hyperfleet.lists.tags import Tags

# A write that affects no list.
WRITTEN = """
INSERT INTO audit (time, actor, action, reason, resource_type, resource_id, document)
VALUES (now(), '', '', '', '', gen_random_uuid(), '')
"""


def known(api: Api, path: str, tag: str, **params: str) -> requests.Response:
    return api.get(path, params=params, headers={"If-None-Match": tag})


def tag_of(api: Api, path: str, **params: str) -> str:
    answer = api.get(path, params=params)
    assert answer.status_code == 200
    return answer.headers["ETag"]


@pytest.fixture
def fleet(api: Api) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """A cluster, a node pool, and the paths of all lists that contain them or belong to them."""
    cluster = api.cluster("a", labels={"env": "prod"})
    pool = api.node_pool(cluster, "workers")
    for one in (cluster, pool):
        assert api.report(one, "dns").status_code == 201
    at, pools = f"/clusters/{cluster['id']}", f"/nodepools/{pool['id']}"
    paths = ["/clusters", "/nodepools", f"{at}/nodepools", f"{at}/statuses", f"{at}/adapter-statuses"]
    paths += [f"{at}{pools}/statuses", f"{at}{pools}/adapter-statuses", f"{pools}/statuses"]
    return cluster, pool, [*paths, f"{pools}/adapter-statuses"]


def test_a_client_that_already_has_a_list_gets_304(api: Api, fleet: Any) -> None:
    for path in fleet[2]:
        tag = tag_of(api, path)
        assert tag.startswith('W/"')
        answer = known(api, path, f'"other", {tag}')
        assert check(answer, 304) is None
        assert answer.headers["ETag"] == tag
        assert answer.content == b""
        assert known(api, path, "*").status_code == 304
        assert known(api, path, '"other"').status_code == 200
        assert api.head(path, headers={"If-None-Match": tag}).status_code == 304
        assert api.head(path).headers["ETag"] == tag
        # Another projection has another tag.
        assert tag_of(api, path, fields="adapter" if "statuses" in path else "name") != tag


def test_the_tag_of_a_list_changes_with_anything_on_the_page(api: Api, fleet: Any) -> None:
    cluster, pool, paths = fleet
    reports = [path for path in paths if "statuses" in path and "nodepools" not in path]

    def changed(doing: Any, expected: list[str]) -> None:
        before = {path: tag_of(api, path) for path in paths}
        assert doing().status_code in (200, 201, 202)
        after = {path: known(api, path, before[path]).status_code for path in paths}
        assert [path for path in paths if after[path] == 200] == expected

    changed(lambda: api.report(cluster, "dns"), ["/clusters", *reports])
    changed(lambda: api.report(cluster, "new"), ["/clusters", *reports])
    changed(lambda: api.report(pool, "dns"), [path for path in paths if "nodepools" in path])
    at = f"/clusters/{cluster['id']}"
    changed(lambda: api.patch(at, json={"labels": {"env": "test"}}), ["/clusters"])
    changed(lambda: api.post("/clusters", json={"name": "b", "spec": {}}), ["/clusters"])
    body = {"name": "more", "spec": {}}
    changed(lambda: api.post(f"{at}/nodepools", json=body), ["/nodepools", f"{at}/nodepools"])
    changed(lambda: api.delete(f"/nodepools/{pool['id']}"), ["/nodepools", f"{at}/nodepools"])


def test_the_tag_of_a_list_stays_until_a_change_affects_the_list(api: Api) -> None:
    mine, other = api.cluster("mine", labels={"env": "prod"}), api.cluster("other")
    search = {"search": "labels.env='prod'"}
    tag = tag_of(api, "/clusters", **search)
    for number in range(3):
        assert api.report(other, f"a-{number}").status_code == 201
        assert known(api, "/clusters", tag, **search).status_code == 304
    assert api.patch(f"/clusters/{other['id']}", json={"labels": {"env": "prod"}}).status_code == 200
    assert known(api, "/clusters", tag, **search).status_code == 200
    assert api.read(mine)["id"] == mine["id"]


def test_an_unchanged_list_is_answered_without_reading_its_rows(
    api: Api, sql: psycopg.Connection
) -> None:
    api.cluster()
    tag = tag_of(api, "/clusters")
    assert known(api, "/clusters", tag).status_code == 304
    # A list would find no table. (Renaming is a write, too, so what was remembered no longer counts.)
    sql.execute("ALTER TABLE clusters RENAME TO hidden")
    assert known(api, "/clusters", tag).status_code >= 500
    sql.execute("ALTER TABLE hidden RENAME TO clusters")
    assert known(api, "/clusters", tag).status_code == 304

    def scans() -> int:
        flush_counters(sql)
        counted = "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'clusters'"
        [(count,)] = sql.execute(counted).fetchall()
        return int(count)

    before = scans()
    for _ in range(50):
        assert known(api, "/clusters", tag).status_code == 304
    # A list takes five; the server itself writes now and then, and its counters may lag.
    assert scans() - before <= 15


def test_an_acknowledged_change_is_never_answered_with_304(api: Api, database: str) -> None:
    clusters = [api.cluster(f"c-{number}") for number in range(4)]
    done = threading.Event()

    def writes(number: int) -> None:
        # Meanwhile, other transactions begin and end, and some are rolled back.
        with psycopg.connect(database) as conn:
            while not done.is_set():
                conn.execute("UPDATE clusters SET version = version + 1 WHERE name = 'none'")
                conn.execute(WRITTEN)
                conn.rollback() if number % 2 else conn.commit()

    def polls(number: int) -> None:
        own, mine = Api(api.url), clusters[number]
        tag = ""
        for step in range(60):
            changed = own.patch(f"/clusters/{mine['id']}", json={"labels": {"step": str(step)}})
            assert changed.status_code == 200
            answer = known(own, "/clusters", tag)
            assert answer.status_code == 200, "the list that the client has is one step behind"
            listed = {one["id"]: one for one in answer.json()["items"]}
            assert listed[mine["id"]]["labels"] == {"step": str(step)}
            tag = answer.headers["ETag"]

    with ThreadPoolExecutor(8) as threads:
        writers = [threads.submit(writes, number) for number in range(2)]
        polled = [threads.submit(polls, number) for number in range(4)]
        try:
            [one.result() for one in polled]
        finally:
            done.set()
        [one.result() for one in writers]
    tag = tag_of(api, "/clusters")
    assert [known(api, "/clusters", tag).status_code for _ in range(20)] == [304] * 20


class Server:
    """What tags need of the pool: when its connections last changed, and the server's moment."""

    renewed = 1.0
    moment = "m"

    async def read(self, asked: Iterable[None]) -> dict[None, str | None]:
        return dict.fromkeys(asked, self.moment)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def tags(server: Server) -> Tags:
    found = Tags(server)  # type: ignore[arg-type]
    found.moments = Rounds(server.read)
    return found


def test_a_page_counts_as_changed_once_another_server_may_answer(tags: Tags, server: Server) -> None:
    tags.keep("page", "tag", server.moment, server.renewed)
    assert asyncio.run(tags.still("page"))
    # It may report the same moment with other rows.
    server.renewed = 2.0
    assert not asyncio.run(tags.still("page"))
    tags.keep("page", "tag", server.moment, server.renewed)
    assert asyncio.run(tags.still("page"))
    server.moment = "n"
    assert not asyncio.run(tags.still("page"))


def test_only_the_tags_of_the_pages_read_last_are_remembered(
    tags: Tags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags_module, "PAGES", 2)
    for page in ("a", "b", "a", "c"):
        tags.keep(page, f"tag of {page}", "m", 1.0)
    # A standby cannot tell its moment.
    tags.keep("d", "tag of d", None, 1.0)
    assert [tags.last(page) for page in "abcd"] == ["tag of a", None, "tag of c", None]
