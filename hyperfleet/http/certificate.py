"""The certificate of the service, which may be renewed while it serves."""

import logging
import ssl
from pathlib import Path

from hyperfleet.auth.watched import stamp
from hyperfleet.errors import ConfigurationError

logger = logging.getLogger(__name__)


class Certificate:
    """A certificate with its key, for TLS 1.2 or newer; read again when their files change, as
    Kubernetes' API server does. Connections keep the one that they began with.

    :param cert_file: the chain, PEM
    :param key_file: PEM
    Raises ConfigurationError when a file is not named, cannot be read, or the two do not fit.
    """

    def __init__(self, cert_file: Path | None, key_file: Path | None) -> None:
        if cert_file is None or key_file is None:
            raise ConfigurationError("HTTPS needs --https-cert-file and --https-key-file.")
        self.cert_file, self.key_file = cert_file, key_file
        self.stamps = self._stamps()
        # What servers are given, which each new connection leaves for the latest: in one that is in use,
        # a certificate would for a moment be without its key.
        self.context = self.latest = self._loaded()
        self.context.sni_callback = self._take_latest

    def renew(self) -> None:
        """Reads the files again if they have changed. Where they cannot be used, the last certificate
        stays in force, which is said once.
        """
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
        """Called at the beginning of each connection, also of one that names no server."""
        connection.context = self.latest

    def _asked(self) -> str:
        # Otherwise OpenSSL asks on the terminal.
        raise ConfigurationError(f"{self.key_file}: a key with a passphrase cannot be used.")

    def _stamps(self) -> tuple[object, object]:
        return stamp(self.cert_file), stamp(self.key_file)
