"""Targets of the serving fronts: V2 requests, HTTP, frames in both directions, gRPC messages, and chunks."""

import json
from typing import Any

import msgspec

from fuzz.target import Target, once
from harness.memory_wire import Clock, Wire
from muster_agent.client.frames import HEAD, PREFACE, Attach, Frame, FrameInvalid, Hello, Inbound, Kind, frame
from muster_agent.core import transfer
from muster_agent.serving import v2
from muster_agent.serving.call import Raw
from muster_agent.serving.grpc import codec
from muster_agent.serving.grpc.codec import Known
from muster_agent.serving.http import Connection, HttpServer, Limits, Request, Response
from muster_shared.bundle import DataType, TensorSpec, describe_file
from muster_shared.errors import MusterError

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
TEXT = TensorSpec(name="t", datatype="BYTES", shape=(-1,))
FREE = TensorSpec(name="n", datatype="INT64", shape=(-1, -1))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
MODELS: tuple[tuple[TensorSpec, ...], ...] = ((X,), (X, TEXT), (FREE,))
"""The inputs of three models: of one fixed row, with text, of any size."""


class _Memory:
    """Regions of shared memory that are zeros, up to 1 KiB."""

    def read(self, name: str, offset: int, size: int, /) -> bytes:
        if offset + size > 1024:
            raise v2.RequestInvalid("beyond the region")
        return bytes(size)

    def write(self, name: str, offset: int, data: bytes | memoryview, /) -> object:
        return self.read(name, offset, len(data))


MEMORY = _Memory()


# -- V2 ----------------------------------------------------------------------------------------------------------------


def _header(inputs: list[dict[str, Any]], **more: Any) -> bytes:
    return json.dumps({"id": "7", "inputs": inputs, **more}).encode()


@once
def v2_seeds() -> list[bytes]:
    """JSON header, a zero byte, then what follows it."""
    plain = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [[1, 2, 3], [4.5, 5, 6]]}
    binary = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    text = {"name": "t", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}
    words = {"name": "t", "shape": [2], "datatype": "BYTES", "data": ["a", "é"]}
    shared = {"shared_memory_region": "r", "shared_memory_offset": 0, "shared_memory_byte_size": 16}
    free = {"name": "n", "shape": [1, 2], "datatype": "INT64", "parameters": shared}
    asked = {"outputs": [{"name": "y", "parameters": {"classification": 2, "binary_data": True}}]}
    more = {"parameters": {"priority": "now", "timeout": 5, "sequence_id": 3, "sequence_start": True}}
    return [
        _header([plain], **asked),
        _header([plain, words], **more),
        _header([binary]) + b"\0" + bytes(12),
        _header([binary, text]) + b"\0" + bytes(12) + b"\2\0\0\0ab",
        _header([free], **asked),
    ]


def ask_v2(data: bytes) -> None:
    """A request that is understood has just the elements that its shapes say."""
    header, _, tail = data.partition(b"\0")
    refusal: MusterError | None = None
    for inputs in MODELS:
        try:
            ask = v2.understand(header, inputs, (Y,))
            given = v2.tensors(ask, tail, 0, inputs, MEMORY)
        except MusterError as error:
            refusal = error
            continue
        _fits(ask, given, inputs)
    raw = v2.understand_raw(len(tail), (X,), (Y,)) if tail else None
    if raw is not None:
        assert raw.rows * 12 == len(tail)
    if refusal is not None:
        raise refusal


def _fits(ask: v2.Ask, given: tuple[Raw, ...], inputs: tuple[TensorSpec, ...]) -> None:
    assert ask.rows >= 1
    assert len(given) == len(inputs) == len(ask.shapes)
    for tensor, spec, shape in zip(given, inputs, ask.shapes, strict=True):
        rows = ask.rows if spec.shape[0] == -1 else 1
        count = rows
        for size in shape:
            count *= size
        if isinstance(tensor, bytes):
            assert len(tensor) == count * SIZES[spec.datatype], "as many bytes as the shape says"
        else:
            assert tensor.size == count, "as many elements as the shape says"


SIZES: dict[DataType, int] = {"FP32": 4, "INT64": 8}


# -- gRPC --------------------------------------------------------------------------------------------------------------


