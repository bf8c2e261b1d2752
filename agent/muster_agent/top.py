"""What the models of this device do right now: two readings of `/v1/status` and `/metrics`, their difference a table.

    Reading (before) ─┐
    Reading (now) ────┴─ view ──> View ──> lines: plain text of 80 columns, or JSON

Pure: `cli.watch` asks, waits and draws. What an older agent does not tell is None, and shown as `-`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

STAGES = ("queue", "input", "compute", "output")
QUANTILES = (0.5, 0.95, 0.99)
BREAKER = {0: "closed", 1: "half open", 2: "open"}
WIDTH = 80
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[str, Mapping[Labels, float]]
"""Values by name and labels (sorted) of a metrics page."""
Bold = "\x1b[1m"
Red = "\x1b[31m"
Reset = "\x1b[0m"


class Process(msgspec.Struct, frozen=True):
    """The agent's process."""

    cpu_s: float
    rss_bytes: int


class Reading(msgspec.Struct, frozen=True):
    """Everything that was asked at one time."""

    at_s: float
    """On any clock that only goes on."""
    status: Any
    samples: Samples
    process: Process | None = None


class StageView(msgspec.Struct, frozen=True):
    """Milliseconds of one stage of requests within the interval; None: there were none."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class TrialView(msgspec.Struct, frozen=True):
    candidate: str
    mode: str
    compared: int
    agreement: float | None
    """Share (0..1) of all rows compared so far."""
    errors: int


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model within the interval."""

    model: str
    version: str
    engine: str
    requests_per_s: float
    rows_per_s: float
    batch_mean: float | None
    """Rows of a call of the engine."""
    stages: dict[str, StageView]
    queued: int
    instances: int
    """Threads of the engine; 0: it runs on the serving loop."""
    errors_per_s: float
    refused_per_s: float
    rejected_per_s: float
    hits_per_s: float
    breaker: str | None
    trial: TrialView | None = None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The device within the interval."""

    device: str
    agent: str
    """Its version."""
    online: bool | None
    interval_s: float
    rss_mb: float | None
    cpu_percent: float | None
    """Of one processor."""
    models: tuple[ModelView, ...]


def parse(page: str) -> Samples:
    """Return the samples of a page in Prometheus' text format; what is no sample is passed over."""
    found: dict[str, dict[Labels, float]] = {}
    for line in page.splitlines():
        match = _SAMPLE.match(line)
        if match is None or line.startswith("#"):
            continue
        name, labels, value = match.groups()
        try:
            number = float(value)
        except ValueError:
            continue
        found.setdefault(name, {})[tuple(sorted(_LABEL.findall(labels or "")))] = number
    return found


def view(before: Reading, now: Reading) -> View:
    """Return what happened between two readings; a model whose release changed in between begins anew."""
    seconds = max(1e-9, now.at_s - before.at_s)
    status = now.status
    device = status.get("device") or {}
    host = device.get("host") or {}
    process = now.process
    cpu = None if process is None or before.process is None else (process.cpu_s - before.process.cpu_s) / seconds * 100
    return View(
        device=device.get("device", ""),
        agent=status["agent"],
        online=status.get("online"),
        interval_s=seconds,
        rss_mb=host.get("agent_rss_mb") if process is None else process.rss_bytes / 2**20,
        cpu_percent=None if cpu is None else max(0.0, cpu),
        models=tuple(_model(name, before, now, seconds) for name in sorted(status["models"])),
    )


def lines(view: View, *, width: int = WIDTH, colour: bool = False) -> list[str]:
    """Return the picture as lines of at most `width` characters."""
    cpu = "-" if view.cpu_percent is None else f"{view.cpu_percent:.0f} %"
    rss = "-" if view.rss_mb is None else f"{view.rss_mb:.0f} MB"
    broker = {None: "", True: "  broker connected", False: "  broker not connected"}[view.online]
    found = [_cut(f"{view.device}  agent {view.agent}  cpu {cpu}  memory {rss}{broker}", width), ""]
    if not view.models:
        return [*found, "no model serves"]
    head = f"{'MODEL':<17} {'VERSION':<9} {'REQ/S':>8} {'ROWS/S':>8}"
    head += "".join(
        f" {name:>{size}}" for name, size in (("P50", 6), ("P95", 6), ("P99", 6), ("BATCH", 5), ("QUEUE", 5))
    )
    found.append(_style(_cut(head, width), Bold, colour))
    for model in view.models:
        total = _total(model)
        row = (
            f"{_cut(model.model, 17):<17} {_cut(model.version, 9):<9} {_short(model.requests_per_s):>8}"
            f" {_short(model.rows_per_s):>8} {_ms(total.p50_ms):>6} {_ms(total.p95_ms):>6} {_ms(total.p99_ms):>6}"
            f" {_short(model.batch_mean):>5} {model.queued:>5}"
        )
        found.append(_cut(row, width))
        told = ", ".join(
            f"{stage} {_ms(at.p50_ms)}/{_ms(at.p95_ms)}/{_ms(at.p99_ms)}"
            for stage, at in model.stages.items()
            if at.p50_ms is not None
        )
        where = f"{model.instances} threads" if model.instances else "inline"
        found.append(_cut(f"  {model.engine}, {where}", width))
        if told:
            found.append(_cut(f"  ms p50/95/99: {told}", width))
        bad = [
            f"{_short(rate)}/s {what}"
            for rate, what in (
                (model.errors_per_s, "errors"),
                (model.rejected_per_s, "rejected"),
                (model.refused_per_s, "refused"),
            )
            if rate
        ]
        if model.breaker not in (None, "closed"):
            bad.append(f"breaker {model.breaker}")
        if bad:
            found.append(_style(_cut(f"  {', '.join(bad)}", width), Red, colour))
        if model.hits_per_s:
            found.append(_cut(f"  {_short(model.hits_per_s)}/s from memory", width))
        if model.trial is not None:
            found.append(_cut(f"  {_trial_line(model.trial)}", width))
    found += ["", _cut("milliseconds; P50 P95 P99: of the slowest stage", width)]
    return found


