"""A mixer's certificate: asked for at the controller's device port, the first as every other, and renewed in time.

    identity key signs ─▶ POST request ─▶ Granted: checked, written into the folder, taken at the next connect

A renewal needs no valid certificate, so a mixer that was off for months comes back by itself. The thread asks from half
of a certificate's life on; while the controller is away, the broker takes the one that is there.
"""

import secrets
import ssl
import threading
from collections.abc import Callable
from typing import Final

import httpx
import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from muster_controller.client_names import mixer_name
from muster_controller.mixer.errors import MixerError
from muster_controller.mixer.folder import Connection, MixerFolder
from muster_shared.enrolment import (
    ANSWER_BYTES_MAX,
    PATH,
    Answer,
    CertificateRequest,
    Granted,
    Refused,
    SignedRequest,
    decode_answer,
    encode,
    signed_bytes,
)
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId
from muster_shared.link import BrokerUrlInvalid, parse_broker_url

TIMEOUT_S: Final = 20.0
LOOK_S: Final = 60.0
RETRY_S: Final = 600.0

log = structlog.get_logger()


class CertificateUnavailable(MixerError):
    """The controller does not answer, or not as itself; what is there goes on to hold."""


class CertificateRefused(MixerError):
    """The controller gives this mixer no certificate. `code` as in `muster_shared.enrolment.Refused`."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


def ensure(folder: MixerFolder, clock: Callable[[], float]) -> Connection:
    """Return how to reach the broker, with a certificate that holds: asked for if there is none or it is half over.

    A controller that is away is no trouble while the certificate holds. Times are Unix seconds.

    Raises:
        MixerFolderInvalid: nobody admitted it, or the folder is damaged.
        CertificateRefused, CertificateUnavailable
    """
    connection = folder.connection()
    if connection is not None and clock() < connection.renew_at:
        return connection
    try:
        return renew(folder, clock)
    except CertificateUnavailable as error:
        if connection is None or clock() >= connection.expires_at:
            raise
        log.warning("certificate_not_renewed", error=str(error), expires_at=connection.expires_at)
        return connection


def renew(folder: MixerFolder, clock: Callable[[], float]) -> Connection:
    """Ask for a certificate now, and keep it. Raises as `ensure`."""
    admitted, mixer = folder.admitted(), folder.card().mixer
    identity, session = folder.identity_key(), ec.generate_private_key(ec.SECP256R1())
    request = CertificateRequest(
        fleet=admitted.fleet,
        device=DeviceId(mixer),
        role="mixer",
        csr=_csr(session, mixer),
        identity=identity.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        nonce=secrets.token_hex(16),
        asked_at=clock(),
    )
    answer = _ask(folder.device_url, folder.roots, _signed(request, identity))
    if isinstance(answer, Refused) and answer.code == "clock":
        again = msgspec.structs.replace(request, asked_at=answer.server_time, nonce=secrets.token_hex(16))
        answer = _ask(folder.device_url, folder.roots, _signed(again, identity))
    if isinstance(answer, Refused):
        if answer.code == "busy":
            raise CertificateUnavailable(answer.reason)
        raise CertificateRefused(answer.code, answer.reason)
    if not isinstance(answer, Granted):
        raise CertificateUnavailable("the controller lets this mixer wait, which it does to devices alone; upgrade it")
    _check(answer, session, admitted.fleet, mixer)
    try:
        folder.put(session, answer)
    except OSError as error:
        raise MixerError(f"{folder.path} cannot be written ({error.strerror or error}); free some space") from error
    log.info("certificate_renewed", mixer=mixer, expires_at=answer.expires_at)
    connection = folder.connection()
    assert connection is not None, "it was written just now"
    return connection


class CertificateThread:
    """Renews from `start` to `stop`. The connection takes what is renewed at its next connect."""

    def __init__(self, folder: MixerFolder, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificate", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End, within a request's time-out. Before `start` it does nothing."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(TIMEOUT_S + 1.0)

    def _run(self) -> None:
        wait_s = LOOK_S
        while not self._stopping.wait(wait_s):
            wait_s = LOOK_S
            try:
                connection = self._folder.connection()
                if connection is None or self._clock() >= connection.renew_at:
                    renew(self._folder, self._clock)
            except MixerError as error:
                wait_s = RETRY_S
                log.warning("certificate_not_renewed", error=str(error), remedy="it is tried again every ten minutes")


def _ask(device_url: str, roots: str, raw: bytes) -> Answer:
    try:
        context = ssl.create_default_context(cadata=roots)
        with (
            httpx.Client(verify=context, timeout=TIMEOUT_S, trust_env=False) as http,
            http.stream(
                "POST", f"{device_url}{PATH}", content=raw, headers={"Content-Type": "application/json"}
            ) as said,
        ):
            body = b""
            for piece in said.iter_bytes():
                body += piece
                if len(body) > ANSWER_BYTES_MAX:
                    break
        return decode_answer(body)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise CertificateUnavailable(
            f"the device port {device_url} does not answer ({error}); check that the controller runs, its address, and "
            "that it has the CA that this mixer was admitted under"
        ) from error
    except WireError as error:
        raise CertificateUnavailable(f"{device_url} is no device port of a controller: {error}") from error


def _signed(request: CertificateRequest, identity: ec.EllipticCurvePrivateKey) -> bytes:
    body = encode(request)
    return encode(SignedRequest(body=body, signature=identity.sign(signed_bytes(body), ec.ECDSA(SHA256()))))


def _csr(session: ec.EllipticCurvePrivateKey, mixer: str) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, mixer)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(session, SHA256())
    return made.public_bytes(Encoding.PEM).decode("ascii")


def _check(granted: Granted, session: ec.EllipticCurvePrivateKey, fleet: FleetId, mixer: str) -> None:
    """Raise CertificateUnavailable unless all that was granted fits what was asked for."""
    try:
        leaf = x509.load_pem_x509_certificates(granted.certificate.encode("ascii"))[0]
        name = [str(each.value) for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        parse_broker_url(granted.broker_url)
        fits = granted.fleet == fleet and name == [mixer_name(fleet, mixer)]
        fits = fits and leaf.public_key() == session.public_key()
    except (ValueError, BrokerUrlInvalid, WireError) as error:
        raise CertificateUnavailable(f"what the controller granted cannot be used ({error}); see its log") from error
    if not fits:
        raise CertificateUnavailable("the controller granted a certificate of somebody else; see its log")
