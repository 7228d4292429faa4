"""The search language: what each expression finds, what is refused, and how faults are reported."""

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from hyperfleet.lists import columns
from hyperfleet.lists.search import Condition, SearchError, translate


def condition(type_: str, status: str, **members: Any) -> dict[str, Any]:
    return {
        "type": type_,
        "status": status,
        "reason": "",
        "message": "",
        "observed_generation": 1,
        "created_time": "2026-01-01T00:00:00.000000Z",
        "last_updated_time": "2026-01-01T00:00:00.000000Z",
        "last_transition_time": "2026-01-01T00:00:00.000000Z",
    } | members


def conditions(ready: str, available: str, updated: str, *more: dict[str, Any]) -> dict[str, Any]:
    return {
        "conditions": [
            *[condition(type_, ready, last_updated_time=updated) for type_ in ("Ready", "Reconciled")],
            *[
                condition(type_, available, last_updated_time=updated)
                for type_ in ("Available", "LastKnownReconciled")
            ],
            *more,
        ]
    }


CLUSTERS: dict[str, dict[str, Any]] = {
    "a": {
        "labels": {"env": "prod", "tier": "gold", "app.kubernetes.io/name": "web"},
        "spec": {"nodes": 3, "region": "us-east-1", "ha": True, "net": {"cidr": "10/8", "mtu": 1500}},
        "status": {"phase": "Ready", "observed_generation": 1}
        | {"last_updated_time": "2026-03-01T12:00:00.000000Z"}
        | {"last_transition_time": "2026-02-01T00:00:00.000000Z"}
        | conditions("True", "True", "2026-03-01T12:00:00.000000Z", condition("DnsSuccessful", "True")),
    },
    "b": {
        "labels": {"env": "prod", "tier": "silver"},
        "spec": {"nodes": "3", "region": "us-west-2", "ha": False},
        "generation": 2,
        "created_by": "bob@example.com",
        "status": {"phase": "Failed", "observed_generation": 1}
        | {"last_updated_time": "2026-03-01T11:00:00.000000Z"}
        | conditions(
            "False",
            "True",
            "2026-03-01T11:00:00.000000Z",
            condition("DnsSuccessful", "False", reason="NoZone", observed_generation=2),
        ),
    },
    "c": {
        "labels": {"env": "stage"},
        "spec": {"nodes": 3.5, "region": None},
        "generation": 3,
        "status": {"phase": "NotReady", "observed_generation": 0}
        | conditions("False", "False", "2026-03-01T12:30:00.500000Z"),
    },
    "d": {
        "labels": {"env": "dev", "my-key": "x", "under_score": "y"},
        "spec": {"nodes": 1000, "ha": "true", "region": "eu-west-1"},
        "generation": 10,
        "status": {"phase": "Ready", "observed_generation": 9}
        | conditions(
            "Unknown",
            "True",
            "2026-03-01T12:30:00.499999Z",
            condition("example.com/Synced", "True", reason="Done", observed_generation=7),
        ),
    },
    "e": {"labels": {}, "spec": {}, "status": {}},
    "f": {
        "labels": {"env": ""},
        "spec": {"nodes": {"min": 1}, "items": [{"a": 1}, {"a": 2}], "ha": [True]},
        "deleted_time": "2026-05-01T00:00:00Z",
        "deleted_by": "root",
        "status": {"phase": "Ready"} | conditions("True", "True", "2026-03-02T00:00:00.000000Z"),
    },
    "g": {
        "labels": {"env": "O'Reilly", 'quote"d': "100%", "a.b": "dotted"},
        "spec": {"weird key": {"b": 5}, "in": 1, "nodes": -2, "path": "a\\b_c%", "ha": 1, "x/y": "z"},
        "created_by": "Zoë",
        "status": {"phase": "Ready"} | conditions("True", "True", "2026-03-01T12:00:00.000001Z"),
    },
    "h": {
        "labels": {"city": "Zürich", "env": "PROD"},
        "spec": {"nodes": None, "text": "5", "big": 10**400, "a": {"b": {"c": {"d": {"e": 1}}}}},
        "generation": 4,
        "status": {"phase": "NotReady", "observed_generation": "4"}
        | conditions("False", "False", "2026-02-01T00:00:00.000000Z"),
    },
}
NODE_POOLS: dict[str, dict[str, Any]] = {
    "workers": {"owner": "a", "labels": {"env": "prod"}, "spec": {"replicas": 3}},
    "infra": {"owner": "a", "labels": {}, "spec": {"replicas": 1}},
    "gpu": {"owner": "b", "labels": {"env": "prod", "gpu": "a100"}, "spec": {"replicas": 0}},
}
REPORTS = {"dns": 1, "validation": 2, "pull-secret": 3}


def identifier(name: str) -> str:
    number = [*CLUSTERS, *NODE_POOLS].index(name) + 1
    return str(UUID(int=0x01950000_0000_7000_8000_00000000ABC0 + number))


