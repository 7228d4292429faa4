"""Clusters."""

from collections.abc import Mapping
from typing import Any, LiteralString

import flask

from hyperfleet.changes import audit
from hyperfleet.engine.greenlets import wait_for
from hyperfleet.handlers.changes import deleted, forced_out, patched
from hyperfleet.handlers.creation import LABELLED, Row, created
from hyperfleet.handlers.response import listed, read
from hyperfleet.resources import resource
from hyperfleet.service import Service

# In one order, so that no two who create several wait for each other; and one whose name somebody else
# is about to give does not keep the others waiting.
CREATED = """
, patience AS MATERIALIZED (
    SELECT set_config('lock_timeout', coalesce(%(patience)s, current_setting('lock_timeout')), true)
), created AS (
    INSERT INTO clusters
        (id, name, labels, spec, status, created_time, updated_time, created_by, updated_by, request,
         tenancy)
    SELECT id, name, labels, spec, status, at, at, by, by, request, tenancy
    FROM given, patience ORDER BY name, tenancy
    ON CONFLICT ON CONSTRAINT clusters_name DO NOTHING
    RETURNING id, created_time, labels, document, tenancy
)"""
RECORDED: LiteralString = (LABELLED + audit.CREATED).format(kind="Cluster")
FOUND = "SELECT id::text, document::bpchar FROM created"
CREATE: LiteralString = "/* clusters_create */" + resource.GIVEN + CREATED + RECORDED + FOUND


def get_clusters(**query: Any) -> flask.Response:
    """One page of clusters."""
    return listed("Cluster", query)


def post_cluster(body: dict[str, Any]) -> flask.Response:
    """Creates a cluster. A name that is taken is a conflict."""
    return created("Cluster", body, CREATE, run=_together)


def _together(service: Service, statement: LiteralString, values: Mapping[str, Any]) -> Row:
    """Creates a cluster along with those that others create at the same moment."""
    return wait_for(service.together(statement).get(values["id"], values))


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
