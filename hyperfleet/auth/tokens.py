"""Bearer tokens: JSON Web Tokens (RFC 7519), verified with the keys of their issuers."""

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
# The maximum number of verified tokens remembered by hash; each takes a few kB in every process.
MAX_VERIFIED = 2_000
COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


@dataclass(frozen=True, slots=True)
class Times:
    """When a token is valid, in seconds since 1970, with some leeway for clocks that differ."""

    begin: float
    end: float

    def check(self, now: float) -> None:
        """Raises Problem (401) at any other time."""
        if now >= self.end:
            raise refusal(errors.EXPIRED_TOKEN)
        if self.begin > now:
            raise refusal(errors.INVALID_TOKEN, errors.EARLY_TOKEN)


@dataclass(frozen=True, slots=True)
class Verified:
    """A verified token and what follows from it alone, so that this is not repeated each time."""

    head: Mapping[str, Any]
    claims: Mapping[str, Any]
    issuer: Trusted
    key: Key
    times: Times


class Verifier:
    """Verifies tokens according to the settings.

    Raises ConfigurationError if with these nobody could get in, or if they are not safe.
    """

    def __init__(self, settings: Settings) -> None:
        self.client = Client(settings.jwk_cert_ca_file)
        # By their URLs and certificates.
        self.servers: dict[tuple[str, str], KeyServer] = {}
        self.common = self._sources("--jwk-cert-url", settings.jwk_cert_file, settings.jwk_cert_url)
        flag = "--jwt-configs" if settings.jwt_configs else "--jwt-issuers"
        # By the header that a token came in, and its hash.
        self.verified: dict[tuple[str, bytes], Verified] = {}
        # Used without configured issuers: anyone who signs with the common keys.
        self.anybody = Trusted(Issuer(""), settings, self.common)
        # By the header that carries their tokens, in the order given, and then by their names.
        self.issuers: dict[str, dict[str, Trusted]] = {}
        for issuer in settings.jwt_configs or map(_listed, settings.jwt_issuers):
            header = next(
                (one for one in self.issuers if one.lower() == issuer.header.lower()), issuer.header
            )
            own = self._sources(flag, issuer.jwk_cert_file, issuer.jwk_cert_url, issuer.jwk_cert_ca_file)
            mine = Trusted(issuer, settings, own or self.common)
            self.issuers.setdefault(header, {})[issuer.issuer_url] = mine
        self.headers = tuple(self.issuers) or (AUTHORIZATION,)
        if not all(one.sources for one in self._all()):
            raise ConfigurationError(
                "Tokens are required, but there are no keys to verify them with: set --jwk-cert-url or "
                "--jwk-cert-file, name the keys of each issuer in --jwt-issuers or --jwt-configs, or "
                "use --no-auth."
            )

    def _sources(self, flag: str, file: Path | str | None, url: str, ca_file: str = "") -> list[Source]:
        """Returns sources of keys, a file first, since that is available at once.

        :param flag: the setting that names the URL
        """
        found: list[Source] = [KeyFile(Path(file))] if file else []
        if url and (url, ca_file) not in self.servers:
            check_url(flag, url)
            client = Client(Path(ca_file), alone=False) if ca_file else self.client
            self.servers[url, ca_file] = KeyServer(url, client)
        return [*found, self.servers[url, ca_file]] if url else found

    def keys(self) -> dict[str, tuple[str, float | None]]:
        """Returns the state of each source of keys (see KeyServer.state), by a name for it."""
        return {f"keys {one.name}": one.state() for each in self._all() for one in each.sources}

    def lets_in(self, url: str) -> bool:
        """Returns whether the keys at a URL admit tokens for any audience."""
        wanted = _spelled(url)
        return any(
            isinstance(one, KeyServer) and _spelled(one.url) == wanted
            for each in self._all()
            if not each.audiences
            for one in each.sources
        )

    def _all(self) -> list[Trusted]:
        """Returns all issuers."""
        return [one for named in self.issuers.values() for one in named.values()] or [self.anybody]

    async def claims(self, token: str, header: str = AUTHORIZATION) -> tuple[Mapping[str, Any], Trusted]:
        """Returns the claims of a valid token, and its issuer.

        :param header: the header that it came in; one of ``headers``

        Raises Problem: 401 saying what is wrong with the token, or 503 if the keys to verify it are not
        available. It contains no text of the token.
        """
        place = header, hashlib.sha256(token.encode()).digest()
        known = self.verified.get(place)
        # Reloaded keys are new objects, even under the same ids.
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
        """Returns the token's issuer; the keys and the header of one issuer are not good for another."""
        if not self.issuers:
            return self.anybody
        name = claims.get("iss")
        issuer = self.issuers[header].get(name) if isinstance(name, str) else None
        if issuer is None:
            raise refusal(errors.INVALID_TOKEN, errors.BAD_ISSUER)
        return issuer

    async def _key(self, header: Mapping[str, Any], sources: Sequence[Source]) -> Key:
        # Found by id only. A key, URL or certificate in the header (jwk, jku, x5u, x5c) is what the
        # sender wants the service to trust.
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
    """Returns the host, port and path of a URL, normalized (RFC 3986, 6.2)."""
    parts = urlsplit(url)
    path = posixpath.normpath("/" + unquote(parts.path).strip("/"))
    return (parts.hostname or "").rstrip("."), parts.port or 443, path


def _listed(item: str) -> Issuer:
    """Returns an issuer given in the short form: ISSUER, ISSUER=URL or ISSUER=FILE."""
    name, _, own = (part.strip() for part in item.partition("="))
    return Issuer(name, own, "") if "://" in own else Issuer(name, "", own)


def _parse(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the header and claims of a token, without verifying it.

    Raises Problem unless it is a signed token in compact form (RFC 7515, 7.1) and in its only canonical
    spelling: decoders are lenient, and a manipulated token must not pass because it decodes to the same
    bytes.
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
    # "crit" names extensions that must be understood (RFC 7515, 4.1.11); none is understood here.
    if not isinstance(header, dict) or not isinstance(claims, dict) or "crit" in header:
        raise refusal(errors.INVALID_TOKEN, errors.MALFORMED_TOKEN)
    return header, claims


def _times(claims: Mapping[str, Any]) -> Times:
    """Returns when a token is valid (RFC 7519, 4.1.4 to 4.1.6); without ``exp`` it would not end."""
    times: dict[str, float] = {}
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name)
        if value is None and name != "exp":
            continue
        # A number that is not finite is not a time.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e15 < value < 1e15:
            raise refusal(errors.INVALID_TOKEN, f"The token's {name} is missing or not a time.")
        times[name] = value
    end = times.pop("exp")
    return Times(max(times.values(), default=-math.inf) - LEEWAY, end + LEEWAY)


def _check_type(header: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
    """Raises Problem unless this is an access token.

    The same key also signs refresh, offline, ID and logout tokens. The claim is Keycloak's, and
    optional, as in other services of OCM; the header is that of RFC 9068, 4.
    """
    claim, kind = claims.get("typ", "Bearer"), header.get("typ", "JWT")
    if not isinstance(claim, str) or claim.lower() != "bearer":
        raise refusal(errors.INVALID_TOKEN, errors.BAD_TYPE)
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in ("jwt", "at+jwt"):
        raise refusal(errors.INVALID_TOKEN, errors.BAD_TYPE)
    # OCM's services refuse these, too: somebody else is acting under the name.
    if claims.get("impersonated", False) is not False:
        raise refusal(errors.INVALID_TOKEN, "Impersonation tokens are not accepted.")
