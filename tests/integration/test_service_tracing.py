"""Traces over the wire: what a caller's trace becomes at a collector as small as it can be."""

from collections.abc import Callable, Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from harness.asking import Program, Scripted, program, scripted, serving
from harness.collector import Collector
from harness.endpoint import INLINE, MODEL, THREADS, Endpoint
from harness.scraping import scrape
from muster_agent.engines.port import Array, InferenceFailed
from muster_agent.serving.config import TracingConfig
from muster_agent.serving.table import Served
from muster_agent.serving.tracing import OtlpTracing
from muster_shared.bundle import Serving

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def traced(
    collector: Collector, ask: Callable[[Program, Endpoint], object], *served: Served, root_share: float = 0.0
) -> list[Span]:
    """Return the spans of what `ask` asks, whole families, parents first."""
    tracing = OtlpTracing(TracingConfig(endpoint=collector.endpoint, root_share=root_share), "edge-7")
    with serving(*(served or (scripted(Scripted()),))) as endpoint, program(endpoint) as asking:
        endpoint.service.trace(tracing)
        ask(asking, endpoint)
    tracing.close()
    return sorted(collector.spans, key=lambda span: span.start_time_unix_nano)


def attributes(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


@pytest.mark.parametrize("plan", [INLINE, THREADS], ids=["inline", "threads"])
def test_a_sampled_trace_goes_on_within_the_agent(collector: Collector, plan: object) -> None:
    answers = []

    spans = traced(
        collector,
        lambda asking, _: answers.append(asking.infer(traceparent=SAMPLED)),
        scripted(Scripted(), plan=INLINE if plan is INLINE else THREADS),
    )

    by_name = {span.name: span for span in spans}
    whole, queue, compute = by_name[f"infer {MODEL}"], by_name["queue"], by_name["compute"]
    assert len(spans) == 3
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert whole.parent_span_id.hex() == PARENT
    assert queue.parent_span_id == compute.parent_span_id == whole.span_id
    assert whole.kind == Span.SPAN_KIND_SERVER
    assert whole.start_time_unix_nano == queue.start_time_unix_nano
    assert queue.end_time_unix_nano == compute.start_time_unix_nano
    assert queue.start_time_unix_nano <= compute.start_time_unix_nano <= compute.end_time_unix_nano
    assert compute.end_time_unix_nano <= whole.end_time_unix_nano
    assert attributes(whole) == {
        "muster.model": MODEL,
        "muster.version": "1.0.1",
        "muster.engine": "onnxruntime",
        "muster.request_id": answers[0].json["id"],
        "muster.rows": 1,
    }
    assert collector.resources[0]["service.instance.id"] == "edge-7"


def test_a_trace_that_is_not_sampled_stays_so(collector: Collector) -> None:
    spans = traced(collector, lambda asking, _: asking.infer(traceparent=UNSAMPLED), root_share=1.0)

    assert spans == []


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 5)])
def test_requests_without_a_trace_begin_one_in_their_share(collector: Collector, share: float, count: int) -> None:
    spans = traced(collector, lambda asking, _: [asking.infer() for _ in range(5)], root_share=share)

    roots = [span for span in spans if span.name == f"infer {MODEL}"]
    assert len(roots) == count
    assert all(not span.parent_span_id for span in roots)
    assert len({span.trace_id for span in roots}) == count


@pytest.mark.parametrize("header", ["nonsense", f"00-{'0' * 32}-{PARENT}-01", SAMPLED[:-3]])
def test_what_is_no_traceparent_begins_no_trace(collector: Collector, header: str) -> None:
    spans = traced(collector, lambda asking, _: asking.infer(traceparent=header))

    assert spans == []


def test_a_failure_is_an_error_in_the_trace(collector: Collector) -> None:
    def fail(x: Array) -> Array:
        raise InferenceFailed("out of memory")

    spans = traced(collector, lambda asking, _: asking.infer(traceparent=SAMPLED), scripted(Scripted(fail)))

    assert [span.name for span in spans] == [f"infer {MODEL}"]
    assert spans[0].status.code == spans[0].status.STATUS_CODE_ERROR
    assert attributes(spans[0])["error.type"] == "InferenceFailed"


def test_an_answer_from_memory_is_traced_too(collector: Collector) -> None:
    spans = traced(
        collector,
        lambda asking, _: [asking.infer(traceparent=SAMPLED) for _ in range(2)],
        scripted(Scripted(), serving=Serving(cache=True)),
    )

    assert [span.name for span in spans].count(f"infer {MODEL}") == 2


def test_a_collector_that_is_down_is_nobodys_trouble() -> None:
    gone = Collector()
    gone.close()
    answers = []

    spans = traced(gone, lambda asking, _: answers.append(asking.infer(traceparent=SAMPLED)))

    assert answers[0].status == 200
    assert spans == []


def test_a_scraper_is_led_from_a_bucket_to_a_trace(collector: Collector) -> None:
    pages: list[str] = []

    def ask(asking: Program, endpoint: Endpoint) -> None:
        asking.infer(traceparent=SAMPLED)
        asking.infer(traceparent=UNSAMPLED)
        for accept in ("application/openmetrics-text;version=1.0.0", "text/plain"):
            _, page = endpoint.ask("GET", "/metrics", headers={"Accept": accept})
            pages.append(page.decode())

    traced(collector, ask)

    opened, plain = scrape(pages[0], open_metrics=True, foreign=("nv_",)), scrape(pages[1], foreign=("nv_",))
    assert {dict(labels)["stage"] for _, labels in opened.exemplars} == {"queue", "compute"}
    assert {told.labels["trace_id"] for told in opened.exemplars.values()} == {TRACE}
    assert not plain.exemplars