def insert(sql: psycopg.Connection, kind: str, name: str, row: dict[str, Any]) -> None:
    index = [*CLUSTERS, *NODE_POOLS].index(name) + 1
    table = {"Cluster": "clusters", "NodePool": "node_pools"}[kind]
    values = {
        "id": identifier(name),
        "name": name,
        "generation": row.get("generation", 1),
        "labels": Jsonb(row["labels"]),
        "spec": Jsonb(row["spec"]),
        "status": Jsonb(row.get("status", {})),
        # The first of January for a, the second for b, and so on.
        "created_time": f"2026-01-{index:02}T00:00:00Z",
        "updated_time": f"2026-01-{index:02}T12:00:00.123456Z",
        "created_by": row.get("created_by", "alice"),
        "updated_by": "carol",
        "deleted_time": row.get("deleted_time"),
        "deleted_by": row.get("deleted_by"),
    }
    if kind == "NodePool":
        values["owner_id"] = identifier(row["owner"])
    columns, places = ", ".join(values), ", ".join(f"%({name})s" for name in values)
    sql.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", values)
    for key, value in row["labels"].items():
        sql.execute(
            "INSERT INTO labels (owner_type, owner_id, key, value, created_time)"
            " VALUES (%s, %s, %s, %s, %s)",
            [kind, values["id"], key, value, values["created_time"]],
        )


@pytest.fixture
def rows(sql: psycopg.Connection) -> psycopg.Connection:
    for name, row in CLUSTERS.items():
        insert(sql, "Cluster", name, row)
    for name, row in NODE_POOLS.items():
        insert(sql, "NodePool", name, row)
    for adapter, generation in REPORTS.items():
        sql.execute(
            "INSERT INTO adapter_statuses VALUES"
            " ('Cluster', %s, %s, %s, '[]', NULL, NULL, '2026-01-01T00:00:00Z', %s)",
            [identifier("a"), adapter, generation, f"2026-02-0{generation}T00:00:00Z"],
        )
    return sql


QUERIES = {
    "Cluster": "SELECT name FROM clusters",
    "NodePool": "SELECT name FROM node_pools",
    "AdapterStatus": "SELECT adapter FROM adapter_statuses",
}


def found(sql: psycopg.Connection, condition: Condition, kind: str = "Cluster") -> list[str]:
    query = f"{QUERIES[kind]} WHERE {condition.sql} ORDER BY 1"
    return [name for (name,) in sql.execute(query, condition.values)]


