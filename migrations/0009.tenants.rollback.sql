DROP VIEW all_resources;
CREATE VIEW all_resources AS
    SELECT id, 'Cluster'::text AS kind, NULL::uuid AS owner_id, name, generation, version, labels, spec,
           status, created_time, updated_time, created_by, updated_by, deleted_time, deleted_by, document,
           phase, reconciled, reconciled_time, available, refs
    FROM clusters
    UNION ALL
    SELECT id, 'NodePool', owner_id, name, generation, version, labels, spec,
           status, created_time, updated_time, created_by, updated_by, deleted_time, deleted_by, document,
           phase, reconciled, reconciled_time, available, refs
    FROM node_pools
    UNION ALL
    SELECT id, kind, owner_id, name, generation, version, labels, spec,
           status, created_time, updated_time, created_by, updated_by, deleted_time, deleted_by, document,
           phase, reconciled, reconciled_time, available, refs
    FROM resources;
DROP TRIGGER resources_moved ON resources;
DROP TRIGGER node_pools_moved ON node_pools;
DROP TRIGGER clusters_moved ON clusters;
DROP FUNCTION hyperfleet_count_moved;
CREATE OR REPLACE FUNCTION hyperfleet_count() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    difference bigint;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM row_counts WHERE table_name = TG_TABLE_NAME;
        RETURN NULL;
    END IF;
    difference := (SELECT count(*) FROM changed);
    IF difference = 0 THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        difference := -difference;
    END IF;
    INSERT INTO row_counts (table_name, difference) VALUES (TG_TABLE_NAME, difference);
    IF random() < 0.02 THEN
        WITH found AS (
            SELECT id FROM row_counts WHERE table_name = TG_TABLE_NAME FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM row_counts USING found WHERE row_counts.id = found.id
            RETURNING row_counts.difference
        )
        INSERT INTO row_counts (table_name, difference)
        SELECT TG_TABLE_NAME, sum(gone.difference) FROM gone HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END
$$;
CREATE OR REPLACE FUNCTION hyperfleet_count_kinds() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM row_counts WHERE table_name ~ '^resources/';
        RETURN NULL;
    END IF;
    INSERT INTO row_counts (table_name, difference)
    SELECT 'resources/' || changed.kind, CASE TG_OP WHEN 'DELETE' THEN -count(*) ELSE count(*) END
    FROM changed GROUP BY changed.kind;
    IF random() < 0.02 THEN
        WITH found AS (
            SELECT id FROM row_counts WHERE table_name ~ '^resources/' FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM row_counts USING found WHERE row_counts.id = found.id
            RETURNING row_counts.table_name, row_counts.difference
        )
        INSERT INTO row_counts (table_name, difference)
        SELECT gone.table_name, sum(gone.difference) FROM gone GROUP BY gone.table_name;
    END IF;
    RETURN NULL;
END
$$;
DROP FUNCTION hyperfleet_sum_up;
DROP TABLE tenant_counts;
DROP TABLE tenants;
ALTER TABLE resources DROP COLUMN tenancy;
ALTER TABLE node_pools DROP COLUMN tenancy;
ALTER TABLE clusters DROP COLUMN tenancy;
