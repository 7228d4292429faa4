"""Traces are sent to an OTLP receiver over HTTP."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest
import requests
from conftest import Api
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from process import Serving, run

from hyperfleet.observe import tracing

pytestmark = pytest.mark.slow


class Receiver(ThreadingHTTPServer):
    """An OTLP receiver that keeps the spans it receives."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, str], Span]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    of = {one.key: one.value.string_value for one in group.resource.attributes}
                    for scope in group.scope_spans:
                        receiver.spans += [(of, one) for one in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def trace(self, trace_id: str, count: int) -> dict[str, Span]:
        """Returns the spans of a trace by name; waits until there are at least this many."""
        deadline = time.monotonic() + 10
        while True:
            found = {one.name: one for _, one in list(self.spans) if one.trace_id.hex() == trace_id}
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.05)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield receiver
        receiver.shutdown()


def environment(receiver: Receiver) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_and_its_statements_continue_the_clients_trace(
    database: str, receiver: Receiver, workers: int
) -> None:
    arguments = ["--no-auth", "--database-url", database, f"--workers={workers}"]
    with Serving(*arguments, env=environment(receiver)) as server:
        api = Api(server.url)
        cluster = api.cluster()
        trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
        api.headers["traceparent"] = f"00-{trace}-{parent}-01"
        answer = api.report(cluster)
        del api.headers["traceparent"]
        assert answer.status_code == 201
        assert answer.headers["traceparent"].split("-")[1] == trace
        found = receiver.trace(trace, 3)
        request = found["PUT /api/hyperfleet/v1/clusters/-/statuses"]
        assert request.parent_span_id.hex() == parent
        assert request.span_id.hex() == answer.headers["traceparent"].split("-")[2]
        assert request.kind == Span.SPAN_KIND_SERVER
        for name in ("clusters_state", "clusters_report"):
            assert found[name].parent_span_id == request.span_id
            assert request.start_time_unix_nano <= found[name].start_time_unix_nano
            assert found[name].start_time_unix_nano < found[name].end_time_unix_nano
            assert found[name].end_time_unix_nano <= request.end_time_unix_nano
        known = {one.key: one.value for one in request.attributes}
        assert known["http.route"].string_value == "/api/hyperfleet/v1/clusters/-/statuses"
        assert known["http.response.status_code"].int_value == 201
        assert known["http.request.method"].string_value == "PUT"
        assert known["url.path"].string_value == f"/api/hyperfleet/v1/clusters/{cluster['id']}/statuses"
        assert known["url.scheme"].string_value == "http"
        assert known["hyperfleet.request_id"].string_value == answer.headers["X-Request-ID"]
        of = receiver.spans[0][0]
        assert of["service.name"] == "hyperfleet-api"
        assert of["deployment.environment"] == "test"
        # An error names its trace, which is a new one if the client sent none.
        refused = api.get("/nothing")
        own = refused.headers["traceparent"].split("-")[1]
        assert refused.json()["trace_id"] == own != trace
        assert f"{own}" in {one.trace_id.hex() for one in receiver.trace(own, 1).values()}


def test_a_statement_shared_by_requests_is_in_the_trace_of_each(
    database: str, receiver: Receiver
) -> None:
    with (
        Serving("--no-auth", "--database-url", database, env=environment(receiver)) as server,
        ThreadPoolExecutor(16) as threads,
    ):

        def create(number: int) -> str:
            trace = f"{number + 1:032x}"
            api = Api(server.url)
            api.headers["traceparent"] = f"00-{trace}-00f067aa0ba902b7-01"
            api.cluster(f"c{number}")
            return trace

        for trace in threads.map(create, range(160)):
            found = receiver.trace(trace, 2)
            request = found["POST /api/hyperfleet/v1/clusters"]
            assert found["clusters_create"].parent_span_id == request.span_id
            assert request.start_time_unix_nano <= found["clusters_create"].end_time_unix_nano
            assert found["clusters_create"].end_time_unix_nano <= request.end_time_unix_nano


