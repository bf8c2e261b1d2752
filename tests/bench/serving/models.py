"""What is served in the benchmark: three models, made here on the spot and kept under `.cache/bench`, never in git.

    tiny    int8 MLP 64 -> 64 -> 10, trained on scikit-learn's digits     the server is all that costs
    magika  the published model of magika 1.0.3, fp32                     8-9 ms a call
    conv    int8 net in the shape of ResNet-50, random weights            15-40 ms a call

Each is a bundle folder that an agent takes as a release. `tiny` has a second one whose classes are moved on by one, so
that an answer shows which release gave it. Random weights cost what learnt ones cost, and need no download.
"""

import hashlib
import importlib.metadata
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from muster_shared.bundle import (
    Golden,
    Manifest,
    Slo,
    TensorSpec,
    Variant,
    describe_file,
    encode_manifest,
    parse_manifest,
)
from muster_shared.ids import ModelName
from muster_simulator.workloads import magika, quantization
from muster_simulator.workloads.digits import split

NAMES = ("tiny", "magika", "conv")
OPSET, IR_VERSION = 17, 8
HIDDEN = 64
SIDE = 224
STAGES = (
    (3, 64, 256, 1),
    (4, 128, 512, 2),
    (6, 256, 1024, 2),
    (3, 512, 2048, 2),
)  # ResNet-50: blocks, width, out, stride.
INT8_OPS = ("Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool")  # Residual sums too.
CALIBRATION_IMAGES = 4
GOLDEN_CASES = 2

Array = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Subject:
    """One release. `example` is one row of input, `expected` what the bare engine answers to it."""

    folder: Path
    manifest: Manifest
    example: Array
    expected: Array

    @property
    def name(self) -> str:
        return self.manifest.model

    @property
    def model_file(self) -> Path:
        return self.folder / self.manifest.variants[0].files[0]

    @property
    def input(self) -> TensorSpec:
        return self.manifest.inputs[0]


