DROP VIEW audit_records;
DROP TRIGGER audit_tenants ON audit;
DROP FUNCTION hyperfleet_audited;
DELETE FROM audit WHERE reason IS NULL OR resource_id IS NULL OR document IS NULL;
ALTER TABLE audit
    DROP COLUMN name, DROP COLUMN generation, DROP COLUMN request, DROP COLUMN method,
    DROP COLUMN path, DROP COLUMN status, DROP COLUMN code, DROP COLUMN tenancy,
    ALTER COLUMN reason SET NOT NULL, ALTER COLUMN resource_id SET NOT NULL,
    ALTER COLUMN document SET NOT NULL;
DROP TRIGGER resources_forgotten ON resources;
DROP TRIGGER node_pools_forgotten ON node_pools;
DROP TRIGGER clusters_forgotten ON clusters;
DROP FUNCTION hyperfleet_forget;
DROP VIEW all_transitions;
DROP TRIGGER resources_transition ON resources;
DROP TRIGGER node_pools_transition ON node_pools;
DROP TRIGGER clusters_transition ON clusters;
DROP FUNCTION hyperfleet_transition;
DROP TABLE transitions;
DROP VIEW all_generations;
DROP TRIGGER resources_generation ON resources;
DROP TRIGGER node_pools_generation ON node_pools;
DROP TRIGGER clusters_generation ON clusters;
DROP FUNCTION hyperfleet_generation;
DROP TABLE generations;
ALTER TABLE resources DROP COLUMN request;
ALTER TABLE node_pools DROP COLUMN request;
ALTER TABLE clusters DROP COLUMN request;
