"""Resources that others refer to: they outlive their referrers, and no reference ever dangles."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import declared_kinds
import psycopg
import pytest
from alike import answered, at, unique
from conftest import Api
from process import Serving, run
from reference_world import KINDS, World, detail_of, faults, ids, shown, world

pytestmark = pytest.mark.slow

__all__ = ["world"]

Json = dict[str, Any]


def test_deleting_a_referenced_resource_is_refused_naming_its_referrers(world: World) -> None:
    api, wif = world.api, world.make("WifConfig")
    clusters = [world.make("Cluster", references={"wif_config": ids(wif)}) for _ in range(4)]
    detail = detail_of(api.delete(at(wif)), 409)
    assert (
        sum(f"the cluster {one['name']} ({one['id']}) refers to it" in detail for one in clusters) == 3
    )
    assert "as wif_config, and there are others" in detail
    assert "deleted_time" not in world.read(wif)
    answered(world.patch(clusters[3], {"references": {}}))
    detail = detail_of(api.delete(at(wif)), 409)
    assert all(f"{one['name']} ({one['id']}) refers to it" in detail for one in clusters[:3])
    assert "others" not in detail
    for one in clusters[1:3]:
        answered(world.patch(one, {"references": {}}))
    detail = detail_of(api.delete(f"/resources/{wif['id']}"), 409)
    assert f"{clusters[0]['name']} ({clusters[0]['id']}) refers to it as wif_config." in detail
    answered(world.patch(clusters[0], {"references": {}}))
    world.delete(wif)
    assert world.status(wif) == 404


def test_a_resource_referenced_by_a_marked_one_is_removed_after_it(world: World) -> None:
    wif = world.make("WifConfig")
    cluster = world.make("Cluster", references={"wif_config": ids(wif)})
    assert world.api.report(cluster, "dns").status_code == 201
    world.delete(cluster)
    marked = world.delete(wif)
    assert marked["deleted_time"]
    assert world.read(wif)["generation"] == 2
    # No adapter must finalize it, but the cluster that refers to it still exists and may need it.
    assert world.delete(wif) == world.read(wif)
    messages = [one["message"] for one in world.read(wif)["status"]["conditions"]]
    assert "Resources still belonging or referring to it: 1." in messages
    assert world.status(wif) == 200
    [(field, message)] = faults(
        world.api.post(
            "/clusters",
            json={"name": unique(), "spec": {}, "references": {"wif_config": ids(wif)}},
        )
    )
    assert (field, message) == (
        "references.wif_config[0].id",
        "names a wif config that is being deleted",
    )
    assert world.found("/clusters", ref_target_id=wif["id"]) == {cluster["id"]}
    world.finalize(cluster, "dns")
    assert [world.status(one) for one in (cluster, wif)] == [404, 404]


def test_another_delete_completes_a_removal_that_a_dead_process_left_undone(world: World) -> None:
    wif = world.make("WifConfig")
    cluster = world.make("Cluster", references={"wif_config": ids(wif)})
    assert world.api.report(cluster, "dns").status_code == 201
    world.delete(cluster)
    world.delete(wif)
    with psycopg.connect(world.database) as conn:
        # What a process leaves that dies right after committing the cluster's removal.
        conn.execute("DELETE FROM clusters WHERE id = %s", [cluster["id"]])
    assert world.status(wif) == 200
    world.delete(wif)
    assert world.status(wif) == 404


def test_another_delete_completes_the_removal_of_an_owner_that_was_left_undone(world: World) -> None:
    region = world.make("Region")
    target = world.make("Zone", region)
    source = world.make("Zone", world.make("Region"), references={"backup": ids(target)})
    assert world.api.report(source, "zone").status_code == 201
    world.delete(source)
    world.delete(region)
    world.finalize(target, "zone")
    assert [world.status(one) for one in (target, region)] == [200, 200]
    with psycopg.connect(world.database) as conn:
        # As a process leaves it that dies after it has removed the source.
        conn.execute("DELETE FROM resource_references WHERE source_id = %s", [source["id"]])
        conn.execute("DELETE FROM resources WHERE id = %s", [source["id"]])
    world.delete(target)
    assert [world.status(one) for one in (target, region)] == [404, 404]


def test_a_removal_does_not_wait_for_another_one_of_its_target(world: World) -> None:
    wif = world.make("WifConfig")
    cluster = world.make("Cluster", references={"wif_config": ids(wif)})
    world.delete(cluster)
    world.delete(wif)
    with psycopg.connect(world.database) as conn:
        conn.execute("SELECT FROM resource_references WHERE source_id = %s FOR UPDATE", [cluster["id"]])
        began = time.monotonic()
        world.finalize(cluster, "dns")
        assert time.monotonic() - began < 3
        assert world.status(cluster) == 404


def test_a_chain_of_references_is_removed_when_its_first_referrer_is(world: World) -> None:
    last = world.make("Cluster")
    chain = [last]
    for _ in range(3):
        chain.append(world.make("Cluster", references={"peers": ids(chain[-1])}))
    for one in chain:
        assert world.api.report(one, "dns").status_code == 201
    for one in chain[1:]:
        assert world.api.delete(at(one)).status_code == (202 if one is chain[-1] else 409)
    for one in (*chain[-2:0:-1], last):
        world.delete(one)
    # Those that are referred to finish first, and wait.
    for one in chain[:-1]:
        world.finalize(one, "dns")
    assert [world.status(one) for one in chain] == [200] * 4
    world.finalize(chain[-1], "dns")
    assert [world.status(one) for one in chain] == [404] * 4


def test_force_delete_removes_a_resource_and_all_references_to_it(world: World) -> None:
    api, wif, peer = world.api, world.make("WifConfig"), world.make("Cluster")
    removed, last = world.make("Cluster"), world.make("Cluster")
    peers = ids(last, removed, peer)
    cluster = world.make("Cluster", references={"wif_config": ids(wif), "peers": peers})
    assert api.report(cluster, "dns").status_code == 201
    detail_of(api.post(at(wif, "/force-delete"), json={"reason": "x"}), 409)
    world.delete(cluster)
    tag = api.get(at(cluster)).headers["ETag"]
    world.delete(wif)
    assert api.post(at(wif, "/force-delete"), json={"reason": "x"}).status_code == 204
    assert world.status(wif) == 404
    left = api.get(at(cluster), headers={"If-None-Match": tag})
    assert answered(left)["references"] == {"peers": shown(last, removed, peer)}
    assert world.found("/clusters", ref_target_id=wif["id"]) == set()
    # The others keep their order.
    world.delete(removed)
    assert api.post(at(removed, "/force-delete"), json={"reason": "x"}).status_code == 204
    assert world.read(cluster)["references"] == {"peers": shown(last, peer)}
    # A forced removal of the referrer frees what it refers to.
    world.delete(peer)
    world.finalize(peer, "dns")
    assert world.status(peer) == 200
    assert api.post(at(cluster, "/force-delete"), json={"reason": "x"}).status_code == 204
    assert [world.status(one) for one in (cluster, peer)] == [404, 404]
    with psycopg.connect(world.database) as conn:
        query = "SELECT document FROM audit WHERE resource_id = %s AND action = 'force-delete'"
        [(document,)] = conn.execute(query, [cluster["id"]]).fetchall()
        assert f'"id": "{peer["id"]}"' in document


def test_a_reference_to_a_child_keeps_its_parent_from_being_deleted(world: World) -> None:
    api, region, other = world.api, world.make("Region"), world.make("Region")
    zone = world.make("Zone", region)
    outside = world.make("Zone", other, references={"backup": ids(zone)})
    detail = detail_of(api.delete(at(region)), 409)
    assert f"the zone {outside['name']} ({outside['id']}) refers to its zone {zone['id']}" in detail
    assert "deleted_time" not in world.read(zone)
    answered(world.patch(outside, {"references": {}}))
    world.delete(region)
    world.finalize(zone, "zone")
    assert [world.status(one) for one in (zone, region)] == [404, 404]


def test_references_between_resources_deleted_together_do_not_block_them(world: World) -> None:
    api, region = world.api, world.make("Region")
    one = world.make("Zone", region, references={"home": ids(region)})
    two = world.make("Zone", region, references={"backup": ids(one)})
    answered(world.patch(one, {"references": {"backup": ids(two), "home": ids(region)}}))
    for zone in (one, two):
        detail_of(api.delete(at(zone)), 409)
        assert api.report(zone, "zone").status_code == 201
    generation = world.read(one)["generation"] + 1
    world.delete(region)
    world.finalize(one, "zone", generation)
    assert [world.status(each) for each in (one, two, region)] == [404, 200, 200]
    world.finalize(two, "zone")
    assert [world.status(each) for each in (two, region)] == [404, 404]
    with psycopg.connect(world.database) as conn:
        rows = conn.execute(
            "SELECT count(*) FROM resource_references WHERE %s IN (source_id, target_id)", [one["id"]]
        ).fetchone()
    assert rows == (0,)


def test_a_resource_is_not_deleted_while_a_reference_to_it_is_being_stored(world: World) -> None:
    image, cluster = world.make("Image"), world.make("Cluster")
    body = {"name": unique(), "spec": {}, "references": {"image": ids(image)}}
    assert world.api.report(image, "registry").status_code == 201
    with psycopg.connect(world.database) as conn, ThreadPoolExecutor(2) as threads:

        def waits(kinds: list[str]) -> bool:
            query = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = ANY(%s)"
            return conn.execute(query, [kinds]).fetchone() is not None

        # The creation has read its target, but not stored the reference.
        conn.execute("LOCK TABLE resource_references IN SHARE MODE")
        creation = threads.submit(
            Api(world.server.url).post, f"/clusters/{cluster['id']}/nodepools", json=body
        )
        while not waits(["relation"]):
            assert not creation.done()
            time.sleep(0.01)
        deletion = threads.submit(Api(world.server.url).delete, at(image))
        while not deletion.done() and not waits(["transactionid", "tuple"]):
            time.sleep(0.01)
        conn.rollback()
        pool = answered(creation.result(), 201)
        assert f"the node pool {pool['name']} ({pool['id']}) refers to it" in detail_of(
            deletion.result(), 409
        )


def test_a_resource_deleted_before_the_target_of_its_reference_keeps_that(world: World) -> None:
    region = world.make("Region")
    target = world.make("Zone", region)
    source = world.make("Zone", region, references={"backup": ids(target)})
    for zone in (source, target):
        assert world.api.report(zone, "zone").status_code == 201
    world.delete(source)
    # Marks the target, but not the source, which may still need it.
    world.delete(region)
    world.finalize(target, "zone")
    assert [world.status(one) for one in (source, target, region)] == [200, 200, 200]
    world.finalize(source, "zone")
    assert [world.status(one) for one in (source, target, region)] == [404, 404, 404]


def test_refolding_removes_what_a_resource_that_it_removes_has_referred_to(
    world: World, tmp_path: Path
) -> None:
    target = world.make("Cluster")
    source = world.make("Cluster", references={"peers": ids(target)})
    for one in (source, target):
        world.delete(one)
    world.finalize(target, "dns")
    assert [world.status(one) for one in (source, target)] == [200, 200]
    without = [{**one, "required_adapters": []} for one in KINDS]
    config = declared_kinds.file(tmp_path, without)
    done = run("migrate", "--refold", f"--config={config}", f"--database-url={world.database}")
    assert done.returncode == 0, done.stdout
    assert [world.status(one) for one in (source, target)] == [404, 404]


def test_a_resource_may_refer_to_itself(world: World) -> None:
    zone = world.make("Zone", world.make("Region"))
    changed = answered(world.patch(zone, {"references": {"backup": ids(zone)}}))
    assert changed["references"] == {"backup": shown(zone)}
    world.delete(zone)
    world.finalize(zone, "zone", 3)
    assert world.status(zone) == 404


def test_concurrent_writes_leave_no_dangling_reference_and_cause_no_deadlock(world: World) -> None:
    """After concurrent creations, patches and deletions, all references lead to what exists."""
    region = world.make("Region")
    zones = [world.make("Zone", region) for _ in range(6)]
    wifs = [world.make("WifConfig") for _ in range(6)]
    strange: list[str] = []

    def work(seed: int) -> None:
        chance, api = random.Random(seed), Api(world.server.url)
        for _ in range(40):
            zone, wif = chance.choice(zones), chance.choice(wifs)
            others = ids(*chance.sample(zones, 2))
            match chance.randrange(7):
                case 0:
                    body = {"name": unique(), "spec": {}, "references": {"wif_config": ids(wif)}}
                    got = api.post("/clusters", json=body)
                case 1:
                    body = {"name": unique(), "spec": {}, "references": {"backup": others}}
                    got = api.post(at(region, "/zones"), json=body)
                    if got.status_code == 201 and chance.random() < 0.5:
                        zones[chance.randrange(len(zones))] = got.json()
                case 2 | 3:
                    got = api.patch(at(zone), json={"references": {"backup": others}})
                case 4:
                    got = api.delete(at(zone))
                    if got.status_code == 202 and chance.random() < 0.5:
                        api.post(at(zone, "/force-delete"), json={"reason": "x"})
                case 5:
                    got = api.delete(at(wif))
                    if got.status_code == 202:
                        made = api.post("/wif-configs", json={"name": unique(), "spec": {}})
                        wifs[wifs.index(wif)] = made.json() if wif in wifs else wif
                case _:
                    got = api.report(zone, "zone")
            if got.status_code >= 500:
                strange.append(got.text)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert not strange
    with psycopg.connect(world.database) as conn:
        dangling = conn.execute(
            "SELECT source.id, one.value FROM all_resources AS source, jsonb_each(source.refs) AS of, "
            "jsonb_array_elements(of.value) AS one WHERE NOT EXISTS ("
            "SELECT FROM all_resources AS target WHERE target.id = (one.value ->> 'id')::uuid)"
        ).fetchall()
        differing = conn.execute(
            "SELECT count(*) FROM all_resources AS source, jsonb_each(source.refs) AS of, "
            "jsonb_array_elements(of.value) AS one WHERE NOT EXISTS ("
            "SELECT FROM resource_references AS row WHERE row.source_id = source.id "
            "AND row.ref_type = of.key AND row.target_id = (one.value ->> 'id')::uuid)"
        ).fetchone()
        marked = conn.execute(
            "SELECT count(*) FROM resource_references AS r "
            "JOIN all_resources AS t ON t.id = r.target_id AND t.deleted_time IS NOT NULL "
            "JOIN all_resources AS s ON s.id = r.source_id AND s.deleted_time IS NULL"
        ).fetchone()
    assert dangling == []
    assert differing == (0,)
    assert marked == (0,)
    assert "deadlock" not in world.server.output


def test_replicas_that_list_the_kinds_in_different_orders_do_not_deadlock(
    database: str, sql: psycopg.Connection, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As in a rollout: each changes a resource that refers to the one that the other changes."""
    given = [
        {"kind": kind, "plural": plural, "references": [{"ref_type": "to", "target_kind": other}]}
        for kind, plural, other in (("Left", "lefts", "Right"), ("Right", "rights", "Left"))
    ]
    with ExitStack() as stack:
        apis = []
        for some in (given, given[::-1]):
            file = declared_kinds.file(tmp_path_factory.mktemp("list"), some)
            options = ("--no-auth", f"--config={file}", f"--database-url={database}")
            apis.append(Api(stack.enter_context(Serving(*options)).url))
        pair = [
            answered(apis[0].post(f"/{one['plural']}", json={"name": "one", "spec": {}}), 201)
            for one in given
        ]
        threads = stack.enter_context(ThreadPoolExecutor(2))

        def change(which: int) -> int:
            body = {"references": {"to": ids(pair[1 - which])}}
            return apis[which].patch(at(pair[which]), json=body).status_code

        for first in (0, 1):
            with sql.transaction():
                # The first waits for its own row, the second for the one that it refers to.
                sql.execute("SELECT FROM resources WHERE id = %s FOR UPDATE", [pair[first]["id"]])
                changes = []
                for number, which in enumerate((first, 1 - first), 1):
                    changes.append(threads.submit(change, which))
                    wait_for_waiting(sql, number)
            assert [one.result(30) for one in changes] == [200, 200]
            for which in (0, 1):
                answered(apis[which].patch(at(pair[which]), json={"references": {}}))


def wait_for_waiting(sql: psycopg.Connection, number: int) -> None:
    """Returns once this number of sessions wait for a lock in this database."""
    end = time.monotonic() + 10
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    while sql.execute(query).fetchone() != (number,):
        assert time.monotonic() < end
        # Within a transaction, the view does not change by itself.
        sql.execute("SELECT pg_stat_clear_snapshot()")
        time.sleep(0.01)
