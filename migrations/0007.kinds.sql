-- Resources of all kinds that an operator declares. Clusters and node pools keep their own tables.

-- The finished JSON text of such a resource. Unlike a cluster's, its address and its owner's depend on
-- the declaration, so they are stored.
CREATE FUNCTION hyperfleet_resource(
    kind text, id uuid, href text, owner_kind text, owner_id uuid, owner_href text,
    name text, generation bigint, labels jsonb, spec jsonb, status jsonb,
    created_time text, updated_time text, created_by text, updated_by text,
    deleted_time text, deleted_by text
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.concat(
        '{"kind":"', kind, '","id":"', id, '","href":"', href,
        '","name":', pg_catalog.to_json(name),
        CASE WHEN owner_id IS NOT NULL THEN pg_catalog.concat(
            ',"owner_references":{"kind":"', owner_kind, '","id":"', owner_id,
            '","href":"', owner_href, '"}') END,
        ',"generation":', generation,
        ',"labels":', labels,
        ',"spec":', spec,
        ',"created_time":"', created_time,
        '","updated_time":"', updated_time,
        '","created_by":', pg_catalog.to_json(created_by),
        ',"updated_by":', pg_catalog.to_json(updated_by),
        CASE WHEN deleted_time IS NOT NULL THEN pg_catalog.concat(
            ',"deleted_time":"', deleted_time,
            '","deleted_by":', pg_catalog.to_json(deleted_by)) END,
        ',"status":', status, '}')
$$;

-- An owner may be in any of three tables, so a foreign key is not possible: creating a resource locks
-- its owner, and before an owner is removed, what belongs to it is removed.
CREATE TABLE resources (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind ~ '^[A-Z][A-Za-z0-9]{0,62}$'),
    href text NOT NULL CHECK (href ~ '^[-a-z0-9/]+$'),
    owner_kind text CHECK (owner_kind ~ '^[A-Z][A-Za-z0-9]{0,62}$'),
    owner_id uuid,
    owner_href text CHECK (owner_href ~ '^[-a-z0-9/]+$'),
    name text NOT NULL CHECK (name ~ '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$'),
    generation bigint NOT NULL DEFAULT 1 CHECK (generation >= 1),
    version bigint NOT NULL DEFAULT 1 CHECK (version >= 1),
    labels jsonb NOT NULL CHECK (jsonb_typeof(labels) = 'object'),
    spec jsonb NOT NULL CHECK (jsonb_typeof(spec) = 'object'),
    status jsonb NOT NULL CHECK (jsonb_typeof(status) = 'object'),
    created_time timestamptz NOT NULL,
    updated_time timestamptz NOT NULL CHECK (updated_time >= created_time),
    created_by text NOT NULL,
    updated_by text NOT NULL,
    deleted_time timestamptz,
    deleted_by text,
    document text NOT NULL GENERATED ALWAYS AS (hyperfleet_resource(
        kind, id, href, owner_kind, owner_id, owner_href, name, generation, labels, spec, status,
        hyperfleet_time(created_time), hyperfleet_time(updated_time), created_by, updated_by,
        hyperfleet_time(deleted_time), deleted_by)) STORED,
    phase text GENERATED ALWAYS AS (status ->> 'phase') STORED,
    reconciled text GENERATED ALWAYS AS (jsonb_path_query_first(
        status, '$.conditions[*] ? (@.type == "Reconciled").status') #>> '{}') STORED,
    reconciled_time text COLLATE "C" GENERATED ALWAYS AS (jsonb_path_query_first(
        status, '$.conditions[*] ? (@.type == "Reconciled").last_updated_time') #>> '{}') STORED,
    available text GENERATED ALWAYS AS (jsonb_path_query_first(
        status, '$.conditions[*] ? (@.type == "LastKnownReconciled").status') #>> '{}') STORED,
    CHECK ((deleted_time IS NULL) = (deleted_by IS NULL)),
    CHECK ((owner_id IS NULL) = (owner_kind IS NULL) AND (owner_id IS NULL) = (owner_href IS NULL))
);
-- A name is unique among the resources of a kind with the same owner, or without an owner.
CREATE UNIQUE INDEX resources_name ON resources (kind, name) WHERE owner_id IS NULL;
CREATE UNIQUE INDEX resources_name_of_owner ON resources (owner_id, kind, name) WHERE owner_id IS NOT NULL;
CREATE INDEX resources_of_kind ON resources (kind, created_time DESC, id DESC);
CREATE INDEX resources_created ON resources (created_time DESC, id DESC);
CREATE INDEX resources_owner ON resources (owner_id, kind, created_time DESC, id DESC);
CREATE INDEX resources_reconciled
    ON resources (kind, reconciled, created_time DESC, id DESC, reconciled_time);
CREATE INDEX resources_stale ON resources (kind, reconciled, reconciled_time);
CREATE INDEX resources_phase ON resources (kind, phase, created_time DESC, id DESC);
CREATE INDEX resources_deleted ON resources (kind, created_time DESC, id DESC)
    WHERE deleted_time IS NOT NULL;
ALTER TABLE resources ALTER COLUMN created_time SET (n_distinct = 1);
ALTER TABLE resources ALTER COLUMN reconciled_time SET STATISTICS 1000;

-- Resources are counted by kind, where other tables count all of their rows.
CREATE FUNCTION hyperfleet_count_kinds() RETURNS trigger
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
CREATE TRIGGER resources_added AFTER INSERT ON resources
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_count_kinds();
CREATE TRIGGER resources_removed AFTER DELETE ON resources
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_count_kinds();
CREATE TRIGGER resources_emptied AFTER TRUNCATE ON resources
    FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_count_kinds();

-- Resources of all kinds; simple enough to be read in the order of each table's own index.
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

-- Reports and labels may belong to declared kinds. Existing rows have passed a stricter check.
ALTER TABLE adapter_statuses DROP CONSTRAINT adapter_statuses_owner_type_check;
ALTER TABLE adapter_statuses ADD CONSTRAINT adapter_statuses_owner_type_check
    CHECK (owner_type ~ '^[A-Z][A-Za-z0-9]{0,62}$') NOT VALID;
ALTER TABLE labels DROP CONSTRAINT labels_owner_type_check;
ALTER TABLE labels ADD CONSTRAINT labels_owner_type_check
    CHECK (owner_type ~ '^[A-Z][A-Za-z0-9]{0,62}$') NOT VALID;
