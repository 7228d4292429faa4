"""The token that a command sends to a service."""

from typing import Any
from urllib.parse import urlsplit

import click
import requests

from hyperfleet.auth.remote import is_loopback


def checked(token: str) -> str:
    """Returns the token unchanged. Raises click's UsageError if a header cannot carry it."""
    if not (token.isascii() and token.isprintable()):
        raise click.UsageError("The token has characters that a token cannot have.")
    return token


class Session(requests.Session):
    """Sends a token to a service, and to no other server that it redirects to.

    If it were set as a header, credentials from .netrc would replace it; they are used only without a
    token.
    """

    def __init__(self, token: str = "") -> None:
        super().__init__()
        self.show(token)

    def show(self, token: str) -> None:
        """Sets the token to send from now on; an empty one sends nothing."""
        self.token = checked(token)
        self.auth = self._with_token if token else None

    def _with_token(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def merge_environment_settings(self, url: Any, *rest: Any) -> Any:
        """Merges the environment's settings, but uses no proxy to reach this machine itself."""
        settings = super().merge_environment_settings(url, *rest)
        if is_loopback(urlsplit(url).hostname or ""):
            settings["proxies"] = {}
        return settings

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Drops the token when a redirect leads to another server."""
        if not self.token:
            super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
        elif self.should_strip_auth(response.request.url, prepared_request.url):  # type: ignore[no-untyped-call]
            prepared_request.headers.pop("Authorization", None)
