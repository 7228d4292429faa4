"""The known name that a misspelt one was probably meant to be, and how messages say so."""

import difflib
from collections.abc import Collection, Iterable

# How similar two names must be, from 0 to 1.
ALIKE = 0.6


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name most similar to the given one, ignoring case; None if none is similar."""
    by_spelling = {_plain(one): one for one in known}
    found = difflib.get_close_matches(_plain(name[:200]), by_spelling, n=1, cutoff=ALIKE)
    return by_spelling[found[0]] if found else None


def expected(name: str, known: Collection[str]) -> str:
    """Returns what was expected instead of a name: the nearest known one or, if none is near, any."""
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"expected one of {', '.join(known)}"


def hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Returns the end of a sentence that names the nearest known name; empty if none is near."""
    near = nearest(name, known)
    return f"; did you mean {prefix}{near}?" if near else ""


def question(name: str, known: Iterable[str]) -> str:
    """Returns the same as a sentence of its own."""
    near = nearest(name, known)
    return f" Did you mean {near}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
