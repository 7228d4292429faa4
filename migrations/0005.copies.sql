-- Lets the data be copied elsewhere, by replication or by a data-only dump.

-- Rows of a published table can only be deleted if they have a replica identity. A number could occur
-- twice once rows of another database are added. Rows that count nothing could come twice, too.
ALTER TABLE row_counts ADD COLUMN id uuid PRIMARY KEY DEFAULT gen_random_uuid();
DELETE FROM row_counts WHERE difference = 0;

-- Keeps the search_path of this migration for finding tables, since a restore sets none.
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

-- A restore that fires triggers counts rows as they are added, so this discards the counts that it
-- brings. A restore that fires none keeps them.
CREATE FUNCTION hyperfleet_counted() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END
$$;
CREATE TRIGGER row_counts_counted BEFORE INSERT ON row_counts
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION hyperfleet_counted();

-- Writers of labels now set created_time themselves.
DROP TRIGGER labels_created_time ON labels;
DROP FUNCTION hyperfleet_label;
