-- Makes searches fast. Every report rewrites a resource's status, and with it an entry in each index of
-- its table, so there are indexes only for queries that clients repeat all day.

-- A label's row has its owner's created_time, so that one index yields the owners of a label newest
-- first, and the first page costs the same whether a hundred match or a million.
ALTER TABLE labels ADD COLUMN created_time timestamptz;
UPDATE labels SET created_time = coalesce(
    (SELECT clusters.created_time FROM clusters WHERE clusters.id = labels.owner_id),
    (SELECT node_pools.created_time FROM node_pools WHERE node_pools.id = labels.owner_id));
ALTER TABLE labels ALTER COLUMN created_time SET NOT NULL;
DROP INDEX labels_value;
CREATE INDEX labels_value ON labels (owner_type, key, value, created_time DESC, owner_id DESC);

-- Fills in the column for writers that do not know it. The owner's created_time never changes.
CREATE FUNCTION hyperfleet_label() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.owner_type = 'Cluster' THEN
        NEW.created_time := (SELECT created_time FROM clusters WHERE id = NEW.owner_id);
    ELSE
        NEW.created_time := (SELECT created_time FROM node_pools WHERE id = NEW.owner_id);
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER labels_created_time BEFORE INSERT ON labels
    FOR EACH ROW WHEN (NEW.created_time IS NULL) EXECUTE FUNCTION hyperfleet_label();

-- Keys and values of labels are correlated: without this, the planner expects env=production to be
-- rare, since production is rare among the values of all keys.
CREATE STATISTICS labels_pairs (dependencies, mcv) ON owner_type, key, value FROM labels;

-- Labels are joined with their owners by created_time and id, for the sake of the order. The id alone
-- determines which rows match, but the planner takes the two columns for independent, multiplies their
-- selectivities, expects hardly any rows, and so sees no benefit in reading in order. If created_time is
-- said to have one distinct value, it estimates by the id alone. (Takes effect with the next ANALYZE.)
ALTER TABLE labels ALTER COLUMN created_time SET (n_distinct = 1);
ALTER TABLE clusters ALTER COLUMN created_time SET (n_distinct = 1);
ALTER TABLE node_pools ALTER COLUMN created_time SET (n_distinct = 1);

-- What clients search for all day, as columns: an index on an expression would not allow counting from
-- the index alone, and the expression would be computed anew for every row examined.
ALTER TABLE clusters
    ADD COLUMN phase text GENERATED ALWAYS AS (status ->> 'phase') STORED,
    ADD COLUMN reconciled text GENERATED ALWAYS AS (jsonb_path_query_first(
        status, '$.conditions[*] ? (@.type == "Reconciled").status') #>> '{}') STORED,
    ADD COLUMN reconciled_time text COLLATE "C" GENERATED ALWAYS AS (jsonb_path_query_first(
        status, '$.conditions[*] ? (@.type == "Reconciled").last_updated_time') #>> '{}') STORED,
    ADD COLUMN available text GENERATED ALWAYS AS (jsonb_path_query_first(
        status, '$.conditions[*] ? (@.type == "LastKnownReconciled").status') #>> '{}') STORED;
ALTER TABLE node_pools
    ADD COLUMN phase text GENERATED ALWAYS AS (status ->> 'phase') STORED,
    ADD COLUMN reconciled text GENERATED ALWAYS AS (jsonb_path_query_first(
        status, '$.conditions[*] ? (@.type == "Reconciled").status') #>> '{}') STORED,
    ADD COLUMN reconciled_time text COLLATE "C" GENERATED ALWAYS AS (jsonb_path_query_first(
        status, '$.conditions[*] ? (@.type == "Reconciled").last_updated_time') #>> '{}') STORED,
    ADD COLUMN available text GENERATED ALWAYS AS (jsonb_path_query_first(
        status, '$.conditions[*] ? (@.type == "LastKnownReconciled").status') #>> '{}') STORED;

-- The last column of *_reconciled is checked within the index; *_stale is for the opposite case, where
-- hardly any row with that status is old. More detailed statistics of these times keep the planner from
-- expecting rows where there are none.
CREATE INDEX clusters_reconciled ON clusters (reconciled, created_time DESC, id DESC, reconciled_time);
CREATE INDEX clusters_stale ON clusters (reconciled, reconciled_time);
ALTER TABLE clusters ALTER COLUMN reconciled_time SET STATISTICS 1000;
CREATE INDEX clusters_available ON clusters (available, created_time DESC, id DESC);
CREATE INDEX clusters_phase ON clusters (phase, created_time DESC, id DESC);
CREATE INDEX node_pools_reconciled ON node_pools (reconciled, created_time DESC, id DESC, reconciled_time);
CREATE INDEX node_pools_stale ON node_pools (reconciled, reconciled_time);
ALTER TABLE node_pools ALTER COLUMN reconciled_time SET STATISTICS 1000;
CREATE INDEX node_pools_available ON node_pools (available, created_time DESC, id DESC);
CREATE INDEX node_pools_phase ON node_pools (phase, created_time DESC, id DESC);
-- Few rows are marked for deletion at any time, so these cost almost nothing.
CREATE INDEX clusters_deleted ON clusters (created_time DESC, id DESC) WHERE deleted_time IS NOT NULL;
CREATE INDEX node_pools_deleted ON node_pools (created_time DESC, id DESC)
    WHERE deleted_time IS NOT NULL;
-- A cluster's name is unique, but many clusters may have a node pool named workers, for example.
CREATE INDEX node_pools_named ON node_pools (name, created_time DESC, id DESC);
