"""Bearer tokens: JSON Web Tokens (RFC 7519), verified with the keys of those who may issue them."""

import hashlib
import json
import posixpath
import re
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from jose import jws
from jose.backends.base import Key
from jose.exceptions import JOSEError
from jose.utils import base64url_decode, base64url_encode

from hyperfleet import errors
from hyperfleet.auth.keys import ALGORITHMS, KeyFile, KeyServer, Source, knows
from hyperfleet.auth.remote import Client, Unreachable, check_url
from hyperfleet.errors import ConfigurationError, Problem, refusal
from hyperfleet.settings import Settings

MAX_SIZE = 16 * 1024
LEEWAY = 30
# As many tokens are known by their hashes to be signed well, so that this is not found out each time.
MAX_VERIFIED = 10_000
COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class Verifier:
    """Decides on tokens, by the settings.

    Raises ConfigurationError for settings by which nobody could get in, or that are not safe.
    """

    def __init__(self, settings: Settings) -> None:
        client = Client(settings.jwk_cert_ca_file)
        self.audiences = frozenset(settings.jwt_audiences)
        self.common: list[Source] = []
        if settings.jwk_cert_file is not None:
            self.common.append(KeyFile(settings.jwk_cert_file))
        if settings.jwk_cert_url:
            self.common.append(_server("--jwk-cert-url", settings.jwk_cert_url, client))
        # By the hash of a token: its header, its claims, and the key that it was verified with.
        self.verified: dict[bytes, tuple[dict[str, Any], dict[str, Any], Key]] = {}
        self.issuers: dict[str, list[Source]] = {}
        for item in settings.jwt_issuers:
            issuer, _, own = item.partition("=")
            self.issuers[issuer.strip()] = [_source(own.strip(), client)] if own else self.common
        if not all(self.issuers.values() if self.issuers else [self.common]):
            raise ConfigurationError(
                "Tokens are required, but there are no keys to verify them with: give --jwk-cert-url, "
                "--jwk-cert-file, or a source of keys with each of --jwt-issuers; or --no-auth."
            )

    def keys(self) -> dict[str, tuple[str, float | None]]:
        """How each source of keys is doing, by a name of it: ``ok`` or what is wrong, and since when its
        keys are at hand, in seconds of the monotonic clock.
        """
        return {f"keys {one.name}": one.state() for one in self._all()}

    def trusts(self, url: str) -> bool:
        """Whether the keys at a URL are among those that let in."""
        wanted = _spelled(url)
        return any(isinstance(one, KeyServer) and _spelled(one.url) == wanted for one in self._all())

    def _all(self) -> Iterator[Source]:
        """The sources whose keys let in."""
        return chain(*(self.issuers.values() if self.issuers else [self.common]))

    async def claims(self, token: str) -> dict[str, Any]:
        """The claims of a token that is good.

        Raises Problem: 401 which says what is wrong with the token, or 503 when there are no keys to
        tell. No text of the token is in it.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self.verified.get(digest)
        header, claims = known[:2] if known else _parse(token)
        sources = self._sources(claims)
        key = await self._key(header, sources)
        # Keys that were read anew are other ones, whatever their ids.
        if known is None or known[2] is not key:
            try:
                jws.verify(token, key, [header["alg"]])
            except JOSEError:
                self.verified.pop(digest, None)
                raise refusal(errors.INVALID_TOKEN, errors.BAD_SIGNATURE) from None
            self.verified[digest] = header, claims, key
            if len(self.verified) > MAX_VERIFIED:
                del self.verified[next(iter(self.verified))]
        _check_times(claims, time.time())
        _check_type(header, claims)
        if self.audiences:
            given = claims.get("aud")
            named = given if isinstance(given, list) else [given]
            if not any(isinstance(name, str) and name in self.audiences for name in named):
                raise refusal(errors.INVALID_TOKEN, errors.BAD_AUDIENCE)
        return claims

    def _sources(self, claims: Mapping[str, Any]) -> list[Source]:
        """The keys of the issuer that the token names; one issuer's keys do not speak for another."""
        if not self.issuers:
            return self.common
        issuer = claims.get("iss")
        if not isinstance(issuer, str) or issuer not in self.issuers:
            raise refusal(errors.INVALID_TOKEN, errors.BAD_ISSUER)
        return self.issuers[issuer]

    async def _key(self, header: Mapping[str, Any], sources: list[Source]) -> Key:
        # By its id alone. A key, a URL or a certificate in the header (jwk, jku, x5u, x5c) is what the
        # sender wants the service to believe.
        kid, algorithm = header.get("kid"), header.get("alg")
        if algorithm not in ALGORITHMS:
            raise refusal(errors.INVALID_TOKEN, errors.BAD_ALGORITHM)
        if not isinstance(kid, str) or not kid:
            raise refusal(errors.INVALID_TOKEN, "The token does not say which key it is signed with.")
        unreachable = False
        for source in sources:
            try:
                keys = await source.find(kid)
            except Unreachable:
                unreachable = True
                continue
            if (kid, algorithm) in keys:
                return keys[kid, algorithm]
            if knows(keys, kid):
                raise refusal(errors.INVALID_TOKEN, "The token's key is not for its algorithm.")
        if unreachable:
            raise Problem(errors.NO_KEYS)
        raise refusal(errors.INVALID_TOKEN, errors.UNKNOWN_KEY)


