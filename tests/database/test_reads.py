"""Standbys share the reads: clients see their own writes, and none serves that is too far behind."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from alike import problem
from conftest import Api
from older import flush_counters
from own_server import Server, frozen, kill, of, own_server, standby, waited_for
from pooler import PROGRAM, pgbouncer
from process import Serving, run, server_folder
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from watchers import Watcher, fleet, news

from hyperfleet.database import embedded, migration
from hyperfleet.database.reads import NEVER
from hyperfleet.database.standby import STRAYED, position, standbys

pytestmark = pytest.mark.slow

POSITION = "Hyperfleet-Position"
NAMES = ("second", "third")


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Server, list[str]]]:
    """A primary, and the socket folders of its two standbys."""
    with (
        own_server() as primary,
        standby(primary, "second", synchronous=False) as second,
        standby(primary, "third", synchronous=False) as third,
    ):
        yield primary, [second, third]


@pytest.fixture
def serving(nodes: tuple[Server, list[str]]) -> Iterator[Serving]:
    primary, folders = nodes
    primary.ask("TRUNCATE clusters, node_pools, adapter_statuses, labels CASCADE")
    with Serving(
        *("--no-auth", "--database-url", primary.conninfo),
        *("--read-database-url", of(primary, folders), "--max-staleness=1"),
    ) as serving:
        yield serving
    for folder in folders:
        resume(folder)


def paused(folder: str, *, on: bool = True) -> None:
    """Pauses a standby's replay; it still receives the WAL."""
    with psycopg.connect(host=folder, port=5432, user="postgres", autocommit=True) as conn:
        conn.execute("SELECT pg_wal_replay_pause()" if on else "SELECT pg_wal_replay_resume()")
        while on and conn.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() != ("paused",):
            time.sleep(0.01)


def resume(folder: str) -> None:
    paused(folder, on=False)


def served(serving: Serving) -> dict[str, int]:
    """Returns how many reads each server has served, by its name without the port."""
    found = {}
    for line in requests.get(serving.metrics, timeout=5).text.splitlines():
        if line.startswith("hyperfleet_db_reads_total{"):
            name = line.partition('node="')[2].partition('"')[0]
            found[name.removesuffix(":5432")] = int(float(line.rpartition(" ")[2]))
    return found


def reads_of(folder: str) -> int:
    """Returns how many transactions a PostgreSQL server says it has committed."""
    with psycopg.connect(host=folder, port=5432, user="postgres", autocommit=True) as conn:
        flush_counters(conn)
        time.sleep(0.1)
        query = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'"
        [(count,)] = conn.execute(query).fetchall()
        return int(count)


def test_a_client_that_sends_back_the_position_of_a_write_always_reads_it(
    nodes: tuple[Server, list[str]], serving: Serving
) -> None:
    api = Api(serving.url)

    def walk(number: int) -> None:
        created = api.post("/clusters", json={"name": f"c{number}", "spec": {}})
        cluster, after = created.json(), {POSITION: created.headers[POSITION]}
        path = f"/clusters/{cluster['id']}"
        assert api.get(path, headers=after).status_code == 200
        search = {"search": f"name='c{number}'"}
        assert api.get("/clusters", params=search, headers=after).json()["total"] == 1
        for step in range(5):
            changed = api.patch(path, json={"spec": {"step": step}})
            after = {POSITION: changed.headers[POSITION]}
            assert api.get(path, headers=after).json()["spec"] == {"step": step}
        reported = api.report(cluster, observed_generation=6)
        after = {POSITION: reported.headers[POSITION]}
        assert api.get(f"{path}/statuses", headers=after).json()["total"] == 1
        deleted = api.delete(path)
        after = {POSITION: deleted.headers[POSITION]}
        assert "deleted_time" in api.get(path, headers=after).json()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(walk, range(64)))
    # Paused standbys serve none of it, and no request waits long for them.
    for folder in nodes[1]:
        paused(folder)
    began = time.monotonic()
    walk(100)
    assert time.monotonic() - began < 9 * 0.5 + 2
    found = served(serving)
    assert found["primary"] and all(found[folder] for folder in nodes[1])
    # Whoever is too late wants to read what somebody else has written.
    taken = api.post("/clusters", json={"name": "c0", "spec": {}})
    path = f"/clusters/{api.get('/clusters?size=1').json()['items'][0]['id']}"
    changed = api.patch(path, json={"spec": {}}, headers={"If-Match": '"99"'})
    assert (taken.status_code, changed.status_code) == (409, 412)
    assert POSITION in taken.headers and POSITION in changed.headers
    for other in (api.get(path), api.head(path), api.options(path), api.post("/clusters", json={})):
        assert POSITION not in other.headers, other.request.method


