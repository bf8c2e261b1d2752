"""What a served release did: counts and a latency sketch, and the difference of two readings for a probation window.

Pure counting: it reads no clock and judges nothing. One thread writes (the serving loop); any may take a snapshot.
"""

from collections.abc import Sequence

import msgspec

from muster_agent.core.latency import StageHistograms, StageSnapshot, bucket, quantile_ms
from muster_agent.engines.port import InputRefused
from muster_agent.serving.call import Call, Priority
from muster_agent.serving.execution import Times

NEVER_SLOW_NS = 1 << 62


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One reading, or the difference of two. Counts never fall within one release on one start of the agent."""

    requests: int = 0
    """Answered or failed: what the release was asked and could be asked."""
    errors: int = 0
    """Of those, failed in the engine or past their deadline: the release's fault."""
    timed_out: int = 0
    """Of the errors, past their deadline."""
    slow: int = 0
    """Answered later than the release claims, from whole request to answer; work for later has no such claim."""
    refused: int = 0
    """Requests that did not fit the manifest: the caller's fault, unless a new release changed what fits."""
    rejected: int = 0
    """Turned away because the queue was full."""
    cancelled: int = 0
    """Given up by the caller before an answer."""
    rows: int = 0
    """Inferences: a request for a batch of 8 is 8."""
    labelled: int = 0
    right: int = 0
    duration_us: int = 0
    """Sum over answered requests, from whole request to answer, waiting included."""
    batches: int = 0
    """Calls of the engine that gave at least one answer."""
    hits: int = 0
    """Requests answered from memory."""
    engine_us: int = 0
    """Sum over those calls of the engine."""
    latency: tuple[tuple[int, int], ...] = ()
    """(bucket, count) of the engine's time for one request, in ascending order: waiting depends on the load, not on the
    release, so it is left out."""

    @property
    def p50_ms(self) -> float | None:
        return self.quantile_ms(0.5)

    @property
    def p95_ms(self) -> float | None:
        return self.quantile_ms(0.95)

    def quantile_ms(self, share: float) -> float | None:
        """Return the latency in ms that `share` (0..1) of the requests stay within; None when there were none."""
        return quantile_ms(self.latency, share)

    def since(self, earlier: "Snapshot") -> "Snapshot":
        """Return what happened after `earlier`, a reading of the same release; never below zero."""
        before = dict(earlier.latency)
        latency = ((index, count - before.get(index, 0)) for index, count in self.latency)
        return Snapshot(
            requests=max(0, self.requests - earlier.requests),
            errors=max(0, self.errors - earlier.errors),
            timed_out=max(0, self.timed_out - earlier.timed_out),
            slow=max(0, self.slow - earlier.slow),
            refused=max(0, self.refused - earlier.refused),
            rejected=max(0, self.rejected - earlier.rejected),
            cancelled=max(0, self.cancelled - earlier.cancelled),
            rows=max(0, self.rows - earlier.rows),
            labelled=max(0, self.labelled - earlier.labelled),
            right=max(0, self.right - earlier.right),
            duration_us=max(0, self.duration_us - earlier.duration_us),
            batches=max(0, self.batches - earlier.batches),
            hits=max(0, self.hits - earlier.hits),
            engine_us=max(0, self.engine_us - earlier.engine_us),
            latency=tuple((index, count) for index, count in latency if count > 0),
        )


