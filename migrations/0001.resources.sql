-- Resources, reports and labels.

-- A time as the API shows it: RFC 3339, in UTC, with microseconds. to_char() is only stable because
-- names of months depend on the locale; this format has none, so the function is immutable.
CREATE FUNCTION hyperfleet_time(moment timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT pg_catalog.to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

-- The finished JSON text of a cluster or a node pool. It is concatenated as text, so that members keep
-- their order, optional ones are left out, and spec, labels and status are not parsed.
CREATE FUNCTION hyperfleet_document(
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

-- The finished JSON text of one adapter's report.
CREATE FUNCTION hyperfleet_report(
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

CREATE TABLE clusters (
    id uuid PRIMARY KEY,
    name text NOT NULL CONSTRAINT clusters_name UNIQUE
        CHECK (name ~ '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$'),
    generation bigint NOT NULL DEFAULT 1 CHECK (generation >= 1),
    -- Incremented by every write to the row; the API's entity tag.
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
    document text NOT NULL GENERATED ALWAYS AS (hyperfleet_document(
        'Cluster', id, '/api/hyperfleet/v1/clusters/' || id::text, NULL, name, generation,
        labels, spec, status,
        hyperfleet_time(created_time), hyperfleet_time(updated_time), created_by, updated_by,
        hyperfleet_time(deleted_time), deleted_by)) STORED,
    CHECK ((deleted_time IS NULL) = (deleted_by IS NULL))
);
CREATE INDEX clusters_created ON clusters (created_time DESC, id DESC);

CREATE TABLE node_pools (
    id uuid PRIMARY KEY,
    owner_id uuid NOT NULL REFERENCES clusters (id),
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
    document text NOT NULL GENERATED ALWAYS AS (hyperfleet_document(
        'NodePool', id,
        '/api/hyperfleet/v1/clusters/' || owner_id::text || '/nodepools/' || id::text,
        owner_id, name, generation, labels, spec, status,
        hyperfleet_time(created_time), hyperfleet_time(updated_time), created_by, updated_by,
        hyperfleet_time(deleted_time), deleted_by)) STORED,
    CONSTRAINT node_pools_name UNIQUE (owner_id, name),
    CHECK ((deleted_time IS NULL) = (deleted_by IS NULL))
);
CREATE INDEX node_pools_created ON node_pools (created_time DESC, id DESC);
CREATE INDEX node_pools_owner ON node_pools (owner_id, created_time DESC, id DESC);

-- Owners are of two kinds, so a foreign key is not possible: the statement that removes an owner also
-- removes its reports and labels.
CREATE TABLE adapter_statuses (
    owner_type text NOT NULL CHECK (owner_type IN ('Cluster', 'NodePool')),
    owner_id uuid NOT NULL,
    adapter text NOT NULL CHECK (adapter <> ''),
    observed_generation bigint NOT NULL CHECK (observed_generation >= 1),
    conditions jsonb NOT NULL CHECK (jsonb_typeof(conditions) = 'array'),
    data jsonb CHECK (jsonb_typeof(data) = 'object'),
    metadata jsonb CHECK (jsonb_typeof(metadata) = 'object'),
    created_time timestamptz NOT NULL,
    last_report_time timestamptz NOT NULL,
    document text NOT NULL GENERATED ALWAYS AS (hyperfleet_report(
        adapter, observed_generation, conditions, data, metadata,
        hyperfleet_time(created_time), hyperfleet_time(last_report_time))) STORED,
    PRIMARY KEY (owner_type, owner_id, adapter)
);
CREATE INDEX adapter_statuses_created
    ON adapter_statuses (owner_type, owner_id, created_time DESC, adapter DESC);

CREATE TABLE labels (
    owner_type text NOT NULL CHECK (owner_type IN ('Cluster', 'NodePool')),
    owner_id uuid NOT NULL,
    key text NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (owner_type, owner_id, key)
);
CREATE INDEX labels_value ON labels (owner_type, key, value, owner_id);
