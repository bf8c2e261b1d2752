"""`ports.Ledger` on SQLite and PostgreSQL: a cache of what the fleet looks at all the time, one commit a transaction.

    transaction ─ save_* ─▶ Draft (in memory) ─ outermost end ─▶ one BEGIN … COMMIT ─▶ cache, `on_commit`
         └ inner transactions stack drafts: an inner one that fails is forgotten, an outer one that fails takes all

Nothing reaches the database before the outermost transaction ends well, so the cache never holds what was rolled back,
and a gateway may commit a hundred messages at the price of one fsync. Every commit is fenced (`lease`): when another
process wrote since this one last looked, nothing is kept, everything is read anew, and LedgerMoved has the caller start
again. Writing belongs to one thread. `committed()` may be called from any thread; so may everything in `reader`.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection

from muster_controller.audit.audited import entry, is_audited
from muster_controller.core.rollout.events import Changes, Plot
from muster_controller.core.rollout.state import ENDED, Rollout
from muster_controller.db.audit import append_all
from muster_controller.db.cache import Cache
from muster_controller.db.draft import Draft, SavedRollout, newest_first
from muster_controller.db.engine import find_database
from muster_controller.db.errors import LedgerMisused, LedgerMoved, LedgerUnavailable
from muster_controller.db.lease import Lead, lock_writer, read_writer, set_generation, write_lease
from muster_controller.db.migrate import migrate
from muster_controller.db.reader import LedgerReader
from muster_controller.db.saving import write
from muster_controller.db.snapshot import Committed, Touched
from muster_controller.ports import Baseline, Desired, Device, Issued, Note
from muster_shared.ids import DeviceId, EventId, ModelName, RolloutId
from muster_shared.messages import Event


class SqlLedger:
    """The database at a path or a URL, which is migrated, and for a path created, as needed."""

    def __init__(
        self, where: Path | str, clock: Callable[[], float], on_commit: Callable[[Touched], None] | None = None
    ) -> None:
        """Open it and read what is always at hand.

        Args:
            where: a SQLite file, or a `sqlite:` or `postgresql:` URL.
            on_commit: called after each commit, from the writing thread; it must not wait.
        Raises:
            LedgerUnavailable: the database cannot be opened or written.
            LedgerTooNew: a newer controller wrote it.
            LedgerUrlInvalid: the URL names nothing that can be used.
        """
        self._database = find_database(where)
        self._clock = clock
        self._on_commit = on_commit
        self._writer = self._database.open_writer()
        migrate(self._writer, self._database)
        self.reader = LedgerReader(self._database)
        self._cache = Cache(self.reader.everything(), self.reader.ended)
        self._is_in_doubt = False
        """Whether the database may have moved without the cache: a commit was cut off, or a look at it failed."""
        self._drafts: list[Draft] = []
        self._new_events: set[EventId] = set()
        """Events that the database did not have at the generation of the cache."""
        self._thread: int | None = None

    @property
    def label(self) -> str:
        """What to call the database before people and in logs; it has no password."""
        return self._database.label

    def close(self) -> None:
        """Close it. What is not committed is lost."""
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
            LedgerMoved: another process wrote since the last look; nothing is kept, and what is read now is new.
            LedgerUnavailable: the commit failed, or was cut off and may or may not have been kept: the next look tells.
            LedgerRefused: the database takes no such value; nothing is kept.
            LedgerMisused: another thread is inside one.
        """
        if self._drafts and self._thread != threading.get_ident():
            raise LedgerMisused("two threads write to one ledger; give it to the fleet thread alone")
        self._thread = threading.get_ident()
        if self._is_in_doubt and not self._drafts:
            self.catch_up()
        draft = Draft()
        self._drafts.append(draft)
        try:
            yield
            if len(self._drafts) == 1 and not draft.is_empty:
                self._commit(draft)
        finally:
            ended = self._drafts.pop()
            assert ended is draft, "transactions end in the reverse order of their beginning"
        if self._drafts:
            self._drafts[-1].take_over(draft)

    def committed(self) -> Committed:
        """Return the fleet as of the last commit that this process knows of. From any thread."""
        return self._cache.committed()

    def catch_up(self) -> bool:
        """Read everything anew if another process wrote; return whether it did. Outside a transaction."""
        assert not self._drafts, "what a transaction has read must not change under it"
        self._is_in_doubt = True
        if self.reader.generation() != self._cache.generation:
            self._reload()
            return True
        self._is_in_doubt = False
        return False

    # -- the lease ---------------------------------------------------------------------------------------------------

    def lead(self, holder: str, url: str, ttl_s: float) -> Lead:
        """Take or renew the lease for `ttl_s` if nobody else has it; say who leads.

        Args:
            holder: a name that no other running controller has; a restarted one may have its former name, and goes on.
        Raises:
            LedgerUnavailable: the database cannot be reached; who leads is unknown.
        """
        assert holder, "a holder has a name"
        assert not self._drafts, "the lease is no part of a transaction"
        with self._database.translated(), self._writer.begin() as connection:
            writer = read_writer(connection)
            if writer.is_led and writer.holder != holder:
                return Lead(writer.holder, writer.url, is_ours=False)
            write_lease(connection, writer, holder, url, ttl_s)
            generation = writer.generation
            if writer.holder != holder:
                generation += 1  # Whoever led until now cannot commit what it had begun.
                set_generation(connection, generation)
        if writer.generation == self._cache.generation:
            self._cache.advance(generation)
        else:
            self.catch_up()
        return Lead(holder, url, is_ours=True)

    def release(self, holder: str) -> None:
        """Give up the lease if `holder` has it, so that another need not wait for its end."""
        with self._database.translated(), self._writer.begin() as connection:
            writer = read_writer(connection)
            if writer.holder == holder:
                write_lease(connection, writer, "", "", 0.0)

    # -- devices -----------------------------------------------------------------------------------------------------

    def device(self, device: DeviceId) -> Device | None:
        for draft in reversed(self._drafts):
            if device in draft.devices:
                return draft.devices[device]
        return self._cache.devices.get(device)

    def devices(self) -> Sequence[Device]:
        """Return every device, by id."""
        merged: dict[DeviceId, Device | None] = dict(self._cache.devices)
        for draft in self._drafts:
            merged |= draft.devices
        return [found for device in sorted(merged) if (found := merged[device]) is not None]

    def save_device(self, device: Device) -> None:
        self._draft().devices[device.id] = device

    def forget(self, device: DeviceId) -> None:
        draft = self._draft()
        draft.devices[device] = None
        draft.desired[device] = Desired(device, self.desired(device).counter)

    def desired(self, device: DeviceId) -> Desired:
        for draft in reversed(self._drafts):
            if device in draft.desired:
                return draft.desired[device] or Desired(device)
        return self._cache.desired.get(device) or Desired(device)

    def all_desired(self) -> Sequence[Desired]:
        merged: dict[DeviceId, Desired | None] = dict(self._cache.desired)
        for draft in self._drafts:
            merged |= draft.desired
        return [found for device in sorted(merged) if (found := merged[device]) is not None]

    def save_desired(self, desired: Desired) -> None:
        draft = self._draft()
        if desired.counter > self.desired(desired.device).counter:
            draft.issued.append(Issued(desired.device, desired.counter, desired.issued_at, desired.models))
        draft.desired[desired.device] = desired

    def issued(self, device: DeviceId, *, until: float | None = None, limit: int) -> Sequence[Issued]:
        """Return what the device was told, newest first."""
        fresh = [
            issued
            for draft in reversed(self._drafts)
            for issued in reversed(draft.issued)
            if issued.device == device and (until is None or issued.at <= until)
        ][:limit]
        return [*fresh, *self.reader.issued(device, until=until, limit=limit - len(fresh))]

    # -- rollouts ----------------------------------------------------------------------------------------------------

    def rollout(self, rollout: RolloutId) -> Rollout | None:
        for draft in reversed(self._drafts):
            if rollout in draft.rollouts:
                return draft.rollouts[rollout].after
        return self._cache.running.get(rollout) or self.reader.rollout(rollout)

    def rollouts(self, *, running: bool) -> Sequence[Rollout]:
        """Return all rollouts, newest first, or only those that have not ended."""
        stored = self._cache.running.values() if running else self.reader.rollouts()
        merged = {rollout.id: rollout for rollout in stored}
        for draft in self._drafts:
            merged |= {key: saved.after for key, saved in draft.rollouts.items()}
        chosen = (rollout for rollout in merged.values() if not running or rollout.state not in ENDED)
        return sorted(chosen, key=lambda rollout: (rollout.created_at, rollout.id), reverse=True)

    def save_rollout(self, rollout: Rollout, before: Rollout | None, changes: Changes) -> None:
        """Write the rollout itself, its new verdicts, and the rows that `changes` names; of a new one, all of them."""
        self._draft().save_rollout(rollout.id, SavedRollout(before, rollout, changes))

    def save_point(self, rollout: RolloutId, point: Plot) -> None:
        self._draft().points.append((rollout, point))

    def points(self, rollout: RolloutId) -> Sequence[Plot]:
        """Return the points, oldest first."""
        fresh = [point for draft in self._drafts for key, point in draft.points if key == rollout]
        return [*self.reader.points(rollout), *fresh]

    def baselines(self, model: ModelName) -> Sequence[Baseline]:
        """Return the newest first."""
        merged = {key: baseline for key, baseline in self._cache.baselines.items() if key[0] == model}
        for draft in self._drafts:
            merged |= {key: baseline for key, baseline in draft.baselines.items() if key[0] == model}
        return newest_first(merged)

    def baseline_models(self) -> Sequence[ModelName]:
        keys = set(self._cache.baselines).union(*(draft.baselines for draft in self._drafts))
        return sorted({model for model, _ in keys})

    def save_baseline(self, baseline: Baseline) -> None:
        self._draft().baselines[baseline.release.model, baseline.selector] = baseline

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
        if self._cache.has_event(event) or any(event in draft.events for draft in self._drafts):
            return True
        return event not in self._new_events and bool(self.reader.known_events([event]))

    def expect(self, events: Sequence[EventId]) -> None:
        """Look up in one go which of `events` are new, before a transaction asks for each of them."""
        unknown = [event for event in events if not self._cache.has_event(event)]
        # Should another process take one of them meanwhile, then it has moved the generation, and the commit fails.
        self._new_events = set(unknown) - self.reader.known_events(unknown) if unknown else set()

    def note(self, note: Note) -> None:
        """Write a line of history, and the same into the audit log if it tells of a change; who acts is known here."""
        draft = self._draft()
        draft.notes.append(note)
        if is_audited(note):
            draft.audited.append(entry(note))

    def notes(self, limit: int) -> Sequence[Note]:
        fresh = [note for draft in reversed(self._drafts) for note in reversed(draft.notes)][:limit]
        return [*fresh, *(entry.note for entry in self.reader.notes(limit=limit - len(fresh)))]

    def prune(self, before: float) -> None:
        """Delete the history from before `before`. A device resends only what was never acknowledged.

        Of each device's assignments the last one from before then stays: it says what the device ran at that time.
        """
        with self._fenced() as connection:
            for statement in _PRUNE:
                connection.exec_driver_sql(statement.format(before=repr(float(before))))
        self._cache.forget_events()

    # -- writing -----------------------------------------------------------------------------------------------------

    def _draft(self) -> Draft:
        if not self._drafts:
            raise LedgerMisused("nothing is written outside a transaction; use `with ledger.transaction():`")
        if self._thread != threading.get_ident():
            raise LedgerMisused("two threads write to one ledger; give it to the fleet thread alone")
        return self._drafts[-1]

    def _commit(self, draft: Draft) -> None:
        with self._fenced() as connection:
            write(connection, draft)
            append_all(connection, draft.audited)  # Last: everybody who appends waits for whoever has begun to.
        touched = self._cache.adopt(draft, self._cache.generation)
        self._new_events.difference_update(draft.events)
        self._tell(touched)

    @contextmanager
    def _fenced(self) -> Iterator[Connection]:
        """One write transaction, if nobody wrote in between; the generation rises with it."""
        seen = self._cache.generation
        try:
            with self._database.translated(), self._writer.begin() as connection:
                found = lock_writer(connection)
                if found != seen:
                    raise LedgerMoved(self.label, seen, found)
                yield connection
                set_generation(connection, seen + 1)
        except LedgerMoved:
            self._reload()
            raise
        except LedgerUnavailable:
            self._is_in_doubt = True  # The answer to a commit may have got lost with the connection.
            raise
        self._cache.advance(seen + 1)

    def _reload(self) -> None:
        self._is_in_doubt = True
        self._new_events.clear()
        touched = self._cache.replace(self.reader.everything())
        self._is_in_doubt = False
        self._tell(touched)

    def _tell(self, touched: Touched) -> None:
        if self._on_commit is not None:
            self._on_commit(touched)


_PRUNE = (
    "DELETE FROM event WHERE taken_at < {before}",
    "DELETE FROM note WHERE at < {before}",
    "DELETE FROM issued WHERE at < {before} AND counter < (SELECT max(later.counter) FROM issued AS later"
    " WHERE later.device = issued.device AND later.at < {before})",
)
