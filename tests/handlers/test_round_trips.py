"""The number of round trips to the database that a request takes, counted on the wire."""

from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
from conftest import Api
from round_trips import RoundTrips

from hyperfleet.database.pool import new_pool


@pytest.fixture
def wire(database: str) -> Iterator[RoundTrips]:
    wire = RoundTrips(database)
    yield wire
    wire.close()


def test_reads_and_creations_take_one_round_trip_and_reports_and_changes_two(
    wire: RoundTrips, service: Callable[..., Api]
) -> None:
    # A single connection: opening another one would be counted, too.
    api = service(wire.conninfo, pool=new_pool(wire.conninfo, 1))

    def trips(method: str, path: str, body: object = None) -> int:
        wire.reset()
        answer = api.request(method, path, json=body)
        assert answer.ok, answer.text
        return wire.count

    cluster = api.cluster("counted", labels={"a": "b"})
    path = f"/clusters/{cluster['id']}"
    pool = api.node_pool(cluster, "pool")
    report = {
        "adapter": "dns",
        "observed_generation": 1,
        "conditions": [{"type": "Available", "status": "True"}],
    }
    requests = (
        (1, "POST", "/clusters", True),
        (1, "POST", f"{path}/nodepools", True),
        (1, "GET", "/clusters", None),
        (1, "GET", "/nodepools", None),
        (1, "GET", f"{path}/nodepools", None),
        (1, "GET", path, None),
        (1, "GET", f"{path}/nodepools/{pool['id']}", None),
        (1, "GET", f"{path}/statuses", None),
        (2, "PUT", f"{path}/statuses", report),
        (2, "POST", f"{path}/nodepools/{pool['id']}/statuses", report),
        (2, "PATCH", path, {"spec": {}}),
    )
    more: dict[str, list[int]] = defaultdict(list)
    for number in range(12):
        creation = {"name": f"c{number}", "spec": {}, "labels": {"a": "b"}}
        for expected, method, where, body in requests:
            sent = creation if body is True else {"spec": {"n": number}} if method == "PATCH" else body
            taken = trips(method, where, sent)
            assert taken >= expected
            if taken > expected:
                more[f"{method} {where}"].append(taken - expected)
    # Preparing a frequent statement takes one more round trip, once on each connection.
    for spent in more.values():
        assert len(spent) == 1
        assert spent[0] <= 2
    assert trips("DELETE", path) == 2
