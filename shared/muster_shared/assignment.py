"""The assignment: what one device should run, signed for that device alone.

A slim director in Uptane's sense: a rising counter, an expiry and a device id keep a stolen broker from choosing even
among signed releases. The document travels in a DSSE envelope (the signature covers the exact bytes), signed by an
online key whose public half is a TUF target (`KEYS_TARGET`), so that the offline keys rotate it.

Cryptography is imported by what signs and what verifies (9 MB): the values are known where neither is done.
"""

import json
from typing import TYPE_CHECKING, Literal

import msgspec

from muster_shared import ids
from muster_shared.errors import AssignmentForged, WireError
from muster_shared.ids import DeviceId, FleetId, RolloutId
from muster_shared.messages import MESSAGE_BYTES_MAX, ReleaseRef
from muster_shared.undecodable import UNDECODABLE, reason

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

PAYLOAD_TYPE = "application/vnd.muster.assignment+json"
KEYS_TARGET = "keys/assignment.json"
KEYS_ROLE = "assignment-keys"
"""The trust topic on which the bytes of `KEYS_TARGET` travel."""
MODELS_MAX = 64
COUNTER_MAX = (1 << 53) - 1  # What every reader of JSON and every database holds.
LIFETIME_S = 30 * 86400.0  # A device that was away for a month still obeys what waits for it.


DAY_MINUTES = 24 * 60


class MaintenanceWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A time of the week in which a device may change what serves, by its own local clock."""

    days: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    """Of its beginning; Monday is 0."""
    start_minute: int
    """Of the day, 0..1439."""
    minutes: int
    """How long it is, 1..1440; it may reach into the next day."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate runs beside what serves, on live inputs of this device, before it may take over."""

    mode: Literal["shadow", "canary"] = "shadow"
    share: float = 0.1
    """Of the requests (0..1] that the candidate answers too (shadow), or instead (canary)."""
    requests_min: int = 50
    """Compared inputs that decide."""
    seconds_max: float = 600.0
    """How long to wait for them."""
    required: bool = False
    """Whether too few inputs fail the trial (or, not required, pass it)."""
    disagreement_max: float = 0.02
    """The share of compared inputs (0..1) that the candidate may answer otherwise."""
    latency_ratio_max: float = 1.5
    """How much slower (p95 against p95) it may be than what serves."""


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """What a device asks itself before it changes what serves. Held-back controls wait for the same windows."""

    windows: tuple[MaintenanceWindow, ...] = ()
    """Any of them; none: at any time."""
    consent: bool = False
    """Whether the device's own rules (busy, hot, on battery, metered, a hook) may defer."""
    defer_s_max: float = 0.0
    """How long in all it may defer, for whatever reason; after that the update fails for want of consent."""
    trial: Trial | None = None


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """A probation that the controller counts: of a new release, or (a held-back control) of the one already running."""

    rollout: RolloutId
    wave: int
    window_s: float
    """How long to measure after the switch."""
    window_max_s: float
    """How long to wait for `requests_min`; after it, no traffic is judged by the golden cases alone."""
    requests_min: int = 1
    deadline_s: float = 3600.0
    """From issue to outcome; the device gives up its update after it, the controller counts it as bad. What it spends
    deferred, by `activation`, comes on top."""
    download_s: float | None = None
    """From issue to all bytes being there; None: only `deadline_s` counts."""
    attempt: int = 1
    """Rises when the controller has the device try again."""
    activation: Activation = Activation()


class ModelAssignment(msgspec.Struct, frozen=True, kw_only=True):
    release: ReleaseRef
    watch: Watch | None = None


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """The whole desired state of one device; a model that is not in it is retired."""

    fleet: FleetId
    device: DeviceId
    counter: int
    issued_at: float
    expires_at: float
    models: tuple[ModelAssignment, ...]
    v: Literal[1] = 1


class AssignmentKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `KEYS_TARGET`: securesystemslib key dictionaries by key id."""

    keys: dict[str, dict[str, object]]
    mixers: dict[str, bytes] = {}
    """X25519 public keys (32 raw bytes) of the mixers to which devices seal their windows, by `metrics.key_id`. The
    offline keys say so, not the controller; without any, no content metric leaves a device."""


class _Signature(msgspec.Struct, frozen=True):
    keyid: str
    sig: bytes


class _Signed(msgspec.Struct, frozen=True, rename="camel"):
    """A DSSE envelope as it is written; bytes become base64."""

    payload: bytes
    payload_type: str
    signatures: tuple[_Signature, ...]


class _Signatures(msgspec.Struct, frozen=True):
    signatures: tuple[_Signature, ...]


_encode = msgspec.json.Encoder().encode
_signatures_decoder = msgspec.json.Decoder(_Signatures)


def sign(assignment: Assignment, signer: "Signer") -> bytes:
    """Return the envelope of `assignment`, as it is published."""
    return seal_payload(_encode(assignment), PAYLOAD_TYPE, signer)


def seal_payload(payload: bytes, payload_type: str, signer: "Signer") -> bytes:
    """Return a DSSE envelope with one signature."""
    from securesystemslib.dsse import Envelope

    signature = Envelope(payload, payload_type, {}).sign(signer)
    # As `Envelope.to_dict` and `json.dumps` would say it, in a tenth of their time: a fleet is called back at once.
    stated = _Signature(keyid=signature.keyid, sig=bytes.fromhex(signature.signature))
    return _encode(_Signed(payload=payload, payload_type=payload_type, signatures=(stated,)))


def open_signed(raw: bytes, keys: AssignmentKeys) -> Assignment:
    """Return the assignment in `raw` if one of `keys` signed it. Device, counter and dates are for the core to judge.

    Raises:
        WireError: not an envelope, or its payload is no assignment.
        AssignmentForged: no signature of a trusted key.
    """
    return parse(verified_payload(raw, keys, PAYLOAD_TYPE, "an assignment"))


def verified_payload(raw: bytes, keys: AssignmentKeys, payload_type: str, what: str) -> bytes:
    """Return what is in the envelope `raw` if it is of `payload_type` and one of `keys` signed it.

    Args:
        what: With its article, for people.
    Raises:
        WireError: not an envelope, or one of something else.
        AssignmentForged: no signature of a trusted key.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import Error as SecuresystemslibError
    from securesystemslib.exceptions import FormatError
    from securesystemslib.signer import SSlibKey

    if len(raw) > MESSAGE_BYTES_MAX:
        raise WireError(f"an envelope of {len(raw)} bytes; the limit is {MESSAGE_BYTES_MAX}")
    try:
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise WireError(f"not the envelope of {what}: the document is not an object")
        envelope = Envelope.from_dict(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        raise WireError(f"not the envelope of {what}: {reason(error)}") from error
    if envelope.payload_type != payload_type:
        raise WireError(f"an envelope of {str(envelope.payload_type)[:80]!r}, not of {what}")
    try:
        trusted: list[Key] = [SSlibKey.from_dict(keyid, dict(key)) for keyid, key in keys.keys.items()]
        envelope.verify(trusted, 1)
    except (SecuresystemslibError, ValueError, KeyError, TypeError) as error:
        raise AssignmentForged("no trusted assignment key signed this; was the key rotated?") from error
    return bytes(envelope.payload)


def signers(raw: bytes) -> frozenset[str]:
    """Return the ids of the keys that are said to have signed the envelope `raw`: unverified. None if it is none."""
    try:
        return frozenset(each.keyid for each in _signatures_decoder.decode(raw).signatures)
    except UNDECODABLE:
        return frozenset()


def parse(payload: bytes) -> Assignment:
    """Return the assignment in `payload`, checked. Raises WireError."""
    try:
        assignment = msgspec.json.decode(payload, type=Assignment)
    except UNDECODABLE as error:
        raise WireError(f"not an assignment: {reason(error)}") from error
    ids.name(assignment.device, "device")
    ids.name(assignment.fleet, "fleet")
    if not 1 <= assignment.counter <= COUNTER_MAX or len(assignment.models) > MODELS_MAX:
        raise WireError(f"an assignment has a counter from 1 to {COUNTER_MAX} and at most {MODELS_MAX} models")
    try:
        msgspec.msgpack.encode(assignment)  # As it goes on, from the process that verifies to the one that obeys.
    except OverflowError as error:
        raise WireError("an assignment with a number beyond 64 bits") from error
    names = [model.release.model for model in assignment.models]
    if len(set(names)) != len(names):
        raise WireError("an assignment names one model twice")
    for model in assignment.models:
        ids.name(model.release.model, "model")
        ids.version(model.release.version)
        ids.sha256(model.release.bundle_sha256)
    return assignment


def parse_keys(raw: bytes) -> AssignmentKeys:
    """Return the keys in the bytes of `KEYS_TARGET`. Raises WireError."""
    try:
        return msgspec.json.decode(raw, type=AssignmentKeys)
    except UNDECODABLE as error:
        raise WireError(f"{KEYS_TARGET}: {reason(error)}") from error


def encode_keys(keys: AssignmentKeys) -> bytes:
    return msgspec.json.format(msgspec.json.encode(keys, order="sorted"), indent=1)
