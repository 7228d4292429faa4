-- Past specs and labels of resources, how their conditions changed, and who did what.

-- The id of the request that made a resource's current generation.
ALTER TABLE clusters ADD COLUMN request text;
ALTER TABLE node_pools ADD COLUMN request text;
ALTER TABLE resources ADD COLUMN request text;

-- Past generations; the current one is the resource's own row, so a creation adds nothing here.
CREATE TABLE generations (
    owner_type text NOT NULL,
    owner_id uuid NOT NULL,
    generation bigint NOT NULL,
    spec jsonb NOT NULL,
    labels jsonb NOT NULL,
    time timestamptz NOT NULL,
    by text NOT NULL,
    request text,
    PRIMARY KEY (owner_id, generation)
);

-- A trigger misses nothing: neither cascades, nor imports, nor replicas of the previous version. The
-- session sets how many are kept. Only one is added at a time, so deleting a few keeps the number down.
CREATE FUNCTION hyperfleet_generation() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    kept bigint := coalesce(nullif(current_setting('hyperfleet.history', true), '')::bigint, 100);
    kind text := TG_ARGV[0];
BEGIN
    IF kind IS NULL THEN
        kind := OLD.kind;
    END IF;
    IF kept > 0 AND OLD.generation < NEW.generation THEN
        INSERT INTO generations (owner_type, owner_id, generation, spec, labels, time, by, request)
        VALUES (kind, OLD.id, OLD.generation, OLD.spec, OLD.labels, OLD.updated_time, OLD.updated_by,
                OLD.request)
        ON CONFLICT (owner_id, generation) DO NOTHING;
    END IF;
    DELETE FROM generations WHERE owner_id = OLD.id AND generation IN (
        SELECT past.generation FROM generations AS past
        WHERE past.owner_id = OLD.id AND past.generation < NEW.generation - kept
        ORDER BY past.generation LIMIT 10);
    -- What an import has taken back is no past.
    IF NEW.generation < OLD.generation THEN
        DELETE FROM generations WHERE owner_id = OLD.id AND generation >= NEW.generation;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER clusters_generation AFTER UPDATE ON clusters FOR EACH ROW
    WHEN (OLD.generation <> NEW.generation) EXECUTE FUNCTION hyperfleet_generation('Cluster');
CREATE TRIGGER node_pools_generation AFTER UPDATE ON node_pools FOR EACH ROW
    WHEN (OLD.generation <> NEW.generation) EXECUTE FUNCTION hyperfleet_generation('NodePool');
CREATE TRIGGER resources_generation AFTER UPDATE ON resources FOR EACH ROW
    WHEN (OLD.generation <> NEW.generation) EXECUTE FUNCTION hyperfleet_generation();

-- All stored generations including the current one, with the JSON text that the API shows.
CREATE VIEW all_generations AS
    SELECT owner_id, generation, time, by, request, concat(
        '{"generation":', generation, ',"labels":', labels, ',"spec":', spec,
        ',"time":"', hyperfleet_time(time), '","by":', to_json(by),
        ',"request":' || to_json(request)::text,
        CASE WHEN deleted THEN ',"deleted":true' END, '}') AS document, spec, labels
    FROM (
        SELECT owner_id, generation, spec, labels, time, by, request, false AS deleted FROM generations
        UNION ALL
        SELECT id, generation, spec, labels, updated_time, updated_by, request, deleted_time IS NOT NULL
        FROM clusters
        UNION ALL
        SELECT id, generation, spec, labels, updated_time, updated_by, request, deleted_time IS NOT NULL
        FROM node_pools
        UNION ALL
        SELECT id, generation, spec, labels, updated_time, updated_by, request, deleted_time IS NOT NULL
        FROM resources
    ) AS one;

-- Transitions of a resource's conditions, numbered from 1 for each resource.
CREATE TABLE transitions (
    owner_type text NOT NULL,
    owner_id uuid NOT NULL,
    number bigint NOT NULL,
    time timestamptz NOT NULL,
    type text NOT NULL,
    from_status text,
    to_status text,
    reason text,
    adapter text,
    generation bigint NOT NULL,
    PRIMARY KEY (owner_id, number)
);

-- A writer holds a lock on the resource's row, so numbers never collide. The adapter is the one whose
-- report the same transaction has stored. A single statement, since a flapping resource runs it often.
CREATE FUNCTION hyperfleet_transition() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    kind text := TG_ARGV[0];
    newest bigint;
