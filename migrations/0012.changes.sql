-- The feed: a narrow row for each change of a resource, written in the same transaction, no matter
-- whether that is run by this version or the previous one, by an import or by a cascade.
--
-- Order. Transactions do not commit in the order of their ids. So the position of a row is the id of its
-- transaction, and readers see only rows before the oldest transaction still running (pg_snapshot_xmin).
-- All transactions with lower ids have ended by then, and their rows are visible; later writers have
-- ids, and so positions, that are not lower. So no row ever appears behind a reader.
--
-- That alone could show the changes of one resource in the wrong order: a transaction that got its id
-- early (a cascade that has locked the parent) may change a child after a transaction with a higher id
-- has changed it and committed. So a row never comes before the last one of its resource: its position
-- is the greater of that row's position and its own transaction's id. Rows with the same position are
-- ordered by sequence, which is assigned while the resource is locked. A position above the own id is
-- harmless: it is not lower, and no reader gets there before this transaction has ended, too.
CREATE TABLE changes (
    position xid8 NOT NULL,
    sequence bigint GENERATED ALWAYS AS IDENTITY,
    time timestamptz NOT NULL,
    kind text NOT NULL,
    id uuid NOT NULL,
    owner_id uuid,
    generation bigint NOT NULL,
    version bigint NOT NULL,
    name text NOT NULL,
    change text NOT NULL CHECK (change IN ('created', 'updated', 'status', 'deleting', 'removed')),
    by text,
    tenancy jsonb NOT NULL,
    PRIMARY KEY (position, sequence)
);

CREATE INDEX changes_resource ON changes (id, position, sequence);

-- Identifies this feed, since positions mean nothing on another server. The newest row counts: a restore
-- of the data alone adds another. Rows of the feed up to the removed_* one were removed for their age.
CREATE TABLE feeds (
    epoch uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    server bigint NOT NULL,
    removed_position xid8 NOT NULL DEFAULT '0',
    removed_sequence bigint NOT NULL DEFAULT 0
);

INSERT INTO feeds (server) SELECT system_identifier FROM pg_control_system();

-- Whether the rows are this server's own, and not restored from another, whose transactions may have had
-- ids that are yet to come here.
CREATE FUNCTION hyperfleet_feed_fits() RETURNS boolean
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT feeds.server = (SELECT system_identifier FROM pg_control_system())
       AND NOT EXISTS (SELECT FROM changes WHERE position > pg_snapshot_xmax(pg_current_snapshot()))
    FROM feeds ORDER BY since DESC LIMIT 1
$$;

-- Begins a new feed, which makes all clients list again, unless that has happened in the meantime.
CREATE FUNCTION hyperfleet_feed_anew(anyway boolean) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    LOCK TABLE changes IN ACCESS EXCLUSIVE MODE;
    IF anyway OR hyperfleet_feed_fits() IS NOT TRUE THEN
        BEGIN
            TRUNCATE changes;
        EXCEPTION WHEN insufficient_privilege THEN
            -- The role that serves need not own the table.
            DELETE FROM changes;
        END;
        DELETE FROM feeds;
        INSERT INTO feeds (server) SELECT system_identifier FROM pg_control_system();
    END IF;
END
$$;

-- The last version of a row that changed nothing but times. A writer of reports knows that and says so
-- here, to spare the triggers a comparison. The previous version does not, so they compare for it.
ALTER TABLE clusters ADD COLUMN silent bigint;
ALTER TABLE node_pools ADD COLUMN silent bigint;
ALTER TABLE resources ADD COLUMN silent bigint;

