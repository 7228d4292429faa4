"""Declarations of kinds: their schemas, fields that searches may not name, and mistakes."""

from pathlib import Path

import declared_kinds
import pytest
from alike import answered, unique
from conftest import Api
from helpers_contract import BASE, OPERATIONS
from kinds_world import CHANNEL, PROVIDER, Json, refused
from process import Serving, run, run_here

from hyperfleet.contract.schema import PREFIX, compile_schema
from hyperfleet.errors import ConfigurationError
from hyperfleet.settings.declared import kinds_of
from hyperfleet.settings.entities import Entity

pytestmark = pytest.mark.slow

WRONG: list[tuple[list[Json], str]] = [
    ([{"kind": "channel", "plural": "channels"}], "not a name that a kind can have"),
    ([{"kind": "Channel"}], "Channel lacks a plural"),
    ([{"kind": "Channel", "plural": "Channels"}], "Channel.plural must match"),
    ([{"kind": "Channel", "plural": "resources"}], "cannot be 'resources'"),
    ([{"kind": "Feed", "plural": "changes"}], "cannot be 'changes'"),
    ([{"kind": "Audit", "plural": "audit"}], "cannot be 'audit'"),
    # Below an owner, these are paths of the owner itself.
    *(
        ([{"kind": "Page", "plural": plural, "parent_kind": "Cluster"}], f"cannot be '{plural}'")
        for plural in ("history", "rollback", "transitions")
    ),
    ([{"kind": "Channel", "plural": "clusters"}], "Cluster and Channel have the same plural"),
    ([CHANNEL, {"kind": "Canal", "plural": "channels"}], "Channel and Canal have the same plural"),
    ([CHANNEL, {"kind": "CHANNEL", "plural": "canals"}], "differ only in capitalization"),
    ([CHANNEL, CHANNEL], "names the kind Channel twice"),
    ([{**CHANNEL, "parent_kind": "Sea"}], "Channel.parent_kind is Sea, which is not a known kind"),
    ([{**CHANNEL, "parent_kind": "Channel"}], "in a circle"),
    (
        [
            {**CHANNEL, "parent_kind": "Version"},
            {"kind": "Version", "plural": "versions", "parent_kind": "Channel"},
        ],
        "Channel and Version belong to each other in a circle",
    ),
    ([{**CHANNEL, "on_parent_delete": "cascade"}], "kind without a parent"),
    ([{**CHANNEL, "parent_kind": "Cluster", "on_parent_delete": "keep"}], "must match"),
    ([{**CHANNEL, "name_min_len": 9, "name_max_len": 3}], "so that no name is possible"),
    ([{**CHANNEL, "name_max_len": 64}], "must be a number from 0 to 63"),
    ([{**CHANNEL, "search_disallowed_fields": ["spce"]}], "no channel has. Did you mean spec?"),
    ([{**CHANNEL, "search_disallowed_fields": ["spec."]}], "a field that no channel has"),
    (
        [{**CHANNEL, "search_disallowed_fields": ["status.phse"]}],
        "no channel has. Did you mean status.phase?",
    ),
    ([{**CHANNEL, "search_disallowed_fields": ["name.first"]}], "a field that no channel has"),
    # Otherwise one of the two would be ignored without notice.
    ("entities: []\nentities: []\n", "the key entities twice: see line 2, column 1"),
    ("entities:\n- {kind: A, plural: as, plural: bs}\n", "the key plural twice: see line 2, column 25"),
    ([{**CHANNEL, "colour": "red"}], "colour is not supported"),
    ([{**CHANNEL, "require_spec_schema": True}], "--openapi-schema-path names no document"),
    ([{"kind": "Cluster", "plural": "groups"}], "Cluster.plural is 'clusters' and cannot be changed"),
    ([{"kind": "NodePool", "parent_kind": "Channel"}, CHANNEL], "cannot be changed"),
    ([{"kind": "Error", "plural": "slips"}], "cannot be called Error"),
    # Otherwise an access review that allows reading such resources would allow reading the audit log.
    ([{"kind": "Audit", "plural": "audits"}], "cannot be called Audit"),
    ([{**CHANNEL, "spec_schema_name": "Labels"}], "Labels already stands for something else"),
    ([{"kind": "Past", "plural": "cluster-history"}], "make the operation getClusterHistory"),
]


