"""The schema goes forward and back."""

from concurrent.futures import ThreadPoolExecutor

import psycopg

from hyperfleet import migration


def test_migrations_are_all_applied_and_can_be_taken_back_and_applied_again(database: str) -> None:
    with psycopg.connect(database) as conn:
        assert migration.pending(conn) == []
        assert migration.applied(conn) == migration.names()
    assert migration.apply(database) == []
    assert migration.roll_back(database, 99) == migration.names()[::-1]
    with psycopg.connect(database) as conn:
        left = conn.execute(
            "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname = 'public' AND relname !~ 'yoyo'"
            " UNION SELECT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace"
            " WHERE nspname = 'public'"
        ).fetchall()
    assert left == []
    with ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(migration.apply, [database] * 4))
    assert sorted(runs, key=len)[-1] == migration.names()
    assert [run for run in runs if run] == [migration.names()]
