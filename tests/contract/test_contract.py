"""The contract is complete and consistent, and the service answers every operation as described."""

import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
from conftest import Api
from helpers_contract import (
    BASE,
    DOCUMENT,
    JSON,
    OPERATIONS,
    PROBLEM,
    TIME,
    Operation,
    check,
    deref,
    faults,
    problem,
    times,
)

from hyperfleet import __version__
from hyperfleet.contract import document

POOL = f"{BASE}/clusters/{{cluster_id}}/nodepools/{{nodepool_id}}"
# The names of operations that generated clients use.
NAMES = {
    "getMetadata": "GET /api/hyperfleet",
    "getVersionMetadata": f"GET {BASE}",
    "getCompatibility": f"GET {BASE}/compatibility",
    "getClusters": f"GET {BASE}/clusters",
    "postCluster": f"POST {BASE}/clusters",
    "getClusterById": f"GET {BASE}/clusters/{{cluster_id}}",
    "getClusterStatuses": f"GET {BASE}/clusters/{{cluster_id}}/statuses",
    "postClusterStatuses": f"POST {BASE}/clusters/{{cluster_id}}/statuses",
    "putClusterStatuses": f"PUT {BASE}/clusters/{{cluster_id}}/statuses",
    "getNodePools": f"GET {BASE}/nodepools",
    "getNodePoolsByClusterId": f"GET {BASE}/clusters/{{cluster_id}}/nodepools",
    "createNodePool": f"POST {BASE}/clusters/{{cluster_id}}/nodepools",
    "getNodePoolById": f"GET {BASE}/clusters/{{cluster_id}}/nodepools/{{nodepool_id}}",
    "getNodePoolsStatuses": f"GET {BASE}/clusters/{{cluster_id}}/nodepools/{{nodepool_id}}/statuses",
    "postNodePoolStatuses": f"POST {BASE}/clusters/{{cluster_id}}/nodepools/{{nodepool_id}}/statuses",
    "putNodePoolStatuses": f"PUT {BASE}/clusters/{{cluster_id}}/nodepools/{{nodepool_id}}/statuses",
    "patchClusterById": f"PATCH {BASE}/clusters/{{cluster_id}}",
    "patchNodePoolById": f"PATCH {BASE}/clusters/{{cluster_id}}/nodepools/{{nodepool_id}}",
    "deleteClusterById": f"DELETE {BASE}/clusters/{{cluster_id}}",
    "deleteNodePoolById": f"DELETE {BASE}/clusters/{{cluster_id}}/nodepools/{{nodepool_id}}",
    "forceDeleteCluster": f"POST {BASE}/clusters/{{cluster_id}}/force-delete",
    "forceDeleteNodePool": f"POST {BASE}/clusters/{{cluster_id}}/nodepools/{{nodepool_id}}/force-delete",
    # The newest ones: node pools without their clusters, and an alias for statuses.
    "getNodePool": f"GET {BASE}/nodepools/{{nodepool_id}}",
    "patchNodePool": f"PATCH {BASE}/nodepools/{{nodepool_id}}",
    "deleteNodePool": f"DELETE {BASE}/nodepools/{{nodepool_id}}",
    "forceDeleteNodePoolById": f"POST {BASE}/nodepools/{{nodepool_id}}/force-delete",
    "getStatusesOfNodePool": f"GET {BASE}/nodepools/{{nodepool_id}}/statuses",
    "postStatusesOfNodePool": f"POST {BASE}/nodepools/{{nodepool_id}}/statuses",
    "putStatusesOfNodePool": f"PUT {BASE}/nodepools/{{nodepool_id}}/statuses",
    "getAdapterStatusesOfNodePool": f"GET {BASE}/nodepools/{{nodepool_id}}/adapter-statuses",
    "getClusterAdapterStatuses": f"GET {BASE}/clusters/{{cluster_id}}/adapter-statuses",
    "getNodePoolAdapterStatuses": (
        f"GET {BASE}/clusters/{{cluster_id}}/nodepools/{{nodepool_id}}/adapter-statuses"
    ),
    # The newest ones: resources of all kinds.
    "getResources": f"GET {BASE}/resources",
    "postResource": f"POST {BASE}/resources",
    "getResourceById": f"GET {BASE}/resources/{{resource_id}}",
    "patchResourceById": f"PATCH {BASE}/resources/{{resource_id}}",
    "deleteResourceById": f"DELETE {BASE}/resources/{{resource_id}}",
    "forceDeleteResource": f"POST {BASE}/resources/{{resource_id}}/force-delete",
    "getResourceStatuses": f"GET {BASE}/resources/{{resource_id}}/statuses",
    "putResourceStatuses": f"PUT {BASE}/resources/{{resource_id}}/statuses",
    "getChanges": f"GET {BASE}/changes",
    # Past generations, transitions, and the audit log.
    "getClusterHistory": f"GET {BASE}/clusters/{{cluster_id}}/history",
    "getClusterGeneration": f"GET {BASE}/clusters/{{cluster_id}}/history/{{generation}}",
    "getClusterGenerationDiff": f"GET {BASE}/clusters/{{cluster_id}}/history/{{generation}}/diff",
    "rollbackCluster": f"POST {BASE}/clusters/{{cluster_id}}/rollback",
    "getClusterTransitions": f"GET {BASE}/clusters/{{cluster_id}}/transitions",
    "getNodePoolHistory": f"GET {POOL}/history",
    "getNodePoolGeneration": f"GET {POOL}/history/{{generation}}",
    "getNodePoolGenerationDiff": f"GET {POOL}/history/{{generation}}/diff",
    "rollbackNodePool": f"POST {POOL}/rollback",
    "getNodePoolTransitions": f"GET {POOL}/transitions",
    "getHistoryOfNodePool": f"GET {BASE}/nodepools/{{nodepool_id}}/history",
    "getGenerationOfNodePool": f"GET {BASE}/nodepools/{{nodepool_id}}/history/{{generation}}",
    "getGenerationDiffOfNodePool": f"GET {BASE}/nodepools/{{nodepool_id}}/history/{{generation}}/diff",
    "rollbackNodePoolById": f"POST {BASE}/nodepools/{{nodepool_id}}/rollback",
    "getTransitionsOfNodePool": f"GET {BASE}/nodepools/{{nodepool_id}}/transitions",
    "getResourceHistory": f"GET {BASE}/resources/{{resource_id}}/history",
    "getResourceGeneration": f"GET {BASE}/resources/{{resource_id}}/history/{{generation}}",
    "getResourceGenerationDiff": f"GET {BASE}/resources/{{resource_id}}/history/{{generation}}/diff",
    "rollbackResource": f"POST {BASE}/resources/{{resource_id}}/rollback",
    "getResourceTransitions": f"GET {BASE}/resources/{{resource_id}}/transitions",
    "getAudit": f"GET {BASE}/audit",
    "getErrors": f"GET {BASE}/errors",
    "getErrorById": f"GET {BASE}/errors/{{error_id}}",
}

