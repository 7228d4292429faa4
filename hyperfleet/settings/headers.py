"""Which headers settings may name for what a gateway sends."""

import re

# RFC 9110, 5.6.2.
HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Clients send these automatically, or they have a secret that must not become a caller's name.
NO_TOKENS = ("cookie", "set-cookie")
NO_NAMES = (
    *NO_TOKENS,
    *("authorization", "proxy-authorization", "x-forwarded-authorization", "x-api-key", "x-auth-token"),
)
# Clients, proxies and HTTP itself use these for other purposes, so a gateway lets them through. Names
# that end with a hyphen stand for all names that begin with them.
TAKEN = (
    *("accept", "accept-", "connection", "content-", "date", "expect", "forwarded", "from", "host"),
    *("hyperfleet-position", "idempotency-key", "if-", "keep-alive", "origin", "prefer", "range"),
    *("referer", "sec-", "te", "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade"),
    *("user-agent", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port"),
    *("x-forwarded-proto", "x-real-ip", "x-request-id"),
)


def taken(header: str) -> bool:
    """Whether requests use the header for something else."""
    name = header.lower()
    return name in TAKEN or name.startswith(tuple(one for one in TAKEN if one.endswith("-")))
