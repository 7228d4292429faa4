-- The functions as they were.

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
