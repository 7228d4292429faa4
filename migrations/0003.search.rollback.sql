DROP INDEX node_pools_named;
DROP INDEX node_pools_deleted;
DROP INDEX node_pools_phase;
DROP INDEX node_pools_available;
DROP INDEX node_pools_stale;
DROP INDEX node_pools_reconciled;
DROP INDEX clusters_deleted;
DROP INDEX clusters_phase;
DROP INDEX clusters_available;
DROP INDEX clusters_stale;
DROP INDEX clusters_reconciled;
ALTER TABLE node_pools
    DROP COLUMN phase, DROP COLUMN reconciled, DROP COLUMN reconciled_time, DROP COLUMN available;
ALTER TABLE clusters
    DROP COLUMN phase, DROP COLUMN reconciled, DROP COLUMN reconciled_time, DROP COLUMN available;
ALTER TABLE clusters ALTER COLUMN created_time RESET (n_distinct);
ALTER TABLE node_pools ALTER COLUMN created_time RESET (n_distinct);
DROP STATISTICS labels_pairs;
DROP TRIGGER labels_created_time ON labels;
DROP FUNCTION hyperfleet_label;
DROP INDEX labels_value;
ALTER TABLE labels DROP COLUMN created_time;
CREATE INDEX labels_value ON labels (owner_type, key, value, owner_id);
