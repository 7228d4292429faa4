"""CORS: which pages of other origins may call the API from a browser."""

from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hyperfleet.contract.document import headers

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
# Headers of requests and of responses that the contract does not list.
REQUEST_HEADERS = ("Authorization", "Content-Type", "X-Request-ID")
RESPONSE_HEADERS = ("Hyperfleet-Position", "X-Request-ID")


class Cors(CORSMiddleware):
    """Allows pages of the configured origins to call the application.

    Cookies are not used: the page itself sends a token with each request.

    :param app: the whole application, including error handling
    :param origins: allowed origins, such as ``https://host``; an empty tuple turns CORS off
    :param document: the contract, whose headers pages may send and read
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], document: dict[str, Any]) -> None:
        sent, read = headers(document)
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=sorted(sent.union(REQUEST_HEADERS)),
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
