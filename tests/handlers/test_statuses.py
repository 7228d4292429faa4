"""Reports of adapters: what is stored or discarded, and the status that results."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import requests
from adapter_reports import Json, at, both, path, report, state
from conftest import Api
from helpers_contract import BASE, NO_ID, TIME, check, condition, problem


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_report_is_stored_with_what_the_service_adds(api: Api, method: str) -> None:
    for resource in both(api):
        before = datetime.now(UTC) - timedelta(seconds=2)
        sent = report(
            conditions=[
                {"type": "Available", "status": "True", "reason": "Done", "message": "All well"},
                {"type": "Health", "status": "Unknown"},
            ],
            data={"zone": "example.org", "deep": [{"a": None}], "n": 1.5},
            metadata={"job": "j-1", "attempt": 3},
        )
        stored = check(api.request(method, path(resource), json=sent), 201)
        after = datetime.now(UTC) + timedelta(seconds=2)
        for member in ("adapter", "observed_generation", "data", "metadata"):
            assert stored[member] == sent[member]
        assert [one["type"] for one in stored["conditions"]] == ["Available", "Health"]
        available, health = stored["conditions"]
        assert available["reason"] == "Done"
        assert available["message"] == "All well"
        assert "reason" not in health
        assert "message" not in health
        for one in stored["conditions"]:
            assert one["adapter"] == "dns-adapter"
            assert one["observed_generation"] == 1
            assert before < datetime.fromisoformat(one["created_at"]) < after
            assert one["created_at"] == one["updated_at"] == one["last_transition_time"]
        assert before < datetime.fromisoformat(stored["last_report_time"]) < after
        assert before < datetime.fromisoformat(stored["created_time"]) < after
        assert check(api.get(path(resource)))["items"] == [stored]


def test_a_report_without_data_has_none(api: Api) -> None:
    for resource in both(api):
        stored = check(api.put(path(resource), json=report()), 201)
        assert "data" not in stored
        assert "metadata" not in stored
        full = check(api.put(path(resource), json=report(data={"a": 1}, metadata={})), 201)
        assert full["data"] == {"a": 1}
        assert full["metadata"] == {}
        # A report replaces the one before it completely.
        assert "data" not in check(api.put(path(resource), json=report()), 201)


def test_clients_cannot_set_the_members_of_a_condition_that_the_service_sets(api: Api) -> None:
    long_ago = "1999-12-31T23:59:59Z"
    for resource in both(api):
        sent = report(
            conditions=[
                {
                    "type": "Ready",
                    "status": "True",
                    "adapter": "somebody-else",
                    "observed_generation": 77,
                    "created_at": long_ago,
                    "updated_at": long_ago,
                    "last_transition_time": long_ago,
                    "unknown": "member",
                }
            ],
            unknown="member",
            created_time=long_ago,
            last_report_time=long_ago,
        )
        stored = check(api.put(path(resource), json=sent), 201)
        assert stored["conditions"][0]["adapter"] == "dns-adapter"
        assert stored["conditions"][0]["observed_generation"] == 1
        assert long_ago not in json.dumps(stored)
        assert "1999" not in json.dumps(stored)
        assert "unknown" not in json.dumps(stored)


def test_the_times_of_a_condition_follow_its_reports(api: Api) -> None:
    for resource in both(api):
        answers = [
            check(
                api.put(
                    path(resource),
                    json=report(
                        observed_time=at(seconds=-60 + number),
                        conditions=[{"type": "Available", "status": status}],
                    ),
                ),
                201,
            )
            for number, status in enumerate(["True", "True", "False", "False", "True"])
        ]
        conditions = [answer["conditions"][0] for answer in answers]
        assert len({one["created_at"] for one in conditions}) == 1
        assert len({answer["created_time"] for answer in answers}) == 1
        updated = [one["updated_at"] for one in conditions]
        assert updated == sorted(set(updated))
        transitions = [one["last_transition_time"] for one in conditions]
        assert transitions[0] == transitions[1] < transitions[2] == transitions[3] < transitions[4]
        # A new type gets a new creation time; the others keep theirs.
        later = check(
            api.put(
                path(resource),
                json=report(
                    conditions=[
                        {"type": "New", "status": "True"},
                        {"type": "Available", "status": "True"},
                    ]
                ),
            ),
            201,
        )
        new, old = later["conditions"]
        assert (new["type"], old["type"]) == ("New", "Available")
        assert old["created_at"] == conditions[0]["created_at"] < new["created_at"]


def test_created_at_survives_a_hundred_reports(api: Api) -> None:
    cluster = api.cluster()
    first = api.report(cluster).json()["conditions"][0]
    for number in range(100):
        status = ("True", "False")[number % 2]
        answer = api.report(cluster, conditions=[{"type": "Available", "status": status}])
        assert answer.status_code == 201
    (last,) = check(answer, 201)["conditions"]
    assert last["created_at"] == first["created_at"] < last["updated_at"]
    (shown,) = api.read(cluster)["status"]["adapters"]
    assert shown["created_at"] == first["created_at"]
    assert check(api.get(path(cluster)))["total"] == 1


def test_observed_time_is_kept_in_utc(api: Api) -> None:
    for resource in both(api):
        for number, (sent, kept) in enumerate(
            (
                ("2025-11-17T15:04:05Z", "2025-11-17T15:04:05Z"),
                ("2025-11-17T15:04:05.123456Z", "2025-11-17T15:04:05.123456Z"),
                ("2025-11-17T15:04:05.1Z", "2025-11-17T15:04:05.1Z"),
                ("2025-11-17T17:04:05+02:00", "2025-11-17T15:04:05Z"),
                ("2025-11-16T23:34:05-15:30", "2025-11-17T15:04:05Z"),
            )
        ):
            answer = api.put(path(resource), json=report(f"a{number}", observed_time=sent))
            time = check(answer, 201)["last_report_time"]
            assert TIME.fullmatch(time)
            assert datetime.fromisoformat(time) == datetime.fromisoformat(kept)
            # The report is old, but it is the first of this adapter.
            assert time in [item["last_report_time"] for item in check(api.get(path(resource)))["items"]]


def test_the_zero_time_of_a_go_client_counts_as_no_time(api: Api) -> None:
    cluster = api.cluster()
    zero = "0001-01-01T00:00:00Z"
    first = check(api.put(path(cluster), json=report(observed_time=zero)), 201)
    assert first["last_report_time"] >= cluster["created_time"]
    check(api.put(path(cluster), json=report(observed_time=zero)), 201)
    assert api.read(cluster)["status"]["last_updated_time"] >= first["last_report_time"]


def test_the_clock_of_an_adapter_may_be_at_most_five_minutes_ahead(api: Api) -> None:
    for resource in both(api):
        ahead = at(minutes=4, seconds=55)
        stored = check(api.put(path(resource), json=report(observed_time=ahead)), 201)
        assert stored["last_report_time"] == ahead
        # A report without a time that the service dates is not older than the one before it.
        again = check(api.put(path(resource), json=report()), 201)
        assert again["last_report_time"] == again["conditions"][0]["updated_at"] == ahead
        unchanged = state(api, resource)
        for beyond in (at(minutes=5, seconds=10), at(hours=1), at(days=1000), "9999-12-31T23:59:59Z"):
            problem(api.put(path(resource), json=report(observed_time=beyond)), 400, "observed_time")
        assert state(api, resource) == unchanged


def test_a_report_that_is_ahead_behind_or_older_is_discarded_with_the_reason(
    api: Api, sql: psycopg.Connection
) -> None:
    for resource, table in zip(both(api), ("clusters", "node_pools"), strict=True):

        def discarded(reason: str, of: Json = resource, **members: Any) -> None:
            before = state(api, of)
            for method in ("POST", "PUT"):
                response = api.request(method, path(of), json=report(**members))
                check(response, 204)
                assert response.headers["X-Discard-Reason"] == reason
                assert "Content-Type" not in response.headers
            assert state(api, of) == before

        # Ahead of the resource, whether it is the first report or not.
        discarded("generation-ahead-of-resource", observed_generation=2)
        noon = at(minutes=-30)
        check(api.put(path(resource), json=report(observed_time=noon)), 201)
        discarded("generation-ahead-of-resource", observed_generation=2)
        discarded("generation-ahead-of-resource", observed_generation=2**31 - 1)
        # Older than the stored report of the same generation; the same time is not older.
        discarded("older-than-last-report", observed_time=at(minutes=-31))
        discarded("older-than-last-report", observed_time="1970-01-01T00:00:00Z")
        check(api.put(path(resource), json=report(observed_time=noon)), 201)
        # Another adapter's reports do not count.
        check(api.put(path(resource), json=report("other", observed_time=at(minutes=-40))), 201)
        # Behind the stored report, however late it was observed.
        sql.execute(f"UPDATE {table} SET generation = 3 WHERE id = %s", [resource["id"]])
        check(api.put(path(resource), json=report(observed_generation=2)), 201)
        discarded("generation-behind-last-report", observed_generation=1, observed_time=at(minutes=4))
        discarded("generation-behind-last-report", observed_generation=1)
        # A newer generation counts even when it was observed earlier.
        newer = report(observed_generation=3, observed_time=at(hours=-2))
        assert check(api.put(path(resource), json=newer), 201)["observed_generation"] == 3


def test_reports_on_a_missing_resource_are_not_found(api: Api) -> None:
    cluster = api.cluster()
    for prefix in (
        f"/clusters/{NO_ID}",
        "/clusters/abc",
        f"/clusters/{cluster['id']}/nodepools/{NO_ID}",
        f"/clusters/{cluster['id']}/nodepools/abc",
    ):
        for method in ("GET", "POST", "PUT"):
            response = api.request(method, f"{prefix}/statuses", json=report())
            assert problem(response, 404)["instance"] == f"{BASE}{prefix}/statuses"


def test_the_status_follows_the_reports(api: Api) -> None:
    for resource in both(api):
        created = resource["created_time"]

        def tell(adapter: str, of: Json = resource, **members: Any) -> Json:
            check(api.put(path(of), json=report(adapter, **members)), 201)
            status: Json = api.read(of)["status"]
            return status

        first_time, second_time = at(minutes=-2), at(minutes=-1)
        status = tell(
            "dns-adapter",
            observed_time=first_time,
            conditions=[
                {"type": "Available", "status": "True", "reason": "Resolved", "message": "Zone is up"},
                {"type": "Progressing", "status": "False"},
            ],
        )
        assert status["phase"] == "Ready"
        assert status["observed_generation"] == 1
        assert status["last_updated_time"] == first_time
        (verdict,) = status["adapters"]
        assert {key: verdict[key] for key in ("adapter", "type", "status", "reason", "message")} == {
            "adapter": "dns-adapter",
            "type": "Available",
            "status": "True",
            "reason": "Resolved",
            "message": "Zone is up",
        }
        assert verdict["observed_generation"] == 1
        shown = {one["type"]: one for one in status["conditions"]}
        assert set(shown) == {
            "Ready",
            "Available",
            "Reconciled",
            "LastKnownReconciled",
            "DnsAdapterSuccessful",
        }
        for type_ in ("Ready", "Reconciled"):
            assert (shown[type_]["status"], shown[type_]["reason"]) == ("True", "ReconciledAll")
        for type_ in ("Available", "LastKnownReconciled"):
            assert (shown[type_]["status"], shown[type_]["reason"]) == ("True", "AllAdaptersReconciled")
        for type_ in ("Ready", "Reconciled", "Available", "LastKnownReconciled"):
            assert shown[type_]["observed_generation"] == 1
            assert shown[type_]["created_time"] == created
            assert shown[type_]["last_updated_time"] == first_time
        assert shown["DnsAdapterSuccessful"]["status"] == "True"
        assert shown["DnsAdapterSuccessful"]["reason"] == "Resolved"

        # Unknown keeps the resource from being Ready, and leaves Available as it was.
        status = tell(
            "hyper_shift",
            observed_time=second_time,
            conditions=[{"type": "Ready", "status": "Unknown"}],
        )
        shown = {one["type"]: one for one in status["conditions"]}
        assert status["phase"] == "NotReady"
        assert [one["adapter"] for one in status["adapters"]] == ["dns-adapter", "hyper_shift"]
        assert status["last_updated_time"] == first_time
        assert shown["Ready"]["status"] == shown["Reconciled"]["status"] == "False"
        assert shown["Available"]["status"] == shown["LastKnownReconciled"]["status"] == "True"
        assert shown["HyperShiftSuccessful"]["status"] == "Unknown"
        assert shown["DnsAdapterSuccessful"]["status"] == "True"

        # False at the tracked generation turns both False; with Health=False, the phase is Failed.
        status = tell("hyper_shift", conditions=[{"type": "Ready", "status": "False"}])
        shown = {one["type"]: one for one in status["conditions"]}
        assert status["phase"] == "NotReady"
        assert {shown[one]["status"] for one in ("Ready", "Available", "LastKnownReconciled")} == {
            "False"
        }
        assert shown["Available"]["reason"] == "AdapterReportedNotAvailable"
        status = tell(
            "hyper_shift",
            conditions=[{"type": "Ready", "status": "False"}, {"type": "Health", "status": "False"}],
        )
        assert status["phase"] == "Failed"
        # With True, everything recovers.
        status = tell("hyper_shift", conditions=[{"type": "Ready", "status": "True"}])
        assert status["phase"] == "Ready"
        assert {one["status"] for one in status["conditions"]} == {"True"}
        # The list shows the same.
        listed = "/clusters" if resource["kind"] == "Cluster" else "/nodepools"
        assert check(api.get(listed))["items"][0]["status"] == status


def test_a_report_changes_nothing_but_the_status(api: Api) -> None:
    cluster, node_pool = both(api)
    check(api.put(path(node_pool), json=report()), 201)
    assert api.read(cluster) == cluster
    check(api.put(path(cluster), json=report()), 201)
    for before in (cluster, node_pool):
        after = api.read(before)
        assert {k: v for k, v in after.items() if k != "status"} == {
            k: v for k, v in before.items() if k != "status"
        }
        assert after["status"] != before["status"]


def test_the_verdict_is_available_then_ready_then_the_worst_of_the_rest(api: Api) -> None:
    for number, (conditions, verdict) in enumerate(
        (
            ({"Ready": "False", "Available": "True", "Health": "False"}, "True"),
            ({"Ready": "True", "Health": "False"}, "True"),
            ({"A": "True", "B": "Unknown", "C": "False"}, "False"),
            ({"A": "True", "B": "Unknown"}, "Unknown"),
            ({"A": "True", "Progressing": "False"}, "True"),
        )
    ):
        cluster = api.cluster(f"c{number}")
        told = [{"type": type_, "status": status} for type_, status in conditions.items()]
        check(api.put(path(cluster), json=report(conditions=told)), 201)
        cluster = api.read(cluster)
        assert cluster["status"]["adapters"][0]["status"] == verdict
        assert condition(cluster, "DnsAdapterSuccessful")["status"] == verdict
        assert (cluster["status"]["phase"] == "Ready") == (verdict == "True")


def test_a_resource_is_not_ready_before_all_its_required_adapters_are(
    service: Callable[..., Api],
) -> None:
    api = service(
        required_adapters_cluster=("dns", "validation"), required_adapters_nodepool=("hypershift",)
    )
    cluster, node_pool = both(api)

    def send(resource: Json, adapter: str, status: str = "True") -> requests.Response:
        return api.report(resource, adapter, conditions=[{"type": "Available", "status": status}])

    check(send(cluster, "dns"), 201)
    shown = api.read(cluster)
    assert shown["status"]["phase"] == "NotReady"
    assert shown["status"]["observed_generation"] == 0
    assert condition(shown, "Ready")["reason"] == "ReconciledMissingAdapters"
    assert "validation" in condition(shown, "Ready")["message"]
    assert condition(shown, "Available")["reason"] == "AdaptersMissingReports"
    # An adapter that is not required has its own entries, and no other effect.
    check(send(cluster, "optional", "False"), 201)
    check(send(cluster, "validation"), 201)
    shown = api.read(cluster)
    assert shown["status"]["phase"] == "Ready"
    assert shown["status"]["observed_generation"] == 1
    assert condition(shown, "OptionalSuccessful")["status"] == "False"
    assert len(shown["status"]["adapters"]) == 3

    check(send(node_pool, "dns"), 201)
    assert api.read(node_pool)["status"]["phase"] == "NotReady"
    check(send(node_pool, "hypershift"), 201)
    assert api.read(node_pool)["status"]["phase"] == "Ready"


def test_the_reports_of_a_resource_can_be_searched_ordered_and_paged(api: Api) -> None:
    cluster = api.cluster()
    for adapter in ("dns", "validation", "pull-secret"):
        assert api.report(cluster, adapter).status_code == 201
    path = f"/clusters/{cluster['id']}/statuses"

    def adapters(query: str) -> list[str]:
        answer = check(api.get(f"{path}?{query}"), 200)
        return [item["adapter"] for item in answer["items"]]

    assert adapters("search=adapter='dns'") == ["dns"]
    assert adapters("search=not adapter='dns'&orderBy=adapter") == ["pull-secret", "validation"]
    assert adapters("orderBy=adapter desc&size=2&page=2") == ["dns"]
    assert adapters("") == ["pull-secret", "validation", "dns"]
    refused = problem(api.get(f"{path}?search=name='x'"), 400)
    assert refused["errors"][0]["field"] == "search"
