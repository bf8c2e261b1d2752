"""A device that asks for certificates as decision 0013 says, with keys in memory: for tests of enrolment."""

import http.client
import ssl
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from muster_shared.enrolment import (
    CA_PATH,
    PATH,
    Answer,
    CertificateRequest,
    EnrolmentToken,
    SignedRequest,
    decode_answer,
    encode,
    signed_bytes,
)
from muster_shared.ids import DeviceId, FleetId


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def csr(key: ec.EllipticCurvePrivateKey, name: str = "whoever") -> str:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


@dataclass
class AskingDevice:
    """One device: its name and its identity key. The session key is another with every request."""

    name: str
    identity: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    session: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    def request(self, at: float, token: EnrolmentToken | None = None, **changes: Any) -> CertificateRequest:
        """A request of now; `changes` are of its fields."""
        self.session = new_key()
        made = CertificateRequest(
            fleet=FleetId("test"),
            device=DeviceId(self.name),
            csr=csr(self.session),
            identity=public_pem(self.identity),
            nonce=token_hex(16),
            asked_at=at,
            token_id="" if token is None else token.id,
            token_secret="" if token is None else token.secret,
        )
        return msgspec.structs.replace(made, **changes)

    def signed(self, request: CertificateRequest) -> bytes:
        body = encode(request)
        signature = self.identity.sign(signed_bytes(body), ec.ECDSA(hashes.SHA256()))
        return encode(SignedRequest(body=body, signature=signature))

    def asks(self, at: float, token: EnrolmentToken | None = None, **changes: Any) -> bytes:
        """What goes over the network."""
        return self.signed(self.request(at, token, **changes))


def fetch_ca(port: int) -> bytes:
    """Return the CA's root as the device port gives it to anybody."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _exchange(port, context, "GET", CA_PATH, None)[1]


def post(port: int, ca: bytes, raw: bytes, host: str = "localhost") -> tuple[int, Answer]:
    """Send a request to the device port, trusting `ca` alone, and return the status and the answer."""
    context = ssl.create_default_context(cadata=ca.decode())
    status, body = _exchange(port, context, "POST", PATH, raw, host)
    return status, decode_answer(body)


def _exchange(
    port: int, context: ssl.SSLContext, method: str, path: str, body: bytes | None, host: str = "localhost"
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=20.0)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
