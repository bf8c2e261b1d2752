"""Counting of one served release: what it said, how sure it was, how fast and how often right; nothing of any input.

    serving loop ── ran: a reference to the answer ──▶ waiting ── fold: FOLD_ROWS at once ──▶ counts ── take ──▶ Tally
                     └── of every 64th row its input ──▶ `samples` ──┘ └── mean confidence of WINDOW rows ──▶ Observer

A single inference costs an append; the rest is done some hundred at a time. Of what comes between two looks the first
ROWS_A_LOOK are counted and stand for the others: when somebody looks does not depend on what is answered, and who is
asked little is looked at before so many have come. What is counted anyway, for the twin and for probation
(`serving.stats`), is counted in full, and not twice: a tally takes its difference. What waits is WAITING_BYTES of
answers at most and one batch, until the next look, and as much of inputs (`samples`), for a minute. It reads no clock
and judges nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from muster_agent.core.latency import GRID
from muster_agent.engines.port import Array
from muster_agent.metrics.confidence import classes_and_confidence, has_classes
from muster_agent.metrics.port import DriftState, Release, Tally
from muster_agent.metrics.reference import WINDOW
from muster_agent.metrics.samples import SAMPLED_EVERY, Sampler
from muster_agent.serving.call import Call
from muster_agent.serving.stats import Snapshot, WindowStats
from muster_shared.bundle import Manifest
from muster_shared.ids import Sha256
from muster_shared.metrics import (
    CLASSES_MAX,
    CONFIDENCE_BINS,
    INPUTS,
    LATENCY_BUCKETS,
    LATENCY_GRID,
    Kind,
)

ROWS_A_LOOK: Final = 2 * WINDOW
"""After so many the meter stops listening until the next look. Whole windows: few are of what came before and after."""
FOLD_ROWS: Final = ROWS_A_LOOK
"""So many answers at once: 0.2 ms of the serving loop."""
INPUTS_S: Final = 60.0
"""So long a sampled input is in memory, about: as long as a tally takes to come."""
FOLD_ROWS_UNKNOWN: Final = 16
"""Of answers whose size is not known before they come."""
WAITING_BYTES: Final = 1024 * 1024
_NEVER: Final = 1 << 62
_FINER: Final = GRID // LATENCY_GRID
_REFUSED, _FAILED, _TIMED_OUT, _REJECTED = (INPUTS.index(at) for at in ("refused", "failed", "timed_out", "rejected"))


class Observer(Protocol):
    """What watches a release for drift and skew. On the serving loop."""

    @property
    def state(self) -> DriftState: ...

    def window(self, mean_confidence: float) -> None:
        """Take the mean confidence of WINDOW inferences in a row, 0..1."""
        ...

    def classes(self, counts: npt.NDArray[np.int64]) -> None:
        """Add inferences by class."""
        ...

    def inputs(self, name: str, row_means: npt.NDArray[np.float64], row_stds: npt.NDArray[np.float64]) -> None:
        """Add sampled rows of one input, by what `reference.statistics` says of them."""
        ...

    def hour_over(self) -> None:
        """Say that an hour is over."""
        ...


class Listened(Protocol):
    """What a meter listens to: a `serving.table.Place`."""

    counted: Callable[[Sequence[Call]], None] | None


class Meter:
    """The counts of one release for the life of the agent, however often it is loaded. On the serving loop only."""

    def __init__(
        self,
        release: Release,
        stats: WindowStats,
        sampler: Sampler,
        *,
        width: int = 0,
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            stats: Where the same release's requests are counted; what is there already is not counted again.
            width: Classes that the first output has, where the manifest says it; 0: they differ, or are unknown.
        """
        self.release = release
        self.observer = observer
        self.cpu_ms: float = 0.0
        """Processor time, as `cpu` shares it out. Any thread may read it."""
        self._stats = stats
        self._sampler = sampler
        self._taken = stats.snapshot()
        self._rows_before = stats.rows
        self._rows_paced = 0
        self._inputs_s = 0.0  # That the oldest sampled input may have waited.
        self._labelled = dict(stats.by_label)
        # Inferences by class, then by confidence. A confidence of 1 has a bin of its own until a tally is taken.
        self._counts = np.zeros(release.classes + CONFIDENCE_BINS + 1)
        self._counts_now = np.zeros(len(self._counts), np.int64)  # Since the last look, before they are weighted.
        self._heard = 0
        self._place: Listened | None = None
        self._sampled = np.zeros(len(INPUTS), np.int64)
        self._width = width
        self._waiting: list[Array] = []
        self._more_rows = 0  # Beyond one for each that waits.
        self._fold_rows = max(1, min(FOLD_ROWS, WAITING_BYTES // (4 * max(width, 1))))
        if release.classes and not width:
            self._fold_rows = FOLD_ROWS_UNKNOWN
        self._stride = SAMPLED_EVERY if sampler.is_of_use else _NEVER
        # At so many waiting rows the next input is sampled, and at so many anything is due.
        self._sample_at = self._stride
        self._turn_at = min(self._sample_at, self._fold_rows)
        self._begun: npt.NDArray[np.float32] = np.zeros(0, np.float32)  # Confidence of the window that is not full yet.

    def listen(self, place: Listened) -> None:
        """Listen to `place` from now on: the release is loaded, or loaded again."""
        self._place = place
        place.counted = self.listener

    @property
    def listener(self) -> Callable[[Sequence[Call]], None] | None:
        """What is to be told, on the serving loop, of the calls of each batch that have ended; None: nothing is."""
        if self.release.classes:
            return self.ran
        return None if self._stride == _NEVER else self.ran_without_classes

    @property
    def drift(self) -> DriftState:
        return DriftState.UNKNOWN if self.observer is None else self.observer.state

    def ran(self, calls: Sequence[Call]) -> None:
        """Take the calls of one batch that have ended. Of what failed nothing is kept."""
        call = calls[0]
        batch = call.batch
        if batch is None or call.rows != 1 or len(calls) != 1:
            self._ran_together(calls)
            return
        waiting = self._waiting
        waiting.append(batch.arrays[0])
        if len(waiting) >= self._turn_at:
            self._turn(call)

    def ran_without_classes(self, calls: Sequence[Call]) -> None:
        """Take the calls of one batch whose answers are not looked at, and may be large: only inputs are sampled."""
        self._more_rows += sum([call.rows for call in calls if call.batch is not None])
        if self._more_rows >= self._turn_at:
            answered = next((call for call in calls if call.batch is not None), None)
            if answered is not None:
                self._turn(answered)

    def look(self, *, inputs: bool = True) -> None:
        """Fold what waits, weigh it, and sample the input of whatever comes next.

        Args:
            inputs: False: the sampled inputs wait on, until there are many of them, or `pace` finds them old.
        """
        self.fold()
        if inputs:
            self._fold_sample()
        rows = self._stats.rows
        seen, self._rows_before = rows - self._rows_before, rows
        self._rows_paced += seen
        if self._heard:
            weight = max(1.0, seen / self._heard) if self._heard >= ROWS_A_LOOK else 1.0
            self._counts += self._counts_now if weight == 1.0 else weight * self._counts_now
            if self.observer is not None and self.release.classes:
                self.observer.classes(self._counts_now[: self.release.classes].copy())
            self._counts_now[:] = 0
            self._heard = 0
        if self._place is not None and self._place.counted is None:
            self._place.counted = self.listener
        if self._stride != _NEVER:
            self._sample_at = self._turn_at = 1

    def pace(self, seconds: float) -> float:
        """Return inferences a second since the last call, counted here or not. About one a second has its input sampled
        from now on, and one of SAMPLED_EVERY at least; inputs that would be older than INPUTS_S at the next are folded.

        Args:
            seconds: Since the last call, > 0.
        """
        rate, self._rows_paced = self._rows_paced / seconds, 0
        self._inputs_s += seconds
        if self._inputs_s + seconds > INPUTS_S:
            self._fold_sample()
        if self._stride != _NEVER:
            self._stride = max(1, min(SAMPLED_EVERY, int(rate)))
        return rate

    def goes_on(self, stats: WindowStats) -> None:
        """Count by `stats` from now on: the release is loaded again. What it says already is not counted."""
        if stats is not self._stats:
            self._stats, self._taken, self._labelled = stats, stats.snapshot(), dict(stats.by_label)
            self._rows_before = stats.rows

    def take(self) -> Tally:
        """Return what was counted since the last time, or since this began. Weighted counts are rounded."""
        self.look()
        at = self._stats.snapshot()
        since, self._taken = at.since(self._taken), at
        self._counts[-2] += self._counts[-1]
        whole = np.rint(self._counts).astype(np.int64)
        counts = {
            Kind.CLASSES: _sparse(whole[: self.release.classes]),
            Kind.CONFIDENCE: _sparse(whole[self.release.classes : -1]),
            Kind.LATENCY: latency_counts(since),
            Kind.INPUTS: input_counts(since, self._sampled),
            Kind.FEEDBACK: self._feedback(),
        }
        self._counts[:] = self._sampled[:] = 0
        return Tally(self.release, since.rows, {kind: found for kind, found in counts.items() if found}, self.drift)

    def fold(self) -> None:
        """Count the answers that wait."""
        rows = len(self._waiting) + self._more_rows
        if not rows:
            return
        waiting, self._waiting, self._more_rows = self._waiting, [], 0
        if waiting:
            self._count(self._joined(waiting, rows))
        self._heard += rows
        if self._heard >= ROWS_A_LOOK and self._place is not None:
            self._place.counted = None
        if self._stride != _NEVER:
            self._sample_at = max(1, self._sample_at - rows)
        self._turn_at = min(self._sample_at, self._fold_rows)

    def _fold_sample(self) -> None:
        self._inputs_s = 0.0
        seen = self._sampler.fold()
        if seen is not None:
            self._sampled += seen.places
            if self.observer is not None:
                for name, means, stds in seen.statistics:
                    self.observer.inputs(name, means, stds)

    def _ran_together(self, calls: Sequence[Call]) -> None:
        last = None
        for call in calls:
            batch = call.batch
            if batch is None or batch is last:
                continue
            last, one = batch, call
            self._waiting.append(batch.arrays[0])
            self._more_rows += len(batch.arrays[0]) - 1 if batch.rows_axis else 0
        if last is not None and len(self._waiting) + self._more_rows >= self._turn_at:
            self._turn(one)

    def _turn(self, call: Call) -> None:
        """Do what is due now: a sample of the inputs, a fold, or both."""
        held = len(self._waiting) + self._more_rows
        if held >= self._sample_at:
            self._sample_at = held + self._stride
            self._sampler.take(call)
            if self._sampler.is_full:
                self._fold_sample()
        if held >= self._fold_rows:
            self.fold()
        else:
            self._turn_at = min(self._sample_at, self._fold_rows)

    def _joined(self, waiting: list[Array], rows: int) -> Array:
        """Return class scores [rows, width] of all that waits. What has another width than the first is left out."""
        first = waiting[0]
        width = self._width or (first.shape[1] if first.ndim == 2 else 0)
        if self._width and len(waiting) > 1:
            try:
                # Arrays give their bytes themselves; `np.concatenate` costs four times as much.
                raw = b"".join(cast(list[bytes], waiting))
                if len(raw) == rows * width * first.itemsize:
                    return np.frombuffer(raw, first.dtype).reshape(rows, width)
            except (BufferError, TypeError):
                pass  # One is not contiguous.
        fitting = [array for array in waiting if has_classes(array) and array.shape[1] == width]
        return np.concatenate(fitting) if fitting else np.zeros((0, 2), np.float32)

    def _count(self, scores: Array) -> None:
        if not len(scores):
            return
        classes, confidence = classes_and_confidence(scores)
        if not math.isfinite(confidence.dot(confidence)):  # Scores that are no numbers say nothing.
            known = np.isfinite(confidence)
            classes, confidence = classes[known], confidence[known]
        number = self.release.classes
        if scores.shape[1] > number:
            classes = np.minimum(classes, number - 1)
        self._counts_now[:number] += np.bincount(classes, minlength=number)
        bins = (confidence * CONFIDENCE_BINS).astype(np.int64)
        self._counts_now[number:] += np.bincount(bins, minlength=CONFIDENCE_BINS + 1)
        if self.observer is not None:
            rows = np.concatenate([self._begun, confidence])
            full = len(rows) - len(rows) % WINDOW
            self._begun = rows[full:]
            for total in np.add.reduce(rows[:full].reshape(-1, WINDOW), axis=1).tolist() if full else ():
                self.observer.window(total / WINDOW)

    def _feedback(self) -> dict[int, int]:
        """Return the places of `Kind.FEEDBACK` -> count; classes beyond the last but one as the last."""
        counts: dict[int, int] = {}
        if not self.release.classes:
            return counts
        for (true, right), total in self._stats.by_label.items():
            new = total - self._labelled.get((true, right), 0)
            self._labelled[true, right] = total
            classes = self.release.classes
            place = 2 * classes if true is None else 2 * min(true, classes - 1) + right
            counts[place] = counts.get(place, 0) + new
        return {place: count for place, count in counts.items() if count}


def meter(
    manifest: Manifest, bundle: Sha256, stats: WindowStats, sampler: Sampler, observer: Observer | None = None
) -> Meter:
    """Return the meter of a release."""
    width = class_width(manifest)
    classes = min(width or len(manifest.labels), CLASSES_MAX) if _may_have_classes(manifest) else 0
    release = Release(
        model=manifest.model,
        version=manifest.version,
        bundle_sha256=bundle,
        classes=classes if classes >= 2 else 0,
        allow=frozenset(manifest.metrics.allow),
    )
    return Meter(release, stats, sampler, width=width, observer=observer)


def class_width(manifest: Manifest) -> int:
    """Return how many class scores the first output has; 0: it has none, or the manifest leaves it open."""
    if not _may_have_classes(manifest):
        return 0
    width = manifest.outputs[0].shape[1]
    return width if width >= 2 else 0


def _may_have_classes(manifest: Manifest) -> bool:
    first = manifest.outputs[0]
    return len(first.shape) == 2 and first.datatype not in ("BYTES", "BOOL") and first.shape[1] != 1


def latency_counts(since: Snapshot) -> dict[int, int]:
    """Return requests by the time of the engine, on the fleet's grid: four of the device's buckets are one of it."""
    counts: dict[int, int] = {}
    for bucket, count in since.latency:
        place = min(bucket // _FINER, LATENCY_BUCKETS - 1)
        counts[place] = counts.get(place, 0) + count
    return counts


def input_counts(since: Snapshot, sampled: npt.NDArray[np.int64]) -> dict[int, int]:
    """Return requests by `INPUTS`. How many of the answered ones were odd is scaled up from the sample, rounded.

    Args:
        sampled: int64 [len(INPUTS)], sampled rows; none: all that was answered is plain.
    """
    answered = since.requests - since.errors
    rows = int(sampled.sum())
    counts = {
        _REFUSED: since.refused,
        _FAILED: since.errors - since.timed_out,
        _TIMED_OUT: since.timed_out,
        _REJECTED: since.rejected,
    }
    left = answered
    for place, share in _sparse(sampled).items() if rows else ():
        if place:
            counts[place] = min(left, round(answered * share / rows))
            left -= counts[place]
    counts[0] = left
    return {place: count for place, count in sorted(counts.items()) if count > 0}


def _sparse(counts: npt.NDArray[np.int64]) -> dict[int, int]:
    places = np.flatnonzero(counts)
    return dict(zip(places.tolist(), counts[places].tolist(), strict=True))
