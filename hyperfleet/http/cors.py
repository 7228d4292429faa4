"""CORS: which pages of other origins may call the API from a browser."""

from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperfleet.contract.document import headers
from hyperfleet.settings.catalogue import Settings

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
# Headers of requests and of responses that the contract does not list.
REQUEST_HEADERS = ("Authorization", "Content-Type", "X-Request-ID")
RESPONSE_HEADERS = ("Hyperfleet-Position", "X-Request-ID")


class Cors(CORSMiddleware):
    """Allows pages of the configured origins to call the application.

    Cookies are not used: the page itself sends a token with each request.

    :param app: the whole application, including error handling
    :param settings: which origins are allowed, such as ``https://host`` (none turns CORS off), and which
        headers carry tokens; those that a gateway sets are not for pages to send
    :param document: the contract, whose headers pages may send and read
    """

    def __init__(self, app: ASGIApp, settings: Settings, document: dict[str, Any]) -> None:
        sent, read = headers(document)
        tokens = [issuer.header for issuer in settings.jwt_configs]
        super().__init__(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=METHODS,
            allow_headers=sorted(sent.union(REQUEST_HEADERS, tokens)),
            expose_headers=sorted(read.union(RESPONSE_HEADERS)),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. Most have no Origin header, and are passed on directly."""
        if any(name == b"origin" for name, _ in scope["headers"]):
            await super().__call__(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                # A cache must not serve it to a page of another origin.
                message["headers"] = [*message["headers"], (b"vary", b"Origin")]
            await send(message)

        await self.app(scope, receive, answer)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Returns the response to a preflight request. If refused, the application responds instead."""
        response = super().preflight_response(request_headers)
        return response if response.status_code == 200 else self.app  # type: ignore[return-value]
