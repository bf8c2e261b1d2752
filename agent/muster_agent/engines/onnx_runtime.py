"""ONNX Runtime behind the engine port, on the CPU.

It does not choose among execution providers: a variant for another one needs its own runtime build.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import structlog

from muster_agent.engines.port import Achieved, Array, InferenceFailed, InputRefused, ModelUnloadable
from muster_agent.engines.tensors import ModelTensor, check_inputs, check_model, ready
from muster_shared.bundle import DataType, Runtime, TensorSpec, Variant

log = structlog.get_logger(__name__)

PROVIDERS = ["CPUExecutionProvider"]
OPTION_PREFIXES = ("session.", "optimization.", "ep.", "mlas.")
SEVERITY_ERROR = 3
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
    ) -> "OnnxRuntimeSession":
        """See `port.Engine.load`. `cache_dir` is unused: this engine caches nothing on disk."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SEVERITY_ERROR
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads cost 74 ms of CPU an inference at 10 Hz against 32 without, for 10 ms of latency.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in variant.options.items():
            # The runtime takes any key silently, so one that is meant for another engine would do nothing, unseen.
            if not key.startswith(OPTION_PREFIXES):
                raise ModelUnloadable(f"option {key!r} of variant {variant.name} is not one of ONNX Runtime's")
            options.add_session_config_entry(key, value)
        try:
            session = onnxruntime.InferenceSession(str(model_file), options, providers=PROVIDERS)
        except Exception as error:  # Its errors share no base class below Exception.
            raise ModelUnloadable(f"ONNX Runtime: {error}") from error
        check_model(inputs, [_describe(tensor) for tensor in session.get_inputs()], "input", all_needed=True)
        check_model(outputs, [_describe(tensor) for tensor in session.get_outputs()], "output", all_needed=False)
        return OnnxRuntimeSession(session, variant, inputs, outputs, threads)


class OnnxRuntimeSession:
    """One loaded model. The runtime itself allows concurrent calls."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        variant: Variant,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        threads: int,
    ) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._inputs = tuple(inputs)
        self._output_names = [spec.name for spec in outputs]
        self._strings_in = frozenset(spec.name for spec in inputs if spec.datatype == "BYTES")
        self._strings_out = frozenset(spec.name for spec in outputs if spec.datatype == "BYTES")
        providers: list[str] = session.get_providers()
        fallback = "" if providers == PROVIDERS else f"asked for {PROVIDERS}, got {providers}"
        if fallback:  # A missing provider is only a warning to the runtime.
            log.warning("engine_fell_back", engine="onnxruntime", reason=fallback)
        self.achieved = Achieved(
            engine="onnxruntime",
            version=onnxruntime.__version__,
            device=providers[0].removesuffix("ExecutionProvider"),
            precision=variant.precision,
            threads=threads,
            fallback=fallback,
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `port.Session.run`."""
        session = self._session  # Our own reference keeps the model alive when `close` comes in between.
        if session is None:
            raise InferenceFailed("the session is closed")
        check_inputs(self._inputs, inputs)
        feed = {
            name: _to_strings(name, array) if name in self._strings_in else ready(array)
            for name, array in inputs.items()
        }
        try:
            results = session.run(self._output_names, feed)
        except Exception as error:  # Its errors share no base class below Exception.
            raise InferenceFailed(f"ONNX Runtime: {error}") from error
        return {
            name: _to_bytes(array) if name in self._strings_out else array
            for name, array in zip(self._output_names, results, strict=True)
        }

    def close(self) -> None:
        """See `port.Session.close`."""
        self._session = None


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
