"""The engine: lets the core decide, saves what it says, and publishes what follows once that is committed.

    event ─▶ core.rollout.machine.advance ─▶ ledger (one transaction) ─▶ assignments: signed, counted up, published

Everything is computed from rows, and every step is idempotent, so that it may be killed between any two of them: what
was saved and not published is published again at the next connect. It takes nothing from the broker and knows no
operators: `fleet` does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog

from muster_controller.acting import acting
from muster_controller.core.rollout import machine
from muster_controller.core.rollout.events import Assign, DeviceFacts, Event, Plot, SetBaseline
from muster_controller.core.rollout.state import Rollout
from muster_controller.core.selector import parse
from muster_controller.groups import facts_of
from muster_controller.holds import FindHold, nobody
from muster_controller.ports import Baseline, Desired, Ledger, Note, Registry, Wanted, Wire
from muster_shared.assignment import LIFETIME_S, Assignment, ModelAssignment
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId
from muster_shared.topics import Channel, DeviceTopic, Topic

log = structlog.get_logger()


class LazyFacts(Mapping[DeviceId, DeviceFacts]):
    """What the machine may ask of devices, looked up when it asks: most looks concern a few of many."""

    def __init__(
        self, ledger: Ledger, model: ModelName, devices: Mapping[DeviceId, object], holds: FindHold = nobody
    ) -> None:
        self._ledger = ledger
        self._holds = holds
        self._model = model
        self._devices = devices

    def __getitem__(self, device: DeviceId) -> DeviceFacts:
        found = self._ledger.device(device)
        if found is None:
            raise KeyError(device)
        hold = self._holds(device)
        return facts_of(found, self._model, "" if hold is None else hold.sentence)

    def __iter__(self) -> Iterator[DeviceId]:
        return iter(sorted(self._devices))

    def __len__(self) -> int:
        return len(self._devices)


class Engine:
    """One fleet's rollouts and assignments, inside `with engine.transaction():`. Belongs to one thread."""

    def __init__(
        self,
        fleet: FleetId,
        *,
        ledger: Ledger,
        registry: Registry,
        wire: Wire,
        clock: Callable[[], float],
        told: Callable[[Desired], None],
        rearranged: Callable[[], None],
        holds: FindHold = nobody,
    ) -> None:
        """
        Args:
            told: Called whenever a device was told something, so that somebody looks whether it obeys.
            rearranged: Called whenever what devices should run in general has changed.
            holds: Which devices rollouts leave alone: nothing that one says reaches them.
        """
        self.fleet = fleet
        self.ledger = ledger
        self.registry = registry
        self.clock = clock
        self.assignments = 0
        """Issued by this process."""
        self.holds = holds
        self._wire = wire
        self._told = told
        self._rearranged = rearranged
        self._outbox: list[tuple[Topic, bytes, bool]] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction of the ledger; what was to be said of it is said only if it was committed."""
        try:
            with self.ledger.transaction():
                yield
        except BaseException:
            self._outbox.clear()
            raise

    def is_out(self, device: DeviceId) -> bool:
        """Return whether it is no member of rollouts at all, and what it says counts for nothing."""
        hold = self.holds(device)
        return hold is not None and hold.is_out

    def advance(self, rollout: Rollout, event: Event) -> Rollout:
        """Let the core decide about `event` and save what it says. Raises OrderRefused, with nothing changed."""
        result = machine.advance(rollout, event, self.clock())
        after = result.rollout
        if after is rollout:
            return rollout
        self.ledger.save_rollout(after, rollout, result.changes)
        if after.state is not rollout.state:
            self.note(f"rollout_{after.state.value}", after.id, after.reason)
            self._rearranged()
        elif after.wave > rollout.wave:
            self.note("wave_started", after.id, f"wave {after.wave + 1} of {len(after.waves)}")
        assigned: list[Assign] = []
        for effect in result.effects:
            match effect:
                case Assign():
                    assigned.append(effect)  # All at once: they are signed together.
                case SetBaseline(release):
                    selector = str(parse(after.policy.selector))  # `a,b` and `b,a` are one group.
                    self.ledger.save_baseline(Baseline(release, after.id, selector, self.clock()))
                    self.note("baseline_set", after.id, f"{release.model} {release.version}")
                    self._rearranged()
                case Plot():
                    self.ledger.save_point(after.id, effect)
        self.assign(assigned, after.id)
        return after

    def tell(self, rollout: RolloutId, event: Event) -> None:
        """Let a rollout know; unknown ones are ignored."""
        found = self.ledger.rollout(rollout)
        if found is not None:
            self.advance(found, event)

    def facts(self, rollout: Rollout) -> LazyFacts:
        return LazyFacts(self.ledger, rollout.model, rollout.members, self.holds)

    def assign(self, effects: Sequence[Assign], rollout: RolloutId) -> None:
        """Tell devices what to run of one model; of the others they go on as before. Who is held is told nothing."""
        now = self.clock()
        found: dict[DeviceId, Desired] = {}
        for each in effects:
            if self.holds(each.device) is not None:
                continue
            was = found.get(each.device) or self.ledger.desired(each.device)
            wanted = Wanted(ModelAssignment(release=each.release, watch=each.watch), rollout, now)
            models = {**was.models, each.release.model: wanted}
            # Not by `replace`, which takes four times as long: an abort does this for a whole fleet.
            found[each.device] = Desired(was.device, was.counter, was.expires_at, models, was.envelope, was.issued_at)
        self.issue(list(found.values()))

    def issue(self, wanted: Sequence[Desired]) -> None:
        """Sign what devices should run, each with a higher counter, save it, and publish it after the commit."""
        now = self.clock()
        assignments = [
            Assignment(
                fleet=self.fleet,
                device=desired.device,
                counter=desired.counter + 1,  # From the row that this transaction writes.
                issued_at=now,
                expires_at=now + LIFETIME_S,
                models=tuple(desired.models[name].assignment for name in sorted(desired.models)),
            )
            for desired in wanted
        ]
        envelopes = self.registry.sign_assignments(assignments) if assignments else ()
        for desired, said, envelope in zip(wanted, assignments, envelopes, strict=True):
            after = Desired(desired.device, said.counter, said.expires_at, desired.models, envelope, now)
            self.ledger.save_desired(after)
            self._told(after)
            self.send(DeviceTopic(after.device, Channel.ASSIGNMENT), envelope, retain=True)
        self.assignments += len(assignments)

    def note(self, what: str, subject: str, detail: str, reporter: str | None = None) -> None:
        """Write a line of history: `reporter` said so; None: whoever is `acting` did it."""
        actor = reporter or acting().actor
        log.info(what, subject=subject, detail=detail, actor=actor)
        self.ledger.note(Note(self.clock(), what, subject, detail, actor))

    def send(self, topic: Topic, payload: bytes, *, retain: bool) -> None:
        """Queue a publish until the transaction that it tells of is committed."""
        self._outbox.append((topic, payload, retain))

    def publish(self) -> None:
        """Say what was queued. Only after the commit."""
        queued, self._outbox = self._outbox, []
        for topic, payload, retain in queued:
            self._wire.publish(topic, payload, qos=1, retain=retain)