def _model(name: str, before: Reading, now: Reading, seconds: float) -> ModelView:
    at = now.status["models"][name]
    then = before.status["models"].get(name)
    counters = at["counters"]
    is_same = then is not None and then["manifest_sha256"] == at["manifest_sha256"]
    earlier = then["counters"] if is_same and then["counters"]["requests"] <= counters["requests"] else {}
    counted = {field: max(0, counters.get(field, 0) - earlier.get(field, 0)) for field in _COUNTERS}
    engine = at["engine"]
    labels = {"model": name, "version": at["version"]}
    breaker = _value(now.samples, "muster_breaker_state", labels)
    return ModelView(
        model=name,
        version=at["version"],
        engine=f"{engine['engine']} {engine['version']} {engine['device']} {engine['precision']}",
        requests_per_s=counted["requests"] / seconds,
        rows_per_s=counted["rows"] / seconds,
        batch_mean=counted["rows"] / counted["batches"] if counted["batches"] else None,
        stages={stage: _stage(before, now, {**labels, "stage": stage}) for stage in STAGES},
        queued=at.get("queued", 0),
        instances=at.get("instances", 0),
        errors_per_s=counted["errors"] / seconds,
        refused_per_s=counted["refused"] / seconds,
        rejected_per_s=counted["rejected"] / seconds,
        hits_per_s=counted["hits"] / seconds,
        breaker=None if breaker is None else BREAKER.get(int(breaker)),
        trial=_trial(now.samples, name),
    )


_COUNTERS = ("requests", "rows", "batches", "errors", "refused", "rejected", "hits")


def _stage(before: Reading, now: Reading, labels: Mapping[str, str]) -> StageView:
    """Return the quantiles of a histogram's difference: within a bucket in proportion, as Prometheus has it."""
    after, earlier = _buckets(now.samples, labels), _buckets(before.samples, labels)
    counts = [(edge, max(0.0, count - earlier.get(edge, 0.0))) for edge, count in sorted(after.items())]
    if counts and after[counts[-1][0]] < earlier.get(counts[-1][0], 0.0):  # It began anew.
        counts = sorted(after.items())
    p50, p95, p99 = (_quantile_ms(counts, share) for share in QUANTILES)
    return StageView(p50, p95, p99)


def _buckets(samples: Samples, labels: Mapping[str, str]) -> dict[float, float]:
    found: dict[float, float] = {}
    for key, count in samples.get("muster_stage_seconds_bucket", {}).items():
        told = dict(key)
        edge = told.pop("le", "")
        if told == labels and edge:
            found[float(edge)] = count
    return found


def _quantile_ms(counts: Sequence[tuple[float, float]], share: float) -> float | None:
    """Return a quantile of cumulative `counts`, (upper edge in seconds, count)."""
    total = counts[-1][1] if counts else 0.0
    if not total:
        return None
    low_s, below = 0.0, 0.0
    for edge_s, count in counts:
        if count >= share * total:
            if edge_s == float("inf"):
                return low_s * 1e3
            return (low_s + (edge_s - low_s) * (share * total - below) / max(1e-9, count - below)) * 1e3
        low_s, below = edge_s, count
    return low_s * 1e3


def _trial(samples: Samples, model: str) -> TrialView | None:
    for key, compared in samples.get("muster_trial_compared_total", {}).items():
        told = dict(key)
        if told.get("model") == model:
            disagreed = _value(samples, "muster_trial_disagreed_total", told) or 0.0
            return TrialView(
                candidate=told.get("candidate", ""),
                mode=told.get("mode", ""),
                compared=int(compared),
                agreement=1 - disagreed / compared if compared else None,
                errors=int(_value(samples, "muster_trial_errors_total", told) or 0),
            )
    return None


def _value(samples: Samples, name: str, labels: Mapping[str, str]) -> float | None:
    return samples.get(name, {}).get(tuple(sorted(labels.items())))


def _total(model: ModelView) -> StageView:
    """Return the stage that takes longest: quantiles of sums cannot be had from sums of quantiles."""
    return max(model.stages.values(), key=lambda at: at.p50_ms or 0.0)


def _trial_line(trial: TrialView) -> str:
    agree = (
        "nothing compared yet" if trial.agreement is None else f"{trial.agreement:.2%} of {trial.compared} rows agree"
    )
    told = agree if trial.mode == "shadow" else "in use"
    return f"{trial.mode} {trial.candidate}: {told}, {trial.errors} errors"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    for limit, divisor, unit in ((1e4, 1.0, ""), (1e7, 1e3, "k"), (1e10, 1e6, "M")):
        if value < limit:
            shown = value / divisor
            return f"{shown:.0f}{unit}" if shown >= 100 or shown == int(shown) else f"{shown:.1f}{unit}"
    return f"{value:.1e}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 10
        else f"{value:.2f}"
        if value >= 0.1
        else f"{value:.3f}"
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _style(text: str, style: str, colour: bool) -> str:
    return f"{style}{text}{Reset}" if colour else text
