"""What the metrics cost the serving path, and how large a latency sketch is.

The path is the agent's own service with a small real model on the loop: `submit` to `settle`, without a server. Slices
with the meter and slices without take turns; SLICES of each are a second of work, which gives one difference, and the
figure is the median of those. It is processor time of the thread, so that what else the machine does costs little. All
that the meter does in a second is within, the look at its end included. A meter counts ROWS_A_LOOK inferences a second,
which then stand for the others; what one costs that is counted is told beside.
"""

import asyncio
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from onnx import TensorProto, helper

from bench.rollout.figures import Line, Options
from muster_agent.core import latency
from muster_agent.core.plan import ServingPlan
from muster_agent.engines import registry
from muster_agent.engines.port import Achieved, Array, Session
from muster_agent.metrics.fold import FOLD_ROWS
from muster_agent.metrics.meters import AllMeters
from muster_agent.metrics.reference import Reference
from muster_agent.metrics.reference_build import Observed, build
from muster_agent.serving.call import Call
from muster_agent.serving.service import Anybody, Service
from muster_agent.serving.table import Served, ServingTable
from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName, Sha256
from muster_shared.metrics import Kind, pack

FEATURES, CLASSES = 64, 10
MODEL = ModelName("tiny")
SECOND_US = 1e6
SLICES = 50
EACH = 8 * FOLD_ROWS  # Inferences of a round, where each is counted.
INPUTS = 512
WARM = 16
US_MAX = 0.3
LATENCIES = 1000
SKETCH_BYTES_MAX = 150
SKETCHES = 200


class _Asked(Call):
    def __init__(self, raw: bytes) -> None:
        super().__init__((raw,), ((FEATURES,),), 1)
        self.origin = 1

    def settle(self) -> None:
        """Nobody waits."""


