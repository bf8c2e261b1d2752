"""ONNX Runtime behind the engine port, on the first execution provider that takes the model; the CPU's is the last.

    variant.options["PROVIDERS"], else hardware.accelerator ──> candidates ──> the first that really runs, and why not
                                                                               the ones before it
It does not compare providers by speed: each is a variant, and `engines.tuning` measures variants.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import structlog

from muster_agent.engines.port import Achieved, Array, InferenceFailed, InputRefused, ModelUnloadable, without_folder
from muster_agent.engines.providers import CPU, candidates, provider_options, short
from muster_agent.engines.tensors import ModelTensor, check_inputs, check_model, ready
from muster_shared.bundle import DataType, Runtime, TensorSpec, Variant

log = structlog.get_logger(__name__)

OURS = frozenset({"PROVIDERS"})
OPTION_PREFIXES = ("session.", "optimization.", "ep.", "mlas.")
SEVERITY_ERROR = 3
HEAVY_ROW_S = 1e-3  # A model that needs longer for a row keeps megabytes of activations for each.
HEAVY_ROWS = 4
_NEVER = sys.maxsize
_TYPES: dict[str, DataType] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class OnnxRuntime:
    """The engine."""

    name: Runtime = "onnxruntime"

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
    ) -> "OnnxRuntimeSession":
        """See `port.Engine.load`. `cache_dir` is unused: this engine caches nothing on disk.

        With one thread the caller's own computes, so any number of instances share one session and its memory.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SEVERITY_ERROR
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads cost 74 ms of CPU an inference at 10 Hz against 32 without, for 10 ms of latency.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in variant.options.items():
            if key in OURS:
                continue
            # The runtime takes any key silently, so one that is meant for another engine would do nothing, unseen.
            if not key.startswith(OPTION_PREFIXES):
                raise ModelUnloadable(f"option {key!r} of variant {variant.name} is not one of ONNX Runtime's")
            options.add_session_config_entry(key, value)
        session, fallback = _open(model_file, options, variant, threads)
        check_model(inputs, [_describe(tensor) for tensor in session.get_inputs()], "input", all_needed=True)
        check_model(outputs, [_describe(tensor) for tensor in session.get_outputs()], "output", all_needed=False)
        return OnnxRuntimeSession(session, variant, inputs, outputs, threads, fallback)


class OnnxRuntimeSession:
    """One loaded model. The runtime itself allows concurrent calls, as many as there are threads to make them."""

    concurrency = sys.maxsize

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        threads: int,
        fallback: str,
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._inputs = tuple(inputs)
        self._input_names = tuple(spec.name for spec in inputs)
        self._output_names = [spec.name for spec in outputs]
        self._strings = any(spec.datatype == "BYTES" for spec in (*inputs, *outputs))
        self._strings_in = frozenset(spec.name for spec in inputs if spec.datatype == "BYTES")
        self._strings_out = frozenset(spec.name for spec in outputs if spec.datatype == "BYTES")
        # With options made once a tiny model answers in 5.2 us, without in 6.0, through IO binding in 5.6 to 10.
        self._options = onnxruntime.RunOptions()
        self._trimming = onnxruntime.RunOptions()
        self._trimming.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._row_s = float("inf")
        self._trim_rows = _NEVER
        self.achieved = Achieved(
            engine="onnxruntime",
            version=onnxruntime.__version__,
            device=short(session.get_providers()[0]),
            precision=variant.precision,
            threads=threads,
            fallback=fallback,
        )

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        """See `port.Session.run_arrays`."""
        session = self._session  # Our own reference keeps the model alive when `close` comes in between.
        if session is None:
            raise InferenceFailed("the session is closed")
        if self._strings:
            given = dict(zip(self._input_names, arrays, strict=True))
            return list(self._run(session, given).values())
        first = arrays[0]
        # A large batch of a heavy model leaves its activations in the arena for good: give them back, which costs
        # such a call less than a percent, and a tiny model's a tenth.
        large = first.ndim and len(first) >= self._trim_rows
        try:
            results: list[Array] = session.run(
                self._output_names,
                dict(zip(self._input_names, arrays, strict=True)),
                self._trimming if large else self._options,
            )
        except Exception as error:  # Its errors share no base class below Exception.
            raise InferenceFailed(f"ONNX Runtime: {error}") from error
        return results

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `port.Session.run`."""
        session = self._session
        if session is None:
            raise InferenceFailed("the session is closed")
        check_inputs(self._inputs, inputs)
        started = time.perf_counter()
        outputs = self._run(session, inputs)
        self._learn(inputs, time.perf_counter() - started)
        return outputs

    def close(self) -> None:
        """See `port.Session.close`."""
        self._session = None

    def _run(self, session: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
        feed = {
            name: _to_strings(name, array) if name in self._strings_in else ready(array)
            for name, array in inputs.items()
        }
        try:
            results = session.run(self._output_names, feed, self._trimming)
        except Exception as error:  # See above.
            raise InferenceFailed(f"ONNX Runtime: {error}") from error
        return {
            name: _to_bytes(array) if name in self._strings_out else array
            for name, array in zip(self._output_names, results, strict=True)
        }

    def _learn(self, inputs: Mapping[str, Array], seconds: float) -> None:
        """Take from the checked calls, such as the self-test's, whether a large batch of this model is worth a trim."""
        first = inputs[self._input_names[0]]
        rows = len(first) if first.ndim else 1
        self._row_s = min(self._row_s, seconds / rows)
        self._trim_rows = HEAVY_ROWS if self._row_s > HEAVY_ROW_S else _NEVER


