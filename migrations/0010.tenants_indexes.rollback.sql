-- transactional: false
-- This fails as long as two tenants have the same name for something.
DROP INDEX IF EXISTS resources_name;
CREATE UNIQUE INDEX CONCURRENTLY resources_name ON resources (kind, name) WHERE owner_id IS NULL;
DROP INDEX IF EXISTS resources_name_of_tenant;
DROP INDEX IF EXISTS clusters_name_of_all;
CREATE UNIQUE INDEX CONCURRENTLY clusters_name_of_all ON clusters (name);
ALTER TABLE clusters DROP CONSTRAINT clusters_name,
    ADD CONSTRAINT clusters_name UNIQUE USING INDEX clusters_name_of_all;
DROP INDEX IF EXISTS resources_tenancy_kind;
DROP INDEX IF EXISTS resources_tenancy;
DROP INDEX IF EXISTS node_pools_tenancy;
DROP INDEX IF EXISTS clusters_tenancy;