# Each expression and the clusters that it finds.
CASES = [
    # Text
    ("name='a'", "a"),
    ('name="a"', "a"),
    ("name = 'A'", ""),
    ("name != 'a'", "b c d e f g h"),
    ("name <> 'a'", "b c d e f g h"),
    ("name<'c'", "a b"),
    ("name<='c'", "a b c"),
    ("name>'f'", "g h"),
    ("name>='f'", "f g h"),
    ("name in ('a','c','z')", "a c"),
    ("name in ['a', 'c']", "a c"),
    ("name in ('a')", "a"),
    ("name in ()", ""),
    ("name in []", ""),
    ("name not in ()", "a b c d e f g h"),
    ("name not in ('a','c')", "b d e f g h"),
    ("name NOT IN ['a','c']", "b d e f g h"),
    ("name between 'b' and 'd'", "b c d"),
    ("name not between 'b' and 'd'", "a e f g h"),
    ("name between 'd' and 'b'", ""),
    ("name like 'a'", "a"),
    ("name like '%'", "a b c d e f g h"),
    ("name like '_'", "a b c d e f g h"),
    ("name like '__'", ""),
    ("name like 'A'", ""),
    ("name ilike 'A'", "a"),
    ("name not like 'a'", "b c d e f g h"),
    ("name not ilike 'A'", "b c d e f g h"),
    ("name ~= '^[ab]$'", "a b"),
    ("name ~! '^[ab]$'", "c d e f g h"),
    ("name !~ '^[ab]$'", "c d e f g h"),
    ("name ~= '(?i)^A'", "a"),
    ("name is null", ""),
    ("name is not null", "a b c d e f g h"),
    ("kind='Cluster'", "a b c d e f g h"),
    ("kind='NodePool'", ""),
    ("kind!='NodePool'", "a b c d e f g h"),
    ("created_by='bob@example.com'", "b"),
    ("created_by='Zoë'", "g"),
    ("created_by like 'Zo_'", "g"),
    ("created_by like '%@example.com'", "b"),
    ("updated_by='carol'", "a b c d e f g h"),
    ("deleted_by='root'", "f"),
    ("deleted_by!='root'", "a b c d e g h"),
    ("deleted_by < 'z'", "f"),
    ("not deleted_by < 'z'", "a b c d e g h"),
    # Identifiers
    (f"id='{identifier('a')}'", "a"),
    (f"id='{identifier('a').upper()}'", "a"),
    (f"id!='{identifier('a')}'", "b c d e f g h"),
    (f"id in ('{identifier('a')}', '{identifier('b')}', 'c')", "a b"),
    (f"id not in ('{identifier('a')}', 'c')", "b c d e f g h"),
    (f"id > '{identifier('f')}'", "g h"),
    (f"id <= '{identifier('b').upper()}'", "a b"),
    ("id='not-a-uuid'", ""),
    ("id=''", ""),
    ("id!='not-a-uuid'", "a b c d e f g h"),
    ("not id='not-a-uuid'", "a b c d e f g h"),
    ("id in ('x','y')", ""),
    ("id not in ('x','y')", "a b c d e f g h"),
    ("id='{01950000-0000-7000-8000-00000000abc1}'", ""),
    ("id='0195000000007000800000000000abc1'", ""),
    ("id like '%abc1'", "a"),
    ("id ~= 'abc[12]$'", "a b"),
    # Numbers
    ("generation=1", "a e f g"),
    ("generation = +1", "a e f g"),
    ("generation=1.0", "a e f g"),
    ("generation=1.5", ""),
    ("generation=10e-1", "a e f g"),
    ("generation=.1e1", "a e f g"),
    ("generation=1.", "a e f g"),
    ("generation!=1", "b c d h"),
    ("generation>3", "d h"),
    ("generation>=3", "c d h"),
    ("generation<2.5", "a b e f g"),
    ("generation>-1", "a b c d e f g h"),
    ("generation in (1, 2.0, 99)", "a b e f g"),
    ("generation not in (1,2)", "c d h"),
    ("generation between 2 and 4", "b c h"),
    ("generation < 1e308", "a b c d e f g h"),
    ("generation > -1e308", "a b c d e f g h"),
    ("generation < 99999999999999999999999999", "a b c d e f g h"),
    ("generation = 0e999999999", ""),
    ("generation is null", ""),
    # Times
    ("created_time='2026-01-02T00:00:00Z'", "b"),
    ("created_time='2026-01-02T01:00:00+01:00'", "b"),
    ("created_time='2026-01-01T19:00:00.000-05:00'", "b"),
    ("created_time='2026-01-02t00:00:00z'", "b"),
    ("created_time='2026-01-02 00:00:00Z'", "b"),
    ("created_time=2026-01-02T01:00:00+01:00", "b"),
    ("created_time>2026-01-06t00:00:00z and name!='g'", "h"),
    ("(created_time>=2026-01-06T00:00:00.000000001Z)", "f g h"),
    ("created_time between 2026-01-02T00:00:00Z and 2026-01-03T00:00:00Z", "b c"),
    ("created_time in (2026-01-02T00:00:00Z,'2026-01-04T00:00:00Z')", "b d"),
    ("created_time!='2026-01-02T00:00:00Z'", "a c d e f g h"),
    ("created_time>'2026-01-06T00:00:00Z'", "g h"),
    ("created_time>='2026-01-06T00:00:00Z'", "f g h"),
    ("created_time<'2026-01-02T00:00:00.000001Z'", "a b"),
    ("created_time between '2026-01-02T00:00:00Z' and '2026-01-03T00:00:00Z'", "b c"),
    ("created_time in ('2026-01-02T00:00:00Z','2026-01-04T00:00:00Z')", "b d"),
    ("updated_time='2026-01-01T12:00:00.123456Z'", "a"),
    ("updated_time='2026-01-01T12:00:00.123456789Z'", "a"),
    ("deleted_time is null", "a b c d e g h"),
    ("deleted_time is not null", "f"),
    ("not deleted_time is null", "f"),
    ("deleted_time < '2030-01-01T00:00:00Z'", "f"),
    ("deleted_time != '2026-05-01T00:00:00Z'", "a b c d e g h"),
    ("not deleted_time < '2030-01-01T00:00:00Z'", "a b c d e g h"),
    # Labels
    ("labels.env='prod'", "a b"),
    ("labels.env='prod' and labels.tier='gold'", "a"),
    ("labels.env='prod' and labels.tier='gold' and labels.tier='silver'", ""),
    ("labels.env='prod' or labels.env='dev'", "a b d"),
    ("labels.env='prod' and name='b'", "b"),
    ("name='a' or labels.env='stage'", "a c"),
    ("labels.env!='prod'", "c d e f g h"),
    ("not labels.env='prod'", "c d e f g h"),
    ("not (labels.env='prod' and labels.tier='gold')", "b c d e f g h"),
    ("not not labels.env='prod'", "a b"),
    ("labels.env in ('prod','dev')", "a b d"),
    ("labels.env not in ('prod','dev')", "c e f g h"),
    ("labels.env=''", "f"),
    ("labels.env is null", "e"),
    ("labels.env is not null", "a b c d f g h"),
    ("labels.env='O''Reilly'", "g"),
    ('labels.env="O\'Reilly"', "g"),
    ("labels.env<'a'", "f g h"),
    ("labels.env>='prod'", "a b c"),
    ("not labels.env>='prod'", "d e f g h"),
    ("labels.env like 'pr%'", "a b"),
    ("labels.env ilike 'pr%'", "a b h"),
    ("labels.env not like 'pr%'", "c d e f g h"),
    ("labels.env ~= '^(prod|dev)$'", "a b d"),
    ("labels.env ~! '^(prod|dev)$'", "c e f g h"),
    ("labels.\"app.kubernetes.io/name\"='web'", "a"),
    ("labels.'app.kubernetes.io/name'='web'", "a"),
    ("labels.app.kubernetes.io/name='web'", "a"),
    ("labels.app.kubernetes.io/name!='web'", "b c d e f g h"),
    ("labels.my-key='x'", "d"),
    ("labels.under_score='y'", "d"),
    ("labels.a.b='dotted'", "g"),
    ("labels.\"\"='x'", ""),
    ("labels.'quote\"d'='100%'", "g"),
    ('labels."quote""d"=\'100%\'', "g"),
    ("labels.'quote\"d' like '100\\%'", "g"),
    ("labels.city='Zürich'", "h"),
    ("labels.city like 'Z_rich'", "h"),
    ("labels.missing='x'", ""),
    ("labels.missing!='x'", "a b c d e f g h"),
    ("labels.missing < 'x'", ""),
    ("not labels.missing < 'x'", "a b c d e f g h"),
    # The spec
    ("spec.nodes=3", "a"),
    ("spec.nodes=3.0", "a"),
    ("spec.nodes='3'", "a b"),
    ("spec.nodes='3.0'", ""),
    ("spec.nodes!=3", "b c d e f g h"),
    ("spec.nodes>3", "c d"),
    ("spec.nodes>=3", "a c d"),
    ("spec.nodes<0", "g"),
    ("not spec.nodes<0", "a b c d e f h"),
    ("spec.nodes=1e3", "d"),
    ("spec.nodes between 3 and 4", "a c"),
    ("spec.nodes in (3, '3', 1000)", "a b d"),
    ("spec.nodes not in (3, '3', 1000)", "c e f g h"),
    ("spec.nodes>'2'", "a b c"),
    ("spec.nodes is null", "e h"),
    ("spec.nodes is not null", "a b c d f g"),
    ("spec.nodes.min=1", "f"),
    ("spec.ha=true", "a"),
    ("spec.ha=FALSE", "b"),
    ("spec.ha='true'", "a d"),
    ("spec.ha!=true", "b c d e f g h"),
    ("spec.ha in (true,false)", "a b"),
    ("spec.ha=1", "g"),
    ("spec.region='us-east-1'", "a"),
    ("spec.region like 'us-%'", "a b"),
    ("spec.region not like 'us-%'", "c d e f g h"),
    ("spec.region ~= '-[12]$'", "a b d"),
    ("spec.region is null", "c e f g h"),
    ("spec.region between 'us' and 'us-f'", "a"),
    ("spec.net.cidr='10/8'", "a"),
    ("spec.net.mtu>1000", "a"),
    ("spec.net='x'", ""),
    ("spec.net!='x'", "a b c d e f g h"),
    ("spec.net is not null", "a"),
    ('spec."weird key".b=5', "g"),
    ("spec.'weird key'.b=5", "g"),
    ("spec.in=1", "g"),
    ("spec.x/y='z'", "g"),
    ("spec.a.b.c.d.e=1", "h"),
    ("spec.big>1e308", "h"),
    ("spec.text=5", ""),
    ("spec.text='5'", "h"),
    ("spec.items.0.a=1", "f"),
    ("spec.items.1.a=2", "f"),
    ("spec.items.2.a=3", ""),
    ("spec.items='x'", ""),
    ("spec.path='a\\b_c%'", "g"),
    ("spec.path like 'a\\\\b\\_c\\%'", "g"),
    ("spec.path like '%\\'", None),
    # Status and conditions
    ("status.phase='Ready'", "a d f g"),
    ("status.phase!='Ready'", "b c e h"),
    ("status.phase in ('Failed','NotReady')", "b c h"),
    ("status.phase is null", "e"),
    ("status.observed_generation=1", "a b"),
    ("status.observed_generation<1", "c"),
    ("status.observed_generation is null", "e f g h"),
    ("status.observed_generation!=1", "c d e f g h"),
    ("status.last_updated_time<'2026-03-01T12:00:00Z'", "b"),
    ("status.last_updated_time='2026-03-01T13:00:00+01:00'", "a"),
    ("status.last_transition_time is not null", "a"),
    ("status.conditions.Ready='True'", "a f g"),
    ("status.conditions.Reconciled='True'", "a f g"),
    ("status.conditions.Ready!='True'", "b c d e h"),
    ("status.conditions.Ready='Unknown'", "d"),
    ("status.conditions.Ready in ('False','Unknown')", "b c d h"),
    ("status.conditions.Ready is null", "e"),
    ("status.conditions.Available='True'", "a b d f g"),
    ("status.conditions.LastKnownReconciled='False'", "c h"),
    ("not status.conditions.Available='True'", "c e h"),
    ("status.conditions.Ready.status='False'", "b c h"),
    (
        "status.conditions.Reconciled='False'"
        " and status.conditions.Reconciled.last_updated_time < '2026-03-01T12:00:00Z'",
        "b h",
    ),
    ("status.conditions.Ready.last_updated_time < '2026-03-01T12:00:00.000001Z'", "a b h"),
    ("status.conditions.Ready.last_updated_time <= '2026-03-01T12:00:00.000001Z'", "a b g h"),
    ("status.conditions.Ready.last_updated_time<=2026-03-01T12:00:00.000001Z", "a b g h"),
    ("status.conditions.Ready.last_updated_time > '2026-03-01T12:30:00.4Z'", "c d f"),
    ("status.conditions.Ready.last_updated_time = '2026-03-01T12:30:00.5Z'", "c"),
    ("status.conditions.Ready.last_transition_time > '2027-01-01T00:00:00Z'", ""),
    ("status.conditions.DnsSuccessful='True'", "a"),
    ("status.conditions.DnsSuccessful!='True'", "b c d e f g h"),
    ("status.conditions.DnsSuccessful is not null", "a b"),
    ("status.conditions.DnsSuccessful.reason='NoZone'", "b"),
    ("status.conditions.DnsSuccessful.reason like 'No%'", "b"),
    ("status.conditions.DnsSuccessful.observed_generation>1", "b"),
    ("status.conditions.DnsSuccessful.observed_generation<=1", "a"),
    ("status.conditions.\"example.com/Synced\"='True'", "d"),
    ("status.conditions.\"example.com/Synced\".reason='Done'", "d"),
    ("status.conditions.'example.com/Synced'.observed_generation=7", "d"),
    ("status.conditions.Missing='True'", ""),
    ("status.conditions.Missing!='True'", "a b c d e f g h"),
    ("status.conditions.'\") || true'='True'", ""),
    # Precedence, keywords, whitespace
    ("name='a' or name='b' and name='c'", "a"),
    ("(name='a' or name='b') and name='b'", "b"),
    ("not name='a' and name='b'", "b"),
    ("not name='a' or name='a'", "a b c d e f g h"),
    ("not (name='a' or name='b')", "c d e f g h"),
    ("not not not name='a'", "b c d e f g h"),
    ("name='c' or not name>'b' or name='d' and generation=10", "a b c d"),
    ("NAME='a'", None),
    ("Name='a'", None),
    ("name='a' OR name='b' AND NOT name='c'", "a b"),
    ("name='a'Or(name='b')", "a b"),
    ("\tname\n=\r\n'a' ", "a"),
    ("((((name='a'))))", "a"),
    ("name='a'and(not(name='b'))", "a"),
    ("generation=1and name='a'", "a"),
    ("labels.like='x' or labels.and='y' or spec.in=1", "g"),
]


