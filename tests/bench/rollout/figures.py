"""What every part of this benchmark takes and gives: options, figures with target and spread, work on processes."""

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from math import ceil, sqrt
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

OUT = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
_ERR = Console(stderr=True)
Task = TypeVar("Task")
Found = TypeVar("Found")
_Z = 1.96  # Of a 95 % interval.


@dataclass(frozen=True)
class Options:
    histories: int = 1000
    """Of every scenario."""
    seed: int = 1
    jobs: int = 2
    quick: bool = False
    """A look in a minute: parts may take fewer and smaller cases."""


@dataclass(frozen=True)
class Line:
    """One figure."""

    name: str
    target: str
    """What it shall be, as text; empty for a figure that is only told."""
    value: str
    passed: bool | None
    """None where there is no target."""
    spread: str = ""
    """Its 95 % interval, or from which to which it went, as text."""


def show(lines: Sequence[Line]) -> None:
    """Print the figures that have a target: PASS, MISS, name, target, value, spread."""
    width = max((len(line.name) for line in lines), default=0)
    for line in lines:
        word = {True: "[green]PASS[/]", False: "[red]MISS[/]", None: "----"}[line.passed]
        OUT.print(f"  {word}  {line.name:{width}}  {line.target:>22}  {line.value:>18}  {line.spread}")


def spread_out(title: str, work: Callable[[Task], Found], tasks: Sequence[Task], jobs: int) -> list[Found]:
    """Return `work` of every task, in their order, done by `jobs` processes, with a bar on the terminal."""
    found: dict[int, Found] = {}
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_ERR, transient=True) as progress, ProcessPoolExecutor(jobs) as pool:
        bar = progress.add_task(title, total=len(tasks))
        waiting = {pool.submit(work, task): place for place, task in enumerate(tasks)}
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            progress.advance(bar)
    return [found[place] for place in range(len(tasks))]


def share_interval(hits: int, number: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    share, square = hits / number, _Z**2 / number
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * sqrt(share * (1 - share) / number + square / (4 * number))
    return max(0.0, centre - half), min(1.0, centre + half)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def quantile_interval(values: Sequence[float], share: float) -> tuple[float, float]:
    """Return the 95 % interval of a quantile: order statistics, so whatever the distribution."""
    ordered, number = sorted(values), len(values)
    half = _Z * sqrt(number * share * (1 - share))
    low, high = int(number * share - half), int(number * share + half) + 1
    return ordered[max(0, low - 1)], ordered[min(number - 1, high - 1)]


def devices(values: Iterable[float]) -> str:
    """Return numbers of devices as text; inf is a rollout that was never stopped."""
    return " / ".join("never" if value == float("inf") else f"{value:.0f}" for value in values)
