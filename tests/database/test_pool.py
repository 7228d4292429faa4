"""The connection pool, as seen by requests that wait for a connection."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Generator

import psycopg
import pytest
import uvloop
from conftest import Api, Service
from older import end_others, needs_counted_plans, needs_setting
from psycopg.conninfo import make_conninfo
from psycopg.waiting import Ready, Wait
from psycopg_pool import PoolTimeout
from round_trips import LastWords

from hyperfleet.database import connection
from hyperfleet.database.pool import ASK_AGAIN, Pool, new_pool
from hyperfleet.database.session import Line
from hyperfleet.database.statements import fetch, transaction
from hyperfleet.engine import greenlets
from hyperfleet.resources.snapshot import LONGEST


def test_waiting_requests_get_connections_in_order_of_arrival(database: str) -> None:
    async def main() -> list[int]:
        served: list[int] = []

        async def ask(pool: Pool, number: int) -> None:
            async with pool.connection():
                served.append(number)
                await asyncio.sleep(ASK_AGAIN * 0.7)

        async with new_pool(database, 1) as pool:
            waiting = []
            for number in range(6):
                waiting.append(asyncio.create_task(ask(pool, number)))
                await asyncio.sleep(ASK_AGAIN / 5)
            await asyncio.gather(*waiting)
        return served

    assert uvloop.run(main()) == [0, 1, 2, 3, 4, 5]


def test_a_request_cancelled_just_as_it_gets_a_connection_ends(database: str) -> None:
    async def main() -> list[str]:
        ends = []
        async with new_pool(database, 1) as pool:
            for _ in range(20):
                conn = await pool.getconn()
                waiting = asyncio.create_task(fetch(pool, "SELECT pg_sleep(5)", {}))
                await asyncio.sleep(0.01)
                await pool.putconn(conn)
                waiting.cancel()
                try:
                    await asyncio.wait_for(waiting, 1)
                except asyncio.CancelledError:
                    ends.append("cancelled")
            assert await fetch(pool, "SELECT 1", {}) == [(1,)]
        return ends

    assert uvloop.run(main()) == ["cancelled"] * 20


def test_cancelling_the_return_of_a_connection_does_not_lose_it_for_a_new_waiter(
    database: str,
) -> None:
    async def main() -> None:
        async with new_pool(database, 1) as pool:
            conn, done = await pool.getconn(), asyncio.Event()

            async def give_back() -> None:
                await done.wait()
                await pool.putconn(conn)

            giving = asyncio.create_task(give_back())
            await asyncio.sleep(0)
            # All in one iteration of the loop, and in this order.
            waiting = asyncio.create_task(fetch(pool, "SELECT 1", {}))
            done.set()
            asyncio.get_running_loop().call_soon(giving.cancel)
            assert await waiting == [(1,)]

    uvloop.run(main())


def test_an_idle_connection_that_was_closed_uses_no_cpu(database: str, sql: psycopg.Connection) -> None:
    """A loop that kept polling a closed socket would be busy forever."""

    async def main() -> float:
        async with new_pool(database, 4) as pool:
            await asyncio.gather(*(fetch(pool, "SELECT pg_sleep(0.1)", {}) for _ in range(4)))
            end_others(sql)
            await asyncio.sleep(0.1)
            began = time.thread_time()
            await asyncio.sleep(1)
            used = time.thread_time() - began
            assert await fetch(pool, "SELECT 1", {}) == [(1,)]
        return used

    assert uvloop.run(main()) < 0.3


def test_a_request_that_times_out_leaves_its_connection_to_others(database: str) -> None:
    async def main() -> None:
        async with new_pool(database, 1, 30) as pool:
            [(first,)] = await fetch(pool, "SELECT pg_backend_pid()", {})
            for _ in range(20):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await fetch(pool, "SELECT pg_sleep(20)", {})
                assert await fetch(pool, "SELECT pg_backend_pid()", {}) == [(first,)]
            with pytest.raises(PoolTimeout):
                async with pool.connection():
                    await pool.getconn(0.1)

    uvloop.run(main())


def test_data_sent_just_before_a_connection_reset_is_received() -> None:
    """PostgreSQL does this over TCP if it is stopped while a statement is in transit."""

    async def main() -> bytes:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            ours = socket.create_connection(listening.getsockname())
            theirs, _ = listening.accept()
        ours.setblocking(False)

        def hearing() -> Generator[Wait, Ready, bytes]:
            heard = b""
            while True:
                yield Wait.R
                try:
                    heard += ours.recv(100)
                except ConnectionResetError:
                    return heard

        with ours:
            line = Line(ours.fileno())
            waiting = asyncio.create_task(line.wait(hearing()))
            await asyncio.sleep(0)
            theirs.send(b"goodbye")
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
            heard = await asyncio.wait_for(waiting, 3)
            line.close()
        return heard

    assert uvloop.run(main()) == b"goodbye"


def test_reads_reports_and_patches_use_generic_plans(
    default_service: Service, database: str, sql: psycopg.Connection
) -> None:
    """Planning these statements takes longer than executing them."""
    needs_counted_plans(sql)
    switch = default_service.pool
    with switch.over(new_pool(database, 1)):
        api = Api(default_service.url)
        cluster, large = api.cluster(), api.cluster("large", spec={"text": "x" * LONGEST})
        for number in range(20):
            api.read(cluster)
            assert api.report(cluster).status_code == 201
            for one in (cluster, large):
                patched = api.patch(f"/clusters/{one['id']}", json={"labels": {"n": str(number)}})
                assert patched.status_code == 200
        asked = fetch(
            switch.pool,
            "SELECT split_part(statement, ' ', 2), custom_plans, generic_plans"
            " FROM pg_prepared_statements WHERE statement ~ '^/\\* '",
            {},
        )
        plans = {
            name: (custom, generic)
            for name, custom, generic in asyncio.run_coroutine_threadsafe(asked, switch.loop).result(10)
        }
    named = {"clusters_read", "clusters_state", "clusters_report", "clusters_lock", "clusters_change"}
    named |= {"clusters_whole", "clusters_change_locked"}
    assert named <= plans.keys()
    # PostgreSQL makes a custom plan five times.
    assert {name: custom for name, (custom, _) in plans.items() if custom > 5} == {}
    assert all(plans[name][1] > 5 for name in named)


def test_documents_are_compressed_with_lz4_if_the_server_has_it(
    database: str, sql: psycopg.Connection
) -> None:
    async def main() -> str | None:
        query = "SELECT current_setting('default_toast_compression', true)"
        async with new_pool(database, 1) as pool:
            [(used,)] = await fetch(pool, query, {})
        return used

    # PostgreSQL 13 has neither a choice nor the setting.
    expected = None
    for (offered,) in sql.execute(
        "SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'"
    ):
        expected = "lz4" if "lz4" in offered else "pglz"
    assert uvloop.run(main()) == expected
    assert (expected is None) == (sql.info.server_version < 140_000)


def test_the_server_ends_no_idle_session_that_a_request_may_be_about_to_take(
    database: str, sql: psycopg.Connection
) -> None:
    needs_setting(sql, "idle_session_timeout")
    ends = make_conninfo(database, options="-c idle_session_timeout=100ms")

    async def main() -> bool:
        async with new_pool(ends, 1) as pool:
            [(before,)] = await fetch(pool, "SELECT pg_backend_pid()", {})
            await asyncio.sleep(0.5)
            [(after,)] = await fetch(pool, "SELECT pg_backend_pid()", {})
        return bool(before == after)

    assert uvloop.run(main())


def test_the_server_ends_a_transaction_in_which_nothing_happens(
    database: str, sql: psycopg.Connection
) -> None:
    """Otherwise a stopped process would hold its locks for ever."""

    async def main() -> None:
        async with new_pool(database, 1, statement_timeout=0.2) as pool:
            conn = await pool.getconn()
            await conn.execute("BEGIN")
            await conn.execute("LOCK TABLE clusters IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(1)
            sql.execute("LOCK TABLE clusters IN ACCESS SHARE MODE NOWAIT")
            await pool.putconn(conn)

    sql.autocommit = False
    uvloop.run(main())


def test_a_transaction_that_is_given_up_is_rolled_back_without_a_warning(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with new_pool(database, 1) as pool:

            def work(statement: str) -> None:
                with transaction(pool) as conn:
                    conn.execute(
                        "INSERT INTO labels VALUES ('Cluster', gen_random_uuid(), 'a', 'b', now())"
                    )
                    conn.execute(statement).fetchone()
                    raise LookupError("given up")

            for statement in ("SELECT 1", "SELECT 1 / 0"):
                with pytest.raises((LookupError, psycopg.errors.DivisionByZero)):
                    await greenlets.run(work, statement)
            assert await fetch(pool, "SELECT count(*) FROM labels", {}) == [(0,)]

    uvloop.run(main())
    assert caplog.messages == []


def test_after_an_outage_a_request_without_a_connection_is_told_that_all_are_in_use(
    database: str, sql: psycopg.Connection
) -> None:
    async def main() -> list[bool]:
        busy = []
        async with new_pool(make_conninfo(database, user=role), 1) as pool:
            for allowed in (False, True):
                allow(allowed)
                if allowed:
                    conn = await pool.getconn(10)
                with pytest.raises(PoolTimeout) as caught:
                    await pool.getconn(1)
                busy.append(connection.busy(caught.value))
            await pool.putconn(conn)
        return busy

    role = f"{sql.info.dbname}_away"

    def allow(on: bool) -> None:
        sql.execute(f"ALTER ROLE {role} {'LOGIN' if on else 'NOLOGIN'}")
        end_others(sql)

    sql.execute(f"CREATE ROLE {role} LOGIN")
    try:
        assert uvloop.run(main()) == [False, True]
    finally:
        sql.execute(f"DROP ROLE {role}")


def test_a_long_transaction_is_not_hung_up_as_long_as_the_server_answers(database: str) -> None:
    async def main() -> None:
        async with new_pool(database, 1) as pool:
            pool.patience = 2 * ASK_AGAIN

            def work() -> list[int]:
                with transaction(pool) as conn:
                    return [
                        number
                        for number in range(6)
                        for _ in conn.execute("SELECT pg_sleep(%s)", [ASK_AGAIN])
                    ]

            assert await greenlets.run(work) == [*range(6)]

    uvloop.run(main())


def test_no_connection_stays_idle_for_long_while_others_are_used(database: str) -> None:
    """Devices in between, such as firewalls, forget idle connections."""

    async def main() -> bool:
        async with new_pool(database, 4) as pool:
            pids = {conn.info.backend_pid for conn in [await pool.getconn() for _ in range(4)]}
            for conn in list(pool.used):
                await pool.putconn(conn)
            used = set()
            end = time.monotonic() + 100 * ASK_AGAIN
            while used != pids and time.monotonic() < end:
                used |= {pid for (pid,) in await fetch(pool, "SELECT pg_backend_pid()", {})}
                await asyncio.sleep(ASK_AGAIN / 4)
        return used == pids

    assert uvloop.run(main())


def test_an_expired_connection_is_replaced_when_it_is_returned(database: str) -> None:
    async def main() -> bool:
        async with new_pool(database, 1) as pool:
            conn = await pool.getconn()
            old = conn.info.backend_pid
            conn._expire_at = time.monotonic()
            await pool.putconn(conn)
            [(pid,)] = await fetch(pool, "SELECT pg_backend_pid()", {})
        return bool(pid != old)

    assert uvloop.run(main())


def test_a_repeated_statement_is_prepared_unless_that_is_disabled(
    database: str,
) -> None:
    async def main() -> list[int]:
        prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '/* %% */%%'"
        found = []
        async with new_pool(database, 1) as pool:
            for prepare, name in ((False, "planned"), (None, "kept")):
                for number in range(8):
                    rows = await fetch(pool, f"/* {name} */ SELECT %(n)s + 1", {"n": number}, prepare)
                    assert rows == [(number + 1,)]
                [(count,)] = await fetch(pool, prepared, {}, prepare=False)
                found.append(count)
        return found

    assert uvloop.run(main()) == [0, 1]


def test_a_failed_statement_leaves_its_connection_usable(database: str) -> None:
    async def main() -> None:
        async with new_pool(database, 1) as pool:
            [(pid,)] = await fetch(pool, "SELECT pg_backend_pid()", {})
            for _ in range(8):
                with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero"):
                    await fetch(pool, "SELECT 1 / %(n)s", {"n": 0})
            assert await fetch(pool, "SELECT 1 / %(n)s, pg_backend_pid()", {"n": 1}) == [(1, pid)]

    uvloop.run(main())


def test_texts_are_stored_unchanged_whatever_the_default_client_encoding_is(
    database: str, service: Callable[..., Api], sql: psycopg.Connection
) -> None:
    name = psycopg.sql.Identifier(sql.info.dbname)
    sql.execute(psycopg.sql.SQL("ALTER DATABASE {} SET client_encoding = 'LATIN1'").format(name))
    api = service(database)
    cluster = api.post("/clusters", json={"name": "c", "spec": {"text": "ü€😀"}}).json()
    assert sql.execute("SELECT spec ->> 'text' FROM clusters").fetchone() == ("ü€😀",)
    assert api.read(cluster)["spec"] == {"text": "ü€😀"}
    with connection.connect(database) as conn:
        assert conn.execute("SELECT spec ->> 'text' FROM clusters").fetchone() == ("ü€😀",)


@pytest.mark.parametrize("prepare", [None, False])
def test_a_connection_terminated_after_its_result_is_an_operational_error(
    database: str, prepare: bool | None
) -> None:
    wire = LastWords(database, "SELECT 1")

    async def main() -> None:
        async with new_pool(wire.conninfo, 1) as pool:
            for _ in range(8):
                assert await fetch(pool, "SELECT 1", {}, prepare) == [(1,)]
            wire.wanted = True
            with pytest.raises(psycopg.OperationalError, match="administrator command"):
                await fetch(pool, "SELECT 1", {}, prepare)
            assert not wire.wanted
            assert await fetch(pool, "SELECT 1", {}, prepare) == [(1,)]

    uvloop.run(main())
    wire.close()