CREATE FUNCTION hyperfleet_change() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    own xid8;
    of_kind text := 'Cluster';
    of_id uuid;
    of_name text;
    of_generation bigint;
    of_version bigint;
    owner uuid;
    what text := 'status';
    who text;
    whose jsonb;
    before jsonb;
    after jsonb;
    given boolean := false;
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.generation = NEW.generation THEN
        -- Nothing is new when a report says the same once more, or when what is shown beside changes
        -- within a version.
        before := OLD.status -> 'conditions';
        after := NEW.status -> 'conditions';
        IF OLD.phase IS NOT DISTINCT FROM NEW.phase
            AND OLD.deleted_time IS NOT DISTINCT FROM NEW.deleted_time
            AND (OLD.refs IS NOT DISTINCT FROM NEW.refs OR OLD.version = NEW.version)
            AND jsonb_path_query_array(before, '$[*].status') = jsonb_path_query_array(after, '$[*].status')
            AND jsonb_path_query_array(before, '$[*].reason') = jsonb_path_query_array(after, '$[*].reason')
            -- Some have none: of which two conditions a reason is, counts too.
            AND jsonb_path_query_array(before, '$[*] ? (exists (@.reason)).type')
                = jsonb_path_query_array(after, '$[*] ? (exists (@.reason)).type')
            AND jsonb_path_query_array(before, '$[*].observed_generation')
                = jsonb_path_query_array(after, '$[*].observed_generation')
            AND jsonb_path_query_array(before, '$[*].type') = jsonb_path_query_array(after, '$[*].type')
        THEN
            -- An import may bring something else of the same generation.
            IF OLD.updated_time = NEW.updated_time AND OLD.labels = NEW.labels AND OLD.spec = NEW.spec
                AND OLD.tenancy = NEW.tenancy
            THEN
                RETURN NULL;
            END IF;
            what := 'updated'; who := NEW.updated_by;
        END IF;
    END IF;
    own := pg_current_xact_id();
    -- Not as a whole: a copy of a row would have all of its large members unpacked.
    IF TG_OP = 'DELETE' THEN
        of_id := OLD.id; of_name := OLD.name; of_generation := OLD.generation; of_version := OLD.version;
        whose := OLD.tenancy; what := 'removed'; who := OLD.deleted_by;
    ELSE
        of_id := NEW.id; of_name := NEW.name; of_generation := NEW.generation; of_version := NEW.version;
        whose := NEW.tenancy;
        IF TG_OP = 'INSERT' THEN
            what := 'created'; who := NEW.created_by;
        ELSIF OLD.deleted_time IS NULL AND NEW.deleted_time IS NOT NULL THEN
            what := 'deleting'; who := NEW.deleted_by;
        ELSIF OLD.generation <> NEW.generation OR OLD.refs IS DISTINCT FROM NEW.refs THEN
            what := 'updated'; who := NEW.updated_by;
        END IF;
    END IF;
    IF TG_TABLE_NAME = 'node_pools' THEN
        of_kind := 'NodePool';
        owner := CASE TG_OP WHEN 'DELETE' THEN OLD.owner_id ELSE NEW.owner_id END;
    ELSIF TG_TABLE_NAME = 'resources' THEN
        of_kind := CASE TG_OP WHEN 'DELETE' THEN OLD.kind ELSE NEW.kind END;
        owner := CASE TG_OP WHEN 'DELETE' THEN OLD.owner_id ELSE NEW.owner_id END;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        given := OLD.tenancy <> NEW.tenancy;
        IF given THEN
            whose := OLD.tenancy; what := 'removed'; who := NULL;
        END IF;
    END IF;
    IF what = 'status' THEN
        -- Whose report it was, if it came in the same transaction.
        who := (
            SELECT adapter FROM adapter_statuses
            WHERE owner_type = of_kind AND owner_id = of_id AND xmin = own::xid
            ORDER BY last_report_time DESC LIMIT 1
        );
    END IF;
    -- Rows of another server, as a restore may bring them, are not waited for.
    INSERT INTO changes (position, time, kind, id, owner_id, generation, version, name, change, by, tenancy)
    VALUES (
        greatest(own, (
            SELECT position FROM changes
            WHERE id = of_id AND position <= greatest(own, pg_snapshot_xmax(pg_current_snapshot()))
            ORDER BY position DESC, sequence DESC LIMIT 1
        )),
        clock_timestamp(), of_kind, of_id, owner, of_generation, of_version, of_name, what, who, whose
    );
    IF given THEN
        -- To another tenant: gone for the one, new for the other.
        INSERT INTO changes
            (position, time, kind, id, owner_id, generation, version, name, change, by, tenancy)
        SELECT position, time, kind, id, owner_id, generation, version, name, 'created', by, NEW.tenancy
        FROM changes
        WHERE id = of_id AND position <= greatest(own, pg_snapshot_xmax(pg_current_snapshot()))
        ORDER BY position DESC, sequence DESC LIMIT 1;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER clusters_came AFTER INSERT OR DELETE ON clusters
    FOR EACH ROW EXECUTE FUNCTION hyperfleet_change();
CREATE TRIGGER clusters_changed AFTER UPDATE ON clusters FOR EACH ROW
    WHEN (NEW.silent IS DISTINCT FROM NEW.version OR NEW.version = OLD.version)
    EXECUTE FUNCTION hyperfleet_change();
CREATE TRIGGER node_pools_came AFTER INSERT OR DELETE ON node_pools
    FOR EACH ROW EXECUTE FUNCTION hyperfleet_change();
CREATE TRIGGER node_pools_changed AFTER UPDATE ON node_pools FOR EACH ROW
    WHEN (NEW.silent IS DISTINCT FROM NEW.version OR NEW.version = OLD.version)
    EXECUTE FUNCTION hyperfleet_change();
CREATE TRIGGER resources_came AFTER INSERT OR DELETE ON resources
    FOR EACH ROW EXECUTE FUNCTION hyperfleet_change();
CREATE TRIGGER resources_changed AFTER UPDATE ON resources FOR EACH ROW
    WHEN (NEW.silent IS DISTINCT FROM NEW.version OR NEW.version = OLD.version)
    EXECUTE FUNCTION hyperfleet_change();

-- TRUNCATE reports no resource as removed, so all clients have to list again. The rows of the feed stay:
-- a reader of them may be waiting for the truncated table, so this must not wait for readers.
CREATE FUNCTION hyperfleet_emptied() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM feeds;
    INSERT INTO feeds (server) SELECT system_identifier FROM pg_control_system();
    RETURN NULL;
END
$$;

CREATE TRIGGER clusters_feed_emptied AFTER TRUNCATE ON clusters
    FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_emptied();
CREATE TRIGGER node_pools_feed_emptied AFTER TRUNCATE ON node_pools
    FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_emptied();
CREATE TRIGGER resources_feed_emptied AFTER TRUNCATE ON resources
    FOR EACH STATEMENT EXECUTE FUNCTION hyperfleet_emptied();

-- A restore that fires triggers writes its own rows for what it adds, so this discards those it brings.
CREATE FUNCTION hyperfleet_restored() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END
$$;

CREATE TRIGGER changes_restored BEFORE INSERT ON changes
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION hyperfleet_restored();
