"""How often a request speaks to the database, counted on the wire."""

from collections.abc import Callable, Iterator

import pytest
from conftest import Api
from round_trips import RoundTrips


@pytest.fixture
def wire(database: str) -> Iterator[RoundTrips]:
    wire = RoundTrips(database)
    yield wire
    wire.close()


def test_reads_and_creations_take_one_round_trip_and_reports_and_changes_two(
    wire: RoundTrips, service: Callable[..., Api]
) -> None:
    api = service(wire.conninfo)

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
    # The statements are prepared after a few uses; that must not cost a trip of its own.
    for number in range(8):
        creation = {"name": f"c{number}", "spec": {}, "labels": {"a": "b"}}
        assert trips("POST", "/clusters", creation) == 1
        assert trips("POST", f"{path}/nodepools", creation) == 1
        assert trips("GET", "/clusters") == 1
        assert trips("GET", "/nodepools") == 1
        assert trips("GET", f"{path}/nodepools") == 1
        assert trips("GET", path) == 1
        assert trips("GET", f"{path}/nodepools/{pool['id']}") == 1
        assert trips("GET", f"{path}/statuses") == 1
        assert trips("PUT", f"{path}/statuses", report) == 2
        assert trips("POST", f"{path}/nodepools/{pool['id']}/statuses", report) == 2
        assert trips("PATCH", path, {"spec": {"number": number}}) == 2
    assert trips("DELETE", path) == 2
