"""What real clients send, and what they can read: nulls, floats, fields, media types."""

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import requests
from client_requests import MERGE, REPORT_BODY, statuses
from conftest import Api
from helpers_contract import NO_ID, check, condition, problem
from process import Serving

from hyperfleet.errors import ConfigurationError

STRICT = {"User-Agent": "OpenAPI-Generator/1.0.0/go"}


def test_null_for_an_optional_member_of_a_report_means_absent(api: Api) -> None:
    nothing = {
        **dict.fromkeys(("reason", "message", "adapter", "observed_generation")),
        **dict.fromkeys(("created_at", "updated_at", "last_transition_time")),
    }
    for resource in (cluster := api.cluster(), api.node_pool(cluster)):
        for method in ("PUT", "POST"):
            report = {
                "adapter": "dns",
                "observed_generation": 1,
                "observed_time": None,
                "conditions": [{"type": "Available", "status": "True", **nothing}],
                "data": None,
                "metadata": None,
            }
            stored = check(api.request(method, statuses(resource), json=report), 201)
            assert "data" not in stored
            assert "metadata" not in stored
            (one,) = stored["conditions"]
            assert {"reason", "message"}.isdisjoint(one)
            assert one["adapter"] == "dns"
            assert one["observed_generation"] == 1
        for required in ("adapter", "observed_generation", "conditions"):
            problem(api.put(statuses(resource), json={**report, required: None}), 400, required)


def test_null_inside_spec_and_data_is_kept_as_data(api: Api) -> None:
    spec = {"a": None, "b": [None, {"c": None}]}
    cluster = check(api.post("/clusters", json={"name": "c1", "spec": spec}), 201)
    assert api.read(cluster)["spec"] == spec
    check(api.patch(f"/clusters/{cluster['id']}", json={"spec": {"d": None}}))
    assert api.read(cluster)["spec"] == {"d": None}
    stored = check(api.report(cluster, observed_generation=2, data=spec, metadata={"m": None}), 201)
    assert (stored["data"], stored["metadata"]) == (spec, {"m": None})


def test_null_for_an_optional_member_of_a_resource_means_absent(api: Api) -> None:
    body = {"name": "c1", "spec": {}, "kind": None, "labels": None, "id": None, "status": None}
    cluster = check(api.post("/clusters", json=body), 201)
    assert cluster["labels"] == {}
    pools = f"/clusters/{cluster['id']}/nodepools"
    node_pool = check(api.post(pools, json={**body, "owner_references": None}), 201)
    assert node_pool["kind"] == "NodePool"
    for resource in (cluster, node_pool):
        url = api.url + resource["href"]
        nothing: dict[str, Any] = dict.fromkeys(("kind", "id", "name", "labels", "spec"))
        assert check(api.patch(url, json=nothing)) == resource
        del nothing["labels"], nothing["spec"]
        assert check(api.patch(url, data=json.dumps(nothing), headers=MERGE)) == resource


def test_null_keeps_its_meaning_in_a_merge_patch(api: Api) -> None:
    cluster = api.cluster(labels={"a": "1", "b": "2"}, spec={"x": 1, "y": {"z": 2}})
    url = f"/clusters/{cluster['id']}"
    patch: dict[str, Any] = {"labels": {"a": None}, "spec": {"y": {"z": None}}}
    merged = check(api.patch(url, data=json.dumps(patch), headers=MERGE))
    assert (merged["labels"], merged["spec"]) == ({"b": "2"}, {"x": 1, "y": {}})
    merged = check(api.patch(url, data='{"labels": null}', headers=MERGE))
    assert (merged["labels"], merged["spec"]) == ({}, {"x": 1, "y": {}})


