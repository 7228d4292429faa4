"""Which texts PostgreSQL can hold."""

import re

# The character NUL, and half a surrogate pair.
FORBIDDEN = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> bool:
    """Whether PostgreSQL can hold a text: any Unicode but NUL, and no half surrogate pair."""
    return not FORBIDDEN.search(text)
