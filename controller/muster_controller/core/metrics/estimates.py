"""Estimates from noised sums: shares, mean confidence, latency quantiles, accuracy; all with intervals.

Every function takes the sums of whatever cells and periods one asks about, adds them up (`sums.pooled`) and divides
once. Errors follow by the delta method from the noise, whose standard deviation is known exactly, and from the sample,
at its worst: as if each device had given all that it had to one class.

A share is one of what devices said, each device with the same weight, not of inferences.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from muster_controller.core.metrics.figures import SEEN, Figure, Z, share, unknown
from muster_controller.core.metrics.sums import MixedSum, Pool, of, pooled
from muster_shared.metrics import CONFIDENCE_BINS, DRIFT, INPUTS, LATENCY_BUCKETS, LATENCY_GRID, Kind

ANSWERED: Final = ("plain", "out_of_range", "outlier", "not_finite")
"""Of `INPUTS`: what was answered; the others failed, or were turned away."""
QUANTILES: Final = (0.5, 0.95, 0.99)
QUANTILE_OPEN: Final = 4.0
"""A quantile that is not known to this factor, up or down, is unknown."""
_STANDS_OUT: Final = 3.0
_MARGIN: Final = LATENCY_GRID
"""Buckets, a doubling, that latencies may lie beyond those that stand out of the noise."""


def class_shares(found: Iterable[MixedSum]) -> list[Figure]:
    """Return the share of each class, by index."""
    return shares(pooled(of(found, Kind.CLASSES)))


def input_shares(found: Iterable[MixedSum]) -> dict[str, Figure]:
    """Return the share of each of `INPUTS`."""
    return _named(INPUTS, pooled(of(found, Kind.INPUTS)))


def drift_shares(found: Iterable[MixedSum]) -> dict[str, Figure]:
    """Return the share of devices in each of `DRIFT` (of periods, where one said more than one thing in a day)."""
    return _named(DRIFT, pooled(of(found, Kind.DRIFT)))


def failed_share(found: Iterable[MixedSum]) -> Figure:
    """Return the share of requests that were not answered: refused, failed, timed out, rejected."""
    return share_of(pooled(of(found, Kind.INPUTS)), [INPUTS.index(name) for name in INPUTS if name not in ANSWERED])


def mean_confidence(found: Iterable[MixedSum]) -> Figure:
    """Return the mean confidence, 0..1, each of CONFIDENCE_BINS taken at its middle: to within half a bin."""
    pool = pooled(of(found, Kind.CONFIDENCE))
    total = _total(pool)
    if total is None:
        return unknown(pool)
    middles = [(index + 0.5) / CONFIDENCE_BINS for index in range(len(pool.sums))]
    mean = sum(middle * number for middle, number in zip(middles, pool.sums, strict=True)) / total
    noise = sum((m - mean) ** 2 * v for m, v in zip(middles, pool.variances, strict=True)) / total**2
    spread = sum((m - mean) ** 2 * n for m, n in zip(middles, pool.sums, strict=True)) / total
    at_most = max(0.0, mean * (1 - mean))  # Of anything between 0 and 1.
    return share(mean, noise, min(max(spread, 0.0), at_most) / pool.votes, pool)


def accuracy(found: Iterable[MixedSum]) -> Figure:
    """Return the share of labelled inferences that were right. Labels come from where people gave them."""
    pool = pooled(of(found, Kind.FEEDBACK))
    return share_of(pool, range(1, len(pool.sums), 2))


def accuracy_by_class(found: Iterable[MixedSum]) -> list[Figure]:
    """Return the share of right ones by true class, by index."""
    pool = pooled(of(found, Kind.FEEDBACK))
    return [share_of(part(pool, (2 * each, 2 * each + 1)), (1,)) for each in range(len(pool.sums) // 2)]


def latency_ms(found: Iterable[MixedSum], quantiles: Sequence[float] = QUANTILES) -> dict[float, Figure]:
    """Return quantiles of the engine's latency in milliseconds.

    The cumulative histogram is made monotone, and an interval holds every latency at which the quantile cannot be ruled
    out. Latencies lie in one stretch of buckets: those far from all that stands out of the noise are taken for empty.
    A bucket is a fourth of a doubling wide; inside of one it is interpolated.
    """
    pool = pooled(of(found, Kind.LATENCY))
    begin, end = stretch(pool)
    inside = part(pool, range(begin, end))
    total = _total(inside)
    if total is None:
        return dict.fromkeys(quantiles, unknown(pool))
    cumulative, noises = _cumulative(inside, total)
    steps = _monotone(cumulative)
    figures = {}
    for quantile in quantiles:
        spreads = [Z * math.sqrt(noise + sample_variance(f, inside)) for f, noise in zip(steps, noises, strict=True)]
        low = next((k for k, f in enumerate(steps) if f + spreads[k] >= quantile), len(steps) - 1)
        high = next((k for k, f in enumerate(steps) if f - spreads[k] >= quantile), None)
        value = _crossed(steps, quantile, begin)
        lowest = latency_of(begin + low)
        highest = None if high is None else latency_of(begin + high + 1)
        is_useless = highest is None or highest > value * QUANTILE_OPEN or lowest < value / QUANTILE_OPEN
        figure = replace(unknown(pool), value=value, low=min(lowest, value), high=highest)
        figures[quantile] = unknown(pool) if is_useless else figure
    return figures


def shares(pool: Pool) -> list[Figure]:
    """Return X_i / sum X for each index."""
    return [share_of(pool, (index,)) for index in range(len(pool.sums))]


def share_of(pool: Pool, indices: Iterable[int]) -> Figure:
    """Return the share of some indices together."""
    total = _total(pool)
    if total is None:
        return unknown(pool)
    chosen = set(indices)
    value = sum(pool.sums[index] for index in chosen) / total
    ours = sum(pool.variances[index] for index in chosen)
    others = sum(pool.variances) - ours
    noise = ((1 - value) ** 2 * ours + value**2 * others) / total**2
    return share(value, noise, sample_variance(value, pool), pool)


def sample_variance(value: float, pool: Pool) -> float:
    """Return p (1 - p) / n with one more of each kind (Agresti and Coull 1998), so that none of ten is not certain."""
    votes = pool.votes
    middle = (min(1.0, max(0.0, value)) * votes + 1) / (votes + 2)
    return middle * (1 - middle) / (votes + 2)


def part(pool: Pool, indices: Iterable[int]) -> Pool:
    """Return the pool of some indices alone."""
    chosen = list(indices)
    return replace(
        pool,
        sums=tuple(pool.sums[index] for index in chosen),
        variances=tuple(pool.variances[index] for index in chosen),
    )


def latency_of(bucket: int) -> float:
    """Return where bucket floor(4 log2 us) begins, in milliseconds."""
    return float(2 ** (bucket / LATENCY_GRID) / 1000)


def stretch(pool: Pool) -> tuple[int, int]:
    """Return the buckets, begin and end, that hold latencies as far as can be seen; with a margin of a doubling.

    From either end: where a bucket alone, or all so far together, stand three standard deviations above 0 for the first
    time. Where nothing stands out it is all of them.
    """
    begin, end = _first_seen(pool.sums, pool.variances), _first_seen(pool.sums[::-1], pool.variances[::-1])
    length = len(pool.sums)
    if begin is None or end is None or begin >= length - end:
        return 0, length
    return max(0, begin - _MARGIN), min(length, length - end + _MARGIN)


def _first_seen(sums: Sequence[int], variances: Sequence[float]) -> int | None:
    height, noise = 0, 0.0
    for index, (number, variance) in enumerate(zip(sums, variances, strict=True)):
        height += number
        noise += variance
        if number > (_STANDS_OUT + 1) * math.sqrt(variance) or height > (_STANDS_OUT + 1) * math.sqrt(noise):
            return index
    return None


def _total(pool: Pool) -> float | None:
    """Return the sum of all, unless it hardly differs from 0: nothing can be divided by that."""
    total = float(sum(pool.sums))
    return total if total > 0 and total >= SEEN * math.sqrt(sum(pool.variances)) else None


def _cumulative(pool: Pool, total: float) -> tuple[list[float], list[float]]:
    """Return the cumulative shares, and the variance that the noise gives to each."""
    height, below, whole = 0.0, 0.0, sum(pool.variances)
    cumulative, noises = [], []
    for number, variance in zip(pool.sums, pool.variances, strict=True):
        height += number
        below += variance
        value = height / total
        cumulative.append(value)
        noises.append(((1 - value) ** 2 * below + value**2 * (whole - below)) / total**2)
    return cumulative, noises


def _monotone(values: Sequence[float]) -> list[float]:
    """Return the nearest rising sequence in least squares: neighbours that fall are averaged (pool adjacent violators)
    and what is beyond 0..1 is cut."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            before, width = blocks.pop()
            mean = (mean * count + before * width) / (count + width)
            count += width
        blocks.append((mean, count))
    return [min(1.0, max(0.0, mean)) for mean, count in blocks for _ in range(count)]


def _crossed(steps: Sequence[float], quantile: float, begin: int) -> float:
    """Return the latency at which the rising `steps` reach `quantile`, in milliseconds."""
    index = next((k for k, value in enumerate(steps) if value >= quantile), len(steps) - 1)
    before = steps[index - 1] if index else 0.0
    rise = steps[index] - before
    return latency_of(begin + index) * 2 ** ((min(1.0, (quantile - before) / rise) if rise > 0 else 1) / LATENCY_GRID)


def _named(names: Sequence[str], pool: Pool) -> dict[str, Figure]:
    found = shares(pool)
    return dict(zip(names, found, strict=True)) if found else dict.fromkeys(names, unknown(pool))


assert LATENCY_BUCKETS % LATENCY_GRID == 0, "whole doublings"
