-- References between resources. Which there may be is declared; see docs/kinds.md.

-- What is shown of a resource's references, by their types; null where it has none. It is no part of
-- document: to make that anew would rewrite each row.
ALTER TABLE clusters ADD COLUMN refs jsonb;
ALTER TABLE node_pools ADD COLUMN refs jsonb;
ALTER TABLE resources ADD COLUMN refs jsonb;

-- The same, to be found from both ends. Who refers, and what is referred to, may be in three tables, so
-- no foreign key can name them: what is referred to is locked while it is. A reference whose source is
-- gone counts for nothing; it is removed once what it leads to was looked at.
CREATE TABLE resource_references (
    source_kind text NOT NULL CHECK (source_kind ~ '^[A-Z][A-Za-z0-9]{0,62}$'),
    source_id uuid NOT NULL,
    ref_type text NOT NULL,
    target_kind text NOT NULL CHECK (target_kind ~ '^[A-Z][A-Za-z0-9]{0,62}$'),
    target_id uuid NOT NULL,
    -- That of the source, which never changes: its references come out of an index newest first.
    created_time timestamptz NOT NULL,
    -- Whether the target stays until the source is gone; what is deleted together need not.
    keeps boolean NOT NULL DEFAULT true,
    PRIMARY KEY (source_id, ref_type, target_id)
);
CREATE INDEX resource_references_target
    ON resource_references (target_id, source_kind, ref_type, created_time DESC, source_id DESC);
CREATE INDEX resource_references_type
    ON resource_references (source_kind, ref_type, created_time DESC, source_id DESC);
-- As for labels: the id alone decides what belongs together.
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
