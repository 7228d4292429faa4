"""Issuers of tokens that have settings of their own: the value of the setting ``jwt_configs``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hyperfleet.settings.headers import HEADER, NO_NAMES, NO_TOKENS, taken
from hyperfleet.settings.members import items_of, members_of

AUTHORIZATION = "Authorization"


@dataclasses.dataclass(frozen=True)
class Issuer:
    """An issuer of tokens; its members have the names of the original. An empty one defaults to the
    setting for all issuers.

    :param issuer_url: the claim ``iss`` of its tokens
    :param jwk_cert_url: the URL of its keys
    :param jwk_cert_file: a file with its keys, in addition to the URL
    :param jwk_cert_ca_file: CA certificates for the URL, in addition to the system's
    :param header: the header that carries its tokens
    :param audience: the audience that its tokens must name
    :param identity_claim: the claim that names the caller
    :param identity_claim_pattern: a pattern that must be found in the caller's identity
    :param identity_header: the header in which a gateway names the caller
    """

    issuer_url: str
    jwk_cert_url: str = ""
    jwk_cert_file: str = ""
    jwk_cert_ca_file: str = ""
    header: str = AUTHORIZATION
    audience: str = ""
    identity_claim: str = ""
    identity_claim_pattern: str = ""
    identity_header: str = ""


MEMBERS = tuple(field.name for field in dataclasses.fields(Issuer))


def parse(value: Any) -> tuple[Issuer, ...]:
    """Parses a list of mappings, or its JSON, into issuers.

    Raises ValueError, with a sentence, for a mistake. It never quotes a URL, which may have a password.
    """
    found = tuple(_issuer(number, one) for number, one in enumerate(items_of(value, "issuers"), 1))
    carriers = {one.header.lower() for one in found}
    seen = set()
    for number, one in enumerate(found, 1):
        if one.identity_header.lower() in carriers:
            raise ValueError(f"issuer {number}: identity_header is a header that carries tokens.")
        if (one.issuer_url, one.header.lower()) in seen:
            raise ValueError(f"issuer {number}: this issuer_url is already named for the same header.")
        seen.add((one.issuer_url, one.header.lower()))
    return found


def _issuer(number: int, members: Any) -> Issuer:
    if not isinstance(members, Mapping):
        raise ValueError(f"issuer {number} is not a mapping with issuer_url.")
    given: dict[str, str] = {}
    for name, value in members_of(members, MEMBERS, f"issuer {number}", "an issuer").items():
        if not isinstance(value, str):
            raise ValueError(f"issuer {number}: {name} must be a string.")
        if text := value if name == "identity_claim_pattern" else value.strip():
            given[name] = text
    if "issuer_url" not in given:
        raise ValueError(f"issuer {number} has no issuer_url.")
    issuer = Issuer(**given)
    for name, refused in (("header", NO_TOKENS), ("identity_header", NO_NAMES)):
        value = getattr(issuer, name)
        if value and (not HEADER.fullmatch(value) or value.lower() in refused):
            raise ValueError(f"issuer {number}: {name} cannot be {value[:100]!r}.")
    if taken(issuer.identity_header):
        raise ValueError(
            f"issuer {number}: identity_header cannot be {issuer.identity_header}, "
            "which requests use for something else."
        )
    if issuer.jwk_cert_ca_file and not issuer.jwk_cert_url:
        raise ValueError(f"issuer {number}: jwk_cert_ca_file needs a jwk_cert_url.")
    return issuer
