"""The name that somebody meant who mistyped it."""

import difflib
from collections.abc import Iterable

# How alike two names have to be, from 0 to 1.
ALIKE = 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like the given one, whatever their case; None when none is."""
    by_spelling = {_plain(one): one for one in known}
    found = difflib.get_close_matches(_plain(name[:200]), by_spelling, n=1, cutoff=ALIKE)
    return by_spelling[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