def test_each_expression_finds_its_clusters(rows: psycopg.Connection) -> None:
    wrong = {}
    for expression, expected in CASES:
        try:
            names = " ".join(found(rows, translate(expression, "Cluster")))
        except SearchError:
            names = None
        if names != expected:
            wrong[expression] = (names, expected)
    assert wrong == {}


def test_each_negated_expression_finds_all_other_clusters(rows: psycopg.Connection) -> None:
    wrong = {}
    for expression, expected in CASES:
        if expected is not None:
            names = found(rows, translate(f"not ({expression})", "Cluster"))
            if sorted(names + expected.split()) != list(CLUSTERS):
                wrong[expression] = names
    assert wrong == {}


def test_node_pools_are_found_by_owner_and_by_common_fields(rows: psycopg.Connection) -> None:
    cases = {
        f"owner_id='{identifier('a')}'": ["infra", "workers"],
        f"owner_references.id='{identifier('b')}'": ["gpu"],
        f"owner_id!='{identifier('a')}'": ["gpu"],
        "owner_id='a'": [],
        "kind='NodePool'": ["gpu", "infra", "workers"],
        "labels.env='prod'": ["gpu", "workers"],
        "labels.env='prod' and labels.gpu='a100'": ["gpu"],
        "labels.env!='prod'": ["infra"],
        "spec.replicas>0": ["infra", "workers"],
        "name='workers'": ["workers"],
        "status.phase is null": ["gpu", "infra", "workers"],
    }
    for expression, expected in cases.items():
        assert found(rows, translate(expression, "NodePool"), "NodePool") == expected, expression


