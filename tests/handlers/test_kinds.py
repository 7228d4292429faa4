"""Kinds that an operator declares are served, stored and deleted as clusters and node pools are."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import declared_kinds
import psycopg
import pytest
import requests
from alike import FINALIZED, answered, at, unique
from conftest import Api
from exchange import play
from kinds_world import CHANNEL, KINDS, PROVIDER, Json, World, below, refused, world
from process import Serving, run

pytestmark = pytest.mark.slow

__all__ = ["world"]


def test_a_declared_kind_has_paths_of_its_own(world: World) -> None:
    api, region = world.api, world.make("Region", name="europe", labels={"env": "test"})
    assert region["kind"] == "Region"
    assert region["href"].endswith(f"/v1/regions/{region['id']}")
    assert "owner_references" not in region
    zone = world.make("Zone", region, "a")
    assert zone["href"] == f"{region['href']}/zones/{zone['id']}"
    assert zone["owner_references"] == {"kind": "Region", "id": region["id"], "href": region["href"]}
    rack = world.make("Rack", zone, "r1")
    # A path names only the direct owner.
    assert rack["href"].endswith(f"/v1/zones/{zone['id']}/racks/{rack['id']}")
    assert rack["owner_references"] == {"kind": "Zone", "id": zone["id"], "href": zone["href"]}
    for path in (at(rack), f"/racks/{rack['id']}"):
        assert answered(api.get(path)) == rack
        assert answered(api.get(path + "/statuses"))["total"] == 0
    assert answered(api.get(f"/zones/{zone['id']}/racks"))["items"] == [rack]
    assert rack in answered(api.get("/racks"))["items"]
    # A resource below another owner, or of another kind, is not found.
    other = world.make("Zone", region)
    for path in (f"/zones/{other['id']}/racks/{rack['id']}", f"/zones/{rack['id']}", "/zones/x"):
        refused(api.get(path), 404)
    assert answered(api.get(f"/zones/{other['id']}/racks"))["total"] == 0
    refused(api.get(f"/zones/{region['id']}/racks"), 404)


def test_the_newest_clients_find_every_field_that_they_read_in_declared_kinds(world: World) -> None:
    play(world.api, Path(__file__).parents[1] / "exchanges" / "declared" / "newest.yaml")


def test_kinds_may_belong_to_clusters_and_node_pools(world: World) -> None:
    cluster = world.make("Cluster")
    addon = world.make("Addon", cluster)
    assert addon["owner_references"]["href"] == cluster["href"]
    disk = world.make("Disk", world.make("NodePool", cluster))
    assert world.api.get("/" + disk["owner_references"]["href"]).status_code == 200
    assert "/v1/nodepools/" in disk["href"]
    world.deleted(cluster)
    assert [world.status(one) for one in (cluster, addon, disk)] == [404, 404, 404]


def test_a_name_is_unique_within_its_kind_and_owner(world: World) -> None:
    api, one, other = world.api, world.make("Region"), world.make("Region")
    zone = world.make("Zone", one, "same")
    world.make("Zone", other, "same")
    world.make("Channel", name="same")
    for path, name in (("/regions", one["name"]), (at(one, "/zones"), "same")):
        said = refused(api.post(path, json={"name": name, "spec": {}}), 409)
        assert "is the name of another" in said
    assert zone["id"] in said


def test_names_must_have_a_length_that_the_kind_allows(world: World) -> None:
    for name, status in (("ab", 400), ("abc", 201), ("abcdefghij", 201), ("abcdefghijk", 400)):
        given = {"name": name, "spec": {}}
        assert world.api.post("/wif-configs", json=given).status_code == status, name
    assert "3 characters" in refused(world.api.post("/clusters", json={"name": "ab", "spec": {}}), 400)
    # A resource from a time with other limits can be changed.
    made = [world.make("WifConfig", name=name) for name in ("older-1", "older-2")]
    with psycopg.connect(world.database) as sql:
        for one, name in zip(made, ("o1", "older-than-that"), strict=True):
            sql.execute("UPDATE resources SET name = %s WHERE id = %s", (name, one["id"]))
    for one, name in zip(made, ("o1", "older-than-that"), strict=True):
        changed = answered(world.api.patch(at(one), json={"spec": {"n": 1}}))
        assert (changed["name"], changed["spec"]) == (name, {"n": 1})


def test_a_child_can_only_be_created_below_its_owner_and_the_refusal_names_the_path(
    world: World,
) -> None:
    for path, body in (("/versions", {}), ("/resources", {"kind": "Version"})):
        said = refused(world.api.post(path, json={"name": "v", "spec": {}, **body}), 400)
        assert "POST /api/hyperfleet/v1/channels/{channel_id}/versions" in said
    refused(world.api.post(f"/channels/{uuid4()}/versions", json={"name": "v", "spec": {}}), 404)


def test_an_owner_is_not_deleted_while_it_has_children_that_restrict_it(world: World) -> None:
    api, channel = world.api, world.make("Channel")
    versions = [world.make("Version", channel) for _ in range(2)]
    said = refused(api.delete(at(channel)), 409)
    assert "while 2 of its versions are left" in said
    assert "deleted_time" not in answered(api.get(at(channel)))
    # A child that is being deleted still counts while it waits for an adapter.
    assert api.report(versions[0], "dns").status_code == 201
    for version in versions:
        world.deleted(version)
    said = refused(api.delete(at(channel)), 409)
    assert "while 1 of its versions is left, 1 of them already being deleted" in said
    assert world.finalized(versions[0], "dns").status_code == 201
    world.deleted(channel)
    assert world.status(channel) == 404


def test_a_descendant_that_restricts_blocks_the_deletion_of_all_its_ancestors(world: World) -> None:
    cluster = world.make("Cluster")
    pool = world.make("NodePool", cluster)
    disk = world.make("Disk", pool)
    lease = world.make("Lease", disk)
    for one in (cluster, pool, disk):
        assert "1 of its leases" in refused(world.api.delete(at(one)), 409)
        assert "deleted_time" not in answered(world.api.get(at(one)))
    world.deleted(lease)
    world.deleted(cluster)
    assert [world.status(one) for one in (cluster, pool, disk)] == [404, 404, 404]


def test_a_deletion_cascades_down_three_levels_and_completes_from_the_bottom_up(world: World) -> None:
    api, region = world.api, world.make("Region")
    zones = [world.make("Zone", region) for _ in range(2)]
    racks = [world.make("Rack", zone) for zone in zones]
    assert api.report(racks[0], "smart").status_code == 201
    marked = world.deleted(region)
    assert marked["generation"] == 2
    # No adapter has to finalize the second rack; both zones wait for their adapter.
    assert [world.status(one) for one in (*racks, *zones, region)] == [200, 404, 200, 200, 200]
    for one in (racks[0], *zones):
        found = answered(api.get(at(one)))
        assert found["generation"] == 2
        assert found["deleted_by"] == marked["deleted_by"]
        refused(api.patch(at(one), json={"spec": {"a": 1}}), 409)
    said = refused(api.post(below(zones[0], "racks"), json={"name": "late", "spec": {}}), 409)
    assert said == "The zone is being deleted; no rack can be added to it."
    for zone in zones:
        assert world.finalized(zone, "zone").status_code == 201
    # The first zone waits for its rack, and the region for the zone.
    assert [world.status(one) for one in (zones[0], zones[1], region)] == [200, 404, 200]
    assert world.finalized(racks[0], "smart").status_code == 201
    assert [world.status(one) for one in (racks[0], zones[0], region)] == [404, 404, 404]


def test_force_delete_removes_all_descendants_and_records_each(world: World) -> None:
    api, region = world.api, world.make("Region", labels={"a": "b"})
    zone = world.make("Zone", region, labels={"a": "b"})
    rack = world.make("Rack", zone, labels={"a": "b"})
    assert api.report(rack, "smart").status_code == 201
    refused(api.post(at(region, "/force-delete"), json={"reason": "x"}), 409)
    world.deleted(region)
    assert api.post(at(region, "/force-delete"), json={"reason": "stuck"}).status_code == 204
    ids = [one["id"] for one in (region, zone, rack)]
    with psycopg.connect(world.database) as sql:
        kinds = sql.execute(
            "SELECT resource_type FROM audit WHERE resource_id = ANY(%s::uuid[]) "
            "AND action = 'force-delete' AND status IS NULL ORDER BY 1",
            [ids],
        ).fetchall()
        assert kinds == [("Rack",), ("Region",), ("Zone",)]
        for table in ("adapter_statuses", "labels"):
            statement = f"SELECT count(*) FROM {table} WHERE owner_id = ANY(%s::uuid[])"
            assert sql.execute(statement, [ids]).fetchone() == (0,)
    assert [world.status(one) for one in (region, zone, rack)] == [404, 404, 404]


def test_force_deleting_the_last_child_completes_the_deletion_of_its_owner(world: World) -> None:
    region = world.make("Region")
    zone = world.make("Zone", region)
    world.deleted(region)
    assert world.status(region) == 200
    waits = [
        one["reason"]
        for one in answered(world.api.get(at(region)))["status"]["conditions"]
        if one["type"] == "Reconciled"
    ]
    assert waits == ["ReconciledWaitingForChildren"]
    answer = world.api.post(at(zone, "/force-delete"), json={"reason": "stuck"})
    assert answer.status_code == 204
    assert world.status(region) == 404


def test_required_adapters_of_a_kind_decide_its_status(world: World) -> None:
    config = world.make("WifConfig")
    assert world.api.report(config, "dns").status_code == 201
    assert world.api.read(config)["status"]["phase"] == "NotReady"
    assert world.api.report(config, "wif").status_code == 201
    assert world.api.read(config)["status"]["phase"] == "Ready"
    # Its rules for mapped conditions apply, too.
    (heard,) = [one for one in world.api.read(config)["status"]["conditions"] if one["type"] == "Heard"]
    assert heard["reason"] == config["name"]
    discarded = world.api.report(config, "wif", observed_generation=9)
    assert discarded.status_code == 204
    assert discarded.headers["X-Discard-Reason"] == "generation-ahead-of-resource"


def test_lists_of_a_declared_kind_can_be_searched_ordered_projected_and_paged(world: World) -> None:
    api, region = world.api, world.make("Region")
    team = unique()
    made = [world.make("Zone", region, f"z{n}", labels={"team": team}, spec={"n": n}) for n in range(5)]

    def names(query: str, path: str = "/zones") -> list[str]:
        return [one["name"] for one in answered(api.get(path + "?" + query))["items"]]

    mine = f"search=labels.team='{team}'"
    assert names(f"{mine}&orderBy=name") == ["z0", "z1", "z2", "z3", "z4"]
    assert names(mine) == ["z4", "z3", "z2", "z1", "z0"]
    assert names(f"{mine} and spec.n > 2&order=name desc") == ["z4", "z3"]
    assert names(f"search=owner_id='{region['id']}' and kind='Zone'&orderBy=name")[:1] == ["z0"]
    assert names("search=status.phase='NotReady'&orderBy=name", at(region, "/zones")) == [
        one["name"] for one in made
    ]
    first = answered(api.get(f"/zones?{mine}&size=2&fields=name"))
    assert first["items"][0].keys() == {"id", "name"}
    assert first["total"] == 5
    second = answered(api.get("//" + first["next"].lstrip("/")))
    assert [one["name"] for one in second["items"]] == ["z2", "z1"]
    assert answered(api.get(at(region, "/zones?size=0")))["total"] == 5
    problem = refused(api.get("/zones?search=nam='x'"), 400)
    assert "did you mean name?" in problem


def test_entity_tags_work_for_resources_and_lists_of_a_declared_kind(world: World) -> None:
    api, region = world.api, world.make("Region")
    tag = api.get(at(region)).headers["ETag"]
    assert api.get(at(region), headers={"If-None-Match": tag}).status_code == 304
    changed = api.patch(at(region), json={"spec": {"a": 1}}, headers={"If-Match": tag})
    assert answered(changed)["generation"] == 2
    assert api.patch(at(region), json={"spec": {}}, headers={"If-Match": tag}).status_code == 412
    assert api.delete(at(region), headers={"If-Match": tag}).status_code == 412
    page = "/regions?search=name='" + region["name"] + "'"
    known = {"If-None-Match": api.get(page).headers["ETag"]}
    assert api.get(page, headers=known).status_code == 304
    answered(api.patch(at(region), json={"labels": {"x": "y"}}))
    assert api.get(page, headers=known).status_code == 200


def test_a_creation_with_an_idempotency_key_can_be_repeated_safely(world: World) -> None:
    for path in ("/regions", at(world.make("Region"), "/zones")):
        key = {"Idempotency-Key": unique()}
        body = {"name": unique(), "spec": {}}
        first = world.api.post(path, json=body, headers=key)
        again = world.api.post(path, json=body, headers=key)
        assert answered(again, 201) == answered(first, 201)
        assert again.headers["Location"] == first.headers["Location"]
        assert world.api.post(path, json={**body, "name": unique()}, headers=key).status_code == 422


def test_specs_are_validated_against_the_schema_that_the_kind_names(world: World) -> None:
    api, wrong = world.api, {"stable": "yes"}
    for path, more in (("/channels", {}), ("/resources", {"kind": "Channel"}), ("/mirrors", {})):
        said = refused(api.post(path, json={"name": unique(), "spec": wrong, **more}), 400)
        assert "spec.stable" in said
    channel = world.make("Channel", spec={"stable": True})
    for path in (at(channel), f"/resources/{channel['id']}"):
        assert "spec.stable" in refused(api.patch(path, json={"spec": wrong}), 400)
        merge = {"Content-Type": "application/merge-patch+json"}
        assert "spec.stable" in refused(api.patch(path, json={"spec": wrong}, headers=merge), 400)
        merged = answered(api.patch(path, json={"spec": {"n": 1}}, headers=merge))
        assert merged["spec"] == {"stable": True, "n": 1}
    # Other kinds are not validated against it.
    world.make("Region", spec=wrong)


def test_resources_of_all_kinds_are_listed_and_found_together(world: World) -> None:
    api, team = world.api, unique()
    cluster = world.make("Cluster", labels={"team": team})
    pool = world.make("NodePool", cluster, labels={"team": team})
    region = world.make("Region", labels={"team": team})
    zone = world.make("Zone", region, labels={"team": team})
    everything = f"/resources?search=labels.team='{team}'"
    listed = answered(api.get(everything))
    assert listed["kind"] == "ResourceList"
    assert listed["items"] == [zone, region, pool, cluster]
    for more, expected in (
        (" and kind='NodePool'", [pool]),
        (" and kind in ('Zone','Cluster')&orderBy=kind", [cluster, zone]),
        (f" and owner_id='{region['id']}'", [zone]),
        (" and owner_id is null&order=asc", [cluster, region]),
        ("&orderBy=created_time asc&size=3", [cluster, pool, region]),
    ):
        assert answered(api.get(everything + more))["items"] == expected, more
    # Those that have no owner come last, and the next links lead to them, too.
    for direction, expected in (
        ("asc", [pool, zone, cluster, region]),
        ("desc", [zone, pool, region, cluster]),
    ):
        found, link = [], f"{everything}&orderBy=owner_id {direction}&size=1"
        while link:
            page = answered(api.get(link))
            found += page["items"]
            link = "//" + page["next"].lstrip("/") if "next" in page else ""
        assert found == expected
    for one in (cluster, pool, region, zone):
        assert answered(api.get(f"/resources/{one['id']}")) == one
    for unknown in ("x", str(uuid4())):
        refused(api.get(f"/resources/{unknown}"), 404)


def test_a_parameter_selects_resources_of_one_kind(world: World) -> None:
    api, team = world.api, unique()
    cluster = world.make("Cluster", labels={"team": team})
    pools = [world.make("NodePool", cluster, labels={"team": team}) for _ in range(3)]
    zone = world.make("Zone", world.make("Region"), labels={"team": team})
    mine = f"/resources?search=labels.team='{team}' or name='{team}'"
    for kind, expected in (("NodePool", pools[::-1]), ("Zone", [zone]), ("Cluster", [cluster])):
        listed = answered(api.get(f"{mine}&kind={kind}"))
        assert listed["items"] == expected
        assert listed["total"] == len(expected)
    every = answered(api.get(f"{mine}&kind="))
    assert every["total"] == 5
    assert answered(api.get("//" + every["changes"].lstrip("/")))["items"] == []
    first = answered(api.get(f"{mine}&kind=NodePool&size=2"))
    second = answered(api.get("//" + first["next"].lstrip("/")))
    assert first["items"] + second["items"] == pools[::-1]
    world.make("Cluster", labels={"team": team})
    later = world.make("NodePool", cluster, labels={"team": team})
    changes = answered(api.get("//" + first["changes"].lstrip("/")))
    assert [one["resource"]["id"] for one in changes["items"]] == [later["id"]]
    assert "did you mean NodePool?" in refused(api.get("/resources?kind=nodepool"), 400)
    assert "kind: is not a kind of resource" in refused(api.get("/resources?kind=Nope"), 400)
    assert {one["kind"] for one in answered(api.get("/resources?kind=Zone"))["items"]} == {"Zone"}
    # Lists of a single kind have no such parameter.
    for path in ("/zones", "/clusters", at(cluster, "/nodepools")):
        refused(api.get(f"{path}?kind=Zone"), 400)


def test_the_total_of_all_kinds_is_their_sum(world: World) -> None:
    plurals = [*(one["plural"] for one in KINDS), "nodepools"]
    totals = [answered(world.api.get(f"/{plural}?size=0"))["total"] for plural in plurals]
    assert answered(world.api.get("/resources?size=0"))["total"] == sum(totals)


def test_a_resource_of_any_kind_can_be_changed_reported_on_and_deleted_by_its_id(world: World) -> None:
    api = world.api
    for kind in ("Cluster", "Region"):
        given = {"kind": kind, "name": unique(), "spec": {}}
        created = api.post("/resources", json=given)
        made = answered(created, 201)
        assert created.headers["Location"] == made["href"]
        path = f"/resources/{made['id']}"
        assert answered(api.patch(path, json={"spec": {"a": 1}}))["generation"] == 2
        report = {
            "adapter": "dns",
            "observed_generation": 2,
            "conditions": [{"type": "Available", "status": "True"}],
        }
        answered(api.put(path + "/statuses", json=report), 201)
        assert answered(api.get(path + "/statuses"))["total"] == 1
        assert answered(api.delete(path), 202)["generation"] == 3
        assert api.post(path + "/force-delete", json={"reason": "stuck"}).status_code == 204
        refused(api.get(path), 404)
    said = refused(api.post("/resources", json={"kind": "Regoin", "name": "x", "spec": {}}), 400)
    assert "Region" in said


def test_the_served_contract_has_every_kind(world: World) -> None:
    served = answered(world.api.get("//openapi"))
    schemas, paths = served["components"]["schemas"], served["paths"]
    base = "/api/hyperfleet/v1"
    for one in KINDS:
        assert f"{base}/{one['plural']}" in paths
        assert schemas[one["kind"]]["properties"]["kind"]["enum"] == [one["kind"]]
    assert schemas["Channel"]["properties"]["spec"] == {"$ref": "#/components/schemas/ChannelShape"}
    assert schemas["ChannelShape"]["properties"] == {"stable": {"type": "boolean"}}
    assert schemas["WifConfigCreateRequest"]["properties"]["name"]["maxLength"] == 10
    below = paths[f"{base}/channels/{{channel_id}}/versions"]
    assert below["post"]["operationId"] == "postVersionOfChannel"
    assert "x-kind" not in below["post"]
    operations = [
        one["operationId"] for item in paths.values() for one in item.values() if "operationId" in one
    ]
    assert len(operations) == len(set(operations))
    collections = answered(world.api.get(f"/{base}"))["collections"]
    assert {"kind": "ZoneList", "id": "zones", "href": f"{base}/zones"} in collections


def test_metrics_and_readiness_include_declared_kinds(world: World) -> None:
    world.make("WifConfig")
    metrics = requests.get(world.server.metrics, timeout=10).text
    assert 'resource_type="wifconfig"' in metrics
    ready = requests.get(world.server.health + "/readyz", timeout=10).json()
    assert ready["provider_schema"]["validated"] == ["Channel", "Mirror"]


def test_a_reload_of_the_provider_document_keeps_the_declared_kinds(world: World) -> None:
    world.server.process.send_signal(1)
    for _ in range(100):
        if world.server.output.count("is in force") > 1:
            break
        time.sleep(0.1)
    assert world.server.output.count("is in force") > 1
    served = answered(world.api.get("//openapi"))
    assert "ChannelShape" in served["components"]["schemas"]
    assert "/api/hyperfleet/v1/zones" in served["paths"]
    refused(world.api.post("/channels", json={"name": unique(), "spec": {"stable": 1}}), 400)


def test_concurrent_changes_at_three_levels_cause_no_deadlock_and_leave_nothing_behind(
    world: World,
) -> None:
    """Many clients create, change, report on, delete and force-delete owners and children at once."""
    regions = [world.make("Region") for _ in range(3)]
    zones = [world.make("Zone", one) for one in regions for _ in range(2)]
    racks = [world.make("Rack", one) for one in zones for _ in range(2)]
    all_ = [*regions, *zones, *racks]

    def work(seed: int) -> set[int]:
        # With a seed, the choices are the same each time; only the timing differs.
        chance, api, seen = random.Random(seed), Api(world.server.url), set()
        for _ in range(40):
            one = chance.choice(all_)
            generation = chance.choice((1, 2, 3))
            act = chance.randrange(12)
            if act < 3:
                response = api.patch(at(one), json={"spec": {"n": chance.randrange(99)}})
            elif act < 6:
                response = api.report(
                    one, chance.choice(("zone", "smart")), observed_generation=generation
                )
            elif act < 8:
                response = api.report(one, "zone", observed_generation=generation, conditions=FINALIZED)
            elif act < 10:
                plural = {"Region": "zones", "Zone": "racks"}.get(one["kind"])
                if plural is None:
                    continue
                response = api.post(below(one, plural), json={"name": unique(), "spec": {}})
            elif act < 11:
                response = api.delete(at(one))
            else:
                response = api.post(at(one, "/force-delete"), json={"reason": "test"})
            seen.add(response.status_code)
        return seen

    with ThreadPoolExecutor(8) as threads:
        seen = set[int]().union(*threads.map(work, range(8)))
    assert seen <= {200, 201, 202, 204, 404, 409}
    assert "deadlock" not in world.server.output
    with psycopg.connect(world.database) as sql:
        orphans = sql.execute(
            "SELECT count(*) FROM resources WHERE owner_id NOT IN (SELECT id FROM all_resources)"
        ).fetchone()
        assert orphans == (0,)
        # Nothing below a marked resource is unmarked.
        unmarked = sql.execute(
            "SELECT count(*) FROM resources AS child JOIN resources AS parent"
            " ON parent.id = child.owner_id"
            " WHERE child.deleted_time IS NULL AND parent.deleted_time IS NOT NULL"
        ).fetchone()
        assert unmarked == (0,)
        for table in ("labels", "adapter_statuses"):
            left = sql.execute(
                f"SELECT count(*) FROM {table} WHERE owner_id NOT IN (SELECT id FROM all_resources)"
            ).fetchone()
            assert left == (0,)
        counts = sql.execute(
            "SELECT substr(table_name, 11), sum(difference)::int FROM row_counts"
            " WHERE table_name ~ '^resources/' GROUP BY 1 HAVING sum(difference) <> 0 ORDER BY 1"
        ).fetchall()
        real = sql.execute("SELECT kind, count(*) FROM resources GROUP BY 1 ORDER BY 1").fetchall()
        assert counts == real


def test_refolding_completes_deletions_that_no_longer_wait_at_all_levels(
    world: World, tmp_path: Path
) -> None:
    region = world.make("Region")
    zone = world.make("Zone", region)
    world.deleted(region)
    assert [world.status(one) for one in (zone, region)] == [200, 200]
    without = [{**one, "required_adapters": []} for one in KINDS]
    config = declared_kinds.file(tmp_path, without)
    done = run("migrate", "--refold", f"--config={config}", f"--database-url={world.database}")
    assert done.returncode == 0, done.stdout
    assert [world.status(one) for one in (zone, region)] == [404, 404]


def test_stored_specs_of_a_kind_are_checked_against_a_new_document(world: World, tmp_path: Path) -> None:
    world.make("Channel", name="bold", spec={"stable": True})
    stricter = tmp_path / "stricter.yaml"
    stricter.write_text(PROVIDER.replace("boolean", "string"))
    config = declared_kinds.file(tmp_path, KINDS)
    arguments = [f"--config={config}", f"--against={world.database}", str(stricter)]
    done = run("schema", "check", *arguments)
    assert done.returncode == 1, done.stdout
    assert "bold" in done.stdout
    assert "spec.stable" in done.stdout


def test_node_pools_may_restrict_the_deletion_of_their_cluster(database: str, tmp_path: Path) -> None:
    given = {"kind": "NodePool", "plural": "nodepools", "on_parent_delete": "restrict"}
    config = declared_kinds.file(tmp_path, [given])
    with Serving("--no-auth", f"--config={config}", f"--database-url={database}") as server:
        api = Api(server.url)
        cluster = api.cluster()
        pool = api.node_pool(cluster)
        said = refused(api.delete(at(cluster)), 409)
        assert said == (
            "The cluster cannot be deleted while 1 of its nodepools is left. Delete its nodepools first."
        )
        answered(api.delete(at(pool)), 202)
        answered(api.delete(at(cluster)), 202)


def test_resources_that_lost_their_owner_while_undeclared_can_be_deleted_like_others(
    database: str, tmp_path: Path
) -> None:
    waits = {"on_parent_delete": "cascade", "required_adapters": ["dns"]}
    version = {"kind": "Version", "plural": "versions", **waits}
    image = {"kind": "Image", "plural": "images", "parent_kind": "Version", **waits}

    @contextmanager
    def serving(*given: Json) -> Iterator[Api]:
        config = declared_kinds.file(tmp_path, given)
        with Serving("--no-auth", f"--config={config}", f"--database-url={database}") as server:
            yield Api(server.url)

    def finalized(api: Api, resource: Json) -> int:
        path = f"/resources/{resource['id']}/statuses"
        report = {"adapter": "dns", "observed_generation": 2, "conditions": FINALIZED}
        return api.put(path, json=report, timeout=5).status_code

    with serving(CHANNEL, {**version, "parent_kind": "Channel"}, image) as api:
        channel = answered(api.post("/channels", json={"name": "c", "spec": {}}), 201)
        versions, images = [], []
        for name in ("one", "two"):
            given = {"name": name, "spec": {}}
            versions.append(answered(api.post(at(channel, "/versions"), json=given), 201))
            images.append(answered(api.post(f"/versions/{versions[-1]['id']}/images", json=given), 201))
    with serving(CHANNEL) as api:
        # Its versions are not declared here.
        answered(api.delete(at(channel)), 202)
        refused(api.get(at(channel)), 404)
    with serving({**version, "parent_kind": "Cluster"}, image) as api:
        for one in versions:
            assert answered(api.delete(f"/versions/{one['id']}"), 202)["generation"] == 2
            assert finalized(api, one) == 201
        # When its last image goes, by a report or by force, the version goes, too.
        assert finalized(api, images[0]) == 201
        forced = api.post(at(images[1], "/force-delete"), json={"reason": "its owner is gone"})
        assert forced.status_code == 204
        for one in (*versions, *images):
            refused(api.get(f"/resources/{one['id']}"), 404)
