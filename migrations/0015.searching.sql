-- What lists ask for beside their page, as functions: a session keeps the plans within them, and the
-- statement of a list can be planned once, too. To plan these parts took a third of what a search took.

-- The last row of the feed that is certain to have none to come before it; the last that was removed where
-- there is no other. The check is that of hyperfleet/lists/place.py.
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

-- How many have a label: planned for that very one each time, since few are best counted in another way
-- than most of them.
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