@pytest.mark.parametrize("number", ["1.0", "1e0", "10e-1", "1.000"])
def test_an_integer_written_as_a_float_is_stored_and_shown_as_an_integer(
    api: Api, sql: psycopg.Connection, number: str
) -> None:
    cluster = api.cluster()
    body = (
        f'{{"adapter": "dns", "observed_generation": {number},'
        ' "data": {"whole": 2.0, "big": 1e20, "half": 2.5},'
        f' "conditions": [{{"type": "Available", "status": "True", "observed_generation": {number}}}]}}'
    )
    answers = [
        api.put(statuses(cluster), data=body, headers={"Content-Type": "application/json"}),
        api.get(statuses(cluster)),
        api.get(f"/clusters/{cluster['id']}"),
        api.get("/clusters"),
    ]
    for answer in answers:
        found = re.findall(r'"observed_generation": ?([^,}\]]+)', answer.text)
        assert found
        assert set(found) == {"1"}, answer.text
    assert '"whole": 2}' in answers[1].text
    assert check(answers[0], 201)["data"] == {"whole": 2, "big": 1e20, "half": 2.5}
    (stored,) = sql.execute("SELECT conditions::text FROM adapter_statuses").fetchone() or ()
    # Parsed, since the text of the number may also occur in a time.
    numbers = [one["observed_generation"] for one in json.loads(stored, parse_float=pytest.fail)]
    assert set(map(repr, numbers)) == {"1"}
    wrong = body.replace(number, "1.5")
    refused = api.put(statuses(cluster), data=wrong, headers={"Content-Type": "application/json"})
    problem(refused, 400, "observed_generation", "conditions[0].observed_generation")


# The members that the generated models of December 2025 know; any other is an error to them.
CONDITION = {
    *("type", "status", "reason", "message", "observed_generation"),
    *("created_time", "last_updated_time", "last_transition_time"),
}
STATUS = {
    *("phase", "observed_generation", "last_transition_time", "last_updated_time", "conditions"),
}
CLUSTER = {
    *("kind", "id", "href", "name", "labels", "spec", "generation", "status"),
    *("created_time", "updated_time", "created_by", "updated_by"),
}
REPORT = {
    *("adapter", "observed_generation", "conditions", "data", "metadata"),
    *("created_time", "last_report_time"),
}
REPORTED = {"type", "status", "reason", "message", "last_transition_time"}
REQUIRED = {"type", "status", "last_transition_time"}


def assert_strict(body: dict[str, Any]) -> None:
    """Asserts that the client can read it: no member that it does not know, all that it requires."""
    if "items" in body:
        assert body.keys() == {"kind", "page", "size", "total", "items"}
        for item in body["items"]:
            assert_strict(item)
    elif "adapter" in body:
        assert REPORT - {"data", "metadata"} <= body.keys() <= REPORT
        assert all(REQUIRED <= one.keys() <= REPORTED for one in body["conditions"])
    else:
        owner = {"owner_references"} if body["kind"] == "NodePool" else set()
        assert body.keys() == CLUSTER | owner
        assert body["status"].keys() == STATUS
        needed = CONDITION - {"reason", "message"}
        assert all(needed <= one.keys() <= CONDITION for one in body["status"]["conditions"])


def test_the_strict_client_of_december_2025_gets_only_the_members_that_it_knows(
    service: Callable[..., Api],
) -> None:
    api = service(required_adapters_cluster=("dns",), required_adapters_nodepool=("dns",))
    api.headers.update(STRICT)
    created = api.post("/clusters", json={"name": "abc", "spec": {"a": {"b": 1}}, "labels": {"c": "d"}})
    cluster = check(created, 201)
    pool = api.post(f"/clusters/{cluster['id']}/nodepools", json={"name": "abc", "spec": {}})
    node_pool = check(pool, 201)
    report = api.report(cluster, data={"zone": 1}, metadata={"job_name": "x"})
    patched = api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": {"b": 2}}})
    api.report(node_pool)
    for number in range(3):
        api.cluster(f"other{number}")
    answers = [
        *(created, pool, report, patched),
        *(api.get(api.url + one["href"]) for one in (cluster, node_pool)),
        api.get("/clusters?size=2"),
        api.get("/nodepools"),
        api.get(f"/clusters/{cluster['id']}/nodepools"),
        api.get(statuses(cluster)),
        *(api.delete(api.url + one["href"]) for one in (node_pool, cluster)),
        # After the deletion, too.
        *(api.get(api.url + one["href"]) for one in (cluster, node_pool)),
        api.get("/clusters"),
    ]
    for answer in answers:
        assert_strict(check(answer, answer.status_code))
        assert answer.headers["X-Default-Fields"] == STRICT["User-Agent"]
        assert "User-Agent" in answer.headers["Vary"]
    assert answers[4].json()["labels"] == {"c": "d"}
    assert answers[4].json()["spec"] == {"a": {"b": 2}}
    assert report.json()["data"] == {"zone": 1}


