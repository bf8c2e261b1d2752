"""The mixer: windows a second through opening, sums and ledger on one core, and what a draw of noise costs.

CPU time of this process, with a ledger on a real disk; waiting for that disk is told beside it.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random

import structlog

from bench.metrics import oracle
from bench.rollout.figures import Line, Options, quantile
from harness.mixing import CELL, DAY_START, Stage, window
from muster_controller.mixer.config import MixerConfig
from muster_controller.mixer.noise import OsRandom, discrete_gaussians
from muster_controller.mixer.process import BATCH_MAX
from muster_shared.ids import FleetId
from muster_shared.metrics import CONFIDENCE_BINS, DRIFT, HOUR_S, INPUTS, UNITS, Kind, cohort, sigma
from muster_shared.sealing import open_sealed, seal

ROUNDS = 7
WINDOWS = 5_000
DRAWS = 50_000
DRAW_US_MAX = 24.0


def run(options: Options) -> list[Line]:
    """Return windows a second, the time that an hour takes to close, and us a draw; then agreement with opendp."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    windows = WINDOWS // 5 if options.quick else WINDOWS
    with tempfile.TemporaryDirectory(prefix="muster-bench-mixer-") as folder:
        lines = [*_windows(Path(folder), windows, Random(options.seed)), *_draws()]
    return [*lines, *oracle.run(options)]


def _windows(folder: Path, number: int, random: Random) -> list[Line]:
    stage = Stage(folder, MixerConfig("one", FleetId("test")))
    stage.now = DAY_START + HOUR_S + 600
    sealed = [(cohort(CELL), seal(window(random, units=_units(random)), stage.public)) for _ in range(number)]
    keys = {stage.key: stage.private}
    opened_s = _cpu_s(lambda: [open_sealed(raw, keys) for _, raw in sealed])
    wall_s = time.perf_counter()
    taken_s = _cpu_s(lambda: [stage.mixer.take(sealed[at : at + BATCH_MAX]) for at in range(0, number, BATCH_MAX)])
    wall_s = time.perf_counter() - wall_s
    assert stage.counted()["windows"] == number
    stage.now = DAY_START + 3 * HOUR_S
    closed_s = _cpu_s(lambda: stage.mixer.turn(settled=True))
    (published,) = stage.outbox()
    places = sum(map(len, published.sums.values()))
    return [
        Line(
            "windows a second and core", "", f"{number / taken_s:,.0f}", None, f"{number / wall_s:,.0f} with the disk"
        ),
        Line(
            "of that, opening one", "", f"{opened_s / number * 1e6:.0f} us", None, f"{len(sealed[0][1])} bytes sealed"
        ),
        Line("of that, sums and ledger", "", f"{(taken_s - opened_s) / number * 1e6:.0f} us", None),
        Line("closing a cell and hour", "", f"{closed_s * 1e3:.1f} ms", None, f"{places} draws, 1 commit"),
    ]


def _units(random: Random) -> dict[Kind, dict[int, int]]:
    """What a busy device tells of a release of ten classes: every kind, in several places."""
    return {
        Kind.CLASSES: _spread(random, CELL.classes),
        Kind.CONFIDENCE: _spread(random, CONFIDENCE_BINS),
        Kind.LATENCY: {at + 48: units for at, units in _spread(random, 12).items()},
        Kind.INPUTS: _spread(random, len(INPUTS)),
        Kind.DRIFT: {random.randrange(len(DRIFT)): UNITS},
        Kind.FEEDBACK: _spread(random, 2 * CELL.classes),
    }


def _spread(random: Random, places: int) -> dict[int, int]:
    given = [random.randrange(places) for _ in range(UNITS)]
    return {place: given.count(place) for place in set(given)}


def _draws() -> list[Line]:
    below, lines = OsRandom(), []
    for kind in (Kind.CLASSES, Kind.DRIFT):
        variance = Fraction(round(sigma(kind))) ** 2
        rounds = [
            _cpu_s(lambda variance=variance: discrete_gaussians(variance, DRAWS // ROUNDS, below))  # type: ignore[misc]
            / (DRAWS // ROUNDS)
            * 1e6
            for _ in range(ROUNDS)
        ]
        middle = quantile(rounds, 0.5)
        spread = f"{min(rounds):.1f} to {max(rounds):.1f} us"
        target = f"<= {DRAW_US_MAX:.0f} us"
        lines.append(
            Line(f"a draw, sigma {sigma(kind):.0f}", target, f"{middle:.1f} us", middle <= DRAW_US_MAX, spread)
        )
    return lines


def _cpu_s(work: Callable[[], object]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s
