"""Token buckets: what passes, how long the rest waits, and that both forms of a bucket are one."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.core.rate import Bucket, Limited, Unlimited, meter, take

NS = 1_000_000_000
RATES = st.floats(min_value=0.01, max_value=1e6, allow_nan=False)
BURSTS = st.integers(1, 10_000)
REQUESTS = st.lists(st.tuples(st.integers(0, 12_000), st.integers(0, 5 * NS)), max_size=60)
"""(rows, nanoseconds since the request before)."""


@given(RATES, BURSTS, REQUESTS)
@settings(deadline=None)
def test_in_no_stretch_of_time_more_passes_than_the_burst_and_the_rate(
    rate_per_s: float, burst: int, requests: list[tuple[int, int]]
) -> None:
    bucket, now_ns = Bucket(rate_per_s, burst), 0
    passed: list[tuple[int, int]] = []

    for rows, gap_ns in requests:
        now_ns += gap_ns
        bucket, wait_s = take(bucket, rows, now_ns)
        if not wait_s:
            passed.append((now_ns, rows))

    for first, (begin_ns, _) in enumerate(passed):
        total = 0
        for end_ns, rows in passed[first:]:
            total += rows
            assert total <= burst + rate_per_s * (end_ns - begin_ns) / NS + 1e-6


@given(RATES, BURSTS, REQUESTS)
@settings(deadline=None)
def test_the_changing_bucket_does_what_the_pure_one_does(
    rate_per_s: float, burst: int, requests: list[tuple[int, int]]
) -> None:
    bucket, now_ns = Bucket(rate_per_s, burst), 0
    limited = Limited(bucket)

    for rows, gap_ns in requests:
        now_ns += gap_ns
        bucket, wait_s = take(bucket, rows, now_ns)

        assert limited.take(rows, now_ns) == wait_s


@given(RATES, BURSTS, REQUESTS, st.data())
@settings(deadline=None)
def test_whoever_waits_as_long_as_it_is_told_passes_and_a_little_earlier_does_not(
    rate_per_s: float, burst: int, requests: list[tuple[int, int]], data: st.DataObject
) -> None:
    bucket, now_ns = Bucket(rate_per_s, burst), 0
    for rows, gap_ns in requests:
        now_ns += gap_ns
        bucket, _ = take(bucket, rows, now_ns)
    rows = data.draw(st.integers(1, burst))

    _, wait_s = take(bucket, rows, now_ns)
    wait_ns = math.ceil(wait_s * NS)

    assert take(bucket, rows, now_ns + wait_ns + 1 + int(wait_s * 1e-6 * NS))[1] == 0.0
    if wait_ns > 1000:
        assert take(bucket, rows, now_ns + int(wait_ns * 0.999) - 1)[1] > 0.0


def test_a_full_bucket_lets_its_burst_pass_at_once_and_nothing_more() -> None:
    bucket = Bucket(10.0, 5)

    bucket, first_s = take(bucket, 5, 1 * NS)
    after, second_s = take(bucket, 1, 1 * NS)

    assert first_s == 0.0
    assert second_s == 0.1
    assert after == bucket, "what is refused costs nothing"


def test_a_changing_bucket_is_empty_after_its_whole_burst() -> None:
    limited = Limited(Bucket(10.0, 5))

    assert [limited.take(5, 1 * NS), limited.take(1, 1 * NS), limited.take(1, 1 * NS)] == [0.0, 0.1, 0.1]


def test_a_request_above_the_burst_never_passes() -> None:
    assert take(Bucket(10.0, 5), 6, 100 * NS)[1] == math.inf
    assert Limited(Bucket(10.0, 5)).take(6, 100 * NS) == math.inf


def test_a_rate_of_nothing_is_no_limit_and_a_burst_of_nothing_is_one_second() -> None:
    assert isinstance(meter(0.0, 0), Unlimited)
    assert meter(0.0, 5).take(1 << 60, 0) == 0.0
    assert meter(2.5, 0).take(3, 0) == 0.0
    assert meter(2.5, 0).take(4, 0) == math.inf
    assert meter(0.1, 0).take(1, 0) == 0.0
