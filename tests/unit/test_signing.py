"""Assignments that are signed together: each by itself, in order, and in the envelope that the library writes."""

import json

import msgspec
import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, Signature

from muster_controller.registry.signing import TOGETHER, sign_all
from muster_shared.assignment import PAYLOAD_TYPE, Assignment, AssignmentKeys, open_signed, sign
from muster_shared.ids import DeviceId, FleetId


def assignment(number: int) -> Assignment:
    return Assignment(
        fleet=FleetId("f"), device=DeviceId(f"d-{number}"), counter=1, issued_at=1.0, expires_at=2.0, models=()
    )


class Failing(CryptoSigner):
    """A key that is lost while it is used."""

    left = 2 * TOGETHER

    def sign(self, payload: bytes) -> Signature:
        self.left -= 1
        if self.left < 0:
            raise OSError("the key is gone")
        return super().sign(payload)


@pytest.mark.parametrize("count", [0, 1, TOGETHER - 1, TOGETHER, 5 * TOGETHER + 3])
def test_every_document_is_signed_and_stays_in_its_place(count: int) -> None:
    signer = CryptoSigner.generate_ed25519()
    documents = [assignment(number) for number in range(count)]

    envelopes = sign_all(documents, signer)

    keys = AssignmentKeys(keys={signer.public_key.keyid: signer.public_key.to_dict()})
    assert [open_signed(envelope, keys) for envelope in envelopes] == documents


def test_a_key_that_fails_half_way_fails_the_whole() -> None:
    failing = Failing(CryptoSigner.generate_ed25519()._private_key)

    with pytest.raises(OSError, match="the key is gone"):
        sign_all([assignment(number) for number in range(5 * TOGETHER)], failing)


def test_the_envelope_is_byte_for_byte_what_the_library_writes() -> None:
    signer = CryptoSigner.generate_ed25519()
    theirs = Envelope(msgspec.json.encode(assignment(1)), PAYLOAD_TYPE, {})
    theirs.sign(signer)

    ours = sign(assignment(1), signer)

    assert ours == json.dumps(theirs.to_dict(), separators=(",", ":")).encode()
