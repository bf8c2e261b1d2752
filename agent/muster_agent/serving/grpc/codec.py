"""Between the messages of the wire and what `serving.v2` checks: requests to calls, answers to bytes.

    ModelInferRequest ──> Known (what everything but the data says; remembered) + blobs ──> tensors of a call
    answered call ──────> ModelInferResponse, as bytes

The encoding of a message is that of its fields one after another, so what all answers to one kind of request begin with
is encoded once. Pure: no server and no clock.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import msgspec
import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from muster_agent.engines.port import Array
from muster_agent.engines.tensors import DTYPES, RANK_MAX, fits
from muster_agent.serving import v2
from muster_agent.serving.call import Call, Raw, Shape
from muster_agent.serving.grpc.messages import CLASSES, Message
from muster_agent.serving.v2 import Ask, Parameter, Provenance, Regions, RequestInvalid
from muster_shared.bundle import DataType, TensorSpec

PARAMETERS_MAX = 64  # Of a request or a tensor.
KNOWN_MAX = 256  # Kinds of request remembered for each release,
KNOWN_BYTES_MAX = 4096  # of at most so many bytes without their data.
_CONTENTS: Mapping[DataType, tuple[str, str]] = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "<i4"),
    "INT16": ("int_contents", "<i4"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "<u4"),
    "UINT16": ("uint_contents", "<u4"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
    "BYTES": ("bytes_contents", "O"),
}
_RAW_OUTPUT = b"\x32"  # Field 6 of ModelInferResponse, with a length.
_INFER_RESPONSE = b"\x12"  # Field 2 of ModelStreamInferResponse, with a length.

_encode = msgspec.json.Encoder().encode
_InferResponse = CLASSES["ModelInferResponse"]


class Known:
    """What a request asks apart from its data, and how answers to it begin."""

    __slots__ = ("ask", "before", "plain", "shapes")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.plain = all(not wanted.classes and wanted.region is None for wanted in ask.wanted)
        self.shapes: tuple[Shape, ...] | None = None
        self.before = b""
        """Of an answer whose outputs have these shapes."""


def parse(kind: str, raw: bytes) -> Message:
    """Return the message `kind`. Raises RequestInvalid: it is none."""
    try:
        return CLASSES[kind].FromString(raw)
    except DecodeError as error:
        raise RequestInvalid(f"the message is not a {kind}: {error}") from error


def filled(kind: str, body: object) -> Message:
    """Return the message `kind` with what `body`, a JSON object of the same names, has for it."""
    return json_format.Parse(_encode(body), CLASSES[kind](), ignore_unknown_fields=True)


def read(
    request: Message, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], known: dict[bytes, Known]
) -> tuple[Known, list[bytes]]:
    """Return what a ModelInferRequest asks, and the tensors that came in it, in its order. Its data are taken out.

    Args:
        known: What was remembered for these inputs and outputs; it grows.
    Raises:
        RequestInvalid: it does not fit `inputs` and `outputs`.
    """
    if len(request.inputs) > v2.TENSORS_MAX or len(request.outputs) > v2.TENSORS_MAX:
        raise RequestInvalid(f"there are more than {v2.TENSORS_MAX} inputs or outputs")
    if len(request.raw_input_contents) > len(request.inputs):
        raise RequestInvalid(f"there are {len(request.raw_input_contents)} raw_input_contents and fewer inputs")
    if len(request.id) > v2.ID_CHARACTERS_MAX:
        raise RequestInvalid(f"id has {len(request.id)} characters; the limit is {v2.ID_CHARACTERS_MAX}")
    blobs: list[bytes] = list(request.raw_input_contents)
    if any(tensor.HasField("contents") for tensor in request.inputs):
        if blobs:
            raise RequestInvalid("there are both contents and raw_input_contents; send all tensors in one of them")
        asked, blobs = _asked(request, iter(()), inputs)
        return Known(v2.check(asked, inputs, outputs)), blobs
    request.ClearField("raw_input_contents")
    request.ClearField("id")
    key = b"%b %b" % (request.SerializeToString(deterministic=True), repr([len(blob) for blob in blobs]).encode())
    found = known.get(key)
    if found is None:
        asked, taken = _asked(request, iter(blobs), inputs)
        if len(taken) != len(blobs):
            raise RequestInvalid(f"there are {len(blobs)} raw_input_contents; {len(taken)} inputs take one")
        found = Known(v2.check(asked, inputs, outputs))
        if len(key) <= KNOWN_BYTES_MAX:
            if len(known) >= KNOWN_MAX:
                known.clear()
            known[key] = found
    return found, blobs


def tensors(ask: Ask, blobs: Sequence[bytes], inputs: Sequence[TensorSpec], regions: Regions) -> tuple[Raw, ...]:
    """Return the tensors of a call, in the manifest's order.

    Raises:
        RequestInvalid: BYTES are damaged.
        MusterError: shared memory cannot be read.
    """
    placed, offset = {0: b""}, 0
    for blob in blobs:
        if blob:  # An empty one begins where the next does.
            placed[offset] = blob
            offset += len(blob)
    found: list[Raw] = []
    for source, spec, shape in zip(ask.sources, inputs, ask.shapes, strict=True):
        if isinstance(source, v2.Region):
            raw = regions.read(source.name, source.offset, source.size)
        else:
            start, stop = cast(tuple[int, int], source)  # `_asked` lets nothing be JSON.
            raw = placed[start] if stop > start else b""
        found.append(v2.as_tensor(raw, spec, ask.rows, shape))
    return tuple(found)


def parameters(given: Mapping[str, Message]) -> dict[str, Parameter]:
    """Return InferParameters as values, without those that hold none. Raises RequestInvalid: there are too many."""
    if not given:
        return {}
    if len(given) > PARAMETERS_MAX:
        raise RequestInvalid(f"there are {len(given)} parameters; the limit is {PARAMETERS_MAX}")
    choices = ((name, each, each.WhichOneof("parameter_choice")) for name, each in given.items())
    return {name: getattr(each, choice) for name, each, choice in choices if choice is not None}


def answer(
    known: Known, call: Call, whose: Provenance, request_id: str, regions: Regions, *, streamed: bool = False
) -> bytes:
    """Return the ModelInferResponse to an answered call.

    Args:
        streamed: It is one of a stream: say that no other follows to the same request, and wrap it as such.
    Raises:
        RequestInvalid: an output does not fit its shared memory, or has no classes.
        MusterError: shared memory cannot be written.
    """
    own = _InferResponse(id=request_id)
    own.parameters["request_id"].string_param = request_id
    if streamed:
        own.parameters["triton_final_response"].bool_param = True
    parts = _plain(known, call, whose) if known.plain else _other(known.ask, call, whose, regions)
    parts.append(own.SerializeToString())
    if streamed:
        parts[:0] = (_INFER_RESPONSE, _varint(sum(len(part) for part in parts)))
    return b"".join(parts)


def _plain(known: Known, call: Call, whose: Provenance) -> list[bytes | memoryview]:
    batch, wanted = call.batch, known.ask.wanted
    assert batch is not None
    shapes = tuple(
        [
            (call.rows, *array.shape[1:]) if batch.rows_axis else array.shape
            for array in [batch.arrays[each.index] for each in wanted]
        ]
    )
    if shapes != known.shapes:
        response = _origin(whose)
        for each, shape in zip(wanted, shapes, strict=True):
            response.outputs.add(name=each.name, datatype=whose.outputs[each.index].datatype, shape=shape)
        known.before, known.shapes = response.SerializeToString(), shapes
    parts: list[bytes | memoryview] = [known.before]
    for each in wanted:
        is_text = whose.outputs[each.index].datatype == "BYTES"
        data = v2.to_binary(call.output(each.index), "BYTES") if is_text else call.raw(each.index)
        parts += (_RAW_OUTPUT, _varint(len(data)), data)
    return parts


def _other(ask: Ask, call: Call, whose: Provenance, regions: Regions) -> list[bytes | memoryview]:
    response = _origin(whose)
    parts: list[bytes | memoryview] = []
    for wanted in ask.wanted:
        array, datatype = v2.output(wanted, call, whose)
        data = v2.to_binary(array, datatype)
        tensor = response.outputs.add(name=wanted.name, datatype=datatype, shape=array.shape)
        if wanted.region is not None:
            _set(tensor.parameters, v2.to_region(wanted.name, wanted.region, data, regions))
            data = b""  # Readers find raw contents by the place of the output.
        parts += (_RAW_OUTPUT, _varint(len(data)), data)
    return [response.SerializeToString(), *parts]


def _origin(whose: Provenance) -> Message:
    response = _InferResponse(model_name=whose.model, model_version=whose.version)
    _set(response.parameters, whose.parameters)
    return response


def _set(into: Mapping[str, Message], values: Mapping[str, Parameter]) -> None:
    for name, value in values.items():
        match value:
            case bool():
                into[name].bool_param = value
            case int():
                into[name].int64_param = value
            case float():
                into[name].double_param = value
            case str():
                into[name].string_param = value


def _asked(request: Message, raw: Iterator[bytes], inputs: Sequence[TensorSpec]) -> tuple[v2.Request, list[bytes]]:
    """Return the request in the codec's form, and its data in its order, which the form takes to follow it."""
    specs = {spec.name: spec for spec in inputs}
    blobs: list[bytes] = []
    asked: list[v2.Tensor] = []
    for tensor in request.inputs:
        shape = tensor.shape[: RANK_MAX + 1]
        given = parameters(tensor.parameters)
        given.pop("binary_data_size", None)  # HTTP's; here the data say it.
        if "shared_memory_region" in given:
            if tensor.HasField("contents"):
                raise RequestInvalid(f"input {tensor.name[:80]!r} has both contents and shared memory")
        else:
            blob = _from_contents(tensor, shape, specs) if tensor.HasField("contents") else next(raw, None)
            if blob is None:
                raise RequestInvalid(f"input {tensor.name[:80]!r} has no data: send contents or raw_input_contents")
            blobs.append(blob)
            given["binary_data_size"] = len(blob)
        asked.append(v2.Tensor(tensor.name, shape, tensor.datatype, given))
    outputs = [v2.Output(output.name, parameters(output.parameters)) for output in request.outputs]
    return v2.Request(inputs=asked, outputs=outputs, parameters=parameters(request.parameters)), blobs


