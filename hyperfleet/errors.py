"""The errors of the API: one catalogue, one exception, one JSON object.

The object is a problem in the sense of RFC 9457, with the members beside it that OCM clients read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from hyperfleet.aggregation import now

HREF = "/api/hyperfleet/v1/errors/"


class Fault(TypedDict, total=False):
    """One thing that is wrong with a request: where, what, and which rule says so."""

    field: str
    message: str
    constraint: str


@dataclass(frozen=True)
class Entry:
    """An entry of the catalogue."""

    code: str
    status: int
    title: str
    reason: str

    def document(self) -> dict[str, Any]:
        """The entry as ``/errors`` shows it."""
        return {
            "kind": "Error",
            "id": self.code,
            "href": HREF + self.code,
            "code": self.code,
            "status": self.status,
            "title": self.title,
            "reason": self.reason,
        }


INVALID = "HYPERFLEET-VAL-001"
MALFORMED = "HYPERFLEET-VAL-002"
BAD_PARAMETER = "HYPERFLEET-VAL-003"
BAD_SEARCH = "HYPERFLEET-VAL-004"
UNSUPPORTED_TYPE = "HYPERFLEET-VAL-005"
BAD_METHOD = "HYPERFLEET-VAL-006"
BAD_REQUEST = "HYPERFLEET-VAL-007"
NO_TOKEN = "HYPERFLEET-AUT-001"  # noqa: S105 (a code, as are those below)
MALFORMED_TOKEN = "HYPERFLEET-AUT-002"  # noqa: S105
EXPIRED_TOKEN = "HYPERFLEET-AUT-003"  # noqa: S105
BAD_SIGNATURE = "HYPERFLEET-AUT-004"
UNKNOWN_KEY = "HYPERFLEET-AUT-005"
BAD_ALGORITHM = "HYPERFLEET-AUT-006"
EARLY_TOKEN = "HYPERFLEET-AUT-007"  # noqa: S105
BAD_ISSUER = "HYPERFLEET-AUT-008"
BAD_AUDIENCE = "HYPERFLEET-AUT-009"
BAD_TYPE = "HYPERFLEET-AUT-010"
NO_IDENTITY = "HYPERFLEET-AUT-011"
FORBIDDEN = "HYPERFLEET-AUZ-001"
NOT_FOUND = "HYPERFLEET-NTF-001"
NO_PATH = "HYPERFLEET-NTF-002"
NAME_TAKEN = "HYPERFLEET-CNF-001"
MARKED = "HYPERFLEET-CNF-002"
NOT_MARKED = "HYPERFLEET-CNF-003"
CHANGED_SINCE = "HYPERFLEET-CNF-004"
UNCONDITIONAL = "HYPERFLEET-CNF-005"
KEY_REUSED = "HYPERFLEET-CNF-006"
TOO_LARGE = "HYPERFLEET-LMT-001"
HEADERS_TOO_LARGE = "HYPERFLEET-LMT-002"
TOO_SLOW = "HYPERFLEET-LMT-003"
INTERNAL = "HYPERFLEET-INT-001"
NO_DATABASE = "HYPERFLEET-SVC-001"
BUSY = "HYPERFLEET-SVC-002"
NO_KEYS = "HYPERFLEET-SVC-003"
NO_REVIEW = "HYPERFLEET-SVC-004"

CATALOGUE: dict[str, Entry] = {
    code: Entry(code, status, title, reason)
    for code, status, title, reason in (
        (
            INVALID,
            400,
            "Validation failed",
            "The body breaks the contract; errors names each fault.",
        ),
        (MALFORMED, 400, "Malformed body", "The body is not a JSON document in UTF-8."),
        (BAD_PARAMETER, 400, "Bad parameter", "A parameter is out of its bounds."),
        (BAD_SEARCH, 400, "Bad search", "The search expression cannot be understood."),
        (UNSUPPORTED_TYPE, 415, "Unsupported media type", "The body is of a type not taken here."),
        (BAD_METHOD, 405, "Method not allowed", "The path exists, but not with this method."),
        (BAD_REQUEST, 400, "Bad request", "The request is not one that can be understood."),
        (NO_TOKEN, 401, "Token missing", "The request has no bearer token."),
        (MALFORMED_TOKEN, 401, "Token malformed", "The token is not a signed JSON Web Token."),
        (EXPIRED_TOKEN, 401, "Token expired", "The token has expired."),
        (BAD_SIGNATURE, 401, "Signature wrong", "The token's signature does not fit its key."),
        (UNKNOWN_KEY, 401, "Key unknown", "The key that the token names is not known here."),
        (BAD_ALGORITHM, 401, "Algorithm refused", "The token's algorithm is not accepted."),
        (EARLY_TOKEN, 401, "Token not valid yet", "The token becomes valid in the future only."),
        (BAD_ISSUER, 401, "Issuer refused", "Tokens of this issuer are not accepted."),
        (BAD_AUDIENCE, 401, "Audience refused", "The token was issued for others."),
        (BAD_TYPE, 401, "Type refused", "The token is not an access token."),
        (NO_IDENTITY, 401, "No identity", "The token names nobody to record the change under."),
        (FORBIDDEN, 403, "Forbidden", "The caller may not do this."),
        (NOT_FOUND, 404, "Not found", "There is no such resource."),
        (NO_PATH, 404, "No such path", "The API has no such path."),
        (NAME_TAKEN, 409, "Name taken", "Another resource has this name."),
        (MARKED, 409, "Being deleted", "The resource is marked as deleted and can't be changed."),
        (NOT_MARKED, 409, "Not being deleted", "Only what is being deleted can be forced out."),
        (CHANGED_SINCE, 412, "Changed since", "The resource has changed since the version in If-Match."),
        (UNCONDITIONAL, 428, "If-Match required", "A change must name its version in If-Match."),
        (KEY_REUSED, 422, "Key reused", "The Idempotency-Key came with another request before."),
        (TOO_LARGE, 413, "Body too large", "The body is larger than the service takes."),
        (HEADERS_TOO_LARGE, 431, "Headers too large", "The headers are larger than the service takes."),
        (TOO_SLOW, 408, "Too slow", "The request did not arrive in time."),
        (INTERNAL, 500, "Internal error", "The service has a bug; its log has more."),
        (
            NO_DATABASE,
            503,
            "Database unavailable",
            "The database is not reachable; try again later.",
        ),
        (BUSY, 503, "Busy", "The service has more to do than it can; try again later."),
        (NO_KEYS, 503, "Keys unavailable", "No keys to verify tokens with; try again later."),
        (NO_REVIEW, 503, "Review unavailable", "Nobody can tell who may; try again later."),
    )
}


class Problem(Exception):
    """What a handler raises to answer with an error.

    :param code: of an entry of the catalogue
    :param detail: what is wrong with this very request; the entry's reason if not given. It is shown
        to the client: no SQL, no path, no host.
    :param faults: of a validation, each of them
    :param headers: to send along
    """

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.entry = CATALOGUE[code]
        self.faults = list(faults)
        self.headers = dict(headers or {})
        self.detail = detail or "; ".join(f"{f['field']}: {f['message']}" for f in self.faults[:10])
        if len(self.faults) > 10:
            self.detail += f"; and {len(self.faults) - 10} more"
        self.detail = self.detail or self.entry.reason
        if self.entry.status == 503:
            self.headers.setdefault("Retry-After", "5")
        super().__init__(f"{code} {self.detail}")

    def document(self, instance: str, trace_id: str) -> dict[str, Any]:
        """The JSON object that goes to the client.

        :param instance: the path that was asked for
        :param trace_id: the request's id
        """
        href = HREF + self.entry.code
        document: dict[str, Any] = {
            "type": href,
            "title": self.entry.title,
            "status": self.entry.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.entry.code,
            "timestamp": now(),
            "trace_id": trace_id,
            "kind": "Error",
            "id": self.entry.code,
            "href": href,
            "reason": self.detail,
            "operation_id": trace_id,
        }
        if self.faults:
            document["errors"] = self.faults
            document["details"] = [{"field": f["field"], "error": f["message"]} for f in self.faults]
        return document


def refusal(code: str, detail: str = "") -> Problem:
    """A 401 with the challenge that RFC 6750, section 3, asks for.

    :param code: of the catalogue; a token that is missing has no error code there
    :param detail: what is wrong; the entry's reason if not given
    """
    problem = Problem(code, detail)
    challenge = 'Bearer realm="hyperfleet"'
    if code != NO_TOKEN:
        challenge += f', error="invalid_token", error_description="{problem.detail}"'
    problem.headers["WWW-Authenticate"] = challenge
    return problem
