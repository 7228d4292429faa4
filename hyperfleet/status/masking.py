"""Hides what looks like a secret, by the name that it has."""

from collections.abc import Mapping
from typing import Any

# Parts of names; some are broad, since it is worse to show a secret than to hide what is none.
SECRET = (
    *("password", "passphrase", "secret", "token", "credential", "auth", "bearer", "private"),
    *("apikey", "api_key", "accesskey", "accountkey", "encryptionkey", "registrykey", "servicekey"),
    *("signingkey", "sshkey", "cert", "kubeconfig", "connection"),
)
HIDDEN = "***REDACTED***"
# Levels of maps and lists; what lies deeper is left out.
DEEPEST = 20


class TooLarge(Exception):
    """A value with more to it than was allowed."""


class Masked:
    """Makes copies of JSON values without what looks like a secret.

    :param most: how large all of them may be together: the characters of their texts and names, and
        eight for each value

    ``longest`` is how long the longest of their lists and maps is.
    """

    def __init__(self, most: int) -> None:
        self.left = self.most = most
        self.longest = 0

    @property
    def size(self) -> int:
        """How large what was copied or counted is."""
        return self.most - self.left

    def copy(self, value: Any, depth: int = 0) -> Any:
        """The copy. Raises TooLarge."""
        self._take(8 + (len(value) if isinstance(value, str) else 0))
        if isinstance(value, Mapping | list | tuple):
            self.longest = max(self.longest, len(value))
        if isinstance(value, Mapping):
            return {} if depth >= DEEPEST else {k: self._member(k, v, depth) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [] if depth >= DEEPEST else [self.copy(one, depth + 1) for one in value]
        return value

    def count(self, value: Any) -> None:
        """Counts what is shown as it is. Raises TooLarge."""
        if isinstance(value, Mapping):
            self._take(8 + sum(map(len, value)))
            for one in value.values():
                self.count(one)
        elif isinstance(value, list):
            self.longest = max(self.longest, len(value))
            for one in value:
                self.count(one)
        else:
            self._take(8 + (len(value) if isinstance(value, str) else 0))

    def _member(self, name: str, value: Any, depth: int) -> Any:
        self._take(len(name))
        known = name.lower()
        hidden = any(part in known for part in SECRET)
        return HIDDEN if hidden else self.copy(value, depth + 1)

    def _take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise TooLarge
