"""What the metrics cost the serving path, by how much a device is asked.

The path is the agent's own service on the loop: `submit` to `settle`, without a server. Between two looks of the meters
as many inferences as come at that rate run with the meter, and as many without, in turns of SLICE; what the look takes
is within, and the tally of each minute. That gives one difference, and the figure is the median of those. It is
processor time of the thread, so that what else the machine does costs little. What a look costs however little was
asked is told beside, by the second: below some twenty inferences a second that is most of it.
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

from bench.metrics import sketch
from bench.rollout.figures import Line, Options
from muster_agent.core.plan import ServingPlan
from muster_agent.engines import registry
from muster_agent.engines.port import Achieved, Array, Session
from muster_agent.metrics.meters import LOOK_S_MAX, AllMeters, look_due_s
from muster_agent.metrics.reference import Reference
from muster_agent.metrics.reference_build import Observed, build
from muster_agent.metrics.sending import LOOK_S
from muster_agent.serving.call import Call
from muster_agent.serving.service import Anybody, Service
from muster_agent.serving.table import Place, Served, ServingTable
from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName, Sha256
from muster_shared.metrics import Kind

MODEL = ModelName("tiny")
RATES = (50, 500, 5000)
"""Inferences a second; full load besides."""
BATCH = 8
SLICE = 50  # Calls.
INPUTS = 512
US_MAX = 0.3


@dataclass(frozen=True)
class _Shape:
    """What a model takes and gives: float32 [rows, features] and [rows, classes]."""

    name: str
    features: int
    classes: int


DIGITS, MAGIKA = _Shape("digits", 64, 10), _Shape("magika", 2048, 214)


class _Asked(Call):
    def __init__(self, raw: bytes, features: int, rows: int) -> None:
        super().__init__((raw,), ((features,),), rows)
        self.origin = 1

    def settle(self) -> None:
        """Nobody waits."""


class _Canned:
    """A session that hands out an answer, as a new array each time."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 1

    def __init__(self, answers: Array) -> None:
        self._answers = answers

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        return [self._answers[: len(arrays[0])].copy()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self._answers[:1]}

    def close(self) -> None:
        """Hold nothing."""


def run(options: Options) -> list[Line]:
    rng = np.random.default_rng(options.seed)
    return [*_of_digits(options, rng), *_of_magika(options, rng), *sketch.lines(options)]


def _of_digits(options: Options, rng: np.random.Generator) -> list[Line]:
    """A real model of one layer; canned answers have no engine's noise in them."""
    inputs = rng.normal(size=(INPUTS, DIGITS.features)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        session = _model(Path(folder), DIGITS, rng)
        answers = session.run_arrays((inputs,))[0]
        reference = Reference.parse(build(Observed({"x": inputs}, answers)))
        real = _Bench(session, DIGITS, inputs, reference)
        canned = _Bench(_Canned(answers), DIGITS, inputs, reference)
        lines = [*_at_each_rate(canned, options), *_at_full_load(real, options, ", ONNX model")]
        session.close()
    return [*lines, *_fixed(canned, options)]


def _of_magika(options: Options, rng: np.random.Generator) -> list[Line]:
    inputs = rng.normal(size=(INPUTS, MAGIKA.features)).astype(np.float32)
    answers = rng.dirichlet(np.full(MAGIKA.classes, 0.05), INPUTS).astype(np.float32)
    reference = Reference.parse(build(Observed({"x": inputs}, answers)))
    return _at_each_rate(_Bench(_Canned(answers), MAGIKA, inputs, reference), options)


def _at_each_rate(bench: "_Bench", options: Options) -> list[Line]:
    rounds = 20 if options.quick else 100
    lines = []
    for rate in RATES:
        found = asyncio.run(bench.compare(rate, 1, rounds))
        lines.append(_line(f"{bench.shape.name}, {rate:,}/s", found))
    return [*lines, *_at_full_load(bench, options)]


def _at_full_load(bench: "_Bench", options: Options, what: str = "") -> list[Line]:
    rounds = 5 if options.quick else 10
    lines = []
    for rows in (1, BATCH):
        found = asyncio.run(bench.compare(None, rows, rounds))
        how = "single rows" if rows == 1 else f"batches of {rows}"
        lines.append(_line(f"{bench.shape.name}{what}, full load, {how}", found))
    return lines


def _fixed(bench: "_Bench", options: Options) -> list[Line]:
    """At one inference a second: what is fixed is all there is."""
    found = asyncio.run(bench.compare(1, 1, 100 if options.quick else 1000))
    look_us = median(found.looks_us)
    idle_us = median(asyncio.run(bench.idle(100)))
    return [
        Line("fixed: a look at few inferences", "", f"{look_us:.0f} us", None, f"one in {LOOK_S_MAX:.0f} s"),
        Line("fixed: by the second, one inference a second", "", f"{look_us / LOOK_S_MAX:.1f} us/s", None),
        Line("fixed: by the second, none", "", f"{idle_us:.1f} us/s", None),
    ]


def _line(name: str, found: "_Compared") -> Line:
    cost = median(found.added_us)
    ordered = sorted(found.added_us)
    half = 0.98 * math.sqrt(len(ordered))  # 95 % of a median's order statistics.
    low = ordered[max(0, int(len(ordered) / 2 - half))]
    high = ordered[min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half))]
    path_us = median(found.path_us)
    spread = f"{low:.3f} to {high:.3f}; {cost / path_us:.1%} of {path_us:.1f} us; looks {found.of_looks_us:.3f}"
    return Line(name, f"<= {US_MAX} us an inference", f"{cost:.3f} us", cost <= US_MAX, spread)


