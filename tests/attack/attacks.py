"""The attacks of the TUF and Uptane lists, each one function: it strikes, and returns how to see whether it succeeded.

A function does what its attacker could do with what he has, and nothing more: publish on the broker, answer what a
device asks for, sign with the keys that `attacker` hands him. The same function runs against the agent as it ships and
against one whose defence is off (`defences`).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from msgspec.structs import replace
from securesystemslib.dsse import Envelope
from securesystemslib.signer import Signer

from attack import forgeries
from attack.attacker import (
    Messages,
    chain,
    expiring_role,
    offline_keys,
    online_key,
    own_keys,
    own_targets,
    recorded,
    release_role,
    replaced,
    rooted,
    text_of,
)
from attack.stage import OTHER_MODEL, Stage, watch
from harness.fleet_of_one import DEVICE, MODEL, now
from muster_controller.registry.operator import revoke_release
from muster_shared.assignment import COUNTER_MAX, KEYS_ROLE, PAYLOAD_TYPE, sign
from muster_shared.bundle import HardwareMatch, Manifest, encode_manifest, target_path
from muster_shared.ids import DeviceId, Sha256
from muster_shared.messages import Refusal, ReleaseRef, Step, TrustFiles, Want
from muster_shared.topics import Channel, ChunkTopic, ControllerTopic, DeviceTopic, TrustTopic

ROLE = f"release-{MODEL}"
GOOD = 2.0
NEWER = 3.0
EVIL = 66.0
DEADLINE_S = 3.0
LATE_S = 5.0
"""Whoever has not even begun by then does not listen any more."""
SECRET = 7919.104729
"""A value of an input that nothing else has."""


@dataclass(frozen=True)
class Attempt:
    """What is under way: the factor of the release that served before, and whether the attacker has what he wanted."""

    before: float
    reached: Callable[[], bool]
    release: ReleaseRef | None = None
    """The release that the attack is about, where its steps tell how it ended."""


Strike = Callable[[Stage], Attempt]
Test = TypeVar("Test", bound=Callable[..., None])


def under(strike: Strike) -> Callable[[Test], Test]:
    """Say of a test that this attack is to have struck on its stage, which `conftest` begins before its turn comes."""

    def told(test: Test) -> Test:
        vars(test)["strike"] = strike
        return test

    return told


# -- what may be ordered -----------------------------------------------------------------------------------------------


def arbitrary_software(stage: Stage) -> Attempt:
    """With the assignment key and the broker: order a release that no release key signed, and send its bytes."""
    evil = stage.works.release("6.6.6", factor=EVIL, signed=False)

    stage.assign_raw(sign(stage.assignment(evil), online_key(stage.works, "assignment")))

    return Attempt(GOOD, lambda: stage.factor() == EVIL)


def swapped_bytes(stage: Stage) -> Attempt:
    """With the broker: answer for an honest release with a manifest, and files, of his own."""
    evil = stage.works.release("6.6.6", factor=EVIL, signed=False)
    honest = stage.works.release("1.1.0", factor=NEWER)
    manifest = stage.works.manifests[evil.bundle_sha256]
    posing = encode_manifest(_renamed(manifest, honest))
    assert len(posing) == honest.bundle_length, "else the first look at it would be enough"

    def answer(sha256: Sha256, want: Want) -> None:
        stage.send_chunks(sha256, want, content=posing if sha256 == honest.bundle_sha256 else None)

    stage.answer_want = answer
    stage.publish_trust()
    stage.assign_raw(stage.signed(honest))

    return Attempt(GOOD, lambda: stage.factor() == EVIL, honest)


def wrong_hardware(stage: Stage) -> Attempt:
    """With the assignment key: order a release that was signed for other hardware."""
    release = stage.works.release("1.1.0", factor=NEWER, hardware=HardwareMatch(accelerator=("npu",)))
    stage.publish_trust()

    stage.assign_raw(sign(stage.assignment(release), online_key(stage.works, "assignment")))

    return Attempt(GOOD, lambda: stage.factor() == NEWER, release)


def wrong_model(stage: Stage) -> Attempt:
    """With all online keys and the release keys of another model: sign a release of this one."""
    evil = stage.works.release("6.6.6", factor=EVIL, signed=False)
    foreign = {target_path(evil.model, evil.version): stage.works.blobs[evil.bundle_sha256]}
    messages = recorded(stage.works)
    role = release_role(messages, OTHER_MODEL, foreign, offline_keys(stage.works, f"release-{OTHER_MODEL}", 2))

    stage.publish_trust(_by_online_keys(stage, messages, role))
    stage.assign_raw(sign(stage.assignment(evil), online_key(stage.works, "assignment")))

    return Attempt(GOOD, lambda: stage.factor() == EVIL)


def forged_assignment(stage: Stage) -> Attempt:
    """With the broker, a stolen one: choose among the signed releases, by an assignment that he signs himself."""
    old = _updated_to_newer(stage)

    stage.assign_raw(sign(stage.assignment(old), own_keys()[0]))

    return Attempt(NEWER, lambda: stage.factor() == GOOD)


def replay_to_another_device(stage: Stage) -> Attempt:
    """With the broker: give this device what the controller signed for another one."""
    old = _updated_to_newer(stage)

    stage.assign_raw(stage.signed(old, device=DeviceId("edge-2")))

    return Attempt(NEWER, lambda: stage.factor() == GOOD)


# -- going back --------------------------------------------------------------------------------------------------------


def rollback_release(stage: Stage) -> Attempt:
    """With the assignment key: order a release that was revoked, whose files the device still has."""
    old = _updated_to_newer(stage)
    _revoke(stage, old)
    stage.publish_trust()

    stage.assign_raw(sign(stage.assignment(old), online_key(stage.works, "assignment")))

    return Attempt(NEWER, lambda: stage.factor() == GOOD)


def rollback_counter(stage: Stage) -> Attempt:
    """With the broker: repeat an older assignment of this very device."""
    first = next(heard.payload for heard in stage.heard if heard.topic.endswith("/assignment"))
    _updated_to_newer(stage)

    stage.assign_raw(first)

    return Attempt(NEWER, lambda: stage.factor() == GOOD)


def rollback_metadata(stage: Stage) -> Attempt:
    """With the broker: repeat the metadata, and deliver an assignment held back, from before a revocation."""
    release, held_back = _held_back(stage)
    before = recorded(stage.works)
    _revoke(stage, release)
    stage.publish_trust()

    stage.publish_trust(before)
    stage.assign_raw(held_back)

    return Attempt(GOOD, lambda: stage.factor() == NEWER)


def mix_and_match(stage: Stage) -> Attempt:
    """With the broker: the newest snapshot and timestamp, but the release role from before a revocation."""
    release, held_back = _held_back(stage)
    before = recorded(stage.works)
    _revoke(stage, release)
    after = recorded(stage.works)
    name = next(iter(next(message for message in after if message.role == ROLE).files))

    stage.publish_trust(replaced(after, TrustFiles(role=ROLE, files={name: text_of(before, ROLE)})))
    stage.assign_raw(held_back)

    return Attempt(GOOD, lambda: stage.factor() == NEWER)


# -- standing still ----------------------------------------------------------------------------------------------------


def freeze(stage: Stage) -> Attempt:
    """With the broker: show nothing newer than metadata of weeks ago, and deliver what was held back since."""
    _, held_back = _held_back(stage)
    timestamp = online_key(stage.works, "timestamp")
    weeks_ago = chain(recorded(stage.works), snapshot=None, timestamp=timestamp, timestamp_expires=_past())

    stage.publish_trust(weeks_ago)
    stage.assign_raw(held_back)

    return Attempt(GOOD, lambda: stage.factor() == NEWER)


def freeze_behind_a_forgery(stage: Stage) -> Attempt:
    """With the broker: let the metadata expire, then send nonsense besides, so that expiry is not what is noticed."""
    _, held_back = _held_back(stage)
    timestamp, soon = online_key(stage.works, "timestamp"), now() + timedelta(seconds=6)
    seen = chain(recorded(stage.works), snapshot=None, timestamp=timestamp, timestamp_expires=soon)
    stage.publish_trust(seen)
    stage.wait(lambda: now() > soon)

    stage.publish_trust(chain(seen, snapshot=None, timestamp=own_keys()[0]))
    stage.assign_raw(held_back)

    return Attempt(GOOD, lambda: stage.factor() == NEWER)


def indefinite_freeze(stage: Stage) -> Attempt:
    """With the timestamp key: new timestamps for ever, over a snapshot of months ago."""
    _, held_back = _held_back(stage)
    frozen = chain(
        recorded(stage.works),
        snapshot=online_key(stage.works, "snapshot"),  # It signed this when it was fresh.
        snapshot_expires=_past(),
        timestamp=online_key(stage.works, "timestamp"),
    )

    stage.publish_trust(frozen)
    stage.assign_raw(held_back)

    return Attempt(GOOD, lambda: stage.factor() == NEWER)


def indefinite_freeze_of_everything(stage: Stage) -> Attempt:
    """With both online keys: new timestamps and snapshots for ever, over releases signed more than a year ago."""
    _, held_back = _held_back(stage)
    messages = recorded(stage.works)
    expired = expiring_role(messages, MODEL, offline_keys(stage.works, ROLE, 2), _past())

    stage.publish_trust(_by_online_keys(stage, messages, expired))
    stage.assign_raw(held_back)

    return Attempt(GOOD, lambda: stage.factor() == NEWER)


def fast_forward(stage: Stage) -> Attempt:
    """With both online keys: raise the versions so far that everything honest looks old, also under new keys."""
    messages = recorded(stage.works)
    stage.publish_trust(
        chain(
            messages,
            snapshot=online_key(stage.works, "snapshot"),
            timestamp=online_key(stage.works, "timestamp"),
            ahead=10**6,
        )
    )
    stage.publish_trust()
    stage.wait_for_refusal(Refusal.REPLAYED)  # An operator hears of it.

    stage.take_new_online_keys()
    stage.publish_trust()

    return Attempt(GOOD, lambda: [each.refusal for each in stage.refusals()].count(Refusal.REPLAYED) > 1)


def fast_forward_counter(stage: Stage) -> Attempt:
    """With the assignment key: raise the counter to its end, so that everything honest looks old, also of new keys."""
    last = stage.assignment(stage.first, counter=COUNTER_MAX)
    stage.assign_raw(sign(last, online_key(stage.works, "assignment")))
    stage.wait(lambda: stage.twins[-1].counter == COUNTER_MAX)

    stage.take_new_online_keys()
    release = stage.works.release("1.1.0", factor=NEWER)
    stage.publish_trust()
    stage.assign_raw(stage.signed(release))

    return Attempt(GOOD, lambda: bool(stage.refusals()), release)


# -- what is sent ------------------------------------------------------------------------------------------------------


def endless_data(stage: Stage) -> Attempt:
    """With the broker: send more than was signed: a chunk far beyond the end, and one that is far too long."""
    release = stage.works.release("1.1.0", factor=NEWER)
    weights = stage.works.manifests[release.bundle_sha256].file("weights.bin")

    asked: list[Sha256] = []

    def answer(sha256: Sha256, want: Want) -> None:
        if sha256 == weights.sha256 and sha256 not in asked:
            asked.append(
                sha256
            )  # Nothing honest until it asks again: what was stored would be gone too soon to be seen.
            stage.publish(ChunkTopic(sha256, 40_000), bytes(weights.chunk_bytes), qos=0)
            stage.publish(ChunkTopic(sha256, len(weights.chunks) - 1), bytes(100_000), qos=0)
            return
        stage.send_chunks(sha256, want)

    stage.answer_want = answer
    stage.publish_trust()
    stage.assign_raw(stage.signed(release))

    largest = max(file.length for file in stage.works.manifests[release.bundle_sha256].files)
    return Attempt(GOOD, lambda: stage.stored_bytes() > largest, release)


def slow_retrieval(stage: Stage) -> Attempt:
    """With the broker: send one chunk a second, so that a download never ends and nobody calls it broken."""
    release = stage.works.release("1.1.0", factor=NEWER, weight_chunks=400)
    weights = stage.works.manifests[release.bundle_sha256].file("weights.bin")

    def answer(sha256: Sha256, want: Want) -> None:
        stage.send_chunks(sha256, want, most=1 if sha256 == weights.sha256 else None)

    stage.answer_want = answer
    stage.publish_trust()
    stage.assign_raw(stage.signed(release, watch=watch(2, deadline_s=DEADLINE_S)))
    began = time.monotonic()

    def reached() -> bool:
        late = time.monotonic() > began + DEADLINE_S + 2.0
        return late and all(step.step is not Step.FAILED for step in stage.steps(release))

    return Attempt(GOOD, reached, release)


def drop_request(stage: Stage) -> Attempt:
    """With the broker: lose the first request for each file, so that the device waits for an answer for ever."""
    release = stage.works.release("1.1.0", factor=NEWER)
    asked: set[Sha256] = set()

    def answer(sha256: Sha256, want: Want) -> None:
        if sha256 in asked:
            stage.send_chunks(sha256, want)
        asked.add(sha256)

    stage.answer_want = answer
    stage.publish_trust()
    stage.assign_raw(stage.signed(release))
    stage.wait_for_want(release.bundle_sha256)
    began = time.monotonic()

    def reached() -> bool:
        wants = [name for name, _ in list(stage.wants) if name == release.bundle_sha256]
        return time.monotonic() > began + DEADLINE_S and len(wants) == 1

    return Attempt(GOOD, reached, release)


def partial_bundle(stage: Stage) -> Attempt:
    """With the broker: hold back one file of a release, so that the rest is installed without it."""
    release = stage.works.release("1.1.0", factor=NEWER)
    weights = stage.works.manifests[release.bundle_sha256].file("weights.bin")

    def answer(sha256: Sha256, want: Want) -> None:
        if sha256 != weights.sha256:
            stage.send_chunks(sha256, want)

    stage.answer_want = answer
    stage.publish_trust()
    stage.assign_raw(stage.signed(release, watch=watch(2, deadline_s=DEADLINE_S)))

    return Attempt(GOOD, lambda: stage.factor() == NEWER, release)


def eavesdrop(stage: Stage) -> Attempt:
    """With an ear on the whole broker: wait for an input that a local application gives to the model."""
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [SECRET, 0.0]}]}
    assert stage.infer(json.dumps(body)) is not None

    return Attempt(GOOD, lambda: any(str(SECRET).encode() in heard.payload for heard in list(stage.heard)))


def forged_messages(stage: Stage) -> Attempt:
    """With the broker and the assignment key: send every parser what it does not expect, so that one of them ends."""
    key, release = online_key(stage.works, "assignment"), stage.first
    for channel in (Channel.ASSIGNMENT, Channel.ACK):
        for raw in (*forgeries.NONSENSE, *forgeries.envelopes()):
            stage.publish(DeviceTopic(DEVICE, channel), raw)
    for raw in forgeries.assignments(stage.fleet, DEVICE, release):
        signature = Envelope(raw, PAYLOAD_TYPE, {})
        signature.sign(key)
        stage.assign_raw(json.dumps(signature.to_dict()).encode())
    for raw in forgeries.NONSENSE:
        stage.publish(ControllerTopic(), raw)
        stage.publish(ChunkTopic(release.bundle_sha256, 0), raw)
    for role in ("root", "timestamp", ROLE, KEYS_ROLE, "nothing"):
        for raw in (*forgeries.NONSENSE, *forgeries.trust(role)):
            stage.publish(TrustTopic(role), raw)

    release = stage.works.release("1.1.0", factor=NEWER)
    stage.publish_trust()
    stage.assign_raw(stage.signed(release))
    began = time.monotonic()

    return Attempt(GOOD, lambda: time.monotonic() > began + LATE_S and not stage.steps(release), release)


# -- with keys ---------------------------------------------------------------------------------------------------------


def stolen_release_key(stage: Stage) -> Attempt:
    """With all online keys and one release key of two that are needed: sign a release."""
    return _signed_release(stage, [*offline_keys(stage.works, ROLE, 1), *own_keys()])


def stolen_root_key(stage: Stage) -> Attempt:
    """With all online keys and one root key of two that are needed: make himself the root, and everything else."""
    evil = stage.works.release("6.6.6", factor=EVIL, signed=False)
    adds = {target_path(evil.model, evil.version): stage.works.blobs[evil.bundle_sha256]}
    messages, (own,) = recorded(stage.works), own_keys()
    root = rooted(messages, offline_keys(stage.works, "root", 1), own)
    targets = own_targets(messages, MODEL, own)
    role = release_role(messages, MODEL, adds, [own])

    stage.publish_trust(replaced(chain(messages, targets, role, snapshot=own, timestamp=own), root))
    stage.assign_raw(sign(stage.assignment(evil), online_key(stage.works, "assignment")))

    return Attempt(GOOD, lambda: stage.factor() == EVIL)


def stolen_controller_ships(stage: Stage) -> Attempt:
    """With everything on the controller's disk: publish a model of his own, signed with whatever keys he makes."""
    return _signed_release(stage, own_keys(2))


