"""False aborts, and devices exposed before a regression is stopped: our gate and its peers on the same histories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf

from rich.table import Table

from bench.rollout.figures import (
    OUT,
    Line,
    Options,
    devices,
    quantile,
    quantile_interval,
    share_interval,
    spread_out,
)
from bench.rollout.gates import OURS, PEERS, Gate, Ours, gates
from bench.rollout.histories import FURTHER, SCENARIOS, Scenario, draw, looks

CHUNK = 10
QUIET = ("nothing", "shock", "tails")  # Nothing is worse for the release: an abort is false.
FALSE_ABORTS = {"nothing": 0.05, "shock": 0.05}
EXPOSED = {"five": (110, 300), "slower": (30, None), "slower-class": (180, None), "silent": (75, None)}
"""Devices at most: median, 90 %."""
IMPATIENT = "5 % silent bricks, next batch before the deadline"


@dataclass(frozen=True)
class Task:
    scenario: Scenario
    seeds: range
    impatient: bool = False
    peers: int = 0
    """Peers watch the seeds below this one alone: what needs more histories is our figure."""


@dataclass(frozen=True)
class Outcome:
    """Of one history."""

    exposed: Mapping[str, float]
    """By gate: treated devices when it aborted, inf for never."""
    held: bool
    """Ours was at HOLD at some look."""


def run(options: Options) -> list[Line]:
    """Print the table and return the figures with their targets."""
    number = options.histories
    cases = {each.title: Task(each, range(number * each.times), peers=number) for each in (*SCENARIOS, *FURTHER)}
    silent = next(scenario for scenario in SCENARIOS if scenario.silent)
    cases[IMPATIENT] = Task(silent, range(number), impatient=True, peers=number)
    tasks = [
        (title, replace(case, seeds=case.seeds[first : first + CHUNK]), options.seed)
        for title, case in cases.items()
        for first in range(0, len(case.seeds), CHUNK)
    ]
    found: dict[str, list[Outcome]] = {title: [] for title in cases}
    for (title, _, _), outcomes in zip(tasks, spread_out("histories", _live_all, tasks, options.jobs), strict=True):
        found[title] += outcomes
    OUT.print(_table(cases, found))
    lines = [line for title, case in cases.items() for line in _lines(title, case, found[title])]
    held = sum(outcome.held for outcome in found[SCENARIOS[0].title])
    lines.append(Line("held at some look, nothing changed", "", f"{held / number:.1%}", None))
    return lines


def _live_all(task: tuple[str, Task, int]) -> list[Outcome]:
    _, case, seed = task
    return [
        live(case.scenario, seed * 1_000_003 + number, impatient=case.impatient, peers=number < case.peers)
        for number in case.seeds
    ]


def live(scenario: Scenario, seed: int, *, impatient: bool = False, peers: bool = True) -> Outcome:
    """Let every gate watch one history until it aborts or the history ends."""
    ours = Ours()
    running: dict[str, Gate] = {**(gates(scenario) if peers else {}), OURS: ours}
    exposed = dict.fromkeys(running, inf)
    before = None
    for number, batch in zip(looks(), draw(scenario, seed), strict=True):
        late = before if impatient else batch
        for name, gate in list(running.items()):
            aborts = gate.reported(batch)
            if late is not None and not aborts:
                aborts = gate.overdue(late)
            if aborts:
                exposed[name] = number
                del running[name]
        if not running:
            break
        before = batch
    return Outcome(exposed, ours.held)


def _lines(title: str, case: Task, outcomes: Sequence[Outcome]) -> list[Line]:
    exposed = [outcome.exposed[OURS] for outcome in outcomes]
    name, number = case.scenario.name, len(outcomes)
    caught = sum(not isinf(each) for each in exposed)
    low, high = share_interval(caught, number)
    if name in QUIET:
        most = FALSE_ABORTS.get(name)
        return [
            Line(
                f"false aborts, {title}",
                "" if most is None else f"<= {most:.0%}",
                f"{caught / number:.1%}",
                None if most is None else caught / number <= most,
                f"{low:.1%} ... {high:.1%}",
            )
        ]
    targets = (None, None) if case.impatient else EXPOSED.get(name, (None, None))
    lines = []
    for share, most in zip((0.5, 0.9), targets, strict=True):
        value = quantile(exposed, share)
        lines.append(
            Line(
                f"{title}, {'median' if share == 0.5 else f'{share:.0%}'}",
                "" if most is None else f"<= {most} devices",
                devices([value]),
                None if most is None else value <= most,
                devices(quantile_interval(exposed, share)),
            )
        )
    wanted = name == "silent" and not case.impatient
    lines.append(
        Line(
            f"{title}, caught",
            "100 %" if wanted else "",
            f"{caught / number:.1%}",
            caught == number if wanted else None,
            f"{low:.1%} ... {high:.1%}",
        )
    )
    return lines


def _table(cases: Mapping[str, Task], found: Mapping[str, Sequence[Outcome]]) -> Table:
    table = Table(title="false aborts; devices exposed, median / 90 %, and how many were caught where not all were")
    table.add_column("")
    for name in (*PEERS, OURS):
        table.add_column(name, justify="right")
    for title, case in cases.items():
        cells = []
        for name in (*PEERS, OURS):
            exposed = [outcome.exposed[name] for outcome in found[title] if name in outcome.exposed]
            if not exposed:
                cells.append("")
                continue
            caught = sum(not isinf(each) for each in exposed) / len(exposed)
            if case.scenario.name in QUIET:
                cells.append(f"{caught:.1%}")
            else:
                rest = "" if caught == 1 else f" ({caught:.1%})"
                cells.append(devices((quantile(exposed, 0.5), quantile(exposed, 0.9))) + rest)
        table.add_row(title, *cells)
    return table
