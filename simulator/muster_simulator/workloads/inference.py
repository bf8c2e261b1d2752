"""Reference inference: one model file on one engine, to train, to prove and to measure. The agent has its own engines.

One thread and pinned precision, so that the same file gives the same numbers at each run on one machine.
"""

import io
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import openvino

from muster_shared.bundle import Variant
from muster_simulator.workloads.labelled import Array

BATCH = 16  # Bounds memory: magika's first layer is one-hot, 2 MB an input.

Network = Callable[[Array], Array]
"""A loaded model with one input and one output, axis 0 the batch."""


def load(variant: Variant, raw: bytes) -> Network:
    """Return `variant`'s model, whose first file has the content `raw`, ready to run."""
    match variant.runtime:
        case "onnxruntime":
            return load_onnxruntime(raw)
        case "openvino":
            return _load_openvino(raw, variant.options)


def load_onnxruntime(raw: bytes) -> Network:
    """Return an ONNX model on ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # Errors: it warns about initializers that its own quantizer leaves behind.
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def network(inputs: Array) -> Array:
        output: Array = session.run(None, {name: inputs})[0]
        return output

    return network


def run(network: Network, inputs: Array) -> Array:
    """Return the outputs for all of `inputs`, in batches."""
    return np.concatenate([network(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)])


def latency_ms(network: Network, one: Array, repeats: int = 30) -> float:
    """Return the median time of one inference on `one` (batch 1), in milliseconds of wall time."""
    times_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        network(one)
        times_s.append(time.perf_counter() - start_s)
    return float(np.median(times_s)) * 1000


def _load_openvino(raw: bytes, options: dict[str, str]) -> Network:
    core = openvino.Core()
    properties = {"INFERENCE_NUM_THREADS": "1", **options}
    compiled = core.compile_model(core.read_model(io.BytesIO(raw)), "CPU", properties)
    request = compiled.create_infer_request()

    def network(inputs: Array) -> Array:
        output: Array = request.infer([inputs])[compiled.output(0)].copy()
        return output

    return network
