"""`ports.Ledger` on SQLite: one writer, a cache of what the fleet looks at all the time, one commit a transaction.

    transaction ─ save_* ─▶ _Draft (in memory) ─ outermost end ─▶ one BEGIN … COMMIT ─▶ cache, `on_commit`
         └ inner transactions stack drafts: an inner one that fails is forgotten, an outer one that fails takes all

Nothing reaches SQLite before the outermost transaction ends well, so the cache never holds what was rolled back, and a
gateway may commit a hundred messages at the price of one fsync. Writing belongs to one thread. `committed()` may be
called from any thread; so may everything in `reader`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from sqlalchemy import Connection, delete
from sqlalchemy.dialects.sqlite import insert

from muster_controller.core.rollout import ENDED, Rollout
from muster_controller.db import rows
from muster_controller.db.engine import open_reader, open_writer, translated
from muster_controller.db.errors import LedgerMisused
from muster_controller.db.migrate import migrate
from muster_controller.db.reader import LedgerReader
from muster_controller.db.rows import Values
from muster_controller.db.snapshot import Changes, Committed
from muster_controller.db.tables import (
    BaselineRow,
    ControlRow,
    DesiredRow,
    DeviceRow,
    EventRow,
    MemberRow,
    NoteRow,
    RolloutRow,
    Row,
    VerdictRow,
    table,
)
from muster_controller.ports import Baseline, Desired, Device, Note
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId
from muster_shared.messages import Event

ENDED_CACHED = 64  # Ended rollouts kept at hand: late devices ask for the one of their baseline again and again.
EVENTS_REMEMBERED = 100_000  # Ids of events kept at hand, so that a repeated one costs no look into the file.


@dataclass
class _Draft:
    """What a transaction has written so far; later layers hide earlier ones."""

    devices: dict[DeviceId, Device] = field(default_factory=dict)
    desired: dict[DeviceId, Desired] = field(default_factory=dict)
    rollouts: dict[RolloutId, tuple[Rollout | None, Rollout]] = field(default_factory=dict)
    """What is in the file, and what is to be there."""
    baselines: dict[ModelName, Baseline] = field(default_factory=dict)
    events: dict[EventId, tuple[Event, float]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def take_over(self, inner: "_Draft") -> None:
        self.devices |= inner.devices
        self.desired |= inner.desired
        for key, (before, after) in inner.rollouts.items():
            stored = self.rollouts[key][0] if key in self.rollouts else before
            self.rollouts[key] = (stored, after)
        self.baselines |= inner.baselines
        self.events |= inner.events
        self.notes += inner.notes

    @property
    def is_empty(self) -> bool:
        return not (self.devices or self.desired or self.rollouts or self.baselines or self.events or self.notes)


class SqlLedger:
    """The database at `path`, which is created and migrated as needed."""

    def __init__(
        self, path: Path, clock: Callable[[], float], on_commit: Callable[[Changes], None] | None = None
    ) -> None:
        """Open it and read what is always at hand.

        Args:
            on_commit: called after each commit, from the writing thread; it must not wait.
        Raises:
            LedgerUnavailable: the file cannot be opened or written.
            LedgerTooNew: a newer controller wrote it.
        """
        self.reader = LedgerReader(path, open_reader(path))
        self._path = path
        self._clock = clock
        self._on_commit = on_commit
        self._writer = open_writer(path)
        migrate(self._writer, path)
        self._drafts: list[_Draft] = []
        self._thread: int | None = None
        self._lock = threading.Lock()  # Guards the dictionaries below against `committed`.
        self._devices = {device.id: device for device in self.reader.devices()}
        self._desired = {desired.device: desired for desired in self.reader.all_desired()}
        self._baselines = {baseline.release.model: baseline for baseline in self.reader.baselines()}
        self._running = {rollout.id: rollout for rollout in self.reader.running_rollouts()}
        self._ended: OrderedDict[RolloutId, Rollout] = OrderedDict()
        self._events: OrderedDict[EventId, None] = OrderedDict()

    def close(self) -> None:
        """Close the file. What is not committed is lost."""
        self._drafts.clear()
        self.reader.close()
        self._writer.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- transactions ------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keep everything that is saved inside, or nothing. Nested ones are kept when the outermost ends well.

        Raises:
            LedgerUnavailable: the commit failed; nothing of it is kept.
            LedgerMisused: another thread is inside one.
        """
        if self._drafts and self._thread != threading.get_ident():
            raise LedgerMisused("two threads write to one ledger; give it to the fleet thread alone")
        self._thread = threading.get_ident()
        draft = _Draft()
        self._drafts.append(draft)
        try:
            yield
            if len(self._drafts) == 1 and not draft.is_empty:
                self._write(draft)
        finally:
            ended = self._drafts.pop()
            assert ended is draft, "transactions end in the reverse order of their beginning"
        if self._drafts:
            self._drafts[-1].take_over(draft)
        elif not draft.is_empty:
            self._adopt(draft)

    def committed(self) -> Committed:
        """Return the fleet as of the last commit. From any thread."""
        with self._lock:
            return Committed(
                MappingProxyType(dict(self._devices)),
                MappingProxyType(dict(self._desired)),
                MappingProxyType(dict(self._baselines)),
                MappingProxyType(dict(self._running)),
            )

    # -- devices -----------------------------------------------------------------------------------------------------

    def device(self, device: DeviceId) -> Device | None:
        for draft in reversed(self._drafts):
            if device in draft.devices:
                return draft.devices[device]
        return self._devices.get(device)

    def devices(self) -> Sequence[Device]:
        """Return every device, by id."""
        merged = dict(self._devices)
        for draft in self._drafts:
            merged |= draft.devices
        return [merged[device] for device in sorted(merged)]

    def save_device(self, device: Device) -> None:
        self._draft().devices[device.id] = device

    def desired(self, device: DeviceId) -> Desired:
        for draft in reversed(self._drafts):
            if device in draft.desired:
                return draft.desired[device]
        return self._desired.get(device) or Desired(device)

    def all_desired(self) -> Sequence[Desired]:
        merged = dict(self._desired)
        for draft in self._drafts:
            merged |= draft.desired
        return [merged[device] for device in sorted(merged)]

    def save_desired(self, desired: Desired) -> None:
        self._draft().desired[desired.device] = desired

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def rollout(self, rollout: RolloutId) -> Rollout | None:
        for draft in reversed(self._drafts):
            if rollout in draft.rollouts:
                return draft.rollouts[rollout][1]
        if rollout in self._running:
            return self._running[rollout]
        if rollout in self._ended:
            self._ended.move_to_end(rollout)
            return self._ended[rollout]
        found = self.reader.rollout(rollout)
        if found is not None:
            self._keep_ended(found)
        return found

    def rollouts(self, *, running: bool) -> Sequence[Rollout]:
        """Return all rollouts, newest first, or only those that have not ended."""
        stored = self._running.values() if running else self.reader.rollouts()
        merged = {rollout.id: rollout for rollout in stored}
        for draft in self._drafts:
            merged |= {key: after for key, (_, after) in draft.rollouts.items()}
        chosen = (rollout for rollout in merged.values() if not running or rollout.state not in ENDED)
        return sorted(chosen, key=lambda rollout: (rollout.created_at, rollout.id), reverse=True)

    def save_rollout(self, rollout: Rollout, before: Rollout | None) -> None:
        """Write what differs from `before`, which is what was read in this transaction or None for a new one."""
        draft = self._draft()
        stored = draft.rollouts[rollout.id][0] if rollout.id in draft.rollouts else before
        draft.rollouts[rollout.id] = (stored, rollout)

    def baseline(self, model: ModelName) -> Baseline | None:
        return self.baselines().get(model)

    def baselines(self) -> Mapping[ModelName, Baseline]:
        merged = dict(self._baselines)
        for draft in self._drafts:
            merged |= draft.baselines
        return merged

    def save_baseline(self, baseline: Baseline) -> None:
        self._draft().baselines[baseline.release.model] = baseline

    # -- history -----------------------------------------------------------------------------------------------------

    def take_event(self, event: Event) -> bool:
        draft = self._draft()
        if self.has_event(event.id):
            return False
        draft.events[event.id] = (event, self._clock())
        return True

    def events(self, device: DeviceId | None, limit: int) -> Sequence[Event]:
        """Return the newest events first, in the order in which they were taken."""
        taken = [event for draft in self._drafts for event, _ in draft.events.values()]
        fresh = [event for event in reversed(taken) if device in (None, event.device)][:limit]
        return [*fresh, *(entry.event for entry in self.reader.events(device=device, limit=limit - len(fresh)))]

    def has_event(self, event: EventId) -> bool:
        if event in self._events or any(event in draft.events for draft in self._drafts):
            return True
        return self.reader.has_event(event)

    def note(self, note: Note) -> None:
        self._draft().notes.append(note)

    def notes(self, limit: int) -> Sequence[Note]:
        fresh = [note for draft in reversed(self._drafts) for note in reversed(draft.notes)][:limit]
        return [*fresh, *(entry.note for entry in self.reader.notes(limit=limit - len(fresh)))]

    def prune(self, before: float) -> None:
        """Delete events and notes from before `before`. A device resends only what was never acknowledged."""
        assert not self._drafts, "pruning is a transaction of its own"
        with translated(self._path), self._writer.begin() as connection:
            events, notes = table(EventRow), table(NoteRow)
            connection.execute(delete(events).where(events.c.taken_at < before))
            connection.execute(delete(notes).where(notes.c.at < before))
        self._events.clear()

    # -- writing -----------------------------------------------------------------------------------------------------

    def _draft(self) -> _Draft:
        if not self._drafts:
            raise LedgerMisused("nothing is written outside a transaction; use `with ledger.transaction():`")
        if self._thread != threading.get_ident():
            raise LedgerMisused("two threads write to one ledger; give it to the fleet thread alone")
        return self._drafts[-1]

    def _write(self, draft: _Draft) -> None:
        with translated(self._path), self._writer.begin() as connection:
            _upsert(connection, DeviceRow, [rows.device_values(device) for device in draft.devices.values()])
            _upsert(connection, DesiredRow, [rows.desired_values(desired) for desired in draft.desired.values()])
            for before, after in draft.rollouts.values():
                _write_rollout(connection, before, after)
            _upsert(connection, BaselineRow, [rows.baseline_values(each) for each in draft.baselines.values()])
            _insert(connection, EventRow, [rows.event_values(event, at) for event, at in draft.events.values()])
            _insert(connection, NoteRow, [rows.note_values(note) for note in draft.notes])

    def _adopt(self, draft: _Draft) -> None:
        """Bring the cache to what was just committed."""
        with self._lock:
            self._devices |= draft.devices
            self._desired |= draft.desired
            self._baselines |= draft.baselines
            for key, (_, rollout) in draft.rollouts.items():
                self._running.pop(key, None)
                self._ended.pop(key, None)
                if rollout.state in ENDED:
                    self._keep_ended(rollout)
                else:
                    self._running[key] = rollout
        self._events.update(dict.fromkeys(draft.events))
        while len(self._events) > EVENTS_REMEMBERED:
            self._events.popitem(last=False)
        if self._on_commit is not None:
            self._on_commit(Changes(frozenset(draft.devices), frozenset(draft.rollouts), len(draft.notes)))

    def _keep_ended(self, rollout: Rollout) -> None:
        self._ended[rollout.id] = rollout
        while len(self._ended) > ENDED_CACHED:
            self._ended.popitem(last=False)


