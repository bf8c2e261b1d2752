"""What V2 and Triton's extensions say about models: metadata, configuration, statistics, repository, shared memory.

Shapes of bodies follow Triton's protocol documents, so that its clients understand them. It runs nothing.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

import msgspec

from muster_agent.engines.port import Achieved
from muster_agent.serving import v2
from muster_agent.serving.http import Request, Response, refusal
from muster_agent.serving.shared_memory import NamedRegion, Regions
from muster_agent.serving.stats import Snapshot
from muster_agent.serving.table import Place, Served, ServingTable
from muster_shared.bundle import TensorSpec
from muster_shared.undecodable import UNDECODABLE, reason

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "sequence",
    "statistics",
    "system_shared_memory",
)
PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino"}

_encode = msgspec.json.Encoder().encode
Route = Callable[[Request], Response | bytes | None]


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model in `/v1/status`."""

    version: str
    release: int
    manifest_sha256: str
    slot: str
    engine: Achieved
    variant: str
    warm_ms_p95: float
    inline: bool
    """Whether it runs on the serving loop."""
    instances: int
    batch_max: int
    queued: int
    counters: Snapshot
    latency_ms_p50: float | None
    latency_ms_p95: float | None


class _Register(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


_register = msgspec.json.Decoder(_Register)


def status(place: Place) -> ModelStatus:
    served, counters = place.served, place.served.stats.snapshot()
    return ModelStatus(
        version=served.manifest.version,
        release=served.manifest.release,
        manifest_sha256=served.manifest_sha256,
        slot=served.slot,
        engine=served.session.achieved,
        variant=served.variant,
        warm_ms_p95=served.latency_ms,
        inline=served.plan.inline,
        instances=place.room.instances,
        batch_max=served.plan.batch_max,
        queued=place.queued,
        counters=counters,
        latency_ms_p50=counters.p50_ms,
        latency_ms_p95=counters.p95_ms,
    )


def server(version: str) -> dict[str, object]:
    return {"name": "muster-agent", "version": version, "extensions": EXTENSIONS}


def metadata(place: Place) -> dict[str, object]:
    """Return the model as its callers see it: the state of a stateful model is not theirs."""
    served = place.served
    return {
        "name": served.manifest.model,
        "versions": [served.manifest.version],
        "platform": PLATFORMS[served.session.achieved.engine],
        "inputs": [_tensor(spec) for spec in place.inputs],
        "outputs": [_tensor(spec) for spec in place.outputs],
    }


def config(served: Served) -> dict[str, object]:
    """Return the model configuration in Triton's words, as far as they have a meaning here."""
    plan = served.plan
    batched = all(spec.shape and spec.shape[0] == -1 for spec in (*served.manifest.inputs, *served.manifest.outputs))
    return {
        "name": served.manifest.model,
        "platform": PLATFORMS[served.session.achieved.engine],
        "backend": served.session.achieved.engine,
        "max_batch_size": plan.batch_max if batched else 0,
        "input": [_declared(spec, batched) for spec in served.manifest.inputs],
        "output": [_declared(spec, batched) for spec in served.manifest.outputs],
        "instance_group": [{"name": served.manifest.model, "kind": "KIND_CPU", "count": plan.instances_max}],
        "dynamic_batching": {
            "preferred_batch_size": plan.preferred,
            "max_queue_delay_microseconds": plan.delay_us,
        },
        "response_cache": {"enable": served.manifest.serving.cache},
        "parameters": {
            "version": {"string_value": served.manifest.version},
            "threads": {"string_value": str(plan.threads)},
        },
    }


def statistics(places: Iterable[Place]) -> dict[str, object]:
    """Return the statistics extension's body; durations are sums in nanoseconds."""
    return {"model_stats": [_statistics(place) for place in sorted(places, key=lambda place: place.model)]}


def _statistics(place: Place) -> dict[str, object]:
    at: Snapshot = place.served.stats.snapshot()
    answered = at.requests - at.errors
    stages = {name: _duration(stage.count, stage.sum_ns) for name, stage in place.served.stats.stages().items()}
    return {
        "name": place.model,
        "version": place.version,
        "last_inference": _ago_ms(place.served.stats.last_ns),
        "inference_count": at.rows,
        "execution_count": at.batches,
        "inference_stats": {
            "success": _duration(answered, at.duration_us * 1000),
            "fail": _duration(at.errors, 0),
            "queue": stages["queue"],
            "compute_input": stages["input"],
            "compute_infer": stages["compute"],
            "compute_output": stages["output"],
            "cache_hit": _duration(at.hits, 0),
            "cache_miss": _duration(answered - at.hits if place.served.manifest.serving.cache else 0, 0),
        },
        "batch_stats": [],
    }


def index(table: ServingTable) -> list[dict[str, str]]:
    """Return the repository index of what serves."""
    return [
        {"name": place.model, "version": place.version, "state": "READY", "reason": ""}
        for _, place in sorted(table.places().items())
    ]


def shared_memory_route(regions: Regions, kind: str, rest: list[str], method: bytes) -> Route | None:
    """Return what a path of the shared memory extensions does; None when there is no such path."""
    name = unquote(rest[1]) if len(rest) == 3 and rest[0] == "region" else None  # The caller's own word, any.
    act = rest[-1] if rest else ""
    if len(rest) != (1 if name is None else 3):
        return None
    if kind == "cudasharedmemory":
        if act not in ("status", "register", "unregister"):
            return None
        if act == "register":
            return lambda _: refusal(400, "there is no CUDA shared memory on this agent; use system shared memory")
        return (lambda _: Response(200, [b"[]"])) if act == "status" else (lambda _: Response(200, [b""]))
    match method, act:
        case b"GET", "status":
            return lambda _: Response(200, [_encode([_region(region) for region in regions.status(name)])])
        case b"POST", "unregister":

            def unregister(_: Request) -> Response:
                regions.unregister(name)
                return Response(200, [b""])

            return unregister
        case b"POST", "register" if name is not None:

            def register(request: Request) -> Response:
                try:
                    wanted = _register.decode(request.body)
                except UNDECODABLE as error:
                    raise v2.RequestInvalid(f"the registration does not parse: {reason(error)}") from error
                regions.register(name, wanted.key, wanted.offset, wanted.byte_size)
                return Response(200, [b""])

            return register
    return None


def _ago_ms(then_ns: int) -> int:
    """Return a moment of the monotonic clock in milliseconds since 1970, 0 for never."""
    return int(time.time() * 1e3 - (time.perf_counter_ns() - then_ns) / 1e6) if then_ns else 0


def _region(region: NamedRegion) -> Mapping[str, object]:
    return {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _declared(spec: TensorSpec, batched: bool) -> dict[str, object]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": spec.shape[1:] if batched else spec.shape}


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
