"""OpenVINO behind the engine port: its own IR (`.xml` with `.bin`) and ONNX, on the first device that takes the model.

It does not use AUTO unless a variant names it: that starts on one device and moves to another, and then no achieved
tuple is true. What it compiled is kept by `compiled_cache`, as its own cache is not to be trusted.
"""

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openvino
import structlog

from muster_agent.engines import compiled_cache
from muster_agent.engines.port import Achieved, Array, InferenceFailed, ModelUnloadable, without_folder
from muster_agent.engines.tensors import ModelTensor, check_inputs, check_model, ready
from muster_shared.bundle import DataType, Runtime, TensorSpec, Variant

log = structlog.get_logger(__name__)

PRECISION = "INFERENCE_PRECISION_HINT"
OURS = frozenset({"CACHE_DIR", "CACHE_MODE", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "DEVICES"})
# OpenVINO pins a call to the first processor by itself, every process of it to the same one, and waits there behind
# whatever else runs on it: p95 of a small network beside one busy program 56 ms pinned, 0.5 ms not.
_SHARED = {"ENABLE_CPU_PINNING": "NO"}
LARGE_ROWS = 16
QUIET_S = (
    1.0  # The memory of large batches is given back once none came for so long: the next one takes twice its time.
)
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
        self._processor = compiled_cache.processor()

    def load(
        self,
        model_file: Path,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        threads: int,
        cache_dir: Path,
        instances: int = 1,
    ) -> "OpenVinoSession":
        """See `port.Engine.load`.

        The variant's option DEVICES (such as "NPU,GPU") names what to try in order, else its `hardware.accelerator`
        does; the CPU is always the last resort, and `achieved.fallback` says why it came to that.
        """
        if any(spec.datatype == "BYTES" for spec in (*inputs, *outputs)):
            # openvino 2026.4.1 aborts the whole process on string tensors ("munmap_chunk(): invalid pointer").
            raise ModelUnloadable("OpenVINO is not trusted with BYTES tensors; ship an onnxruntime variant")
        refused: list[str] = []
        for device in _devices(variant):
            try:
                settings = _settings(device, variant, threads, instances)
                compiled = self._compile(_files(model_file, variant), device, settings, cache_dir)
            except Exception as error:  # The binding raises RuntimeError and TypeError without a tree.
                refused.append(f"{device}: {without_folder(_first_line(error), model_file.parent)}")
                continue
            break
        else:
            raise ModelUnloadable(f"OpenVINO: {'; '.join(refused)}")
        fallback = "; ".join(refused)
        if fallback:
            log.warning("engine_fell_back", engine="openvino", device=device, reason=fallback)
        check_model(inputs, [_describe(port) for port in compiled.inputs], "input", all_needed=True)
        check_model(outputs, _describe_all(compiled.outputs), "output", all_needed=False)
        return OpenVinoSession(compiled, variant, inputs, outputs, instances, fallback)

    def _compile(
        self, files: list[Path], device: str, settings: dict[str, str], cache_dir: Path
    ) -> openvino.CompiledModel:
        name = compiled_cache.key(openvino.__version__, self._processor, device, settings, files)
        folder = compiled_cache.prepare(cache_dir, name)
        # By path: on a hit the model itself is not even read (18 ms for magika, 94 without; int8 ResNet-50 57 and 511).
        compiled = self._core.compile_model(
            str(files[0]), device, {**settings, "CACHE_DIR": "" if folder is None else str(folder)}
        )
        if folder is not None:
            compiled_cache.seal(folder)
        return compiled


