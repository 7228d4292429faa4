-- What `hyperfleet import` has brought here from a running original, and as what: so that it knows what
-- it has taken already, what was changed here since, and what may go because it is gone there. It names
-- resources that may have been removed here, so it refers to none.
CREATE TABLE imports (
    owner_type text NOT NULL CHECK (owner_type IN ('Cluster', 'NodePool')),
    owner_id uuid NOT NULL,
    -- What tells an original from any other: of a database, its server's and its own number.
    source text NOT NULL,
    -- Of all that was read, its reports included, and of the resource alone.
    fingerprint text NOT NULL,
    content text NOT NULL,
    -- As they were there; what differs here was changed here.
    generation bigint NOT NULL,
    updated_time timestamptz NOT NULL,
    -- Of what is gone there, and was removed here for that: if it comes back, it gets a higher one.
    last_version bigint,
    PRIMARY KEY (owner_type, owner_id)
);
