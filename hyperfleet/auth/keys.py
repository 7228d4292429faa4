"""The keys that tokens are verified with, in a file or at a URL."""

import asyncio
import contextvars
import json
import logging
import threading
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
from hyperfleet.auth.watched import Watched

logger = logging.getLogger(__name__)

# Signatures alone: with "none" or a shared secret (HS*), anybody could sign (RFC 8725, 3.1 and 3.2).
RSA = ("RS256", "RS384", "RS512")
CURVES = {"P-256": "ES256", "P-384": "ES384"}
ALGORITHMS = (*RSA, *CURVES.values())

# Seconds after which keys that were fetched are fetched again, meanwhile and before they are used: a
# key that was withdrawn is in force for no longer than the latter.
RENEW_AFTER = 30
STALE_AFTER = 60
# At most once in so many seconds a token with an unknown key makes the service look for new ones.
SEEK_EVERY = 60
# After a fetch that failed.
RETRY_EVERY = 5

# Public keys by their id and the algorithm that they are used with.
Keys = Mapping[tuple[str, str], Key]


def parse_keys(text: str | bytes) -> Keys:
    """The signature keys of a JSON Web Key Set (RFC 7517); others in it are left aside.

    Raises ValueError for a text that is no key set or that has no usable key.
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
    """One key, with each algorithm that it may be used with: its type decides, never a token."""
    kid = member["kid"]
    if not isinstance(kid, str) or not kid or member.get("use", "sig") != "sig":
        return {}
    if "verify" not in member.get("key_ops", ["verify"]):
        return {}
    fitting: tuple[str, ...]
    if member["kty"] == "RSA":
        fitting = RSA
        # The public members alone: whoever publishes the private ones must not make it worse.
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
    """Whether there is a key with this id, for whatever algorithm."""
    return any(kid == known for known, _ in keys)


class KeyFile:
    """Keys in a file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.file = Watched[Keys](path, parse_keys)

    def state(self) -> tuple[str, float | None]:
        """``ok`` or what is wrong, and since when the keys are at hand, of the monotonic clock. A file
        that can't be read ends the start; later, what was read before stays in force.
        """
        self.file.get()
        return ("the last ones are in force" if self.file.broken else "ok"), None

    async def find(self, kid: str) -> Keys:
        """The keys in the file."""
        return self.file.get()


class KeyServer:
    """Keys at a URL, kept for a minute. While the server fails, those it gave last stay in force."""

    def __init__(self, url: str, client: Client) -> None:
        self.url = self.name = url
        self.client = client
        # None until the server has answered once; then its word counts, also that there are none.
        self.keys: Keys | None = None
        # When it was asked last, when that was done, and when it gave keys.
        self.begun = self.tried = self.got = float("-inf")
        self.sought = float("-inf")
        # Ends once the keys are there that were asked for last because one was not known.
        self.seeking: asyncio.Future[None] | None = None
        self.lock = threading.Lock()
        # One of its own: those who wait for a slow server would take the threads of all else.
        self.thread = ThreadPoolExecutor(1, "keys")

    def state(self) -> tuple[str, float | None]:
        """Whether its keys are at hand, and since when, as of a file."""
        if self.keys is None:
            return ("not asked yet" if self.tried < 0 else "unavailable"), None
        return ("ok" if self.got >= self.tried - 1 else "the last ones are in force"), self.got

    async def find(self, kid: str) -> Keys:
        """The keys of the server; fetches them when they are old, or lack this one.

        Raises Unreachable when no keys are at hand and none are to be had.
        """
        now = time.monotonic()
        age = now - self.tried
        unknown = self.keys is not None and not knows(self.keys, kid)
        if age >= (RETRY_EVERY if self.keys is None else STALE_AFTER):
            await self._apart(now)
        elif unknown and now - self.sought >= SEEK_EVERY:
            self.sought = now
            self.seeking = self._apart(now, anew=True)
        elif now - self.got >= RENEW_AFTER and age >= RETRY_EVERY and not self.lock.locked():
            # Whoever asks now does not wait for it.
            self._apart(now)
        if unknown and self.seeking is not None and not self.seeking.done():
            # For all who come meanwhile: theirs may be the same one.
            await asyncio.shield(self.seeking)
        if self.keys is None:
            raise Unreachable(self.url)
        return self.keys

    def _apart(self, since: float, *, anew: bool = False) -> asyncio.Future[None]:
        # With the context, whose request's id stands in the log.
        run = contextvars.copy_context().run
        return asyncio.get_running_loop().run_in_executor(self.thread, run, self.fetch, since, anew)

    def fetch(self, since: float, anew: bool) -> None:
        """Gets the keys, unless another thread has tried since.

        :param anew: whether keys that were on their way then will not do
        """
        with self.lock:
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
                at_hand = "there are none" if self.keys is None else "the last ones stay in force"
                logger.warning("no keys could be fetched, %s: %s", at_hand, error)
            self.tried = time.monotonic()


# Where keys come from.
Source: TypeAlias = KeyFile | KeyServer