def stolen_controller_brings_back(stage: Stage) -> Attempt:
    """With everything on the controller's disk: make what was revoked current again, by a new snapshot."""
    release, _ = _held_back(stage)
    old_role = next(message for message in recorded(stage.works) if message.role == ROLE)
    _revoke(stage, release)
    stage.publish_trust()

    stage.publish_trust(_by_online_keys(stage, recorded(stage.works), old_role))
    stage.assign_raw(sign(stage.assignment(release), online_key(stage.works, "assignment")))

    return Attempt(GOOD, lambda: stage.factor() == NEWER)


ATTACKS: dict[str, Strike] = {
    strike.__name__: strike
    for strike in (
        arbitrary_software,
        swapped_bytes,
        wrong_hardware,
        wrong_model,
        forged_assignment,
        replay_to_another_device,
        rollback_release,
        rollback_counter,
        rollback_metadata,
        mix_and_match,
        freeze,
        freeze_behind_a_forgery,
        indefinite_freeze,
        indefinite_freeze_of_everything,
        fast_forward,
        fast_forward_counter,
        endless_data,
        slow_retrieval,
        drop_request,
        partial_bundle,
        eavesdrop,
        forged_messages,
        stolen_release_key,
        stolen_root_key,
        stolen_controller_ships,
        stolen_controller_brings_back,
    )
}