def test_lists_are_shared_evenly_among_the_standbys(
    nodes: tuple[Server, list[str]], serving: Serving
) -> None:
    primary, folders = nodes
    Api(serving.url).cluster("one")
    time.sleep(1)
    host = str(conninfo_to_dict(primary.conninfo)["host"])
    for count in (1, 2):
        before, began = [reads_of(folder) for folder in (*folders, host)], time.monotonic()
        with (
            Serving(
                *("--no-auth", "--database-url", primary.conninfo),
                *("--read-database-url", of(primary, folders[:count])),
            ) as reading,
            ThreadPoolExecutor(4) as threads,
        ):
            # A standby that lags a little behind at first is not asked again for a second.
            while not all(served(reading).get(folder) for folder in folders[:count]):
                Api(reading.url).get("/clusters")
                time.sleep(0.2)
            # Different pages, so that no request shares the read of another.
            pages = [f"/clusters?size={size}&search=name='one'" for size in range(1, 401)]
            answers = list(threads.map(lambda page: Api(reading.url).get(page).json(), pages))
        assert all(answer["total"] == 1 for answer in answers)
        # Sessions report their statistics when they end.
        after = [reads_of(folder) for folder in (*folders, host)]
        more = [one - other for one, other in zip(after, before, strict=True)]
        # Each is asked for its position several times a second; the rest is the start and this test.
        asked = 40 + 8 * (time.monotonic() - began)
        assert all(400 / count <= one < 400 / count + asked for one in more[:count]), more
        assert more[-1] < asked, more


def test_a_standby_beyond_the_maximum_staleness_does_not_serve(
    nodes: tuple[Server, list[str]], serving: Serving
) -> None:
    (_, folders), api = nodes, Api(serving.url)
    first, second = folders
    for folder in folders:
        paused(folder)
    cluster = api.cluster("one")
    path = f"/clusters/{cluster['id']}"
    api.patch(path, json={"labels": {"a": "b"}}).raise_for_status()
    written = time.monotonic()
    # All clients see a write within the staleness, whichever server they read from.
    while time.monotonic() - written < 1.2:
        assert api.get(path).status_code in (200, 404)
    for _ in range(20):
        assert api.get(path).json()["labels"] == {"a": "b"}
        assert api.get("/clusters").json()["total"] == 1
    ready = requests.get(f"{serving.health}/readyz?verbose", timeout=5)
    states = {name: one["state"] for name, one in ready.json()["checks"].items()}
    assert {states[f"standby {folder}:5432"] for folder in folders} == {"behind"}
    assert ready.status_code == 200
    resume(second)
    deadline = time.monotonic() + 5
    before = served(serving).get(second, 0)
    while served(serving).get(second, 0) < before + 10:
        assert time.monotonic() < deadline
        assert api.get(path).json()["labels"] == {"a": "b"}
    assert f"standby {first}:5432 is too far behind" in serving.output
    assert f"standby {second}:5432 serves again" in serving.output


def test_a_promoted_standby_serves_no_more_reads() -> None:
    with (
        own_server() as primary,
        standby(primary, synchronous=False) as second,
        Serving(
            *("--no-auth", "--database-url", primary.conninfo),
            *("--read-database-url", of(primary, [second]), "--max-staleness=1"),
        ) as serving,
    ):
        api = Api(serving.url)
        cluster = api.cluster("one")
        path = f"/clusters/{cluster['id']}"
        time.sleep(1.2)
        assert api.get(path).status_code == 200
        assert served(serving)[second]
        promote = psycopg.connect(host=second, port=5432, user="postgres", autocommit=True)
        with promote as conn:
            assert conn.execute("SELECT pg_promote()").fetchone() == (True,)
            # The primary does not have this write.
            conn.execute("UPDATE clusters SET spec = '{}', name = 'other'")
        time.sleep(1.2)
        after = served(serving)[second]
        for _ in range(20):
            assert api.get(path).json()["name"] == "one"
            api.patch(path, json={"spec": {"step": 1}}).raise_for_status()
        assert served(serving)[second] == after
        states = requests.get(f"{serving.health}/readyz?verbose", timeout=5).json()["checks"]
        assert states[f"standby {second}:5432"]["state"] == "the server is no standby"


