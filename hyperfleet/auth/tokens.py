"""Bearer tokens: JSON Web Tokens (RFC 7519), verified with the keys of those who may issue them."""

import hashlib
import json
import math
import posixpath
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from hyperfleet.auth.trusted import Trusted
from hyperfleet.errors import ConfigurationError, Problem, refusal
from hyperfleet.settings.catalogue import Settings
from hyperfleet.settings.issuers import AUTHORIZATION, Issuer

MAX_SIZE = 16 * 1024
LEEWAY = 30
# As many tokens are known by their hashes to be good; each takes some kilobytes of each process.
MAX_VERIFIED = 2_000
COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


@dataclass(frozen=True, slots=True)
class Times:
    """When a token is good, in seconds since 1970, with some leeway for clocks that differ."""

    begin: float
    end: float

    def check(self, now: float) -> None:
        """Raises Problem, 401, for another time."""
        if now >= self.end:
            raise refusal(errors.EXPIRED_TOKEN)
        if self.begin > now:
            raise refusal(errors.INVALID_TOKEN, errors.EARLY_TOKEN)


@dataclass(frozen=True, slots=True)
class Verified:
    """A token that was found good, and what follows from it alone: this is not found out each time."""

    head: Mapping[str, Any]
    claims: Mapping[str, Any]
    issuer: Trusted
    key: Key
    times: Times


class Verifier:
    """Decides on tokens, by the settings.

    Raises ConfigurationError for settings by which nobody could get in, or that are not safe.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.servers: dict[tuple[str, str], Source] = {}
        client = Client(settings.jwk_cert_ca_file)
        self.common: list[Source] = []
        if settings.jwk_cert_file is not None:
            self.common.append(KeyFile(settings.jwk_cert_file))
        if settings.jwk_cert_url:
            self.common.append(_server("--jwk-cert-url", settings.jwk_cert_url, client))
        # By the header that a token came in, and its hash.
        self.verified: dict[tuple[str, bytes], Verified] = {}
        # Without issuers: whoever signs with the keys for all.
        self.anybody = Trusted(Issuer(""), settings, self.common)
        # By the header that carries their tokens, in the order given, and by their names.
        self.issuers: dict[str, dict[str, Trusted]] = {}
        for issuer in settings.jwt_configs or map(_listed, settings.jwt_issuers):
            header = next(
                (one for one in self.issuers if one.lower() == issuer.header.lower()), issuer.header
            )
            mine = Trusted(issuer, settings, self._own(issuer, client) or self.common)
            self.issuers.setdefault(header, {})[issuer.issuer_url] = mine
        self.headers = tuple(self.issuers) or (AUTHORIZATION,)
        if not all(one.sources for one in self._all()):
            raise ConfigurationError(
                "Tokens are required, but there are no keys to verify them with: set --jwk-cert-url or "
                "--jwk-cert-file, name the keys of each issuer in --jwt-issuers or --jwt-configs, or "
                "use --no-auth."
            )

    def _own(self, issuer: Issuer, client: Client) -> list[Source]:
        """The keys of an issuer alone, those of a file first: they are at hand."""
        found: list[Source] = []
        if issuer.jwk_cert_file:
            found.append(KeyFile(Path(issuer.jwk_cert_file)))
        if url := issuer.jwk_cert_url:
            flag = "--jwt-configs" if self.settings.jwt_configs else "--jwt-issuers"
            place = (url, issuer.jwk_cert_ca_file)
            if place not in self.servers:
                if issuer.jwk_cert_ca_file:
                    client = Client(Path(issuer.jwk_cert_ca_file), alone=False)
                self.servers[place] = _server(flag, url, client)
            found.append(self.servers[place])
        return found

    def keys(self) -> dict[str, tuple[str, float | None]]:
        """How each source of keys is doing, by a name of it: ``ok`` or what is wrong, and since when its
        keys are at hand, in seconds of the monotonic clock.
        """
        return {f"keys {one.name}": one.state() for each in self._all() for one in each.sources}

    def lets_in(self, url: str) -> bool:
        """Whether the keys at a URL let in whatever audience a token is for."""
        wanted = _spelled(url)
        return any(
            isinstance(one, KeyServer) and _spelled(one.url) == wanted
            for each in self._all()
            if not each.audiences
            for one in each.sources
        )

    def _all(self) -> list[Trusted]:
        """Those who may issue tokens."""
        return [one for named in self.issuers.values() for one in named.values()] or [self.anybody]

    async def claims(self, token: str, header: str = AUTHORIZATION) -> tuple[Mapping[str, Any], Trusted]:
        """The claims of a token that is good, and who has issued it.

        :param header: that it came in; one of ``headers``

        Raises Problem: 401 which says what is wrong with the token, or 503 when there are no keys to
        tell. No text of the token is in it.
        """
        place = header, hashlib.sha256(token.encode()).digest()
        known = self.verified.get(place)
        # Keys that were read anew are other ones, whatever their ids.
        if known is None or await self._key(known.head, known.issuer.sources) is not known.key:
            self.verified.pop(place, None)
            self.verified[place] = known = await self._verified(token, header)
            if len(self.verified) > MAX_VERIFIED:
                del self.verified[next(iter(self.verified))]
        known.times.check(time.time())
        return known.claims, known.issuer

    async def _verified(self, token: str, header: str) -> Verified:
        head, claims = _parse(token)
        issuer = self._issuer(claims, header)
        key = await self._key(head, issuer.sources)
        try:
            jws.verify(token, key, [head["alg"]])
        except JOSEError:
            raise refusal(errors.INVALID_TOKEN, errors.BAD_SIGNATURE) from None
        times = _times(claims)
        times.check(time.time())
        _check_type(head, claims)
        issuer.check_audience(claims)
        return Verified(head, claims, issuer, key, times)

    def _issuer(self, claims: Mapping[str, Any], header: str) -> Trusted:
        """Whom the token names; one issuer's keys do not speak for another, nor does its header."""
        if not self.issuers:
            return self.anybody
        name = claims.get("iss")
        issuer = self.issuers[header].get(name) if isinstance(name, str) else None
        if issuer is None:
            raise refusal(errors.INVALID_TOKEN, errors.BAD_ISSUER)
        return issuer

    async def _key(self, header: Mapping[str, Any], sources: Sequence[Source]) -> Key:
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


def _listed(item: str) -> Issuer:
    """An issuer as the setting for names alone has it: ISSUER, ISSUER=URL or ISSUER=FILE."""
    name, _, own = (part.strip() for part in item.partition("="))
    return Issuer(name, own, "") if "://" in own else Issuer(name, "", own)


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


def _times(claims: Mapping[str, Any]) -> Times:
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
    end = times.pop("exp")
    return Times(max(times.values(), default=-math.inf) - LEEWAY, end + LEEWAY)


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
        raise refusal(errors.INVALID_TOKEN, "Impersonation tokens are not accepted.")