class WindowStats:
    """The running counts of one served release."""

    def __init__(self) -> None:
        self._requests = 0
        self._errors = 0
        self._timed_out = 0
        self._slow = 0
        self._refused = 0
        self._rejected = 0
        self._cancelled = 0
        self._rows = 0
        self._labelled = 0
        self._right = 0
        self._duration_us = 0
        self._batches = 0
        self._hits = 0
        self._engine_us = 0
        self._latency: dict[int, int] = {}
        self._stages = StageHistograms()
        self.slow_ns = NEVER_SLOW_NS
        """What is answered later is slow: as the release's `slo.latency_ms_p95` has it."""
        self.by_label: dict[tuple[int | None, bool], int] = {}
        """Judged answers by (true class, whether it was right); None: a class that the release does not know."""
        self.last_ns = 0
        """When the last answer was written, on the monotonic clock; 0: never."""

    def ran(self, calls: Sequence[Call], times: Times, now_ns: int) -> None:
        """Count the calls of one batch that ended at `now_ns`; none of them was counted before."""
        answered = 0
        waited_ns = 0
        engine_ns = times.computed_ns - times.computing_ns
        for call in calls:
            if call.error is None:
                answered += call.count
                self._rows += call.rows
                took_ns = now_ns - call.arrived_ns
                waited_ns += took_ns * call.count
                if took_ns > self.slow_ns and call.priority != Priority.LATER:
                    self._slow += call.count
            elif isinstance(call.error, InputRefused):
                self._refused += call.count
            else:
                self.failed()
        if not answered:
            return
        self._requests += answered
        self._duration_us += waited_ns // 1000
        first = calls[0].batch
        if len(calls) == 1 or (first is not None and first is calls[-1].batch):
            self._computed(engine_ns, answered)
        else:  # They were run one by one because of one of them: how long all took says nothing of a single run.
            for call in calls:
                if call.error is None and call.batch is not None:
                    self._computed(call.batch.engine_ns, call.count)

    def _computed(self, engine_ns: int, answered: int) -> None:
        self._batches += 1
        self._engine_us += engine_ns // 1000
        index = bucket(engine_ns / 1e3)
        self._latency[index] = self._latency.get(index, 0) + answered

    def staged(self, calls: Sequence[Call], times: Times, now_ns: int) -> None:
        """Record how long the stages of one batch took, whose answers were written by `now_ns`."""
        began_ns, computing_ns, computed_ns = times
        self.last_ns = now_ns
        if len(calls) == 1:
            self._stages.record(
                began_ns - calls[0].arrived_ns,
                computing_ns - began_ns,
                computed_ns - computing_ns,
                now_ns - computed_ns,
            )
        else:
            self._stages.record_batch(
                [began_ns - call.arrived_ns for call in calls],
                computing_ns - began_ns,
                computed_ns - computing_ns,
                now_ns - computed_ns,
            )

    def stages(self) -> dict[str, StageSnapshot]:
        """Return the histogram of each stage: queue, input, compute, output. On the serving loop."""
        return self._stages.snapshot()

    def remembered(self, rows: int) -> None:
        """Count a request that was answered from memory."""
        self._requests += 1
        self._rows += rows
        self._hits += 1

    def failed(self) -> None:
        self._requests += 1
        self._errors += 1

    def timed_out(self) -> None:
        """Count a request that failed by its deadline."""
        self.failed()
        self._timed_out += 1

    def refused(self) -> None:
        self._refused += 1

    def rejected(self) -> None:
        self._rejected += 1

    def cancelled(self) -> None:
        self._cancelled += 1

    def labelled(self, *, right: bool, true: int | None = None) -> None:
        """Count a judged answer.

        Args:
            true: The class that it should have been; None: one that the release does not know.
        """
        self._labelled += 1
        self._right += right
        self.by_label[true, right] = self.by_label.get((true, right), 0) + 1

    @property
    def rows(self) -> int:
        """Inferences that were answered."""
        return self._rows

    @property
    def engine_us(self) -> int:
        """Sum over the calls of the engine that gave an answer."""
        return self._engine_us

    def snapshot(self) -> Snapshot:
        return Snapshot(
            requests=self._requests,
            errors=self._errors,
            timed_out=self._timed_out,
            slow=self._slow,
            refused=self._refused,
            rejected=self._rejected,
            cancelled=self._cancelled,
            rows=self._rows,
            labelled=self._labelled,
            right=self._right,
            duration_us=self._duration_us,
            batches=self._batches,
            hits=self._hits,
            engine_us=self._engine_us,
            latency=tuple(sorted(self._latency.copy().items())),
        )