def test_a_standby_of_another_primary_does_not_serve() -> None:
    """As after a move to a new server, if the settings still name the standbys of the old one."""
    with (
        own_server() as before,
        standby(before, synchronous=False) as second,
        server_folder() as files,
        embedded.running(files) as conninfo,
    ):
        migration.apply(conninfo)
        # The old primary has written far more.
        for _ in range(8):
            before.ask("UPDATE feeds SET since = since")
            before.ask("SELECT pg_switch_wal()")
        with Serving(
            *("--no-auth", "--database-url", conninfo),
            *("--read-database-url", of(before, [second]), "--max-staleness=1"),
        ) as serving:
            api = Api(serving.url)
            cluster = api.cluster("one")
            time.sleep(1.2)
            for _ in range(20):
                assert api.get(f"/clusters/{cluster['id']}").status_code == 200
                assert api.get("/clusters").json()["total"] == 1
            assert set(served(serving)) == {"primary"}
            states = requests.get(f"{serving.health}/readyz?verbose", timeout=5).json()["checks"]
            said = "the server is a standby of another primary"
            assert states[f"standby {second}:5432"]["state"] == said


def test_a_frozen_standby_delays_reads_only_briefly() -> None:
    with own_server() as primary, standby(primary, synchronous=False) as second:
        files = Path(second) / "postgresql"
        with Serving(
            *("--no-auth", "--database-url", primary.conninfo),
            *("--read-database-url", of(primary, [second])),
        ) as serving:
            Api(serving.url).cluster("one")
            time.sleep(2.2)
            over = threading.Event()

            def reading(number: int) -> tuple[set[int], float]:
                api, statuses, slowest, page = Api(serving.url), set(), 0.0, 0
                while not over.is_set():
                    page += 1
                    began = time.monotonic()
                    # A different page each time, which is not shared.
                    path = f"/clusters?size={number + 1}&search=name!='{page}'"
                    statuses.add(api.get(path).status_code)
                    slowest = max(slowest, time.monotonic() - began)
                return statuses, slowest

            with ThreadPoolExecutor(16) as threads:
                asked = [threads.submit(reading, number) for number in range(16)]
                time.sleep(0.5)
                with frozen(files):
                    time.sleep(5)
                    over.set()
                    ends = [one.result() for one in asked]
            assert set().union(*(statuses for statuses, _ in ends)) == {200}
            assert max(slowest for _, slowest in ends) < 4
            before = served(serving)[second]
            deadline = time.monotonic() + 10
            while served(serving)[second] == before:
                assert time.monotonic() < deadline
                Api(serving.url).get("/clusters").raise_for_status()


def test_without_a_serving_standby_slow_lists_do_not_delay_other_reads(
    database: str, sql: psycopg.Connection, tmp_path: Path
) -> None:
    with Serving(
        *("--no-auth", "--database-url", database),
        *("--read-database-url", f"host={tmp_path} port=1 dbname=x user=x"),
    ) as serving:
        api = Api(serving.url)
        path = f"/clusters/{api.cluster('one')['id']}"
        with ThreadPoolExecutor(8) as threads, sql.transaction():
            sql.execute("LOCK TABLE node_pools")
            lists = [
                threads.submit(Api(serving.url).get, f"/nodepools?size={size}") for size in range(1, 9)
            ]
            time.sleep(0.3)
            for _ in range(10):
                began = time.monotonic()
                assert api.get(path).status_code == 200
                assert time.monotonic() - began < 1
        assert {one.result().status_code for one in lists} <= {200, 503}


def test_writes_that_exhaust_the_primarys_connections_do_not_stop_reads_from_standbys(
    nodes: tuple[Server, list[str]], serving: Serving
) -> None:
    (primary, folders), api = nodes, Api(serving.url)
    cluster = api.cluster("one")
    time.sleep(1.2)
    with psycopg.connect(primary.conninfo) as conn, ThreadPoolExecutor(20) as threads:
        conn.execute("LOCK TABLE clusters IN EXCLUSIVE MODE")
        writes = [
            threads.submit(Api(serving.url).post, "/clusters", json={"name": f"w{number}", "spec": {}})
            for number in range(20)
        ]
        before = served(serving)
        began = time.monotonic()
        while time.monotonic() - began < 3:
            assert api.get(f"/clusters/{cluster['id']}").status_code == 200
            assert api.get("/clusters").json()["total"] == 1
        conn.rollback()
        assert {one.result().status_code for one in writes} <= {201, 503}
        after = served(serving)
    assert sum(after[folder] - before.get(folder, 0) for folder in folders) > 20


