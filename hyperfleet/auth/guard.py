"""Who may: what Connexion asks before it calls any operation that is not public.

One decision for all of them: the token is good, the caller is on the access list, the access review
allows the action, and a change can be recorded under a name.
"""

from collections.abc import Mapping
from typing import Any

from connexion.lifecycle import ConnexionRequest
from connexion.middleware.abstract import ROUTING_CONTEXT
from connexion.security import BearerSecurityHandler

from hyperfleet import errors
from hyperfleet.auth import identity
from hyperfleet.auth.access_list import matches, parse_rules
from hyperfleet.auth.review import Review
from hyperfleet.auth.tokens import Verifier
from hyperfleet.auth.watched import Watched
from hyperfleet.errors import ConfigurationError, Problem, refusal
from hyperfleet.settings import PUBLIC_KEYS, Settings

# How OCM names an account, the preferred claim first.
ACCOUNT = ("username", "preferred_username", "sub")


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

    def check_bearer_token(self, token_info_func: Any) -> Any:
        """What is called with a request and its token; Connexion would look each time what it takes."""

        def check(request: ConnexionRequest, token: str) -> Any:
            return token_info_func(token, request)

        return check

    async def claims(self, token: str, request: ConnexionRequest) -> Mapping[str, Any]:
        """The claims of a caller who may. Raises Problem: 401, 403 or 503."""
        given = request.headers.getlist("authorization")
        # With the name of its module before it.
        operation = request.scope["extensions"][ROUTING_CONTEXT]["operation_id"].rpartition(".")[2]
        return await self.guard.admit(token, len(given), request.method, self.reviews.get(operation))


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
        if not name and method != "GET":
            raise refusal(errors.NO_IDENTITY)
        if self.review and what:
            account = identity.from_claims(claims, ACCOUNT)
            if not account or not await self.review.allows(account, *what):
                raise _forbidden("The access review does not allow the caller to do this.")
        return claims


def _forbidden(detail: str) -> Problem:
    challenge = 'Bearer realm="hyperfleet", error="insufficient_scope"'
    return Problem(errors.FORBIDDEN, detail, headers={"WWW-Authenticate": challenge})
