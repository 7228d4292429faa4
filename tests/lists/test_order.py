"""The order of a list, and the members that it shows."""

from typing import Any

import psycopg
import pytest
from conftest import Api
from helpers_contract import BASE, check
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from hyperfleet.lists.order import OrderError, order_by
from hyperfleet.lists.projection import ProjectionError, apply, project

ROWS: list[dict[str, Any]] = [
    {"name": "a", "created": 3, "generation": 1, "labels": {"zone": "2", "tier": "b"}, "phase": "Ready"},
    {"name": "b", "created": 1, "generation": 1, "labels": {"zone": "10"}, "phase": "Failed"},
    {"name": "c-b", "created": 2, "generation": 3, "labels": {}, "phase": "Ready"},
    {"name": "ca", "created": 2, "generation": 2, "labels": {"zone": "2", "tier": "a"}},
]


@pytest.fixture
def rows(sql: psycopg.Connection) -> psycopg.Connection:
    for number, row in enumerate(ROWS):
        sql.execute(
            "INSERT INTO clusters (id, name, generation, labels, spec, status, created_time,"
            " updated_time, created_by, updated_by)"
            " VALUES (%s, %s, %s, %s, '{}', %s, %s, '2027-01-01T00:00:00Z', '', '')",
            [
                f"01950000-0000-7000-8000-00000000000{number}",
                *(row["name"], row["generation"], Jsonb(row["labels"])),
                Jsonb({"phase": row["phase"]} if "phase" in row else {}),
                f"2026-01-0{row['created']}T00:00:00Z",
            ],
        )
    return sql


# orderBy, order, and the names in the expected order.
ORDERS = [
    (None, None, "a ca c-b b"),
    ("", "", "a ca c-b b"),
    (None, "asc", "b c-b ca a"),
    ("asc", None, "b c-b ca a"),
    (None, "DESC", "a ca c-b b"),
    ("created_time", None, "b c-b ca a"),
    ("created_time", "desc", "a ca c-b b"),
    ("created_time asc", "desc", "b c-b ca a"),
    # The names in the contract of November 2025, and its default.
    ("created_at", "desc", "a ca c-b b"),
    ("created_at,created_time desc", None, "b c-b ca a"),
    ("updated_at,name desc", None, "ca c-b b a"),
    (None, "created_time asc", "b c-b ca a"),
    ("name", None, "a b c-b ca"),
    ("name desc", None, "ca c-b b a"),
    ("name DESC , created_time", None, "ca c-b b a"),
    ("generation", None, "a b ca c-b"),
    ("generation desc", None, "c-b ca b a"),
    ("generation desc,name", None, "c-b ca a b"),
    ("generation,name", "desc", "c-b ca b a"),
    ("generation,id desc,name", None, "b a ca c-b"),
    ("kind", None, "a b c-b ca"),
    # Rows without a value come last.
    ("labels.zone", None, "b a ca c-b"),
    ("labels.zone desc", None, "ca a b c-b"),
    ("labels.zone,labels.tier", None, "b ca a c-b"),
    ('labels."zone" , labels.tier desc', None, "b a ca c-b"),
    ("status.phase,name desc", None, "b c-b a ca"),
    ("status.phase desc,name", None, "a c-b b ca"),
    ("deleted_time,name", None, "a b c-b ca"),
    ("status.conditions.Ready,name", None, "a b c-b ca"),
    ("status.conditions.Foo.last_updated_time,name desc", None, "ca c-b b a"),
    ("name,name desc", None, "a b c-b ca"),
    # Empty fields, as in every version of the original.
    ("name,", None, "a b c-b ca"),
    (" , generation desc,, name", None, "c-b ca a b"),
    (",", " ,", "a ca c-b b"),
    (",", "asc", "b c-b ca a"),
]


def test_rows_come_in_the_requested_order(rows: psycopg.Connection) -> None:
    for order, direction, expected in ORDERS:
        asked = order_by(order, direction, "Cluster")
        query = f"SELECT name FROM clusters ORDER BY {asked.sql}"
        found = " ".join(name for (name,) in rows.execute(query, asked.values))
        assert found == expected, (order, direction)


def test_the_id_is_the_last_key_in_the_direction_of_the_first() -> None:
    assert order_by(None, None, "Cluster").sql == "clusters.created_time DESC, clusters.id DESC"
    assert order_by("generation", None, "NodePool").sql == "node_pools.generation ASC, node_pools.id ASC"
    by_adapter = order_by(None, None, "AdapterStatus").keys
    assert [(key.name, key.descending) for key in by_adapter] == [
        ("created_time", True),
        ("adapter", True),
    ]
    mixed = order_by("generation desc,name asc", None, "Cluster").keys
    assert [(key.name, key.descending) for key in mixed] == [
        ("generation", True),
        ("name", False),
        ("id", True),
    ]
    assert [key.name for key in order_by("id,name", None, "Cluster").keys] == ["id"]


def test_the_values_of_keys_can_be_read_and_compared_again(rows: psycopg.Connection) -> None:
    """A continuation asks for what comes after the values of a row."""
    names = (
        "name,generation,created_time,deleted_time,labels.zone,status.phase,status.conditions.A.reason"
    )
    asked = order_by(names, None, "Cluster")
    assert [key.nullable for key in asked.keys] == [False, False, False, True, True, True, True, False]
    columns = ", ".join(key.sql for key in asked.keys)
    row = rows.execute(f"SELECT {columns} FROM clusters WHERE name = 'a'", asked.values).fetchone()
    assert row is not None
    same = " AND ".join(
        f"{key.sql} IS NOT DISTINCT FROM %(k{number})s::{key.cast}"
        for number, key in enumerate(asked.keys)
    )
    given_back = {f"k{number}": value for number, value in enumerate(row)}
    query = f"SELECT name FROM clusters WHERE {same} ORDER BY {asked.sql}"
    assert rows.execute(query, {**asked.values, **given_back}).fetchall() == [("a",)]


@pytest.mark.parametrize(
    ("order", "direction", "kind", "message"),
    [
        ("foo", None, "Cluster", "cannot order by foo; expected one of id, name, kind, generation"),
        ("spec.nodes", None, "Cluster", "cannot order by spec.nodes"),
        ("name", None, "AdapterStatus", "expected one of adapter, observed_generation"),
        ("owner_id", None, "Cluster", "cannot order by owner_id"),
        ("name up", None, "Cluster", "at character 1"),
        ("name,,up down", None, "Cluster", "at character 7"),
        (",name;", None, "Cluster", "at character 2"),
        ("name;drop table clusters", None, "Cluster", "at character 1"),
        ("name desc desc", None, "Cluster", "at character 1"),
        ("name de\u017fc", None, "Cluster", "at character 1"),
        ("(select 1)", None, "Cluster", "at character 1"),
        ("1", None, "Cluster", "at character 1"),
        ("labels.'\0'", None, "Cluster", "at character 1"),
        ("name", "generation", "Cluster", "must not both"),
        (None, "sideways", "Cluster", "cannot order by sideways"),
        (",".join(f"labels.k{number}" for number in range(9)), None, "Cluster", "at most 8"),
    ],
)
def test_a_bad_order_is_refused(
    order: str | None, direction: str | None, kind: str, message: str
) -> None:
    with pytest.raises(OrderError) as caught:
        order_by(order, direction, kind)
    assert message in caught.value.message


DOCUMENT = {
    "kind": "Cluster",
    "id": "1",
    "name": "a",
    "labels": {"env": "prod", "app.kubernetes.io/name": "web"},
    "spec": {"nodes": 3, "net": {"mtu": 1500, "cidr": "10/8"}},
    "status": {
        "phase": "Ready",
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "Available", "status": "True"}],
    },
}
CONDITIONS = {"conditions": DOCUMENT["status"]["conditions"]}
NET = {"net": DOCUMENT["spec"]["net"]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("id", {"id": "1"}),
        ("name", {"id": "1", "name": "a"}),
        (" name , kind ", {"kind": "Cluster", "id": "1", "name": "a"}),
        (",name,, kind ,", {"kind": "Cluster", "id": "1", "name": "a"}),
        ("status.phase", {"id": "1", "status": {"phase": "Ready"}}),
        ("status.phase,status", {"id": "1", "status": DOCUMENT["status"]}),
        ("status,status.phase", {"id": "1", "status": DOCUMENT["status"]}),
        ("status.*", {"id": "1", "status": DOCUMENT["status"]}),
        (" status.conditions.* ,name", {"id": "1", "name": "a", "status": CONDITIONS}),
        ("labels.*,spec.net.*", {"id": "1", "labels": DOCUMENT["labels"], "spec": NET}),
        ("spec.net.mtu,spec.nodes", {"id": "1", "spec": {"nodes": 3, "net": {"mtu": 1500}}}),
        ("spec.nodes.deeper", {"id": "1", "spec": {}}),
        ("spec" + ".a" * 16, {"id": "1", "spec": {}}),
        (",".join(["name"] * 100), {"id": "1", "name": "a"}),
        ("spec.missing", {"id": "1", "spec": {}}),
        ("deleted_time", {"id": "1"}),
        ("labels.env", {"id": "1", "labels": {"env": "prod"}}),
        ("labels.app.kubernetes.io/name", {"id": "1", "labels": {"app.kubernetes.io/name": "web"}}),
        ('labels."app.kubernetes.io/name"', {"id": "1", "labels": {"app.kubernetes.io/name": "web"}}),
        (
            "status.conditions.type",
            {"id": "1", "status": {"conditions": [{"type": "Ready"}, {"type": "Available"}]}},
        ),
    ],
)
def test_only_the_requested_members_are_shown(names: str, expected: dict[str, Any]) -> None:
    assert apply(project(names, "Cluster"), DOCUMENT) == expected