def test_a_large_page_from_one_standby_has_no_holes_if_another_is_behind(
    nodes: tuple[Server, list[str]],
) -> None:
    primary, folders = nodes
    primary.ask("TRUNCATE clusters, node_pools, adapter_statuses, labels CASCADE")
    with Serving(
        *("--no-auth", "--database-url", primary.conninfo),
        *("--read-database-url", of(primary, folders), "--max-staleness=5"),
    ) as serving:
        api = Api(serving.url)
        time.sleep(0.5)
        paused(folders[1])
        try:
            for number in range(6):
                api.cluster(f"c{number}", spec={"much": "x" * 700_000})
            for _ in range(8):
                page = api.get("/clusters").json()
                assert page["size"] == len(page["items"]) == page["total"]
        finally:
            resume(folders[1])


@pytest.mark.skipif(not PROGRAM, reason="pgbouncer is not installed")
def test_clients_read_their_writes_through_a_pooler_that_balances_standbys(
    nodes: tuple[Server, list[str]],
) -> None:
    primary, folders = nodes
    primary.ask("TRUNCATE clusters, node_pools, adapter_statuses, labels CASCADE")
    reads = f"reads = host={','.join(folders)} port=5432 dbname=postgres user=postgres"
    read = "host=127.0.0.1 port={port} dbname=reads user=postgres target_session_attrs=any"
    with (
        pgbouncer(reads, "server_round_robin = 1", read, folders[0]) as (port, _),
        Serving(
            *("--no-auth", "--database-url", primary.conninfo),
            *("--read-database-url", read.format(port=port)),
        ) as serving,
    ):
        api = Api(serving.url)
        path = f"/clusters/{api.cluster('one')['id']}"
        time.sleep(0.5)
        paused(folders[1])
        try:
            for step in range(60):
                changed = api.patch(path, json={"spec": {"step": step}})
                after = {POSITION: changed.headers[POSITION]}
                assert api.get(path, headers=after).json()["spec"] == {"step": step}
        finally:
            resume(folders[1])
        assert served(serving).get(f"127.0.0.1:{port}", 0) > 0


def test_no_request_fails_when_a_standby_is_killed() -> None:
    with own_server() as primary, standby(primary, synchronous=False) as second:
        read = of(primary, [second])
        with Serving(
            *("--no-auth", "--database-url", primary.conninfo, "--read-database-url", read)
        ) as serving:
            path = f"/clusters/{Api(serving.url).cluster('one')['id']}"
            time.sleep(2.2)
            over = threading.Event()

            def reading() -> int:
                api, count = Api(serving.url), 0
                while not over.is_set():
                    assert api.get(path).status_code == 200
                    assert api.get("/clusters").json()["total"] == 1
                    count += 1
                return count

            with ThreadPoolExecutor(8) as threads:
                asked = [threads.submit(reading) for _ in range(8)]
                time.sleep(0.5)
                kill(Path(second) / "postgresql")
                time.sleep(1.5)
                over.set()
                assert all(one.result() for one in asked)
            assert served(serving)[second] and served(serving)["primary"]


