"""The detectors of one release on this device: drift of its confidence, and skew of what it sees and says.

    .window(mean)  each WINDOW inferences ──▶ core.drift ─┐
    .classes, .inputs, and .hour_over() each hour ──▶ core.skew ─┴──▶ .state, .take_changes()

On the serving loop. They count nothing themselves and log nothing; what changed is taken by who logs. All that they
remember survives a restart as bytes: `to_state`.
"""

import random
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from muster_agent.core import drift as d
from muster_agent.core import skew as s
from muster_agent.metrics.port import DriftState
from muster_agent.metrics.reference import Counts, Floats, Reference, binned

STATE_BYTES_MAX = 256 * 1024
_CHANGES_MAX = 16
_CLASSES = "classes"


class _Remembered(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down. Counts are lists of whole numbers by name."""

    drift: d.Drift
    hours: tuple[dict[str, tuple[int, ...]], ...]
    this_hour: dict[str, tuple[int, ...]]
    skewed: bool
    row: int
    known: bool


class Detectors:
    """Both detectors of one release. Without a reference they say UNKNOWN, and take what they are given."""

    def __init__(
        self,
        reference: Reference | None,
        state: bytes = b"",
        chance: Callable[[], float] = random.random,
    ) -> None:
        """
        Args:
            state: What `to_state` of the same release gave; what cannot be used is as nothing.
            chance: Gives a number from 0 to 1.
        """
        self._reference = reference
        self._chance = chance
        self._ranks: d.Ranks | None = None
        self._expected: dict[str, Counts] = {}
        if reference is not None:
            if reference.confidence_windows.size:
                self._ranks = d.Ranks(reference.confidence_windows.tolist(), reference.confidence_error)
            self._expected = dict(_expected(reference))
        self._drift = d.Drift()
        self._skew = s.Skew()
        self._hour = {name: np.zeros_like(counts) for name, counts in self._expected.items()}
        self._changes: list[tuple[DriftState, str]] = []
        if state:
            self._remember(state)

    @property
    def state(self) -> DriftState:
        """What is to be said now; DRIFTING before SKEWED, where both are so."""
        if self._drift.standing is d.Standing.DRIFTING:
            return DriftState.DRIFTING
        if self._skew.skewed:
            return DriftState.SKEWED
        quiet = self._drift.standing is d.Standing.QUIET or (self._ranks is None and self._skew.known)
        return DriftState.QUIET if quiet else DriftState.UNKNOWN

    def window(self, mean_confidence: float) -> None:
        """Take the mean confidence of WINDOW inferences, 0..1; NaN is passed over."""
        if self._ranks is None:
            return
        self._drift, turn = d.observe(self._ranks, self._drift, mean_confidence, self._chance())
        if turn is None:
            return
        now = f"the last window's mean is {mean_confidence:.3f}, the reference's median {self._ranks.median:.3f}"
        match turn:
            case d.Turn.FELL:
                self._changed(f"confidence fell: {now}")
            case d.Turn.ROSE:
                self._changed(f"confidence rose: {now}")
            case d.Turn.RETURNED:
                self._changed(f"confidence is as it was: {now}")

    def classes(self, counts: Mapping[int, int] | Counts) -> None:
        """Add inferences by class: index -> count, or int64 [classes]. Of a class that the reference lacks: none."""
        into = self._hour.get(_CLASSES)
        if into is None:
            return
        if isinstance(counts, Mapping):
            for index, count in counts.items():
                if 0 <= index < len(into):
                    into[index] += count
        else:
            number = min(len(into), len(counts))
            into[:number] += counts[:number]

    def inputs(self, name: str, row_means: Floats, row_stds: Floats) -> None:
        """Add rows of an input by what `reference.statistics` says of them, float64 [n]; NaN is passed over."""
        one = None if self._reference is None else self._reference.inputs.get(name)
        if one is not None:
            self._hour[_mean_of(name)] += binned(row_means[np.isfinite(row_means)], one.mean_edges)
            self._hour[_std_of(name)] += binned(row_stds[np.isfinite(row_stds)], one.std_edges)

    def hour_over(self) -> None:
        """Say that an hour is over: what was added since the last one is held against the reference."""
        if not self._expected:
            return
        before = self._skew.skewed
        self._skew = s.hour_over(self._skew, self._hour, self._expected)
        self._hour = {name: np.zeros_like(counts) for name, counts in self._expected.items()}
        if self._skew.skewed != before:
            how = "is spread unlike" if self._skew.skewed else "is spread again as"
            self._changed(f"{self._skew.worst} {how} the reference: distance {self._skew.farthest:.2f} of 1 over a day")

    def take_changes(self) -> list[tuple[DriftState, str]]:
        """Return what changed since the last call, for the log: the state afterwards, and why. Oldest first."""
        changes, self._changes = self._changes, []
        return changes

    def to_state(self) -> bytes:
        """Return what they remember, STATE_BYTES_MAX at most."""
        remembered = _Remembered(
            drift=self._drift,
            hours=tuple(_listed(hour) for hour in self._skew.hours),
            this_hour=_listed(self._hour),
            skewed=self._skew.skewed,
            row=self._skew.row,
            known=self._skew.known,
        )
        raw = msgspec.json.encode(remembered)
        if len(raw) > STATE_BYTES_MAX:  # Of very many inputs: the alarms survive, the day's counts begin anew.
            raw = msgspec.json.encode(msgspec.structs.replace(remembered, hours=(), this_hour={}))
        return raw

    def _remember(self, state: bytes) -> None:
        try:
            if len(state) > STATE_BYTES_MAX:
                return
            found = msgspec.json.decode(state, type=_Remembered)
        except (msgspec.DecodeError, RecursionError):
            return
        if not found.drift.is_sound() or len(found.hours) > s.HOURS or not 0 <= found.row < s.LAST:
            return
        hours = tuple(self._fitting(hour) for hour in found.hours)
        if self._ranks is not None:
            self._drift = found.drift
        self._skew = s.Skew(hours, found.skewed, found.row, found.known)
        self._hour |= self._fitting(found.this_hour)

    def _fitting(self, hour: Mapping[str, tuple[int, ...]]) -> dict[str, Counts]:
        return {
            name: np.array(counts, np.int64)
            for name, counts in hour.items()
            if name in self._expected
            and len(counts) == len(self._expected[name])
            and all(0 <= count <= 1 << 48 for count in counts)
        }

    def _changed(self, why: str) -> None:
        self._changes = [*self._changes, (self.state, why)][-_CHANGES_MAX:]


def _expected(reference: Reference) -> list[tuple[str, Counts]]:
    found = [(_CLASSES, reference.classes)] if reference.classes.size else []
    for name, one in reference.inputs.items():
        found += [(_mean_of(name), one.mean_counts), (_std_of(name), one.std_counts)]
    return found


def _mean_of(name: str) -> str:
    return f"input.{name}.mean"


def _std_of(name: str) -> str:
    return f"input.{name}.std"


def _listed(hour: Mapping[str, Counts]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(counts.tolist()) for name, counts in hour.items() if counts.any()}
