"""The ramp F5 against fixed waves, through the whole shipped machine: devices that the release breaks until it stops.

`ramp` compares the sizes of waves alone. Here devices fetch, measure and report one by one, controls are held back as
long as there are any, waves wait for their last device, and an abort may come in the middle of a wave.
"""

from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, stdev

from bench.rollout.figures import Line, Options, quantile, share_interval, spread_out
from muster_controller.core.policy import Policy, Ramp
from muster_simulator.rehearsal import fleet_shape
from muster_simulator.rehearsal.run import People, Rehearsal, Result
from muster_simulator.rehearsal.scenarios import Harm, Scenario

BASE, WORSE = 0.01, 0.05
CLASSES = {"nuc": 0.45, "pi5": 0.30, "jetson": 0.15, "pi4": 0.10}
FIXED = (5, 25, 100, 400, 2_000, 10_000)
QUICK_FIXED = FIXED[:-1]
CHUNK = 5
HISTORIES_MAX = 100  # Each is a rollout through the whole machine: a second or more.
SCENARIO = Scenario("failing", "1 % -> 5 %", Harm(WORSE), BASE)


@dataclass(frozen=True)
class _Task:
    fixed: tuple[int, ...]
    is_ramp: bool
    skips: bool
    seed: int
    first: int
    end: int


def run(options: Options) -> list[Line]:
    """Return the ratio of devices harmed: where a pause stops the release, and where people skip every pause."""
    fixed = QUICK_FIXED if options.quick else FIXED
    options = replace(options, histories=min(options.histories, HISTORIES_MAX))
    lines = []
    for skips, case in ((False, "a pause stops it"), (True, "every pause is skipped")):
        found: list[list[Result]] = []
        for is_ramp, way in ((True, "ramp"), (False, "fixed waves")):
            tasks = [
                _Task(fixed, is_ramp, skips, options.seed, first, min(first + CHUNK, options.histories))
                for first in range(0, options.histories, CHUNK)
            ]
            chunks = spread_out(f"{way}, {case}", _results, tasks, options.jobs)
            found.append([result for chunk in chunks for result in chunk])
        ours, theirs = found
        harm, other = (fmean(each.harmed for each in results) for results in found)
        ratio = harm / other
        lines.append(
            Line(
                f"devices harmed, ramp to fixed waves, {SCENARIO.title}, {sum(fixed):,} devices, {case}",
                "",  # The target is of the ramp by itself (`ramp`); here the pause at E >= 3 protects both ways.
                f"{ratio:.0%}",
                None,
                f"+-{_ratio_error(ours, theirs):.1%}; {harm:.1f} : {other:.1f}, exposed "
                f"{fmean(each.exposed for each in ours):.0f} : {fmean(each.exposed for each in theirs):.0f}",
            )
        )
        lines += [_stopped(f"{way}, {case}", each) for way, each in zip(("ramp", "fixed waves"), found, strict=True)]
    return lines


def _stopped(title: str, results: list[Result]) -> Line:
    stopped = sum(each.ended in ("aborted", "paused") for each in results)
    low, high = share_interval(stopped, len(results))
    exposed = [float(each.exposed) for each in results]
    spread = f"{low:.1%} ... {high:.1%}; exposed {quantile(exposed, 0.5):.0f} / {quantile(exposed, 0.9):.0f}"
    return Line(f"stopped, {title}", "", f"{stopped / len(results):.1%}", None, spread)


def _results(task: _Task) -> list[Result]:
    rehearsal = _rehearsal(task.fixed, task.is_ramp, task.skips, task.seed)
    return [rehearsal.run(SCENARIO, number) for number in range(task.first, task.end)]


@cache
def _rehearsal(fixed: tuple[int, ...], is_ramp: bool, skips: bool, seed: int) -> Rehearsal:
    classes: dict[str, int | fleet_shape.ClassShape] = {
        name: round(share * sum(fixed)) for name, share in CLASSES.items()
    }
    fleet = fleet_shape.of_shape(fleet_shape.Shape(classes=classes), "the bench's fleet").select("")
    policy = Policy(ramp=Ramp(first=fixed[0])) if is_ramp else Policy(waves=fixed)
    return Rehearsal(policy, fleet, seed, People(skip_pauses=skips))


def _ratio_error(ours: list[Result], theirs: list[Result]) -> float:
    """Return the 95 % half-width of the ratio of means (delta method)."""
    parts = [[float(each.harmed) for each in results] for results in (ours, theirs)]
    relative = sum((stdev(part) / fmean(part)) ** 2 / len(part) for part in parts) ** 0.5
    return float(1.96 * relative * fmean(parts[0]) / fmean(parts[1]))
