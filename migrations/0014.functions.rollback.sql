-- The functions as they were before.

CREATE OR REPLACE FUNCTION hyperfleet_time(moment timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT pg_catalog.to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

CREATE OR REPLACE FUNCTION hyperfleet_document(
    kind text, id uuid, href text, owner_id uuid, name text, generation bigint,
    labels jsonb, spec jsonb, status jsonb,
    created_time text, updated_time text, created_by text, updated_by text,
    deleted_time text, deleted_by text
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.concat(
        '{"kind":"', kind, '","id":"', id, '","href":"', href,
        '","name":', pg_catalog.to_json(name),
        CASE WHEN owner_id IS NOT NULL THEN pg_catalog.concat(
            ',"owner_references":{"kind":"Cluster","id":"', owner_id,
            '","href":"/api/hyperfleet/v1/clusters/', owner_id, '"}') END,
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

CREATE OR REPLACE FUNCTION hyperfleet_report(
    adapter text, observed_generation bigint, conditions jsonb, data jsonb, metadata jsonb,
    created_time text, last_report_time text
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.concat(
        '{"adapter":', pg_catalog.to_json(adapter),
        ',"observed_generation":', observed_generation,
        ',"conditions":', conditions,
        ',"data":' || data::text,
        ',"metadata":' || metadata::text,
        ',"created_time":"', created_time,
        '","last_report_time":"', last_report_time, '"}')
$$;

CREATE OR REPLACE FUNCTION hyperfleet_resource(
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

CREATE OR REPLACE FUNCTION hyperfleet_change() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    own xid8;
    of_kind text := 'Cluster';
    of_id uuid;
    of_name text;
    of_generation bigint;
    of_version bigint;
    owner uuid;
    what text := 'status';
    who text;
    whose jsonb;
    before jsonb;
    after jsonb;
    given boolean := false;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.generation = NEW.generation THEN
        -- Nothing is new when a report says the same once more, or when what is shown beside changes
        -- within a version.
        before := OLD.status -> 'conditions';
        after := NEW.status -> 'conditions';
        IF OLD.phase IS NOT DISTINCT FROM NEW.phase
            AND OLD.deleted_time IS NOT DISTINCT FROM NEW.deleted_time
            AND (OLD.refs IS NOT DISTINCT FROM NEW.refs OR OLD.version = NEW.version)
            AND jsonb_path_query_array(before, '$[*].status') = jsonb_path_query_array(after, '$[*].status')
            AND jsonb_path_query_array(before, '$[*].reason') = jsonb_path_query_array(after, '$[*].reason')
            -- Some have none: of which two conditions a reason is, counts too.
            AND jsonb_path_query_array(before, '$[*] ? (exists (@.reason)).type')
                = jsonb_path_query_array(after, '$[*] ? (exists (@.reason)).type')
            AND jsonb_path_query_array(before, '$[*].observed_generation')
                = jsonb_path_query_array(after, '$[*].observed_generation')
            AND jsonb_path_query_array(before, '$[*].type') = jsonb_path_query_array(after, '$[*].type')
        THEN
            -- An import may bring something else of the same generation.
            IF OLD.updated_time = NEW.updated_time AND OLD.labels = NEW.labels AND OLD.spec = NEW.spec
                AND OLD.tenancy = NEW.tenancy
            THEN
                RETURN NULL;
            END IF;
            what := 'updated'; who := NEW.updated_by;
        END IF;
    END IF;
    own := pg_current_xact_id();
    -- Not as a whole: a copy of a row would have all of its large members unpacked.
    IF TG_OP = 'DELETE' THEN
        of_id := OLD.id; of_name := OLD.name; of_generation := OLD.generation; of_version := OLD.version;
        whose := OLD.tenancy; what := 'removed'; who := OLD.deleted_by;
    ELSE
        of_id := NEW.id; of_name := NEW.name; of_generation := NEW.generation; of_version := NEW.version;
        whose := NEW.tenancy;
        IF TG_OP = 'INSERT' THEN
            what := 'created'; who := NEW.created_by;
        ELSIF OLD.deleted_time IS NULL AND NEW.deleted_time IS NOT NULL THEN
            what := 'deleting'; who := NEW.deleted_by;
        ELSIF OLD.generation <> NEW.generation OR OLD.refs IS DISTINCT FROM NEW.refs THEN
            what := 'updated'; who := NEW.updated_by;
        END IF;
    END IF;
    IF TG_TABLE_NAME = 'node_pools' THEN
        of_kind := 'NodePool';
        owner := CASE TG_OP WHEN 'DELETE' THEN OLD.owner_id ELSE NEW.owner_id END;
    ELSIF TG_TABLE_NAME = 'resources' THEN
        of_kind := CASE TG_OP WHEN 'DELETE' THEN OLD.kind ELSE NEW.kind END;
        owner := CASE TG_OP WHEN 'DELETE' THEN OLD.owner_id ELSE NEW.owner_id END;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        given := OLD.tenancy <> NEW.tenancy;
        IF given THEN
            whose := OLD.tenancy; what := 'removed'; who := NULL;
        END IF;
    END IF;
    IF what = 'status' THEN
        -- Whose report it was, if it came in the same transaction.
        who := (
            SELECT adapter FROM adapter_statuses
            WHERE owner_type = of_kind AND owner_id = of_id AND xmin = own::xid
            ORDER BY last_report_time DESC LIMIT 1
        );
    END IF;
    -- Rows of another server, as a restore may bring them, are not waited for.
    INSERT INTO changes (position, time, kind, id, owner_id, generation, version, name, change, by, tenancy)
    VALUES (
        greatest(own, (
            SELECT position FROM changes
            WHERE id = of_id AND position <= greatest(own, pg_snapshot_xmax(pg_current_snapshot()))
            ORDER BY position DESC, sequence DESC LIMIT 1
        )),
        clock_timestamp(), of_kind, of_id, owner, of_generation, of_version, of_name, what, who, whose
    );
    IF given THEN
        -- To another tenant: gone for the one, new for the other.
        INSERT INTO changes
            (position, time, kind, id, owner_id, generation, version, name, change, by, tenancy)
        SELECT position, time, kind, id, owner_id, generation, version, name, 'created', by, NEW.tenancy
        FROM changes
        WHERE id = of_id AND position <= greatest(own, pg_snapshot_xmax(pg_current_snapshot()))
        ORDER BY position DESC, sequence DESC LIMIT 1;
    END IF;
    RETURN NULL;
END
$$;
