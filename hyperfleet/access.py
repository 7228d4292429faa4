"""Who may: what Connexion asks before it calls any operation that is not public.

One decision for all of them: the token is good, the caller is on the access list, the access review
allows the action, and a change can be recorded under a name.
"""

import asyncio
import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from connexion.lifecycle import ConnexionRequest
from connexion.middleware.abstract import ROUTING_CONTEXT
from connexion.security import BearerSecurityHandler

from hyperfleet import errors, identity
from hyperfleet.errors import ConfigurationError, Problem, refusal
from hyperfleet.remote import Client, Unreachable, check_url
from hyperfleet.settings import PUBLIC_KEYS, Settings
from hyperfleet.tokens import Verifier
from hyperfleet.watched import Watched

logger = logging.getLogger(__name__)

SAFE = ("GET", "HEAD")

# How OCM names an account, the preferred claim first.
ACCOUNT = ("username", "preferred_username", "sub")
REVIEW_FOR = 60
MAX_REVIEWS = 10_000
# A token for the reviews is renewed so many seconds before its end.
MARGIN = 30

Rule = tuple[str, re.Pattern[str]]


class Bearer(BearerSecurityHandler):
    """Binds the guard to the contract's security scheme: what Connexion asks before each operation that
    is not public.

    :param reviews: by operation, what an access review is asked: the action and the type of resource
    """

    def __init__(self, guard: "Guard", reviews: Mapping[str, tuple[str, str]]) -> None:
        self.guard = guard
        self.reviews = reviews

    def get_fn(self, security_scheme: Any, required_scopes: Any) -> Any:
        """What Connexion calls with a request."""
        return self._get_verify_func(self.claims)

    async def claims(self, token: str, request: ConnexionRequest) -> Mapping[str, Any]:
        """The claims of a caller who may. Raises Problem: 401, 403 or 503."""
        given = request.headers.getlist("authorization")
        # With the name of its module before it.
        operation = request.scope["extensions"][ROUTING_CONTEXT]["operation_id"].rpartition(".")[2]
        return await self.guard.admit(token, len(given), request.method, self.reviews.get(operation))


def parse_rules(text: str) -> list[Rule]:
    """The rules of an access list: YAML, ``- claim: email`` with ``pattern: ^.*@redhat\\.com$``.

    Raises ValueError for another text, a pattern that is none, and for an empty list: a file that was
    cut off must not let everybody in, nor lock everybody out.
    """
    try:
        items = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"this is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(items, list) or not items:
        raise ValueError("this is no list of a claim and a pattern each")
    rules = []
    for item in items:
        if not isinstance(item, dict) or item.keys() != {"claim", "pattern"}:
            raise ValueError("each item must have a claim and a pattern, and nothing else")
        claim, pattern = item["claim"], item["pattern"]
        if not isinstance(claim, str) or not isinstance(pattern, str):
            raise ValueError("a claim and a pattern must be texts")
        try:
            rules.append((claim, re.compile(pattern)))
        except re.error as error:
            raise ValueError(f"{pattern!r} is no pattern: {error}") from None
    return rules


def matches(rules: Sequence[Rule], claims: Mapping[str, Any]) -> bool:
    """Whether any rule's pattern is found in the claim that it names."""
    for claim, pattern in rules:
        value = claims.get(claim)
        # "$" would match before a line break at the end too.
        if isinstance(value, str) and value.isprintable() and pattern.search(value):
            return True
    return False


