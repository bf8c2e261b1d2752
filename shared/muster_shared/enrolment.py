"""Enrolment on the wire: the token an operator hands out, what a device asks for, and what it gets.

    GET  https://CONTROLLER:8443/enrol/v1/ca            the fleet CA's root, PEM: the device checks it against the
                                                        token's SHA-256 before it trusts the next connection with it
    POST https://CONTROLLER:8443/enrol/v1/certificate   SignedRequest -> Granted (200) | Waiting (202) | Refused (4xx)

The first is asked on a connection that verifies nothing and carries nothing secret; the second on a connection that
trusts that root alone, and checks the host's name. So both work with every TLS library.

One document enrols and renews. `body` is the encoded `CertificateRequest`, signed as those very bytes by the device's
identity key (ECDSA P-256, SHA-256, DER) behind `CONTEXT`, so that this signature fits nothing else. Decision 0013.
No cryptography happens here: keys and certificates are PEM and DER to it.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Literal

import msgspec

from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, Sha256
from muster_shared.undecodable import UNDECODABLE, reason

PATH = "/enrol/v1/certificate"
CA_PATH = "/enrol/v1/ca"
CONTEXT = b"muster enrolment v1\0"
"""What stands before the body when it is signed."""
REQUEST_BYTES_MAX = 16 * 1024
ANSWER_BYTES_MAX = 256 * 1024
LABELS_MAX = 32
LABEL_KEY_MAX = 64
LABEL_VALUE_MAX = 256
TEXT_MAX = 128
CLOCK_SKEW_S = 300.0
"""How far a request's clock may be from the controller's. Beyond it the answer says the time, and the device asks
again with that: a device whose clock is years off can enrol all the same."""

_PREFIX = "muster1."
_NONCE = re.compile(r"[0-9a-f]{32}")


class EnrolmentToken(msgspec.Struct, frozen=True, kw_only=True):
    """What `muster enroll-token create` prints, decoded."""

    id: str
    secret: str
    """43 characters of base64url: 256 random bits."""
    ca: Sha256
    """SHA-256 of the DER of the fleet CA's root certificate."""

    def __str__(self) -> str:
        """Return it as people copy it."""
        return _PREFIX + urlsafe_b64encode(msgspec.json.encode(self)).rstrip(b"=").decode()

    def __repr__(self) -> str:
        return f"EnrolmentToken(id={self.id!r}, secret=…)"


class CertificateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a device asks for. Fields that are only for enrolment are empty in a renewal."""

    fleet: FleetId
    """May be empty with a token: which fleet it is for, the controller knows."""
    device: DeviceId
    csr: str
    """PEM: of the session key; its subject is ignored."""
    identity: str
    """PEM (SubjectPublicKeyInfo) of the identity key, which signs this request."""
    nonce: str
    """Hex, 32 characters: no two requests are the same."""
    asked_at: float
    """Unix seconds by the device's clock."""
    role: Literal["device", "mixer"] = "device"
    """A mixer has no token: an operator admits it by its identity key, and `device` is its name."""
    token_id: str = ""
    token_secret: str = ""
    """Empty for renewals. The request travels inside TLS to a server whose CA the token pins."""
    serial: str = ""
    """The hardware's serial number, for tokens that are bound to a list of them."""
    labels: dict[str, str] = {}
    agent_version: str = ""
    device_class: str = ""


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True):
    body: bytes
    """An encoded CertificateRequest (base64 in JSON)."""
    signature: bytes
    """DER, over CONTEXT + body."""


