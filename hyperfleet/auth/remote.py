"""Requests to the servers that decisions about callers depend on."""

import contextlib
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from hyperfleet.errors import ConfigurationError
from hyperfleet.watched import Watched

# Seconds to connect, for the head of a response and between pieces of its body; and in total.
TIMEOUT = 5.0
DEADLINE = 10.0
MAX_SIZE = 1024 * 1024


class Unreachable(Exception):
    """There was no usable response; the text says why, for the log."""


def check_url(name: str, url: str) -> None:
    """Raises ConfigurationError if a URL is neither https nor on this machine.

    :param name: the name of the setting
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigurationError(f"{name}: this is not a URL.") from None
    # Quotes nothing else of the URL, which may contain a password.
    if parts.scheme not in ("http", "https"):
        given = f"the scheme {parts.scheme} is not" if parts.scheme else "this URL is neither http nor"
        raise ConfigurationError(f"{name}: {given} https.")
    if not host:
        raise ConfigurationError(f"{name}: the URL names no host.")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigurationError(f"{name}: the URL of {host} must be https, except on this machine.")


def is_loopback(host: str) -> bool:
    """Returns whether a host, or the address of a client, is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _cut_after(seconds: float, cut: Callable[[], object]) -> Iterator[None]:
    """Calls ``cut`` to end a connection if the block takes longer than this many seconds.

    The connection's own timeouts restart with each byte, even one that is never passed on.
    """

    def end() -> None:
        # It may already be closed.
        with contextlib.suppress(OSError, AttributeError, RuntimeError, ValueError):
            cut()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Cut:
    """A connection that waits no longer for the head of a response than for a piece of its body."""

    def getresponse(self, *args: Any, **options: Any) -> Any:
        """Returns the response. Raises what a broken connection raises."""
        with _cut_after(TIMEOUT, lambda: self.sock.shutdown(socket.SHUT_RDWR)):  # type: ignore[attr-defined]
            return super().getresponse(*args, **options)  # type: ignore[misc]


class _Http(_Cut, urllib3.connection.HTTPConnection):
    pass


class _Https(_Cut, urllib3.connection.HTTPSConnection):
    pass


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Https


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}


class _Beside(_Adapter):
    """Trusts the certificates in a text, and the system's. Raises ValueError if there are none."""

    def __init__(self, certificates: str) -> None:
        self.context = ssl.create_default_context()
        try:
            self.context.load_verify_locations(cadata=certificates.encode("ascii", "ignore").decode())
        except (ssl.SSLError, ValueError):
            raise ValueError("no certificates") from None
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self.context, **options)


class Client:
    """Fetches JSON.

    The environment's proxies, netrc and certificates are ignored, so that only the settings decide whom
    the service trusts. Redirects are not followed.

    :param ca_file: certificates that sign those of the servers; None means the system's
    :param alone: whether they replace the system's certificates, rather than add to them

    Raises ConfigurationError if the file cannot be used.
    """

    def __init__(self, ca_file: Path | None = None, *, alone: bool = True) -> None:
        self.session = requests.Session()
        self.session.trust_env = False
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Adapter())
        self.beside: Watched[_Beside] | None = None
        if ca_file is not None and alone:
            # Read for each connection.
            self.session.verify = str(ca_file)
        elif ca_file is not None:
            # The file may contain other text in any encoding; Latin-1 decodes every byte.
            self.beside = Watched(ca_file, _Beside, "latin-1")

    def json(self, method: str, url: str, **options: Any) -> tuple[int, Any]:
        """Returns the status of a response, and its JSON if the status is 200, else None.

        :param options: passed on to requests

        Raises Unreachable if there is no response in time, or it is too large or not JSON.
        """
        end = time.monotonic() + DEADLINE
        content = bytearray()
        if self.beside is not None:
            self.session.mount("https://", self.beside.get())
        try:
            with self.session.request(
                method, url, timeout=TIMEOUT, allow_redirects=False, stream=True, **options
            ) as response:
                if response.status_code != 200:
                    return response.status_code, None
                # The method is only looked up when needed, since urllib3 before 2.3 lacks it.
                with _cut_after(end - time.monotonic(), lambda: response.raw.shutdown()):  # noqa: PLW0108
                    # Reads what has arrived: waiting for a full buffer may take long if data drips in.
                    while piece := response.raw.read1(65536, decode_content=True):
                        content += piece
                        if len(content) > MAX_SIZE:
                            raise Unreachable(f"{url} answers with more than {MAX_SIZE} bytes")
                        if time.monotonic() > end:
                            raise Unreachable(f"{url} answers too slowly")
            return 200, json.loads(content)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            late = time.monotonic() >= end
            reason = "answers too slowly" if late else f"is not reachable: {type(error).__name__}"
            raise Unreachable(f"{url} {reason}") from error
        except (ValueError, RecursionError) as error:
            raise Unreachable(f"{url} does not answer with JSON") from error
