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

DROP TRIGGER row_counts_counted ON row_counts;
DROP FUNCTION hyperfleet_counted;
CREATE OR REPLACE FUNCTION hyperfleet_count() RETURNS trigger
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
ALTER TABLE row_counts DROP COLUMN id;
