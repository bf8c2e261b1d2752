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
from muster_controller import fleet as commanding
from muster_controller.core import rollout as machine
from muster_controller.core.rollout import Outcome, Rollout
from muster_controller.fleet import Fleet
from muster_shared.assignment import ModelAssignment
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
    return _assignment(replace(state, counter=0), event, now)


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


def _count_silence_as_good(rollout: Rollout, now: float) -> Rollout:
    members = {
        device: replace(member, outcome=Outcome.GOOD, reason="nobody complained")
        if member.outcome is Outcome.PENDING and member.deadline_at is not None and now >= member.deadline_at
        else member
        for device, member in rollout.members.items()
    }
    controls = {
        key: replace(control, outcome=Outcome.GOOD)
        if control.outcome is Outcome.PENDING and now >= control.deadline_at
        else control
        for key, control in rollout.controls.items()
    }
    if members == rollout.members and controls == rollout.controls:
        return rollout
    return replace(rollout, members=members, controls=controls)


_reconcile = Fleet._reconcile


def _reconcile_everyone(self: Fleet, now: float) -> None:
    """Whoever comes late gets what is being rolled out, wave or not."""
    for rollout in self._ledger.rollouts(running=True):
        for device in self._ledger.devices():
            if device.online and device.id not in rollout.members and self._runs(device, rollout.release):
                desired = self._ledger.desired(device.id)
                if not commanding._wants(desired, rollout.release):
                    wanted = ModelAssignment(release=rollout.release, watch=None)
                    self._issue(replace(desired, models={**desired.models, rollout.model: wanted}))
    _reconcile(self, now)


def _connect_quietly(self: Fleet) -> None:
    self._connects += 1
    self.publish_trust()
    session = ControllerSession(session=f"{self._session}-{self._connects}", sent_at=self._clock())
    self._send(ControllerTopic(), encode(session), retain=True)
    self._publish()


def _publish_at_once(self: Fleet, topic: DeviceTopic, payload: bytes, *, retain: bool) -> None:
    self._wire.publish(topic, payload, qos=1, retain=retain)


def _ignore_silence(rollout: Rollout, now: float) -> Rollout:
    return rollout


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
        ((machine, "_count_silence", _count_silence_as_good),),
    )
    yield Mutant("wait_for_ever", "silence is never counted", ((machine, "_count_silence", _ignore_silence),))
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
        ((Fleet, "_reconcile", _reconcile_everyone),),
    )
    yield Mutant(
        "no_republish_on_connect",
        "the controller relies on the broker to remember assignments",
        ((Fleet, "connected", _connect_quietly), (commanding, "RESEND_S", float("inf"))),
    )
    yield Mutant(
        "publish_before_commit",
        "the controller publishes an assignment before it is in the database",
        ((Fleet, "_send", _publish_at_once),),
    )


MUTANTS: dict[str, Mutant] = {mutant.name: mutant for mutant in _mutants()}
