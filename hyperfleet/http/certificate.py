"""The TLS certificate of the service, which may be renewed while it serves."""

import logging
import ssl
from pathlib import Path

from hyperfleet.errors import ConfigurationError
from hyperfleet.watched import stamp

logger = logging.getLogger(__name__)


class Certificate:
    """A certificate with its key, for TLS 1.2 or newer, reloaded when either file changes.

    The API server of Kubernetes does the same. Open connections keep the certificate they started with.

    :param cert_file: the certificate chain, PEM
    :param key_file: its private key, PEM
    Raises ConfigurationError if a file is not named or cannot be read, or if the two do not match.
    """

    def __init__(self, cert_file: Path | None, key_file: Path | None) -> None:
        if cert_file is None or key_file is None:
            raise ConfigurationError("HTTPS needs --https-cert-file and --https-key-file.")
        self.cert_file, self.key_file = cert_file, key_file
        self.stamps = self._stamps()
        # Servers get the first context, and each new connection switches to the latest one. Replacing
        # the certificate of a context in use would leave it without its key for a moment.
        self.context = self.latest = self._loaded()
        self.context.sni_callback = self._take_latest

    def renew(self) -> None:
        """Reloads changed files; if they are unusable, logs that once and keeps the old certificate."""
        stamps = self._stamps()
        if stamps == self.stamps:
            return
        self.stamps = stamps
        try:
            self.latest = self._loaded()
        except ConfigurationError as error:
            logger.error("the last certificate stays in force: %s", error)
        else:
            logger.info("the certificate %s was read again", self.cert_file)

    def _loaded(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert_file, self.key_file, self._asked)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"{self.cert_file}, {self.key_file}: {error}") from None
        return context

    def _take_latest(self, connection: ssl.SSLObject, _name: str | None, _given: ssl.SSLContext) -> None:
        """Called by OpenSSL at the start of each connection, even if the client names no server."""
        connection.context = self.latest

    def _asked(self) -> str:
        # Without this, OpenSSL would prompt for the passphrase on the terminal.
        raise ConfigurationError(f"{self.key_file}: a key with a passphrase cannot be used.")

    def _stamps(self) -> tuple[object, object]:
        return stamp(self.cert_file), stamp(self.key_file)
