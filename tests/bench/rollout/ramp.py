"""The ramp F5 against fixed waves: the same gate, the same devices, how much harm until it stops.

Harm is failures in excess of what the old release would have caused. A wave is all exposed at once; the gate is asked
when it is over, so both ways of growing are judged by nothing but the sizes of their waves.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median, stdev

import numpy as np

from bench.rollout.figures import Line, Options, spread_out
from bench.rollout.histories import BASE, CLASSES, CONTROLS
from muster_controller.core.gate.evidence import Terms, evidence
from muster_controller.core.gate.ramp import next_wave
from muster_controller.core.gate.strata import LATENCY_CLIP, LATENCY_STEP, Stratum

FLEET = 12_530
FIXED = (5, 25, 100, 400, 2_000, 10_000)
RATES = {"1 % -> 5 %": 0.05, "40 % bricks": 0.40, "1 % -> 10 %": 0.10, "1 % -> 2 %": 0.02}
SPREAD = 0.09  # Of a treated device's slowdown against ten controls when nothing is slower.
JUDGED = "1 % -> 5 %"
CHUNK = 25
MOST = 0.5

Ramp = Callable[["Counts"], int]


@dataclass
class Counts:
    """Of one rollout so far."""

    waves: int = 0
    last: int = 0
    treated: int = 0
    treated_bad: int = 0
    controls: int = 0
    controls_bad: int = 0
    e: float = 1.0


@dataclass(frozen=True)
class Harm:
    exposed: int
    excess: float
    waves: int
    stopped: bool


def run(options: Options) -> list[Line]:
    """Return the harm of both ways to grow, their ratio, and what the ramp costs when nothing is wrong."""
    number = options.histories
    lines = []
    for title, rate in {**RATES, "nothing changed": BASE}.items():
        tasks = [(rate, first, min(first + CHUNK, number), options.seed) for first in range(0, number, CHUNK)]
        pairs = [pair for chunk in spread_out(f"ramp, {title}", _pairs, tasks, options.jobs) for pair in chunk]
        ours, fixed = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if rate == BASE:
            waves = [harm.waves for harm in ours if not harm.stopped]
            aborted = sum(harm.stopped for harm in ours) / number
            lines.append(Line("false aborts of the ramp, nothing changed", "<= 5%", f"{aborted:.1%}", aborted <= 0.05))
            lines.append(
                Line(
                    f"waves to {FLEET:,} devices, nothing changed",
                    "",
                    f"{fmean(waves):.1f}",
                    None,
                    f"{min(waves)} ... {max(waves)}, median {median(waves):.0f}; fixed: {len(FIXED)}",
                )
            )
            continue
        mine, theirs = fmean(harm.excess for harm in ours), fmean(harm.excess for harm in fixed)
        ratio = mine / theirs
        judged = title == JUDGED
        lines.append(
            Line(
                f"harm of the ramp to that of fixed waves, {title}",
                f"<= {MOST:.0%}" if judged else "",
                f"{ratio:.0%}",
                ratio <= MOST if judged else None,
                f"+-{_ratio_error(ours, fixed):.1%}; excess failures {mine:.1f} : {theirs:.1f}, devices "
                f"{fmean(harm.exposed for harm in ours):.0f} : {fmean(harm.exposed for harm in fixed):.0f}, waves "
                f"{fmean(harm.waves for harm in ours):.1f} : {fmean(harm.waves for harm in fixed):.1f}",
            )
        )
    return lines


def _pairs(task: tuple[float, int, int, int]) -> list[tuple[Harm, Harm]]:
    rate, first, end, seed = task
    return [
        (roll_out(rate, by_evidence, (seed, number, 0)), roll_out(rate, by_plan, (seed, number, 1)))
        for number in range(first, end)
    ]


def by_evidence(counts: Counts) -> int:
    """Return the size of the next wave after F5."""
    if not counts.waves:
        return FIXED[0]
    return next_wave(counts.last, counts.treated_bad, counts.treated, counts.controls_bad, counts.controls, e=counts.e)


def by_plan(counts: Counts) -> int:
    """Return the size of the next fixed wave."""
    return FIXED[counts.waves]


def roll_out(rate: float, size: Ramp, seed: tuple[int, ...]) -> Harm:
    """Run one rollout over the fleet until the gate aborts or all have the release.

    Args:
        rate: Failure rate of treated devices; controls fail at BASE.
    """
    random = np.random.default_rng(seed)
    terms = Terms()
    shares = np.array(list(CLASSES.values()))
    strata: list[Stratum] = []
    counts = Counts()
    while counts.treated < FLEET:
        new = min(size(counts), FLEET - counts.treated)
        ends = np.round(np.cumsum(shares) * new).astype(int)
        for name, treated in zip(CLASSES, np.diff(ends, prepend=0).tolist(), strict=True):
            if not treated:
                continue
            controls = treated * CONTROLS
            bad = int(random.binomial(treated, rate)), int(random.binomial(controls, BASE))
            well = treated - bad[0]
            slower = np.clip(random.normal(0, SPREAD, well), -LATENCY_CLIP, LATENCY_CLIP)
            bins = Counter(np.floor(slower / LATENCY_STEP).astype(int).tolist())
            latency = tuple(sorted(bins.items()))
            strata.append(Stratum(counts.waves, name, treated, bad[0], controls, bad[1], latency, compared=well))
            counts.treated_bad += bad[0]
            counts.controls_bad += bad[1]
        counts.waves += 1
        counts.last = new
        counts.treated += new
        counts.controls += new * CONTROLS
        counts.e = evidence(strata, terms).e
        if counts.e >= 1 / terms.alpha:
            return Harm(counts.treated, counts.treated * (rate - BASE), counts.waves, stopped=True)
    return Harm(counts.treated, counts.treated * (rate - BASE), counts.waves, stopped=False)


def _ratio_error(ours: list[Harm], fixed: list[Harm]) -> float:
    """Return the 95 % half-width of the ratio of means (delta method; both are drawn independently)."""
    parts = [[harm.excess for harm in harms] for harms in (ours, fixed)]
    relative = sum((stdev(part) / fmean(part)) ** 2 / len(part) for part in parts) ** 0.5
    return float(1.96 * relative * fmean(parts[0]) / fmean(parts[1]))