@dataclass
class _Compared:
    """Us of processor time of an inference, look by look."""

    added_us: list[float] = field(default_factory=list)
    """By the meter."""
    path_us: list[float] = field(default_factory=list)
    """Without it."""
    looks_us: list[float] = field(default_factory=list)
    """Of a look, not of an inference."""
    of_looks_us: float = 0.0
    """What of the added are looks and tallies, on average."""


class _Bench:
    """The service with one model."""

    def __init__(self, session: Session, shape: _Shape, inputs: Array, reference: Reference) -> None:
        self.shape = shape
        self._table = ServingTable()
        self._meters = AllMeters(self._table)
        self._service = Service(self._table)
        self._table.switch(MODEL, _served(session, shape, reference))
        self._inputs = inputs
        self._now_s = 0.0
        self._turns = 0

    async def idle(self, looks: int) -> list[float]:
        """Return what looks take at which nothing was asked, us."""
        return [self._look(1.0) for _ in range(looks)]

    async def compare(self, rate: int | None, rows: int, looks: int) -> _Compared:
        """Return what the meter added at `rate` inferences a second (None: as many as it can), in calls of `rows`."""
        raws = [self._inputs[at : at + rows].tobytes() for at in range(0, INPUTS - rows + 1, rows)]
        for _ in range(20):  # Who asks alone some times in a row is answered at once.
            self._slice(raws, rows, 1)
            await asyncio.sleep(0)
        place = self._table.place(MODEL)
        if rate is None:
            rate = int(1e6 * rows * 1000 / self._slice(raws, rows, 1000))
        pause_s = look_due_s(rate)
        calls = max(1, int(rate * pause_s) // rows)
        found, spent_us, until_tally_s = _Compared(), 0.0, LOOK_S
        self._look(pause_s)
        self._meters.take()
        for _ in range(looks):
            with_us, without_us = self._between_looks(place, raws, rows, calls)
            took_us = self._look(pause_s)
            found.looks_us.append(took_us)
            until_tally_s -= pause_s
            if until_tally_s <= 0 and len(found.looks_us) < looks:
                until_tally_s += LOOK_S
                began = time.thread_time_ns()
                self._meters.take()
                took_us += (time.thread_time_ns() - began) / 1e3
            spent_us += took_us
            found.added_us.append((with_us + took_us - without_us) / calls / rows)
            found.path_us.append(without_us / calls / rows)
            await asyncio.sleep(0)
        assert self._meters.take()[0].counts[Kind.CLASSES], "the meter listened"
        found.of_looks_us = spent_us / (looks * calls * rows)
        return found

    def _between_looks(self, place: Place, raws: list[bytes], rows: int, calls: int) -> tuple[float, float]:
        """Return us of `calls` with the meter and of as many without."""
        with_us = without_us = 0.0
        hook = place.counted
        left = calls
        while left:
            each = min(SLICE if hook is not None else 10 * SLICE, left)
            left -= each
            self._turns += 1
            for with_meter in (True, False) if self._turns % 2 else (False, True):  # Neither is always the first.
                place.counted = hook if with_meter else None
                took_us = self._slice(raws, rows, each)
                if with_meter:
                    with_us += took_us
                    hook = place.counted  # A meter that has counted enough has let go.
                else:
                    without_us += took_us
        place.counted = hook
        return with_us, without_us

    def _look(self, pause_s: float) -> float:
        self._now_s += pause_s
        began = time.thread_time_ns()
        self._meters.look(self._now_s / 2, self._now_s)
        return (time.thread_time_ns() - began) / 1e3

    def _slice(self, raws: list[bytes], rows: int, calls: int) -> float:
        """Return the processor time of so many calls, us."""
        enter, submit, anybody = self._service.enter, self._service.submit, Anybody()
        number, features = len(raws), self.shape.features
        began = time.thread_time_ns()
        for index in range(calls):
            submit(enter(MODEL), _Asked(raws[index % number], features, rows), anybody)
        return (time.thread_time_ns() - began) / 1e3


def _served(session: Session, shape: _Shape, reference: Reference) -> Served:
    manifest = Manifest(
        model=MODEL,
        version="1.0.0",
        release=1,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, shape.features)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, shape.classes)),),
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


def _model(folder: Path, shape: _Shape, rng: np.random.Generator) -> Session:
    """Return softmax of one layer, features to classes."""
    weights = rng.normal(size=(shape.features, shape.classes), scale=0.3).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["s"]), helper.make_node("Softmax", ["s"], ["y"], axis=1)],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", shape.features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", shape.classes])],
        [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.reshape(-1))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    file = folder / "m.onnx"
    file.write_bytes(model.SerializeToString())
    variant = Variant(name="v", runtime="onnxruntime", precision="fp32", files=("m.onnx",))
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, shape.features)),)
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, shape.classes)),)
    return registry.engine("onnxruntime").load(file, variant, inputs, outputs, threads=1, cache_dir=folder)
