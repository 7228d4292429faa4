"""Clusters."""

from typing import Any

import flask

from hyperfleet import idempotency, resource
from hyperfleet.auth.identity import caller
from hyperfleet.handlers import request
from hyperfleet.handlers.changes import deleted, forced_out, patched
from hyperfleet.handlers.response import listed, read, shown
from hyperfleet.kinds import BASE
from hyperfleet.lifecycle import Stored

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
SELECT document::bpchar FROM created
"""


def get_clusters(**query: Any) -> flask.Response:
    """One page of clusters."""
    return listed("Cluster", query)


def post_cluster(body: dict[str, Any]) -> flask.Response:
    """Creates a cluster. A name that is taken is a conflict."""
    service, shape = request.service(), request.shape("Cluster")
    values = resource.first_row("Cluster", body, service.required("Cluster"), caller())
    location = f"{BASE}/clusters/{values['id']}"
    with resource.unique_name(service, "Cluster", values):
        created = idempotency.create(service.pool, request.once(body), CREATE, values, location)
    assert created is not None
    (document,), location = created
    return shown(shape, Stored(document, 1), 201, location)


def get_cluster_by_id(cluster_id: str) -> flask.Response:
    """A cluster."""
    return read("Cluster", resource.key_of(cluster_id))


def patch_cluster_by_id(cluster_id: str, body: dict[str, Any]) -> flask.Response:
    """Changes a cluster's labels or spec."""
    return patched("Cluster", resource.key_of(cluster_id), body)


def delete_cluster_by_id(cluster_id: str) -> flask.Response:
    """Marks a cluster and its node pools as deleted."""
    return deleted("Cluster", resource.key_of(cluster_id))


def force_delete_cluster(cluster_id: str, body: dict[str, Any]) -> flask.Response:
    """Removes a marked cluster and its node pools now."""
    return forced_out("Cluster", resource.key_of(cluster_id), body["reason"])
