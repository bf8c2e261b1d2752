"""The call: what one device is asked to do now and to answer, signed for that device alone.

As an assignment, it travels in a DSSE envelope by a key that the offline keys vouch for: whoever has the broker can ask
nothing. It is short-lived and has an id of its own, so an old one is worth nothing. The answer is `messages.Answer`.
"""

from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from muster_shared import ids
from muster_shared.assignment import AssignmentKeys, seal_payload, verified_payload
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId
from muster_shared.undecodable import UNDECODABLE, reason

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

PAYLOAD_TYPE: Final = "application/vnd.muster.call+json"
LIFETIME_S: Final = 300.0
"""From issue to answer at the latest. A device whose clock is wrong by more cannot be asked."""
LINES_MAX: Final = 200


class CallKind(Enum):
    """What a device can be asked for."""

    SELF_TEST = "self_test"
    """The golden cases of each release that serves."""
    BENCHMARK = "benchmark"
    """A short measurement of each release that serves, beside its work."""
    LOGS = "logs"
    """The end of the agent's own log."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    fleet: FleetId
    device: DeviceId
    id: str
    """Random: it is answered once."""
    what: CallKind
    lines: int = 0
    """Of `logs`, 1..LINES_MAX."""
    issued_at: float
    expires_at: float
    v: Literal[1] = 1


def sign_call(call: Call, signer: "Signer") -> bytes:
    """Return the envelope of `call`, as it is published."""
    return seal_payload(msgspec.json.encode(call), PAYLOAD_TYPE, signer)


def open_call(raw: bytes, keys: AssignmentKeys) -> Call:
    """Return the call in `raw` if one of `keys` signed it. Whom it is for, and whether it is in time, others judge.

    Raises:
        WireError: not an envelope, or its payload is no call.
        AssignmentForged: no signature of a trusted key.
    """
    payload = verified_payload(raw, keys, PAYLOAD_TYPE, "a call")
    try:
        call = msgspec.json.decode(payload, type=Call)
    except UNDECODABLE as error:
        raise WireError(f"not a call: {reason(error)}") from error
    ids.name(call.device, "device")
    ids.name(call.fleet, "fleet")
    ids.name(call.id, "call")
    if not 0 <= call.lines <= LINES_MAX:
        raise WireError(f"a call for {call.lines} lines; at most {LINES_MAX}")
    return call
