"""Accuracy: how far the published share of a class lies from the truth, at 10,000, 1,000 and 100 devices an hour.

Devices differ: their shares are drawn around those of the fleet (Dirichlet), and how often each was asked from some to
thousands of times. What each counted goes through the agent's rounding, a window, the mixer's sums and its noise, and
the controller's estimate. The truth is the mean of the exact shares of the same devices in the same hour, so the error
is that of rounding and noise. Each hour is noised several times over: noise is nearly all of the error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from random import Random

import numpy as np

from bench.rollout.figures import Line, Options, quantile, share_interval, spread_out
from muster_agent.metrics.rounding import share_out
from muster_controller.core.metrics.estimates import shares
from muster_controller.core.metrics.sums import MixedSum, pooled
from muster_controller.mixer.accounting import eps_tight, release_nano
from muster_controller.mixer.batching import Pending, Period, add
from muster_controller.mixer.noise import OsRandom
from muster_controller.mixer.noising import mixed
from muster_shared.ids import ModelName
from muster_shared.metrics import DELTA, HOUR_S, RHO_DAY, UNITS, Cell, Kind, Window, eps, pack

FLEETS = (10_000, 1_000, 100)
HOURS, DRAWS = 60, 40
SHARES = (0.28, 0.18, 0.14, 0.10, 0.10, 0.07, 0.05, 0.04, 0.03, 0.01)
TENTHS = tuple(place for place, share in enumerate(SHARES) if share == 0.10)
ALIKE = 20.0
"""How much devices see the same (Dirichlet's concentration): one's share of a class of 10 % spreads by 0.065."""
ASKED_MEDIAN, ASKED_SPREAD = 200.0, 1.2
"""Inferences of a device in an hour, log-normal."""
CELL = Cell(model=ModelName("digits"), version="1.0.0", device_class="pi5", classes=len(SHARES))
HOUR = Period(20_000 * 24 * HOUR_S, HOUR_S)


@dataclass(frozen=True)
class Errors:
    """Of one hour, relative, one a class of 10 % and draw of noise.

    Attributes:
        by_devices: of sums / (UNITS x devices), where every device measured.
        by_estimate: of the controller's estimate; None: it says unknown.
        held: whether its interval held the truth.
        rounding: of the sums before noise.
    """

    by_devices: tuple[float, ...]
    by_estimate: tuple[float | None, ...]
    held: tuple[bool, ...]
    rounding: tuple[float, ...]


def run(options: Options) -> list[Line]:
    """Return the figures: eps, then by size of the fleet."""
    hours = HOURS // 10 if options.quick else HOURS
    lines = [
        Line("eps of a device and day, delta 1e-6", "<= 2.5", f"{eps(RHO_DAY):.2f}", eps(RHO_DAY) <= 2.5, _tight(1)),
        Line("eps of 30 days", "", f"{eps(30 * RHO_DAY):.1f}", None, _tight(30)),
    ]
    for devices in FLEETS:
        tasks = [(devices, options.seed * 1_000_003 + hour) for hour in range(hours)]
        lines += _lines(devices, spread_out(f"{devices} devices", _hour, tasks, options.jobs))
    return lines


def _tight(days: int) -> str:
    return f"tight bound {eps_tight(days * RHO_DAY, DELTA):.2f}"


def _lines(devices: int, found: Sequence[Errors]) -> Iterator[Line]:
    name = f"{devices:,} devices, class of 10 %"
    estimates = [error for one in found for error in one.by_estimate if error is not None]
    asked = sum(len(one.by_estimate) for one in found)
    plain = [error for one in found for error in one.by_devices]
    if 2 * len(estimates) > asked:  # Of a few that stood out by chance there is nothing to tell.
        rms = _rms(estimates)
        half = 1.96 * rms / sqrt(2 * len(estimates))
        target, passed = ("<= 2 %", rms <= 0.02) if devices == FLEETS[0] else ("", None)
        spread = f"{100 * (rms - half):.2f} to {100 * (rms + half):.2f} %"
        yield Line(f"{name}: RMS error", target, f"{100 * rms:.2f} %", passed, spread)
        mean = sum(map(abs, estimates)) / len(estimates)
        most = quantile([abs(error) for error in estimates], 0.95)
        yield Line(f"{name}: mean error", "", f"{100 * mean:.2f} %", None, f"95 % within {100 * most:.1f} %")
        held = [one for each in found for one in each.held]
        low, high = share_interval(sum(held), len(held))
        share = f"{100 * sum(held) / len(held):.1f} %"
        yield Line(f"{name}: truth in the 95 % interval", "", share, None, f"{100 * low:.1f} to {100 * high:.1f} %")
    unknown = f"unknown in {100 * (asked - len(estimates)) / asked:.0f} % of hours"
    yield Line(f"{name}: RMS of sums / devices", "", f"{100 * _rms(plain):.2f} %", None, unknown)
    rounding = _rms([error for one in found for error in one.rounding])
    yield Line(f"{name}: RMS of rounding alone", "", f"{100 * rounding:.2f} %", None)


def _rms(errors: Sequence[float]) -> float:
    return sqrt(sum(error * error for error in errors) / len(errors))


def _hour(task: tuple[int, int]) -> Errors:
    """One hour of one fleet, noised DRAWS times."""
    devices, seed = task
    drawn, random, below = np.random.default_rng(seed), Random(seed), OsRandom()
    asked = np.maximum(1, drawn.lognormal(np.log(ASKED_MEDIAN), ASKED_SPREAD, devices)).astype(np.int64)
    counted = drawn.multinomial(asked, drawn.dirichlet(ALIKE * np.array(SHARES), devices))
    truth = (counted / asked[:, None]).mean(axis=0)
    sums = add(None, (_window(row.tolist(), random) for row in counted), HOUR.end)
    by_devices: list[float] = []
    by_estimate: list[float | None] = []
    held: list[bool] = []
    for draw in range(DRAWS):
        published = _published(sums, draw, below)
        figures = shares(pooled([published]))
        for place in TENTHS:
            by_devices.append(published.sums[place] / (UNITS * devices * truth[place]) - 1)
            figure = figures[place]
            by_estimate.append(None if figure.value is None else figure.value / truth[place] - 1)
            if figure.low is not None and figure.high is not None:
                held.append(bool(figure.low <= truth[place] <= figure.high))
    exact = [sums.sums[Kind.CLASSES].get(place, 0) / (UNITS * devices * truth[place]) - 1 for place in TENTHS]
    return Errors(tuple(by_devices), tuple(by_estimate), tuple(held), tuple(exact))


def _window(counts: list[int], random: Random) -> Window:
    (given,) = share_out([counts], UNITS, random)
    return Window(
        cell=CELL,
        period_start=HOUR.start,
        period_s=3600,
        nonce=f"{random.getrandbits(128):032x}",
        units={Kind.CLASSES: pack(enumerate(given))},
    )


def _published(sums: Pending, number: int, below: OsRandom) -> MixedSum:
    release = release_nano(RHO_DAY)
    said = mixed("one", HOUR, CELL, sums, number=number, release=release, now=HOUR.end, below=below)
    return MixedSum(
        batch=said.batch,
        kind=Kind.CLASSES,
        mixer=said.mixer,
        cell=said.cell,
        period_start=said.period_start,
        period_s=said.period_s,
        devices=said.devices,
        sums=said.sums[Kind.CLASSES],
        variance=said.sigma[Kind.CLASSES] ** 2,
    )
