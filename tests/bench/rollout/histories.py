"""Seeded histories of rollouts: which devices got the release, which were held back, and what became of both.

100 looks between 5 and 2,020 treated devices, ten held back for each of them at the same instant, four device classes
of which one has a tenth of the fleet. Every device class is in every wave. Nothing is decided here: each gate reads the
same history from its beginning until it would abort.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from math import log

import numpy as np
from numpy.typing import NDArray

from muster_controller.core.gate.strata import LATENCY_CLIP, LATENCY_STEP

LOOKS = 100
FIRST, LAST = 5, 2020
CONTROLS = 10
CLASSES = {"nuc": 0.45, "pi5": 0.30, "jetson": 0.15, "pi4": 0.10}
RARE = "pi4"
WAVES = (5, 25, 105, 425, LAST)  # Where a wave ends, in treated devices.
BASE = 0.01
DISAGREES = 0.005  # Devices whose inputs are odd enough that any two releases differ.
SIGMA, WILD_SIGMA, WILD = 0.08, 0.30, 0.05  # Of a device's log p95 between two windows; one in twenty is restless.
WEATHER = 0.05  # What an hour does to the p95 of all devices of a class.


class Judged(Enum):
    """The metric that a scenario moves: peers' rules, which watch one, are given that."""

    FAILURES = "failures"
    LATENCY = "latency"


Halves = tuple[float, float]
"""A value in the first half of the looks, and in the second."""


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    treated_rate: Halves = (BASE, BASE)
    """Failure rate that is reported."""
    control_rate: Halves = (BASE, BASE)
    silent: float = 0.0
    """Share of treated devices that never report again; counted as bad at their deadline."""
    slower: float = 1.0
    """Factor on the p95 of treated devices."""
    slower_class: str | None = None
    """The only class that becomes slower; None for all."""
    shock: Halves = (1.0, 1.0)
    """Factor on the p95 of both arms."""
    degrees: float | None = None
    """Tails of a device's noise: None for normal with a few restless ones, else Student's t."""
    judged: Judged = Judged.FAILURES
    times: int = 1
    """How many times the histories that were asked for: more where a figure is near its target."""


@dataclass(frozen=True)
class Batch:
    """What is new at one look. Counts are int64 [class]."""

    wave: int
    treated: NDArray[np.int64]
    failed: NDArray[np.int64]
    silent: NDArray[np.int64]
    """Treated devices that are silent: pending when the batch's reports are in, bad after its deadline."""
    controls_bad: NDArray[np.int64]
    disagreed: NDArray[np.int64]
    places: NDArray[np.int64]
    """int64 [device]: the class of each treated device that measures its latency: those that are well."""
    bins: NDArray[np.int64]
    """int64 [device]: its latency bin, against its ten controls."""
    z_treated: NDArray[np.float64]
    """float64 [device]: log(p95 after / p95 before)."""
    z_controls: NDArray[np.float64]
    """float64 [device, control]."""


SCENARIOS = (
    Scenario("nothing", "nothing changed"),
    Scenario(
        "shock",
        "shock to both arms",
        treated_rate=(BASE, 0.04),
        control_rate=(BASE, 0.04),
        shock=(1.0, 1.3),
    ),
    Scenario("five", "1 % -> 5 %", treated_rate=(0.05, 0.05), times=4),
    Scenario("bricks", "40 % bricks", treated_rate=(0.40, 0.40)),
    Scenario("silent", "5 % silent bricks", silent=0.05, times=4),
    Scenario("slower", "p95 +20 %", slower=1.2, judged=Judged.LATENCY),
    Scenario("slower-class", "p95 +50 % in a class of 10 %", slower=1.5, slower_class=RARE, judged=Judged.LATENCY),
)
"""Those that have targets."""

FURTHER = (
    Scenario("two", "1 % -> 2 %", treated_rate=(0.02, 0.02)),
    Scenario("slower-tails", "p95 +20 %, t tails", slower=1.2, degrees=3.0, judged=Judged.LATENCY),
    Scenario("tails", "nothing changed, t tails", degrees=3.0, judged=Judged.LATENCY),
)
"""Told, without targets."""


@cache
def looks() -> tuple[int, ...]:
    """Return how many devices are treated at every look: steps of 5 that grow by a constant factor, 5 ... 2,020."""
    low, high = 1.0, 1.2
    for _ in range(60):
        growth = (low + high) / 2
        low, high = (growth, high) if sum(FIRST * growth**k for k in range(LOOKS)) < LAST else (low, growth)
    steps = np.cumsum([FIRST * low**k for k in range(LOOKS)])
    return (*(round(float(step)) for step in steps[:-1]), LAST)


@cache
def plan() -> tuple[tuple[int, ...], ...]:
    """Return how many devices of each class are new at each look: [look][class]. Each class is in the first wave."""
    shares = np.array(list(CLASSES.values()))
    counts = np.zeros(len(shares), dtype=np.int64)
    planned, before = [], counts.copy()
    ends = set(looks())
    for number in range(1, LAST + 1):
        counts[number - 1 if number <= len(shares) else int(np.argmax(shares * number - counts))] += 1
        if number in ends:
            planned.append(tuple(int(new) for new in counts - before))
            before = counts.copy()
    return tuple(planned)


def draw(scenario: Scenario, seed: int) -> Iterator[Batch]:
    """Yield the batches of one life of a rollout, one a look; the same for the same seed."""
    random = np.random.default_rng((seed, *scenario.name.encode()))
    exposed = 0
    for look, new in enumerate(plan()):
        treated, half = np.array(new), look * 2 // LOOKS
        wave = next(number for number, end in enumerate(WAVES) if exposed < end)
        exposed += int(treated.sum())
        silent = random.binomial(treated, scenario.silent)
        failed = random.binomial(treated - silent, scenario.treated_rate[half])
        places = np.repeat(np.arange(len(treated)), treated - silent - failed)
        common = random.normal(0, WEATHER, len(treated)) + log(scenario.shock[half])
        slower = [log(scenario.slower) if scenario.slower_class in (None, name) else 0.0 for name in CLASSES]
        z_treated = common[places] + np.array(slower)[places] + _noise(random, scenario, (len(places),))
        z_controls = common[places, None] + _noise(random, scenario, (len(places), CONTROLS))
        yield Batch(
            wave=wave,
            treated=treated,
            failed=failed,
            silent=silent,
            controls_bad=random.binomial(treated * CONTROLS, scenario.control_rate[half]),
            disagreed=random.binomial(treated - silent - failed, DISAGREES),
            places=places,
            bins=latency_bins(z_treated, z_controls),
            z_treated=z_treated,
            z_controls=z_controls,
        )


def latency_bins(z_treated: NDArray[np.float64], z_controls: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return `strata.latency_bin` of many devices: int64 [device]."""
    slower = np.clip(z_treated[:, None] - z_controls, -LATENCY_CLIP, LATENCY_CLIP).mean(axis=1)
    bins: NDArray[np.int64] = np.floor(slower / LATENCY_STEP).astype(np.int64)
    return bins


def _noise(random: np.random.Generator, scenario: Scenario, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if scenario.degrees is not None:
        return SIGMA * random.standard_t(scenario.degrees, shape)
    return random.normal(0, np.where(random.random(shape) < WILD, WILD_SIGMA, SIGMA))