class Granted(msgspec.Struct, frozen=True, kw_only=True, tag="granted"):
    """A certificate, and all that a device needs beside it."""

    certificate: str
    """PEM: the device's, then the intermediate's."""
    ca: str
    """PEM: the roots that the device is to trust for broker and controller (several while one rotates)."""
    broker_url: str
    """mqtts://host:port, as devices reach it."""
    device_url: str
    """https://host:port of the device port: where to renew."""
    trust_root: bytes
    """The newest TUF root (JSON); empty where the controller is not initialised yet."""
    fleet: FleetId
    """Whose certificate it is: its organisation."""
    labels: dict[str, str]
    """Those of the token, as they were when the device enrolled: they go before the device's own of the same name."""
    renew_at: float
    expires_at: float
    server_time: float


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """What a mixer is given when an operator admitted it: all that it needs to ask for certificates."""

    v: Literal[1] = 1
    mixer: str
    fleet: FleetId
    identity_fingerprint: Sha256
    """Of the identity key that was admitted: whose this is."""
    device_url: str
    ca: str
    """PEM: the roots to trust."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True, tag="waiting"):
    """Somebody has to accept this device first; ask again after `retry_s`."""

    retry_s: float
    reason: str
    server_time: float


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """No certificate. `clock` alone is worth another try at once."""

    code: Literal["token", "device", "revoked", "serial", "clock", "request", "busy"]
    reason: str
    """For people, and what to do next."""
    server_time: float


Answer = Granted | Waiting | Refused

_token = msgspec.json.Decoder(EnrolmentToken)
_signed = msgspec.json.Decoder(SignedRequest)
_request = msgspec.json.Decoder(CertificateRequest)
_answer: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def parse_token(text: str) -> EnrolmentToken:
    """Return the token that an operator gave. Raises WireError, which never repeats the secret."""
    try:
        if not text.startswith(_PREFIX) or len(text) > 512:
            raise ValueError("prefix")
        packed = text.removeprefix(_PREFIX).encode("ascii")
        token = _token.decode(urlsafe_b64decode(packed + b"=" * (-len(packed) % 4)))
        ids.name(token.id, "token")
        ids.sha256(token.ca)
    except (ValueError, Base64Error, WireError, *UNDECODABLE) as error:
        raise WireError("this is no enrolment token; it begins with muster1. and must be copied whole") from error
    return token


def signed_bytes(body: bytes) -> bytes:
    """Return what the identity key signs for `body`."""
    return CONTEXT + body


def decode_signed(raw: bytes) -> tuple[SignedRequest, CertificateRequest]:
    """Return a request as it came, not yet verified. Raises WireError."""
    if len(raw) > REQUEST_BYTES_MAX:
        raise WireError(f"a request of {len(raw)} bytes is over the cap of {REQUEST_BYTES_MAX}")
    try:
        signed = _signed.decode(raw)
        request = _request.decode(signed.body)
    except UNDECODABLE as error:
        raise WireError(f"not a certificate request: {reason(error)}") from error
    if request.fleet or not request.token_id:
        ids.name(request.fleet, "fleet")
    ids.name(request.device, "device")
    if not _NONCE.fullmatch(request.nonce):
        raise WireError("the nonce is not 32 characters of lower-case hex")
    texts = {"token_id": request.token_id, "token_secret": request.token_secret, "serial": request.serial}
    texts |= {"agent_version": request.agent_version, "device_class": request.device_class}
    for what, text in texts.items():
        if len(text) > TEXT_MAX or not text.isprintable():
            raise WireError(f"{what} is over {TEXT_MAX} characters, or not all of them can be printed")
    check_labels(request.labels)
    return signed, request


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise WireError unless these may be the labels of a device."""
    if len(labels) > LABELS_MAX:
        raise WireError(f"more than {LABELS_MAX} labels")
    for key, value in labels.items():
        if not key or len(key) > LABEL_KEY_MAX or len(value) > LABEL_VALUE_MAX:
            raise WireError(f"label {key[:80]!r}: a key has 1 to {LABEL_KEY_MAX} characters, a value {LABEL_VALUE_MAX}")
        if not (key.isprintable() and value.isprintable()):
            raise WireError(f"label {key[:80]!r} has characters that cannot be printed")


def decode_answer(raw: bytes) -> Answer:
    """Return what the controller answered. Raises WireError."""
    if len(raw) > ANSWER_BYTES_MAX:
        raise WireError(f"an answer of {len(raw)} bytes is over the cap of {ANSWER_BYTES_MAX}")
    try:
        return _answer.decode(raw)
    except UNDECODABLE as error:
        raise WireError(f"not an answer to a certificate request: {reason(error)}") from error


def encode(message: EnrolmentToken | CertificateRequest | SignedRequest | Answer) -> bytes:
    return msgspec.json.encode(message)
