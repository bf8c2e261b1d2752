"""Drift: false alarms of the detector that ships in 10,000 windows, how soon it sees a fall, and what others would do.

    windows of a known spread     500 independent windows as the reference, as a large validation set would give
    rows of scenes                a reference file made of 4,000 rows of 40 scenes; PSI, JS and chi-squared beside it
    digits                        a real model whose camera gets noisy; two halves of its test scans, cut anew each time

In each a reference is drawn anew for each history: on one fixed reference every detector errs in its own way for ever.
"""

from dataclasses import dataclass
from functools import cache
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from bench.rollout.figures import Line, Options, quantile, spread_out
from harness.digits_drift import Halves, clean, noisy
from muster_agent.core.drift import Drift, Ranks, Turn, observe
from muster_agent.metrics.confidence import classes_and_confidence
from muster_agent.metrics.reference import WINDOW, Reference
from muster_agent.metrics.reference_build import Observed, build

WINDOWS = 10_000
WINDOWS_SHORT = 2_000
"""Of a history whose rows are drawn one by one."""
PATIENCE = 200
"""Windows after which a fall counts as not seen."""
MEAN, FALLS = 0.842, (0.75, 0.81)
SCENE_SD, ROW_SD = 0.02, 0.2
"""Of mean confidence: from scene to scene, and from row to row within one."""
SCENES, SCENE_ROWS = 40, 100
LOGIT_SCENE_SD, LOGIT_ROW_SD = 0.22, 1.2
"""The same of the logit of confidence, where rows are drawn: window means spread by 0.024 too."""
BINS = 10
PSI, JS, CHI_SQUARED = 0.2, 0.1, 16.92  # The last: 9 degrees of freedom, 5 %.

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What one history gave."""

    alarms: int
    windows: int
    delays: tuple[float, ...]
    """By fall; inf: not seen."""
    rivals: tuple[float, ...] = ()
    """Share of windows without any change that PSI, JS and chi-squared call one."""
    accuracies: tuple[float, float] = (0.0, 0.0)


def run(options: Options) -> list[Line]:
    """Return the figures. Histories are references, with their own streams."""
    spreads = spread_out("windows", _of_windows, _seeds(options, 1), options.jobs)
    scenes = spread_out("scenes", _of_scenes, _seeds(options, 10), options.jobs)
    camera = spread_out("digits", _of_digits, _seeds(options, 20), options.jobs)
    before, after = (float(np.mean([seen.accuracies[at] for seen in camera])) for at in (0, 1))
    return [
        _false("windows: false alarms in 10,000", spreads),
        _delay(f"windows: to see a fall from {MEAN} to {FALLS[0]}", spreads, 0, judged=True),
        _delay(f"windows: to see a fall from {MEAN} to {FALLS[1]}", spreads, 1, judged=False),
        _false("scenes: false alarms in 10,000", scenes),
        _delay(f"scenes: to see a fall from {MEAN} to {FALLS[0]}", scenes, 0, judged=True),
        _delay(f"scenes: to see a fall from {MEAN} to {FALLS[1]}", scenes, 1, judged=False),
        *(
            Line(f"scenes: {name}, alarms in 10,000", "", f"{1e4 * np.mean([s.rivals[at] for s in scenes]):,.0f}", None)
            for at, name in enumerate((f"PSI > {PSI}", f"JS > {JS}", "chi-squared, 5 %"))
        ),
        Line("digits: accuracy, clean and noisy", "", f"{before:.3f} and {after:.3f}", None),
        _false("digits: false alarms in 10,000", camera),
        _delay("digits: windows to see the noise", camera, 0, judged=True),
    ]


def _seeds(options: Options, for_each: int) -> list[int]:
    return [1_000_000 * options.seed + number for number in range(max(4, options.histories // for_each))]


def _false(name: str, histories: list[Seen]) -> Line:
    per = [1e4 * seen.alarms / seen.windows for seen in histories]
    mean, error = float(np.mean(per)), float(np.std(per)) / sqrt(len(per))
    none = sum(not seen.alarms for seen in histories)
    return Line(
        name, "<= 1", f"{mean:.2f}", mean <= 1, f"± {1.96 * error:.2f}; {none} of {len(per)} references without any"
    )


def _delay(name: str, histories: list[Seen], at: int, *, judged: bool) -> Line:
    delays = [seen.delays[at] for seen in histories]
    middle = quantile(delays, 0.5)
    unseen = sum(delay == inf for delay in delays)
    spread = f"90 % within {quantile(delays, 0.9):.0f}" + (f", {unseen} of {len(delays)} never" if unseen else "")
    return Line(name, "<= 5, median" if judged else "", f"{middle:.0f}", middle <= 5 if judged else None, spread)


# -- one history -------------------------------------------------------------------------------------------------------


def _of_windows(seed: int) -> Seen:
    rng = np.random.default_rng(seed)

    def drawn(count: int, mean: float) -> list[float]:
        scenes = mean + SCENE_SD * rng.standard_normal(count)
        found: list[float] = (scenes + ROW_SD / sqrt(WINDOW) * rng.standard_normal(count)).tolist()
        return found

    ranks = Ranks(drawn(500, MEAN))
    delays = tuple(_until_alarm(ranks, drawn(PATIENCE, fall), rng) for fall in FALLS)
    return Seen(_alarms(ranks, drawn(WINDOWS, MEAN), rng), WINDOWS, delays)


def _of_scenes(seed: int) -> Seen:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(SCENES), SCENE_ROWS)
    held_out = _rows(rng, LOGIT_SCENE_SD * rng.standard_normal(SCENES)[groups], MEAN)
    scores = np.stack([held_out, 1 - held_out], axis=1).astype(np.float32)
    nothing = np.zeros((len(groups), 1), np.float32)
    reference = Reference.parse(build(Observed({"rows": nothing}, scores, groups), seed=seed))
    ranks = Ranks(reference.confidence_windows.tolist(), reference.confidence_error)

    def drawn(count: int, mean: float) -> Floats:
        scenes = LOGIT_SCENE_SD * rng.standard_normal((count, 1))
        # Of two classes the larger is the confidence.
        return np.stack([_sure(_rows(rng, np.repeat(scene, WINDOW), mean)) for scene in scenes])

    delays = tuple(_until_alarm(ranks, drawn(PATIENCE, fall).mean(axis=1).tolist(), rng) for fall in FALLS)
    windows = drawn(WINDOWS_SHORT, MEAN)
    edges = np.quantile(_sure(held_out), np.arange(1, BINS) / BINS)
    alarms = _alarms(ranks, windows.mean(axis=1).tolist(), rng)
    return Seen(alarms, WINDOWS_SHORT, delays, _rivals(windows, edges))


def _of_digits(seed: int) -> Seen:
    rng = np.random.default_rng(seed)
    halves = Halves("2.1.0", seed)
    before, after = halves.through(clean), halves.through(noisy)
    ranks = Ranks(halves.reference.confidence_windows.tolist(), halves.reference.confidence_error)
    delay = _until_alarm(ranks, list(after.windows(rng, PATIENCE)), rng)
    alarms = _alarms(ranks, list(before.windows(rng, WINDOWS_SHORT)), rng)
    return Seen(alarms, WINDOWS_SHORT, (delay,), (), (before.accuracy, after.accuracy))


def _alarms(ranks: Ranks, means: list[float], rng: np.random.Generator) -> int:
    drift, alarms = Drift(), 0
    for mean, chance in zip(means, rng.random(len(means)).tolist(), strict=True):
        drift, turn = observe(ranks, drift, mean, chance)
        alarms += turn in (Turn.FELL, Turn.ROSE)
    return alarms


def _until_alarm(ranks: Ranks, means: list[float], rng: np.random.Generator) -> float:
    drift = Drift()
    for number, (mean, chance) in enumerate(zip(means, rng.random(len(means)).tolist(), strict=True), 1):
        drift, turn = observe(ranks, drift, mean, chance)
        if turn is not None:
            return number
    return inf


def _rows(rng: np.random.Generator, scenes: Floats, mean: float) -> Floats:
    """Return the probability of the right class of a row of each scene, so that confidence is `mean` over all."""
    logits = _middle(mean) + scenes + LOGIT_ROW_SD * rng.standard_normal(len(scenes))
    found: Floats = 1 / (1 + np.exp(-logits))
    return found


def _sure(probabilities: Floats) -> Floats:
    scores = np.stack([probabilities, 1 - probabilities], axis=1)
    return classes_and_confidence(scores)[1].astype(np.float64)


@cache
def _middle(mean: float) -> float:
    """Return the logit whose rows have the mean confidence `mean`, over scenes and rows (Gauss-Hermite)."""
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    noise = points * sqrt(LOGIT_SCENE_SD**2 + LOGIT_ROW_SD**2)
    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        shares = 1 / (1 + np.exp(-(middle + noise)))
        confidence = float((np.maximum(shares, 1 - shares) * weights).sum() / weights.sum())
        low, high = (middle, high) if confidence < mean else (low, middle)
    return low


def _rivals(windows: Floats, edges: Floats) -> tuple[float, ...]:
    """Return the share of windows [n, WINDOW] that differ by PSI, by JS and by chi-squared, in tenths of the rows."""
    counts = np.stack([np.bincount(np.searchsorted(edges, window), minlength=BINS) for window in windows])
    shares = np.maximum(counts / WINDOW, 1e-4)  # As usual where a bin is empty.
    expected = 1 / BINS
    psi = ((shares - expected) * np.log(shares / expected)).sum(axis=1)
    middle = (shares + expected) / 2
    js = (shares * np.log2(shares / middle) + expected * np.log2(expected / middle)).sum(axis=1) / 2
    chi_squared = ((counts - WINDOW * expected) ** 2 / (WINDOW * expected)).sum(axis=1)
    return (
        float((psi > PSI).mean()),
        float((np.sqrt(np.maximum(js, 0)) > JS).mean()),
        float((chi_squared > CHI_SQUARED).mean()),
    )
