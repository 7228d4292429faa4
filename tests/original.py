"""Databases as two versions of the original make and fill them: December 2025, and the newest."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

START = datetime(2025, 12, 1, 10, tzinfo=UTC)

STATUS = """
    status_phase varchar(50) NOT NULL DEFAULT 'NotReady',
    status_last_transition_time timestamptz, status_observed_generation integer NOT NULL DEFAULT 0,
    status_last_updated_time timestamptz, status_conditions jsonb,"""
FIRST = f"""
CREATE TABLE migrations (id varchar(255) PRIMARY KEY);
INSERT INTO migrations VALUES ('202511111044'), ('202511111055'), ('202511111105');
CREATE TABLE clusters (
    id varchar(255) PRIMARY KEY, created_time timestamptz NOT NULL DEFAULT now(),
    updated_time timestamptz NOT NULL DEFAULT now(), deleted_at timestamptz,
    kind varchar(255) NOT NULL DEFAULT 'Cluster', name varchar(63) NOT NULL, spec jsonb NOT NULL,
    labels jsonb, href varchar(500), generation integer NOT NULL DEFAULT 1, {STATUS}
    created_by varchar(255) NOT NULL, updated_by varchar(255) NOT NULL);
CREATE UNIQUE INDEX idx_clusters_name ON clusters (name) WHERE deleted_at IS NULL;
CREATE TABLE node_pools (
    id varchar(255) PRIMARY KEY, created_time timestamptz NOT NULL DEFAULT now(),
    updated_time timestamptz NOT NULL DEFAULT now(), deleted_at timestamptz,
    kind varchar(255) NOT NULL DEFAULT 'NodePool', name varchar(255) NOT NULL, spec jsonb NOT NULL,
    labels jsonb, href varchar(500), owner_id varchar(255) NOT NULL, owner_kind varchar(50) NOT NULL,
    owner_href varchar(500), generation integer NOT NULL DEFAULT 1, {STATUS}
    created_by varchar(255) NOT NULL, updated_by varchar(255) NOT NULL);
CREATE INDEX idx_node_pools_owner_id ON node_pools (owner_id);
ALTER TABLE node_pools ADD CONSTRAINT fk_node_pools_clusters FOREIGN KEY (owner_id)
    REFERENCES clusters (id) ON DELETE RESTRICT ON UPDATE RESTRICT;
CREATE TABLE adapter_statuses (
    id varchar(255) PRIMARY KEY, created_time timestamptz NOT NULL DEFAULT now(),
    updated_time timestamptz NOT NULL DEFAULT now(), deleted_at timestamptz,
    resource_type varchar(20) NOT NULL, resource_id varchar(255) NOT NULL,
    adapter varchar(255) NOT NULL, observed_generation integer NOT NULL,
    last_report_time timestamptz NOT NULL DEFAULT now(),
    conditions jsonb NOT NULL, data jsonb, metadata jsonb);
CREATE INDEX idx_adapter_statuses_resource ON adapter_statuses (resource_type, resource_id);
CREATE UNIQUE INDEX idx_adapter_statuses_unique
    ON adapter_statuses (resource_type, resource_id, adapter) WHERE deleted_at IS NULL;
"""
NEWEST = """
CREATE TABLE migrations (id varchar(255) PRIMARY KEY);
CREATE TABLE resources (
    id varchar(255) PRIMARY KEY, created_time timestamptz NOT NULL DEFAULT now(),
    updated_time timestamptz NOT NULL DEFAULT now(), deleted_time timestamptz,
    kind varchar(100) NOT NULL, name varchar(100) NOT NULL, href varchar(500),
    created_by varchar(255) NOT NULL, updated_by varchar(255) NOT NULL, deleted_by varchar(255),
    owner_id varchar(255), owner_kind varchar(100), owner_href varchar(500),
    spec jsonb NOT NULL, generation integer NOT NULL DEFAULT 1,
    tenancy jsonb NOT NULL DEFAULT '{}');
CREATE UNIQUE INDEX idx_resources_kind_name ON resources (kind, name, tenancy)
    WHERE owner_id IS NULL AND deleted_time IS NULL;
CREATE UNIQUE INDEX idx_resources_kind_owner_name ON resources (kind, owner_id, name)
    WHERE owner_id IS NOT NULL AND deleted_time IS NULL;
CREATE TABLE resource_conditions (
    resource_id varchar(255) NOT NULL REFERENCES resources ON DELETE CASCADE,
    type varchar(100) NOT NULL, status varchar(10) NOT NULL, reason text, message text,
    observed_generation integer NOT NULL DEFAULT 0, created_time timestamptz NOT NULL DEFAULT now(),
    last_updated_time timestamptz NOT NULL DEFAULT now(),
    last_transition_time timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (resource_id, type));
CREATE TABLE resource_labels (
    resource_id varchar(255) NOT NULL REFERENCES resources ON DELETE CASCADE,
    key varchar(255) NOT NULL, value varchar(255) NOT NULL, PRIMARY KEY (resource_id, key));
CREATE TABLE resource_references (
    source_id varchar(255) NOT NULL REFERENCES resources ON DELETE CASCADE,
    ref_type varchar(255) NOT NULL,
    target_id varchar(255) NOT NULL REFERENCES resources ON DELETE RESTRICT,
    target_kind varchar(100) NOT NULL, PRIMARY KEY (source_id, ref_type, target_id));
CREATE TABLE adapter_statuses (
    id varchar(255) PRIMARY KEY, created_time timestamptz NOT NULL DEFAULT now(),
    updated_time timestamptz NOT NULL DEFAULT now(),
    resource_type varchar(20) NOT NULL, resource_id varchar(255) NOT NULL,
    adapter varchar(255) NOT NULL, observed_generation integer NOT NULL,
    last_report_time timestamptz NOT NULL DEFAULT now(),
    conditions jsonb NOT NULL, data jsonb, metadata jsonb);
