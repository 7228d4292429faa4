-- What `hyperfleet import` has imported from a running original, and in which state: so that it knows
-- what it already has, what was changed here since, and what it may remove because it is gone at the
-- source. The resources may have been removed here, so there is no foreign key.
CREATE TABLE imports (
    owner_type text NOT NULL CHECK (owner_type IN ('Cluster', 'NodePool')),
    owner_id uuid NOT NULL,
    -- Identifies the original: for a database, by its server's system identifier and its own OID.
    source text NOT NULL,
    -- Hashes of all that was read, including reports, and of the resource alone.
    fingerprint text NOT NULL,
    content text NOT NULL,
    -- As at the source; if the resource here differs, it was changed here.
    generation bigint NOT NULL,
    updated_time timestamptz NOT NULL,
    -- Of a resource removed here because it was gone at the source; if it returns, it gets a higher one.
    last_version bigint,
    PRIMARY KEY (owner_type, owner_id)
);
