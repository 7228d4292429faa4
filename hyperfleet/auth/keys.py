"""The keys that tokens are verified with, from a file or a URL."""

import asyncio
import contextvars
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from jose import jwk
from jose.backends.base import Key
from jose.exceptions import JOSEError
from jose.utils import base64url_decode

from hyperfleet.auth.remote import Client, Unreachable
from hyperfleet.watched import Watched

logger = logging.getLogger(__name__)

# Only signatures: with "none" or a shared secret (HS*), anyone could sign (RFC 8725, 3.1 and 3.2).
RSA = ("RS256", "RS384", "RS512")
CURVES = {"P-256": "ES256", "P-384": "ES384"}
ALGORITHMS = (*RSA, *CURVES.values())

# Seconds after which fetched keys are renewed in the background, and before they are used again. A
# withdrawn key is accepted no longer than the latter.
RENEW_AFTER = 30
STALE_AFTER = 60
# Seconds between the searches for new keys that tokens with unknown keys may trigger.
SEEK_EVERY = 60
# Seconds until a failed fetch is repeated.
RETRY_EVERY = 5

# Public keys by their id and the algorithm that they are used with.
Keys = Mapping[tuple[str, str], Key]


def parse_keys(text: str | bytes) -> Keys:
    """Parses the signature keys of a JSON Web Key Set (RFC 7517); other keys are ignored.

    Raises ValueError for text that is not a key set, or has no usable key.
    """
    try:
        return _keys(json.loads(text))
    except RecursionError:
        raise ValueError("this is not a JSON Web Key Set") from None


def _keys(document: Any) -> Keys:
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError("this is not a JSON Web Key Set")
    keys: dict[tuple[str, str], Key] = {}
    for member in members:
        try:
            keys |= _key(member)
        except (JOSEError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("a key of the key set is ignored: %s", error)
    if members and not keys:
        raise ValueError("it has no key that can verify a signature")
    return keys


def _key(member: Any) -> Keys:
    """Returns a key with each algorithm that it may be used with: its type decides, not a token."""
    kid = member["kid"]
    if not isinstance(kid, str) or not kid or member.get("use", "sig") != "sig":
        return {}
    if "verify" not in member.get("key_ops", ["verify"]):
        return {}
    fitting: tuple[str, ...]
    if member["kty"] == "RSA":
        fitting = RSA
        # Only the public members: a set that leaks the private ones must not do further harm here.
        public = {name: member[name] for name in ("kty", "n", "e")}
        size = int.from_bytes(base64url_decode(member["n"].encode())).bit_length()
        if not 2048 <= size <= 16384:
            raise ValueError("an RSA key must have 2048 to 16384 bits (RFC 7518, 3.3)")
    elif member["kty"] == "EC" and member["crv"] in CURVES:
        fitting = (CURVES[member["crv"]],)
        public = {name: member[name] for name in ("kty", "crv", "x", "y")}
    else:
        return {}
    if not all(isinstance(value, str) for value in public.values()):
        raise ValueError("the members of a key must be texts")
    return {
        (kid, algorithm): jwk.construct(public, algorithm)
        for algorithm in fitting
        if member.get("alg", algorithm) == algorithm
    }


def knows(keys: Keys, kid: str) -> bool:
    """Returns whether there is a key with this id, for any algorithm."""
    return any(kid == known for known, _ in keys)


class KeyFile:
    """Keys in a file, which is reloaded when it changes."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.file = Watched[Keys](path, parse_keys)

    def state(self) -> tuple[str, float | None]:
        """Returns ``ok`` or what is wrong, and None in place of the time that a KeyServer has."""
        self.file.get()
        return ("the last ones are in force" if self.file.broken else "ok"), None

    async def find(self, kid: str) -> Keys:
        """Returns the keys in the file."""
        return self.file.get()


class KeyServer:
    """Keys at a URL, kept for a minute. While the server fails, the last ones stay in force."""

    def __init__(self, url: str, client: Client) -> None:
        self.url = self.name = url
        self.client = client
        # None until the server has answered; then its answer counts, even if it has no keys.
        self.keys: Keys | None = None
        # When the last fetch began and ended, and when one last succeeded.
        self.begun = self.tried = self.got = float("-inf")
        self.sought = float("-inf")
        # The last fetch that an unknown key has triggered.
        self.seeking: asyncio.Future[None] | None = None
        # One thread, so that there is one fetch at a time, and its own, since requests to a slow server
        # would use up the threads that others need.
        self.thread = ThreadPoolExecutor(1, "keys")

    def state(self) -> tuple[str, float | None]:
        """Returns ``ok`` or what is wrong, and since when it has its keys, by the monotonic clock."""
        if self.keys is None:
            return ("not asked yet" if self.tried < 0 else "unavailable"), None
        return ("ok" if self.got >= self.tried - 1 else "the last ones are in force"), self.got

    async def find(self, kid: str) -> Keys:
        """Returns the server's keys; fetches them if they are old or lack this one.

        Raises Unreachable if there are no keys and none can be fetched.
        """
        now = time.monotonic()
        age = now - self.tried
        unknown = self.keys is not None and not knows(self.keys, kid)
        if age >= (RETRY_EVERY if self.keys is None else STALE_AFTER):
            await self._apart(now)
        elif unknown and now - self.sought >= SEEK_EVERY:
            self.sought = now
            self.seeking = self._apart(now, anew=True)
        elif now - self.got >= RENEW_AFTER and age >= RETRY_EVERY and self.begun <= self.tried:
            # None is in progress, and this request does not wait for it.
            self._apart(now)
        if unknown and self.seeking is not None and not self.seeking.done():
            # All requests with an unknown key wait for it, since theirs may be the same.
            await asyncio.shield(self.seeking)
        if self.keys is None:
            raise Unreachable(self.url)
        return self.keys

    def _apart(self, since: float, *, anew: bool = False) -> asyncio.Future[None]:
        # With the context, which has the request's id for the log.
        run = contextvars.copy_context().run
        return asyncio.get_running_loop().run_in_executor(self.thread, run, self.fetch, since, anew)

    def fetch(self, since: float, anew: bool) -> None:
        """Fetches the keys, unless another request has had that done since.

        :param anew: whether a fetch that was in progress then does not count
        """
        if (self.begun if anew else self.tried) > since:
            return
        self.begun = time.monotonic()
        try:
            status, document = self.client.json("GET", self.url)
            if status != 200:
                raise Unreachable(f"{self.url} answers {status}")
            self.keys = _keys(document)
            self.got = time.monotonic()
        except (Unreachable, ValueError) as error:
            at_hand = "none are available" if self.keys is None else "the previous ones stay in use"
            logger.warning("could not fetch keys; %s: %s", at_hand, error)
        finally:
            self.tried = time.monotonic()


# A source of keys.
Source: TypeAlias = KeyFile | KeyServer