class OpenVinoSession:
    """One loaded model with one infer request an instance; more callers take turns."""

    def __init__(
        self,
        compiled: openvino.CompiledModel,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        instances: int,
        fallback: str,
    ) -> None:
        self._compiled: openvino.CompiledModel | None = compiled
        self._inputs = tuple(inputs)
        self._input_names = tuple(spec.name for spec in inputs)
        self._output_names = tuple(spec.name for spec in outputs)
        places = {name: at for at, port in enumerate(compiled.outputs) for name in port.get_names()}
        chosen = [places[name] for name in self._output_names]
        self.concurrency = instances
        self._idle: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        for _ in range(instances):
            self._idle.put(_Request(compiled, self._input_names, chosen))
        self._closing = threading.Lock()
        self._swollen_at = 0.0  # When a large batch last ran; 0: what it took is given back.
        self.achieved = Achieved(
            engine="openvino",
            version=openvino.__version__.split("-")[0],
            device=",".join(compiled.get_property("EXECUTION_DEVICES")),
            precision=_precision(compiled, variant),
            threads=_threads(compiled, instances),
            fallback=fallback,
        )

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        """See `port.Session.run_arrays`."""
        request = self._idle.get()
        try:
            if request is None:
                raise InferenceFailed("the session is closed")
            return request.infer(arrays)
        finally:
            self._idle.put(request)  # Of a closed session, the word that it is.
            if arrays[0].ndim and len(arrays[0]) >= LARGE_ROWS:
                self._swollen_at = time.monotonic()
            elif self._swollen_at:
                self._shrink()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `port.Session.run`."""
        check_inputs(self._inputs, inputs)
        outputs = self.run_arrays(tuple(ready(inputs[name]) for name in self._input_names))
        return dict(zip(self._output_names, outputs, strict=True))

    def _shrink(self) -> None:
        """Give back what large batches took: an int8 ResNet-50 holds 546 MB after one of 32 rows, 283 after this."""
        compiled = self._compiled
        if compiled is None or time.monotonic() - self._swollen_at < QUIET_S:
            return
        try:
            compiled.release_memory()
        except Exception:  # It does so only while no request runs: the next call tries again.
            return
        self._swollen_at = 0.0

    def close(self) -> None:
        """See `port.Session.close`."""
        with self._closing:
            if self._compiled is None:
                return
            for _ in range(self.concurrency):
                self._idle.get()
            self._compiled = None
            self._idle.put(None)


class _Request:
    """One infer request with input memory of its own: a copy into it costs less than a new tensor (15 us against 21),
    and nothing of a caller's is held after the call."""

    def __init__(self, compiled: openvino.CompiledModel, inputs: Sequence[str], outputs: Sequence[int]) -> None:
        self._request = compiled.create_infer_request()
        self._ports = [compiled.input(name) for name in inputs]
        self._memory: list[Array | None] = [None] * len(self._ports)
        self._outputs = outputs
        self._all = list(outputs) == list(range(len(compiled.outputs)))

    def infer(self, arrays: tuple[Array, ...]) -> list[Array]:
        try:
            for at, array in enumerate(arrays):
                memory = self._memory[at]
                if memory is None or memory.shape != array.shape:
                    memory = self._memory[at] = np.empty(array.shape, array.dtype)
                    self._request.set_tensor(self._ports[at], openvino.Tensor(memory, shared_memory=True))
                np.copyto(memory, array)
            # The outputs are copied out, as the next call writes over the request's own.
            results = self._request.infer().to_tuple()
        except Exception as error:  # See `load`.
            raise InferenceFailed(f"OpenVINO: {_first_line(error)}") from error
        return list(results) if self._all else [results[at] for at in self._outputs]


def _settings(device: str, variant: Variant, threads: int, instances: int) -> dict[str, str]:
    settings = {
        # Unpinned, processors with bf16 silently use it: 96.5 -> 91.6 % right on one of our workloads.
        PRECISION: "f32",
        "PERFORMANCE_HINT": "LATENCY" if instances == 1 else "THROUGHPUT",
        **(_SHARED if device == "CPU" else {}),
        **{key: value for key, value in variant.options.items() if key not in OURS},
    }
    if device == "CPU":
        settings |= {"INFERENCE_NUM_THREADS": str(threads * instances), "NUM_STREAMS": str(instances)}
    return settings


def _files(model_file: Path, variant: Variant) -> list[Path]:
    """Return the model and the other files of its variant, such as the weights of an IR, under their manifest paths."""
    folder = model_file.parents[variant.files[0].count("/")]
    return [model_file, *(folder / path for path in variant.files[1:])]


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


def _threads(compiled: openvino.CompiledModel, instances: int) -> int:
    """Return the threads of one call."""
    try:
        return max(1, int(compiled.get_property("INFERENCE_NUM_THREADS")) // instances)
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