def test_a_report_always_shows_its_adapter() -> None:
    report = {"adapter": "dns", "observed_generation": 1, "data": {"a": {"b": 1}, "c": 2}}
    assert apply(project("data.a", "AdapterStatus"), report) == {
        "adapter": "dns",
        "data": {"a": {"b": 1}},
    }


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        ("foo", "Cluster", "unknown member foo; expected one of kind, id, href, name"),
        ("name,foo.bar", "Cluster", "unknown member foo"),
        ("name.*", "Cluster", "unknown member name.*; name has no members"),
        ("foo.*", "Cluster", "unknown member foo"),
        ("status.*.type", "Cluster", "at character 1"),
        ("status.**", "Cluster", "at character 1"),
        ("owner_references.*", "Cluster", "unknown member owner_references"),
        ("owner_references", "Cluster", "unknown member owner_references"),
        ("id", "AdapterStatus", "expected one of adapter, observed_generation, conditions"),
        ("", "Cluster", "at character 1"),
        (",", "Cluster", "at character 1"),
        ("name,,id kind", "Cluster", "at character 7"),
        ("name id", "Cluster", "at character 1"),
        ("name,\ud800", "Cluster", "at character 1"),
        ("spec" + ".a" * 17, "Cluster", "at most 16 deep"),
        (",".join(["name"] * 101), "Cluster", "at most 100 members"),
    ],
)
def test_a_bad_projection_is_refused(names: str, kind: str, message: str) -> None:
    with pytest.raises(ProjectionError) as caught:
        project(names, kind)
    assert message in caught.value.message


@settings(deadline=None, max_examples=500)
@given(
    st.one_of(st.text(), st.text("name,idestu.\"' \0\ud800")),
    st.one_of(st.none(), st.text("asdec ")),
    st.sampled_from(["Cluster", "NodePool", "AdapterStatus"]),
)
def test_any_text_is_either_accepted_or_refused(text: str, direction: str | None, kind: str) -> None:
    for attempt in (lambda: order_by(text, direction, kind), lambda: project(text, kind)):
        try:
            attempt()
        except (OrderError, ProjectionError) as error:
            error.message.encode()


def test_lists_of_nothing_but_commas_count_as_not_given(api: Api) -> None:
    """As in the originals, for scripts that put a comma after each name."""
    first, second = api.cluster("a"), api.cluster("b")
    for parameter in ("orderBy", "order", "fields"):
        answer = check(api.get("/clusters", params={parameter: " ,, "}))
        assert answer["items"] == [second, first]
    answer = check(api.get("/clusters?size=1&orderBy=name,&fields=name,"))
    assert answer["items"] == [{"id": first["id"], "name": "a"}]
    answer = check(api.get(answer["next"].removeprefix(BASE)))
    assert answer["items"] == [{"id": second["id"], "name": "b"}]


def test_a_misspelled_field_or_member_at_any_depth_is_a_400_with_the_nearest_name(api: Api) -> None:
    for parameter, value, says in (
        ("orderBy", "nmae", "did you mean name?"),
        ("order", "nmae", "did you mean name?"),
        ("fields", "status.phse", "unknown member status.phse; did you mean phase?"),
        ("fields", "status.conditions.reson", "did you mean reason?"),
        ("fields", "status.adapters.adaptr", "did you mean adapter?"),
    ):
        answer = api.get("/clusters", params={parameter: value})
        assert answer.status_code == 400
        assert says in answer.json()["errors"][0]["message"], answer.text
        assert answer.json()["errors"][0]["field"].startswith(parameter)
    answer = api.get("/clusters?orderBy=desc&order=name")
    assert answer.json()["errors"][0]["message"] == (
        "must name fields, not only desc, if order is given too"
    )
    # Members that the contract leaves open may have any name.
    for value in ("spec.any.thing", "labels.any.thing", "status.conditions.type"):
        assert api.get("/clusters", params={"fields": value}).status_code == 200
