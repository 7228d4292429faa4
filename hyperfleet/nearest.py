"""The known name that a misspelt one was probably meant to be."""

import difflib
from collections.abc import Iterable

# How similar two names must be, from 0 to 1.
ALIKE = 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name most similar to the given one, ignoring case; None if none is similar."""
    by_spelling = {_plain(one): one for one in known}
    found = difflib.get_close_matches(_plain(name[:200]), by_spelling, n=1, cutoff=ALIKE)
    return by_spelling[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
