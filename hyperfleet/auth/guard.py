"""The guard, which Connexion asks before it calls any operation that is not public.

It makes one decision for all of them: the token is good, the caller is on the access list, the access
review allows the action, and a change can be recorded under a name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from connexion.lifecycle import ConnexionRequest
from connexion.security import NO_VALUE, BearerSecurityHandler
from starlette.datastructures import Headers

from hyperfleet import errors
from hyperfleet.auth import identity
from hyperfleet.auth.access_list import matches, parse_rules
from hyperfleet.auth.review import Review
from hyperfleet.auth.tokens import Verifier
from hyperfleet.auth.trusted import Trusted
from hyperfleet.errors import ConfigurationError, Problem, refusal
from hyperfleet.operation import operation_of
from hyperfleet.settings.catalogue import PUBLIC_KEYS, Settings
from hyperfleet.watched import Watched

# What a review is asked about a caller who wants to read the audit.
AUDIT = ("get", "Audit")
# The claims that may hold the name of an OCM account, the preferred one first.
ACCOUNT = ("username", "preferred_username", "sub")


class Bearer(BearerSecurityHandler):
    """Binds the guard to the contract's security scheme.

    :param reviews: by operation, what an access review is asked: the action and the type of resource
    """

    def __init__(self, guard: "Guard", reviews: Mapping[str, tuple[str, str]]) -> None:
        self.guard = guard
        self.reviews = reviews

    def get_fn(self, security_scheme: Any, required_scopes: Any) -> Any:
        """Returns the function that Connexion calls with a request."""
        return self.claims

    async def claims(self, request: ConnexionRequest) -> Any:
        """Returns the claims of an admitted caller, or Connexion's mark for no token.

        Raises Problem: 401, 403 or 503.
        """
        # Connexion's request would parse these again on each access.
        scope = request.scope
        headers = Headers(scope=scope)
        tokens = [
            (header, token)
            for header in self.guard.verifier.headers
            if (token := _token(header, headers.get(header, "")))
        ]
        if not tokens:
            return NO_VALUE
        what = self.reviews.get(operation_of(scope))
        return await self.guard.admit(tokens, headers, scope["method"], what)


def _token(header: str, value: str) -> str:
    """Returns the token in a header, or "". Raises Problem (401) if Authorization has only a scheme."""
    if header.lower() != "authorization":
        # Some gateways send the scheme, others only the token.
        kind, _, token = value.strip(" ").partition(" ")
        return (token if kind.lower() == "bearer" else value).strip(" ")
    parts = value.split(maxsplit=1)
    if value and len(parts) < 2:
        raise refusal(errors.INVALID_TOKEN, "The Authorization header has no token.")
    return parts[1].strip(" ") if parts and parts[0].lower() == "bearer" else ""


class Guard:
    """Admits callers according to the settings. Raises ConfigurationError if these cannot work."""

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
                "--jwt-audiences, --acl-file or --enable-authz, allow everyone with --any-caller, or "
                "name the keys of another issuer with --jwk-cert-url."
            )

    async def admit(
        self,
        tokens: Sequence[tuple[str, str]],
        headers: Headers,
        method: str,
        what: tuple[str, str] | None,
    ) -> Mapping[str, Any]:
        """Returns the claims of a caller who may do this.

        :param tokens: those of the request, at least one, each with the header that it came in
        :param headers: those of the request
        :param method: that of the request
        :param what: what a review is asked: the action and the type of resource; None means nothing

        Raises Problem: 401, 403, or 503 if this cannot be decided.
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
        """Returns whether the audit's access list names the caller.

        Raises Problem if it does not, and no access review can decide instead.
        """
        if self.auditors is not None and matches(self.auditors.get(), claims):
            return True
        if self.review is None:
            raise _forbidden("Only callers in the audit's access list may read the audit.")
        return False

    async def _verified(
        self, tokens: Sequence[tuple[str, str]], headers: Headers
    ) -> tuple[Mapping[str, Any], Trusted]:
        """Returns the claims and issuer of the first valid token, or raises the first Problem."""
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