def _open(
    model_file: Path, options: onnxruntime.SessionOptions, variant: Variant, threads: int
) -> tuple[onnxruntime.InferenceSession, str]:
    """Return the model on the first provider that takes it, and why not on an earlier one (empty on the first)."""
    refused: list[str] = []
    built_in = frozenset(onnxruntime.get_available_providers())
    for provider in candidates(variant):
        if provider not in built_in:
            refused.append(f"{short(provider)}: not in this build of ONNX Runtime")
            continue
        chain = [(provider, provider_options(provider, variant, threads))]
        if provider != CPU:
            chain.append((CPU, {}))
        try:
            session = onnxruntime.InferenceSession(str(model_file), options, providers=chain)
        except Exception as error:  # Its errors share no base class below Exception.
            said = without_folder(str(error).strip().partition(chr(10))[0], model_file.parent)
            refused.append(f"{short(provider)}: {said[:400]}")
            continue
        actual: list[str] = session.get_providers()
        if actual[0] != provider:  # A provider that does not start is only a warning to the runtime.
            refused.append(f"{short(provider)}: asked for it, got {', '.join(map(short, actual))}")
            continue
        fallback = "; ".join(refused)
        if fallback:
            log.warning("engine_fell_back", engine="onnxruntime", device=short(actual[0]), reason=fallback)
        return session, fallback
    raise ModelUnloadable(f"ONNX Runtime: {'; '.join(refused)}")


def _describe(tensor: onnxruntime.NodeArg) -> ModelTensor:
    if not tensor.shape:  # A scalar and a free rank look the same here.
        return tensor.name, _TYPES.get(tensor.type, tensor.type), None
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in tensor.shape)
    return tensor.name, _TYPES.get(tensor.type, tensor.type), shape


def _to_strings(name: str, array: Array) -> Array:
    """Return the strings of a BYTES array; of `bytes` objects the runtime would take the *representation*, b'...'."""
    texts = np.empty(array.shape, dtype=object)
    try:
        texts.ravel()[:] = [element.decode() for element in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InputRefused(name, f"has an element that is not UTF-8 ({error.reason})") from error
    return texts


def _to_bytes(array: Array) -> Array:
    raw = np.empty(array.shape, dtype=object)
    raw.ravel()[:] = [element.encode() for element in array.ravel().tolist()]
    return raw
