"""Latency histograms: every record is in its bucket once, whichever way it came."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.core.latency import BUCKETS, GRID, RECORDS, STAGES, Histogram, StageHistograms, bucket, bucket_of

NS = st.integers(0, 5 * 10**12)
ROW = st.tuples(NS, NS, NS, NS)


def test_the_grid_is_that_of_the_sketches_that_devices_report() -> None:
    assert (GRID, BUCKETS) == (16, 512)


@given(st.lists(NS, min_size=1, max_size=50))
@settings(deadline=None)
def test_a_bucket_is_the_one_of_the_sketches(latencies_ns: list[int]) -> None:
    found = bucket_of(np.array(latencies_ns, np.int64)).tolist()

    assert found == [bucket(ns / 1e3) for ns in latencies_ns]


def expected(values: list[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for ns in values:
        index = bucket(ns / 1e3)
        counts[index] = counts.get(index, 0) + 1
    return counts


@given(
    st.lists(ROW, max_size=20),
    st.lists(st.tuples(st.lists(NS, min_size=1, max_size=9), ROW), max_size=20),
    st.integers(1, 40),
)
@settings(max_examples=50, deadline=None)
def test_every_stage_holds_every_record_once(
    singles: list[tuple[int, int, int, int]],
    batches: list[tuple[list[int], tuple[int, int, int, int]]],
    repeat: int,
) -> None:
    histograms = StageHistograms()
    values: dict[str, list[int]] = {stage: [] for stage in STAGES}

    for _ in range(repeat):
        for row in singles:
            histograms.record(*row)
            for stage, ns in zip(STAGES, row, strict=True):
                values[stage].append(ns)
        for queues, (_, *shared) in batches:
            histograms.record_batch(queues, *shared)
            values["queue"] += queues
            for stage, ns in zip(STAGES[1:], shared, strict=True):
                values[stage] += [ns] * len(queues)
    snapshot = histograms.snapshot()

    for stage in STAGES:
        assert dict(snapshot[stage].buckets) == expected(values[stage])
        assert snapshot[stage].count == len(values[stage])
        assert snapshot[stage].sum_ns == sum(values[stage])


@pytest.mark.parametrize("count", [RECORDS - 1, RECORDS, RECORDS + 1])
def test_a_full_ring_loses_nothing(count: int) -> None:
    histograms, alone = StageHistograms(), Histogram()

    for number in range(count):
        histograms.record(number, 2, 3, 4)
        alone.record(number)

    assert histograms.snapshot()["queue"] == alone.snapshot()
    assert alone.snapshot().sum_ns == sum(range(count))
    assert histograms.snapshot()["output"].count == count


def test_a_reading_does_not_change_afterwards_and_reading_twice_counts_once() -> None:
    histogram = Histogram()
    histogram.record(5000)
    earlier = histogram.snapshot()

    histogram.record(6000)

    assert (earlier.count, histogram.snapshot().count, histogram.snapshot().count) == (1, 2, 2)


@given(st.lists(st.integers(2000, 10**12), min_size=1, max_size=600))
@settings(max_examples=50, deadline=None)
def test_quantiles_are_those_of_the_values(latencies_ns: list[int]) -> None:
    histogram = Histogram()
    for ns in latencies_ns:
        histogram.record(ns)

    estimate = histogram.snapshot().quantile_ms(0.95)

    exact_ms = float(np.quantile(latencies_ns, 0.95, method="inverted_cdf")) / 1e6
    assert estimate == pytest.approx(exact_ms, rel=0.023)


def test_an_unused_histogram_has_no_latency_rather_than_zero() -> None:
    assert Histogram().snapshot().quantile_ms(0.5) is None


@given(st.lists(NS, max_size=60))
@settings(deadline=None)
def test_cumulative_counts_are_exact_at_every_doubling(latencies_ns: list[int]) -> None:
    histogram = Histogram()
    for ns in latencies_ns:
        histogram.record(ns)

    for edge_s, below in histogram.snapshot().cumulative():
        edge_ns = math.floor(edge_s * 1e9 + 0.5)
        assert below == sum(max(ns, 1000) < edge_ns for ns in latencies_ns)
