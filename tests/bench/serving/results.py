"""What was measured, as values: one `Figures` for each server, model, concurrency and round, and their medians."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from statistics import median
from typing import Literal

from bench.serving.swap import SwapResult

Where = tuple[str, str, int]
"""Server, model, concurrency."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One measurement. Memory in MiB over the process tree; CPU of the server alone, not of the load.

    `concurrency` of the bare engine is its callers, or the rows of a batch.
    """

    server: str
    model: str
    concurrency: int
    round: int = 0
    rps: float
    p50_us: float
    p99_us: float
    failed: float = 0
    cpu_s_per_1000: float = 0.0
    rss_before_mb: float = 0.0
    rss_peak_mb: float = 0.0
    rss_after_mb: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Start:
    """From exec to the first right answer."""

    server: str
    model: str
    seconds: float
    rss_mb: float


@dataclass(frozen=True, kw_only=True)
class Idle:
    """A process that has loaded `model` and is left alone. CPU as a share of one core."""

    server: str
    model: str
    rss_mb: float
    uss_mb: float
    cpu: float


@dataclass
class Results:
    """Everything of one run."""

    figures: list[Figures] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    idle: list[Idle] = field(default_factory=list)
    swap: SwapResult | None = None
    missing: dict[str, str] = field(default_factory=dict)
    """Server -> why it was not measured."""
    machine: str = ""
    others: float = 0.0
    """Share (0..1) of all processors that programs other than this benchmark's took meanwhile."""

    def get(self, server: str, model: str, concurrency: int) -> Figures | None:
        """Return the median over the rounds, each figure by itself; failures are summed."""
        return _median([each for each in self.figures if _key(each) == (server, model, concurrency)])

    def medians(self) -> list[Figures]:
        keys = dict.fromkeys(_key(each) for each in self.figures)
        return [each for key in keys if (each := self.get(*key)) is not None]

    def ratio(self, figure: Literal["rps", "p50_us"], one: Where, other: Where) -> float | None:
        """Return the median over the rounds of `one` by `other`; both of a round had the same minutes."""
        ours = {each.round: getattr(each, figure) for each in self.figures if _key(each) == one}
        theirs = {each.round: getattr(each, figure) for each in self.figures if _key(each) == other}
        ratios = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
        return median(ratios) if ratios else None

    def start(self, server: str, model: str) -> Start | None:
        found = [each for each in self.starts if (each.server, each.model) == (server, model)]
        if not found:
            return None
        return replace(
            found[0], seconds=median(each.seconds for each in found), rss_mb=median(each.rss_mb for each in found)
        )

    def document(self) -> dict[str, object]:
        """Return what `--json` writes."""
        return {
            "machine": self.machine,
            "others": self.others,
            "medians": [asdict(each) for each in self.medians()],
            "rounds": [asdict(each) for each in self.figures],
            "starts": [asdict(each) for each in self.starts],
            "idle": [asdict(each) for each in self.idle],
            "swap": None if self.swap is None else asdict(self.swap),
            "not_measured": self.missing,
        }


def _key(each: Figures) -> Where:
    return each.server, each.model, each.concurrency


_NOT_AVERAGED = ("server", "model", "concurrency", "round", "failed")


def _median(found: Iterable[Figures]) -> Figures | None:
    rounds = list(found)
    if not rounds:
        return None
    numbers = [field.name for field in fields(Figures) if field.name not in _NOT_AVERAGED]
    middle = {name: median(getattr(each, name) for each in rounds) for name in numbers}
    return replace(rounds[0], **middle, failed=sum(each.failed for each in rounds))