def test_requested_fields_override_the_default_fields_of_a_client(api: Api) -> None:
    whole = api.cluster(labels={"a": "b"})
    url = f"/clusters/{whole['id']}"
    assert check(api.get(url + "?fields=*", headers=STRICT)) == whole
    assert check(api.get(url + "?fields=name,status.phase", headers=STRICT)) == {
        "id": whole["id"],
        "name": "c1",
        "status": {"phase": "NotReady"},
    }
    everything = check(api.get("/clusters?fields=*&size=1", headers=STRICT))
    assert everything["items"] == [whole]
    created = api.post("/clusters?fields=*", json={"name": "c2", "spec": {}}, headers=STRICT)
    assert "adapters" in check(created, 201)["status"]
    for answer in (created, api.get(url), api.get("/clusters")):
        assert "X-Default-Fields" not in answer.headers
    # With fields=*, it gets the link to the next page like any other client.
    assert "next" in check(api.get("/clusters?fields=*&size=1", headers=STRICT))
    newer = {"User-Agent": "OpenAPI-Generator/1.0.1/go"}
    assert check(api.get(url, headers=newer)) == whole


def test_history_transitions_and_the_audit_log_are_shown_whole_to_every_client(api: Api) -> None:
    # Newly generated clients send the User-Agent of the strict one, and their contract has all this.
    cluster = api.cluster()
    url = f"/clusters/{cluster['id']}"
    check(api.patch(url, json={"spec": {"a": 1}}))
    check(api.report(cluster), 201)
    for path in (f"{url}/history", f"{url}/transitions", "/audit"):
        whole = check(api.get(f"{path}?size=1"))
        assert "next" in whole
        got = api.get(f"{path}?size=1", headers=STRICT)
        assert check(got) == whole
        assert "X-Default-Fields" not in got.headers
    past = check(api.get(f"{url}/history/1"))
    assert check(api.get(f"{url}/history/1", headers=STRICT)) == past


def test_fields_leave_out_members_that_they_do_not_name_at_any_depth(api: Api) -> None:
    cluster = api.cluster(spec={"a": {"b": 1, "c": 2}, "d": 3})
    node_pool = api.node_pool(cluster, labels={"x": "y"})
    api.report(cluster)
    only = check(api.get(f"/clusters/{cluster['id']}?fields=spec.a.b,status.conditions.type"))
    assert only.keys() == {"id", "spec", "status"}
    assert only["spec"] == {"a": {"b": 1}}
    assert only["status"].keys() == {"conditions"}
    assert all(one.keys() == {"type"} for one in only["status"]["conditions"])
    for url in (node_pool["href"], f"/api/hyperfleet/v1/nodepools/{node_pool['id']}"):
        assert check(api.get(f"{api.url}{url}?fields=labels")) == {
            "id": node_pool["id"],
            "labels": {"x": "y"},
        }


def test_requests_for_resources_may_name_fields_of_any_kind(api: Api) -> None:
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    wanted = "?fields=name,owner_references.id"
    shown = [{"id": cluster["id"], "name": "c1"}]
    owner = {"id": cluster["id"]}
    shown += [{"id": node_pool["id"], "name": node_pool["name"], "owner_references": owner}]
    assert check(api.get(f"/resources{wanted}&orderBy=created_time"))["items"] == shown
    for one in shown:
        url = f"/resources/{one['id']}{wanted}"
        assert check(api.get(url)) == one
        assert check(api.patch(url, json={"labels": {"a": "b"}})) == one
    body = {"kind": "Cluster", "name": "c2", "spec": {}}
    assert check(api.post(f"/resources{wanted}", json=body), 201).keys() == {"id", "name"}
    assert check(api.delete(f"/resources/{cluster['id']}{wanted}"), 202) == shown[0]
    # The path of a cluster accepts only fields of clusters.
    problem(api.get(f"/clusters/{cluster['id']}{wanted}"), 400, "fields")


