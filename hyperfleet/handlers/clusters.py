"""Clusters."""

from typing import Any

import flask

from hyperfleet import database, listing, resource

CREATE = """
WITH created AS (
    INSERT INTO clusters
        (id, name, labels, spec, status, created_time, updated_time, created_by, updated_by)
    VALUES
        (%(id)s, %(name)s, %(labels)s, %(spec)s, %(status)s, %(at)s, %(at)s, %(by)s, %(by)s)
    RETURNING id, labels, document
), labelled AS (
    INSERT INTO labels (owner_type, owner_id, key, value)
    SELECT 'Cluster', created.id, label.key, label.value
    FROM created, jsonb_each_text(created.labels) AS label
)
SELECT document FROM created
"""

READ = "SELECT document FROM clusters WHERE id = %(id)s"


def get_clusters(**query: Any) -> flask.Response:
    """One page of clusters."""
    return listing.respond("Cluster", query)


def post_cluster(body: dict[str, Any]) -> flask.Response:
    """Creates a cluster. A name that is taken is a conflict."""
    values = resource.first_row("Cluster", body)
    row = database.fetch_one(CREATE, values)
    assert row is not None
    return resource.answer(row[0], 201, Location=f"{resource.BASE}/clusters/{values['id']}")


def get_cluster_by_id(cluster_id: str) -> flask.Response:
    """A cluster."""
    row = database.fetch_one(READ, {"id": resource.key("Cluster", cluster_id)})
    if row is None:
        raise resource.not_found("Cluster", cluster_id)
    return resource.answer(row[0])
