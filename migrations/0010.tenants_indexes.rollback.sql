-- transactional: false
-- This fails as long as two tenants use the same name for something.
DROP INDEX CONCURRENTLY IF EXISTS resources_name;
CREATE UNIQUE INDEX CONCURRENTLY resources_name ON resources (kind, name) WHERE owner_id IS NULL;
DROP INDEX CONCURRENTLY IF EXISTS resources_name_of_tenant;
DROP INDEX CONCURRENTLY IF EXISTS clusters_name_of_all;
CREATE UNIQUE INDEX CONCURRENTLY clusters_name_of_all ON clusters (name);
-- Waiting for a table lock blocks all that come later, so wait only briefly, and retry.
DO $$
BEGIN
    LOOP
        BEGIN
            SET LOCAL lock_timeout = '500ms';
            ALTER TABLE clusters DROP CONSTRAINT clusters_name,
                ADD CONSTRAINT clusters_name UNIQUE USING INDEX clusters_name_of_all;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(1);
        END;
    END LOOP;
END
$$;
DROP INDEX CONCURRENTLY IF EXISTS resources_tenancy_kind;
DROP INDEX CONCURRENTLY IF EXISTS resources_tenancy;
DROP INDEX CONCURRENTLY IF EXISTS node_pools_tenancy;
DROP INDEX CONCURRENTLY IF EXISTS clusters_tenancy;
