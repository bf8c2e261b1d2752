"""The certificate of page and API: loaded again when its files change, and renewed in time where the fleet CA made it.

It neither listens nor decides whom to trust.
"""

import ssl
from collections.abc import Callable
from pathlib import Path

import structlog

from muster_controller.config import TlsFiles
from muster_controller.errors import ServerUnavailable

LOOK_S = 60.0

log = structlog.get_logger()


class PageCertificate:
    """Load it, give `context` to the server, and let `turn` run from time to time.

    Args:
        renew: Writes a new certificate into `files` and returns when the one after it is due, Unix seconds; None where
            somebody else renews it.
    """

    def __init__(self, files: TlsFiles, clock: Callable[[], float], renew: Callable[[], float] | None = None) -> None:
        self._files = files
        self._clock = clock
        self._renew = renew
        self._due = float("inf") if renew is None else renew()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._loaded = self._seen()
        try:
            self.context.load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:
            raise ServerUnavailable(
                f"{files.certificate} and {files.key} are no certificate with its key, PEM without a password: {error}"
            ) from error

    def turn(self) -> None:
        """Renew what is due, and load what has changed; what does not fit is said, and the former goes on."""
        if self._renew is not None and self._clock() >= self._due:
            self._due = self._renew()
        seen = self._seen()
        if seen == self._loaded:
            return
        self._loaded = seen
        try:
            self.context.load_cert_chain(self._files.certificate, self._files.key)
            log.info("page_certificate_loaded", certificate=str(self._files.certificate))
        except (OSError, ssl.SSLError) as error:
            log.warning("page_certificate_refused", certificate=str(self._files.certificate), reason=str(error))

    def _seen(self) -> tuple[int, ...]:
        return tuple(_changed_at(file) for file in (self._files.certificate, self._files.key))


def _changed_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
