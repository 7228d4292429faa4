-- References between resources, as declared; see docs/kinds.md.

-- A resource's references by type, as the API shows them; null if it has none. They are not part of
-- document, since changing that would rewrite every row.
ALTER TABLE clusters ADD COLUMN refs jsonb;
ALTER TABLE node_pools ADD COLUMN refs jsonb;
ALTER TABLE resources ADD COLUMN refs jsonb;

-- The same, searchable from both ends. Source and target may each be in any of three tables, so foreign
-- keys are not possible: targets are locked while references to them are stored. A reference whose
-- source is gone has no effect; it is removed once its target has been checked.
CREATE TABLE resource_references (
    source_kind text NOT NULL CHECK (source_kind ~ '^[A-Z][A-Za-z0-9]{0,62}$'),
    source_id uuid NOT NULL,
    ref_type text NOT NULL,
    target_kind text NOT NULL CHECK (target_kind ~ '^[A-Z][A-Za-z0-9]{0,62}$'),
    target_id uuid NOT NULL,
    -- The source's, which never changes, so that an index yields references newest first.
    created_time timestamptz NOT NULL,
    -- Whether the target stays until the source is gone; false if both are deleted together.
    keeps boolean NOT NULL DEFAULT true,
    PRIMARY KEY (source_id, ref_type, target_id)
);
CREATE INDEX resource_references_target
    ON resource_references (target_id, source_kind, ref_type, created_time DESC, source_id DESC);
CREATE INDEX resource_references_type
    ON resource_references (source_kind, ref_type, created_time DESC, source_id DESC);
-- As for labels: the id alone determines which rows match.
ALTER TABLE resource_references ALTER COLUMN created_time SET (n_distinct = 1);

CREATE OR REPLACE VIEW all_resources AS
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
