"""The Open Inference Protocol (V2) codec: request bodies to raw tensors, answers to response bodies, JSON or binary.

    body = JSON header [ + the binary tensors, in the order of the header ]
           `Inference-Header-Content-Length` is the length of the JSON; absent: all is JSON; 0: all is one raw tensor

    understand(header) ──> Ask ──> tensors(body)        an Ask of binary tensors holds for every body with this header

Pure: no HTTP, no engine. Sources: KServe's Open Inference Protocol; Triton's binary tensor data, shared memory,
sequence and classification extensions. `serving.shared_memory` opens what `Region` names.
"""

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import msgspec
import numpy as np

from muster_agent.engines.port import Array
from muster_agent.engines.tensors import DTYPES, RANK_MAX, fits
from muster_agent.serving.call import Call, Priority, Raw, Shape
from muster_shared.bundle import DataType, TensorSpec
from muster_shared.errors import MusterError
from muster_shared.undecodable import UNDECODABLE, reason

ID_CHARACTERS_MAX = 256
TENSORS_MAX = 64
SEQUENCE_CHARACTERS_MAX = 128
CLASSES_MAX = 10_000
_NESTED = re.compile(rb"\s*\[\s*\[")
_LENGTH = struct.Struct("<I")
_PRIORITIES: dict[object, Priority] = {
    "now": Priority.NOW,
    "soon": Priority.SOON,
    "later": Priority.LATER,
    1: Priority.NOW,
    2: Priority.SOON,
    3: Priority.LATER,
}

Parameter = str | int | float | bool


class RequestInvalid(MusterError):
    """A V2 request that does not say what it must; the message names the tensor or the field."""


class Tensor(msgspec.Struct):
    """One input of a request. Its data are `data`, follow the header (`binary_data_size`) or lie in shared memory."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class Output(msgspec.Struct):
    """One output that a request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class Request(msgspec.Struct):
    """A request as a front parsed it; `check` believes nothing of it."""

    inputs: list[Tensor]
    id: str = ""
    outputs: list[Output] = []
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


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a registered shared memory region."""

    name: str
    offset: int
    size: int


class Regions(Protocol):
    """Where tensors in shared memory are read and written. Raises MusterError."""

    def read(self, name: str, offset: int, size: int, /) -> bytes: ...

    def write(self, name: str, offset: int, data: bytes | memoryview, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output that the caller asked for, and how it is to be sent."""

    index: int
    """In the manifest's outputs."""
    name: str
    binary: bool
    classes: int = 0
    """Only the best so many, as text; 0: the tensor itself."""
    region: Region | None = None


Source = tuple[int, int] | Region | bytes | Array
"""Where a tensor is: bytes from and to after the header, shared memory, or here, as it came in JSON."""


@dataclass(eq=False, slots=True)
class Ask:
    """What the JSON header of a request asks, checked against the manifest."""

    id: str
    """As the caller gave it; empty when not."""
    sources: tuple[Source, ...]
    """Of each input, in the manifest's order."""
    shapes: tuple[Shape, ...]
    """Of each input, without a free axis 0."""
    rows: int
    wanted: tuple[Wanted, ...]
    tail_bytes: int
    """How many must follow the header."""
    priority: Priority | None = None
    timeout_us: int = 0
    sequence: tuple[int | str, bool, bool] | None = None
    key: str = ""
    """What a canary's share sticks to."""
    is_tail: bool = False
    """Whether what follows the header is the one input, as it is."""
    template: "Template | None" = None
    """Of the last answer."""

    @property
    def reusable(self) -> bool:
        """Whether another body with the same header asks the same: nothing of the data was in the header."""
        return all(isinstance(source, tuple | Region) for source in self.sources)


_request = msgspec.json.Decoder(Request)
_encode = msgspec.json.Encoder().encode


