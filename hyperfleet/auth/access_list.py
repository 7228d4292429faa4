"""The access list: which claims of a token admit a caller."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

Rule = tuple[str, re.Pattern[str]]


def parse_rules(text: str) -> list[Rule]:
    """Parses the rules of an access list from YAML.

    Each item is like ``- claim: email`` with ``pattern: ^.*@redhat\\.com$``. Raises ValueError for other
    text, an invalid pattern, and an empty list: a truncated file must not admit everybody, nor lock
    everybody out.
    """
    try:
        items = yaml.safe_load(text)
    except (yaml.YAMLError, LookupError, RecursionError, ValueError) as error:
        raise ValueError(f"this is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(items, list) or not items:
        raise ValueError("this is not a list of items with a claim and a pattern")
    rules = []
    for item in items:
        if not isinstance(item, dict) or item.keys() != {"claim", "pattern"}:
            raise ValueError("each item must have a claim and a pattern, and nothing else")
        claim, pattern = item["claim"], item["pattern"]
        if not isinstance(claim, str) or not isinstance(pattern, str):
            raise ValueError("a claim and a pattern must be strings")
        try:
            rules.append((claim, re.compile(pattern)))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{pattern[:200]!r} is not a regular expression: {error}") from None
    return rules


def matches(rules: Sequence[Rule], claims: Mapping[str, Any]) -> bool:
    """Returns whether any rule's pattern is found in the claim that it names."""
    for claim, pattern in rules:
        value = claims.get(claim)
        # "$" would also match before a final line break.
        if isinstance(value, str) and value.isprintable() and pattern.search(value):
            return True
    return False
