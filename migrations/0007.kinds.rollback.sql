DELETE FROM labels WHERE owner_type NOT IN ('Cluster', 'NodePool');
ALTER TABLE labels DROP CONSTRAINT labels_owner_type_check;
ALTER TABLE labels ADD CONSTRAINT labels_owner_type_check
    CHECK (owner_type IN ('Cluster', 'NodePool')) NOT VALID;
DELETE FROM adapter_statuses WHERE owner_type NOT IN ('Cluster', 'NodePool');
ALTER TABLE adapter_statuses DROP CONSTRAINT adapter_statuses_owner_type_check;
ALTER TABLE adapter_statuses ADD CONSTRAINT adapter_statuses_owner_type_check
    CHECK (owner_type IN ('Cluster', 'NodePool')) NOT VALID;
DROP VIEW all_resources;
DROP TABLE resources;
DROP FUNCTION hyperfleet_count_kinds;
DROP FUNCTION hyperfleet_resource;
DELETE FROM row_counts WHERE table_name ~ '^resources/';
