-- What was force-deleted, by whom and why. The resources are gone, so there is no foreign key.
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    reason text NOT NULL,
    resource_type text NOT NULL,
    resource_id uuid NOT NULL,
    document text NOT NULL
);
CREATE INDEX audit_resource ON audit (resource_id);
CREATE INDEX audit_time ON audit (time);

-- The first response to a creation with an Idempotency-Key.
CREATE TABLE idempotency_keys (
    caller text NOT NULL,
    key text NOT NULL,
    request bytea NOT NULL,
    document text,
    location text,
    created_time timestamptz NOT NULL,
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_time);
