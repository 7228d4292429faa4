"""Traces of requests and their statements, by OpenTelemetry and its semantic conventions.

OpenTelemetry is imported only if tracing is enabled.
"""

import importlib
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import psycopg

from hyperfleet import __version__
from hyperfleet.auth import identity
from hyperfleet.errors import StartError
from hyperfleet.observe import log

EXTRA = "hyperfleet-api[tracing]"
# Seconds within which the last spans must be sent, since more remains to be done when stopping.
FAREWELL = 2.0

# Setting any of these variables turns tracing on.
PLACES = (
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    "OTEL_TRACES_EXPORTER",
)


def wanted(setting: str, environment: Mapping[str, str]) -> bool:
    """Returns whether tracing is enabled.

    :param setting: ``true`` or ``false``; if empty, OpenTelemetry's own variables decide
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if setting:
        return setting == "true"
    return any(environment.get(name) for name in PLACES) and (
        environment.get("OTEL_TRACES_EXPORTER") != "none"
    )


class Tracing:
    """Makes traces, and sends them where OpenTelemetry's variables say.

    Create it in each process that serves requests, since a thread does the sending. Raises StartError if
    packages are missing.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import context, trace  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
            from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
                TraceContextTextMapPropagator,
            )

            exporter = _exporter()
        except ImportError as error:
            package = "opentelemetry-exporter-otlp-proto-grpc" if _protocol() == "grpc" else EXTRA
            raise StartError(
                f"Tracing is enabled, but {error.name} is not installed: "
                f"run pip install '{package}', or set --tracing-enabled=false."
            ) from None
        own: dict[str, Any] = {"service.version": __version__}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            own["service.name"] = "hyperfleet-api"
        self.provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self.provider.get_tracer("hyperfleet", __version__)
        self.context, self.trace = context, trace
        self.propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, path: str, scheme: str, headers: Mapping[str, str]) -> Any:
        """Begins the span of a request, within the trace that its ``traceparent`` names, if any.

        :param method: empty for a method unknown to HTTP
        :param path: with secrets masked
        """
        parent = self.propagator.extract(headers)
        # Set at the start, so that samplers see them.
        known = {"http.request.method": method or "_OTHER", "url.path": path, "url.scheme": scheme}
        kind = self.trace.SpanKind.SERVER
        span = self.tracer.start_span(method or "HTTP", context=parent, kind=kind, attributes=known)
        self.context.attach(self.trace.set_span_in_context(span))
        trace_id, span_id, _ = _ids(span)
        log.span.set((trace_id, span_id))
        log.trace_id.set(trace_id)
        return span

    def end(self, span: Any, method: str, route: str, status: int) -> None:
        """Ends the span of a request and names it by its route.

        :param route: empty if there is none
        :param status: 0 if there was no response
        """
        if route:
            span.update_name(f"{method or 'HTTP'} {route}")
            span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        span.set_attribute("hyperfleet.request_id", identity.request_id.get())
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(self.trace.StatusCode.ERROR)
        span.end()

    def statement(self, name: str, seconds: float, error: psycopg.Error | None) -> None:
        """Adds the span of a statement that has ended, within the current request."""
        end = time.time_ns()
        span = self.tracer.start_span(
            name, kind=self.trace.SpanKind.CLIENT, start_time=end - round(seconds * 1e9)
        )
        span.set_attributes({"db.system.name": "postgresql", "db.operation.name": name})
        if error is not None:
            sort = type(error).__name__
            span.set_attribute("error.type", sort)
            if error.sqlstate:
                span.set_attribute("db.response.status_code", error.sqlstate)
            span.set_status(self.trace.StatusCode.ERROR, sort)
        span.end(end)

    def close(self) -> None:
        """Sends the remaining spans, unless that takes too long."""
        sending = threading.Thread(target=self.provider.shutdown, daemon=True)
        sending.start()
        sending.join(FAREWELL)


def check() -> None:
    """Raises StartError if traces cannot be made as OpenTelemetry's variables say."""
    try:
        Tracing().close()
    except StartError:
        raise
    except Exception as error:
        raise StartError(f"Tracing is enabled, but cannot start: {error}") from error


def parent_of(span: Any) -> str:
    """Returns the ``traceparent`` that leads to a span (W3C Trace Context, 3.2)."""
    return "00-{}-{}-{}".format(*_ids(span))


def _ids(span: Any) -> tuple[str, str, str]:
    known = span.get_span_context()
    return f"{known.trace_id:032x}", f"{known.span_id:016x}", f"{known.trace_flags:02x}"


def _protocol() -> str:
    own = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    return own or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")


def _exporter() -> Any:
    """Returns the exporter of spans. Raises ImportError if its package is missing."""
    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415

        return ConsoleSpanExporter()
    if _protocol() == "grpc":
        # Not part of the extra, since it brings many large packages with it.
        name = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
        return importlib.import_module(name).OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http  # noqa: PLC0415

    return http.OTLPSpanExporter()