def understand(header: bytes | memoryview, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Ask:
    """Return what the JSON `header` asks.

    Raises:
        RequestInvalid: it does not parse, or does not fit `inputs` and `outputs`.
    """
    try:
        request = _request.decode(header)
    except UNDECODABLE as error:
        raise RequestInvalid(f"the request does not parse: {reason(error)}") from error
    return check(request, inputs, outputs)


def check(request: Request, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Ask:
    """Return what `request` asks, for a front that parses by itself.

    Raises:
        RequestInvalid: it does not fit `inputs` and `outputs`.
    """
    if len(request.id) > ID_CHARACTERS_MAX:
        raise RequestInvalid(f"id has {len(request.id)} characters; the limit is {ID_CHARACTERS_MAX}")
    if len(request.inputs) > TENSORS_MAX or len(request.outputs) > TENSORS_MAX:
        raise RequestInvalid(f"there are more than {TENSORS_MAX} inputs or outputs")
    sources, full, tail_bytes = _sources(request.inputs, inputs)
    shapes, rows = without_rows(inputs, full)
    parameters = request.parameters
    priority = parameters.get("priority") or None
    if priority is not None and (not isinstance(priority, str | int) or priority not in _PRIORITIES):
        raise RequestInvalid(f"priority {str(priority)[:32]!r} is not now, soon or later")
    return Ask(
        id=request.id,
        sources=sources,
        shapes=shapes,
        rows=rows,
        wanted=_wanted(request, outputs),
        tail_bytes=tail_bytes,
        priority=None if priority is None else _PRIORITIES[priority],
        timeout_us=_count("the request", parameters, "timeout"),
        sequence=_sequence(parameters),
        key=_text(parameters, "request_key"),
        is_tail=len(inputs) == 1 and inputs[0].datatype != "BYTES" and sources == ((0, tail_bytes),),
    )


def understand_raw(size: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Ask:
    """Return what a body of `size` bytes without a header asks: it is the one input, and its free size follows."""
    if len(inputs) != 1:
        raise RequestInvalid(f"the model has {len(inputs)} inputs; only one alone can come as a raw body")
    spec = inputs[0]
    free = [axis for axis, extent in enumerate(spec.shape) if extent == -1]
    if len(free) > 1 or spec.datatype == "BYTES":
        raise RequestInvalid(
            f"input {spec.name!r} cannot come as a raw body: its shape does not follow from the length"
        )
    row = math.prod(extent for extent in spec.shape if extent != -1) * DTYPES[spec.datatype].itemsize
    count, rest = divmod(size, row)
    if rest or not count or (not free and count != 1):
        raise RequestInvalid(f"input {spec.name!r} has {size} bytes; it takes {row} each")
    full = [tuple(count if extent == -1 else extent for extent in spec.shape)]
    shapes, rows = without_rows(inputs, full)
    wanted = tuple(Wanted(index, output.name, binary=True) for index, output in enumerate(outputs))
    return Ask(id="", sources=((0, size),), shapes=shapes, rows=rows, wanted=wanted, tail_bytes=size, is_tail=True)


def without_rows(specs: Sequence[TensorSpec], full: Sequence[Shape]) -> tuple[tuple[Shape, ...], int]:
    """Return the shapes without the batch, and the batch. Raises RequestInvalid when inputs disagree on it."""
    rows = 0
    first = ""
    shapes: list[Shape] = []
    for spec, shape in zip(specs, full, strict=True):
        if not spec.shape or spec.shape[0] != -1:
            shapes.append(tuple(shape))
            continue
        if rows and shape[0] != rows:
            raise RequestInvalid(f"input {spec.name!r} has a batch of {shape[0]}, but {first!r} has {rows}")
        rows, first = shape[0], first or spec.name
        shapes.append(tuple(shape[1:]))
    return tuple(shapes), rows or 1


def tensors(ask: Ask, body: bytes, offset: int, inputs: Sequence[TensorSpec], regions: Regions) -> tuple[Raw, ...]:
    """Return the tensors of the request whose header ends at `offset` in `body`.

    Raises:
        RequestInvalid: more or fewer bytes follow than the header says, or BYTES are damaged.
        MusterError: shared memory cannot be read.
    """
    if len(body) - offset != ask.tail_bytes:
        raise RequestInvalid(f"{len(body) - offset} bytes follow the header, which announces {ask.tail_bytes}")
    if ask.is_tail:
        return (body[offset:],)
    return tuple(
        [
            _tensor(source, spec, body, offset, ask.rows, shape, regions)
            for source, spec, shape in zip(ask.sources, inputs, ask.shapes, strict=True)
        ]
    )


def _tensor(
    source: Source, spec: TensorSpec, body: bytes, offset: int, rows: int, shape: Shape, regions: Regions
) -> Raw:
    raw: bytes
    if isinstance(source, tuple):
        raw = body[offset + source[0] : offset + source[1]]
    elif isinstance(source, Region):
        raw = regions.read(source.name, source.offset, source.size)
    else:
        return source
    return as_tensor(raw, spec, rows, shape)


def as_tensor(raw: bytes, spec: TensorSpec, rows: int, shape: Shape) -> Raw:
    """Return what calls hold of a binary tensor: itself, or its elements. Raises RequestInvalid: BYTES are damaged."""
    if spec.datatype != "BYTES":
        return raw
    full = (rows, *shape) if spec.shape and spec.shape[0] == -1 else shape
    return _from_elements(f"input {spec.name!r}", memoryview(raw), math.prod(full)).reshape(full)


@dataclass(frozen=True, eq=False)
class Provenance:
    """Whose answer it is: what every answer of one served release carries."""

    model: str
    version: str
    parameters: Mapping[str, Parameter]
    outputs: Sequence[TensorSpec]
    labels: Sequence[str]


@dataclass(eq=False, slots=True)
class Template:
    """The answer to one Ask whose outputs are all binary, but for the id and the data."""

    is_fixed: bool
    """Whether every answer to the Ask has these shapes."""
    shapes: tuple[Shape, ...]
    before: bytes
    between: bytes
    after: bytes
    header_bytes: int
    """Of all the JSON, with ids of ours, which have one length."""
    data_bytes: int
    """Of what follows it."""
    head: bytes = b""
    """What a front puts before every such answer."""


_ID = "0" * 24 + "muster-id"


def template(ask: Ask, call: Call, whose: Provenance, request_id: str) -> Template | None:
    """Return the template of the answer to `ask`, kept there; None when some output is not plainly binary.

    Only for ids of our own: another may need escapes.
    """
    batch = call.batch
    assert batch is not None
    known = ask.template
    if known is not None and known.is_fixed:
        return known
    shapes = tuple(
        (call.rows, *array.shape[1:]) if batch.rows_axis else array.shape
        for array in [batch.arrays[wanted.index] for wanted in ask.wanted]
    )
    if known is not None and known.shapes == shapes:
        return known
    if any(
        not wanted.binary or wanted.classes or wanted.region or whose.outputs[wanted.index].datatype == "BYTES"
        for wanted in ask.wanted
    ):
        return None
    outputs = [
        _ResponseTensor(wanted.name, spec.datatype, shape, {"binary_data_size": size})
        for wanted, shape in zip(ask.wanted, shapes, strict=True)
        for spec in [whose.outputs[wanted.index]]
        for size in [math.prod(shape) * DTYPES[spec.datatype].itemsize]
    ]
    header = _encode(_Response(whose.model, whose.version, _ID, {**whose.parameters, "request_id": _ID}, outputs))
    before, between, after = header.split(_ID.encode())
    header_bytes = len(before) + len(between) + len(after) + 2 * len(request_id)
    data_bytes = sum(int(tensor.parameters["binary_data_size"]) for tensor in outputs)
    is_fixed = all(-1 not in whose.outputs[wanted.index].shape[batch.rows_axis :] for wanted in ask.wanted)
    ask.template = Template(is_fixed, shapes, before, between, after, header_bytes, data_bytes)
    return ask.template


def encode(
    ask: Ask, call: Call, whose: Provenance, request_id: str, regions: Regions
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the parts of the response body, and the length of its JSON header (None when all of it is JSON).

    A NaN in a JSON output is `null`: JSON has no other word for it.

    Raises:
        RequestInvalid: a BYTES output is asked for as JSON but is not UTF-8, or does not fit its shared memory.
        MusterError: shared memory cannot be written.
    """
    answers: list[_ResponseTensor] = []
    blobs: list[bytes | memoryview] = []
    for wanted in ask.wanted:
        array, datatype = output(wanted, call, whose)
        tensor = _ResponseTensor(wanted.name, datatype, array.shape)
        if wanted.region is not None:
            tensor.parameters = to_region(wanted.name, wanted.region, to_binary(array, datatype), regions)
        elif wanted.binary:
            blob = to_binary(array, datatype)
            tensor.parameters = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            tensor.data = _to_json(wanted.name, array, datatype)
        answers.append(tensor)
    header = _encode(
        _Response(whose.model, whose.version, request_id, {**whose.parameters, "request_id": request_id}, answers)
    )
    return [header, *blobs], len(header) if blobs else None


def output(wanted: Wanted, call: Call, whose: Provenance) -> tuple[Array, DataType]:
    """Return one output of an answered call as it was asked for: the tensor, or the best classes as texts."""
    array = call.output(wanted.index)
    if wanted.classes:
        return _best(wanted, array, whose.labels), "BYTES"
    return array, whose.outputs[wanted.index].datatype


def to_region(name: str, region: Region, blob: bytes | memoryview, regions: Regions) -> dict[str, Parameter]:
    """Write output `name` to shared memory, and return the parameters that say where it is.

    Raises:
        RequestInvalid: it does not fit.
        MusterError: the memory cannot be written.
    """
    if len(blob) > region.size:
        raise RequestInvalid(f"output {name!r} has {len(blob)} bytes; its shared memory takes {region.size}")
    regions.write(region.name, region.offset, blob)
    return {
        "shared_memory_region": region.name,
        "shared_memory_offset": region.offset,
        "shared_memory_byte_size": len(blob),
    }


def _best(wanted: Wanted, array: Array, labels: Sequence[str]) -> Array:
    """Return the classification extension's texts, `value:index[:label]`, best first: [rows, classes]."""
    if array.dtype.kind not in "iufb":
        raise RequestInvalid(f"output {wanted.name!r} has no classes")
    scores = array.reshape(-1) if array.ndim < 2 else array.reshape(array.shape[0], -1)
    rows = scores[np.newaxis] if scores.ndim == 1 else scores
    count = min(wanted.classes, rows.shape[1])
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts = np.empty((len(rows), count), dtype=object)
    for row, indices in enumerate(order.tolist()):
        for column, index in enumerate(indices):
            label = f":{labels[index]}" if index < len(labels) else ""
            texts[row, column] = f"{float(rows[row, index]):f}:{index}{label}".encode()
    return texts if scores.ndim == 2 else texts[0]


def _wanted(request: Request, outputs: Sequence[TensorSpec]) -> tuple[Wanted, ...]:
    default = _flag("the request", request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return tuple(Wanted(index, spec.name, default) for index, spec in enumerate(outputs))
    known = {spec.name: index for index, spec in enumerate(outputs)}
    found: dict[str, Wanted] = {}
    for output in request.outputs:
        if output.name not in known:
            raise RequestInvalid(f"output {output.name[:80]!r} is not an output of this model; it has {sorted(known)}")
        if output.name in found:
            raise RequestInvalid(f"output {output.name!r} is asked for twice")
        what = f"output {output.name!r}"
        region = _region(what, output.parameters)
        classes = _count(what, output.parameters, "classification")
        if classes > CLASSES_MAX:
            raise RequestInvalid(f"{what} asks for {classes} classes; the limit is {CLASSES_MAX}")
        binary = _flag(what, output.parameters, "binary_data", default=default)
        if binary and region is not None and "binary_data" in output.parameters:
            raise RequestInvalid(f"{what} asks for both binary data and shared memory")
        found[output.name] = Wanted(known[output.name], output.name, binary, classes, region)
    return tuple(found.values())


def _sources(given: Sequence[Tensor], specs: Sequence[TensorSpec]) -> tuple[tuple[Source, ...], list[Shape], int]:
    """Return, in the order of `specs`, where each tensor is and its shape; and how many bytes follow the header."""
    known = {spec.name: spec for spec in specs}
    found: dict[str, tuple[Source, Shape]] = {}
    offset = 0
    for tensor in given:
        spec = known.get(tensor.name)
        if spec is None:
            raise RequestInvalid(f"input {tensor.name[:80]!r} is not an input of this model; it has {sorted(known)}")
        what = f"input {tensor.name!r}"
        if tensor.name in found:
            raise RequestInvalid(f"{what} is given twice")
        if tensor.datatype != spec.datatype:
            raise RequestInvalid(f"{what} is {tensor.datatype[:16]!r}; the model takes {spec.datatype}")
        # The shape is checked before the data: it says how much of that to believe.
        reason = fits(spec, tensor.shape) if len(tensor.shape) <= RANK_MAX else "has too many axes"
        if reason is not None:
            raise RequestInvalid(f"{what} {reason}")
        shape = tuple(tensor.shape)
        size = tensor.parameters.get("binary_data_size")
        region = _region(what, tensor.parameters)
        if len(tensor.data) and (size is not None or region is not None):
            raise RequestInvalid(
                f"{what} has both data and {'binary_data_size' if region is None else 'shared memory'}"
            )
        if region is not None:
            _check_size(what, region.size, shape, spec.datatype)
            found[tensor.name] = region, shape
        elif size is None:
            found[tensor.name] = _from_json(what, tensor, spec.datatype), shape
        else:
            if type(size) is not int or not 0 <= size < 1 << 40:
                raise RequestInvalid(f"{what} has a binary_data_size of {str(size)[:32]}")
            _check_size(what, size, shape, spec.datatype)
            found[tensor.name] = (offset, offset + size), shape
            offset += size
    for spec in specs:
        if spec.name not in found:
            raise RequestInvalid(f"input {spec.name!r} is missing")
    return tuple(found[spec.name][0] for spec in specs), [found[spec.name][1] for spec in specs], offset


def _check_size(what: str, size: int, shape: Shape, datatype: DataType) -> None:
    if datatype == "BYTES":
        return  # Its elements say their own lengths.
    needed = math.prod(shape) * DTYPES[datatype].itemsize
    if size != needed:
        raise RequestInvalid(f"{what} has {size} bytes; shape {list(shape)} of {datatype} needs {needed}")


def _region(what: str, parameters: Mapping[str, Any]) -> Region | None:
    name = parameters.get("shared_memory_region")
    if name is None:
        return None
    if not isinstance(name, str) or len(name) > ID_CHARACTERS_MAX:
        raise RequestInvalid(f"{what} has a shared_memory_region that is not a name")
    if "shared_memory_byte_size" not in parameters:
        raise RequestInvalid(f"{what} names shared memory without shared_memory_byte_size")
    return Region(
        name, _count(what, parameters, "shared_memory_offset"), _count(what, parameters, "shared_memory_byte_size")
    )


def _sequence(parameters: Mapping[str, Any]) -> tuple[int | str, bool, bool] | None:
    name = parameters.get("sequence_id")
    if name in (None, 0, ""):
        return None
    if not isinstance(name, int | str) or isinstance(name, bool) or len(str(name)) > SEQUENCE_CHARACTERS_MAX:
        raise RequestInvalid("sequence_id is not a number or a short text")
    start = _flag("the request", parameters, "sequence_start", default=False)
    return name, start, _flag("the request", parameters, "sequence_end", default=False)


def _flag(what: str, parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    flag = parameters.get(name, default)
    if not isinstance(flag, bool):
        raise RequestInvalid(f"{what} has a {name} that is not true or false")
    return flag


def _count(what: str, parameters: Mapping[str, Any], name: str) -> int:
    count = parameters.get(name, 0)
    # tritonclient sends some numbers as text.
    if isinstance(count, str) and count.isascii() and count.isdigit() and len(count) < 19:
        count = int(count)
    if type(count) is not int or not 0 <= count < 1 << 60:
        raise RequestInvalid(f"{what} has a {name} that is not a count")
    return count


def _text(parameters: Mapping[str, Any], name: str) -> str:
    text = parameters.get(name, "")
    if not isinstance(text, str) or len(text) > ID_CHARACTERS_MAX:
        raise RequestInvalid(f"the request has a {name} that is not a short text")
    return text


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


def _from_json(what: str, tensor: Tensor, datatype: DataType) -> bytes | Array:
    """Return the tensor of a JSON input: nested as its shape says, or flat in row-major order."""
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
            texts = [text.encode() for text in array.ravel().tolist()]
            array = np.array([*texts, None], dtype=object)[:-1].reshape(array.shape)
        else:
            with np.errstate(over="ignore"):
                array = np.array(values, dtype=dtype)
    except (msgspec.MsgspecError, ValueError, OverflowError, TypeError, AttributeError, RecursionError) as error:
        raise RequestInvalid(f"{what} has data that is not {datatype}: {reason(error)}") from error
    if array.size != math.prod(tensor.shape) or (depth > 1 and list(array.shape) != tensor.shape):
        raise RequestInvalid(f"{what} has {array.size} elements; its shape is {tensor.shape}")
    if dtype.kind == "f" and not bool(np.isfinite(array).all()):  # JSON has no infinity: a number was too large.
        raise RequestInvalid(f"{what} has a number that {datatype} cannot hold")
    array = array.reshape(tensor.shape)
    return array if dtype.kind == "O" else array.tobytes()


def to_binary(array: Array, datatype: DataType) -> bytes | memoryview:
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