def test_unknown_fields_are_refused_before_anything_is_changed(api: Api) -> None:
    cluster = api.cluster()
    url = f"/clusters/{cluster['id']}"
    for answer in (
        api.get(url + "?fields=nmae"),
        api.post("/clusters?fields=nmae", json={"name": "c2", "spec": {}}),
        api.post(f"{url}/nodepools?fields=a%20b", json={"name": "c2", "spec": {}}),
        api.patch(url + "?fields=nmae", json={"labels": {"a": "b"}}),
        api.delete(url + "?fields=nmae"),
        api.put(statuses(cluster) + "?fields=nmae", json={**REPORT_BODY}),
    ):
        problem(answer, 400, "fields")
    assert "did you mean name?" in api.get(url + "?fields=nmae").json()["detail"]
    assert api.read(cluster) == cluster
    assert check(api.get("/clusters"))["total"] == 1
    assert check(api.get("/nodepools"))["total"] == 0


@pytest.mark.parametrize(
    "fields", ["name.first", "generation.x", "status.phase.x", "status.conditions.type.x"]
)
def test_fields_below_a_member_that_has_no_members_are_refused(api: Api, fields: str) -> None:
    cluster = api.cluster(spec={"a": 1}, labels={"a": "b"})
    for url in (f"/clusters/{cluster['id']}", "/clusters", f"/resources/{cluster['id']}"):
        detail = problem(api.get(url, params={"fields": fields}), 400, "fields")["detail"]
        assert f"{fields.rpartition('.')[0]} has no members" in detail
    # The members of specs and labels are not known in advance.
    inside = check(api.get(f"/clusters/{cluster['id']}?fields=spec.a.b,labels.x/y"))
    assert (inside["spec"], inside["labels"]) == ({}, {})


def test_default_fields_can_be_set_by_user_agent(service: Callable[..., Api]) -> None:
    api = service(default_fields=("curl/=name", "Sentinel=id,generation,adapter"))
    cluster = api.cluster()
    url = f"/clusters/{cluster['id']}"
    assert check(api.get(url, headers={"User-Agent": "curl/8.5"})) == {"id": cluster["id"], "name": "c1"}
    short = check(api.get(url, headers={"User-Agent": "Sentinel"}))
    assert short == {"id": cluster["id"], "generation": 1}
    assert check(api.get(url, headers=STRICT)) == cluster
    assert check(api.get(url, headers={"User-Agent": "xcurl/8.5"})) == cluster
    # A page in this form is not one that another client already has.
    tag = api.get("/clusters", headers={"User-Agent": "curl/8.5"}).headers["ETag"]
    for agent, status in (("curl/8.5", 304), ("Sentinel", 200), ("xcurl/8.5", 200)):
        known = {"User-Agent": agent, "If-None-Match": tag}
        assert api.get("/clusters", headers=known).status_code == status
    assert check(service(default_fields=()).get(url, headers=STRICT)) == cluster
    for entry, named in (("x=nmae", "nmae"), ("x=name.first", "name.first"), ("x=status.phse", "phase")):
        with pytest.raises(ConfigurationError, match=named):
            service(default_fields=(entry,))


def test_a_report_whose_available_is_unknown_after_an_earlier_one_is_discarded(api: Api) -> None:
    cluster = api.cluster()
    unknown = [{"type": "Available", "status": "Unknown"}, {"type": "Health", "status": "True"}]
    # As an adapter's first report, it is stored.
    check(api.report(cluster, "first", conditions=unknown), 201)
    check(api.report(cluster, "first"), 201)
    before = api.read(cluster)
    assert condition(before, "Reconciled")["status"] == "True"
    for method in ("PUT", "POST"):
        answer = api.request(
            method,
            statuses(cluster),
            json={"adapter": "first", "observed_generation": 1, "conditions": unknown},
        )
        assert check(answer, 204) is None
        assert answer.headers["X-Discard-Reason"] == "available-unknown"
    assert api.read(cluster) == before
    # At a new generation, too, and after another Unknown.
    check(api.patch(f"/clusters/{cluster['id']}", json={"spec": {"a": 1}}))
    check(api.report(cluster, "first", observed_generation=2, conditions=unknown), 204)
    check(api.report(cluster, "second", observed_generation=2, conditions=unknown), 201)
    check(api.report(cluster, "second", observed_generation=2, conditions=unknown), 204)
    # Another condition may be Unknown.
    other = [{"type": "Available", "status": "True"}, {"type": "Health", "status": "Unknown"}]
    check(api.report(cluster, "first", observed_generation=2, conditions=other), 201)