@once
def grpc_seeds() -> list[bytes]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
    contents = {**tensor, "contents": {"fp32_contents": [1.0, 2.0, 3.0]}}
    text = {"name": "t", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": ["YWI="]}}
    parameters = {"parameters": {"sequence_id": {"int64_param": 4}, "priority": {"string_param": "now"}}}
    raw = {"raw_input_contents": ["AAAAAAAAAAAAAAAA"]}
    asked = {"outputs": [{"name": "y", "parameters": {"classification": {"int64_param": 1}}}]}
    bodies: list[dict[str, Any]] = [
        {"model_name": "m", "id": "7", "inputs": [tensor], **raw, **parameters},
        {"model_name": "m", "inputs": [contents], **asked},
        {"model_name": "m", "inputs": [contents, text]},
    ]
    return [codec.filled("ModelInferRequest", body).SerializeToString() for body in bodies]


def read_grpc(data: bytes) -> None:
    refusal: MusterError | None = None
    for inputs in MODELS:
        try:
            known: dict[bytes, Known] = {}
            found, blobs = codec.read(codec.parse("ModelInferRequest", data), inputs, (Y,), known)
            _fits(found.ask, codec.tensors(found.ask, blobs, inputs, MEMORY), inputs)
        except MusterError as error:
            refusal = error
    if refusal is not None:
        raise refusal


# -- HTTP --------------------------------------------------------------------------------------------------------------

LIMITS = Limits(header_bytes=2048, body_bytes=4096, connections=4)


@once
def http_seeds() -> list[bytes]:
    body = b'{"inputs": []}'
    return [
        b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n" * 2,
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: here\r\nContent-Length: 14\r\nX-A: b\r\n\r\n" + body,
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n",
        b"POST /a HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n\r\nxy",
        b"HEAD /a?q HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nInference-Header-Content-Length: 4"
        b"\r\n\r\n",
    ]


def speak_http(data: bytes) -> None:
    """Cut in three or whole, the same requests are seen, within the limits; no stranger causes an error of ours."""
    whole, pieces = _asked(data, (len(data),)), _asked(data, (len(data) // 3, 2 * len(data) // 3, len(data)))

    assert whole == pieces, "what is asked must not depend on how it is cut"


def _asked(data: bytes, ends: tuple[int, ...]) -> list[tuple[bytes, str, bytes]]:
    asked: list[tuple[bytes, str, bytes]] = []

    def handle(request: Request) -> Response:
        assert len(request.body) <= LIMITS.body_bytes
        asked.append((request.method, request.path, request.body))
        return Response(200, [b"{}"])

    connection, wire = Connection(HttpServer(handle, LIMITS, Clock())), Wire()
    connection.connection_made(wire)
    start = 0
    for end in ends:
        if not wire.over:
            connection.data_received(data[start:end])
        start = end
    assert b" 500 " not in bytes(wire.written)
    connection.connection_lost(None)
    return asked


# -- frames ------------------------------------------------------------------------------------------------------------


@once
def frame_seeds() -> list[bytes]:
    encode = msgspec.json.encode
    infer = [frame(Kind.INFER, bytes([step] * 12), handle=1, sequence=step) for step in range(6)]
    return [
        frame(Kind.HELLO, encode(Hello(token="t"))) + frame(Kind.ATTACH, encode(Attach("m"))) + frame(Kind.PING),
        b"".join(infer),
        frame(Kind.INFER, b"", handle=2, extra=7) * 3 + frame(Kind.DETACH, handle=2),
        frame(Kind.ERROR, b'{"error":"x"}', sequence=0xFFFFFFFF) + frame(Kind.REGION, extra=4, handle=1),
    ]


def feed_frames(data: bytes) -> None:
    """Runs or singles, whole or cut: the same frames come out."""
    singles = _frames(data, runs=False, cut=len(data))
    assert _frames(data, runs=True, cut=len(data)) == singles
    assert _frames(data, runs=True, cut=17) == singles
    assert sum(HEAD.size + len(payload) for *_, payload in singles) <= len(data)


Told = tuple[int, int, int, int, int, bytes]


def _frames(data: bytes, *, runs: bool, cut: int) -> list[Told]:
    inbound = Inbound(4096, runs=runs)
    told: list[Told] = []

    def tell(received: Frame) -> None:
        for index in range(received.count):
            one = received.part(index, 1)
            told.append((one.kind, one.flags, one.handle, one.extra, one.sequence, bytes(one.payload)))

    try:
        for start in range(0, len(data), max(1, cut)):
            for received in inbound.feed(data[start : start + cut]):
                tell(received)
    except FrameInvalid:
        pass  # What came before in the same piece is lost with the connection.
        told = told if cut >= len(data) and not told else []
    return told


# -- chunks ------------------------------------------------------------------------------------------------------------

CHUNK = 1024
CONTENT = bytes(range(256)) * 18
FILE = describe_file("m", CONTENT, CHUNK)
PARTS = [CONTENT[start : start + CHUNK] for start in range(0, len(CONTENT), CHUNK)]


def gather_chunks(data: bytes) -> None:
    """Whatever comes, in whatever order: a file is complete when every chunk was right once; nothing else is kept."""
    state, want = transfer.begin(FILE, (), 0.0)
    written: set[int] = set()
    now = 0.0
    for position, byte in enumerate(data[:512]):
        index, what = byte & 0x7, byte >> 3
        now += 0.1 * (what & 3)
        chunk = PARTS[index] if index < len(PARTS) else b"beyond"
        if what & 4:
            chunk = data[position : position + what]
        if what & 8:
            index += 1 << (what & 15)
        state, arrival = transfer.arrive(state, index, chunk, now)
        if arrival is transfer.Arrival.WRITE:
            assert chunk == PARTS[index]
            written.add(index)
        state, want = transfer.ask(state, now)
        if want is not None:
            assert len(want.missing) <= transfer.WINDOW_CHUNKS
            assert not written & set(want.missing)
        assert state.complete == (written == set(range(len(PARTS))))
        assert state.bytes_here <= FILE.length


HTTP_WORDS = (
    b"\r\n",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.1",
    b" ",
    b":",
    b"0\r\n\r\n",
    b"\0",
    b"GET ",
    PREFACE,
)
TARGETS = (
    Target("v2", ask_v2, v2_seeds),
    Target("grpc", read_grpc, grpc_seeds),
    Target("http", speak_http, http_seeds, (), HTTP_WORDS, bytes_max=16 * 1024),
    Target("frames", feed_frames, frame_seeds, (), bytes_max=16 * 1024),
    Target("chunks", gather_chunks, lambda: (bytes(range(5)), b"\x24\x01" * 20), (), bytes_max=512),
)