BEGIN
    IF kind IS NULL THEN
        kind := NEW.kind;
    END IF;
    WITH added AS (
        INSERT INTO transitions
            (owner_type, owner_id, number, time, type, from_status, to_status, reason, generation, adapter)
        SELECT kind, NEW.id, row_number() OVER () + coalesce(
                   (SELECT max(number) FROM transitions WHERE owner_id = NEW.id), 0),
               statement_timestamp(), type, before.status, after.status, after.reason, NEW.generation,
               (SELECT adapter FROM adapter_statuses WHERE owner_type = kind AND owner_id = NEW.id
                    AND xmin = pg_current_xact_id()::xid LIMIT 1)
        FROM jsonb_to_recordset(CASE jsonb_typeof(OLD.status -> 'conditions')
                 WHEN 'array' THEN OLD.status -> 'conditions' END)
             AS before (type text, status text, reason text)
        FULL JOIN jsonb_to_recordset(CASE jsonb_typeof(NEW.status -> 'conditions')
                 WHEN 'array' THEN NEW.status -> 'conditions' END)
             AS after (type text, status text, reason text) USING (type)
        WHERE type IS NOT NULL AND (before.status, before.reason) IS DISTINCT FROM (after.status, after.reason)
        RETURNING number
    )
    SELECT max(number) INTO newest FROM added;
    IF newest > 200 THEN
        DELETE FROM transitions WHERE owner_id = NEW.id AND number <= newest - 200;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER clusters_transition AFTER UPDATE ON clusters FOR EACH ROW
    WHEN (NEW.silent IS DISTINCT FROM NEW.version OR NEW.version = OLD.version)
    EXECUTE FUNCTION hyperfleet_transition('Cluster');
CREATE TRIGGER node_pools_transition AFTER UPDATE ON node_pools FOR EACH ROW
    WHEN (NEW.silent IS DISTINCT FROM NEW.version OR NEW.version = OLD.version)
    EXECUTE FUNCTION hyperfleet_transition('NodePool');
CREATE TRIGGER resources_transition AFTER UPDATE ON resources FOR EACH ROW
    WHEN (NEW.silent IS DISTINCT FROM NEW.version OR NEW.version = OLD.version)
    EXECUTE FUNCTION hyperfleet_transition();

CREATE VIEW all_transitions AS
    SELECT owner_id, number, time, type, from_status AS "from", to_status AS "to", reason, adapter,
           generation, concat(
        '{"number":', number, ',"time":"', hyperfleet_time(time), '","type":', to_json(type),
        ',"from":' || to_json(from_status)::text, ',"to":' || to_json(to_status)::text,
        ',"reason":' || to_json(reason)::text, ',"adapter":' || to_json(adapter)::text,
        ',"generation":', generation, '}') AS document
    FROM transitions;

-- Both are removed with the resource, whoever removes it.
CREATE FUNCTION hyperfleet_forget() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM generations USING gone WHERE generations.owner_id = gone.id;
    DELETE FROM transitions USING gone WHERE transitions.owner_id = gone.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER clusters_forgotten AFTER DELETE ON clusters
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_forget();
CREATE TRIGGER node_pools_forgotten AFTER DELETE ON node_pools
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_forget();
CREATE TRIGGER resources_forgotten AFTER DELETE ON resources
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_forget();

-- Not only force-deletes: everything that people did, and what they were refused.
ALTER TABLE audit
    ALTER COLUMN reason DROP NOT NULL,
    ALTER COLUMN resource_id DROP NOT NULL,
    ALTER COLUMN document DROP NOT NULL,
    ADD COLUMN name text,
    ADD COLUMN generation bigint,
    ADD COLUMN request text,
    ADD COLUMN method text,
    ADD COLUMN path text,
    ADD COLUMN status integer,
    ADD COLUMN code text,
    ADD COLUMN tenancy jsonb NOT NULL DEFAULT '{}';
-- Blocks new records only while it reads those of force-deletes, and has no entries at first.
CREATE INDEX audit_tenancy ON audit (tenancy, id DESC) WHERE tenancy <> '{}';

-- Tenants are known from their resources; this adds those that have only been refused things so far, and
-- in a restore that fires triggers (see migration 0005), also those whose resources are gone.
CREATE FUNCTION hyperfleet_audited() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO tenants (tenancy) VALUES (NEW.tenancy) ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER audit_tenants AFTER INSERT ON audit FOR EACH ROW
    WHEN (NEW.tenancy <> '{}' AND (NEW.status IS NOT NULL OR NEW.document IS NOT NULL))
    EXECUTE FUNCTION hyperfleet_audited();

CREATE VIEW audit_records AS
    SELECT id AS record, time, actor AS by, action, resource_type AS kind, resource_id AS id, name,
           generation, reason, request, method, path, status, code, tenancy, concat(
        '{"record":', id, ',"time":"', hyperfleet_time(time), '","by":', to_json(actor),
        ',"action":', to_json(action), ',"kind":', to_json(resource_type),
        ',"id":"' || resource_id || '"', ',"name":' || to_json(name)::text,
        ',"generation":' || generation, ',"reason":' || to_json(reason)::text,
        ',"request":' || to_json(request)::text, ',"method":' || to_json(method)::text,
        ',"path":' || to_json(path)::text, ',"status":' || status,
        ',"code":' || to_json(code)::text, ',"resource":' || document, '}') AS document
    FROM audit;
