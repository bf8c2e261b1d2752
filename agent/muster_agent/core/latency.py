"""Latency histograms: nanoseconds into log-linear buckets, for all stages of an inference at a fifth of a microsecond.

    record(queue, input, compute, output) ──> ring of raw nanoseconds ──full, or read──> NumPy folds it into counts

The grid is that of the sketches which devices report: floor(16 log2 of microseconds), 2.2 % relative error. Recording
does not sort, allocate or take a logarithm; folding does, 512 inferences at a time. Pure: it reads no clock. One thread
writes and reads.
"""

import math
from collections.abc import Sequence
from struct import Struct as Layout

import msgspec
import numpy as np
import numpy.typing as npt

GRID = 16  # Buckets for each doubling: 2.2 % relative error. Fixed, so sketches of a fleet can be summed.
BUCKET_MAX = 511  # floor(16 log2 of 68 minutes in us); everything slower is in it.
BUCKETS = BUCKET_MAX + 1
STAGES = ("queue", "input", "compute", "output")
RECORDS = 512  # In the ring: folding them takes 20 us, which no request notices.

_ROW = Layout("=4q")
_ROW_BYTES = _ROW.size
_RING_BYTES = RECORDS * _ROW_BYTES
_pack_into = _ROW.pack_into
_OFFSETS = np.arange(len(STAGES)) * BUCKETS

Counts = npt.NDArray[np.int64]


class StageSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One stage's histogram."""

    count: int = 0
    sum_ns: int = 0
    buckets: tuple[tuple[int, int], ...] = ()
    """(floor(16 log2 us), count), ascending, without empty ones."""

    def quantile_ms(self, share: float) -> float | None:
        """Return the latency in ms that `share` (0..1) stay within; None when there were none."""
        return quantile_ms(self.buckets, share)

    def cumulative(self, edges: int = 27) -> tuple[tuple[float, int], ...]:
        """Return (upper edge in seconds, count below it) for each doubling from 1 us, as Prometheus has them.

        `edges` 27 ends at 67 s. Exact up to a nanosecond: an edge itself counts as above it.
        """
        found: list[tuple[float, int]] = []
        seen, at = 0, 0
        for doubling in range(edges):
            while at < len(self.buckets) and self.buckets[at][0] < doubling * GRID:
                seen += self.buckets[at][1]
                at += 1
            found.append((2**doubling / 1e6, seen))
        return tuple(found)


class Histogram:
    """One latency, recorded now and then: where a list is enough."""

    __slots__ = ("_counts", "_pending", "_sum_ns")

    def __init__(self) -> None:
        self._counts = np.zeros(BUCKETS, np.int64)
        self._sum_ns = 0
        self._pending: list[int] = []

    def record(self, ns: int) -> None:
        self._pending.append(ns)
        if len(self._pending) >= RECORDS:
            self._fold()

    def snapshot(self) -> StageSnapshot:
        self._fold()
        return _snapshot(self._counts, self._sum_ns)

    def _fold(self) -> None:
        if self._pending:
            values = np.array(self._pending, np.int64)
            self._pending.clear()
            self._sum_ns += int(values.sum())
            self._counts += np.bincount(bucket_of(values), minlength=BUCKETS)