# ----------------------------------------------------------------------------------------------------------------------


def _signed_release(stage: Stage, signers: list[Signer]) -> Attempt:
    evil = stage.works.release("6.6.6", factor=EVIL, signed=False)
    adds = {target_path(evil.model, evil.version): stage.works.blobs[evil.bundle_sha256]}
    messages = recorded(stage.works)

    stage.publish_trust(_by_online_keys(stage, messages, release_role(messages, MODEL, adds, signers)))
    stage.assign_raw(sign(stage.assignment(evil), online_key(stage.works, "assignment")))

    return Attempt(GOOD, lambda: stage.factor() == EVIL)


def _by_online_keys(stage: Stage, messages: Messages, *changes: TrustFiles) -> tuple[TrustFiles, ...]:
    """Return the messages as whoever has the controller's keys publishes them."""
    snapshot, timestamp = online_key(stage.works, "snapshot"), online_key(stage.works, "timestamp")
    return chain(messages, *changes, snapshot=snapshot, timestamp=timestamp)


def _updated_to_newer(stage: Stage) -> ReleaseRef:
    """Update honestly from 1.0.0 to 1.1.0, and return 1.0.0."""
    old = stage.first
    stage.update(stage.works.release("1.1.0", factor=NEWER))
    stage.wait(lambda: stage.factor() == NEWER)
    return old


def _held_back(stage: Stage) -> tuple[ReleaseRef, bytes]:
    """Publish 1.1.0 and assign it, honestly; the broker delivers nothing of that, and keeps it for later."""
    release = stage.works.release("1.1.0", factor=NEWER)
    return release, stage.signed(release)


def _revoke(stage: Stage, release: ReleaseRef) -> None:
    current = stage.works.repository.role_metadata(ROLE)
    done = revoke_release(stage.works.folder / "operator", MODEL, release.version, current, now())
    stage.works.repository.accept_release(ROLE, done.metadata, None, now())


def _renamed(manifest: Manifest, release: ReleaseRef) -> Manifest:
    return replace(manifest, version=release.version, release=release.release)


def _past() -> datetime:
    return now() - timedelta(hours=1)
