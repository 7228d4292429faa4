"""Node pools."""

from typing import Any

import flask

from hyperfleet import database, listing, resource
from hyperfleet.errors import MARKED, Problem

# The lock keeps the owner from being marked or removed until the node pool is there to be seen.
CREATE = """
WITH owner AS (
    SELECT id, deleted_time FROM clusters WHERE id = %(owner_id)s FOR SHARE
), created AS (
    INSERT INTO node_pools
        (id, owner_id, name, labels, spec, status, created_time, updated_time, created_by, updated_by)
    SELECT %(id)s, owner.id, %(name)s, %(labels)s, %(spec)s, %(status)s, %(at)s, %(at)s, %(by)s, %(by)s
    FROM owner WHERE owner.deleted_time IS NULL
    RETURNING id, labels, document
), labelled AS (
    INSERT INTO labels (owner_type, owner_id, key, value)
    SELECT 'NodePool', created.id, label.key, label.value
    FROM created, jsonb_each_text(created.labels) AS label
)
SELECT created.document FROM owner LEFT JOIN created ON true
"""

READ = "SELECT document FROM node_pools WHERE id = %(id)s AND owner_id = %(owner_id)s"

OWNER = "SELECT 1 FROM clusters WHERE id = %(owner_id)s"


def get_node_pools(**query: Any) -> flask.Response:
    """One page of the node pools of all clusters."""
    return listing.respond("NodePool", query)


def get_node_pools_by_cluster_id(cluster_id: str, **query: Any) -> flask.Response:
    """One page of the node pools of a cluster."""
    owner = {"owner_id": resource.key("Cluster", cluster_id)}
    missing = resource.not_found("Cluster", cluster_id)
    return listing.respond(
        "NodePool", query, "owner_id = %(owner_id)s", owner, exists=OWNER, otherwise=missing
    )


def create_node_pool(cluster_id: str, body: dict[str, Any]) -> flask.Response:
    """Creates a node pool. A name that its cluster has already is a conflict, and so is a cluster
    that is being deleted.
    """
    values = resource.first_row("NodePool", body)
    values["owner_id"] = resource.key("Cluster", cluster_id)
    row = database.fetch_one(CREATE, values)
    if row is None:
        raise resource.not_found("Cluster", cluster_id)
    if row[0] is None:
        raise Problem(MARKED, "The cluster is being deleted; it takes no new node pools.")
    location = f"{resource.BASE}/clusters/{cluster_id}/nodepools/{values['id']}"
    return resource.answer(row[0], 201, Location=location)


def get_node_pool_by_id(cluster_id: str, nodepool_id: str) -> flask.Response:
    """A node pool, found under its own cluster alone."""
    values = {
        "id": resource.key("NodePool", nodepool_id),
        "owner_id": resource.key("Cluster", cluster_id),
    }
    row = database.fetch_one(READ, values)
    if row is None:
        raise resource.not_found("NodePool", nodepool_id)
    return resource.answer(row[0])
