"""Mending: keeps every device where it should be when no rollout is at work on it.

    a device is due ─▶ late: the baseline of its group     (never faster than the rollout's policy)
                       half its assignment's life is over: a new one
                       it has not obeyed for a while: the same once more
                       it obeys a higher counter than we know, or its assignment is of a former key: a new one
                       it gave up an update that nobody watches: try again

A heap says who is due when; nothing walks the whole fleet but a start, a clock set back, and a change of baselines.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import replace

from msgspec.structs import replace as with_changes

from muster_controller.core.rollout.pace import room
from muster_controller.core.rollout.recall import is_withdrawn
from muster_controller.core.rollout.state import Outcome, Rollout, RolloutState
from muster_controller.core.rollout.telling import watch
from muster_controller.engine import Engine
from muster_controller.groups import active, can_run, selected
from muster_controller.ports import Baseline, Desired, Device, Wanted
from muster_shared.assignment import COUNTER_MAX, LIFETIME_S, ModelAssignment, signers
from muster_shared.ids import DeviceId, ModelName, RolloutId
from muster_shared.topics import Channel, DeviceTopic

LATE_WAVE = 1_000_000  # The wave of a device that gets the release after the rollout has finished.
RESEND_S = 60.0  # How long a device may take to obey before its assignment is published again.
RETRY_S = 3600.0
LATE_AGAIN_S = 5.0  # When to look again at a device for which the pace has no room.
AHEAD_MAX = 1_000_000
"""How far a device's counter may be beyond ours for us to count on from it: no backup is that old. Once in `RETRY_S`,
so a device that lies, or whoever lies for it, needs a million years to drive us to `COUNTER_MAX`."""
BATCH = 2000  # Devices a turn; the rest has its turn next.


class Mender:
    """Belongs to the thread of its engine. It keeps no truth: a new one finds everything again from rows."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, DeviceId]] = []
        self._due: dict[DeviceId, float] = {}
        self._said_at: dict[DeviceId, float] = {}
        self._counted_on: dict[DeviceId, float] = {}
        self._out_of_reach: set[DeviceId] = set()
        self._keys: frozenset[str] = frozenset()
        self._pace: dict[RolloutId, tuple[float, float]] = {}
        self._late: dict[RolloutId, set[DeviceId]] = {}
        self._is_all_due = True
        self._turned_at = float("-inf")

    def due(self, device: DeviceId, at: float) -> None:
        """Have `device` looked at not later than `at`."""
        if at < self._due.get(device, float("inf")):
            self._due[device] = at
            heapq.heappush(self._heap, (at, device))

    def all_due(self) -> None:
        """Have every device looked at in the next turn."""
        self._is_all_due = True

    def trusted(self, keys: frozenset[str]) -> None:
        """Take the ids of the keys whose assignments devices accept now; what others signed is signed anew."""
        if keys != self._keys:
            self._keys = keys
            self._is_all_due = True

    def told(self, desired: Desired, now: float) -> None:
        """A device was told something just now."""
        self._said_at[desired.device] = now
        self.due(desired.device, now + RESEND_S)

    def wake_at(self) -> float | None:
        """Return when the next device is due."""
        if self._is_all_due:
            return float("-inf")
        return self._heap[0][0] if self._heap else None

    def turn(self, engine: Engine) -> None:
        """Look at whoever is due. Inside a transaction of `engine`."""
        now = engine.clock()
        if now < self._turned_at:  # The clock was set back: what was due soon is far away now.
            self._said_at = {device: min(at, now) for device, at in self._said_at.items()}
            self._counted_on = {device: min(at, now) for device, at in self._counted_on.items()}
            self._pace.clear()
            self._is_all_due = True
        self._turned_at = now
        if self._is_all_due:
            self._is_all_due = False
            for device in engine.ledger.devices():
                self.due(device.id, now)
        running = engine.ledger.rollouts(running=True)
        for name in self._take(now):
            found = engine.ledger.device(name)
            if found is not None and found.online and found.twin is not None:
                self._mend(engine, found, running, now)

    def _take(self, now: float) -> Iterator[DeviceId]:
        taken = 0
        while self._heap and self._heap[0][0] <= now and taken < BATCH:
            at, device = heapq.heappop(self._heap)
            if self._due.get(device) == at:
                del self._due[device]
                taken += 1
                yield device

    def _mend(self, engine: Engine, device: Device, running: Sequence[Rollout], now: float) -> None:
        desired = engine.ledger.desired(device.id)
        models = dict(desired.models)
        held = engine.holds(device.id) is not None
        for name in () if held else engine.ledger.baseline_models():
            if any(rollout.model == name and has_say(rollout, device.id) for rollout in running):
                continue
            baseline = aim(engine, device, name)
            if baseline is None or not self._differs(engine, baseline, desired.models.get(name)):
                continue
            rollout = engine.ledger.rollout(baseline.rollout)
            if rollout is not None and not self._has_room(rollout, device, now):
                self.due(device.id, now + LATE_AGAIN_S)
                continue
            was = desired.models.get(name)
            told = None if rollout is None else watch(rollout, LATE_WAVE, 1)
            models[name] = Wanted(ModelAssignment(release=baseline.release, watch=told), baseline.rollout, now)
            if was is not None:
                moved = f"{name} {was.assignment.release.version} -> {baseline.release.version}"
                group = baseline.selector or "every device"
                engine.note("device_follows_baseline", device.id, f"{moved}: its group is now {group}")
        if models != dict(desired.models):
            engine.issue([replace(desired, models=models)])
        elif desired.envelope:
            self._remind(engine, device, desired, now)

    def _differs(self, engine: Engine, baseline: Baseline, wanted: Wanted | None) -> bool:
        if wanted is None:
            return True
        if wanted.assignment.release.bundle_sha256 == baseline.release.bundle_sha256:
            return False
        source = engine.ledger.rollout(wanted.rollout)
        # A rollout that was aborted without calling its devices back left them there, until somebody decides anew.
        return not (
            source is not None
            and source.state is RolloutState.ABORTED
            and source.policy.on_abort != "roll_back"
            and source.release.bundle_sha256 == wanted.assignment.release.bundle_sha256
            and baseline.at <= (source.ended_at or 0.0)
        )

    def _has_room(self, rollout: Rollout, device: Device, now: float) -> bool:
        """Return whether the rollout's own pace lets one more late device begin."""
        policy = rollout.policy
        if policy.rate is None and policy.concurrency is None:
            return True
        late = self._late.setdefault(rollout.id, set())
        credit, at = self._pace.get(rollout.id, (1.0, now))
        pace = room(
            policy,
            released=rollout.released,
            in_flight=len(late),
            devices=len(rollout.members),
            credit=credit,
            since_s=now - at,
        )
        free = pace.room is None or pace.room > 0
        self._pace[rollout.id] = (max(0.0, pace.credit - free), now)
        if free:
            late.add(device.id)
        return free

    def settled(self, rollout: RolloutId, device: DeviceId) -> None:
        """A late device has come to its outcome: there is room for another."""
        if rollout in self._late:
            self._late[rollout].discard(device)

    def repair(self, engine: Engine, device: DeviceId, model: ModelName) -> None:
        """Tell a device once more what it should run of `model`: its files rotted, and another release serves.

        As a new attempt, or a device that has reported already would take it for what it knows. Inside a transaction.
        """
        desired = engine.ledger.desired(device)
        wanted = desired.models.get(model)
        running = engine.ledger.rollouts(running=True)
        if wanted is None or any(rollout.model == model and _is_at_work(rollout, device) for rollout in running):
            return  # It hears of it by the outcome.
        source = engine.ledger.rollout(wanted.rollout)
        if source is not None and is_withdrawn(source, device, wanted.assignment.release):
            return  # What was aborted is given to nobody again: whatever serves instead is the better place.
        was = wanted.assignment.watch
        again = None if was is None else with_changes(was, attempt=was.attempt + 1)
        assignment = with_changes(wanted.assignment, watch=again)
        engine.issue([replace(desired, models={**desired.models, model: replace(wanted, assignment=assignment)})])

    def _remind(self, engine: Engine, device: Device, desired: Desired, now: float) -> None:
        twin = device.twin
        assert twin is not None
        renew_at = desired.expires_at - LIFETIME_S / 2
        if now >= renew_at or (self._keys and not self._keys & signers(desired.envelope)):
            engine.issue([desired])
            return
        if twin.counter > desired.counter and self._count_on(engine, desired, twin.counter, now):
            return
        again_at = renew_at
        said_at = self._said_at.setdefault(device.id, now if gave_up(device, desired) else desired.issued_at)
        if twin.counter != desired.counter:
            # Whoever has the broker may have put something else in its place.
            if now >= said_at + RESEND_S:
                self._said_at[device.id] = said_at = now
                engine.send(DeviceTopic(device.id, Channel.ASSIGNMENT), desired.envelope, retain=True)
            again_at = min(again_at, said_at + RESEND_S)
        elif gave_up(device, desired):
            if now >= said_at + RETRY_S:
                engine.issue([desired])  # A full disk, a bad line: what nobody watches is tried again.
                return
            again_at = min(again_at, said_at + RETRY_S)
        self.due(device.id, again_at)

    def _count_on(self, engine: Engine, desired: Desired, counter: int, now: float) -> bool:
        """Issue what a device should run with a counter above its own, if that is to be believed.

        The ledger is a backup that was brought back, or somebody has the assignment key. A counter that is out of reach
        is forgotten by the device itself, once none of the keys of then is in force.
        """
        device = desired.device
        if counter - desired.counter > AHEAD_MAX or counter >= COUNTER_MAX:
            if device not in self._out_of_reach:
                self._out_of_reach.add(device)
                engine.note(
                    "counter_out_of_reach",
                    device,
                    f"it says {counter}, it was told {desired.counter}: was the assignment key stolen?"
                    " New keys undo it: docs/runbooks/stolen-controller.md",
                )
            return False
        if now < self._counted_on.get(device, float("-inf")) + RETRY_S:
            return False
        self._counted_on[device] = now
        engine.note("counter_counted_on", device, f"from {desired.counter} to {counter}, which it says it obeyed")
        engine.issue([replace(desired, counter=counter)])
        return True