# What PostgreSQL says depends on what the read keeps replay waiting for.
@pytest.mark.parametrize("state", ["serialization_failure", "deadlock_detected"])
def test_the_primary_answers_a_read_that_a_standby_ends_for_its_replay(
    nodes: tuple[Server, list[str]], state: str
) -> None:
    primary, folders = nodes
    primary.ask("TRUNCATE clusters, node_pools, adapter_statuses, labels CASCADE")
    # Only reads of the standbys are ended.
    primary.ask(
        f"""
        CREATE FUNCTION ends() RETURNS bool LANGUAGE plpgsql AS $$
        BEGIN RAISE {state} USING MESSAGE = 'canceling statement due to conflict with recovery'; END $$;
        CREATE ROLE reads LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reads;
        ALTER TABLE clusters ENABLE ROW LEVEL SECURITY; CREATE POLICY ends ON clusters USING (ends());
        """
    )
    try:
        with Serving(
            *("--no-auth", "--database-url", primary.conninfo, "--max-staleness=1"),
            *("--read-database-url", make_conninfo(of(primary, folders), user="reads")),
        ) as serving:
            api = Api(serving.url)
            path = f"/clusters/{api.cluster('one')['id']}"
            time.sleep(1.2)
            for _ in range(4):
                assert api.get(path).status_code == 200
                assert api.get("/clusters").json()["total"] == 1
            # The standbys still count as able, and serve other reads.
            states = requests.get(f"{serving.health}/readyz?verbose", timeout=5).json()["checks"]
            assert {states[f"standby {folder}:5432"]["state"] for folder in folders} == {"ok"}
            api.get("/nodepools").raise_for_status()
            assert served(serving).keys() & set(folders)
    finally:
        primary.ask(
            """
            DROP POLICY ends ON clusters; ALTER TABLE clusters DISABLE ROW LEVEL SECURITY;
            DROP FUNCTION ends; DROP OWNED BY reads; DROP ROLE reads;
            """
        )


def test_unreachable_standbys_do_not_prevent_or_delay_reads(database: str, tmp_path: Any) -> None:
    with Serving(
        *("--no-auth", "--database-url", database),
        *("--read-database-url", f"host={tmp_path},127.0.0.1 port=5432,1 dbname=x user=x"),
    ) as serving:
        api = Api(serving.url)
        cluster = api.cluster("one")
        began = time.monotonic()
        for _ in range(20):
            assert api.get(f"/clusters/{cluster['id']}").status_code == 200
            assert api.get("/clusters").json()["total"] == 1
        assert time.monotonic() - began < 5
        assert f"standby {tmp_path}:5432 does not serve" in serving.output
        # Each host has its own port.
        states = requests.get(f"{serving.health}/readyz?verbose", timeout=5).json()["checks"]
        assert {f"standby {tmp_path}:5432", "standby 127.0.0.1:1"} < {*states}


def test_a_malformed_position_is_refused_and_a_foreign_one_is_not_waited_for_long(
    nodes: tuple[Server, list[str]], serving: Serving
) -> None:
    api = Api(serving.url)
    api.cluster("one")
    for text in ("", "x", "0", "0/", "/0", "0/000000000", "0/0 ", "-1/0", "0/0,0/0"):
        refused = problem(api.get("/clusters", headers={POSITION: text}), 400)
        assert "Hyperfleet-Position" in str(refused["errors"])
    began = time.monotonic()
    assert api.get("/clusters", headers={POSITION: "FFFFFFFF/FFFFFFFF"}).json()["total"] == 1
    assert time.monotonic() - began < 2
    # That is what a client gets if the position is unknown, and no standby is asked in vain.
    began = time.monotonic()
    for _ in range(50):
        api.get("/clusters", headers={POSITION: NEVER}).raise_for_status()
    assert time.monotonic() - began < 4


def test_a_standby_is_ahead_only_if_it_was_so_before_the_primary_was_asked() -> None:
    [one] = standbys("host=127.0.0.1 port=1", 1, 1, 1, shared=False)
    # The primary has gone on since it reported its position.
    one.probed = (100, 2.0)
    one.compare(50, 1.0)
    assert not one.trouble
    one.compare(50, 3.0)
    assert one.trouble == STRAYED


def test_without_standbys_no_position_is_returned_and_one_sent_is_ignored(api: Api) -> None:
    created = api.post("/clusters", json={"name": "one", "spec": {}})
    assert POSITION not in created.headers
    assert api.get("/clusters", headers={POSITION: "FFFFFFFF/FFFFFFFF"}).json()["total"] == 1


def test_positions_are_ordered_beyond_four_gigabytes_of_wal() -> None:
    told = ["0/FFFFFFFF", "1/0", "1/B374D848", "16/3"]
    assert sorted(told, key=position) == told


def test_serve_refuses_standbys_without_a_primary() -> None:
    refused = run("serve", "--no-auth", "--read-database-url=postgresql://localhost/x")
    assert refused.returncode == 2
    assert "--read-database-url names standbys: name their primary with --database-url" in refused.stdout


