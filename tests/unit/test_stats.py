"""The counts and the latency sketch of a served release."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.serving.stats import BUCKET_MAX, Snapshot, WindowStats, bucket, middle_ms

LATENCIES_S = st.floats(min_value=1e-7, max_value=1e4, allow_nan=False)


def record(stats: WindowStats, latencies_s: list[float]) -> WindowStats:
    for latency_s in latencies_s:
        stats.answered(rows=1, engine_s=latency_s, duration_s=latency_s)
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
    stats.answered(rows=8, engine_s=0.001, duration_s=0.002)
    stats.failed()
    stats.refused()
    stats.rejected()
    stats.cancelled()
    stats.labelled(right=True)
    stats.labelled(right=False)

    at = stats.snapshot()

    assert (at.requests, at.errors, at.refused, at.rejected, at.cancelled) == (2, 1, 1, 1, 1)
    assert (at.rows, at.labelled, at.right, at.duration_us) == (8, 2, 1, 2000)
    assert at.since(at) == Snapshot()
    assert at.since(Snapshot()) == at


def test_a_snapshot_does_not_change_afterwards() -> None:
    stats = WindowStats()
    earlier = stats.snapshot()

    stats.failed()

    assert earlier == Snapshot()