def has_say(rollout: Rollout, device: DeviceId) -> bool:
    """Return whether a running rollout decides what `device` runs of its model."""
    member = rollout.members.get(device)
    return member is not None and member.outcome is not Outcome.LEFT and not member.is_taken


def _is_at_work(rollout: Rollout, device: DeviceId) -> bool:
    """Return whether `rollout` has told `device` something of which it has not heard that it went well."""
    member = rollout.members.get(device)
    return member is not None and has_say(rollout, device) and member.is_touched and member.outcome is not Outcome.GOOD


def aim(engine: Engine, device: Device, model: ModelName) -> Baseline | None:
    """Return the newest baseline that is for `device`; None when none is."""
    for baseline in engine.ledger.baselines(model):
        if not selected(device, baseline.selector):
            continue
        if not can_run(device, engine.registry.manifest(baseline.release.bundle_sha256)):
            continue
        rollout = engine.ledger.rollout(baseline.rollout)
        member = None if rollout is None else rollout.members.get(device.id)
        if member is not None and member.is_taken:
            continue
        if rollout is not None and member is None and rollout.policy.late_joiners == "never":
            continue
        return baseline
    return None


def gave_up(device: Device, desired: Desired) -> bool:
    """Return whether the device obeyed, failed an update that no rollout watches, and rests."""
    if device.twin is None or device.twin.counter != desired.counter:
        return False
    for name, wanted in desired.models.items():
        if wanted.assignment.watch is not None:
            continue
        twin = next((each for each in device.twin.models if each.model == name), None)
        running = active(device, name)
        if twin is None or twin.phase != "idle":
            continue
        if running is None or running.bundle_sha256 != wanted.assignment.release.bundle_sha256:
            return True
    return False
