"""Which strings PostgreSQL can store."""

import re

# NUL, and halves of surrogate pairs.
FORBIDDEN = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> bool:
    """Returns whether PostgreSQL can store a string: any Unicode but NUL and lone surrogates."""
    return not FORBIDDEN.search(text)
