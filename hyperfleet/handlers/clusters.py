"""Clusters."""

from typing import Any

import flask

from hyperfleet import database, idempotency, lifecycle, listing, projection, resource

CREATE = """
WITH created AS (
    INSERT INTO clusters
        (id, name, labels, spec, status, created_time, updated_time, created_by, updated_by)
    VALUES
        (%(id)s, %(name)s, %(labels)s, %(spec)s, %(status)s, %(at)s, %(at)s, %(by)s, %(by)s)
    RETURNING id, created_time, labels, document
), labelled AS (
    INSERT INTO labels (owner_type, owner_id, key, value, created_time)
    SELECT 'Cluster', created.id, label.key, label.value, created.created_time
    FROM created, jsonb_each_text(created.labels) AS label
)
SELECT document FROM created
"""

READ = "SELECT document, version FROM clusters WHERE id = %(id)s"


def get_clusters(**query: Any) -> flask.Response:
    """One page of clusters."""
    return listing.respond("Cluster", query)


def post_cluster(body: dict[str, Any]) -> flask.Response:
    """Creates a cluster. A name that is taken is a conflict."""
    shape = projection.asked("Cluster")
    values = resource.first_row("Cluster", body)
    location = f"{resource.BASE}/clusters/{values['id']}"
    with resource.unique_name("Cluster", values):
        created = idempotency.create(CREATE, values, body, location)
    assert created is not None
    (document,), location = created
    return resource.shaped(shape, document, 201, Location=location, ETag=resource.etag(1))


def get_cluster_by_id(cluster_id: str) -> flask.Response:
    """A cluster."""
    row = database.fetch_one(READ, resource.key_of(cluster_id))
    if row is None:
        raise resource.not_found("Cluster", cluster_id)
    return resource.show("Cluster", *row)


def patch_cluster_by_id(cluster_id: str, body: dict[str, Any]) -> flask.Response:
    """Changes a cluster's labels or spec."""
    return lifecycle.patch("Cluster", resource.key_of(cluster_id), body)


def delete_cluster_by_id(cluster_id: str) -> flask.Response:
    """Marks a cluster and its node pools as deleted."""
    return lifecycle.delete("Cluster", resource.key_of(cluster_id))


def force_delete_cluster(cluster_id: str, body: dict[str, Any]) -> flask.Response:
    """Removes a marked cluster and its node pools now."""
    return lifecycle.force_delete("Cluster", resource.key_of(cluster_id), body["reason"])