def _from_contents(tensor: Message, shape: list[int], specs: Mapping[str, TensorSpec]) -> bytes:
    """Return the binary tensor in InferTensorContents; nothing for an input that is refused anyway."""
    spec = specs.get(tensor.name)
    if spec is None or tensor.datatype != spec.datatype or fits(spec, shape) is not None:
        return b""
    what = f"input {tensor.name!r}"
    if spec.datatype not in _CONTENTS:
        raise RequestInvalid(f"{what} is {spec.datatype}, which contents cannot hold; send raw_input_contents")
    field, kind = _CONTENTS[spec.datatype]
    for filled_field, _ in tensor.contents.ListFields():
        if filled_field.name != field:
            raise RequestInvalid(f"{what} has {filled_field.name}; {spec.datatype} is sent as {field}")
    elements = getattr(tensor.contents, field)
    count = math.prod(shape)
    if len(elements) != count:
        raise RequestInvalid(f"{what} has {len(elements)} elements; its shape is {shape}")
    wide: Array = np.fromiter(elements, np.dtype(kind), count)
    if spec.datatype != "BYTES":
        narrow = wide.astype(DTYPES[spec.datatype])
        if narrow.dtype != wide.dtype and not np.array_equal(narrow, wide):
            raise RequestInvalid(f"{what} has a number that {spec.datatype} cannot hold")
        wide = narrow
    return bytes(v2.to_binary(wide, spec.datatype))


def _varint(number: int) -> bytes:
    """Return a length as protobuf encodes it: seven bits a byte, the lowest first."""
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
