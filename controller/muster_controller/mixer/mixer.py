"""The mixer: windows in, noised sums out, each step one transaction of the ledger.

    take      windows ─▶ opened, checked ─▶ sums of their cells, counters: one commit; the linkage is gone with it
    turn      periods that are due ─▶ charged, noised, into the outbox: one commit each, before anything is sent
    outbox    what the controller has not acknowledged ─▶ whoever sends it

It knows no connection and no thread (`process` does), and never says in a log or an error what a window held.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import structlog

from muster_controller.mixer.batching import (
    OLD_S,
    OpenPeriod,
    Period,
    Verdict,
    add,
    gather,
    is_due,
    is_last,
    is_overdue,
    period_of,
    verdict,
)
from muster_controller.mixer.config import MixerConfig
from muster_controller.mixer.ledger import Counter, MixLedger, Waiting
from muster_controller.mixer.noise import RandBelow
from muster_controller.mixer.noising import mixed
from muster_shared.errors import WireError
from muster_shared.metrics import Cell, Mixed, MixerState, Window, cohort, eps

CELL_WINDOWS_MAX: Final = 200_000
"""Of a cell and period: nobody has more devices in one, and whoever sends without end is stopped here."""
NOTED_MAX: Final = 2_000_000  # Nonces of open periods, some 40 bytes each.
CELLS_MAX: Final = 20_000  # Pending, of all periods.
BUDGETS_TOLD: Final = 40
LOOK_S: Final = 600.0

log = structlog.get_logger()


class Mixer:
    """One mixer. One thread uses it. Whatever it raises is of the ledger, and then nothing of the step was done."""

    def __init__(
        self,
        config: MixerConfig,
        ledger: MixLedger,
        unseal: Callable[[bytes], Window],
        below: RandBelow,
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            unseal: `muster_shared.sealing.open_sealed` with our keys; raises WireError.
            below: all the randomness of the noise: `noise.OsRandom`, but for tests.
            clock: Unix seconds of what is measured, a lab's may run faster.
        """
        self._config = config
        self._ledger = ledger
        self._unseal = unseal
        self._below = below
        self._clock = clock
        self._look_at: dict[Period, float] = {}
        """When to look again whether a day has devices enough."""

    def take(self, raws: Sequence[tuple[int, bytes]]) -> bool:
        """Count windows; when it returns they are safe and may be acknowledged.

        Args:
            raws: cohort of the topic, and what came on it.
        Returns:
            Whether some were of hours that end now: the broker still tells what it kept while we were away.
        """
        now = self._clock()
        counts: dict[Counter, int] = defaultdict(int)
        opened = self._open((raw for number, raw in raws if number in self._config.cohorts), now, counts)
        with self._ledger.transaction():
            taken: dict[tuple[Period, Cell], list[Window]] = defaultdict(list)
            room = _Room(self._ledger)
            for window in opened:
                period = period_of(window)
                if self._ledger.is_closed(period):
                    counts["too_late"] += 1
                elif not room.has(period, window.cell, len(taken[period, window.cell])):
                    counts["refused"] += 1
                elif not self._ledger.note(period, window.nonce):
                    counts["repeated"] += 1
                else:
                    taken[period, window.cell].append(window)
            for (period, cell), windows in taken.items():
                if windows:
                    sums = add(self._ledger.pending(period, cell), windows, int(now))
                    self._ledger.save(period, cell, sums, len(windows))
                    counts["windows"] += len(windows)
            self._ledger.count(counts)
        if room.is_full:
            log.warning("mixer_full", cells_max=CELLS_MAX, windows_max=NOTED_MAX, cell_windows_max=CELL_WINDOWS_MAX)
        return any(windows and is_overdue(period, now) for (period, _), windows in taken.items())

    def turn(self, *, settled: bool) -> int:
        """Put the sums of all periods that are due into the outbox; how many messages there are more.

        Args:
            settled: all that the broker kept while nobody was there has been taken.
        """
        now = self._clock()
        open_periods = self._ledger.open_periods()
        self._look_at = {one.period: self._look_at.get(one.period, now) for one in open_periods}
        messages = 0
        for one in open_periods:
            if now >= self._look_at[one.period] and is_due(one, now, settled=settled):
                self._look_at[one.period] = now + LOOK_S
                messages += self._publish(one, now)
        self._ledger.end_old(now)
        return messages

    def outbox(self, after: int, limit: int) -> tuple[Waiting, ...]:
        """Return what the controller has not acknowledged beyond `after`, oldest first."""
        return self._ledger.outbox(after, limit)

    def acknowledged(self, batches: Sequence[str]) -> None:
        """The controller has them."""
        self._ledger.acknowledged(batches)

    def state(self, key: str, sent_at: float) -> MixerState:
        """Return what is said of this mixer; `key` names the one that windows are sealed to."""
        return mixer_state(self._config, self._ledger, key, sent_at)

    def _open(self, raws: Iterable[bytes], now: float, counts: dict[Counter, int]) -> list[Window]:
        opened: list[Window] = []
        for raw in raws:
            try:
                window = self._unseal(raw)
            except WireError:
                counts["refused"] += 1
                continue
            judged = verdict(period_of(window), now)
            if judged is Verdict.TOO_LATE:
                counts["too_late"] += 1
            elif judged is Verdict.REFUSED or cohort(window.cell) not in self._config.cohorts:
                counts["refused"] += 1
            else:
                opened.append(window)
        return opened

    def _publish(self, one: OpenPeriod, now: float) -> int:
        period, ledger = one.period, self._ledger
        pendings = ledger.pendings(period)
        gathered = gather(pendings, self._config.k_min, last=is_last(one, now))
        dropped = pendings.keys() - gathered.waiting
        if not dropped:
            return 0
        messages: list[Mixed] = []
        counts: dict[Counter, int] = {"suppressed": gathered.suppressed}
        with ledger.transaction():
            if gathered.published and ledger.charge(period, self._config.release, self._config.budget):
                number = ledger.releases(period)
                messages = [
                    mixed(
                        self._config.mixer,
                        period,
                        cell,
                        sums,
                        number=number,
                        release=self._config.release,
                        now=now,
                        below=self._below,
                    )
                    for cell, sums in sorted(gathered.published.items())
                ]
                ledger.publish(period, messages, now)
            else:
                counts["out_of_budget"] = len(gathered.published)
            ledger.drop(period, sorted(dropped))
            ledger.count(counts)
            if not period.is_day or now >= period.end + OLD_S:
                ledger.end(period)
        ledger.wipe_traces()
        log.info(
            "period_mixed",
            start=period.start,
            length_s=period.length_s,
            cells=len(messages),
            waiting=len(gathered.waiting),
            **counts,
        )
        return len(messages)


