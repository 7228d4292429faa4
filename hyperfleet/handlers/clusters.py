"""Clusters."""

from typing import Any

import flask

from hyperfleet.handlers.changes import deleted, forced_out, patched
from hyperfleet.handlers.creation import created
from hyperfleet.handlers.response import listed, read
from hyperfleet.resources import resource


def get_clusters(**query: Any) -> flask.Response:
    """One page of clusters."""
    return listed("Cluster", query)


def post_cluster(body: dict[str, Any]) -> flask.Response:
    """Creates a cluster. A name that is taken is a conflict."""
    return created("Cluster", body)


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
