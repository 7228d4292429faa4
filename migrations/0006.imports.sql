-- What `hyperfleet import` has brought here from a running original, and as what: so that it knows what
-- it has taken already, what was changed here since, and what may go because it is gone there. It names
-- resources that may have been removed here, so it refers to none.
CREATE TABLE imports (
    owner_type text NOT NULL CHECK (owner_type IN ('Cluster', 'NodePool')),
    owner_id uuid NOT NULL,
    source text NOT NULL,
    -- Of all that was read, its reports included.
    fingerprint text NOT NULL,
    -- As they were there; what differs here was changed here.
    generation bigint NOT NULL,
    updated_time timestamptz NOT NULL,
    PRIMARY KEY (owner_type, owner_id)
);