def mixer_state(config: MixerConfig, ledger: MixLedger, key: str, sent_at: float) -> MixerState:
    """Return what `ledger` says, with the parameters of `config`."""
    counters: Mapping[str, int] = ledger.counters()
    return MixerState(
        mixer=config.mixer,
        sent_at=sent_at,
        key=key,
        cohorts=config.cohorts,
        delta=config.delta,
        eps_day=eps(config.rho_day, config.delta),
        eps_30_days=eps(30 * config.rho_day, config.delta),
        k_min=config.k_min,
        budgets=ledger.budgets(BUDGETS_TOLD, config.budget),
        windows=counters.get("windows", 0),
        refused=counters.get("refused", 0),
        repeated=counters.get("repeated", 0),
        too_late=counters.get("too_late", 0),
        suppressed=counters.get("suppressed", 0),
        out_of_budget=counters.get("out_of_budget", 0),
    )


class _Room:
    """What still fits, while one batch of windows is taken."""

    def __init__(self, ledger: MixLedger) -> None:
        self.is_full = False
        self._ledger = ledger
        self._noted = ledger.noted()
        self._cells = ledger.cells()
        self._in_cell: dict[tuple[Period, Cell], int] = {}

    def has(self, period: Period, cell: Cell, taken: int) -> bool:
        """Whether one more window fits, where `taken` of this batch are in its cell already."""
        before = self._in_cell.get((period, cell))
        if before is None:
            pending = self._ledger.pending(period, cell)
            if pending is None and self._cells >= CELLS_MAX:
                self.is_full = True
                return False
            self._cells += pending is None
            before = self._in_cell[period, cell] = pending.devices if pending else 0
        if before + taken >= CELL_WINDOWS_MAX or self._noted >= NOTED_MAX:
            self.is_full = True
            return False
        self._noted += 1
        return True