every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


def test_operations_have_the_names_that_clients_use() -> None:
    named = {name: f"{one.method} {one.path}" for name, one in OPERATIONS.items()}
    assert named == NAMES


def contents(operation: Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the bodies of an operation's requests and responses, each with its place."""
    if operation.body:
        for kind, content in operation.body["content"].items():
            yield f"request {kind}", content
    for status, response in operation.responses.items():
        for kind, content in response.get("content", {}).items():
            yield f"{status} {kind}", content


def examples(content: dict[str, Any]) -> list[Any]:
    given = [deref(one)["value"] for one in content.get("examples", {}).values()]
    return given + ([content["example"]] if "example" in content else [])


@every_operation
def test_an_operation_is_described_completely(operation: Operation) -> None:
    assert operation.definition["summary"]
    assert operation.definition["tags"]
    assert set(operation.definition["tags"]) <= {tag["name"] for tag in DOCUMENT["tags"]}
    assert all(parameter["description"] for parameter in operation.parameters)

    errors = {500}
    errors |= {400, 413, 415} if operation.body else set()
    errors |= {400} if any(one["in"] == "query" for one in operation.parameters) else set()
    errors |= {404} if "{" in operation.path else set()
    # These read nothing from the database.
    errors |= (
        set()
        if re.search("/(errors|compatibility|v1|hyperfleet)(/{error_id})?$", operation.path)
        else {503}
    )
    errors |= {409} if operation.id in ("postCluster", "createNodePool") else set()
    assert errors <= operation.responses.keys()
    assert min(operation.responses) < 300
    for status, response in operation.responses.items():
        assert response["description"]
        if status >= 400:
            shared = status in (408, 431, 500)
            assert set(response["content"]) == ({PROBLEM} if shared else {PROBLEM, JSON})
            assert all(
                content["schema"] == {"$ref": "#/components/schemas/ProblemDetails"}
                for content in response["content"].values()
            )
        elif status not in (204, 304):
            streams = {"text/event-stream"} if operation.id == "getChanges" else set()
            assert set(response["content"]) == {JSON} | streams
    if 503 in operation.responses:
        assert "Retry-After" in operation.responses[503]["headers"]


@every_operation
def test_every_body_has_an_example_and_all_examples_are_valid(
    operation: Operation,
) -> None:
    found = dict(contents(operation))
    assert found
    for where, content in found.items():
        assert examples(content), f"{where} has no example"
        for example in examples(content):
            assert faults(example, content["schema"]) == [], where
    for parameter in operation.parameters:
        for example in examples(parameter):
            assert faults(example, parameter["schema"]) == [], parameter["name"]


def test_repeated_parameters_and_objects_are_components() -> None:
    inline = Counter(
        repr(sorted(node.items(), key=repr))
        for node in nodes(DOCUMENT["paths"])
        if ("schema" in node and "in" in node) or ("required" in node and "properties" in node)
    )
    assert [node for node, count in inline.items() if count > 1] == []


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes(value)


# One successful call of every operation, given a cluster and a node pool that exist.
Call = Callable[[Api, dict[str, Any], dict[str, Any]], requests.Response]
REPORT = {
    "adapter": "dns-adapter",
    "observed_generation": 1,
    "observed_time": "2025-11-17T15:04:05Z",
    "conditions": [{"type": "Ready", "status": "True", "reason": "Done", "message": "All done"}],
    "data": {"zone": "example.org"},
    "metadata": {"job": 7},
}


def past(name: str, way: Callable[[Api, dict[str, Any]], str]) -> dict[str, tuple[int, Call]]:
    """Returns the calls of the operations on a resource's past, by name; ``way`` returns its path."""
    rollback = "rollbackNodePoolById" if name == "OfNodePool" else f"rollback{name}"
    get = "get{what}" + name if name == "OfNodePool" else f"get{name}" + "{what}"
    reads = {
        get.format(what="History"): "/history",
        get.format(what="Generation"): "/history/1",
        get.format(what="GenerationDiff"): "/history/1/diff",
        get.format(what="Transitions"): "/transitions",
    }

    def read(to: str) -> Call:
        return lambda api, c, _n: api.get(way(api, c) + to)

    calls: dict[str, tuple[int, Call]] = {one: (200, read(to)) for one, to in reads.items()}
    calls[rollback] = (
        200,
        lambda api, c, _n: api.post(way(api, c) + "/rollback", json={"generation": 1}),
    )
    return calls


SUCCESSES: dict[str, tuple[int, Call]] = {
    "getMetadata": (200, lambda api, _c, _n: api.get("//api/hyperfleet")),
    "getVersionMetadata": (200, lambda api, _c, _n: api.get(api.base)),
    "getCompatibility": (200, lambda api, _c, _n: api.get("/compatibility")),
    "getClusters": (200, lambda api, _c, _n: api.get("/clusters")),
    "postCluster": (
        201,
        lambda api, _c, _n: api.post(
            "/clusters",
            json={"kind": "Cluster", "name": "c2", "spec": {"nodes": 5}, "labels": {"a": "b"}},
        ),
    ),
    "getClusterById": (200, lambda api, c, _n: api.get("/" + path(c))),
    "getClusterStatuses": (200, lambda api, c, _n: api.get("/" + path(c) + "/statuses")),
    "postClusterStatuses": (201, lambda api, c, _n: api.post("/" + path(c) + "/statuses", json=REPORT)),
    "putClusterStatuses": (201, lambda api, c, _n: api.put("/" + path(c) + "/statuses", json=REPORT)),
    "getNodePools": (200, lambda api, _c, _n: api.get("/nodepools")),
    "getNodePoolsByClusterId": (200, lambda api, c, _n: api.get("/" + path(c) + "/nodepools")),
    "createNodePool": (
        201,
        lambda api, c, _n: api.post(
            "/" + path(c) + "/nodepools",
            json={"kind": "NodePool", "name": "n2", "spec": {"replicas": 1}},
        ),
    ),
    "getNodePoolById": (200, lambda api, _c, n: api.get("/" + path(n))),
    "getNodePoolsStatuses": (200, lambda api, _c, n: api.get("/" + path(n) + "/statuses")),
    "postNodePoolStatuses": (201, lambda api, _c, n: api.post("/" + path(n) + "/statuses", json=REPORT)),
    "putNodePoolStatuses": (201, lambda api, _c, n: api.put("/" + path(n) + "/statuses", json=REPORT)),
    "getNodePool": (200, lambda api, _c, n: api.get(f"/nodepools/{n['id']}")),
    "patchNodePool": (
        200,
        lambda api, _c, n: api.patch(f"/nodepools/{n['id']}", json={"labels": {"c": "d"}}),
    ),
    "getStatusesOfNodePool": (200, lambda api, _c, n: api.get(f"/nodepools/{n['id']}/statuses")),
    "postStatusesOfNodePool": (
        201,
        lambda api, _c, n: api.post(f"/nodepools/{n['id']}/statuses", json=REPORT),
    ),
    "putStatusesOfNodePool": (
        201,
        lambda api, _c, n: api.put(f"/nodepools/{n['id']}/statuses", json=REPORT),
    ),
    "getAdapterStatusesOfNodePool": (
        200,
        lambda api, _c, n: api.get(f"/nodepools/{n['id']}/adapter-statuses"),
    ),
    "getClusterAdapterStatuses": (
        200,
        lambda api, c, _n: api.get("/" + path(c) + "/adapter-statuses"),
    ),
    "getNodePoolAdapterStatuses": (
        200,
        lambda api, _c, n: api.get("/" + path(n) + "/adapter-statuses"),
    ),
    "deleteNodePool": (202, lambda api, c, _n: api.delete(f"/nodepools/{reported(api, c)['id']}")),
    "forceDeleteNodePoolById": (204, lambda api, c, _n: forced_out(api, reported(api, c))),
    # The order matters: what an adapter has yet to finalize stays marked until it is force-deleted.
    "patchClusterById": (200, lambda api, c, _n: api.patch("/" + path(c), json={"spec": {"nodes": 6}})),
    "patchNodePoolById": (200, lambda api, _c, n: api.patch("/" + path(n), json={"labels": {"a": "b"}})),
    "deleteNodePoolById": (202, lambda api, _c, n: api.delete("/" + path(n))),
    "forceDeleteNodePool": (
        204,
        lambda api, _c, n: api.post("/" + path(n) + "/force-delete", json={"reason": "stuck"}),
    ),
    "deleteClusterById": (202, lambda api, c, _n: api.delete("/" + path(c))),
    "forceDeleteCluster": (
        204,
        lambda api, c, _n: api.post("/" + path(c) + "/force-delete", json={"reason": "stuck"}),
    ),
    "getResources": (200, lambda api, _c, _n: api.get("/resources")),
    "postResource": (
        201,
        lambda api, _c, _n: api.post("/resources", json={"kind": "Cluster", "name": "new", "spec": {}}),
    ),
    "getResourceById": (200, lambda api, _c, _n: api.get(f"/resources/{another(api)['id']}")),
    "patchResourceById": (
        200,
        lambda api, _c, _n: api.patch(f"/resources/{another(api)['id']}", json={"spec": {"a": 1}}),
    ),
    "getResourceStatuses": (
        200,
        lambda api, _c, _n: api.get(f"/resources/{another(api)['id']}/statuses"),
    ),
    "putResourceStatuses": (
        201,
        lambda api, _c, _n: api.put(f"/resources/{another(api)['id']}/statuses", json=REPORT),
    ),
    "deleteResourceById": (202, lambda api, _c, _n: api.delete(f"/resources/{another(api)['id']}")),
    "forceDeleteResource": (
        204,
        lambda api, _c, _n: api.post(
            f"/resources/{another(api, marked=True)['id']}/force-delete", json={"reason": "stuck"}
        ),
    ),
    "getChanges": (200, lambda api, _c, _n: api.get("/changes")),
    **past("Cluster", lambda api, _c: f"/clusters/{another(api)['id']}"),
    **past("NodePool", lambda api, _c: "/" + path(reported(api, another(api)))),
    **past("OfNodePool", lambda api, _c: f"/nodepools/{reported(api, another(api))['id']}"),
    **past("Resource", lambda api, _c: f"/resources/{another(api)['id']}"),
    "getAudit": (200, lambda api, _c, _n: api.get("/audit")),
    "getErrors": (200, lambda api, _c, _n: api.get("/errors")),
    "getErrorById": (200, lambda api, _c, _n: api.get("/errors/HYPERFLEET-NTF-001")),
}


def reported(api: Api, cluster: dict[str, Any]) -> dict[str, Any]:
    """Creates another node pool, which an adapter has to finalize."""
    node_pool = api.node_pool(cluster, f"np{uuid.uuid4().hex[:8]}")
    assert api.report(node_pool).status_code == 201
    return node_pool


def another(api: Api, *, marked: bool = False) -> dict[str, Any]:
    """Creates another cluster, which an adapter has to finalize."""
    cluster = api.cluster(f"c{uuid.uuid4().hex[:8]}")
    assert api.report(cluster).status_code == 201
    assert not marked or api.delete(f"/clusters/{cluster['id']}").status_code == 202
    return cluster


def forced_out(api: Api, node_pool: dict[str, Any]) -> requests.Response:
    assert api.delete(f"/nodepools/{node_pool['id']}").status_code == 202
    return api.post(f"/nodepools/{node_pool['id']}/force-delete", json={"reason": "stuck"})


def path(resource: dict[str, Any]) -> str:
    return str(resource["href"]).removeprefix(BASE + "/")


def test_every_operation_succeeds_as_the_contract_describes(api: Api) -> None:
    cluster = api.cluster()
    node_pool = api.node_pool(cluster)
    api.report(cluster)
    api.report(node_pool)
    assert SUCCESSES.keys() == OPERATIONS.keys()
    for name, (status, call) in SUCCESSES.items():
        response = call(api, cluster, node_pool)
        body = check(response, status)
        assert bool(body) == (status != 204), name
        assert all(TIME.fullmatch(time) for time in times(body)), name
        operation = OPERATIONS[name]
        if operation.method == "GET":
            head = api.head(response.url)
            assert check(head, status) is None
            assert head.headers["Content-Type"] == response.headers["Content-Type"]
            assert head.headers["Content-Length"] == response.headers["Content-Length"]


def test_metadata_names_the_version_and_its_collections(api: Api) -> None:
    versions = check(api.get("//api/hyperfleet"))
    assert versions["version"] == __version__
    built = datetime.fromisoformat(versions["build_time"])
    assert datetime(2025, 1, 1, tzinfo=UTC) < built <= datetime.now(UTC)
    assert versions["versions"] == [{"kind": "APIVersion", "id": "v1", "href": BASE}]
    version = check(api.get(f"/{BASE}"))
    assert {one["id"]: one["href"] for one in version["collections"]} == {
        "clusters": f"{BASE}/clusters",
        "nodepools": f"{BASE}/nodepools",
        "errors": f"{BASE}/errors",
    }
    for one in version["collections"]:
        assert check(api.get(f"/{one['href']}"))["kind"] == one["kind"]
    compatibility = check(api.get("/compatibility"))
    assert compatibility["api_version"] == "v1"
    assert compatibility["compatible"] is True
    assert {"clusters", "nodepools", "statuses"} <= set(compatibility["features"])
    # The names of the original.
    assert {"adapter_status", "status_aggregation"} <= set(compatibility["features"])


def test_the_catalogue_lists_errors_in_pages_and_serves_each_by_its_code(api: Api) -> None:
    catalogue = check(api.get("/errors?pageSize=1000"))
    assert catalogue["total"] == catalogue["size"] == len(catalogue["items"])
    by_code = {one["code"]: one for one in catalogue["items"]}
    assert len(by_code) == catalogue["total"]
    assert {one["status"] for one in by_code.values()} >= {400, 404, 405, 409, 413, 415, 500, 503}
    for code, one in by_code.items():
        assert one["id"] == code
        assert one["href"] == f"{BASE}/errors/{code}"
        assert check(api.get(f"/{one['href']}")) == one
    page = check(api.get("/errors?page=2&pageSize=2"))
    assert page["items"] == catalogue["items"][2:4]
    assert check(api.get("/errors?size=0"))["items"] == []
    assert check(api.get("/errors?page=99"))["total"] == catalogue["total"]
    problem(api.get("/errors?page=0"), 400, "page")
    for unknown in ("x", "HYPERFLEET-NTF-999", "hyperfleet-ntf-001x", "%00", "%ff"):
        problem(api.get(f"/errors/{unknown}"), 404)


NOTES = ("x-openapi-router-controller", "x-access-review", "x-spec-of", "x-kind")


def plain(node: Any) -> Any:
    """Returns the document without extensions, which only the service itself reads."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if not key.startswith("x-")}
    return [plain(item) for item in node] if isinstance(node, list) else node


def public(node: Any) -> Any:
    """Returns the document as it is served without authentication."""
    if isinstance(node, dict):
        return {key: public(value) for key, value in node.items() if key != "security"}
    return [public(item) for item in node] if isinstance(node, list) else node


def test_the_contract_is_served_with_its_references_in_less_than_135_kb(api: Api) -> None:
    served = api.get("//openapi")
    assert served.status_code == 200
    assert served.headers["Content-Type"] == JSON
    assert len(served.content) < 135_000
    assert served.text.count('"$ref"') > 100
    assert not any(note in served.text for note in NOTES)
    whole = served.json()
    assert plain(whole["paths"]) == plain(public(DOCUMENT["paths"]))
    assert whole["components"]["schemas"].keys() == DOCUMENT["components"]["schemas"].keys()
    assert api.get("/openapi").json() == whole
    assert "Id" not in whole["components"]["schemas"]


def test_the_served_contract_has_an_etag_and_clients_that_know_it_get_304(api: Api) -> None:
    first = api.get("//openapi")
    tag = first.headers["ETag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = api.get("//openapi", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag), known
    assert api.get("//openapi", headers={"If-None-Match": '"other"'}).content == first.content
    assert api.head("//openapi").headers["ETag"] == tag


def test_without_authentication_the_served_contract_requires_no_token(
    api: Api, service: Callable[..., Api]
) -> None:
    open_, closed = api.get("//openapi"), service(no_auth=False, any_caller=True).get("//openapi")
    assert '"security' not in open_.text
    assert closed.json()["security"] == [{"bearer": []}]
    assert list(closed.json()["components"]["securitySchemes"]) == ["bearer"]


def test_components_that_become_types_in_clients_have_unique_names() -> None:
    kinds = ("schemas", "responses", "requestBodies", "parameters")
    names = Counter(name.lower() for kind in kinds for name in DOCUMENT["components"][kind])
    assert [name for name, count in names.items() if count > 1] == []


def test_schemas_have_the_names_that_clients_use() -> None:
    wanted = {
        *("ProblemDetails", "ValidationError", "ObjectReference", "ClusterStatus", "NodePoolStatus"),
        *("ResourceCondition", "AdapterCondition", "ConditionRequest", "Cluster", "NodePool"),
    }
    schemas = DOCUMENT["components"]["schemas"]
    assert wanted <= schemas.keys()
    for kind in ("Cluster", "NodePool", "AdapterStatus"):
        items = schemas[f"{kind}List"]["properties"]["items"]["items"]
        assert items == {"$ref": f"#/components/schemas/{kind}"}
    for kind in ("Cluster", "NodePool"):
        assert schemas[kind]["properties"]["id"]["type"] == "string"
        assert "format" not in schemas[kind]["properties"]["id"]


@every_operation
def test_every_error_has_an_example_with_its_own_status(operation: Operation) -> None:
    for status, response in operation.responses.items():
        for content in response["content"].values() if status >= 400 else ():
            shown = {example["status"] for example in examples(content)}
            # The errors that any operation may return share one.
            assert shown == ({500} if status in (408, 431) else {status})


@every_operation
def test_no_parameter_has_an_example_that_swagger_ui_would_send(operation: Operation) -> None:
    for parameter in operation.parameters:
        assert "example" not in parameter
        assert "examples" not in parameter
        assert "example" not in parameter["schema"]


def test_swagger_ui_loads_all_its_files_from_the_service(api: Api) -> None:
    for page in ("//", "//openapi-ui", "//openapi-ui/", "/openapi.html"):
        response = api.get(page)
        assert response.status_code == 200, page
        assert response.headers["Content-Type"].startswith("text/html")
        assert not re.search(r"""(src|href)=["'](https?:)?//""", response.text)
        files = re.findall(r"""<(?:script|link)[^>]+(?:src|href)=["']([^"']+)["']""", response.text)
        assert any(name.endswith(".js") for name in files)
        for name in files:
            file = api.get(requests.compat.urljoin(response.url, name))
            assert file.status_code == 200, name


def test_parameters_are_validated_as_the_contract_declares_them(
    service: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = document.load()
    paths = changed["paths"]
    one = paths["/api/hyperfleet/v1/clusters/{cluster_id}"]
    in_path = {"name": "cluster_id", "in": "path", "required": True}
    one["get"]["parameters"] = [{**in_path, "schema": {"type": "string", "pattern": "^[0-9a-f-]{36}$"}}]
    one["parameters"] = []
    all_of = [{"$ref": "#/components/schemas/Generation"}]
    paths["/api/hyperfleet/v1/clusters"]["get"]["parameters"] += [
        {"name": "free", "in": "query", "schema": {"type": "integer"}},
        {"name": "least", "in": "query", "schema": {"type": "integer", "minimum": 3}},
        {"name": "within", "in": "query", "schema": {"allOf": all_of}},
        {"name": "X-Needed", "in": "header", "required": True, "schema": {"type": "string"}},
    ]
    monkeypatch.setattr(document, "_read", lambda: changed)
    api = service()
    cluster = api.cluster()
    assert api.get(f"/clusters/{cluster['id']}").status_code == 200
    problem(api.get("/clusters/x"), 400, "cluster_id")
    needed = {"X-Needed": "yes"}
    assert api.get("/clusters?free=-7&least=3&within=1", headers=needed).status_code == 200
    problem(api.get("/clusters"), 400, "X-Needed")
    for query, says in (
        ("free=x", "must be an integer"),
        ("least=2", "must be an integer from 3"),
        ("within=0", "must be an integer from 1 to 2147483647"),
        ("within=x", "must be an integer from 1 to 2147483647"),
    ):
        name = query.partition("=")[0]
        (error,) = problem(api.get(f"/clusters?{query}", headers=needed), 400, name)["errors"]
        assert error["message"] == says
