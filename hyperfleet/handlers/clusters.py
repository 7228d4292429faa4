"""The operations on clusters, by their names in the contract."""

from functools import partial

from hyperfleet.handlers import operations

get_clusters = partial(operations.get_resources, "Cluster")
post_cluster = partial(operations.post_resource, "Cluster")
get_cluster_by_id = partial(operations.get_resource_by_id, "Cluster")
patch_cluster_by_id = partial(operations.patch_resource_by_id, "Cluster")
delete_cluster_by_id = partial(operations.delete_resource_by_id, "Cluster")
force_delete_cluster = partial(operations.force_delete_resource, "Cluster")
get_cluster_statuses = partial(operations.get_resource_statuses, "Cluster")
get_cluster_adapter_statuses = get_cluster_statuses
# Older clients send reports with POST, newer ones with PUT.
post_cluster_statuses = put_cluster_statuses = partial(operations.put_resource_statuses, "Cluster")
get_cluster_history = partial(operations.get_resource_history, "Cluster")
get_cluster_generation = partial(operations.get_resource_generation, "Cluster")
get_cluster_generation_diff = partial(operations.get_resource_generation_diff, "Cluster")
rollback_cluster = partial(operations.rollback_resource, "Cluster")
get_cluster_transitions = partial(operations.get_resource_transitions, "Cluster")
