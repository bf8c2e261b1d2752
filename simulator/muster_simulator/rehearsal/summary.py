"""What many runs of one scenario come to: chances, quantiles and their 95 % intervals. Plain numbers, no pictures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, sqrt
from statistics import fmean

from muster_simulator.rehearsal.run import Result
from muster_simulator.rehearsal.scenarios import Scenario

_Z = 1.96  # Of a 95 % interval.
STOPPED = ("aborted", "paused")


@dataclass(frozen=True)
class Chance:
    """A share of runs, with its 95 % interval (Wilson 1927)."""

    share: float
    low: float
    high: float
    runs: int
    of: int


@dataclass(frozen=True)
class Spread:
    """How a number is spread over runs; intervals are of order statistics, so they hold for any distribution."""

    runs: int
    mean: float
    median: float
    median_low: float
    median_high: float
    p90: float
    p90_low: float
    p90_high: float
    least: float
    greatest: float


@dataclass(frozen=True)
class Bin:
    """Runs whose number is in low..high, both included for whole numbers."""

    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Summary:
    """One scenario. A run that no gate stopped has exposed everybody that it reached."""

    name: str
    title: str
    is_harmless: bool
    base_rate: float
    true_rate: float
    slower: float
    silent: float
    only_class: str | None
    runs: int
    aborted: Chance
    paused: Chance
    finished: Chance
    unfinished: Chance
    pauses: float
    """Undecided waves of a run, on average."""
    stopped_by: dict[str, int]
    exposed: Spread
    """Devices that were told to run the release."""
    harmed: Spread
    """Devices that it served on and did harm to."""
    exposed_bins: list[Bin]
    to_finish_s: Spread | None
    """Virtual time of the runs that finished; None when none did."""
    to_stop_s: Spread | None
    to_finish_bins: list[Bin]
    waves: Spread
    unreached: Spread
    """Devices never told, by the end."""

    @property
    def stopped(self) -> Chance:
        return chance(self.aborted.runs + self.paused.runs, self.runs)


def summarise(scenario: Scenario, results: Sequence[Result]) -> Summary:
    """Return what `results` (at least one) come to."""
    ended = Counter(result.ended for result in results)
    number = len(results)
    finishes = [result.seconds for result in results if result.ended == "finished"]
    stops = [result.seconds for result in results if result.ended in STOPPED]
    why = Counter(result.why for result in results if result.ended in STOPPED)
    exposed = [result.exposed for result in results]
    return Summary(
        name=scenario.name,
        title=scenario.title,
        is_harmless=scenario.is_harmless,
        base_rate=scenario.base_rate,
        true_rate=scenario.harm.rate,
        slower=scenario.harm.slower,
        silent=scenario.harm.silent,
        only_class=scenario.harm.only_class,
        runs=number,
        aborted=chance(ended["aborted"], number),
        paused=chance(ended["paused"], number),
        finished=chance(ended["finished"], number),
        unfinished=chance(ended["unfinished"], number),
        pauses=fmean(result.pauses for result in results),
        stopped_by=dict(sorted(why.items(), key=lambda each: (-each[1], each[0]))),
        exposed=spread(exposed),
        harmed=spread([result.harmed for result in results]),
        exposed_bins=device_bins(exposed),
        to_finish_s=spread(finishes) if finishes else None,
        to_stop_s=spread(stops) if stops else None,
        to_finish_bins=time_bins(finishes),
        waves=spread([result.waves for result in results]),
        unreached=spread([result.unreached for result in results]),
    )


def chance(runs: int, of: int) -> Chance:
    """Return a share of `of` runs (at least one) with its interval."""
    share, square = runs / of, _Z**2 / of
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * sqrt(share * (1 - share) / of + square / (4 * of))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Chance(share, 0.0 if not runs else low, 1.0 if runs == of else high, runs, of)


def spread(values: Sequence[float]) -> Spread:
    """Return how `values` (at least one) are spread. A quantile is the smallest value that so many do not exceed."""
    ordered = sorted(values)

    def at(share: float, sign: int) -> float:
        place = len(ordered) * share + sign * _Z * sqrt(len(ordered) * share * (1 - share))
        return float(ordered[min(len(ordered) - 1, max(0, ceil(place) - 1 + (sign > 0)))])

    return Spread(
        runs=len(ordered),
        mean=fmean(ordered),
        median=at(0.5, 0),
        median_low=at(0.5, -1),
        median_high=at(0.5, 1),
        p90=at(0.9, 0),
        p90_low=at(0.9, -1),
        p90_high=at(0.9, 1),
        least=float(ordered[0]),
        greatest=float(ordered[-1]),
    )


def device_bins(values: Sequence[int]) -> list[Bin]:
    """Return bins 0, 1, 2, 3-5, 6-10, 11-20, 21-50 ... that hold all of `values`, empty ones at both ends left out."""
    edges = [0]
    while edges[-1] < max(values, default=0):
        step = len(edges) - 1
        edges.append((1, 2, 5)[step % 3] * 10 ** (step // 3))
    bins = [Bin(0, 0, sum(value == 0 for value in values))]
    for low, high in pairwise(edges):
        bins.append(Bin(low + 1, high, sum(low < value <= high for value in values)))
    while bins and not bins[0].runs:
        bins.pop(0)
    if bins:
        bins[-1] = replace(bins[-1], high=max(values, default=0))
    return bins


def time_bins(values: Sequence[float], number: int = 8) -> list[Bin]:
    """Return up to `number` equal bins from the least to the greatest of `values`."""
    if not values:
        return []
    low, high = min(values), max(values)
    if high - low < 1.0:
        return [Bin(low, high, len(values))]
    width = (high - low) / number
    counts = Counter(min(number - 1, int((value - low) / width)) for value in values)
    return [Bin(low + place * width, low + (place + 1) * width, counts[place]) for place in range(number)]
