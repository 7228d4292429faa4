"""From the server's protocol to Flask's: ASGI to WSGI (PEP 3333), without a thread."""

import io
from collections.abc import Iterable
from typing import Any

from a2wsgi.wsgi import build_environ
from starlette.types import Receive, Scope, Send

from hyperfleet import greenlets


class Bridge:
    """Answers with what a WSGI application answers, which runs in a greenlet of the event loop.

    Bodies are read whole before it is called: the layers around it bound them, and most are small.
    """

    def __init__(self, wsgi: Any) -> None:
        self.wsgi = wsgi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        environ: Any = build_environ(scope, io.BytesIO(body))  # type: ignore[arg-type]
        status, headers, content = await greenlets.run(self._answer, environ)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _answer(self, environ: dict[str, Any]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]], _error: Any = None) -> None:
            started.append((status, headers))

        chunks: Iterable[bytes] = self.wsgi(environ, start)
        try:
            content = b"".join(chunks)
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        status, headers = started[-1]
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        return int(status[:3]), encoded, content
