-- transactional: false
-- The indexes of migration 0009: built while the service goes on writing, each in a transaction of its
-- own. One that was left unfinished is built anew.

-- Those of lists have no entry for what is of no tenant, so that a report on that writes none.
DROP INDEX IF EXISTS clusters_tenancy;
CREATE INDEX CONCURRENTLY clusters_tenancy ON clusters (tenancy, created_time DESC, id DESC)
    WHERE tenancy <> '{}';
DROP INDEX IF EXISTS node_pools_tenancy;
CREATE INDEX CONCURRENTLY node_pools_tenancy ON node_pools (tenancy, created_time DESC, id DESC)
    WHERE tenancy <> '{}';
DROP INDEX IF EXISTS resources_tenancy;
CREATE INDEX CONCURRENTLY resources_tenancy ON resources (tenancy, created_time DESC, id DESC)
    WHERE tenancy <> '{}';
DROP INDEX IF EXISTS resources_tenancy_kind;
CREATE INDEX CONCURRENTLY resources_tenancy_kind
    ON resources (tenancy, kind, created_time DESC, id DESC) WHERE tenancy <> '{}';

-- A name is unique within a tenant. The constraint keeps its name, which the version before uses.
DROP INDEX IF EXISTS clusters_name_of_tenant;
CREATE UNIQUE INDEX CONCURRENTLY clusters_name_of_tenant ON clusters (name, tenancy);
ALTER TABLE clusters DROP CONSTRAINT clusters_name,
    ADD CONSTRAINT clusters_name UNIQUE USING INDEX clusters_name_of_tenant;
DROP INDEX IF EXISTS resources_name_of_tenant;
CREATE UNIQUE INDEX CONCURRENTLY resources_name_of_tenant ON resources (kind, name, tenancy)
    WHERE owner_id IS NULL;
DROP INDEX IF EXISTS resources_name;