def test_kinds_may_share_a_schema_that_no_document_defines(database: str, tmp_path: Path) -> None:
    shared = {"spec_schema_name": "SharedSpec"}
    config = declared_kinds.file(
        tmp_path, [{**CHANNEL, **shared}, {"kind": "Mirror", "plural": "mirrors", **shared}]
    )
    with Serving("--no-auth", f"--config={config}", f"--database-url={database}") as server:
        for plural in ("channels", "mirrors"):
            made = Api(server.url).post(f"/{plural}", json={"name": unique(), "spec": {"any": 1}})
            assert answered(made, 201)["spec"] == {"any": 1}


def test_a_kind_that_requires_a_schema_is_not_served_where_schemas_may_be_missing(
    database: str, tmp_path: Path
) -> None:
    config = declared_kinds.file(tmp_path, [{**CHANNEL, "require_spec_schema": True}])
    optional = ("--openapi-schema-path=none.yaml", "--schema-required=false")
    ended = run("serve", "--no-auth", f"--config={config}", f"--database-url={database}", *optional)
    said = "entities: Channel.require_spec_schema is true, but --schema-required is false."
    assert (ended.returncode, said in ended.stdout) == (1, True), ended.stdout


def test_the_contract_has_the_schemas_that_clusters_and_node_pools_require(
    database: str, tmp_path: Path
) -> None:
    # Settings written for the original, whose document is its contract unless another one is named.
    required = {"require_spec_schema": True}
    native = [
        {"kind": "Cluster", "plural": "clusters", "spec_schema_name": "ClusterSpec", **required},
        {
            **{"kind": "NodePool", "plural": "nodepools", "parent_kind": "Cluster"},
            **{"spec_schema_name": "NodePoolSpec", "on_parent_delete": "cascade", **required},
        },
    ]
    config = declared_kinds.file(tmp_path, [*native, {**CHANNEL, "spec_schema_name": "ChannelSpec"}])
    with Serving("--no-auth", f"--config={config}", f"--database-url={database}") as server:
        api = Api(server.url)
        made = answered(api.post("/clusters", json={"name": unique(), "spec": {"any": 1}}), 201)
        pools = f"/clusters/{made['id']}/nodepools"
        assert answered(api.post(pools, json={"name": unique(), "spec": {}}), 201)["generation"] == 1


def test_no_search_can_name_a_field_that_the_operator_disallows(database: str, tmp_path: Path) -> None:
    barred = {"search_disallowed_fields": ["spec", "labels.of.owner", "status.conditions", "owner_id"]}
    version = {"kind": "Version", "plural": "versions", "parent_kind": "Channel", **barred}
    native = {"kind": "Cluster", "plural": "clusters", "search_disallowed_fields": []}
    config = declared_kinds.file(tmp_path, [CHANNEL, version, native])
    with Serving("--no-auth", f"--config={config}", f"--database-url={database}") as server:
        api = Api(server.url)
        for named in (
            *("spec.a=1", "spec.a.b=1", "labels.of.owner='x'", "labels.\"of.owner\"='x'"),
            *("status.conditions.Ready='True'", "not (status.conditions.A.reason is null)"),
            *("name='a' or owner_id='x'", "owner_references.id='x'"),
        ):
            for path in ("/versions", "/resources", "/changes"):
                said = refused(api.get(path, params={"search": named}), 400)
                assert "does not allow searches by" in said, (path, named)
            if "owner" not in named or "labels" in named:
                assert answered(api.get("/clusters", params={"search": named}))["total"] == 0
        for named in ("labels.of='x'", "labels.of.owners='x'", "status.phase='Ready'", "name='spec'"):
            assert answered(api.get("/versions", params={"search": named}))["total"] == 0
        assert answered(api.get("/versions?orderBy=labels.of.owner&fields=spec"))["total"] == 0


