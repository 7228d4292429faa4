"""Clusters, node pools and reports for searches to find."""

from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from hyperfleet.lists.search import Condition


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
