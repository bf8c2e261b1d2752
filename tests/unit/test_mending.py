"""Mending when what a device says it obeyed is not what the ledger knows, or its assignment is of a former key."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from harness.fleet_stage import Shelf, Stage, release
from muster_controller.db.ledger import SqlLedger
from muster_controller.mending import AHEAD_MAX, RESEND_S, RETRY_S
from muster_controller.ports import Desired
from muster_shared.assignment import (
    COUNTER_MAX,
    KEYS_ROLE,
    KEYS_TARGET,
    Assignment,
    AssignmentKeys,
    encode_keys,
    open_signed,
    sign,
    signers,
)
from muster_shared.ids import DeviceId
from muster_shared.messages import TrustFiles
from muster_shared.topics import Channel

DEVICE = DeviceId("dev-a")


class KeyRing(Shelf):
    """A registry that signs with the last of its keys, while all of them are in force."""

    def __init__(self) -> None:
        self.signers = [CryptoSigner.generate_ed25519()]

    @property
    def keys(self) -> AssignmentKeys:
        return AssignmentKeys(keys={each.public_key.keyid: each.public_key.to_dict() for each in self.signers})

    def trust_messages(self) -> list[TrustFiles]:
        return [TrustFiles(role=KEYS_ROLE, files={KEYS_TARGET: encode_keys(self.keys).decode()})]

    def sign_assignments(self, documents: Sequence[Assignment]) -> list[bytes]:
        return [sign(document, self.signers[-1]) for document in documents]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    path = tmp_path / "muster.db"
    stage = Stage(SqlLedger(path, lambda: 1000.0), path)
    yield stage
    stage.ledger.close()


@pytest.fixture
def ring(stage: Stage) -> KeyRing:
    """The registry of `stage`, with keys; a rollout has ended, and its device has obeyed."""
    ring = KeyRing()
    stage.registry = ring
    stage.begin()
    stage.fleet.connected()
    settle(stage)
    return ring


def settle(stage: Stage) -> Desired:
    """Have the device run what it should, and say so."""
    stage.join(DEVICE)
    stage.finish(1, DEVICE)
    stage.join(DEVICE, sequence=20, active=release(1), counter=desired(stage).counter)
    stage.pass_(RESEND_S)
    return desired(stage)


def desired(stage: Stage) -> Desired:
    return stage.ledger.desired(DEVICE)


def notes(stage: Stage, what: str) -> int:
    return sum(note.what == what for note in stage.ledger.notes(limit=100))


def test_after_a_backup_was_brought_back_counters_go_on_above_what_the_device_obeyed(stage: Stage) -> None:
    before = settle(stage)

    stage.join(DEVICE, sequence=21, active=release(1), counter=before.counter + 40)
    stage.pass_(1.0)

    after = desired(stage)
    assert (after.counter, after.models) == (before.counter + 41, before.models)
    assert stage.said.assignments(DEVICE)[-1].counter == after.counter
    assert notes(stage, "counter_counted_on") == 1


def test_a_device_that_lies_of_its_counter_is_believed_once_an_hour(stage: Stage) -> None:
    before, sequence = settle(stage), 100

    for _ in range(int(RETRY_S / RESEND_S) - 1):
        sequence += 1
        stage.join(DEVICE, sequence=sequence, active=release(1), counter=desired(stage).counter + AHEAD_MAX)
        stage.pass_(RESEND_S)
    within = desired(stage).counter
    stage.pass_(2 * RESEND_S)

    assert within == before.counter + AHEAD_MAX + 1
    assert desired(stage).counter == within + AHEAD_MAX + 1


@pytest.mark.parametrize("counter", [COUNTER_MAX, COUNTER_MAX - 1, 1 << 63, AHEAD_MAX + 10])
def test_a_counter_out_of_reach_is_not_followed_but_told_of_and_what_is_desired_is_said_again(
    stage: Stage, counter: int
) -> None:
    before = settle(stage)
    stage.said.messages.clear()

    for sequence in range(21, 24):
        stage.join(DEVICE, sequence=sequence, active=release(1), counter=counter)
        stage.pass_(RESEND_S)

    assert desired(stage) == before
    assert stage.said.of(Channel.ASSIGNMENT, DEVICE) == [before.envelope] * 3
    assert notes(stage, "counter_out_of_reach") == 1


def test_near_the_end_of_all_counters_nothing_runs_over(stage: Stage) -> None:
    before = settle(stage)
    with stage.ledger.transaction():
        stage.ledger.save_desired(Desired(DEVICE, COUNTER_MAX - 5, before.expires_at, before.models, before.envelope))

    stage.join(DEVICE, sequence=21, active=release(1), counter=COUNTER_MAX)
    stage.pass_(RESEND_S)

    assert desired(stage).counter == COUNTER_MAX - 5


def test_what_a_former_key_signed_is_signed_anew_also_when_the_controller_was_killed_in_between(
    stage: Stage, ring: KeyRing
) -> None:
    before = desired(stage)
    ring.signers = [CryptoSigner.generate_ed25519()]

    stage.restart()
    stage.fleet.connected()
    stage.join(DEVICE, sequence=30, active=release(1), counter=before.counter)
    stage.pass_(1.0)

    after = desired(stage)
    assert open_signed(after.envelope, ring.keys).counter == before.counter + 1
    assert after.models == before.models


def test_what_the_key_of_now_signed_is_left_alone(stage: Stage, ring: KeyRing) -> None:
    before = desired(stage)

    stage.restart()
    stage.fleet.connected()
    stage.join(DEVICE, sequence=30, active=release(1), counter=before.counter)
    stage.pass_(10 * RESEND_S)

    assert desired(stage) == before


def test_while_the_former_key_is_in_force_beside_the_new_one_nothing_is_signed_anew(
    stage: Stage, ring: KeyRing
) -> None:
    before = desired(stage)
    ring.signers.append(CryptoSigner.generate_ed25519())
    stage.fleet.publish_trust()
    stage.pass_(RESEND_S)
    during = desired(stage)

    del ring.signers[0]
    stage.fleet.publish_trust()
    stage.pass_(RESEND_S)

    assert during == before
    assert signers(desired(stage).envelope) == set(ring.keys.keys)