class Review:
    """OCM's access review: may this account do this to this kind of resource?

    ``POST /api/authorizations/v1/access_review``, under a token of the service's own (the client
    credentials of RFC 6749, 4.4).

    Raises ConfigurationError for settings that lack the credentials, or that are not safe.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = settings.ocm_base_url.rstrip("/") + "/api/authorizations/v1/access_review"
        self.token_url = settings.ocm_token_url
        check_url("--ocm-base-url", self.url)
        check_url("--ocm-token-url", self.token_url)
        if not settings.ocm_client_id or not settings.ocm_client_secret:
            raise ConfigurationError("--enable-authz needs --ocm-client-id and --ocm-client-secret.")
        self.credentials = {
            "grant_type": "client_credentials",
            "client_id": settings.ocm_client_id,
            "client_secret": settings.ocm_client_secret,
        }
        self.client = Client(settings.ocm_ca_file)
        self.token, self.token_end = "", 0.0
        self.lock = threading.Lock()
        self.answers: dict[tuple[str, str, str], tuple[bool, float]] = {}

    async def allows(self, account: str, verb: str, kind: str) -> bool:
        """Whether the account may; the answer is kept for a minute.

        Raises Problem, 503, when there is no answer.
        """
        question = (account, verb, kind)
        answer, end = self.answers.get(question, (False, 0.0))
        if time.monotonic() >= end:
            try:
                answer = await asyncio.to_thread(self._ask, question)
            except Unreachable as error:
                logger.warning("access review: %s", error)
                raise Problem(errors.NO_REVIEW) from None
            if len(self.answers) >= MAX_REVIEWS:
                self.answers.clear()
            self.answers[question] = (answer, time.monotonic() + REVIEW_FOR)
        return answer

    def _ask(self, question: tuple[str, str, str]) -> bool:
        account, verb, kind = question
        body = {"account_username": account, "action": verb, "resource_type": kind}
        for attempt in (1, 2):
            token = self._own_token(renew=attempt == 2)
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            status, document = self.client.json("POST", self.url, json=body, headers=headers)
            if status != 401:
                break
        if status != 200 or not isinstance(document, dict) or "allowed" not in document:
            raise Unreachable(f"{self.url} answers {status} without a decision")
        return document["allowed"] is True

    def _own_token(self, *, renew: bool) -> str:
        with self.lock:
            if renew or time.monotonic() >= self.token_end:
                status, document = self.client.json("POST", self.token_url, data=self.credentials)
                token = document.get("access_token") if isinstance(document, dict) else None
                if status != 200 or not isinstance(token, str):
                    raise Unreachable(f"{self.token_url} answers {status} without a token")
                life = document.get("expires_in")
                life = life if isinstance(life, int | float) else 60
                self.token, self.token_end = token, time.monotonic() + max(life - MARGIN, 1)
            return self.token


class Guard:
    """Admits callers, by the settings. Raises ConfigurationError for settings that cannot work."""

    def __init__(self, settings: Settings) -> None:
        self.names = settings.identity_claims
        self.verifier = Verifier(settings)
        self.rules = Watched(settings.acl_file, parse_rules) if settings.acl_file else None
        self.review = Review(settings) if settings.enable_authz else None
        chosen = settings.jwt_audiences or self.rules or self.review or settings.any_caller
        if self.verifier.trusts(PUBLIC_KEYS) and not chosen:
            raise ConfigurationError(
                "Whoever has any account with the public issuer could write: say who may with "
                "--jwt-audiences, --acl-file or --enable-authz, or with --any-caller that everybody "
                "may; or name the keys of another issuer, with --jwk-cert-url."
            )

    async def admit(
        self, token: str, given: int, method: str, what: tuple[str, str] | None
    ) -> Mapping[str, Any]:
        """The claims of a caller who may do this.

        :param given: how many Authorization headers the request has
        :param method: of the request
        :param what: what a review is asked: the action and the type of resource; None: nothing

        Raises Problem: 401, 403, or 503 when it cannot be told.
        """
        if given > 1:
            raise refusal(errors.INVALID_TOKEN, "There must be one Authorization header.")
        claims = await self.verifier.claims(token.strip(" "))
        name = identity.from_claims(claims, self.names)
        identity.current.set(name)
        if self.rules is not None and not matches(self.rules.get(), claims):
            raise _forbidden("The access list does not name the caller.")
        if not name and method not in SAFE:
            raise refusal(errors.NO_IDENTITY)
        if self.review and what:
            account = identity.from_claims(claims, ACCOUNT)
            if not account or not await self.review.allows(account, *what):
                raise _forbidden("The access review does not allow the caller to do this.")
        return claims


def _forbidden(detail: str) -> Problem:
    challenge = 'Bearer realm="hyperfleet", error="insufficient_scope"'
    return Problem(errors.FORBIDDEN, detail, headers={"WWW-Authenticate": challenge})
