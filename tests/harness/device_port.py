"""A controller's device port as a device sees it: a fleet CA of its own, TLS, and the answers that a test chooses.

It speaks `muster_shared.enrolment` and checks what a controller must check of a request, without the controller's code.
"""

import hashlib
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from muster_shared.enrolment import (
    CA_PATH,
    PATH,
    REQUEST_BYTES_MAX,
    Answer,
    CertificateRequest,
    EnrolmentToken,
    Granted,
    Refused,
    Waiting,
    decode_signed,
    encode,
    signed_bytes,
)
from muster_shared.ids import FleetId, Sha256

FLEET = FleetId("harbour")
WEEK_S = 7 * 86400.0


@dataclass
class Authority:
    """A root and what it has issued."""

    name: str = "root"
    begins: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(hours=1))

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = _issue(
            self.name, self.key.public_key(), None, self.key, self.begins, 3650 * 86400.0, ca=True
        )
        self.middle_key = ec.generate_private_key(ec.SECP256R1())
        self.middle = _issue(
            "middle", self.middle_key.public_key(), self.certificate, self.key, self.begins, 365 * 86400.0, ca=True
        )

    @property
    def pem(self) -> str:
        return _pem(self.certificate)

    @property
    def sha256(self) -> Sha256:
        return Sha256(hashlib.sha256(self.certificate.public_bytes(serialization.Encoding.DER)).hexdigest())

    def device(self, public: ec.EllipticCurvePublicKey, fleet: str, device: str, life_s: float) -> str:
        """Return a device's certificate and the intermediate's, PEM."""
        leaf = _issue(device, public, self.middle, self.middle_key, self.begins, life_s, fleet=fleet)
        return _pem(leaf) + _pem(self.middle)

    def server(self, folder: Path, life_s: float = 30 * 86400.0, host: str = "127.0.0.1") -> ssl.SSLContext:
        """Return a server's context, with a certificate for `host`; its files are in `folder`."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _issue("server", key.public_key(), self.middle, self.middle_key, self.begins, life_s, host=host)
        chain, private = folder / f"{self.name}.crt", folder / f"{self.name}.key"
        chain.write_text(_pem(leaf) + _pem(self.middle) + self.pem)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, private)
        return context


class DevicePort:
    """The server. `answers` are given first, one a request; then it grants."""

    def __init__(self, folder: Path, authority: Authority, *, life_s: float = 30 * 86400.0) -> None:
        self.authority = authority
        self.token = EnrolmentToken(id="t-1", secret="s" * 43, ca=authority.sha256)
        self.broker_url = "mqtts://127.0.0.1:8883"
        self.trust_root = b'{"root": 1}'
        self.labels = {"site": "berlin"}
        self.roots = authority.pem
        self.given_ca = authority.pem.encode()
        self.life_s = WEEK_S
        self.now: Callable[[], float] = time.time
        self.answers: list[Answer | bytes] = []
        self.requests: list[CertificateRequest] = []
        self.raw: list[bytes] = []
        self._identities: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200 if self.path == CA_PATH else 404, outer.given_ca if self.path == CA_PATH else b"no")

            def do_POST(self) -> None:
                body = self.rfile.read(min(int(self.headers["Content-Length"]), REQUEST_BYTES_MAX))
                outer.raw.append(body)
                said = outer.answer(body) if self.path == PATH else b"no"
                self._answer(*_status(said))

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                return  # Devices that hang up during the handshake are what some tests are about.

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.socket = authority.server(folder, life_s).wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, body: bytes) -> Answer | bytes:
        """Return the answer to one request, after the checks of a controller."""
        signed, request = decode_signed(body)
        identity = serialization.load_pem_public_key(request.identity.encode())
        assert isinstance(identity, ec.EllipticCurvePublicKey)
        identity.verify(signed.signature, signed_bytes(signed.body), ec.ECDSA(hashes.SHA256()))
        csr = x509.load_pem_x509_csr(request.csr.encode())
        assert csr.is_signature_valid
        self.requests.append(request)
        now = self.now()
        if self.answers:
            return self.answers.pop(0)
        if abs(request.asked_at - now) > 300:
            return Refused(code="clock", reason="your clock is off", server_time=now)
        if request.token_id:
            if request.token_secret != self.token.secret:
                return Refused(code="token", reason="no such token", server_time=now)
            self._identities[request.device] = request.identity
        elif self._identities.get(request.device) != request.identity:
            return Refused(code="device", reason="another identity key", server_time=now)
        public = csr.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        return self.grant(public, request.device)

    def grant(self, public: ec.EllipticCurvePublicKey, device: str, fleet: str = FLEET) -> Granted:
        """Return a certificate and all that goes with it."""
        now = self.now()
        return Granted(
            certificate=self.authority.device(public, fleet, device, self.life_s),
            ca=self.roots,
            broker_url=self.broker_url,
            device_url=self.url,
            trust_root=self.trust_root,
            fleet=FLEET,
            labels=self.labels,
            renew_at=now + self.life_s / 2,
            expires_at=now + self.life_s,
            server_time=now,
        )


def _status(said: Answer | bytes) -> tuple[int, bytes]:
    match said:
        case bytes():
            return 200, said
        case Granted():
            return 200, encode(said)
        case Waiting():
            return 202, encode(said)
        case Refused():
            return 403, encode(said)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _issue(
    name: str,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    key: ec.EllipticCurvePrivateKey,
    begins: datetime,
    life_s: float,
    *,
    ca: bool = False,
    fleet: str = "test",
    host: str | None = None,
) -> x509.Certificate:
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    issued_by = subject if issuer is None else issuer.subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issued_by)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(seconds=life_s))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not ca:
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if host is None else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if host is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
    return builder.sign(key, hashes.SHA256())