def test_reports_are_found_by_fields_of_their_own(rows: psycopg.Connection) -> None:
    cases = {
        "adapter='dns'": ["dns"],
        "adapter like '%s%'": ["dns", "pull-secret"],
        "observed_generation>=2": ["pull-secret", "validation"],
        "last_report_time<'2026-02-02T00:00:00Z'": ["dns"],
        "created_time='2026-01-01T00:00:00Z'": ["dns", "pull-secret", "validation"],
    }
    for expression, expected in cases.items():
        condition = translate(expression, "AdapterStatus")
        assert found(rows, condition, "AdapterStatus") == expected, expression
    for expression in ("name='dns'", "labels.env='x'", "spec.a=1", "status.phase='Ready'", "id='x'"):
        with pytest.raises(SearchError, match="such as adapter or observed_generation"):
            translate(expression, "AdapterStatus")


FAULTS = [
    # Expression, position, part of the message
    ("", 0, "expected a field"),
    ("   ", 0, "expected a field"),
    ("name", 4, "expected a comparison operator such as = or in"),
    ("name ", 4, "found the end"),
    ("name=", 5, "expected a value"),
    ("name==5", 5, "expected a value"),
    ("name='a", 5, "no closing quote"),
    ("name=\"a'", 5, "no closing quote"),
    ("name=bar", 5, "found bar"),
    ("name=null", 5, "expected a value"),
    ("name=" + "b" * 41, 5, f"found {'b' * 40}…"),
    ("name='a' name='b'", 9, "expected and, or or the end"),
    ("name='a' and", 12, "expected a field"),
    ("name='a' or or name='b'", 15, "expected a comparison operator"),
    ("name='a' && name='b'", 9, "expected and"),
    ("name='a';", 8, "expected and"),
    ("(name='a'", 9, "expected ), and or or"),
    ("name='a')", 8, "expected the end"),
    ("()", 1, "expected a field"),
    ("name in 'a'", 8, "expected ( or ["),
    ("name in ('a',)", 13, "expected a value"),
    ("name in ('a' 'b')", 13, "expected a comma or )"),
    ("name in ('a']", 12, "expected a comma or )"),
    ("name not = 'a'", 9, "expected in, like or between"),
    ("name between 'a'", 16, "expected and"),
    ("name between 'a' or 'b'", 17, "expected and"),
    ("name is 'a'", 8, "expected null or not"),
    ("'a'=name", 0, "expected a field"),
    ("5=generation", 0, "expected a field"),
    ("name like", 9, "expected a value"),
    ("naïve='x'", 0, "unknown field naïve"),
    ("foo='a'", 0, "use a field such as name, labels.KEY"),
    ("name='a' and foo.bar='a'", 13, "unknown field foo.bar"),
    ("labels='a'", 0, "labels.KEY"),
    ("spec is null", 0, "spec.PATH"),
    ("status='a'", 0, "status.phase"),
    ("status.foo='a'", 0, "unknown field status.foo"),
    ("status.conditions='a'", 0, "status.conditions.TYPE"),
    ("status.conditions.Ready.foo='a'", 0, "a condition has status, reason"),
    ("status.conditions.example.com/Synced.reason='a'", 0, "in quotes"),
    ("labels.='a'", 6, "found ."),
    ("owner_id='a'", 0, "unknown field owner_id"),
    ("name=5", 5, "expected text in quotes for name"),
    ("name>5", 5, "expected text in quotes for name"),
    ("name=true", 5, "expected text in quotes for name"),
    ("labels.a=5", 9, "expected text in quotes"),
    ("status.phase=true", 13, "expected text in quotes"),
    ("status.conditions.Ready=True", 24, "expected text in quotes"),
    ("name in ('a', 5)", 14, "expected text in quotes"),
    ("name between 'a' and 5", 21, "expected text in quotes"),
    ("id=5", 3, "expected text in quotes for id"),
    ("generation='x'", 11, "expected a number for generation"),
    ("generation='5'", 11, "expected a number"),
    ("generation=true", 11, "expected a number"),
    ("generation like '1%'", 11, "like works only with text"),
    ("generation ~= '1'", 11, "~= works only with text"),
    ("created_time>5", 13, "expected an RFC 3339 time"),
    ("created_time>'yesterday'", 13, "such as '2026-01-31T12:00:00Z'"),
    ("created_time>'2026-01-01'", 13, "RFC 3339"),
    ("created_time>2026-02-30T00:00:00Z", 13, "RFC 3339"),
    ("name=2026-01-01T00:00:00Z", 5, "expected text in quotes for name"),
    ("generation>2026-01-01T00:00:00Z", 11, "expected a number for generation"),
    ("name like 2026-01-01T00:00:00Z", 10, "expected a pattern in quotes"),
    ("created_time>'2026-01-01T00:00:00'", 13, "RFC 3339"),
    ("created_time>'2026-02-30T00:00:00Z'", 13, "RFC 3339"),
    ("created_time>'0001-01-01T00:00:00+23:59'", 13, "RFC 3339"),
    ("created_time>'9999-12-31T23:59:59-23:59'", 13, "RFC 3339"),
    ("created_time>'0000-01-01T00:00:00Z'", 13, "RFC 3339"),
    ("created_time like '2026%'", 13, "like works only with text"),
    ("status.conditions.Ready.last_updated_time<'x'", 42, "RFC 3339"),
    ("spec.a > true", 9, "no order"),
    ("spec.a between 1 and '2'", 21, "same type as the first"),
    ("spec.a like 5", 12, "expected a pattern in quotes"),
    ("name like 'a\\'", 10, "backslash"),
    ("name like '\\\\\\'", 10, "backslash"),
    ("name ~= 'a\\'", 8, "backslash"),
    ("name ~= '(a)\\1'", 8, "refer back"),
    ("name ~= '***=a'", 8, "***"),
    ("generation=1e999", 11, "between 1e-308 and 1e308"),
    ("generation=1e-999", 11, "between 1e-308 and 1e308"),
    ("generation=1e99999999999999999999999", 11, "between 1e-308 and 1e308"),
    ("generation=" + "9" * 400, 11, "between 1e-308 and 1e308"),
    ("generation=0x10", 12, "expected and"),
    ("generation=--1", 11, "expected a value"),
    ("name='\0'", 6, "U+0000"),
    ("name='\ud800'", 6, "U+D800"),
    ("labels.'\udfff'='x'", 8, "U+DFFF"),
    ("name='" + "a" * 4096, 4096, "longer than 4096 characters"),
    ("name in (" + ",".join(["''"] * 1001) + ")", 9 + 3000, "more than 1000 values"),
    (" or ".join(["name=''"] * 101), 1100, "more than 100 comparisons"),
    ("(" * 33 + "name='a'" + ")" * 33, 33, "more than 32 deep"),
    ("not " * 33 + "name='a'", 132, "more than 32 deep"),
    ("(" * 1000 + "name='a'" + ")" * 1000, 33, "more than 32 deep"),
    ("not " * 1000 + "name='a'", 132, "more than 32 deep"),
    ("(" * 4096, 4096, "expected a field"),
    ("name ~= '" + "a" * 257 + "'", 8, "longer than 256 characters"),
    # Letters whose lower or upper case is one of a keyword's.
    ("name \u0130N ('a')", 5, "expected a comparison operator"),
    ("name not \u0131n ('a')", 9, "expected in, like or between"),
    ("name l\u0130ke 'a%'", 5, "expected a comparison operator"),
    ("name i\u017f null", 5, "expected a comparison operator"),
]


