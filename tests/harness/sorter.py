"""A model that answers its input: what somebody asks of it is what comes out. And the bundle that it ships in."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from harness.bundles import write_contents
from muster_shared.bundle import Golden, Manifest, Metrics, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName
from muster_shared.metrics import Kind

MODEL = ModelName("sorter")
LABELS = ("acorn", "beech", "cedar")
ALLOW = (Kind.CLASSES, Kind.CONFIDENCE, Kind.LATENCY, Kind.INPUTS)
"""Neither drift nor feedback, both of which are measured all the same."""


def sorting_model() -> bytes:
    """Return the model: three scores for three classes."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "one"], ["y"])],
        "sorter",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(LABELS)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", len(LABELS)])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    raw: bytes = model.SerializeToString()
    return raw


def write_sorter(folder: Path, version: str, release: int, model: bytes) -> Path:
    """Write the bundle of a release with `model` in it, and return its folder."""
    cases = np.eye(len(LABELS), dtype=np.float32)
    arrays: dict[str, Any] = {"input.x": cases, "output.y": cases}
    golden = io.BytesIO()
    np.savez(golden, **arrays)
    contents = {"golden.npz": golden.getvalue(), "model.onnx": model}
    manifest = Manifest(
        model=MODEL,
        version=version,
        release=release,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, len(LABELS))),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, len(LABELS))),),
        files=tuple(describe_file(path, raw) for path, raw in contents.items()),
        variants=(Variant(name="cpu", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
        golden=Golden(file="golden.npz"),
        metrics=Metrics(allow=ALLOW),
        labels=LABELS,
    )
    return write_contents(folder, manifest, contents)
