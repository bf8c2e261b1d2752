"""The way to the controller's device port: HTTPS that trusts the fleet's CA alone; answers and waits are bounded.

It knows neither keys nor requests. Redirects are not followed, proxies of the environment are not asked.
"""

import hashlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from socket import SHUT_RDWR
from urllib.parse import urlsplit

from muster_agent.errors import ControllerUntrusted, EnrolmentRefused, EnrolmentUnreachable
from muster_shared.enrolment import ANSWER_BYTES_MAX, CA_PATH, PATH, Answer, decode_answer
from muster_shared.errors import WireError
from muster_shared.ids import Sha256

PORT = 8443
ANSWER_S = 30.0  # A whole exchange; a controller that signs for ten thousand devices answers late, but within this.
CA_BYTES_MAX = 64 * 1024
_BUSY = (429, 503)
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: OpenSSL has it since 1.1.0, Python no name for it.
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@dataclass(frozen=True)
class DevicePort:
    """Where devices ask."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"https://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_device_url(url: str) -> DevicePort:
    """Return the address in `https://host[:8443]`.

    Raises:
        EnrolmentRefused: it is none; `code` is `request`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise EnrolmentRefused("request", f"{url[:80]!r} does not parse: write https://host:{PORT}") from error
    plain = not (parts.username or parts.query or parts.fragment) and parts.path in ("", "/")
    if parts.scheme != "https" or not parts.hostname or not plain or port == 0:
        raise EnrolmentRefused("request", f"{url[:80]!r} is no device port: write https://host:{PORT}")
    return DevicePort(parts.hostname, port or PORT)


def fetch_root(where: DevicePort, pin: Sha256) -> str:
    """Return the fleet CA's root as PEM, once it is known to be the one that `pin` names.

    It is asked on a connection that verifies nothing, and tells nothing: the pin is what makes it trusted.

    Raises:
        ControllerUntrusted: another root was given.
        EnrolmentUnreachable: no answer, or not such a one.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    status, body = _exchange(where, context, "GET", CA_PATH, None, CA_BYTES_MAX)
    if status in _BUSY:
        raise EnrolmentUnreachable(f"{where} has too much to do; it is asked again later")
    if status != 200:
        raise EnrolmentUnreachable(f"{where} answered {status} to {CA_PATH}: it is not a device port of a controller")
    for pem in _certificates(body):
        if hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() == pin:
            return pem
    raise ControllerUntrusted(
        f"{where} has another CA than the token names (SHA-256 {pin[:16]}…): the token is of another controller, or "
        "somebody is in between; compare with `muster ca show` on the controller"
    )


def ask(where: DevicePort, roots: str, request: bytes, clock: Callable[[], float] = time.time) -> Answer:
    """Return the answer to an encoded `SignedRequest`, from whoever `roots` (PEM) vouch for under that host's name.

    A device whose clock is behind finds every certificate not yet valid. That is forgiven: none is issued for the
    future, and what is stolen is old. One that is over is not.

    Raises:
        ControllerUntrusted: whoever answers has no certificate of these roots for this name, or one that is over.
        EnrolmentUnreachable: no answer, or none in our words.
    """
    try:
        status, body = _exchange(where, _context(roots), "POST", PATH, request, ANSWER_BYTES_MAX)
    except _NotYetValid:
        status, body = _exchange(
            where, _context(roots, ignore_time=True), "POST", PATH, request, ANSWER_BYTES_MAX, clock
        )
    try:
        return decode_answer(body)
    except WireError as error:
        raise EnrolmentUnreachable(f"{where} answered {status}, which is no answer to {PATH}: {error}") from error


class _NotYetValid(Exception):
    """A certificate in the chain begins later than our clock says it is."""


def _context(roots: str, *, ignore_time: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # It requires a certificate, and the host's name in it.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=roots)
    except (ssl.SSLError, ValueError) as error:
        raise ControllerUntrusted(f"the CA that this device trusts does not parse ({error}); enrol again") from error
    if ignore_time:
        context.verify_flags |= _NO_CHECK_TIME
    return context


def _exchange(
    where: DevicePort,
    context: ssl.SSLContext,
    method: str,
    path: str,
    body: bytes | None,
    bytes_max: int,
    not_over: Callable[[], float] | None = None,
) -> tuple[int, bytes]:
    """Return status and body of one request on a connection of its own.

    Args:
        not_over: A clock; the peer's certificate must not be over by it. None: OpenSSL has seen to it.
    """
    headers = {"Connection": "close"} | ({} if body is None else {"Content-Type": "application/json"})
    connection = HTTPSConnection(where.host, where.port, timeout=ANSWER_S, context=context)
    try:
        connection.connect()
        with _within(connection, ANSWER_S) as is_late:
            if not_over is not None:
                _check_not_over(connection, not_over(), where)
            connection.request(method, path, body, headers)
            answer: HTTPResponse = connection.getresponse()
            content = answer.read(bytes_max + 1)
            status = answer.status
        if is_late():
            raise TimeoutError(f"not within {ANSWER_S:g} s")
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _NOT_YET_VALID and not_over is None:
            raise _NotYetValid from error
        raise ControllerUntrusted(
            f"{where} is not who this device trusts ({error.verify_message}); check the address, and this device's "
            "clock; a device that has missed a change of the CA is enrolled again"
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        said = getattr(error, "strerror", None) or error or type(error).__name__
        raise EnrolmentUnreachable(
            f"{where} does not answer ({said}); check the address, the network, and that the controller runs"
        ) from error
    finally:
        connection.close()
    if len(content) > bytes_max:
        raise EnrolmentUnreachable(f"{where} answered more than {bytes_max} bytes: it is not a device port")
    return status, content


@contextmanager
def _within(connection: HTTPSConnection, seconds: float) -> Iterator[Callable[[], bool]]:
    """Cut the connection after `seconds`, however lively a trickle comes; what is yielded tells whether it was."""
    late = threading.Event()
    sock = connection.sock  # http.client forgets it when the answer is the last of the connection.

    def cut() -> None:
        late.set()
        with suppress(OSError):
            sock.shutdown(SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late.is_set
    finally:
        timer.cancel()


def _check_not_over(connection: HTTPSConnection, now: float, where: DevicePort) -> None:
    shown = connection.sock.getpeercert() if isinstance(connection.sock, ssl.SSLSocket) else None
    over_at = (shown or {}).get("notAfter")
    if not isinstance(over_at, str) or ssl.cert_time_to_seconds(over_at) <= now:
        raise ControllerUntrusted(f"the certificate of {where} is over; the controller renews it when it runs")


def _certificates(body: bytes) -> list[str]:
    """Return each certificate in PEM text; whatever stands around them is nobody's."""
    try:
        text = body.decode("ascii")
    except UnicodeDecodeError:
        return []
    found = []
    for part in text.split(_BEGIN)[1:]:
        inner, end, _ = part.partition(_END)
        if end:
            found.append(f"{_BEGIN}{inner}{_END}\n")
    return found
