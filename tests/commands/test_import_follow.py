"""``hyperfleet import --follow`` imports changes soon after they are made."""

import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import psycopg.sql
import pytest
from conftest import Api
from imports import A, B, C, D, P, Q, empty, fill, first, newest, take
from older import needs_setting
from original import Original, at, shown
from process import start

__all__ = ["empty", "first", "newest"]


class Following:
    """A running ``import --follow``."""

    def __init__(self, *arguments: str) -> None:
        self.process = start("import", "--follow", *arguments)
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines += iter(self.process.stdout.readline, "")

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> float:
        started = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < started + seconds, self.lines
            time.sleep(0.05)
        return time.monotonic() - started

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "newest"])
def test_follow_imports_changes_within_seconds_and_ends_with_a_full_pass(
    which: str, request: pytest.FixtureRequest, api: Api, database: str
) -> None:
    original: Original = request.getfixturevalue(which)
    fill(original)
    following = Following("--from-database", original.conninfo, "--database-url", database)
    try:
        following.until(lambda: any(" all: 4 looked at, 4 new" in line for line in following.lines))
        table = "resources" if original.newest else "clusters"
        original.cluster(C, "fresh", updated_time="now")
        # Its transaction may have begun before the pass that did not see it.
        original.cluster(D, "late", updated_time=datetime.now(UTC) - timedelta(seconds=60))
        original.conn.execute(
            f"UPDATE {table} SET generation = 9, updated_time = now() WHERE name = 'stage'"
        )
        original.conn.execute(
            "UPDATE adapter_statuses SET last_report_time = now(), updated_time = now(),"
            " observed_generation = 2, data = '{\"v\": 2}' WHERE resource_id = %s",
            [P],
        )
        pools = "resources" if original.newest else "node_pools"
        original.conn.execute(f"DELETE FROM {pools} WHERE id = %s", [Q])
        took = following.until(lambda: api.get(f"/clusters/{C}").status_code == 200)
        assert took < 8
        following.until(lambda: api.get(f"/clusters/{D}").status_code == 200, 8)
        following.until(lambda: api.get(f"/clusters/{B}").json()["generation"] == 9)
        following.until(lambda: '"v":2' in api.get(f"/nodepools/{P}/statuses").text.replace(" ", ""))
        following.until(lambda: api.get(f"/nodepools/{Q}").status_code == 404)
        # Passes that find the same again.
        following.until(lambda: sum(" changes: " in line for line in following.lines) > 3)
        # The last pass finds a change that the times do not show.
        original.conn.execute(
            "UPDATE adapter_statuses SET last_report_time = %s"
            " WHERE resource_id = %s AND adapter = 'dns'",
            [at(3), A],
        )
        assert following.stop() == 0, following.lines
    finally:
        following.process.kill()
    assert any(" all: " in line for line in following.lines[2:])
    assert "Everything was imported.\n" in following.lines
    # All changes, and what was the same in the last pass.
    assert "  clusters    4 new, 2 changed, 3 same, 0 removed\n" in following.lines
    reports = {one["adapter"]: one for one in api.get(f"/clusters/{A}/statuses").json()["items"]}
    assert reports["dns"]["last_report_time"] == shown(3)


@pytest.mark.slow
def test_follow_survives_a_transaction_timeout(
    first: Original, api: Api, database: str, sql: psycopg.Connection
) -> None:
    needs_setting(sql, "transaction_timeout")
    fill(first)
    for conn in (first.conn, sql):
        name = psycopg.sql.Identifier(conn.info.dbname)
        conn.execute(psycopg.sql.SQL("ALTER DATABASE {} SET transaction_timeout = '2s'").format(name))
    following = Following("--from-database", first.conninfo, "--database-url", database)
    try:
        following.until(lambda: any(" all: 4 looked at, 4 new" in line for line in following.lines))
        time.sleep(3)
        first.cluster(C, "fresh", updated_time="now")
        following.until(lambda: api.get(f"/clusters/{C}").status_code == 200)
        assert following.stop() == 0, following.lines
    finally:
        following.process.kill()


@pytest.mark.slow
def test_follow_no_longer_reports_what_the_original_no_longer_has(
    first: Original, database: str
) -> None:
    fill(first)
    first.cluster(C, "Not_A_Name")
    following = Following("--from-database", first.conninfo, "--database-url", database)
    try:
        # It is counted again in each pass, though it has not changed.
        said = " changes: 0 looked at, 0 new, 0 changed, 0 removed, 0 reports, 1 not imported"
        following.until(lambda: any(said in line for line in following.lines))
        first.conn.execute("DELETE FROM clusters WHERE id = %s", [C])
        following.until(lambda: any(", 0 not imported" in line for line in following.lines))
        assert all(" changes: " in line for line in following.lines[2:]), following.lines
        assert following.stop() == 0, following.lines
    finally:
        following.process.kill()


@pytest.mark.slow
def test_follow_reports_what_another_original_still_has_at_the_end(
    first: Original, database: str, sql: psycopg.Connection
) -> None:
    first.cluster(A, "prod")
    first.cluster(B, "stage")
    take(database, first)
    sql.execute("UPDATE imports SET source = 'another' WHERE owner_id = %s", [A])
    first.conn.execute("DELETE FROM clusters WHERE id = %s", [A])
    arguments = ("--from-database", first.conninfo, "--database-url", database)
    assert "from another original: 1 resources" in take(database, first)
    following = Following(*arguments)
    try:
        following.until(lambda: any(" all: " in line for line in following.lines))
        first.cluster(A, "prod", updated_time="now")
        here = "SELECT count(*) FROM imports WHERE source = 'another'"
        following.until(lambda: sql.execute(here).fetchone() == (0,))
        assert following.stop() == 0, following.lines
    finally:
        following.process.kill()
    assert "Everything was imported.\n" in following.lines
    assert not any("from another original" in line for line in following.lines)


@pytest.mark.slow
def test_follow_lets_a_name_pass_from_a_deleted_cluster_to_a_new_one(
    first: Original, api: Api, database: str
) -> None:
    fill(first)
    following = Following("--from-database", first.conninfo, "--database-url", database)
    try:
        following.until(lambda: len(following.lines) > 1)
        first.conn.execute("UPDATE node_pools SET deleted_at = now() WHERE id = %s", [Q])
        first.conn.execute("UPDATE clusters SET deleted_at = now() WHERE id = %s", [B])
        first.cluster(C, "stage", updated_time="now")
        following.until(lambda: api.get(f"/clusters/{C}").status_code == 200)
        assert api.get(f"/clusters/{B}").status_code == 404
        assert following.stop(signal.SIGINT) == 0, following.lines
    finally:
        following.process.kill()