class StageHistograms:
    """The four stages of every inference of one release."""

    __slots__ = ("_at", "_batches", "_batches_at", "_counts", "_queues", "_ring", "_sums_ns")

    def __init__(self) -> None:
        self._counts = np.zeros(len(STAGES) * BUCKETS, np.int64)
        self._sums_ns = [0] * len(STAGES)
        self._ring = bytearray(_RING_BYTES)  # Rows of (queue, input, compute, output), one a single inference.
        self._at = 0
        self._batches = bytearray(_RING_BYTES)  # Rows of (calls, input, compute, output), one a batch,
        self._batches_at = 0
        self._queues: list[int] = []  # and how long each of its calls waited.

    def record(self, queue_ns: int, input_ns: int, compute_ns: int, output_ns: int) -> None:
        """Record one inference that ran by itself. Nanoseconds, >= 0."""
        at = self._at
        _pack_into(self._ring, at, queue_ns, input_ns, compute_ns, output_ns)
        self._at = at = at + _ROW_BYTES
        if at == _RING_BYTES:
            self._fold_singles()

    def record_batch(self, queues_ns: Sequence[int], input_ns: int, compute_ns: int, output_ns: int) -> None:
        """Record the calls that ran as one: what each waited, and the stages that they shared."""
        at = self._batches_at
        _pack_into(self._batches, at, len(queues_ns), input_ns, compute_ns, output_ns)
        self._batches_at = at = at + _ROW_BYTES
        self._queues += queues_ns
        if at == _RING_BYTES or len(self._queues) >= RECORDS:
            self._fold_batches()

    def snapshot(self) -> dict[str, StageSnapshot]:
        """Return the histogram of each of STAGES, with everything that was recorded."""
        self._fold_singles()
        self._fold_batches()
        counts = self._counts.reshape(len(STAGES), BUCKETS)
        return {stage: _snapshot(counts[index], self._sums_ns[index]) for index, stage in enumerate(STAGES)}

    def _fold_singles(self) -> None:
        if not self._at:
            return
        rows = np.frombuffer(self._ring, np.int64, self._at // 8).reshape(-1, len(STAGES))
        self._add_sums(rows.sum(axis=0))
        self._counts += np.bincount((bucket_of(rows) + _OFFSETS).reshape(-1), minlength=len(self._counts))
        self._at = 0

    def _fold_batches(self) -> None:
        if not self._batches_at:
            return
        rows = np.frombuffer(self._batches, np.int64, self._batches_at // 8).reshape(-1, len(STAGES))
        calls, shared = rows[:, 0], rows[:, 1:]
        queues = np.array(self._queues, np.int64)
        self._add_sums([queues.sum(), *(shared * calls[:, None]).sum(axis=0)])
        places = (bucket_of(shared) + _OFFSETS[1:]).reshape(-1)
        weighted = np.bincount(places, weights=np.repeat(calls, len(STAGES) - 1), minlength=len(self._counts))
        self._counts += weighted.astype(np.int64)
        self._counts[:BUCKETS] += np.bincount(bucket_of(queues), minlength=BUCKETS)
        self._batches_at = 0
        self._queues.clear()

    def _add_sums(self, sums_ns: Sequence[np.int64] | Counts) -> None:
        for index, sum_ns in enumerate(sums_ns):
            self._sums_ns[index] += int(sum_ns)


def bucket(latency_us: float) -> int:
    """Return the bucket of a latency: floor(16 log2 us), 0..BUCKET_MAX; below 1 us is bucket 0."""
    if latency_us <= 1.0:
        return 0
    return min(BUCKET_MAX, math.floor(GRID * math.log2(latency_us)))


def middle_ms(index: int) -> float:
    """Return the geometric middle of a bucket in ms."""
    return float(2 ** ((index + 0.5) / GRID)) / 1e3


def quantile_ms(buckets: Sequence[tuple[int, int]], share: float) -> float | None:
    """Return the latency in ms that `share` (0..1) of what was counted stays within; None when nothing was.

    Args:
        buckets: (bucket, count), in ascending order.
    """
    total = sum(count for _, count in buckets)
    seen = 0
    for index, count in buckets:
        seen += count
        if seen >= share * total:
            return middle_ms(index)
    return None


def bucket_of(ns: Counts) -> Counts:
    """Return the `bucket` of each latency in nanoseconds."""
    grid: Counts = (np.log2(np.maximum(ns, 1000) / 1e3) * GRID).astype(np.int64)
    return np.minimum(grid, BUCKET_MAX)


def _snapshot(counts: Counts, sum_ns: int) -> StageSnapshot:
    filled = np.flatnonzero(counts)
    buckets = tuple(zip(filled.tolist(), counts[filled].tolist(), strict=True))
    return StageSnapshot(count=int(counts.sum()), sum_ns=sum_ns, buckets=buckets)
