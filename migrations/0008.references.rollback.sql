-- There is no other way to drop a column of a view.
DROP VIEW all_resources;
CREATE VIEW all_resources AS
    SELECT id, 'Cluster'::text AS kind, NULL::uuid AS owner_id, name, generation, version, labels, spec,
           status, created_time, updated_time, created_by, updated_by, deleted_time, deleted_by, document,
           phase, reconciled, reconciled_time, available
    FROM clusters
    UNION ALL
    SELECT id, 'NodePool', owner_id, name, generation, version, labels, spec,
           status, created_time, updated_time, created_by, updated_by, deleted_time, deleted_by, document,
           phase, reconciled, reconciled_time, available
    FROM node_pools
    UNION ALL
    SELECT id, kind, owner_id, name, generation, version, labels, spec,
           status, created_time, updated_time, created_by, updated_by, deleted_time, deleted_by, document,
           phase, reconciled, reconciled_time, available
    FROM resources;
DROP TABLE resource_references;
ALTER TABLE resources DROP COLUMN refs;
ALTER TABLE node_pools DROP COLUMN refs;
ALTER TABLE clusters DROP COLUMN refs;
