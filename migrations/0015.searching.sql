-- What lists need besides their page, as functions: a session keeps the plans within them, and a list's
-- statement can be planned once, too. Planning these parts took a third of a search's time.

-- The last row of the feed before which no row can appear any more; if there is none, the last one
-- removed. The check is the one in hyperfleet/lists/place.py.
CREATE FUNCTION hyperfleet_place() RETURNS text LANGUAGE plpgsql STABLE PARALLEL RESTRICTED AS $$
BEGIN
    RETURN (
        SELECT concat_ws(' ', feeds.epoch, coalesce(last.position, feeds.removed_position),
                         coalesce(last.sequence, feeds.removed_sequence), coalesce(last.checked, 0))
        FROM feeds LEFT JOIN LATERAL (
            SELECT position, sequence, hashtext(concat(id, version, change)) AS checked FROM changes
            WHERE position < pg_snapshot_xmin(pg_current_snapshot())
            ORDER BY position DESC, sequence DESC LIMIT 1
        ) AS last ON true
        ORDER BY feeds.since DESC LIMIT 1
    );
END
$$;

-- The number of resources with a label. It is planned for the specific label each time, since the best
-- way to count depends on whether few or most resources have it.
CREATE FUNCTION hyperfleet_labelled(of_kind text, name text, content text)
RETURNS bigint LANGUAGE plpgsql STABLE PARALLEL RESTRICTED AS $$
DECLARE
    counted bigint;
BEGIN
    EXECUTE 'SELECT count(*) FROM labels WHERE owner_type = $1 AND key = $2 AND value = $3'
        INTO counted USING of_kind, name, content;
    RETURN counted;
END
$$;