def _write_rollout(connection: Connection, before: Rollout | None, after: Rollout) -> None:
    """Write what differs. Members and controls are compared by identity first: the machine shares what it keeps."""
    values = rows.rollout_values(after)
    if before is None:
        _insert(connection, RolloutRow, [values])
    elif values != rows.rollout_values(before):
        _upsert(connection, RolloutRow, [values])
    old_members = {} if before is None else before.members
    old_controls = {} if before is None else before.controls
    said = 0 if before is None else len(before.verdicts)
    _upsert(
        connection,
        MemberRow,
        [
            rows.member_values(after.id, member)
            for key, member in after.members.items()
            if (old := old_members.get(key)) is not member and old != member
        ],
    )
    _upsert(
        connection,
        ControlRow,
        [
            rows.control_values(after.id, control)
            for control_key, control in after.controls.items()
            if (kept := old_controls.get(control_key)) is not control and kept != control
        ],
    )
    _insert(
        connection,
        VerdictRow,
        [rows.verdict_values(after.id, said + index, verdict) for index, verdict in enumerate(after.verdicts[said:])],
    )


def _upsert(connection: Connection, row: type[Row], values: list[Values]) -> None:
    if not values:
        return
    target = table(row)
    statement = insert(target)
    keys = [column.name for column in target.primary_key.columns]
    replaced = {column.name: statement.excluded[column.name] for column in target.columns if column.name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=replaced), values)


def _insert(connection: Connection, row: type[Row], values: list[Values]) -> None:
    if values:
        connection.execute(insert(table(row)), values)