def test_unknown_methods_and_paths_are_named_by_the_semantic_conventions(
    database: str, receiver: Receiver
) -> None:
    traces = [f"{number:032x}" for number in range(1, 4)]
    with Serving("--no-auth", "--database-url", database, env=environment(receiver)) as server:
        for trace, method, path in zip(
            traces,
            ("PROPFIND", "GET", "GET"),
            ("/clusters", "/token=hunter2&" + "x" * 5000, "/clusters"),
            strict=True,
        ):
            parent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
            requests.request(method, f"{server.url}/api/hyperfleet/v1{path}", headers=parent, timeout=30)
        spans = {trace: receiver.trace(trace, 1) for trace in traces}
    other, lost, listed = (
        next(one for one in spans[trace].values() if one.kind == Span.SPAN_KIND_SERVER)
        for trace in traces
    )
    assert (other.name, lost.name, listed.name) == ("HTTP", "GET", "GET /api/hyperfleet/v1/clusters")
    known = [{one.key: one.value for one in span.attributes} for span in (other, lost)]
    assert known[0]["http.request.method"].string_value == "_OTHER"
    assert not any("http.route" in one for one in known)
    assert len(known[1]["url.path"].string_value) == 500
    assert "hunter2" not in known[1]["url.path"].string_value


@pytest.mark.parametrize(
    "wrong", [{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"}]
)
def test_invalid_tracing_settings_prevent_startup(database: str, wrong: dict[str, str]) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **wrong}
    for command in (["serve", "--workers=2", "--port=0"], ["config", "--check"]):
        refused = run(*command, "--no-auth", f"--database-url={database}", env=env)
        assert refused.returncode == 1
        assert "Tracing is enabled, but " in refused.stdout
        assert "serves" not in refused.stdout


def test_a_silent_collector_does_not_delay_shutdown(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with Serving("--no-auth", "--workers=2", "--database-url", database, env=env) as server:
            for _ in range(8):
                Api(server.url).get("/clusters").raise_for_status()
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 5


def test_a_failed_statement_and_its_request_are_marked_as_errors(
    database: str, receiver: Receiver, sql: psycopg.Connection
) -> None:
    arguments = ["--no-auth", "--database-url", database, "--statement-timeout=0.3"]
    with Serving(*arguments, env=environment(receiver)) as server:
        api = Api(server.url)
        with sql.transaction():
            sql.execute("LOCK TABLE clusters")
            answer = api.get("/clusters/01950000-0000-7000-8000-000000000000")
        assert answer.status_code == 503
        found = receiver.trace(answer.headers["traceparent"].split("-")[1], 2)
        assert found["clusters_read"].status.code == Status.STATUS_CODE_ERROR
        assert found["clusters_read"].status.message == "LockNotAvailable"
        known = {one.key: one.value.string_value for one in found["clusters_read"].attributes}
        assert known["error.type"] == "LockNotAvailable"
        assert known["db.response.status_code"] == "55P03"
        request = found["GET /api/hyperfleet/v1/clusters/-"]
        assert request.status.code == Status.STATUS_CODE_ERROR
        assert {one.key: one.value.string_value for one in request.attributes}["error.type"] == "503"


def test_remaining_spans_are_sent_at_shutdown(database: str, receiver: Receiver) -> None:
    env = {**environment(receiver), "OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_SERVICE_NAME": "fleet"}
    with Serving("--no-auth", "--workers=2", "--database-url", database, env=env) as server:
        for _ in range(8):
            Api(server.url).get("/clusters").raise_for_status()
    assert {of["service.name"] for of, _ in receiver.spans} == {"fleet"}
    names = [one.name for _, one in receiver.spans]
    assert names.count("GET /api/hyperfleet/v1/clusters") == 8


def test_tracing_is_on_if_an_endpoint_is_set_or_if_enabled_explicitly() -> None:
    place = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}
    assert not tracing.wanted("", {})
    assert tracing.wanted("", place)
    assert tracing.wanted("true", {})
    assert not tracing.wanted("false", place)
    assert not tracing.wanted("true", {"OTEL_SDK_DISABLED": "true"})
    assert not tracing.wanted("", {"OTEL_TRACES_EXPORTER": "none"})


def test_opentelemetry_is_not_imported_if_tracing_is_off() -> None:
    code = (
        "import sys, hyperfleet.app, hyperfleet.cli, hyperfleet.observe.gauges;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
