-- transactional: false
-- The indexes for migration 0009, built while the service continues to write, each in its own
-- transaction. An index that was left unfinished is built anew.

-- The indexes for lists omit rows without a tenant, so that reports on these write no entries.
DROP INDEX CONCURRENTLY IF EXISTS clusters_tenancy;
CREATE INDEX CONCURRENTLY clusters_tenancy ON clusters (tenancy, created_time DESC, id DESC)
    WHERE tenancy <> '{}';
DROP INDEX CONCURRENTLY IF EXISTS node_pools_tenancy;
CREATE INDEX CONCURRENTLY node_pools_tenancy ON node_pools (tenancy, created_time DESC, id DESC)
    WHERE tenancy <> '{}';
DROP INDEX CONCURRENTLY IF EXISTS resources_tenancy;
CREATE INDEX CONCURRENTLY resources_tenancy ON resources (tenancy, created_time DESC, id DESC)
    WHERE tenancy <> '{}';
DROP INDEX CONCURRENTLY IF EXISTS resources_tenancy_kind;
CREATE INDEX CONCURRENTLY resources_tenancy_kind
    ON resources (tenancy, kind, created_time DESC, id DESC) WHERE tenancy <> '{}';

-- A name is unique within a tenant. The constraint keeps its name, which the previous version uses.
DROP INDEX CONCURRENTLY IF EXISTS clusters_name_of_tenant;
CREATE UNIQUE INDEX CONCURRENTLY clusters_name_of_tenant ON clusters (name, tenancy);
-- Waiting for a table lock blocks all that come later, so wait only briefly, and retry.
DO $$
BEGIN
    LOOP
        BEGIN
            SET LOCAL lock_timeout = '500ms';
            ALTER TABLE clusters DROP CONSTRAINT clusters_name,
                ADD CONSTRAINT clusters_name UNIQUE USING INDEX clusters_name_of_tenant;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(1);
        END;
    END LOOP;
END
$$;
DROP INDEX CONCURRENTLY IF EXISTS resources_name_of_tenant;
CREATE UNIQUE INDEX CONCURRENTLY resources_name_of_tenant ON resources (kind, name, tenancy)
    WHERE owner_id IS NULL;
DROP INDEX CONCURRENTLY IF EXISTS resources_name;
