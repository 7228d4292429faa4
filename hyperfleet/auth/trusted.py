"""A trusted issuer: its keys, its audience, and how its tokens name the caller."""

from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema_rs
from starlette.datastructures import Headers

from hyperfleet import errors
from hyperfleet.auth import identity
from hyperfleet.auth.keys import Source
from hyperfleet.errors import ConfigurationError, refusal
from hyperfleet.settings.catalogue import Settings
from hyperfleet.settings.issuers import Issuer


class Trusted:
    """An issuer; what it does not set itself comes from the settings for all issuers.

    Raises ConfigurationError if its pattern is invalid.
    """

    def __init__(self, issuer: Issuer, settings: Settings, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.audiences = frozenset([issuer.audience] if issuer.audience else settings.jwt_audiences)
        self.claims = (issuer.identity_claim,) if issuer.identity_claim else settings.identity_claims
        self.identity_header = issuer.identity_header
        self.pattern = _pattern(issuer) if issuer.identity_claim_pattern else None
        self.other_audience = errors.BAD_AUDIENCE
        expected = ", ".join(sorted(self.audiences))
        # It is also sent in a header, between quotes.
        if expected.isascii() and expected.isprintable() and not set(expected) & {'"', "\\"}:
            self.other_audience += f" Expected: {expected}."

    def check_audience(self, claims: Mapping[str, Any]) -> None:
        """Raises Problem (401) if a token is not meant for this service."""
        if self.audiences:
            given = claims.get("aud")
            named = given if isinstance(given, list) else [given]
            if not any(isinstance(name, str) and name in self.audiences for name in named):
                raise refusal(errors.INVALID_TOKEN, self.other_audience)

    def identity(self, claims: Mapping[str, Any], headers: Headers) -> str:
        """Returns who the caller is: the name from the gateway if there is one, else from the token.

        :param claims: those of a verified token of this issuer
        :return: empty if neither names the caller

        Raises Problem (401) for a name that the issuer's pattern does not allow, and for an unusable
        name from the gateway, since the token would name somebody else.
        """
        name = self._of_gateway(headers) if self.identity_header else ""
        name = name or identity.from_claims(claims, self.claims)
        # Names are limited in length, which also limits the time that this takes.
        if self.pattern is not None and not (name and self.pattern.is_valid(name)):
            raise refusal(errors.NO_IDENTITY, "The token's issuer may not name this identity.")
        return name

    def _of_gateway(self, headers: Headers) -> str:
        given = headers.getlist(self.identity_header)
        if len(given) > 1:
            raise refusal(
                errors.NO_IDENTITY, f"There must be exactly one {self.identity_header} header."
            )
        if not given or not given[0].strip():
            return ""
        try:
            # ASGI servers decode headers as Latin-1.
            name = identity.usable(given[0].encode("latin-1").decode())
        except UnicodeError:
            name = ""
        if not name:
            raise refusal(errors.NO_IDENTITY, f"The {self.identity_header} header has no usable name.")
        return name


def _pattern(issuer: Issuer) -> jsonschema_rs.Validator:
    """Returns a validator that searches a text for an issuer's pattern.

    Its engine takes time linear in the length of the text, whatever the pattern. With Python's own,
    callers who can choose a name could keep the service busy.
    """
    pattern = issuer.identity_claim_pattern
    try:
        # A class such as [[:alpha:]] would be misread as another one.
        if "[:" in pattern:
            raise ValueError
        return jsonschema_rs.validator_for(
            {"pattern": pattern}, pattern_options=jsonschema_rs.RegexOptions()
        )
    except ValueError:
        raise ConfigurationError(
            f"identity_claim_pattern of {issuer.issuer_url}: {pattern[:200]!r} is not a supported "
            "regular expression: back-references, look-around and [:classes:] cannot be used."
        ) from None
