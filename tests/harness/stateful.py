"""A stateful model small enough to make in a test: a running sum, and a session that holds its calls."""

import threading
from pathlib import Path

from onnx import TensorProto, helper

from harness.endpoint import INLINE, WAIT_S, served_by
from muster_agent.core.plan import ServingPlan
from muster_agent.engines import registry
from muster_agent.engines.port import Array, Session
from muster_agent.serving.table import Served
from muster_shared.bundle import (
    Golden,
    Manifest,
    Runtime,
    Serving,
    StateTensor,
    TensorSpec,
    Variant,
    describe_file,
)
from muster_shared.ids import ModelName

RUNNING_SUM = ModelName("running-sum")


def running_sum(folder: Path, runtime: Runtime, plan: ServingPlan = INLINE, version: int = 0) -> Served:
    """A release that answers y = x + s and keeps s' = s + x; its version is 1.0.<version>."""
    file = folder / "sum.onnx"
    tensor = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "s", "y", "s_next")]
    nodes = [helper.make_node("Add", ["x", "s"], ["y"]), helper.make_node("Add", ["s", "x"], ["s_next"])]
    graph = helper.make_graph(nodes, "sum", tensor[:2], tensor[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    spec = {name: TensorSpec(name=name, datatype="FP32", shape=(-1, 1)) for name in ("x", "s", "y", "s_next")}
    manifest = Manifest(
        model=RUNNING_SUM,
        version=f"1.0.{version}",
        release=version + 1,
        inputs=(spec["x"], spec["s"]),
        outputs=(spec["y"], spec["s_next"]),
        files=(describe_file("m.onnx", b"m"),),
        variants=(Variant(name="v", runtime=runtime, precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="m.onnx"),
        serving=Serving(state=(StateTensor(input="s", output="s_next"),)),
    )
    session = registry.engine(runtime).load(
        file, manifest.variants[0], manifest.inputs, manifest.outputs, threads=1, cache_dir=folder
    )
    return served_by(session, manifest, plan)


class Gated:
    """A session that holds its calls until the gate is open, and may fail."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.achieved = session.achieved
        self.concurrency = session.concurrency
        self.began = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.close = session.close
        self.run = session.run

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        self.began.release()
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return self._session.run_arrays(arrays)


def gated(folder: Path) -> tuple[Gated, Served]:
    real = running_sum(folder, "onnxruntime")
    session = Gated(real.session)
    return session, served_by(session, real.manifest, ServingPlan(inline=False, batch_max=8, instances_max=4))
