"""Generated requests get no 5xx, and no response that the contract does not describe.

They are the same each time: the examples are derived from the code of the tests alone.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests
import schemathesis
from conftest import MORE, Api, Service, migrated
from helpers_contract import LEAK, check, operation_of, problem
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pytest_postgresql.executors import NoopExecutor
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.slow

# Tokens, which the tested service does not require, and NUL have tests of their own.
SCHEMA = schemathesis.openapi.from_path(Path(__file__).parents[2] / "openapi" / "openapi.yaml")
SCHEMA.config.generation.update(with_security_parameters=False, allow_x00=False)
FUZZED = {
    operation.definition.raw["operationId"]: operation
    for operation in (result.ok() for result in SCHEMA.get_all_operations())
}
CONFORMANCE = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
every_operation = pytest.mark.parametrize("name", FUZZED)


def bounded(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples * MORE,
        derandomize=MORE == 1,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


class World:
    """A running service, and resources for the fuzzed requests to hit."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.numbers = itertools.count()
        self.cluster: dict[str, Any] = {}
        self.node_pool: dict[str, Any] = {}

    def resources(self, fresh: bool) -> dict[str, str]:
        """Returns values for path parameters: a cluster, a node pool and an error that exist."""
        if fresh or not self.cluster:
            self.cluster = self.api.cluster(f"fuzzed-{next(self.numbers)}")
            self.node_pool = self.api.node_pool(self.cluster)
        known = {"cluster_id": self.cluster["id"], "nodepool_id": self.node_pool["id"]}
        known["resource_id"] = self.cluster["id"]
        return {**known, "error_id": "HYPERFLEET-NTF-001", "generation": "1"}

    def send(self, case: Case, hit: bool) -> requests.Response:
        """Sends a case, to resources that exist if ``hit``, and validates the response."""
        removes = case.method == "DELETE" or case.path.endswith("force-delete")
        if hit:
            known = self.resources(fresh=removes)
            case.path_parameters = {
                name: known.get(name, value) for name, value in (case.path_parameters or {}).items()
            }
        # Addresses that are too long have tests of their own.
        path = case.formatted_path
        assume(len(f"{path}{case.query}") < 5_000)
        # A response may echo the request, including text that looks like a leak.
        assume(not LEAK.search(unquote(f"{path} {case.query} {case.body}")))
        query = case.query or {}
        if query.get("wait") in range(2, 61):
            # No change comes while it waits.
            query["wait"] = 1
        response = self.api.request(**case.as_transport_kwargs(base_url=self.api.url))
        # The response then lacks members that the schema requires.
        partial = "fields" in query or query.get("total") == "none"
        checks = [one for one in CONFORMANCE if not (partial and one is response_schema_conformance)]
        case.validate_response(response, checks=checks)
        return response


@pytest.fixture(scope="module")
def world(postgres: NoopExecutor) -> Iterator[World]:
    """One service and one database for all tests: each finds what the ones before left behind."""
    with migrated(postgres, "fuzz") as conninfo:
        running = Service(conninfo)
        yield World(Api(running.url))
        running.stop()


@every_operation
def test_requests_that_follow_the_contract_get_the_responses_that_it_describes(
    world: World, name: str
) -> None:
    seen: set[int] = set()
    # The operation before may have removed the cluster.
    world.cluster = {}

    @bounded(12)
    @given(case=FUZZED[name].as_strategy(GenerationMode.POSITIVE), hit=st.integers(0, 3))
    def follow(case: Case, hit: int) -> None:
        if hit == 3 and case.method == "GET":
            # Generated searches and links are mostly invalid.
            case.query = {}
        response = world.send(case, hit > 0)
        seen.add(response.status_code)
        assert response.status_code not in (405, 413, 415)
        verify(response)

    follow()
    # Generated patches mostly change immutable members, nothing here is stuck in its deletion, and
    # generated kinds and generations do not exist.
    assert min(seen) < 400 or name.startswith(("patch", "forceDelete", "postResource", "rollback")), seen


@every_operation
def test_requests_that_break_the_contract_are_refused(world: World, name: str) -> None:
    if not FUZZED[name].query and not FUZZED[name].body:
        pytest.skip("any string is a path")

    @bounded(12)
    @given(case=FUZZED[name].as_strategy(GenerationMode.NEGATIVE), hit=st.integers(0, 3))
    def break_(case: Case, hit: int) -> None:
        response = world.send(case, hit > 0)
        # Requests that are too large are refused unread, with statuses that the check does not know.
        if response.status_code not in (413, 431):
            case.validate_response(response, checks=[negative_data_rejection])
        verify(response)

    break_()


def verify(response: requests.Response) -> None:
    """Checks the response more strictly: it has no member that the contract does not list."""
    if operation_of(response) is None:
        assert response.status_code < 500
    elif response.status_code < 400:
        check(response, response.status_code)
    else:
        problem(response, response.status_code)
