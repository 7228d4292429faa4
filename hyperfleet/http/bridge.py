"""From the server's protocol to the handlers: ASGI outside, Flask's request inside, without a thread."""

import io
from collections.abc import Callable
from typing import Any

import flask
from a2wsgi.wsgi import build_environ
from starlette.types import Receive, Scope, Send

from hyperfleet import errors, greenlets
from hyperfleet.contract.validation import CALL
from hyperfleet.errors import Problem
from hyperfleet.http.problems import explain, render


class Bridge:
    """Calls the function of an operation, in a greenlet of the event loop, within a request of Flask's.

    Connexion has found the operation and checked what it is called with, so that Flask's own routing
    and Connexion's own binding, which look at all of that once more, are left out.

    :param application: whose requests they are
    """

    def __init__(self, application: flask.Flask) -> None:
        self.application = application
        # Nobody asks Flask where a request leads.
        application.create_url_adapter = lambda _request: None  # type: ignore[method-assign, assignment]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request. Raises Problem where there is no operation."""
        if CALL not in scope:
            raise Problem(errors.NO_PATH)
        environ: Any = build_environ(scope, io.BytesIO())  # type: ignore[arg-type]
        status, headers, content = await greenlets.run(self._answer, environ, *scope[CALL])
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _answer(
        self, environ: dict[str, Any], handler: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        try:
            with self.application.request_context(environ):
                answer: flask.Response = handler(**arguments)
            status, content, headers = answer.status_code, answer.get_data(), dict(answer.headers)
        except Exception as error:
            # Here, so that the answer is checked by the contract like all others.
            problem = explain(error)
            status = problem.entry.status
            content, headers = render(problem, environ["PATH_INFO"], environ.get("HTTP_ACCEPT", ""))
            headers["content-length"] = str(len(content))
        encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        return status, encoded, content
