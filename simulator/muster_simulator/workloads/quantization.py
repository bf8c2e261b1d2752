"""Static int8 quantization of an ONNX model, as `onnxruntime.quantization` does it, quiet and repeatable."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from muster_simulator.workloads.labelled import Array


def to_int8(raw: bytes, input_name: str, calibration: Array, op_types: Sequence[str] = ("Conv", "Gemm")) -> bytes:
    """Return the model as QDQ int8, per channel, with activation ranges taken from `calibration` (axis 0 the batch).

    Args:
        op_types: The ONNX operators that compute in int8; all others stay as they are.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        # The preparation also marks the model as prepared; without the mark the quantizer warns on the root logger.
        quant_pre_process(onnx.load_from_string(raw), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            _Calibration(input_name, calibration),
            op_types_to_quantize=list(op_types),
            per_channel=True,
            # Seven bits of weight: on processors without VNNI, 8 x 8 bit sums overflow their 16-bit register.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return quantized.read_bytes()


class _Calibration:
    """Hands out the calibration inputs in one batch, then None: the shape of `CalibrationDataReader`."""

    def __init__(self, input_name: str, inputs: Array) -> None:
        self._batches = iter([{input_name: inputs}])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)