CREATE UNIQUE INDEX idx_adapter_statuses_unique
    ON adapter_statuses (resource_type, resource_id, adapter);
"""


def uid(number: int, kind: int = 0) -> str:
    """Returns an id like those of newer originals."""
    return f"019b0000-000{kind}-7000-8000-{number:012x}"


def ksuid(number: int) -> str:
    """Returns an id like those of December 2025: a KSUID in lower-case base 32."""
    return f"1rqhg3k0{number:024d}"


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def shown(minutes: float) -> str:
    """Returns a time as this service shows it."""
    return at(minutes).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Original:
    """The database of an original, and how its clients change it.

    :param newest: whether it is the newest version's
    """

    def __init__(self, conninfo: str, *, newest: bool = False) -> None:
        self.conninfo, self.newest = conninfo, newest
        self.conn = psycopg.connect(conninfo, autocommit=True)
        self.conn.execute(NEWEST if newest else FIRST)

    def insert(self, table: str, **values: Any) -> None:
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(map(sql.Placeholder, values)),
        )
        known = {k: Jsonb(v) if isinstance(v, dict | list) else v for k, v in values.items()}
        self.conn.execute(statement, known)

    def resource(self, kind: str, id_: str, name: str, owner: str | None = None, **more: Any) -> str:
        values: dict[str, Any] = {
            **{"id": id_, "kind": kind, "name": name, "spec": {"region": "eu-1", "nodes": 3}},
            **{"created_time": at(0), "updated_time": at(1), "generation": 1},
            **{"created_by": "ann@example.com", "updated_by": "bob@example.com"},
        }
        if owner:
            values |= {"owner_id": owner, "owner_kind": "Cluster"}
        values |= more
        labels = values.pop("labels", {"team": "a"})
        if self.newest:
            self.insert("resources", **values)
            for key, value in labels.items():
                self.insert("resource_labels", resource_id=id_, key=key, value=value)
        else:
            self.insert("clusters" if kind == "Cluster" else "node_pools", labels=labels, **values)
        return id_

    def cluster(self, id_: str, name: str, **more: Any) -> str:
        return self.resource("Cluster", id_, name, **more)

    def node_pool(self, id_: str, name: str, owner: str, **more: Any) -> str:
        return self.resource("NodePool", id_, name, owner, **more)

    def report(self, id_: str, adapter: str, status: str = "True", **more: Any) -> None:
        moment = more.pop("last_report_time", at(2))
        values: dict[str, Any] = {
            **{"id": f"r-{id_}-{adapter}", "resource_type": "Cluster", "resource_id": id_},
            **{"adapter": adapter, "observed_generation": 1, "data": {"zone": "z1"}},
            **{"created_time": at(1.5), "updated_time": moment, "last_report_time": moment},
            "conditions": [
                {
                    **{"type": "Available", "status": status, "reason": "Made", "message": "It is so."},
                    "last_transition_time": at(1.75).isoformat(),
                },
                {"type": "Health", "status": "True", "last_transition_time": at(1.75).isoformat()},
            ],
        }
        self.insert("adapter_statuses", **{**values, **more})

    def checksum(self) -> list[Any]:
        """Returns checksums that would differ if anything had been written."""
        tables = ("resources", "resource_labels") if self.newest else ("clusters", "node_pools")
        found = []
        for table in (*tables, "adapter_statuses"):
            query = sql.SQL(
                "SELECT md5(string_agg(t::text || xmin::text, ',' ORDER BY t::text)) FROM {} t"
            )
            found.append(self.conn.execute(query.format(sql.Identifier(table))).fetchone())
        return found

    def fleet(self, size: int, pools: int = 2, reports: int = 3) -> None:
        """Creates many clusters at once, each with node pools and reports."""
        conditions = json.dumps(
            [
                {"type": kind, "status": "True", "last_transition_time": at(1).isoformat()}
                for kind in ("Available", "Applied", "Health")
            ]
        )
        first = "kind, created_by, updated_by, created_time, updated_time"
        values = {"t": at(0), "size": size, "pools": pools, "reports": reports, "c": conditions}
        for kind, table, ids in (
            ("Cluster", "clusters", "SELECT n, 0 AS p FROM generate_series(1, %(size)s) n"),
            (
                "NodePool",
                "node_pools",
                "SELECT n, p FROM generate_series(1, %(size)s) n, generate_series(1, %(pools)s) p",
            ),
        ):
            id_ = "'019b0000-000' || p || '-7000-8000-' || lpad(to_hex(n), 12, '0')"
            owner = "'019b0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0')"
            name = "'c' || n" if kind == "Cluster" else "'p' || p"
            more, given = (", owner_id, owner_kind", f", {owner}, 'Cluster'")
            if kind == "Cluster":
                more, given = "", ""
            self.conn.execute(
                f"INSERT INTO {table} (id, name, labels, spec, {first}{more})"
                f" SELECT {id_}, {name}, jsonb_build_object('n', n::text), '{{\"region\": \"eu\"}}',"
                f" '{kind}', 'a', 'a', %(t)s, %(t)s{given} FROM ({ids}) AS ids",
                values,
            )
            self.conn.execute(
                "INSERT INTO adapter_statuses (id, resource_type, resource_id, adapter,"
                " observed_generation, conditions, data, created_time, updated_time, last_report_time)"
                f" SELECT id || r, '{kind}', id, 'adapter-' || r, 1, %(c)s, '{{}}', %(t)s, %(t)s, %(t)s"
                f" FROM {table}, generate_series(1, %(reports)s) r",
                values,
            )
        self.conn.execute("ANALYZE")
