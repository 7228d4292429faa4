"""The operations on node pools by their names in the contract, for paths with and without a cluster."""

from functools import partial

from hyperfleet.handlers import operations

get_node_pools = get_node_pools_by_cluster_id = partial(operations.get_resources, "NodePool")
create_node_pool = partial(operations.post_resource, "NodePool")
get_node_pool_by_id = get_node_pool = partial(operations.get_resource_by_id, "NodePool")
patch_node_pool_by_id = patch_node_pool = partial(operations.patch_resource_by_id, "NodePool")
delete_node_pool_by_id = delete_node_pool = partial(operations.delete_resource_by_id, "NodePool")
force_delete_node_pool = partial(operations.force_delete_resource, "NodePool")
force_delete_node_pool_by_id = force_delete_node_pool
get_node_pools_statuses = partial(operations.get_resource_statuses, "NodePool")
get_node_pool_adapter_statuses = get_node_pools_statuses
get_statuses_of_node_pool = get_adapter_statuses_of_node_pool = get_node_pools_statuses
put_node_pool_statuses = partial(operations.put_resource_statuses, "NodePool")
put_statuses_of_node_pool = put_node_pool_statuses
# Older clients POST what newer ones PUT.
post_node_pool_statuses = post_statuses_of_node_pool = put_node_pool_statuses
get_node_pool_history = partial(operations.get_resource_history, "NodePool")
get_history_of_node_pool = get_node_pool_history
get_node_pool_generation = partial(operations.get_resource_generation, "NodePool")
get_generation_of_node_pool = get_node_pool_generation
get_node_pool_generation_diff = partial(operations.get_resource_generation_diff, "NodePool")
get_generation_diff_of_node_pool = get_node_pool_generation_diff
rollback_node_pool = rollback_node_pool_by_id = partial(operations.rollback_resource, "NodePool")
get_node_pool_transitions = partial(operations.get_resource_transitions, "NodePool")
get_transitions_of_node_pool = get_node_pool_transitions
