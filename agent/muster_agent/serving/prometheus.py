"""The `/metrics` page: Prometheus text with Triton's names where Triton has them, `muster_` where it has none.

Counts are for this device's own operator; what leaves the device goes through the anonymous metrics instead.
"""

import math
from collections.abc import Iterable, Mapping

from muster_agent.core.breaker import Closed, HalfOpen
from muster_agent.core.latency import STAGES, StageSnapshot
from muster_agent.core.split import Mode
from muster_agent.metrics.port import DriftState
from muster_agent.serving.spill import Spill
from muster_agent.serving.stats import Snapshot
from muster_agent.serving.table import Beside, Place
from muster_agent.serving.tracing import Exemplar
from muster_shared.ids import ModelName
from muster_shared.metrics import DRIFT

CONTENT_TYPE = b"text/plain; version=0.0.4"
OPEN_METRICS = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
Exemplars = Mapping[tuple[str, str, str], Exemplar]
"""By model, version and stage."""
NO_EXEMPLARS: Exemplars = {}

Sample = tuple[str, float]
"""Labels and value."""


class _Page:
    """Families one after another, each with its help and type."""

    def __init__(self, *, open_metrics: bool = False) -> None:
        self.lines: list[str] = []
        self._open_metrics = open_metrics

    def family(self, name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
        if self._open_metrics and kind == "counter":  # There a counter is one by its ending, which Triton's lack.
            head, kind = (name.removesuffix("_total"), kind) if name.endswith("_total") else (name, "unknown")
            self._head(head, kind, text)
        else:
            self._head(name, kind, text)
        self.lines += [f"{name}{{{labels}}} {value:.12g}" for labels, value in samples]

    def histogram(
        self,
        name: str,
        text: str,
        samples: Iterable[tuple[str, StageSnapshot]],
        exemplars: Mapping[str, Exemplar] | None = None,
    ) -> None:
        """Seconds, in buckets whose edges are doublings of a microsecond. `exemplars`: by labels; OpenMetrics alone."""
        self._head(name, "histogram", text)
        for labels, at in samples:
            exemplar = exemplars.get(labels) if exemplars and self._open_metrics else None
            below = 0.0
            for edge, count in at.cumulative():
                told = _exemplar(exemplar, below, edge)
                self.lines.append(f'{name}_bucket{{{labels},le="{edge:g}"}} {count}{told}')
                below = float(f"{edge:g}")
            self.lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {at.count}{_exemplar(exemplar, below, math.inf)}')
            self.lines.append(f"{name}_sum{{{labels}}} {at.sum_ns / 1e9:.9g}")
            self.lines.append(f"{name}_count{{{labels}}} {at.count}")

    def _head(self, name: str, kind: str, text: str) -> None:
        self.lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def wants_open_metrics(accept: bytes) -> bool:
    """Return whether a scraper takes OpenMetrics, by its `Accept`; Prometheus names it first."""
    return b"application/openmetrics-text" in accept


def render(
    places: Mapping[ModelName, Place],
    trials: Mapping[str, Beside],
    spill: Spill | None = None,
    *,
    open_metrics: bool = False,
    exemplars: Exemplars = NO_EXEMPLARS,
) -> str:
    """Return the page for what serves now. On the serving loop."""
    page = _Page(open_metrics=open_metrics)
    # A canary's requests are the model's; a shadow's are nobody's.
    canaries = [at.place for _, at in sorted(trials.items()) if at.trial.split.mode is Mode.CANARY]
    rows = [
        (f'model="{place.model}",version="{place.version}"', place, place.served.stats.snapshot())
        for place in (*(place for _, place in sorted(places.items())), *canaries)
    ]
    _triton(page, rows)
    _ours(page, rows, exemplars)
    _trials(page, trials)
    if spill is not None:
        counts = spill.counts()
        labels = f'upstream="{spill.upstream}"'
        page.family("muster_spilled_total", "counter", "Requests answered upstream", [(labels, counts.spilled)])
        page.family("muster_spill_failed_total", "counter", "Requests not taken upstream", [(labels, counts.failed)])
    if open_metrics:
        page.lines.append("# EOF")
    return "\n".join(page.lines) + "\n"


def _triton(page: _Page, rows: list[tuple[str, Place, Snapshot]]) -> None:
    """Families that Triton has, by its names: dashboards made for it work."""
    page.family(
        "nv_inference_request_success",
        "counter",
        "Requests answered",
        [(row, at.requests - at.errors) for row, _, at in rows],
    )
    page.family(
        "nv_inference_request_failure",
        "counter",
        "Requests not answered, by reason",
        [
            (f'{row},reason="{reason}"', count)
            for row, _, at in rows
            for reason, count in (
                ("BACKEND", at.errors),
                ("OTHER", at.refused),
                ("REJECTED", at.rejected),
                ("CANCELED", at.cancelled),
            )
        ],
    )
    page.family(
        "nv_inference_count", "counter", "Inferences; a batch of n is n", [(row, at.rows) for row, _, at in rows]
    )
    page.family("nv_inference_exec_count", "counter", "Calls of the engine", [(row, at.batches) for row, _, at in rows])
    page.family(
        "nv_inference_request_duration_us",
        "counter",
        "Sum of the time from whole request to answer",
        [(row, at.duration_us) for row, _, at in rows],
    )
    stages = [(row, place.served.stats.stages()) for row, place, _ in rows]
    for stage, name, text in (
        ("queue", "queue", "waiting"),
        ("input", "compute_input", "making batches"),
        ("compute", "compute_infer", "the engine"),
        ("output", "compute_output", "answering"),
    ):
        page.family(
            f"nv_inference_{name}_duration_us",
            "counter",
            f"Sum of the time of {text}, over requests",
            [(row, at[stage].sum_ns // 1000) for row, at in stages],
        )
    page.family(
        "nv_inference_pending_request_count",
        "gauge",
        "Rows waiting in the queue",
        [(row, place.queued) for row, place, _ in rows],
    )
    cached = [(row, place, at) for row, place, at in rows if place.cache is not None]
    page.family(
        "nv_cache_num_hits_per_model",
        "counter",
        "Requests answered from memory",
        [(row, at.hits) for row, _, at in cached],
    )
    page.family(
        "nv_cache_num_misses_per_model",
        "counter",
        "Requests of models with a memory that the engine answered",
        [(row, at.requests - at.errors - at.hits) for row, _, at in cached],
    )


def _ours(page: _Page, rows: list[tuple[str, Place, Snapshot]], exemplars: Exemplars) -> None:
    page.family(
        "muster_feedback_labelled_total", "counter", "Answers judged", [(row, at.labelled) for row, _, at in rows]
    )
    page.family(
        "muster_feedback_right_total", "counter", "Answers judged right", [(row, at.right) for row, _, at in rows]
    )
    page.family(
        "muster_slow_total",
        "counter",
        "Requests answered later than the release's objective",
        [(row, at.slow) for row, _, at in rows],
    )
    page.family(
        "muster_timed_out_total",
        "counter",
        "Requests that failed by their deadline",
        [(row, at.timed_out) for row, _, at in rows],
    )
    metered = [(row, place.meter) for row, place, _ in rows if place.meter is not None]
    page.family(
        "muster_cpu_seconds_total",
        "counter",
        "Processor time of the agent, shared out among the releases that ran",
        [(row, meter.cpu_ms / 1e3) for row, meter in metered],
    )
    page.family(
        "muster_drift",
        "gauge",
        "0 quiet, 1 drifting, 2 skewed; not there: unknown",
        [(row, DRIFT.index(meter.drift)) for row, meter in metered if meter.drift is not DriftState.UNKNOWN],
    )
    page.family(
        "muster_instances",
        "gauge",
        "Threads that run the engine; 0 on the loop",
        [(r, p.room.instances) for r, p, _ in rows],
    )
    page.family(
        "muster_breaker_state",
        "gauge",
        "0 closed, 1 half open, 2 open",
        [(row, _breaker(place)) for row, place, _ in rows],
    )
    page.histogram(
        "muster_stage_seconds",
        "Time of each stage of a request: queue, input, compute, output",
        [
            (f'{row},stage="{stage}"', at[stage])
            for row, place, _ in rows
            for at in [place.served.stats.stages()]
            for stage in STAGES
        ],
        {
            f'{row},stage="{stage}"': exemplars[place.model, place.version, stage]
            for row, place, _ in rows
            for stage in STAGES
            if (place.model, place.version, stage) in exemplars
        },
    )


def _exemplar(exemplar: Exemplar | None, below: float, edge: float) -> str:
    """Return what stands behind the bucket (below, edge] in seconds, if the exemplar is in it."""
    if exemplar is None or not below < exemplar.seconds <= edge:
        return ""
    return f' # {{trace_id="{exemplar.trace_id}"}} {exemplar.seconds:.9f} {exemplar.at:.3f}'


def _breaker(place: Place) -> int:
    state = place.breaker.state
    return 0 if isinstance(state, Closed) else 1 if isinstance(state, HalfOpen) else 2


def _trials(page: _Page, trials: Mapping[str, Beside]) -> None:
    rows = [
        (f'model="{model}",candidate="{at.candidate}",mode="{at.mode.value}"', at)
        for model, beside in sorted(trials.items())
        for at in [beside.trial.snapshot()]
    ]
    for name, text, samples in (
        ("muster_trial_compared_total", "Rows compared", [(row, at.compared) for row, at in rows]),
        ("muster_trial_disagreed_total", "Rows that disagreed", [(row, at.disagreed) for row, at in rows]),
        ("muster_trial_errors_total", "Requests that the candidate failed on", [(row, at.errors) for row, at in rows]),
        ("muster_trial_skipped_total", "Shadows without capacity", [(row, at.skipped) for row, at in rows]),
    ):
        page.family(name, "counter", text, samples)
    page.histogram(
        "muster_trial_engine_seconds",
        "Time of the engine for one request, of the release that serves and of the candidate",
        [
            (f'{row},release="{release}"', latency)
            for row, at in rows
            for release, latency in (("serving", at.primary), ("candidate", at.candidate_latency))
        ],
    )