class _Canned:
    """A session that hands out an answer, as a new array each time."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 1

    def __init__(self, answer: Array) -> None:
        self._answer = answer

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        return [self._answer.copy()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self._answer}

    def close(self) -> None:
        """Hold nothing."""


def run(options: Options) -> list[Line]:
    rounds = 6 if options.quick else 40
    rng = np.random.default_rng(options.seed)
    inputs = rng.normal(size=(INPUTS, FEATURES)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        session = _model(Path(folder), rng)
        answers = session.run_arrays((inputs,))[0]
        reference = Reference.parse(build(Observed({"x": inputs}, answers)))
        real = asyncio.run(_compare(session, inputs, reference, rounds))
        canned = asyncio.run(_compare(_Canned(answers[:1]), inputs, reference, rounds))
        session.close()
    return [
        _cost("meter, tiny ONNX model", real.added_us, US_MAX),
        _cost("meter, canned answers", canned.added_us, US_MAX),
        _cost("of an inference that is counted, tiny", real.counted_us),
        _cost("of an inference that is counted, canned", canned.counted_us),
        Line("one inference, submit to settle", "", f"{median(real.took_us):.1f} us", None),
        *_sketch(options),
    ]


def _cost(name: str, differences: list[float], most: float | None = None) -> Line:
    found = median(differences)
    ordered = sorted(differences)
    half = 0.98 * math.sqrt(len(ordered))  # 95 % of a median's order statistics.
    low = ordered[max(0, int(len(ordered) / 2 - half))]
    high = ordered[min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half))]
    target, passed = ("", None) if most is None else (f"<= {most} us an inference", found <= most)
    return Line(name, target, f"{found:.3f} us", passed, f"{low:.3f} to {high:.3f}")


@dataclass
class _Compared:
    """Us of processor time of an inference, round by round."""

    added_us: list[float] = field(default_factory=list)
    """By the meter as it is."""
    counted_us: list[float] = field(default_factory=list)
    """By a meter that counts each."""
    took_us: list[float] = field(default_factory=list)
    """With the meter as it is."""


async def _compare(session: Session, inputs: Array, reference: Reference, rounds: int) -> _Compared:
    """Return what the meter added."""
    table = ServingTable()
    meters = AllMeters(table)
    service = Service(table)
    table.switch(MODEL, _served(session, reference))
    place = table.place(MODEL)
    listener = place.counted
    assert listener is not None, "the meter listens"
    raws = [row.tobytes() for row in inputs]
    for _ in range(WARM):
        service.submit(service.enter(MODEL), _Asked(raws[0]), Anybody())
        await asyncio.sleep(0)  # Who asks alone some times in a row is answered at once.
    each = int(SECOND_US / SLICES / _slice(service, raws, EACH) * EACH)
    found = _Compared()
    for _ in range(rounds):
        meters.look(0.0, 0.0)
        with_us = without_us = 0.0
        hook = place.counted
        for _ in range(SLICES):
            place.counted = None
            without_us += _slice(service, raws, each)
            place.counted = hook
            with_us += _slice(service, raws, each)
            hook = place.counted  # A meter that has counted enough has let go.
        place.counted = hook
        began = time.thread_time_ns()
        meters.look(0.0, 0.0)
        with_us += (time.thread_time_ns() - began) / 1e3
        found.added_us.append((with_us - without_us) / each / SLICES)
        found.took_us.append(with_us / each / SLICES)
        with_us = without_us = 0.0
        for _ in range(EACH // FOLD_ROWS):
            place.counted = None
            without_us += _slice(service, raws, FOLD_ROWS)
            place.counted = listener
            with_us += _slice(service, raws, FOLD_ROWS)
        found.counted_us.append((with_us - without_us) / EACH)
        await asyncio.sleep(0)
    counted = sum(meters.take()[0].counts[Kind.CLASSES].values())
    assert counted >= rounds * each * SLICES, "every answer of a second with the meter is counted for"
    return found


def _slice(service: Service, raws: list[bytes], inferences: int) -> float:
    """Return the processor time of so many inferences, us."""
    enter, submit, anybody = service.enter, service.submit, Anybody()
    number = len(raws)
    began = time.thread_time_ns()
    for index in range(inferences):
        submit(enter(MODEL), _Asked(raws[index % number]), anybody)
    return (time.thread_time_ns() - began) / 1e3


def _served(session: Session, reference: Reference) -> Served:
    manifest = Manifest(
        model=MODEL,
        version="1.0.0",
        release=1,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, FEATURES)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, CLASSES)),),
        files=(describe_file("m.onnx", b"m"),),
        variants=(Variant(name="v", runtime="onnxruntime", precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="m.onnx"),
    )
    return Served(
        manifest=manifest,
        manifest_sha256=Sha256("0" * 64),
        session=session,
        latency_ms=1.0,
        plan=ServingPlan(inline=True, batch_max=8),
        reference=reference,
    )


def _model(folder: Path, rng: np.random.Generator) -> Session:
    """Return softmax of one layer, FEATURES to CLASSES."""
    weights = rng.normal(size=(FEATURES, CLASSES), scale=0.3).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["s"]), helper.make_node("Softmax", ["s"], ["y"], axis=1)],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.reshape(-1))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    file = folder / "m.onnx"
    file.write_bytes(model.SerializeToString())
    variant = Variant(name="v", runtime="onnxruntime", precision="fp32", files=("m.onnx",))
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, FEATURES)),)
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, CLASSES)),)
    return registry.engine("onnxruntime").load(file, variant, inputs, outputs, threads=1, cache_dir=folder)


def _sketch(options: Options) -> list[Line]:
    """LATENCIES log-normal latencies (median 5 ms, sigma 0.5), on the device's grid of 16 buckets a doubling."""
    rng = np.random.default_rng(options.seed)
    sizes: list[int] = []
    errors: dict[float, list[float]] = {0.5: [], 0.95: [], 0.99: []}
    for _ in range(SKETCHES):
        us = rng.lognormal(math.log(5000), 0.5, LATENCIES)
        counts: dict[int, int] = {}
        for one in us.tolist():
            place = latency.bucket(one)
            counts[place] = counts.get(place, 0) + 1
        sizes.append(len(pack(counts)))
        for share, found in errors.items():
            true_ms = float(np.quantile(us, share, method="inverted_cdf")) / 1e3
            sketched_ms = latency.quantile_ms(sorted(counts.items()), share)
            assert sketched_ms is not None
            found.append(abs(sketched_ms / true_ms - 1))
    lines = [
        Line(
            f"sketch of {LATENCIES:,} latencies",
            f"<= {SKETCH_BYTES_MAX} bytes",
            f"{median(sizes):.0f} bytes",
            max(sizes) <= SKETCH_BYTES_MAX,
            f"{min(sizes)} to {max(sizes)}",
        )
    ]
    for share, found in errors.items():
        lines.append(
            Line(
                f"its relative error at p{share * 100:.0f}", "", f"{median(found):.1%}", None, f"up to {max(found):.1%}"
            )
        )
    return lines
