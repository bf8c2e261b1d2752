"""OpenVINO behind the engine port: its own IR (`.xml` with `.bin`) and ONNX, on the first device that takes the model.

It does not use AUTO: that starts on one device and moves to another, and then no achieved tuple is true.
No compiled model is cached. OpenVINO's cache compares path, size and time, never content, and loads a damaged blob:
before it is turned on it needs a root-only folder for each release digest, and a check of each blob's hash.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openvino
import structlog

from muster_agent.engines.port import Achieved, Array, InferenceFailed, ModelUnloadable
from muster_agent.engines.tensors import ModelTensor, check_inputs, check_model, ready
from muster_shared.bundle import DataType, Runtime, TensorSpec, Variant

log = structlog.get_logger(__name__)

PRECISION = "INFERENCE_PRECISION_HINT"
OURS = frozenset({"CACHE_DIR", "CACHE_MODE", "INFERENCE_NUM_THREADS", "DEVICES"})
_TYPES: dict[str, DataType] = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
    "string": "BYTES",
}
_PRECISIONS = {"f32": "fp32", "f16": "fp16"}


class OpenVino:
    """The engine."""

    name: Runtime = "openvino"

    def __init__(self) -> None:
        self._core = openvino.Core()

    def load(
        self,
        model_file: Path,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        threads: int,
        cache_dir: Path,
    ) -> "OpenVinoSession":
        """See `port.Engine.load`. `cache_dir` stays empty until the cache is safe (see the module head).

        The variant's option DEVICES (such as "NPU,GPU") names what to try in order, else its `hardware.accelerator`
        does; the CPU is always the last resort, and `achieved.fallback` says why it came to that.
        """
        if any(spec.datatype == "BYTES" for spec in (*inputs, *outputs)):
            # openvino 2026.4.1 aborts the whole process on string tensors ("munmap_chunk(): invalid pointer").
            raise ModelUnloadable("OpenVINO is not trusted with BYTES tensors; ship an onnxruntime variant")
        try:
            model = self._core.read_model(str(model_file))
        except Exception as error:  # The binding raises RuntimeError and TypeError without a tree.
            raise ModelUnloadable(f"OpenVINO: {_first_line(error)}") from error
        compiled, fallback = self._compile(model, variant, threads)
        check_model(inputs, [_describe(port) for port in compiled.inputs], "input", all_needed=True)
        check_model(outputs, _describe_all(compiled.outputs), "output", all_needed=False)
        return OpenVinoSession(compiled, variant, inputs, outputs, fallback)

    def _compile(self, model: openvino.Model, variant: Variant, threads: int) -> tuple[openvino.CompiledModel, str]:
        """Return the model on the first device that takes it, and why not on an earlier one (empty on the first)."""
        refused: list[str] = []
        for device in _devices(variant):
            config: dict[str, str] = {
                # Unpinned, processors with bf16 silently use it: 96.5 -> 91.6 % right on one of our workloads.
                PRECISION: "f32",
                "PERFORMANCE_HINT": "LATENCY",
                **{key: value for key, value in variant.options.items() if key not in OURS},
                "CACHE_DIR": "",
            }
            if device == "CPU":
                config |= {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
            try:
                compiled = self._core.compile_model(model, device, config)
            except Exception as error:  # See above.
                refused.append(f"{device}: {_first_line(error)}")
                continue
            fallback = "; ".join(refused)
            if fallback:
                log.warning("engine_fell_back", engine="openvino", device=device, reason=fallback)
            return compiled, fallback
        raise ModelUnloadable(f"OpenVINO: {'; '.join(refused)}")


class OpenVinoSession:
    """One loaded model with one infer request; concurrent calls take turns."""

    def __init__(
        self,
        compiled: openvino.CompiledModel,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        fallback: str,
    ) -> None:
        self._lock = threading.Lock()
        self._compiled: openvino.CompiledModel | None = compiled
        self._request: openvino.InferRequest | None = compiled.create_infer_request()
        self._inputs = tuple(inputs)
        self._ports = [(spec.name, compiled.output(spec.name)) for spec in outputs]
        self.achieved = Achieved(
            engine="openvino",
            version=openvino.__version__.split("-")[0],
            device=",".join(compiled.get_property("EXECUTION_DEVICES")),
            precision=_precision(compiled, variant),
            threads=_threads(compiled),
            fallback=fallback,
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `port.Session.run`."""
        check_inputs(self._inputs, inputs)
        feed = {name: ready(array) for name, array in inputs.items()}
        with self._lock:
            if self._request is None:
                raise InferenceFailed("the session is closed")
            try:
                # Inputs are read in place; outputs are copied out, as the next call writes over the request's own.
                results = self._request.infer(feed, share_inputs=True, share_outputs=False)
                return {name: np.asarray(results[port]) for name, port in self._ports}
            except Exception as error:  # See above.
                raise InferenceFailed(f"OpenVINO: {_first_line(error)}") from error

    def close(self) -> None:
        """See `port.Session.close`."""
        with self._lock:
            self._request = None
            self._compiled = None
            self._ports = []


def _devices(variant: Variant) -> list[str]:
    named = variant.options.get("DEVICES")
    wanted = named.split(",") if named else list(variant.hardware.accelerator)
    return list(dict.fromkeys([*(device.strip().upper() for device in wanted if device.strip()), "CPU"]))


def _precision(compiled: openvino.CompiledModel, variant: Variant) -> str:
    try:
        hint: str = compiled.get_property(PRECISION).get_type_name()
    except Exception:  # A plugin without the property: say that it is unknown rather than what was asked for.
        return "unknown"
    if variant.precision == "int8":  # The quantized operations stay so; the hint speaks of the others.
        return "int8" if hint == "f32" else f"int8/{hint}"
    return _PRECISIONS.get(hint, hint)


def _threads(compiled: openvino.CompiledModel) -> int:
    try:
        return int(compiled.get_property("INFERENCE_NUM_THREADS"))
    except Exception:  # Accelerators have no such property; the host then only feeds them.
        return 1


def _describe(port: openvino.ConstOutput) -> ModelTensor:
    return port.get_any_name(), *_type_and_shape(port)


def _describe_all(ports: Sequence[openvino.ConstOutput]) -> list[ModelTensor]:
    """Return each tensor under each of its names: an output that passes another through has both."""
    return [(name, *_type_and_shape(port)) for port in ports for name in sorted(port.get_names())]


def _type_and_shape(port: openvino.ConstOutput) -> tuple[str, tuple[int, ...] | None]:
    element: str = port.get_element_type().get_type_name()
    partial = port.get_partial_shape()
    shape = (
        None
        if partial.rank.is_dynamic
        else tuple(-1 if size.is_dynamic else int(size.get_length()) for size in partial)
    )
    return _TYPES.get(element, element), shape


def _first_line(error: Exception) -> str:
    """Return the part of an OpenVINO message that says something: it begins with the places it was raised from."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception from ")]
    return (telling or lines or [type(error).__name__])[0][:400]
