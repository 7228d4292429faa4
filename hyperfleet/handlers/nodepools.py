"""Node pools."""

from typing import Any

import flask

from hyperfleet.handlers.changes import deleted, forced_out, patched
from hyperfleet.handlers.creation import created
from hyperfleet.handlers.response import below, listed, read
from hyperfleet.resources import resource


def get_node_pools(**query: Any) -> flask.Response:
    """One page of the node pools of all clusters."""
    return listed("NodePool", query)


def get_node_pools_by_cluster_id(cluster_id: str, **query: Any) -> flask.Response:
    """One page of the node pools of a cluster."""
    return listed("NodePool", query, below("Cluster", resource.key("Cluster", cluster_id)))


def create_node_pool(cluster_id: str, body: dict[str, Any]) -> flask.Response:
    """Creates a node pool. A name that its cluster has already is a conflict, and so is a cluster
    that is being deleted.
    """
    return created("NodePool", body, cluster_id)


def get_node_pool_by_id(nodepool_id: str, cluster_id: str | None = None) -> flask.Response:
    """A node pool; where a cluster is named, found under that one alone."""
    return read("NodePool", resource.key_of(cluster_id, nodepool_id))


def patch_node_pool_by_id(
    nodepool_id: str, body: dict[str, Any], cluster_id: str | None = None
) -> flask.Response:
    """Changes a node pool's labels or spec."""
    return patched("NodePool", resource.key_of(cluster_id, nodepool_id), body)


def delete_node_pool_by_id(nodepool_id: str, cluster_id: str | None = None) -> flask.Response:
    """Marks a node pool as deleted."""
    return deleted("NodePool", resource.key_of(cluster_id, nodepool_id))


def force_delete_node_pool(
    nodepool_id: str, body: dict[str, Any], cluster_id: str | None = None
) -> flask.Response:
    """Removes a marked node pool now."""
    return forced_out("NodePool", resource.key_of(cluster_id, nodepool_id), body["reason"])


# The same where the path names no cluster.
get_node_pool = get_node_pool_by_id
patch_node_pool = patch_node_pool_by_id
delete_node_pool = delete_node_pool_by_id
force_delete_node_pool_by_id = force_delete_node_pool
