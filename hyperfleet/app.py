"""The application: the contract, the handlers, and the layers around them."""

import functools
import gzip
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from connexion import FlaskApp
from connexion.middleware.main import API
from connexion.middleware.security import SecurityMiddleware
from connexion.options import SwaggerUIOptions
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from hyperfleet.auth.guard import Bearer, Guard
from hyperfleet.auth.identity import SYSTEM
from hyperfleet.auth.tenants import Tenants
from hyperfleet.changes.retention import removing
from hyperfleet.contract import document as contract
from hyperfleet.contract import provider
from hyperfleet.contract.provider import Provider
from hyperfleet.contract.responses import Checked, Contract
from hyperfleet.contract.validation import Validated, creation_validators
from hyperfleet.database.reads import Reads
from hyperfleet.handlers.request import SERVICE
from hyperfleet.http.bridge import Bridge
from hyperfleet.http.compression import Compressed
from hyperfleet.http.cors import Cors
from hyperfleet.http.deadline import Deadline
from hyperfleet.http.fairness import Fair
from hyperfleet.http.layers import Browsers, Errors, Logged, Page, Pages, Plain
from hyperfleet.http.limits import Limited
from hyperfleet.http.position import Positioned
from hyperfleet.http.routing import UI, BrowserPages, HandlerResolver, Shipped, TableRouting
from hyperfleet.kinds import BASE
from hyperfleet.lists import columns, projection
from hyperfleet.observe.gauges import Gauges
from hyperfleet.observe.metrics import Events, Requests
from hyperfleet.observe.refusals import Refusals, forgetting
from hyperfleet.service import Service
from hyperfleet.settings.catalogue import Settings


def create_app(
    settings: Settings,
    reads: Reads,
    registry: CollectorRegistry,
    schemas: Provider | None = None,
    guard: Guard | None = None,
    gauges: Gauges | None = None,
) -> Logged:
    """Returns the ASGI application that serves the API.

    :param reads: the pool of connections to the primary, and the standbys if there are any
    :param registry: where requests are counted and timed
    :param schemas: the provider's schemas; None means those that the settings name
    :param guard: decides who has access; None means the one that the settings describe, if any
    :param gauges: told which values to show

    Raises ConfigurationError for settings with which nobody could be admitted.
    """
    guard = guard or (Guard(settings) if settings.authenticated else None)
    columns.check_barred()
    document = contract.load()
    layers: list[Callable[..., ASGIApp]] = []
    if settings.tenant_enabled:
        operations = contract.closed(document)
        layers.append(functools.partial(Tenants, settings=settings, operations=operations))
    if guard is None:
        document = contract.without_security(document)
    schemas = schemas or provider.load(settings)
    mode = settings.responses_checked
    checked = functools.partial(Checked, contract=Contract(document), mode=mode, registry=registry)
    inner = _routed(document, schemas, guard, [*layers, Validated, checked])
    service = Service(
        settings,
        reads=reads,
        provider=schemas,
        creation=creation_validators(document),
        default_fields=projection.defaults(settings.default_fields),
        events=Events(registry),
    )
    inner.app.extensions[SERVICE] = service
    requests = Requests(registry, first=settings.first_generation_metrics)
    # From the innermost to the outermost.
    positioned = Positioned(inner, reads.written) if reads.standbys else inner
    pages = _pages(document, schemas)
    schemas.changed.append(lambda: pages.update(_pages(document, schemas)))
    fair = _fair(Plain(Pages(positioned, pages)), service, requests)
    timed = Errors(Deadline(fair, settings.request_timeout), contract.routes(document))
    outer = Browsers(Cors(Compressed(timed), settings, document))
    refusals = Refusals(reads.primary, document, registry, nobody="" if guard else SYSTEM)
    reads.works.append(functools.partial(forgetting, reads.primary, settings.audit_retention))
    if settings.changes_retention:
        reads.works.append(functools.partial(removing, reads.primary, settings.changes_retention))
    if gauges is not None:
        _show(gauges, fair, service)
    return Logged(
        outer, requests, refusals, share=settings.access_log, farewell=service.feed.waiting.end
    )


def _fair(inner: ASGIApp, service: Service, requests: Requests) -> Fair:
    """Returns the layers that limit what requests may cost, and how many there may be."""
    settings = service.settings
    return Fair(
        Limited(inner, settings),
        most=settings.max_requests,
        refused=requests.refused.inc,
        # Requests of all tenants come through one gateway.
        more=(one.header for one in settings.tenant_dimensions if settings.tenant_enabled),
        followers=settings.max_waiting,
        calm=service.feed.calm,
    )


def _show(gauges: Gauges, fair: Fair, service: Service) -> None:
    """Tells the gauges which values to show."""
    waiting = service.feed.waiting
    gauges.waiting, gauges.delay = lambda: waiting.count, lambda: waiting.delay
    gauges.under_way, gauges.longest = lambda: fair.under_way, service.turns.longest


def _routed(
    document: dict[str, Any],
    schemas: Provider,
    guard: Guard | None,
    layers: Sequence[Callable[..., ASGIApp]],
) -> FlaskApp:
    """Returns Connexion's application: the contract bound to the handlers, the validators and the guard.

    :param layers: those between the guard and the handlers
    """
    reviews = contract.reviews(document)
    routed = FlaskApp(
        "hyperfleet",
        # Connexion's own, except those for errors, which an outer layer handles, and for the lifespan,
        # which is not used.
        middlewares=[BrowserPages, TableRouting, SecurityMiddleware, *layers],
        resolver=HandlerResolver(),
        pythonic_params=True,
        validator_map={"provider": schemas},
        security_map={"bearer": functools.partial(Bearer, guard, reviews)} if guard else {},
        swagger_ui_options=SwaggerUIOptions(serve_spec=False, spec_path="/openapi", swagger_ui_path=UI),
    )
    # Like add_api, which would also validate the contract against OpenAPI.
    options = vars(routed.middleware.options)
    routed.middleware.apis.append(API(Shipped(document), base_path=None, **options))
    routed._middleware_app.asgi_app = Bridge(routed.app)
    # The bridge knows which function to call, so Flask needs no routes.
    routed._middleware_app.add_api = lambda *_, **__: None
    # Otherwise this delays the first request.
    routed.middleware.app, routed.middleware.middleware_stack = (
        routed.middleware._build_middleware_stack()
    )
    return routed


def _pages(document: dict[str, Any], schemas: Provider) -> dict[str, Page]:
    """Returns the fixed pages, which change only with the provider's schemas."""
    text = provider.openapi(document, schemas.document)
    # Connexion can serve the document, too, but copies, validates and resolves it for each request.
    headers = {
        "content-type": "application/json",
        "etag": f'"{hashlib.sha256(text).hexdigest()[:32]}"',
        "cache-control": "no-cache",
    }
    specification = Page(200, headers, text, gzip.compress(text))
    return {
        # Leads browsers to the Swagger UI.
        "/": Page(307, {"location": "/openapi-ui/"}, b""),
        "/openapi": specification,
        f"{BASE}/openapi": specification,
        f"{BASE}/openapi.html": Page(307, {"location": "/openapi-ui/"}, b""),
    }
