"""A scraper that is strict: it reads a metrics page by the grammar of OpenMetrics, or of the text format 0.0.4.

Whatever Prometheus would take silently, and a reader would stumble over, is an error here: families that come twice or
in pieces, samples of no family, names against the conventions, labels that repeat, buckets that fall.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_NUMBER = r"[+-]?(?:Inf|NaN|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
_LABELS = rf"\{{(?P<labels>(?:{_LABEL}(?:,{_LABEL})*)?)\}}"
_SAMPLE = re.compile(
    rf"(?P<name>{_NAME})(?:{_LABELS})? (?P<value>{_NUMBER})"
    rf"(?P<exemplar> # \{{(?P<of>{_LABEL}(?:,{_LABEL})*)\}} (?P<seen>{_NUMBER})(?: (?P<at>{_NUMBER}))?)?"
)
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
UNITS_WRONG = ("ms", "us", "ns", "milliseconds", "microseconds", "minutes", "hours", "kb", "mb", "percent")

Labels = frozenset[tuple[str, str]]


@dataclass
class Exemplar:
    labels: dict[str, str]
    value: float
    at: float | None


@dataclass
class Page:
    """What a scraper knows after one page."""

    kinds: dict[str, str] = field(default_factory=dict)
    helps: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[Labels, float]] = field(default_factory=lambda: defaultdict(dict))
    exemplars: dict[tuple[str, Labels], Exemplar] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """Return the one sample of `name` that has these labels."""
        wanted = set(labels.items())
        [value] = [value for known, value in self.samples[name].items() if wanted <= known]
        return value

    @property
    def names(self) -> set[str]:
        """Of everything that a query could name, families without a sample too."""
        return set(self.kinds) | set(self.samples)


def scrape(page: str, *, open_metrics: bool = False, foreign: tuple[str, ...] = ()) -> Page:
    """Read a page. Raises AssertionError: it is against the grammar, or the conventions.

    Args:
        foreign: Beginnings of names that others chose: they keep no conventions of ours.
    """
    assert page.endswith("\n")
    lines = page.removesuffix("\n").split("\n")
    if open_metrics:
        assert lines.pop() == "# EOF"
    read = Page()
    family = ""
    for line in lines:
        if line.startswith("# HELP "):
            _, _, family, said = line.split(" ", 3)
            assert family not in read.helps, f"{family} comes twice"
            assert said, f"{family} has no help"
            read.helps[family] = said
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family, line
            read.kinds[name] = kind
            if not name.startswith(foreign or ("\0",)):
                _check_name(name, kind, open_metrics)
        else:
            _sample(read, family, line, open_metrics)
    _check_buckets(read)
    return read


def _sample(read: Page, family: str, line: str, open_metrics: bool) -> None:
    found = _SAMPLE.fullmatch(line)
    assert found is not None, line
    kind = read.kinds[family]
    parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
    if open_metrics and kind == "counter":
        parts = ("_total",)
    assert found["name"] in [family + part for part in parts], f"{line} is not of {family}"
    pairs = _PAIR.findall(found["labels"] or "")
    labels = frozenset(pairs)
    assert len(labels) == len({name for name, _ in pairs}), f"a label comes twice in {line}"
    assert labels not in read.samples[found["name"]], f"{line} comes twice"
    value = float(found["value"])
    assert kind not in ("counter", "histogram") or value >= 0, f"{line} is below zero"
    read.samples[found["name"]][labels] = value
    if found["exemplar"]:
        assert open_metrics, f"only OpenMetrics has exemplars: {line}"
        of = dict(_PAIR.findall(found["of"]))
        assert sum(len(name) + len(text) for name, text in of.items()) <= 128
        at = None if found["at"] is None else float(found["at"])
        read.exemplars[found["name"], labels] = Exemplar(of, float(found["seen"]), at)
        assert found["name"].endswith(("_bucket", "_total"))


def _check_name(name: str, kind: str, open_metrics: bool) -> None:
    if kind == "counter":
        assert name.endswith("_total") is not open_metrics, f"{name} is a counter"
    else:
        assert not name.endswith(("_total", "_count", "_sum", "_bucket")), name
    assert name == name.lower(), name
    assert not set(name.split("_")) & set(UNITS_WRONG), f"{name} has no base unit"


def _check_buckets(read: Page) -> None:
    for name, kind in read.kinds.items():
        if kind != "histogram":
            continue
        rows: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
        for labels, count in read.samples[f"{name}_bucket"].items():
            edge = dict(labels)["le"]
            rows[labels - {("le", edge)}].append((float(edge), count))
        for labels, buckets in rows.items():
            counts = [count for _, count in buckets]
            assert buckets == sorted(buckets), f"the buckets of {name} are out of order, or fall"
            assert buckets[-1] == (float("inf"), read.samples[f"{name}_count"][labels])
            assert counts == sorted(counts)
        for (sample, labels), exemplar in read.exemplars.items():
            if sample == f"{name}_bucket":
                upper = float(dict(labels)["le"])
                below = [at for at, _ in rows[frozenset(p for p in labels if p[0] != "le")] if at < upper]
                assert max(below, default=0.0) <= exemplar.value <= upper, f"{exemplar} is not in its bucket"
