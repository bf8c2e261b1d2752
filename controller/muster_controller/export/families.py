"""Metric families and the texts that a scraper reads: Prometheus 0.0.4 and OpenMetrics 1.0.

    Family(name, kind, help, samples) ──text──▶ # HELP, # TYPE, one line a sample

Names follow the conventions: `muster_` in front, base units (seconds, bytes, joules) at the end, `_total` behind
counters and behind nothing else. A family holds SAMPLES_MAX samples; what is beyond is counted, not sent. Pure.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SAMPLES_MAX: Final = 2000
"""Of one family. Labels are models, releases, device classes and classes of a model: never devices."""
TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_NAME = re.compile(r"[a-z][a-z0-9_]*")

Labels = tuple[tuple[str, str], ...]


class Kind(StrEnum):
    COUNTER = "counter"
    """It only rises, but for restarts."""
    GAUGE = "gauge"


@dataclass(frozen=True)
class Sample:
    value: float
    labels: Labels = ()


@dataclass(frozen=True)
class Family:
    """One metric with all of its samples.

    Raises:
        AssertionError: a name against the conventions, which is a bug of ours.
    """

    name: str
    kind: Kind
    help: str
    samples: tuple[Sample, ...]
    left_out: int = 0
    """Samples beyond SAMPLES_MAX."""

    def __post_init__(self) -> None:
        assert _NAME.fullmatch(self.name), self.name
        assert self.name.endswith("_total") == (self.kind is Kind.COUNTER), self.name


def family(name: str, kind: Kind, text: str, samples: Iterable[tuple[float | None, Mapping[str, str]]]) -> Family:
    """Return a family of the samples that are known: unknown (None) is left out, never 0."""
    known = [Sample(float(value), tuple(labels.items())) for value, labels in samples if value is not None]
    return Family(name, kind, text, tuple(known[:SAMPLES_MAX]), max(0, len(known) - SAMPLES_MAX))


def text(families: Sequence[Family], *, open_metrics: bool = False) -> str:
    """Return the page. Families without a sample say their help and type alone, so that a name is never unknown."""
    lines: list[str] = []
    for each in families:
        # OpenMetrics names a counter without its ending; the samples of both have it.
        name = each.name.removesuffix("_total") if open_metrics else each.name
        # A type comes before the help in OpenMetrics' own examples; either order is taken by all readers.
        lines += [f"# HELP {name} {_escape(each.help, open_metrics)}", f"# TYPE {name} {each.kind.value}"]
        lines += [f"{each.name}{_labels(sample.labels)} {number(sample.value)}" for sample in each.samples]
    if open_metrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def wants_open_metrics(accept: str) -> bool:
    """Return whether a scraper's `Accept` names OpenMetrics and does not weigh it below the plain text."""
    weights: dict[str, float] = {}
    for part in accept.split(",")[:20]:
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            weights[kind.lower()] = float(weight)
        except ValueError:
            continue
    asked = weights.get("application/openmetrics-text", 0.0)
    return asked > 0.0 and asked >= weights.get("text/plain", 0.0)


def number(value: float) -> str:
    """Return a number as both formats write it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.12g}"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value, quotes=True)}"' for name, value in labels) + "}"


def _escape(said: str, quotes: bool) -> str:
    escaped = said.replace("\\", r"\\").replace("\n", r"\n")
    return escaped.replace('"', r"\"") if quotes else escaped
