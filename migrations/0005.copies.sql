-- What it takes to copy the data elsewhere: by replication, or by a dump of the data alone.

-- From a table that a publication covers, rows are removed by their identity. A number could come
-- twice where rows of another database are taken over. What counts nothing might, too.
ALTER TABLE row_counts ADD COLUMN id uuid PRIMARY KEY DEFAULT gen_random_uuid();
DELETE FROM row_counts WHERE difference = 0;

-- Tables are found where they were when this was run: a restore has no search_path.
CREATE OR REPLACE FUNCTION hyperfleet_count() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
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
    INSERT INTO row_counts (table_name, difference) VALUES (TG_TABLE_NAME, difference);
    IF random() < 0.02 THEN
        WITH found AS (
            SELECT id FROM row_counts WHERE table_name = TG_TABLE_NAME FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM row_counts USING found WHERE row_counts.id = found.id
            RETURNING row_counts.difference
        )
        INSERT INTO row_counts (table_name, difference)
        SELECT TG_TABLE_NAME, sum(gone.difference) FROM gone HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END
$$;

-- A restore that fires triggers has its rows counted as they come, so it brings no counts of its own.
-- One that fires none brings them.
CREATE FUNCTION hyperfleet_counted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END
$$;
CREATE TRIGGER row_counts_counted BEFORE INSERT ON row_counts
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION hyperfleet_counted();

-- Whoever writes labels says when their owner was created.
DROP TRIGGER labels_created_time ON labels;
DROP FUNCTION hyperfleet_label;
