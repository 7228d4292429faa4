"""Masks values that look like secrets, judging by their names."""

from collections.abc import Mapping
from typing import Any

# Parts of names. Some are broad, since showing a secret is worse than hiding a harmless value.
SECRET = (
    *("password", "passphrase", "secret", "token", "credential", "auth", "bearer", "private"),
    *("apikey", "api_key", "accesskey", "accountkey", "encryptionkey", "registrykey", "servicekey"),
    *("signingkey", "sshkey", "cert", "kubeconfig", "connection"),
)
HIDDEN = "***REDACTED***"
# The deepest level of nested maps and lists; anything below is left out.
DEEPEST = 20


class TooLarge(Exception):
    """Raised if the values are larger than allowed."""


class Masked:
    """Copies JSON values, masking what looks like a secret.

    :param most: the allowed size of all of them together: the characters of their strings and names,
        plus eight for each value

    ``longest`` is the length of the longest list or map among them.
    """

    def __init__(self, most: int) -> None:
        self.left = self.most = most
        self.longest = 0

    @property
    def size(self) -> int:
        """The size of everything copied or counted so far."""
        return self.most - self.left

    def copy(self, value: Any, depth: int = 0) -> Any:
        """Returns the masked copy. Raises TooLarge."""
        self._take(8 + (len(value) if isinstance(value, str) else 0))
        if isinstance(value, Mapping | list | tuple):
            self.longest = max(self.longest, len(value))
        if isinstance(value, Mapping):
            return {} if depth >= DEEPEST else {k: self._member(k, v, depth) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [] if depth >= DEEPEST else [self.copy(one, depth + 1) for one in value]
        return value

    def count(self, value: Any) -> None:
        """Adds the size of a value that is used as it is. Raises TooLarge."""
        if isinstance(value, Mapping):
            self._take(8 + sum(map(len, value)))
            for one in value.values():
                self.count(one)
        elif isinstance(value, list):
            self._take(8)
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
