"""The counts and the latency sketch of a served release."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.core.latency import BUCKET_MAX, bucket, middle_ms
from muster_agent.engines.port import InferenceFailed, InputRefused
from muster_agent.serving.call import Batch, Call
from muster_agent.serving.execution import Times
from muster_agent.serving.stats import Snapshot, WindowStats
from muster_shared.errors import MusterError

LATENCIES_S = st.floats(min_value=1e-7, max_value=1e4, allow_nan=False)


class Ended(Call):
    def settle(self) -> None:
        raise AssertionError("counting settles nobody")


def ended(rows: int = 1, error: MusterError | None = None) -> Ended:
    call = Ended((), (), rows)
    call.error = error
    return call


def ran(stats: WindowStats, calls: Sequence[Call], engine_s: float, duration_s: float) -> None:
    """Count calls that arrived at 0, ran together at last for `engine_s`, and ended after `duration_s`."""
    end_ns = round(duration_s * 1e9)
    batch = Batch((), round(engine_s * 1e9), rows_axis=True)
    for call in calls:
        if call.error is None:
            call.batch = batch
    stats.ran(calls, Times(0, end_ns - round(engine_s * 1e9), end_ns), end_ns)


def record(stats: WindowStats, latencies_s: list[float]) -> WindowStats:
    for latency_s in latencies_s:
        ran(stats, [ended()], latency_s, latency_s)
    return stats


def test_an_unused_release_has_no_latency_rather_than_zero() -> None:
    at = WindowStats().snapshot()

    assert at == Snapshot()
    assert at.p50_ms is None
    assert at.p95_ms is None


@given(st.floats(min_value=1.0, max_value=3.6e9))
def test_a_bucket_is_within_its_relative_error(latency_us: float) -> None:
    assert bucket(latency_us) == min(BUCKET_MAX, math.floor(16 * math.log2(latency_us)))
    assert middle_ms(bucket(latency_us)) * 1e3 == pytest.approx(latency_us, rel=0.023)


@given(st.lists(st.floats(min_value=2e-6, max_value=1e3), min_size=1, max_size=200))
def test_quantiles_are_those_of_the_values(latencies_s: list[float]) -> None:
    at = record(WindowStats(), latencies_s).snapshot()

    for share, estimate in ((0.5, at.p50_ms), (0.95, at.p95_ms)):
        exact_ms = float(np.quantile(latencies_s, share, method="inverted_cdf")) * 1e3
        assert estimate == pytest.approx(exact_ms, rel=0.023)


@given(st.lists(LATENCIES_S, max_size=50), st.lists(LATENCIES_S, max_size=50))
def test_a_difference_is_what_happened_in_between(before: list[float], after: list[float]) -> None:
    stats = record(WindowStats(), before)
    earlier = stats.snapshot()
    record(stats, after)

    window, alone = stats.snapshot().since(earlier), record(WindowStats(), after).snapshot()

    assert window == alone


def test_every_count_is_counted_and_subtracted() -> None:
    stats = WindowStats()
    ran(stats, [ended(rows=8)], 0.001, 0.002)
    stats.remembered(rows=2)
    stats.failed()
    stats.refused()
    stats.rejected()
    stats.cancelled()
    stats.labelled(right=True)
    stats.labelled(right=False)

    at = stats.snapshot()

    assert (at.requests, at.errors, at.refused, at.rejected, at.cancelled) == (3, 1, 1, 1, 1)
    assert (at.rows, at.labelled, at.right, at.duration_us) == (10, 2, 1, 2000)
    assert (at.batches, at.hits, at.engine_us) == (1, 1, 1000)
    assert at.since(at) == Snapshot()
    assert at.since(Snapshot()) == at


def test_the_calls_of_one_batch_count_each_for_itself_and_its_run_of_the_engine_once() -> None:
    stats = WindowStats()

    ran(stats, [ended(rows=2), ended(), ended()], 0.001, 0.004)

    at = stats.snapshot()
    assert (at.requests, at.rows, at.batches, at.engine_us, at.duration_us) == (3, 4, 1, 1000, 12000)
    assert at.latency == ((bucket(1000.0), 3),)


def test_calls_that_were_run_one_by_one_count_each_with_its_own_time() -> None:
    stats = WindowStats()
    calls = [ended(error=InputRefused("x", "is bad")), ended(), ended(), ended(error=InputRefused("x", "is bad"))]
    for call, engine_us in zip(calls[1:3], (1000, 2000), strict=True):
        call.batch = Batch((), engine_us * 1000, rows_axis=True)

    stats.ran(calls, Times(0, 0, 50_000_000), 50_000_000)

    at = stats.snapshot()
    assert (at.requests, at.refused, at.batches, at.engine_us) == (2, 2, 2, 3000)
    assert at.latency == ((bucket(1000.0), 1), (bucket(2000.0), 1))


def test_what_fails_in_a_batch_is_counted_by_whose_fault_it_was() -> None:
    stats = WindowStats()

    ran(stats, [ended(), ended(error=InputRefused("x", "is bad")), ended(error=InferenceFailed("bad"))], 1, 1)

    at = stats.snapshot()
    assert (at.requests, at.errors, at.refused, at.rows) == (2, 1, 1, 1)


def test_a_batch_without_an_answer_says_nothing_of_the_engine_s_time() -> None:
    stats = WindowStats()

    ran(stats, [ended(error=InferenceFailed("bad"))], 1, 1)

    at = stats.snapshot()
    assert (at.batches, at.engine_us, at.latency, at.p50_ms) == (0, 0, (), None)


def test_stages_are_what_the_moments_say() -> None:
    stats = WindowStats()
    first, second = ended(), ended()
    second.arrived_ns = 500

    stats.staged([first, second], Times(1000, 3000, 7000), 8000)

    stages = stats.stages()
    assert {name: (stage.count, stage.sum_ns) for name, stage in stages.items()} == {
        "queue": (2, 1500),
        "input": (2, 4000),
        "compute": (2, 8000),
        "output": (2, 2000),
    }
    assert stats.last_ns == 8000


def test_a_snapshot_does_not_change_afterwards() -> None:
    stats = WindowStats()
    earlier = stats.snapshot()

    stats.failed()

    assert earlier == Snapshot()
