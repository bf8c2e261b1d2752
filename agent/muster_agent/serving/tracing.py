"""OpenTelemetry traces of inferences, for callers that trace: an extra, `muster-agent[otel]`.

    traceparent of the caller ──> span "infer MODEL" ─┬─ queue
                                                      └─ compute        OTLP over HTTP, by a thread of the SDK

A span is made after the answer, from the times that were taken anyway, so that a request without one costs nothing. A
caller that does not sample is not traced; callers without a trace are, in a share that is configured.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from muster_agent.errors import ConfigInvalid
from muster_agent.serving.call import Call
from muster_agent.serving.config import TracingConfig
from muster_agent.serving.table import Place

QUEUE_SPANS_MAX = 2048
SCOPE = "muster-agent"
EXEMPLARS_MAX = 64


@dataclass(frozen=True)
class Exemplar:
    """One call that stands for many: where the trace of such a latency is found."""

    trace_id: str
    """32 hex digits."""
    seconds: float
    at: float
    """Unix seconds."""


class Tracing(Protocol):
    """Where finished calls are told."""

    @property
    def exemplars(self) -> Mapping[tuple[str, str, str], Exemplar]:
        """Return the newest traced call by model, version and stage (queue, compute)."""
        ...

    def record(self, place: Place, call: Call, request_id: str, now_ns: int) -> None:
        """Tell of a call that ended at `now_ns` of the monotonic clock."""
        ...

    def close(self) -> None:
        """Send what is left, within seconds."""
        ...


class OtlpTracing:
    """Sends spans to an OpenTelemetry collector."""

    def __init__(self, config: TracingConfig, device: str) -> None:
        """Raises ConfigInvalid: the extra is not installed."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigInvalid(f"serving.tracing needs more: pip install 'muster-agent[otel]' ({error})") from error
        resource = Resource.create({"service.name": SCOPE, "service.instance.id": device})
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=config.endpoint, timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS_MAX))
        self._tracer = self._provider.get_tracer(SCOPE)
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)
        self._root_share = config.root_share
        self._draw = random.Random().random
        self._exemplars: dict[tuple[str, str, str], Exemplar] = {}

    @property
    def exemplars(self) -> Mapping[tuple[str, str, str], Exemplar]:
        """See `Tracing.exemplars`."""
        return self._exemplars

    def record(self, place: Place, call: Call, request_id: str, now_ns: int) -> None:
        """See `Tracing.record`."""
        # What is no traceparent gives an empty context, and no right to be traced.
        context = self._propagator.extract({"traceparent": call.traceparent}) if call.traceparent else None
        if not context and self._draw() >= self._root_share:
            return
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        begin_ns = call.arrived_ns + epoch_ns
        span = self._tracer.start_span(
            f"infer {place.model}",
            context=context,
            kind=self._kind,
            start_time=begin_ns,
            attributes={
                "muster.model": place.model,
                "muster.version": place.version,
                "muster.engine": place.served.session.achieved.engine,
                "muster.request_id": request_id,
                "muster.rows": call.rows,
            },
        )
        if call.error is not None:
            span.set_status(self._failed)
            span.set_attribute("error.type", type(call.error).__name__)
        elif call.batch is not None and span.is_recording():
            from opentelemetry.trace import set_span_in_context

            within = set_span_in_context(span)
            computed_ns = now_ns + epoch_ns
            computing_ns = max(begin_ns, computed_ns - call.batch.engine_ns)
            self._tracer.start_span("queue", within, start_time=begin_ns).end(computing_ns)
            self._tracer.start_span("compute", within, start_time=computing_ns).end(computed_ns)
            trace_id = f"{span.get_span_context().trace_id:032x}"
            self._remember(place, "queue", Exemplar(trace_id, (computing_ns - begin_ns) / 1e9, computed_ns / 1e9))
            self._remember(place, "compute", Exemplar(trace_id, call.batch.engine_ns / 1e9, computed_ns / 1e9))
        span.end(now_ns + epoch_ns)

    def _remember(self, place: Place, stage: str, exemplar: Exemplar) -> None:
        key = (place.model, place.version, stage)
        self._exemplars.pop(key, None)
        self._exemplars[key] = exemplar
        if len(self._exemplars) > EXEMPLARS_MAX:  # Of releases that are gone.
            del self._exemplars[next(iter(self._exemplars))]

    def close(self) -> None:
        """See `Tracing.close`."""
        self._provider.shutdown()
