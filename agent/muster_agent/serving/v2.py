"""The Open Inference Protocol (V2) codec: request bodies to arrays, arrays to response bodies, JSON or binary.

    body = JSON header [ + the binary tensors, in the order of the header ]
           `Inference-Header-Content-Length` is the length of the JSON; absent: all is JSON; 0: all is one raw tensor

Pure: no HTTP, no engine. Sources: KServe's Open Inference Protocol, Triton's binary tensor data extension. Binary
arrays are views into the body, never copies. Shared memory, sequences and the classification extension are not offered.
"""

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np

from muster_agent.engines.port import Array, InputRefused
from muster_agent.engines.tensors import DTYPES, RANK_MAX, check_inputs, fits
from muster_shared.bundle import DataType, TensorSpec
from muster_shared.errors import MusterError

ID_CHARACTERS_MAX = 256
TENSORS_MAX = 64
EXTENSIONS = ("binary_tensor_data",)
_REFUSED_PARAMETERS = ("shared_memory_region", "classification")
_NESTED = re.compile(rb"\s*\[\s*\[")
_LENGTH = struct.Struct("<I")

Parameter = str | int | float | bool


class RequestInvalid(MusterError):
    """A V2 request that does not say what it must; the message names the tensor or the field."""


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}


class _ResponseTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Parameter] = {}
    data: list[Any] | None = None


class _Response(msgspec.Struct):
    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Parameter]
    outputs: list[_ResponseTensor]


@dataclass(frozen=True)
class Wanted:
    """One output that the caller asked for, and how it is to be sent."""

    name: str
    binary: bool


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request that fits the manifest."""

    id: str
    """As the caller gave it; empty when not."""
    inputs: Mapping[str, Array]
    outputs: tuple[Wanted, ...]

    @property
    def rows(self) -> int:
        """The batch size: axis 0 of the first input, 1 when it has none."""
        first = next(iter(self.inputs.values()))
        return int(first.shape[0]) if first.ndim else 1


_request = msgspec.json.Decoder(_Request)
_encode = msgspec.json.Encoder().encode


def decode(
    body: bytes, header_bytes: int | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """Return the request in `body`.

    Args:
        header_bytes: `Inference-Header-Content-Length`, None when it was not sent.
    Raises:
        RequestInvalid: it does not parse, or does not fit `inputs` and `outputs`.
    """
    if header_bytes == 0:
        return _decode_raw(body, inputs, outputs)
    if header_bytes is not None and not 0 < header_bytes <= len(body):
        raise RequestInvalid(f"the JSON header should have {header_bytes} bytes, but the body has {len(body)}")
    view = memoryview(body)
    end = len(body) if header_bytes is None else header_bytes
    try:
        request = _request.decode(view[:end])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestInvalid(f"the request does not parse: {error}") from error
    if len(request.id) > ID_CHARACTERS_MAX:
        raise RequestInvalid(f"id has {len(request.id)} characters; the limit is {ID_CHARACTERS_MAX}")
    if len(request.inputs) > TENSORS_MAX or len(request.outputs) > TENSORS_MAX:
        raise RequestInvalid(f"there are more than {TENSORS_MAX} inputs or outputs")
    arrays = _arrays(request.inputs, view[end:], inputs)
    try:
        check_inputs(inputs, arrays)
    except InputRefused as error:
        raise RequestInvalid(str(error)) from error
    return InferRequest(request.id, arrays, _wanted(request, outputs))


def encode(
    wanted: Sequence[Wanted],
    results: Mapping[str, Array],
    datatypes: Mapping[str, DataType],
    *,
    model: str,
    version: str,
    request_id: str,
    parameters: Mapping[str, Parameter],
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the parts of the response body, and the length of its JSON header (None when all of it is JSON).

    A NaN in a JSON output is `null`: JSON has no other word for it.

    Raises:
        RequestInvalid: a BYTES output is asked for as JSON but is not UTF-8.
    """
    tensors: list[_ResponseTensor] = []
    blobs: list[bytes | memoryview] = []
    for output in wanted:
        array, datatype = results[output.name], datatypes[output.name]
        tensor = _ResponseTensor(output.name, datatype, array.shape)
        if output.binary:
            blob = _to_binary(array, datatype)
            tensor.parameters = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            tensor.data = _to_json(output.name, array, datatype)
        tensors.append(tensor)
    header = _encode(_Response(model, version, request_id, dict(parameters), tensors))
    return [header, *blobs], len(header) if blobs else None