def test_a_field_that_searches_may_not_name_is_refused_under_each_of_its_names(
    database: str, tmp_path: Path
) -> None:
    barred = [
        "status.conditions.Ready.status",
        "status.conditions.LastKnownReconciled",
        "owner_references",
    ]
    barred.append("status.conditions.Synced.status")
    version = {"kind": "Version", "plural": "versions", "parent_kind": "Channel"}
    config = declared_kinds.file(tmp_path, [CHANNEL, {**version, "search_disallowed_fields": barred}])
    with Serving("--no-auth", f"--config={config}", f"--database-url={database}") as server:
        api = Api(server.url)
        for named in (
            *("status.conditions.Ready='True'", "status.conditions.'Reconciled'.status='True'"),
            *("status.conditions.Available.reason='x'", "status.conditions.Synced is null"),
            *("owner_id='x'", "owner_references.\"id\"='x'"),
        ):
            said = refused(api.get("/versions", params={"search": named}), 400)
            assert "does not allow searches by" in said, named
        for named in ("status.conditions.Ready.reason='x'", "status.conditions.Synced.reason='x'"):
            assert answered(api.get("/versions", params={"search": named}))["total"] == 0


def test_a_validator_contains_only_the_schemas_that_its_own_refers_to() -> None:
    # Each kind adds schemas and validators, so the start once took quadratic time.
    named = {
        "Channel": {"properties": {"spec": {"$ref": PREFIX + "Shape"}}},
        "Shape": {"properties": {"next": {"$ref": PREFIX + "Shape"}, "n": {"$ref": PREFIX + "Number"}}},
        "Number": {"type": "integer"},
        "Other": {"properties": {"spec": {"$ref": PREFIX + "Channel"}}},
    }
    compiled, text = compile_schema(named["Channel"], named)
    assert text["components"]["schemas"].keys() == {"Shape", "Number"}
    assert compiled.is_valid({"spec": {"next": {"n": 1}}})
    assert not compiled.is_valid({"spec": {"next": {"n": "x"}}})


@pytest.mark.parametrize(("given", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_mistake_in_a_declared_kind_fails_the_check_with_an_explanation(
    tmp_path: Path, given: list[Json] | str, says: str
) -> None:
    config = declared_kinds.file(tmp_path, given)
    if isinstance(given, str):
        Path(config).write_text(given)
    data = f"--data-dir={tmp_path / 'data'}"
    done = run_here("config", "--check", "--no-auth", f"--config={config}", data)
    assert done.returncode != 0
    assert says in " ".join(done.stdout.split()), done.stdout
    assert "Traceback" not in done.stdout


def test_kinds_have_the_same_order_whatever_the_order_of_the_list() -> None:
    given = [
        Entity("Zone", "zones", "Area"),
        Entity("Area", "areas"),
        Entity("Node", "nodes", "NodePool"),
        Entity("Able", "ables", "Area"),
    ]
    for entities in (given, given[::-1]):
        names = [kind.name for kind in kinds_of(entities)]
        assert names == ["Cluster", "Area", "NodePool", "Able", "Zone", "Node"]


def test_no_kind_can_have_a_plural_that_occurs_in_the_paths_of_the_contract() -> None:
    paths = [one.path for one in OPERATIONS.values() if one.path.startswith(f"{BASE}/")]
    parts = {part for path in paths for part in path.removeprefix(f"{BASE}/").split("/")}
    words = {part for part in parts if not part.startswith("{")}
    assert {"history", "statuses", "audit"} < words
    for word in words:
        entity = Entity("Channel", word, parent_kind="Cluster")
        with pytest.raises(ConfigurationError, match=f"'{word}'"):
            kinds_of([entity])


def test_a_schema_that_a_kind_names_must_be_in_the_document(tmp_path: Path) -> None:
    (tmp_path / "specs.yaml").write_text(PROVIDER)
    config = declared_kinds.file(tmp_path, [{**CHANNEL, "spec_schema_name": "Shape"}])
    done = run(
        *("config", "--check", "--no-auth", f"--config={config}"),
        f"--openapi-schema-path={tmp_path / 'specs.yaml'}",
    )
    assert done.returncode != 0
    assert "Shape" in done.stdout
    assert "the kind Channel is declared with it" in " ".join(done.stdout.split())
