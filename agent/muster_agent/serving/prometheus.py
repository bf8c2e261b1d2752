"""The `/metrics` page: Prometheus text with Triton's names where Triton has them, `muster_` where it has none.

Counts are for this device's own operator; what leaves the device goes through the anonymous metrics instead.
"""

from collections.abc import Iterator, Mapping

from muster_agent.serving.stats import GRID, Snapshot
from muster_agent.serving.table import Place
from muster_shared.ids import ModelName

CONTENT_TYPE = b"text/plain; version=0.0.4"
# Upper bounds of the histogram: powers of two from 16 us to 33 s fall on the sketch's grid.
_DOUBLINGS = range(4, 26)


def render(places: Mapping[ModelName, Place]) -> str:
    """Return the page for what serves now."""
    rows = [
        (f'model="{model}",version="{place.served.manifest.version}"', place, place.served.stats.snapshot())
        for model, place in sorted(places.items())
    ]
    lines: list[str] = []

    def family(name: str, kind: str, text: str, samples: Iterator[str]) -> None:
        lines.extend((f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples))

    def plain(name: str, kind: str, text: str, read: Mapping[str, int]) -> None:
        family(name, kind, text, (f"{name}{{{labels}}} {count}" for labels, count in read.items()))

    plain(
        "nv_inference_request_success",
        "counter",
        "Requests answered",
        {labels: at.requests - at.errors for labels, _, at in rows},
    )
    family(
        "nv_inference_request_failure",
        "counter",
        "Requests not answered, by reason",
        (
            f'nv_inference_request_failure{{{labels},reason="{reason}"}} {count}'
            for labels, _, at in rows
            for reason, count in (
                ("BACKEND", at.errors),
                ("OTHER", at.refused),
                ("REJECTED", at.rejected),
                ("CANCELED", at.cancelled),
            )
        ),
    )
    plain("nv_inference_count", "counter", "Inferences; a batch of n is n", {labels: at.rows for labels, _, at in rows})
    plain(
        "nv_inference_request_duration_us",
        "counter",
        "Sum of the time from whole request to answer",
        {labels: at.duration_us for labels, _, at in rows},
    )
    plain(
        "nv_inference_pending_request_count",
        "gauge",
        "Requests waiting or running in the queue",
        {labels: place.room.queued for labels, place, _ in rows},
    )
    plain("muster_feedback_labelled", "counter", "Answers judged", {labels: at.labelled for labels, _, at in rows})
    plain("muster_feedback_right", "counter", "Answers judged right", {labels: at.right for labels, _, at in rows})
    family(
        "muster_inference_seconds",
        "histogram",
        "Time of the engine for one request",
        (line for labels, _, at in rows for line in _histogram(labels, at)),
    )
    return "\n".join(lines) + "\n"


def _histogram(labels: str, at: Snapshot) -> Iterator[str]:
    name = "muster_inference_seconds"
    for doubling in _DOUBLINGS:
        within = sum(count for index, count in at.latency if index < GRID * doubling)
        yield f'{name}_bucket{{{labels},le="{2**doubling / 1e6:g}"}} {within}'
    total = sum(count for _, count in at.latency)
    seconds = sum(count * 2 ** ((index + 0.5) / GRID) for index, count in at.latency) / 1e6
    yield f'{name}_bucket{{{labels},le="+Inf"}} {total}'
    yield f"{name}_sum{{{labels}}} {seconds:.9g}"
    yield f"{name}_count{{{labels}}} {total}"
