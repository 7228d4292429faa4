-- The number of rows of a table, without a scan, and without a counter row for which all writers would
-- queue: each statement that adds or removes rows adds a row here with the difference. The sum is the
-- count, exact in every snapshot.
CREATE TABLE row_counts (
    table_name text NOT NULL,
    difference bigint NOT NULL
);
CREATE INDEX row_counts_table ON row_counts (table_name);

INSERT INTO row_counts (table_name, difference)
SELECT 'clusters', count(*) FROM clusters UNION ALL SELECT 'node_pools', count(*) FROM node_pools;

-- Now and then, a writer replaces existing rows by their sum, skipping those that another is summing.
CREATE FUNCTION hyperfleet_count() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    difference bigint;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM row_counts WHERE table_name = TG_TABLE_NAME;
        RETURN NULL;
    END IF;
    difference := (SELECT count(*) FROM changed);
    IF difference = 0 THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        difference := -difference;
    END IF;
    INSERT INTO row_counts VALUES (TG_TABLE_NAME, difference);
    IF random() < 0.02 THEN
        WITH found AS (
            SELECT ctid FROM row_counts WHERE table_name = TG_TABLE_NAME FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM row_counts USING found WHERE row_counts.ctid = found.ctid
            RETURNING row_counts.difference
        )
        INSERT INTO row_counts SELECT TG_TABLE_NAME, sum(gone.difference) FROM gone
        HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER clusters_added AFTER INSERT ON clusters
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_count();
CREATE TRIGGER clusters_removed AFTER DELETE ON clusters
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_count();
CREATE TRIGGER clusters_emptied AFTER TRUNCATE ON clusters
    FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_count();
CREATE TRIGGER node_pools_added AFTER INSERT ON node_pools
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_count();
CREATE TRIGGER node_pools_removed AFTER DELETE ON node_pools
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_count();
CREATE TRIGGER node_pools_emptied AFTER TRUNCATE ON node_pools
    FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_count();
