"""A program that uses the client that openapi-python-client generates from the contract."""

import sys

from hyperfleet_client import Client
from hyperfleet_client.api.clusters import (
    delete_cluster_by_id,
    get_cluster_by_id,
    get_clusters,
    patch_cluster_by_id,
    post_cluster,
)
from hyperfleet_client.api.node_pools import create_node_pool, get_node_pool
from hyperfleet_client.api.statuses import put_cluster_statuses
from hyperfleet_client.models import (
    AdapterStatus,
    AdapterStatusCreateRequest,
    Cluster,
    ClusterCreateRequest,
    ClusterList,
    ClusterPatchRequest,
    ClusterSpec,
    ConditionRequest,
    ConditionStatus,
    Labels,
    NodePool,
    NodePoolCreateRequest,
    NodePoolSpec,
    ProblemDetails,
)

client = Client(base_url=sys.argv[1])
body = ClusterCreateRequest(
    name="by-python",
    spec=ClusterSpec.from_dict({"nodes": 3}),
    labels=Labels.from_dict({"made-by": "python"}),
)
created = post_cluster.sync(client=client, body=body)
assert isinstance(created, Cluster), created
listed = get_clusters.sync(client=client, search="labels.made-by='python'", page_size=10)
assert isinstance(listed, ClusterList), listed
assert (listed.total, listed.items[0].id) == (1, created.id)
condition = ConditionRequest(type_="Available", status=ConditionStatus.TRUE, reason="Resolves")
report = AdapterStatusCreateRequest(adapter="dns", observed_generation=1, conditions=[condition])
reported = put_cluster_statuses.sync(created.id, client=client, body=report)
assert isinstance(reported, AdapterStatus), reported
assert reported.conditions[0].reason == "Resolves"
got = get_cluster_by_id.sync(created.id, client=client)
assert isinstance(got, Cluster), got
assert got.status.phase == "Ready"
change = ClusterPatchRequest(spec=ClusterSpec.from_dict({"nodes": 5}))
patched = patch_cluster_by_id.sync(created.id, client=client, body=change)
assert isinstance(patched, Cluster), patched
assert patched.generation == 2
pool = create_node_pool.sync(
    created.id,
    client=client,
    body=NodePoolCreateRequest(name="workers", spec=NodePoolSpec.from_dict({"replicas": 2})),
)
assert isinstance(pool, NodePool), pool
assert isinstance(get_node_pool.sync(pool.id, client=client), NodePool)
taken = post_cluster.sync(client=client, body=body)
assert isinstance(taken, ProblemDetails), taken
assert taken.status == 409
deleted = delete_cluster_by_id.sync(created.id, client=client)
assert isinstance(deleted, Cluster), deleted
assert deleted.deleted_time
