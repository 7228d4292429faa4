"""The transitions of a resource: what changed in its conditions, when and why."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from alike import BOTH_KINDS, at, create, patch
from conftest import Api
from helpers_contract import check, problem

Json = dict[str, Any]


def says(status: str, reason: str = "", type_: str = "Available") -> list[Json]:
    return [{"type": type_, "status": status, **({"reason": reason} if reason else {})}]


def report(api: Api, resource: Json, status: str, reason: str = "", adapter: str = "dns") -> None:
    generation = api.read(resource)["generation"]
    conditions = says(status, reason)
    sent = api.report(resource, adapter, observed_generation=generation, conditions=conditions)
    check(sent, 201)


def transitions(api: Api, resource: Json, query: str = "") -> list[Json]:
    found: list[Json] = check(api.get(at(resource, f"/transitions{query}")))["items"]
    return found


@BOTH_KINDS
def test_each_transition_has_the_old_and_new_status_the_reason_and_the_adapter(
    api: Api, kind: str
) -> None:
    resource = create(api, kind)
    assert transitions(api, resource) == []
    before = datetime.now(UTC)
    report(api, resource, "False", "Broken")
    report(api, resource, "True", "Works")
    report(api, resource, "False", "Broken", adapter="other")
    found = transitions(api, resource, "?type=Ready")
    assert [(one["from"], one["to"], one["adapter"]) for one in found if one["from"] != one["to"]] == [
        ("True", "False", "other"),
        ("False", "True", "dns"),
    ]
    for one in found:
        moment = datetime.fromisoformat(one["time"])
        assert before - timedelta(seconds=1) < moment < datetime.now(UTC) + timedelta(seconds=1)
        assert one["generation"] == 1
    own = transitions(api, resource, "?type=DnsSuccessful")
    assert [(one.get("from"), one["to"], one["reason"]) for one in own] == [
        ("False", "True", "Works"),
        (None, "False", "Broken"),
    ]
    whole = transitions(api, resource)
    assert [one["number"] for one in whole] == [*range(len(whole), 0, -1)]
    assert {"Ready", "Reconciled", "DnsSuccessful", "OtherSuccessful"} <= {one["type"] for one in whole}
    assert transitions(api, resource, "?type=None") == []
    for path in (f"/resources/{resource['id']}", at(resource)):
        assert check(api.get(f"{path}/transitions"))["items"] == whole


def test_a_report_that_changes_only_times_and_messages_leaves_no_transition(
    api: Api, sql: psycopg.Connection
) -> None:
    cluster = api.cluster()
    report(api, cluster, "True", "Works")
    known, before = transitions(api, cluster), api.read(cluster)
    for number in range(3):
        conditions = [{**says("True", "Works")[0], "message": f"{number}"}]
        check(api.report(cluster, conditions=conditions), 201)
    assert api.read(cluster) != before
    assert transitions(api, cluster) == known
    report(api, cluster, "True", "Better")
    (newest, *rest) = transitions(api, cluster)
    assert rest == known
    assert (newest["type"], newest["from"], newest["to"], newest["reason"]) == (
        "DnsSuccessful",
        "True",
        "True",
        "Better",
    )


def test_a_transition_caused_by_a_new_spec_names_no_adapter(api: Api) -> None:
    cluster = api.cluster()
    report(api, cluster, "True")
    check(patch(api, cluster, {"spec": {"n": 1}}))
    newest = transitions(api, cluster, "?type=Ready")[0]
    assert (newest["from"], newest["to"], newest["generation"]) == ("True", "False", 2)
    assert "adapter" not in newest


def test_a_condition_that_the_previous_version_removes_leaves_a_transition(
    api: Api, sql: psycopg.Connection
) -> None:
    cluster = api.cluster()
    report(api, cluster, "True")
    sql.execute("""UPDATE clusters SET version = version + 1, status = jsonb_set(
        status, '{conditions}', jsonb_path_query_array(
            status, '$.conditions[*] ? (@.type != "DnsSuccessful")'))""")
    newest = transitions(api, cluster)[0]
    assert (newest["type"], newest["from"], "to" in newest) == ("DnsSuccessful", "True", False)
    assert "adapter" not in newest
    # Something that is not a status does not make the write fail.
    sql.execute("""UPDATE clusters SET status = status - 'conditions'""")
    sql.execute("""UPDATE clusters SET status = status || '{"conditions": "none"}'""")


def test_the_last_200_transitions_are_kept_and_paged(api: Api, sql: psycopg.Connection) -> None:
    cluster, other = api.cluster(), api.cluster("c2")
    report(api, other, "True")
    for number in range(50):
        report(api, cluster, ("True", "False")[number % 2])
    page = check(api.get(at(cluster, "/transitions?size=7")))
    assert (page["total"], page["size"]) == (200, 7)
    numbers, newest = [], page["items"][0]["number"]
    while True:
        numbers += [one["number"] for one in page["items"]]
        if "next" not in page:
            break
        page = check(api.get(f"//{page['next'].removeprefix('/')}"))
    assert numbers == [*range(newest, newest - 200, -1)]
    assert sql.execute("SELECT count(*) FROM transitions").fetchone() == (
        200 + check(api.get(at(other, "/transitions")))["total"],
    )


def test_the_parameters_of_transitions_are_checked(api: Api) -> None:
    cluster = api.cluster()
    problem(api.get(at(cluster, "/transitions?type=")), 400, "type")
    problem(api.get(at(cluster, f"/transitions?type={'x' * 317}")), 400, "type")
    problem(api.get(at(cluster, "/transitions?status=True")), 400, "status")
    shown = check(api.get(at(cluster, "/transitions?fields=type,from")))
    assert shown["items"] == []
    problem(api.get(at(cluster, "/transitions?fields=old")), 400, "fields")
