"""Deliberately broken variants of the shipped code. Each must be caught, or the simulator proves nothing.

A mutant is a patch that holds while one world runs in this process; nothing of it is reachable outside the simulator.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

from muster_agent import conductor as conducting
from muster_agent.conductor import Conductor
from muster_agent.core import update
from muster_agent.core.state import DeviceState, ModelState, Phase, Slots, Update
from muster_agent.core.trust import Target
from muster_agent.io import store as storing
from muster_agent.io.store import ContentStore
from muster_controller import mending
from muster_controller.core.rollout import machine, reports
from muster_controller.core.rollout.draft import Draft
from muster_controller.core.rollout.events import Assign, DeviceFacts
from muster_controller.core.rollout.state import Outcome, is_in_flight
from muster_controller.engine import Engine
from muster_controller.fleet import Fleet
from muster_controller.groups import can_run
from muster_controller.mending import Mender
from muster_shared.bundle import BundleFile
from muster_shared.errors import FileTampered
from muster_shared.ids import DeviceId, ModelName
from muster_shared.messages import Ack, ControllerSession, Event, ReleaseRef, encode
from muster_shared.topics import Channel, ControllerTopic, DeviceTopic

Patch = tuple[object, str, object]
"""What, which attribute of it, and the broken thing to put there."""


@dataclass(frozen=True)
class Mutant:
    """`breaks`: what a reviewer would have to overlook."""

    name: str
    breaks: str
    patches: tuple[Patch, ...]

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            for where, attribute, broken in self.patches:
                stack.enter_context(patch.object(where, attribute, broken))
            yield


def _finish_unsynced(self: ContentStore, file: BundleFile) -> None:
    part = storing._part(file.sha256)
    actual = self._hash(part)
    if actual != file.sha256:
        self._disk.remove(part)
        raise FileTampered(file.path, file.sha256, actual)
    self._disk.rename(part, storing.blob(file.sha256))
    self._disk.fsync_folder(storing.BLOBS)


def _finish_folder_unsynced(self: ContentStore, file: BundleFile) -> None:
    part = storing._part(file.sha256)
    actual = self._hash(part)
    if actual != file.sha256:
        self._disk.remove(part)
        raise FileTampered(file.path, file.sha256, actual)
    self._disk.fsync(part)
    self._disk.rename(part, storing.blob(file.sha256))


_assignment = update._assignment


def _obey_any_counter(state: DeviceState, event: update.AssignmentArrived, now: float) -> update.Result:
    if event.digest == state.assignment:
        return state, ()
    return _assignment(replace(state, counter=0, keys={}), event, now)


def _trust_any_target(release: ReleaseRef, targets: Mapping[str, Target]) -> str | None:
    return None


_update = update._update


def _switch_untested(
    state: DeviceState, name: ModelName, model: ModelState, pending: Update, event: update.Event, now: float
) -> update.Result:
    if isinstance(event, update.FilesReady) and pending.phase is Phase.FILES:
        pending = replace(pending, phase=Phase.TESTING)
        return _update(state, name, model, pending, update.SelfTestDone(event.bundle, None, ""), now)
    return _update(state, name, model, pending, event, now)  # type: ignore[arg-type]  # As `advance` calls it.


_switch = update._switch


def _switch_without_standby(model: ModelState, pending: Update, now: float) -> tuple[ModelState, list[update.Effect]]:
    model, effects = _switch(model, pending, now)
    return replace(model, slots=Slots(active=model.slots.active)), effects


def _flush_and_forget(self: Conductor) -> None:
    for event in self._journal.pending(conducting.OUTBOX_IN_FLIGHT):
        self._wire.publish(self._own(Channel.EVENT), encode(event), qos=1)
        self._journal.forget((event.id,))


_fleet_received = Fleet._event


def _ack_first(self: Fleet, device: DeviceId, event: Event) -> None:
    self._wire.publish(DeviceTopic(device, Channel.ACK), encode(Ack(ids=(event.id,))), qos=1)
    _fleet_received(self, device, event)


_look = machine._look


def _count_silence_as_good(draft: Draft, fleet: Mapping[DeviceId, DeviceFacts]) -> None:
    for member in draft.members(is_in_flight):
        if member.retry_at is None and member.deadline_at is not None and draft.now >= member.deadline_at:
            reports.settle(draft, replace(member, outcome=Outcome.GOOD, reason="nobody complained"))
    for control in draft.controls(lambda each: each.outcome is Outcome.PENDING):
        if control.deadline_at is not None and draft.now >= control.deadline_at:
            reports.settle_control(draft, replace(control, outcome=Outcome.GOOD))
    _look(draft, fleet)


_turn = Mender.turn


def _mend_everyone(self: Mender, engine: Engine) -> None:
    """Whoever comes late gets what is being rolled out, wave or not."""
    for rollout in engine.ledger.rollouts(running=True):
        manifest = engine.registry.manifest(rollout.release.bundle_sha256)
        for device in engine.ledger.devices():
            if device.online and device.id not in rollout.members and can_run(device, manifest):
                wanted = engine.ledger.desired(device.id).models.get(rollout.model)
                if wanted is None or wanted.assignment.release != rollout.release:
                    engine.assign([Assign(device.id, rollout.release, None)], rollout.id)
    _turn(self, engine)


def _connect_quietly(self: Fleet) -> None:
    self._connects += 1
    self._connected_at = self._clock()
    self.publish_trust()
    session = ControllerSession(session=f"{self._session}-{self._connects}", sent_at=self._clock())
    self._engine.send(ControllerTopic(), encode(session), retain=True)
    self._engine.publish()


def _publish_at_once(self: Engine, topic: DeviceTopic, payload: bytes, *, retain: bool) -> None:
    self._wire.publish(topic, payload, qos=1, retain=retain)


def _ignore_silence(draft: Draft, fleet: Mapping[DeviceId, DeviceFacts]) -> None:
    pass


def _mutants() -> Iterator[Mutant]:
    yield Mutant(
        "skip_fsync",
        "the store renames a file that was never synced",
        ((ContentStore, "finish", _finish_unsynced),),
    )
    yield Mutant(
        "skip_folder_fsync",
        "the store says that it has a file whose name is not durable",
        ((ContentStore, "finish", _finish_folder_unsynced),),
    )
    yield Mutant(
        "accept_old_counter",
        "a device obeys an assignment older than one it obeyed",
        ((update, "_assignment", _obey_any_counter),),
    )
    yield Mutant(
        "promote_on_silence",
        "a device that says nothing until its deadline counts as good",
        ((machine, "_look", _count_silence_as_good),),
    )
    yield Mutant("wait_for_ever", "silence is never counted", ((machine, "_look", _ignore_silence),))
    yield Mutant(
        "skip_target_check",
        "a device believes the online key about what is a release",
        ((update, "_target_problem", _trust_any_target),),
    )
    yield Mutant(
        "ack_before_commit",
        "the controller acknowledges an event before it is in the database",
        ((Fleet, "_event", _ack_first),),
    )
    yield Mutant(
        "forget_outbox",
        "a device forgets an event when it is published",
        ((Conductor, "_flush", _flush_and_forget),),
    )
    yield Mutant(
        "switch_before_self_test",
        "a release takes traffic as soon as its files are there",
        ((update, "_update", _switch_untested),),
    )
    yield Mutant(
        "rollback_drops_standby",
        "the release that served before is not kept",
        ((update, "_switch", _switch_without_standby),),
    )
    yield Mutant(
        "late_joiners_bypass",
        "devices that come late get the release of a rollout that is under way",
        ((Mender, "turn", _mend_everyone),),
    )
    yield Mutant(
        "no_republish_on_connect",
        "the controller relies on the broker to remember assignments",
        ((Fleet, "connected", _connect_quietly), (mending, "RESEND_S", float("inf"))),
    )
    yield Mutant(
        "publish_before_commit",
        "the controller publishes an assignment before it is in the database",
        ((Engine, "send", _publish_at_once),),
    )


MUTANTS: dict[str, Mutant] = {mutant.name: mutant for mutant in _mutants()}