def subject(name: str, cache: Path, *, successor: bool = False) -> Subject:
    """Return the model `name`, from `cache` if these very sources made it before; else building takes up to a minute.

    Args:
        successor: Its release 2 instead of release 1; only of `tiny`.
    """
    sources = b"".join(Path(file).read_bytes() for file in (__file__, quantization.__file__))
    made_from = sources + importlib.metadata.version("onnxruntime").encode()
    folder = cache / f"{name}-{2 if successor else 1}-{hashlib.sha256(made_from).hexdigest()[:12]}"
    if not (folder / "bundle.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        # Elsewhere first: a build that was cut short must not look like a model.
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _build(name, Path(scratch), cache.parent.parent / "weights", successor)
            shutil.copytree(scratch, folder, dirs_exist_ok=True)
    manifest = parse_manifest((folder / "bundle.json").read_bytes())
    with np.load(folder / "golden.npz") as cases:
        example = cases[f"input.{manifest.inputs[0].name}"][:1]
        expected = cases[f"output.{manifest.outputs[0].name}"][:1]
    return Subject(folder, manifest, example, expected)


def _build(name: str, folder: Path, weights: Path, successor: bool) -> None:
    match name:
        case "tiny":
            images = split().train_images.reshape(-1, 64)
            raw = quantization.to_int8(_mlp(shift=1 if successor else 0), "pixels", images, INT8_OPS)
            _write(folder, name, raw, "int8", images[:GOLDEN_CASES], ("pixels", "FP32"), release=2 if successor else 1)
        case "magika":
            spec = next(spec for spec in magika.releases(weights) if spec.version == "2.0.0")
            with np.load(io.BytesIO(spec.content(spec.golden.file))) as cases:
                inputs = cases[f"input.{spec.inputs[0].name}"][:GOLDEN_CASES]
            raw = spec.content(spec.variants[0].files[0])
            _write(folder, name, raw, "fp32", inputs, (spec.inputs[0].name, "INT32"))
        case "conv":
            rng = np.random.default_rng(50)
            # Two decimals: a peer that takes JSON is not to read more digits than an image has.
            images = rng.random((CALIBRATION_IMAGES, 3, SIDE, SIDE)).round(2).astype(np.float32)
            raw = quantization.to_int8(_resnet(rng), "image", images, INT8_OPS)
            _write(folder, name, raw, "int8", images[:GOLDEN_CASES], ("image", "FP32"))
        case _:
            raise ValueError(f"{name!r} is not one of {NAMES}")


def _write(
    folder: Path, name: str, raw: bytes, precision: str, inputs: Array, given: tuple[str, str], release: int = 1
) -> None:
    """Write the bundle folder of one model with one input and one output, for both engines."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    output = session.get_outputs()[0].name
    answers = np.concatenate([session.run([output], {given[0]: row[np.newaxis]})[0] for row in inputs])
    cases = io.BytesIO()
    np.savez_compressed(cases, **{f"input.{given[0]}": inputs, f"output.{output}": answers})
    files = {"model.onnx": raw, "golden.npz": cases.getvalue()}
    spread = float(answers.std())
    variants = (
        Variant(name="onnxruntime", runtime="onnxruntime", precision=precision, files=("model.onnx",)),
        Variant(name="openvino", runtime="openvino", precision=precision, files=("model.onnx",)),
    )
    manifest = Manifest(
        model=ModelName(name),
        version=f"{release}.0.0",
        release=release,
        inputs=(TensorSpec(name=given[0], datatype=given[1], shape=(-1, *inputs.shape[1:])),),
        outputs=(TensorSpec(name=output, datatype="FP32", shape=(-1, *answers.shape[1:])),),
        files=tuple(describe_file(path, content) for path, content in files.items()),
        variants=variants,
        # The engines round int8 each in their own way, and random classes lie close together.
        golden=Golden(file="golden.npz", atol=max(0.1, spread), argmax_agreement=0.0),
        slo=Slo(latency_ms_p95=60_000),  # A load test is not to end in a roll-back.
    )
    for path, content in {**files, "bundle.json": encode_manifest(manifest)}.items():
        (folder / path).write_bytes(content)


def _mlp(shift: int) -> bytes:
    """Return the classifier of digits, its classes moved on by `shift`."""
    from sklearn.neural_network import MLPClassifier

    data = split()
    model = MLPClassifier((HIDDEN,), random_state=0, max_iter=200, tol=1e-3)
    model.fit(data.train_images.reshape(-1, 64), data.train_digits)
    (first, last), (bias, offset) = model.coefs_, model.intercepts_
    nodes = [
        helper.make_node("Gemm", ["pixels", "first", "bias"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "last", "offset"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    weights = {"first": first, "bias": bias, "last": np.roll(last, shift, 1), "offset": np.roll(offset, shift)}
    return _model(nodes, weights, ("pixels", ["batch", 64]), ("probabilities", ["batch", 10]))


def _resnet(rng: np.random.Generator) -> bytes:
    """Return a network of ResNet-50's shape (He et al. 2015), batch normalisation folded, He-initialised weights."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, Array] = {}

    def conv(source: str, inward: int, outward: int, size: int, stride: int = 1, gain: float = 2.0) -> str:
        name = f"c{len(weights)}"
        weights[f"{name}.w"] = rng.normal(0, (gain / (inward * size**2)) ** 0.5, (outward, inward, size, size))
        weights[f"{name}.b"] = rng.normal(0, 0.01, outward)
        attributes = {"pads": [size // 2] * 4, "strides": [stride] * 2, "kernel_shape": [size] * 2}
        nodes.append(helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [name], **attributes))
        return name

    def op(kind: str, sources: list[str], **attributes: object) -> str:
        name = f"n{len(nodes)}"
        nodes.append(helper.make_node(kind, sources, [name], **attributes))
        return name

    at = op("Relu", [conv("image", 3, 64, 7, 2)])
    at = op("MaxPool", [at], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for blocks, width, out, first_stride in STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            inner = op("Relu", [conv(at, channels, width, 1)])
            inner = op("Relu", [conv(inner, width, width, 3, stride)])
            # A small gain keeps sixteen residual sums from growing without normalisation.
            inner = conv(inner, width, out, 1, gain=0.2)
            skip = conv(at, channels, out, 1, stride, gain=1.0) if block == 0 else at
            at, channels = op("Relu", [op("Add", [inner, skip])]), out
    at = op("Flatten", [op("GlobalAveragePool", [at])])
    weights["head"] = rng.normal(0, (1 / channels) ** 0.5, (channels, 1000))
    weights["offset"] = np.zeros(1000)
    nodes.append(helper.make_node("Gemm", [at, "head", "offset"], ["scores"]))
    return _model(nodes, weights, ("image", ["batch", 3, SIDE, SIDE]), ("scores", ["batch", 1000]))


def _model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    given: tuple[str, list[str | int]],
    answered: tuple[str, list[str | int]],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, given[1])],
        [helper.make_tensor_value_info(answered[0], TensorProto.FLOAT, answered[1])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw
