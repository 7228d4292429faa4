"""Many adapters report at once through two processes: no report is lost, the status is right."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from conftest import Api
from process import Serving

from hyperfleet import times
from hyperfleet.status import fold as status

pytestmark = pytest.mark.slow

THREADS = 200
ADAPTERS = 100
REPORTS = 3


def reports_of_a_thread(number: int) -> list[dict[str, Any]]:
    """Returns what one thread sends; two threads share each adapter, so reports come late and twice."""
    chance = random.Random(number)
    base = datetime.now(UTC) - timedelta(hours=1)
    made = []
    for _ in range(REPORTS):
        observed = base + timedelta(seconds=chance.randrange(3000))
        made.append(
            {
                "adapter": f"adapter-{number % ADAPTERS:03}",
                "observed_generation": chance.choice([1, 2, 3, 3, 3]),
                "observed_time": times.timestamp(observed),
                "conditions": [
                    {"type": "Available", "status": chance.choice(["True", "True", "False"])},
                    {"type": "Health", "status": chance.choice(["True", "True", "False", "Unknown"])},
                ],
            }
        )
    return made + made[:1]


def test_two_hundred_threads_lose_no_report_and_leave_the_right_status(
    database: str,
) -> None:
    arguments = ("--no-auth", "--database-url", database, "--log-level", "warning")
    with Serving(*arguments) as one, Serving(*arguments) as two:
        apis = [Api(one.url), Api(two.url)]
        shared = apis[0].cluster("shared")
        fifty = [apis[0].cluster(f"one-of-{number}") for number in range(50)]
        for cluster in [shared, *fifty]:
            for generation in (2, 3):
                path = f"/clusters/{cluster['id']}"
                answer = apis[0].patch(path, json={"spec": {"wanted": generation}})
                assert answer.json()["generation"] == generation

        start = threading.Barrier(THREADS)
        answers: Counter[int] = Counter()
        sent: dict[tuple[str, str], list[dict[str, Any]]] = {}

        def work(number: int) -> None:
            session = Api(apis[number % 2].url)
            mine = fifty[number % 50]
            start.wait(60)
            for report in reports_of_a_thread(number):
                for cluster in (shared, mine):
                    path = f"/clusters/{cluster['id']}/statuses"
                    answer = session.put(path, json=report, timeout=120)
                    while answer.status_code == 503:
                        # On a slow machine, some requests do not get their turn in time.
                        time.sleep(int(answer.headers["Retry-After"]))
                        answer = session.put(path, json=report, timeout=120)
                    answers[answer.status_code] += 1
                    sent.setdefault((cluster["id"], report["adapter"]), []).append(report)

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(work, range(THREADS)))

        assert set(answers) <= {201, 204}, answers
        assert answers.total() == THREADS * (REPORTS + 1) * 2
        for cluster in [shared, *fifty]:
            stored = apis[0].get(f"/clusters/{cluster['id']}/statuses?size=1000").json()["items"]
            expected = {
                adapter: max((r["observed_generation"], r["observed_time"]) for r in reports)
                for (owner, adapter), reports in sent.items()
                if owner == cluster["id"]
            }
            # Whatever the order of arrival, the newest report of each adapter is kept.
            assert {
                r["adapter"]: (r["observed_generation"], r["last_report_time"]) for r in stored
            } == expected
            now = apis[1].read(cluster)
            read_again = status.fold(now, stored, now["status"], (), times.now())
            assert now["status"] == read_again
        assert one.stop() == two.stop() == 0


def test_reports_on_different_resources_do_not_wait_for_each_other(api: Api, database: str) -> None:
    busy, free = api.cluster("busy"), api.cluster("free")
    with psycopg.connect(database) as holder, ThreadPoolExecutor(1) as threads:
        holder.execute("SELECT 1 FROM clusters WHERE id = %s FOR UPDATE", [busy["id"]])
        waiting = threads.submit(Api(api.url).report, busy)
        assert api.report(free).status_code == 201
        assert not waiting.done()
        holder.rollback()
        assert waiting.result(30).status_code == 201