def _spelled(url: str) -> tuple[str, int, str]:
    """Where a URL leads, however it is spelled (RFC 3986, 6.2): host, port and path."""
    parts = urlsplit(url)
    path = posixpath.normpath("/" + unquote(parts.path).strip("/"))
    return (parts.hostname or "").rstrip("."), parts.port or 443, path


def _server(name: str, url: str, client: Client) -> KeyServer:
    check_url(name, url)
    return KeyServer(url, client)


def _source(text: str, client: Client) -> Source:
    if "://" in text:
        return _server("--jwt-issuers", text, client)
    return KeyFile(Path(text))


def _parse(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the claims of a token; nothing is verified yet.

    Raises Problem for what is no signed token in the compact form (RFC 7515, 7.1), or is one in
    another than its one canonical spelling: decoders are lenient, and a token that was tampered with
    must not pass because it decodes to the same bytes.
    """
    if len(token) > MAX_SIZE:
        raise refusal(errors.INVALID_TOKEN, f"The token has more than {MAX_SIZE} characters.")
    match = COMPACT.fullmatch(token)
    if match is None:
        raise refusal(errors.INVALID_TOKEN, errors.MALFORMED_TOKEN)
    try:
        parts = [base64url_decode(part.encode()) for part in match.groups()]
        if [base64url_encode(part).decode() for part in parts] != list(match.groups()):
            raise refusal(errors.INVALID_TOKEN, errors.MALFORMED_TOKEN)
        header, claims = json.loads(parts[0]), json.loads(parts[1])
    except (ValueError, RecursionError):
        raise refusal(errors.INVALID_TOKEN, errors.MALFORMED_TOKEN) from None
    # "crit" names what a verifier must understand (RFC 7515, 4.1.11); nothing of it is understood here.
    if not isinstance(header, dict) or not isinstance(claims, dict) or "crit" in header:
        raise refusal(errors.INVALID_TOKEN, errors.MALFORMED_TOKEN)
    return header, claims


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    """RFC 7519, 4.1.4 to 4.1.6. ``exp`` is required: a token without an end could never be outlived."""
    times: dict[str, float] = {}
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name)
        if value is None and name != "exp":
            continue
        # Not a finite number: no time.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e15 < value < 1e15:
            raise refusal(errors.INVALID_TOKEN, f"The token's {name} is missing or not a time.")
        times[name] = value
    if now >= times["exp"] + LEEWAY:
        raise refusal(errors.EXPIRED_TOKEN)
    if max(times.get("nbf", now), times.get("iat", now)) > now + LEEWAY:
        raise refusal(errors.INVALID_TOKEN, errors.EARLY_TOKEN)


def _check_type(header: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
    """An access token, and no other that the same key signs: refresh, offline, ID, logout tokens.

    The claim is Keycloak's, and optional, as for other services of OCM; the header is RFC 9068's, 4.
    """
    claim, kind = claims.get("typ", "Bearer"), header.get("typ", "JWT")
    if not isinstance(claim, str) or claim.lower() != "bearer":
        raise refusal(errors.INVALID_TOKEN, errors.BAD_TYPE)
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in ("jwt", "at+jwt"):
        raise refusal(errors.INVALID_TOKEN, errors.BAD_TYPE)
    # As OCM's services refuse it: somebody else acts under the name.
    if claims.get("impersonated", False) is not False:
        raise refusal(errors.INVALID_TOKEN, "A token of an impersonation is not accepted.")