def test_the_feed_of_changes_is_read_from_standbys_and_misses_nothing(
    nodes: tuple[Server, list[str]], serving: Serving
) -> None:
    _, folders = nodes
    api, over = Api(serving.url), threading.Event()
    watchers = [Watcher(serving.url, streams=streams) for streams in (False, True)]
    with ThreadPoolExecutor(6) as threads:
        watching = [threads.submit(watcher.follow, over) for watcher in watchers]
        before = served(serving)

        def write(number: int) -> None:
            own = Api(serving.url)
            for step in range(10):
                cluster = own.cluster(f"w{number}-{step}")
                assert own.report(cluster).status_code == 201
                if step % 3 == 0:
                    assert own.delete(f"{serving.url}{cluster['href']}").status_code == 202

        writing = [threads.submit(write, number) for number in range(4)]
        # One falls behind meanwhile; tokens that the other has given must not count as unknown there.
        paused(folders[0])
        time.sleep(0.5)
        resume(folders[0])
        for one in writing:
            one.result()
        time.sleep(1)
        after = served(serving)
        assert sum(after.get(name, 0) - before.get(name, 0) for name in after if name != "primary") > 0
        over.set()
        for watched in watching:
            watched.result()
    expected = news(fleet(api))
    for watcher in watchers:
        assert watcher.wrong == []
        assert watcher.listed == 1
        assert news(watcher.copy) == expected


def test_a_token_that_a_standby_gave_before_the_primary_knew_it_does_not_count_as_expired(
    nodes: tuple[Server, list[str]],
) -> None:
    primary, folders = nodes
    slow, quick = (Path(folder) / "postgresql" for folder in folders)
    with (
        Serving(
            *("--no-auth", "--database-url", primary.conninfo, "--statement-timeout=0"),
            *("--read-database-url", of(primary, folders[1:]), "--max-staleness=2"),
        ) as serving,
        ThreadPoolExecutor(1) as threads,
        waited_for(primary, NAMES[0]),
    ):
        api = Api(serving.url)
        link = api.get("/clusters").json()["changes"].removeprefix("/api/hyperfleet/v1")
        with frozen(slow):
            waits = threads.submit(Api(serving.url).cluster, "early")
            deadline = time.monotonic() + 10
            while not (page := api.get(link).json())["items"]:
                assert time.monotonic() < deadline
            assert page["items"][0]["name"] == "early"
            path = f"/changes?after={page['next']}"
            # Now the primary must respond.
            with frozen(quick):
                for more in ("", "&wait=3"):
                    began = time.monotonic()
                    answer = api.get(path + more)
                    assert answer.status_code == 200, answer.text
                    assert answer.json() == {"kind": "ChangeList", "items": [], "next": page["next"]}
                assert time.monotonic() - began > 2.9
                headers = {"Accept": "text/event-stream"}
                with api.get(path, headers=headers, stream=True, timeout=10) as stream:
                    lines = stream.iter_lines(chunk_size=None)
                    assert next(lines) == f"id: {page['next']}".encode()
                assert not waits.done()
        waits.result()
        api.cluster("next")
        deadline = time.monotonic() + 10
        while not (items := api.get(path).json()["items"]):
            assert time.monotonic() < deadline
        assert [item["name"] for item in items] == ["next"]


def test_a_token_that_a_standby_does_not_know_yet_is_answered_by_the_primary(
    nodes: tuple[Server, list[str]],
) -> None:
    primary, folders = nodes
    with Serving(
        *("--no-auth", "--database-url", primary.conninfo),
        *("--read-database-url", of(primary, folders), "--max-staleness=60"),
    ) as serving:
        api = Api(serving.url)
        # A standby that cannot serve yet would not be asked again for a second.
        while len(served(serving).keys() - {"primary"}) < len(folders):
            api.get("/clusters")
        for folder in folders:
            paused(folder)
        try:
            api.cluster("too-late")
            link = api.get("/clusters", headers={POSITION: "FFFFFFF/FFFFFFFF"}).json()["changes"]
            before = served(serving)
            answer = api.get(link.removeprefix("/api/hyperfleet/v1"))
            assert answer.status_code == 200
            assert answer.json()["items"] == []
            # A standby was asked first.
            after = served(serving)
            assert sum(after.values()) == sum(before.values()) + 2
            assert after["primary"] == before["primary"] + 1
        finally:
            for folder in folders:
                resume(folder)
