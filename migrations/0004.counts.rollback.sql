DROP TRIGGER node_pools_emptied ON node_pools;
DROP TRIGGER node_pools_removed ON node_pools;
DROP TRIGGER node_pools_added ON node_pools;
DROP TRIGGER clusters_emptied ON clusters;
DROP TRIGGER clusters_removed ON clusters;
DROP TRIGGER clusters_added ON clusters;
DROP FUNCTION hyperfleet_count;
DROP TABLE row_counts;
