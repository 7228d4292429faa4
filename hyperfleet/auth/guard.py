"""Who may: what Connexion asks before it calls any operation that is not public.

One decision for all of them: the token is good, the caller is on the access list, the access review
allows the action, and a change can be recorded under a name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from connexion.lifecycle import ConnexionRequest
from connexion.middleware.abstract import ROUTING_CONTEXT
from connexion.security import NO_VALUE, BearerSecurityHandler
from starlette.datastructures import Headers

from hyperfleet import errors
from hyperfleet.auth import identity
from hyperfleet.auth.access_list import matches, parse_rules
from hyperfleet.auth.review import Review
from hyperfleet.auth.tokens import Verifier
from hyperfleet.auth.trusted import Trusted
from hyperfleet.auth.watched import Watched
from hyperfleet.errors import ConfigurationError, Problem, refusal
from hyperfleet.settings.catalogue import PUBLIC_KEYS, Settings

# What a review is asked of who wants to read the audit.
AUDIT = ("get", "Audit")
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
        return self.claims

    async def claims(self, request: ConnexionRequest) -> Any:
        """The claims of a caller who may; Connexion's mark for none when there is no token.

        Raises Problem: 401, 403 or 503.
        """
        # Connexion's request looks anew for each thing that it is asked for.
        scope = request.scope
        headers = Headers(scope=scope)
        tokens = [
            (header, token)
            for header in self.guard.verifier.headers
            if (token := _token(header, headers.get(header, "")))
        ]
        if not tokens:
            return NO_VALUE
        # With the name of its module before it.
        operation = scope["extensions"][ROUTING_CONTEXT]["operation_id"].rpartition(".")[2]
        return await self.guard.admit(tokens, headers, scope["method"], self.reviews.get(operation))


def _token(header: str, value: str) -> str:
    """The token that a header has; empty for none. Raises Problem, 401, for half a header."""
    if header.lower() != "authorization":
        # Some gateways write the scheme, and some the token alone.
        kind, _, token = value.strip(" ").partition(" ")
        return (token if kind.lower() == "bearer" else value).strip(" ")
    parts = value.split(maxsplit=1)
    if value and len(parts) < 2:
        raise refusal(errors.INVALID_TOKEN, "The Authorization header has no token.")
    return parts[1].strip(" ") if parts and parts[0].lower() == "bearer" else ""


class Guard:
    """Admits callers, by the settings. Raises ConfigurationError for settings that cannot work."""

    def __init__(self, settings: Settings) -> None:
        self.verifier = Verifier(settings)
        self.rules = Watched(settings.acl_file, parse_rules) if settings.acl_file else None
        audit = settings.audit_acl_file
        self.auditors = Watched(audit, parse_rules) if audit else None
        self.review = Review(settings) if settings.enable_authz else None
        chosen = self.rules or self.review or settings.any_caller
        if self.verifier.lets_in(PUBLIC_KEYS) and not chosen:
            raise ConfigurationError(
                "Anyone with an account at the public issuer could write: restrict callers with "
                "--jwt-audiences, --acl-file or --enable-authz, let everybody in with --any-caller, or "
                "name the keys of another issuer with --jwk-cert-url."
            )

    async def admit(
        self,
        tokens: Sequence[tuple[str, str]],
        headers: Headers,
        method: str,
        what: tuple[str, str] | None,
    ) -> Mapping[str, Any]:
        """The claims of a caller who may do this.

        :param tokens: of the request, one or several, each with the header that it came in
        :param headers: of the request
        :param method: of the request
        :param what: what a review is asked: the action and the type of resource; None: nothing

        Raises Problem: 401, 403, or 503 when it cannot be told.
        """
        claims, issuer = await self._verified(tokens, headers)
        name = issuer.identity(claims, headers)
        identity.current.set(name)
        if self.rules is not None and not matches(self.rules.get(), claims):
            raise _forbidden("The access list does not name the caller.")
        if not name and method != "GET":
            raise refusal(errors.NO_IDENTITY)
        if what == AUDIT and self._audits(claims):
            return claims
        if self.review and what:
            account = identity.from_claims(claims, ACCOUNT)
            if not account or not await self.review.allows(account, *what):
                raise _forbidden("The access review does not allow the caller to do this.")
        return claims

    def _audits(self, claims: Mapping[str, Any]) -> bool:
        """Whether the list of those who may read the audit names the caller. Raises Problem where it
        does not, and nobody else is to be asked.
        """
        if self.auditors is not None and matches(self.auditors.get(), claims):
            return True
        if self.review is None:
            raise _forbidden("Only callers that the access list of the audit names may read it.")
        return False

    async def _verified(
        self, tokens: Sequence[tuple[str, str]], headers: Headers
    ) -> tuple[Mapping[str, Any], Trusted]:
        """The first token that is good. Raises the Problem of the first when none is."""
        problems: list[Problem] = []
        for header, token in tokens:
            try:
                if len(headers.getlist(header)) > 1:
                    raise refusal(errors.INVALID_TOKEN, f"There must be exactly one {header} header.")
                return await self.verifier.claims(token, header)
            except Problem as problem:
                problems.append(problem)
        raise problems[0]


def _forbidden(detail: str) -> Problem:
    challenge = 'Bearer realm="hyperfleet", error="insufficient_scope"'
    return Problem(errors.FORBIDDEN, detail, headers={"WWW-Authenticate": challenge})