@pytest.mark.parametrize(("expression", "position", "reason"), FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_reported_with_its_position_and_a_pointer(
    expression: str, position: int, reason: str
) -> None:
    with pytest.raises(SearchError) as caught:
        translate(expression, "Cluster")
    assert reason in caught.value.message
    assert caught.value.position == position
    said, shown, pointer = caught.value.message.split("\n")
    assert said.startswith(f"at character {position + 1}: ")
    assert re.fullmatch(" *\\^", pointer)
    column = len(pointer) - 1
    assert (shown[column : column + 1] or "") == (
        "" if position == len(expression) else re.sub("[\0\ud800-\udfff]", " ", expression[position])
    )
    assert len(shown) < 130


def test_expressions_at_the_bounds_are_accepted(rows: psycopg.Connection) -> None:
    fits = "name='" + "a" * 4089 + "'"
    assert len(fits) == 4096
    assert found(rows, translate(fits, "Cluster")) == []
    assert found(rows, translate("(" * 32 + "name='a'" + ")" * 32, "Cluster")) == ["a"]
    assert found(rows, translate("not " * 32 + "name='a'", "Cluster")) == ["a"]
    assert found(rows, translate(" or ".join(["name='a'"] * 100), "Cluster")) == ["a"]
    assert found(rows, translate(" and ".join(["labels.env='prod'"] * 100), "Cluster")) == ["a", "b"]
    assert found(rows, translate("name in (" + ",".join(["'b'"] * 1000) + ")", "Cluster")) == ["b"]
    pattern = "name ~= '" + "a?" * 128 + "'"
    assert found(rows, translate(pattern, "Cluster")) == list(CLUSTERS)


INJECTIONS = [
    "name='x' or 1=1",
    "name='x' or '1'='1'",
    "name='x'' or ''1''=''1'",
    "name='x'; drop table clusters",
    "name='x'); drop table clusters; --",
    "name='''; drop table clusters; --'",
    "name='x' --",
    "name='x' /* */",
    "name='x\\' or 1=1 --'",
    "name='x' union select 1",
    "name=(select 1)",
    "name=version()",
    "pg_sleep(10)='x'",
    "name='%s' or name='%(s0)s' or name='%%'",
    "name='x' and %(s9)s",
    "name like '%s%d%(x)s'",
    "labels.'x'' = '''' or 1=1 --'='a'",
    'labels."x"" or 1=1 --"=\'a\'',
    "labels.x';drop table clusters;--='a'",
    "labels.'%s'='x'",
    "labels.'%(s1)s'='x'",
    "spec.'a}'='x'",
    "spec.'{a,b}'.'\"'.'\\'='x'",
    "spec.'a'')::text; drop table clusters; --'='x'",
    "status.conditions.'\") ? (1 == 1'='True'",
    "status.conditions.'Reconciled\").status || \"'='True'",
    "status.conditions.'$type'='True'",
    "status.conditions.'%s'.reason='x'",
    "status.conditions.Ready.'status'') or true --'='x'",
    "name in ('x') or true",
    "name='x'::text",
    "name='x' collate \"C\"",
    "name=$1",
    "name=E'\\x27 or 1=1'",
    "name=U&'\\0027 or 1=1'",
    "name=$$x$$",
    "name='\u02bc or 1=1 --'",
    "name='\uff07 or 1=1 --'",
    "version='1'",
    "document like '%'",
    "clusters.name='a'",
    "ctid='(0,1)'",
    "owner_type='Cluster'",
]


def test_injections_find_nothing_and_remove_nothing(rows: psycopg.Connection) -> None:
    for expression in INJECTIONS:
        try:
            condition = translate(expression, "Cluster")
        except SearchError:
            continue
        assert found(rows, condition) == [], expression
    assert found(rows, translate("name is not null", "Cluster")) == list(CLUSTERS)


@pytest.mark.parametrize(
    "expression", ["name ~= '('", "spec.a ~= '['", "name ~= '*'", "name ~! 'a{2,1}'"]
)
def test_the_syntax_of_regular_expressions_is_left_to_postgresql(
    rows: psycopg.Connection, expression: str
) -> None:
    with pytest.raises(psycopg.errors.InvalidRegularExpression):
        found(rows, translate(expression, "Cluster"))


@pytest.mark.parametrize(
    "pattern",
    [
        "(a?){255}(a?){255}b{255}",
        "((((a*)*)*)*)*b",
        "(x+x+)+y",
        "(?:(?:a?){60}){60}",
        "(a|" * 60 + "b" + ")" * 60,
    ],
)
def test_a_regular_expression_cannot_take_forever(rows: psycopg.Connection, pattern: str) -> None:
    rows.execute("SET statement_timeout = '5min'")
    rows.execute("UPDATE clusters SET spec = jsonb_build_object('x', repeat('a', 5000))")
    before = processor_seconds(rows)
    try:
        found(rows, translate(f"spec.x ~= '{pattern}'", "Cluster"))
    except psycopg.errors.InvalidRegularExpression as error:
        assert "too complex" in str(error)
    assert processor_seconds(rows) - before < 10


def processor_seconds(sql: psycopg.Connection) -> float:
    """Returns the processor seconds that the server used for this connection, whatever else runs."""
    told: list[str] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        told.append(notice.message_detail or "")

    sql.add_notice_handler(hear)
    sql.execute("SET client_min_messages = log; SET log_statement_stats = on")
    sql.execute("SELECT 1")
    sql.execute("RESET log_statement_stats")
    sql.remove_notice_handler(hear)
    user, system = re.findall(r"\[(\S+) s user, (\S+) s system total\]", told[0])[0]
    return float(user) + float(system)


def test_values_do_not_clash_with_those_of_the_calling_query(rows: psycopg.Connection) -> None:
    condition = translate("name in ('a','b') and labels.env='prod' and spec.nodes=3", "Cluster")
    assert all(re.fullmatch("s[0-9]+", name) for name in condition.values)
    query = f"SELECT name FROM clusters WHERE ({condition.sql}) AND name LIKE 'a%%' LIMIT %(size)s"
    assert rows.execute(query, {**condition.values, "size": 5}).fetchall() == [("a",)]


def test_labels_must_carry_the_creation_time_of_their_owner(rows: psycopg.Connection) -> None:
    wrong = rows.execute(
        "SELECT count(*) FROM labels LEFT JOIN (SELECT id, created_time FROM clusters"
        " UNION ALL SELECT id, created_time FROM node_pools) AS owners ON id = owner_id"
        " WHERE labels.created_time IS DISTINCT FROM owners.created_time"
    ).fetchone()
    assert wrong == (0,)
    with pytest.raises(psycopg.errors.NotNullViolation):
        rows.execute("INSERT INTO labels VALUES ('Cluster', gen_random_uuid(), 'a', 'b')")


def test_the_documentation_matches_the_language(root: Path) -> None:
    text = (root / "docs" / "search.md").read_text()
    examples = re.findall('"search=(.*?)"\\s', text)
    assert len(examples) > 10
    for expression in examples:
        kind = "AdapterStatus" if "report_time" in expression else "NodePool"
        translate(expression, kind)
    in_tables = re.findall(r"^\| .*\| `([^`]+ .+)` \|$|^\| `(spec\.\w+ .*)` \|", text, re.MULTILINE)
    assert len(in_tables) > 15
    for last, first in in_tables:
        if "`, `" not in last:
            translate(last or first, "Cluster")
    faults = re.findall("```text\n(.*)\n(.*)\n(.*)\n```", text)
    assert len(faults) == 1
    for fault in faults:
        with pytest.raises(SearchError) as caught:
            translate(fault[1], "Cluster")
        assert f"search: {caught.value.message}" == "\n".join(fault)
    for field in columns.names("NodePool"):
        assert f"`{field.replace('.FIELD', '.reason')}`" in text


ALPHABET = "abz_'\"().,=<>!~%\\[]{}*+?^$|&;:-/ \t\n0159eE\0é\ud800\U0001f600"
PIECES = st.sampled_from(
    [
        *("name", "id", "generation", "created_time", "labels.env", "labels.'a b'", "spec.nodes"),
        *("spec.items.0.a", 'spec."x"', "status.phase", "status.observed_generation", "deleted_time"),
        *("status.conditions.Ready", "status.conditions.Foo.reason", "kind", "foo", "and", "or", "not"),
        *("status.conditions.Foo.observed_generation", "status.last_updated_time", "in", "like"),
        *("ilike", "between", "is", "null", "true", "false", "(", ")", "[", "]", ",", "=", "!=", "<"),
        *(">=", "~=", "~!", "'a'", "'%_'", "'2026-01-01T00:00:00Z'", "5", "-1.5e3", "''", "'\\'"),
        *("'(a|b)*'", "'a{2}'", "'" + identifier("a") + "'"),
    ]
)
VALID = [expression for expression, expected in CASES if expected is not None]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid expression with some characters removed, inserted, replaced or doubled."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 6)))
        middle = draw(st.one_of(st.text(ALPHABET, max_size=4), PIECES, st.just(text[start:end] * 2)))
        text = text[:start] + middle + text[end:]
    return text


# Whole comparisons, so that many of them are valid.
comparisons = st.tuples(
    PIECES, st.sampled_from(["=", "!=", "<", "~=", " like ", " not like ", " in "]), PIECES
).map(lambda parts: parts[0] + parts[1] + (f"({parts[2]})" if parts[1] == " in " else parts[2]))


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example("name='a' and", "Cluster")
@given(
    st.one_of(
        st.text(),
        st.text(ALPHABET),
        mutated(),
        st.lists(PIECES, max_size=12).map(" ".join),
        st.lists(comparisons, min_size=1, max_size=4).map(" or ".join),
    ),
    st.sampled_from(["Cluster", "NodePool", "AdapterStatus"]),
)
def test_any_text_is_either_refused_or_runs(
    rows: psycopg.Connection, expression: str, kind: str
) -> None:
    try:
        condition = translate(expression, kind)
    except SearchError as error:
        assert 0 <= error.position <= len(expression)
        json.dumps(error.message).encode()
        error.message.encode()
        return
    try:
        found(rows, condition, kind)
    except psycopg.errors.InvalidRegularExpression:
        assert "~" in expression