def test_node_pools_can_be_used_without_their_cluster_in_the_path(service: Callable[..., Api]) -> None:
    api = service(required_adapters_nodepool=("np",), required_adapters_cluster=("cl",))
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    url = f"/nodepools/{node_pool['id']}"
    read = api.get(url)
    assert check(read) == node_pool
    tag = read.headers["ETag"]
    assert check(api.get(url, headers={"If-None-Match": tag}), 304) is None
    changed = check(api.patch(url, json={"labels": {"a": "b"}}, headers={"If-Match": tag}))
    assert (changed["labels"], changed["generation"]) == ({"a": "b"}, 2)
    problem(api.patch(url, json={"labels": {}}, headers={"If-Match": tag}), 412)
    report = {**REPORT_BODY, "adapter": "np", "observed_generation": 2}
    for method in ("PUT", "POST"):
        check(api.request(method, url + "/statuses", json=report), 201)
    assert check(api.get(url + "/statuses"))["total"] == 1
    assert condition(api.read(node_pool), "Reconciled")["status"] == "True"
    problem(api.post(url + "/force-delete", json={"reason": "x"}), 409)
    check(api.delete(f"/clusters/{cluster['id']}"), 202)
    marked = check(api.delete(url), 202)
    assert marked["deleted_time"]
    # Once the cluster's own adapter is done, the cluster waits only for the node pool.
    done = {"observed_generation": 2, "conditions": [{"type": "Finalized", "status": "True"}]}
    check(api.report(cluster, "cl", **done), 201)
    assert check(api.get("/clusters"))["total"] == 1
    check(api.post(url + "/force-delete", json={"reason": "stuck"}), 204)
    for gone in (url, url + "/statuses"):
        assert problem(api.get(gone), 404)["code"] == "HYPERFLEET-NTF-001"
    assert check(api.get("/clusters"))["total"] == 0


def test_the_last_report_by_a_flat_route_removes_the_node_pool_and_its_cluster(
    service: Callable[..., Api],
) -> None:
    api = service(required_adapters_nodepool=("np",))
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    check(api.delete(f"/clusters/{cluster['id']}"), 202)
    done = {"observed_generation": 2, "conditions": [{"type": "Finalized", "status": "True"}]}
    url = f"/nodepools/{node_pool['id']}/statuses"
    check(api.put(url, json={"adapter": "np", **done}), 201)
    assert check(api.get("/nodepools"))["total"] == check(api.get("/clusters"))["total"] == 0


def test_flat_routes_of_a_missing_node_pool_are_not_found(api: Api) -> None:
    for id_ in (NO_ID, "x"):
        url = f"/nodepools/{id_}"
        for answer in (
            *(api.get(url + path) for path in ("", "/statuses", "/adapter-statuses")),
            api.patch(url, json={"labels": {}}),
            api.delete(url),
            api.put(url + "/statuses", json=REPORT_BODY),
            api.post(url + "/statuses", json=REPORT_BODY),
            api.post(url + "/force-delete", json={"reason": "x"}),
        ):
            assert problem(answer, 404)["code"] == "HYPERFLEET-NTF-001"


def test_adapter_statuses_is_an_alias_for_reading_statuses(api: Api) -> None:
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    for resource in (cluster, node_pool):
        for adapter in ("a", "b", "c"):
            api.report(resource, adapter)
        url = statuses(resource).removesuffix("/statuses")
        for query in ("", "?size=1&orderBy=adapter", "?search=adapter='b'", "?fields=adapter"):
            alias = check(api.get(f"{url}/adapter-statuses{query}"))
            other = check(api.get(f"{url}/statuses{query}"))
            alias.pop("next", None)
            other.pop("next", None)
            assert alias == other
        problem(api.put(f"{url}/adapter-statuses", json=REPORT_BODY), 405)
    flat = check(api.get(f"/nodepools/{node_pool['id']}/adapter-statuses"))
    assert flat["total"] == 3


