-- Which tenant a resource belongs to. Rows without a tenant, as all are if tenants are not kept apart,
-- cost nothing in what follows.

-- Waiting for a table lock blocks all that come later, so wait only briefly, and retry during a dump.
DO $$
BEGIN
    LOOP
        BEGIN
            SET LOCAL lock_timeout = '500ms';
            LOCK TABLE all_resources, clusters, node_pools, resources IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(1);
        END;
    END LOOP;
END
$$;

ALTER TABLE clusters ADD COLUMN tenancy jsonb NOT NULL DEFAULT '{}';
ALTER TABLE node_pools ADD COLUMN tenancy jsonb NOT NULL DEFAULT '{}';
ALTER TABLE resources ADD COLUMN tenancy jsonb NOT NULL DEFAULT '{}';

-- Every tenancy that has ever existed: few, and never removed. For a caller that has only some of their
-- dimensions, this tells whose resources to look for.
CREATE TABLE tenants (
    tenancy jsonb PRIMARY KEY CHECK (jsonb_typeof(tenancy) = 'object' AND tenancy <> '{}')
);
CREATE INDEX tenants_tenancy ON tenants USING gin (tenancy jsonb_path_ops);

-- Like row_counts, for each tenancy.
CREATE TABLE tenant_counts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    table_name text NOT NULL,
    tenancy jsonb NOT NULL,
    difference bigint NOT NULL
);
CREATE INDEX tenant_counts_tenancy ON tenant_counts (tenancy, table_name);

-- Discards what a restore that fires triggers brings for either table; see migration 0005.
CREATE TRIGGER tenants_counted BEFORE INSERT ON tenants
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION hyperfleet_counted();
CREATE TRIGGER tenant_counts_counted BEFORE INSERT ON tenant_counts
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION hyperfleet_counted();

-- Now and then, replaces the counts of some tenancies by their sums.
CREATE FUNCTION hyperfleet_sum_up(tenancies jsonb[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF random() < 0.02 THEN
        WITH found AS (
            SELECT id FROM tenant_counts WHERE tenancy = ANY(tenancies) FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM tenant_counts USING found WHERE tenant_counts.id = found.id
            RETURNING tenant_counts.table_name, tenant_counts.tenancy, tenant_counts.difference
        )
        INSERT INTO tenant_counts (table_name, tenancy, difference)
        SELECT gone.table_name, gone.tenancy, sum(gone.difference) FROM gone
        GROUP BY gone.table_name, gone.tenancy;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION hyperfleet_count() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    difference bigint;
    of_tenants bigint;
    sign bigint := CASE TG_OP WHEN 'DELETE' THEN -1 ELSE 1 END;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM row_counts WHERE table_name = TG_TABLE_NAME;
        DELETE FROM tenant_counts WHERE table_name = TG_TABLE_NAME;
        RETURN NULL;
    END IF;
    SELECT count(*), count(*) FILTER (WHERE tenancy <> '{}') INTO difference, of_tenants FROM changed;
    IF difference = 0 THEN
        RETURN NULL;
    END IF;
    INSERT INTO row_counts (table_name, difference) VALUES (TG_TABLE_NAME, sign * difference);
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
    IF of_tenants > 0 THEN
        -- In one order, so that no two who add several wait for each other.
        INSERT INTO tenants (tenancy)
        SELECT DISTINCT tenancy FROM changed WHERE tenancy <> '{}' ORDER BY tenancy ON CONFLICT DO NOTHING;
        INSERT INTO tenant_counts (table_name, tenancy, difference)
        SELECT TG_TABLE_NAME, tenancy, sign * count(*) FROM changed WHERE tenancy <> '{}' GROUP BY tenancy;
        PERFORM hyperfleet_sum_up(ARRAY(SELECT DISTINCT tenancy FROM changed WHERE tenancy <> '{}'));
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION hyperfleet_count_kinds() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    sign bigint := CASE TG_OP WHEN 'DELETE' THEN -1 ELSE 1 END;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM row_counts WHERE table_name ~ '^resources/';
        DELETE FROM tenant_counts WHERE table_name ~ '^resources/';
        RETURN NULL;
    END IF;
    INSERT INTO row_counts (table_name, difference)
    SELECT 'resources/' || changed.kind, sign * count(*) FROM changed GROUP BY changed.kind;
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
    IF EXISTS (SELECT FROM changed WHERE tenancy <> '{}') THEN
        INSERT INTO tenants (tenancy)
        SELECT DISTINCT tenancy FROM changed WHERE tenancy <> '{}' ORDER BY tenancy ON CONFLICT DO NOTHING;
        INSERT INTO tenant_counts (table_name, tenancy, difference)
        SELECT 'resources/' || changed.kind, tenancy, sign * count(*)
        FROM changed WHERE tenancy <> '{}' GROUP BY changed.kind, tenancy;
        PERFORM hyperfleet_sum_up(ARRAY(SELECT DISTINCT tenancy FROM changed WHERE tenancy <> '{}'));
    END IF;
    RETURN NULL;
END
$$;

-- The service never changes a resource's tenant, but an operator may.
CREATE FUNCTION hyperfleet_count_moved() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    counted text := TG_TABLE_NAME;
BEGIN
    IF TG_TABLE_NAME = 'resources' THEN
        counted := 'resources/' || NEW.kind;
    END IF;
    INSERT INTO tenants (tenancy) SELECT NEW.tenancy WHERE NEW.tenancy <> '{}' ON CONFLICT DO NOTHING;
    INSERT INTO tenant_counts (table_name, tenancy, difference)
    SELECT counted, moved.tenancy, moved.difference
    FROM (VALUES (OLD.tenancy, -1), (NEW.tenancy, 1)) AS moved (tenancy, difference)
    WHERE moved.tenancy <> '{}';
    RETURN NULL;
END
$$;
CREATE TRIGGER clusters_moved AFTER UPDATE OF tenancy ON clusters
    FOR EACH ROW WHEN (OLD.tenancy <> NEW.tenancy) EXECUTE FUNCTION hyperfleet_count_moved();
CREATE TRIGGER node_pools_moved AFTER UPDATE OF tenancy ON node_pools
    FOR EACH ROW WHEN (OLD.tenancy <> NEW.tenancy) EXECUTE FUNCTION hyperfleet_count_moved();
CREATE TRIGGER resources_moved AFTER UPDATE OF tenancy ON resources
    FOR EACH ROW WHEN (OLD.tenancy <> NEW.tenancy) EXECUTE FUNCTION hyperfleet_count_moved();

CREATE OR REPLACE VIEW all_resources AS
    SELECT id, 'Cluster'::text AS kind, NULL::uuid AS owner_id, name, generation, version, labels, spec,
           status, created_time, updated_time, created_by, updated_by, deleted_time, deleted_by, document,
           phase, reconciled, reconciled_time, available, refs, tenancy
    FROM clusters
    UNION ALL
    SELECT id, 'NodePool', owner_id, name, generation, version, labels, spec,
           status, created_time, updated_time, created_by, updated_by, deleted_time, deleted_by, document,
           phase, reconciled, reconciled_time, available, refs, tenancy
    FROM node_pools
    UNION ALL
    SELECT id, kind, owner_id, name, generation, version, labels, spec,
           status, created_time, updated_time, created_by, updated_by, deleted_time, deleted_by, document,
           phase, reconciled, reconciled_time, available, refs, tenancy
    FROM resources;
