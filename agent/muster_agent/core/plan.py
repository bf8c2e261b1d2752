"""How a release is served on this very device: threads, instances and batches, from a measured latency curve.

Pure: `engines.tuning` measures the curve, `serving.rooms` carries the plan out.
"""

from math import log2

import msgspec

from muster_shared.bundle import Serving, Slo

INLINE_CALL_MS = 1.0  # A hand-off to a thread costs 89 us, and on a busy core a turn of the scheduler, a millisecond.
INLINE_BATCH_MS = 2.0  # The loop answers nobody else meanwhile.
GAIN_OF_DOUBLING = 1.05  # Less is within what a curve wavers, and waiting for it costs the first of the batch.
GAIN_WORTH_BATCHING = 1.1  # For less, rows that share a call only wait for each other.
GAIN_WORTH_WAITING = 1.5

Curve = tuple[tuple[int, float], ...]
"""(rows, milliseconds of one call), ascending in rows, beginning with one row."""


class ServingPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What `serving.rooms` does with one release."""

    inline: bool
    """Calls run on the serving loop: they are shorter than the hand-off to a thread."""
    batch_max: int
    """Rows of one call of the engine at most, >= 1."""
    delay_us: int = 0
    """How long the first request of a batch may wait for others."""
    preferred: tuple[int, ...] = ()
    """Sizes to run without further delay, ascending."""
    instances_min: int = 1
    instances_max: int = 1
    """Calls of the engine at the same time."""
    threads: int = 1
    """Of one call."""
    curve: Curve = ()

    @property
    def call_ms(self) -> float:
        """The duration of a call with one row; 0 when it was not measured."""
        return self.curve[0][1] if self.curve else 0.0


def plan_from_curve(
    curve: Curve,
    *,
    serving: Serving,
    slo: Slo,
    cpus: int,
    threads: int,
    batchable: bool,
    call_ms_p95: float | None = None,
) -> ServingPlan:
    """Return the plan for a release whose calls take as long as `curve` says.

    Args:
        curve: Each call by itself, with `threads` threads; at least one row, every duration > 0.
        cpus: Processors that the agent may use, >= 1.
        threads: Of one call, 1 <= threads <= cpus.
        batchable: Whether rows of several requests may share a call.
        call_ms_p95: Of a call with one row; None: as the curve says.
    """
    one_ms = curve[0][1] if call_ms_p95 is None else call_ms_p95
    inline = one_ms <= INLINE_CALL_MS
    batch_max = _batch_max(curve, serving, slo, inline=inline) if batchable else 1
    instances = 1 if inline else max(1, cpus // threads)
    if serving.instances_max:
        instances = min(instances, serving.instances_max)
    return ServingPlan(
        inline=inline,
        batch_max=batch_max,
        delay_us=_delay_us(curve, batch_max, serving, slo),
        preferred=tuple(size for size in serving.batches_preferred if 1 < size <= batch_max),
        instances_max=instances,
        threads=threads,
        curve=curve,
    )


def call_ms(curve: Curve, rows: int) -> float:
    """Return how long a call with `rows` rows takes: between two measured sizes in proportion, beyond the last at its
    rate."""
    before_rows, before_ms = 0, 0.0
    for at_rows, at_ms in curve:
        if rows <= at_rows:
            if not before_rows:
                return at_ms
            return before_ms + (at_ms - before_ms) * (rows - before_rows) / (at_rows - before_rows)
        before_rows, before_ms = at_rows, at_ms
    return before_ms * rows / before_rows


def gain(curve: Curve, rows: int) -> float:
    """Return how many times the rows a second of single rows a batch of `rows` gives."""
    return rows * curve[0][1] / call_ms(curve, rows)


def knee(curve: Curve) -> int:
    """Return the smallest measured size beyond which no larger one gains GAIN_OF_DOUBLING for each doubling."""
    for at, (rows, ms) in enumerate(curve):
        if not any(
            larger * ms / (larger_ms * rows) >= GAIN_OF_DOUBLING ** log2(larger / rows)
            for larger, larger_ms in curve[at + 1 :]
        ):
            return rows
    return curve[-1][0]


def _batch_max(curve: Curve, serving: Serving, slo: Slo, *, inline: bool) -> int:
    most = knee(curve)
    if gain(curve, most) < GAIN_WORTH_BATCHING:
        return 1
    if serving.batch_max:
        most = min(most, serving.batch_max)
    sizes = sorted({rows for rows, _ in curve if rows <= most} | {most})
    return max((rows for rows in sizes if _has_room(call_ms(curve, rows), slo, inline=inline)), default=1)


def _has_room(ms: float, slo: Slo, *, inline: bool) -> bool:
    """Whether a request may find one such call under way, and then be in the next."""
    return 2 * ms <= slo.latency_ms_p95 and (not inline or ms <= INLINE_BATCH_MS)


def _delay_us(curve: Curve, batch_max: int, serving: Serving, slo: Slo) -> int:
    """Return how long to wait: no longer than the batch that is waited for takes, nor than the SLO leaves."""
    if batch_max == 1 or not serving.delay_us_max or gain(curve, batch_max) < GAIN_WORTH_WAITING:
        return 0
    ms = call_ms(curve, batch_max)
    return max(0, min(serving.delay_us_max, int(ms * 1e3), int((slo.latency_ms_p95 - 2 * ms) * 1e3)))