def _decode_raw(body: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> InferRequest:
    """Return the request whose whole body is its one input; a free size follows from the length."""
    spec = inputs[0]
    free = [axis for axis, size in enumerate(spec.shape) if size == -1]
    if len(inputs) != 1 or len(free) > 1 or spec.datatype == "BYTES":
        raise RequestInvalid(
            f"input {spec.name!r} cannot come as a raw body: its shape does not follow from the length"
        )
    row = math.prod(size for size in spec.shape if size != -1) * DTYPES[spec.datatype].itemsize
    count, rest = divmod(len(body), row)
    if rest or not count or (not free and count != 1):
        raise RequestInvalid(f"input {spec.name!r} has {len(body)} bytes; it takes {row} each")
    shape = [count if size == -1 else size for size in spec.shape]
    array = np.frombuffer(body, dtype=DTYPES[spec.datatype]).reshape(shape)
    return InferRequest("", {spec.name: array}, tuple(Wanted(output.name, binary=True) for output in outputs))


def _wanted(request: _Request, outputs: Sequence[TensorSpec]) -> tuple[Wanted, ...]:
    _refuse_parameters("the request", request.parameters)
    default = _flag("the request", request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return tuple(Wanted(spec.name, default) for spec in outputs)
    known = {spec.name for spec in outputs}
    wanted: dict[str, Wanted] = {}
    for output in request.outputs:
        if output.name not in known:
            raise RequestInvalid(f"output {output.name[:80]!r} is not an output of this model; it has {sorted(known)}")
        if output.name in wanted:
            raise RequestInvalid(f"output {output.name!r} is asked for twice")
        what = f"output {output.name!r}"
        _refuse_parameters(what, output.parameters)
        wanted[output.name] = Wanted(output.name, _flag(what, output.parameters, "binary_data", default=default))
    return tuple(wanted.values())


def _arrays(tensors: Sequence[_Tensor], binary: memoryview, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    known = {spec.name: spec for spec in specs}
    arrays: dict[str, Array] = {}
    offset = 0
    for tensor in tensors:
        spec = known.get(tensor.name)
        if spec is None:
            raise RequestInvalid(f"input {tensor.name[:80]!r} is not an input of this model; it has {sorted(known)}")
        what = f"input {tensor.name!r}"
        if tensor.name in arrays:
            raise RequestInvalid(f"{what} is given twice")
        if tensor.datatype != spec.datatype:
            raise RequestInvalid(f"{what} is {tensor.datatype[:16]!r}; the model takes {spec.datatype}")
        # The shape is checked before the data: it says how much of that to believe.
        reason = fits(spec, tensor.shape) if len(tensor.shape) <= RANK_MAX else "has too many axes"
        if reason is not None:
            raise RequestInvalid(f"{what} {reason}")
        _refuse_parameters(what, tensor.parameters)
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            arrays[tensor.name] = _from_json(what, tensor, spec.datatype)
            continue
        if len(tensor.data):
            raise RequestInvalid(f"{what} has both data and binary_data_size")
        if type(size) is not int or not 0 <= size <= len(binary) - offset:
            raise RequestInvalid(
                f"{what} has a binary_data_size of {str(size)[:32]}; {len(binary) - offset} bytes follow"
            )
        arrays[tensor.name] = _from_binary(what, binary[offset : offset + size], tensor.shape, spec.datatype)
        offset += size
    if offset != len(binary):
        raise RequestInvalid(f"{len(binary) - offset} bytes follow the last tensor")
    return arrays


def _refuse_parameters(what: str, parameters: Mapping[str, Any]) -> None:
    for name in _REFUSED_PARAMETERS:
        if name in parameters:
            raise RequestInvalid(f"{what} has the parameter {name}, which this server does not offer")


def _flag(what: str, parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    flag = parameters.get(name, default)
    if not isinstance(flag, bool):
        raise RequestInvalid(f"{what} has a {name} that is not true or false")
    return flag


def _from_binary(what: str, raw: memoryview, shape: Sequence[int], datatype: DataType) -> Array:
    count = math.prod(shape)
    if datatype == "BYTES":
        return _from_elements(what, raw, count).reshape(shape)
    needed = count * DTYPES[datatype].itemsize
    if len(raw) != needed:
        raise RequestInvalid(f"{what} has {len(raw)} bytes; shape {list(shape)} of {datatype} needs {needed}")
    return np.frombuffer(raw, dtype=DTYPES[datatype]).reshape(shape)


def _from_elements(what: str, raw: memoryview, count: int) -> Array:
    """Return the BYTES elements of `raw`, each preceded by its length."""
    if count > len(raw) // _LENGTH.size:
        raise RequestInvalid(f"{what} has {len(raw)} bytes, too few for {count} elements")
    elements = np.empty(count, dtype=object)
    offset = 0
    for index in range(count):
        start = offset + _LENGTH.size
        length = _LENGTH.unpack_from(raw, offset)[0] if start <= len(raw) else len(raw)
        offset = start + length
        if offset > len(raw):
            raise RequestInvalid(f"{what} ends within element {index}")
        elements[index] = bytes(raw[start:offset])
    if offset != len(raw):
        raise RequestInvalid(f"{what} has {len(raw) - offset} bytes after its last element")
    return elements


@cache
def _data_decoder(element: type, depth: int) -> msgspec.json.Decoder[list[Any]]:
    nested: Any = element
    for _ in range(depth):
        nested = list[nested]
    return msgspec.json.Decoder(nested)


def _from_json(what: str, tensor: _Tensor, datatype: DataType) -> Array:
    """Return the array of a JSON input: nested as its shape says, or flat in row-major order."""
    raw = memoryview(tensor.data)
    if not len(raw):
        raise RequestInvalid(f"{what} has neither data nor binary_data_size")
    dtype = DTYPES[datatype]
    element = {"b": bool, "i": int, "u": int, "f": float, "O": str}[dtype.kind]
    depth = max(1, len(tensor.shape)) if _NESTED.match(raw) else 1
    try:
        values = _data_decoder(element, depth).decode(raw)
        if dtype.kind == "O":
            array = np.array(values, dtype=object)
            array = np.array([text.encode() for text in array.ravel().tolist()] + [None], dtype=object)[:-1]
        else:
            with np.errstate(over="ignore"):
                array = np.array(values, dtype=dtype)
    except (msgspec.MsgspecError, ValueError, OverflowError, TypeError, AttributeError, RecursionError) as error:
        raise RequestInvalid(f"{what} has data that is not {datatype}: {error}") from error
    if array.size != math.prod(tensor.shape) or (depth > 1 and dtype.kind != "O" and list(array.shape) != tensor.shape):
        raise RequestInvalid(f"{what} has {array.size} elements; its shape is {tensor.shape}")
    if dtype.kind == "f" and not bool(np.isfinite(array).all()):  # JSON has no infinity: a number was too large.
        raise RequestInvalid(f"{what} has a number that {datatype} cannot hold")
    return array.reshape(tensor.shape)


def _to_binary(array: Array, datatype: DataType) -> bytes | memoryview:
    if datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(element)) + element for element in array.ravel().tolist())
    little = np.ascontiguousarray(array, dtype=DTYPES[datatype])
    return little.reshape(-1).view(np.uint8).data


def _to_json(name: str, array: Array, datatype: DataType) -> list[Any]:
    flat: list[Any] = array.ravel().tolist()
    if datatype != "BYTES":
        return flat
    try:
        return [element.decode() for element in flat]
    except UnicodeDecodeError as error:
        raise RequestInvalid(f"output {name!r} is not UTF-8; ask for it as binary data") from error