@pytest.mark.parametrize(
    "media_type",
    [
        *("text/plain", "text/plain; charset=utf-8", "application/x-www-form-urlencoded", None),
        *("text/plain; charset=ISO-8859-1", "text/plain;charset=ISO-8859-1"),
    ],
)
def test_a_json_body_is_accepted_as_text_as_a_form_and_without_a_type(
    api: Api, media_type: str | None
) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    made = api.post("/clusters", data=b'{"name": "c1", "spec": {"a": 1}}', headers=headers)
    cluster = check(made, 201)
    assert made.request.headers.get("Content-Type") == media_type
    patched = api.patch(f"/clusters/{cluster['id']}", data=b'{"spec": {"b": 2}}', headers=headers)
    assert check(patched)["spec"] == {"b": 2}
    report = json.dumps({**REPORT_BODY, "observed_generation": 2}).encode()
    check(api.put(statuses(cluster), data=report, headers=headers), 201)
    # If it is JSON, its faults are named.
    problem(api.post("/clusters", data=b'{"name": "c2"}', headers=headers), 400, "spec")
    code = 415 if media_type else 400
    problem(api.post("/clusters", data=b"name=c2&spec=x", headers=headers), code)
    assert check(api.get("/clusters"))["total"] == 1


@pytest.mark.parametrize("blank", ["", " "])
def test_utf8_and_ascii_are_accepted_as_charsets_in_any_spelling_and_others_refused(
    api: Api, blank: str
) -> None:
    cluster = api.cluster()
    url = f"/clusters/{cluster['id']}"
    for charset in ("charset=utf-8", 'charset="utf-8"', "Charset=UTF-8", "x=y;charset=us-ascii"):
        headers = {"Content-Type": f"application/json;{blank}{charset}"}
        check(api.put(statuses(cluster), data=json.dumps(REPORT_BODY), headers=headers), 201)
        merge = {"Content-Type": f"application/merge-patch+json;{blank}{charset}"}
        assert check(api.patch(url, data="{}", headers=merge))["generation"] == 1
    for charset in ("charset=iso-8859-1", "charset=utf-16", "x=y;charset='utf-8'"):
        kind = f"application/json;{blank}{charset}"
        for refused in (
            api.put(statuses(cluster), data=json.dumps(REPORT_BODY), headers={"Content-Type": kind}),
            api.post("/clusters", data='{"name": "c2", "spec": {}}', headers={"Content-Type": kind}),
        ):
            assert kind in problem(refused, 415)["detail"]


def test_415_names_what_was_sent_and_every_type_that_the_operation_accepts(api: Api) -> None:
    cluster = api.cluster()
    url = f"/clusters/{cluster['id']}"
    for kind in ("text/csv", "application/x-yaml", "application/x-www-form-urlencoded"):
        for answer, taken in (
            (api.post("/clusters", data=b"a,b", headers={"Content-Type": kind}), 1),
            (api.put(url + "/statuses", data=b"a,b", headers={"Content-Type": kind}), 1),
            (api.patch(url, data=b"a,b", headers={"Content-Type": kind}), 2),
        ):
            detail = problem(answer, 415)["detail"]
            assert kind in detail
            assert "application/json" in detail
            assert ("application/merge-patch+json" in detail) == (taken == 2)


def test_an_empty_content_type_counts_as_none(api: Api) -> None:
    sent = api.post("/clusters", data='{"name": "a", "spec": {}}', headers={"Content-Type": ""})
    assert check(sent, 201)["name"] == "a"


@pytest.mark.slow
def test_a_patch_logs_no_warning(database: str) -> None:
    with Serving("--no-auth", "--log-level=debug", f"--database-url={database}") as server:
        url = f"{server.url}/api/hyperfleet/v1/clusters"
        made = requests.post(url, json={"name": "c1", "spec": {}}, timeout=30)
        for headers in ({"Content-Type": "application/json"}, MERGE):
            patched = requests.patch(
                f"{url}/{made.json()['id']}", data='{"spec": {"a": 1}}', headers=headers, timeout=30
            )
            assert patched.status_code == 200
        server.stop()
        assert "PATCH" in server.output
        assert logging.getLevelName(logging.WARNING) not in server.output
