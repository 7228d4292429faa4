"""The token with which a command asks a service."""

from typing import Any
from urllib.parse import urlsplit

import click
import requests

from hyperfleet.auth.remote import is_loopback


def checked(token: str) -> str:
    """A token, as it is. Raises click's UsageError for one that no header can have."""
    if not (token.isascii() and token.isprintable()):
        raise click.UsageError("The token has characters that a token cannot have.")
    return token


class Session(requests.Session):
    """Shows a token to a service, and to no other one that it leads to.

    What .netrc has for the host would take the token's place, were it a header: it counts where no
    token is given.
    """

    def __init__(self, token: str = "") -> None:
        super().__init__()
        self.show(token)

    def show(self, token: str) -> None:
        """Shows another token from now on; nothing where it is empty."""
        self.token = checked(token)
        self.auth = self._with_token if token else None

    def _with_token(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def merge_environment_settings(self, url: Any, *rest: Any) -> Any:
        """What the environment says of a request; no proxy is between this machine and itself."""
        settings = super().merge_environment_settings(url, *rest)
        if is_loopback(urlsplit(url).hostname or ""):
            settings["proxies"] = {}
        return settings

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """What is shown where an answer leads elsewhere."""
        if not self.token:
            super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]
        elif self.should_strip_auth(response.request.url, prepared_request.url):  # type: ignore[no-untyped-call]
            prepared_request.headers.pop("Authorization", None)
