"""The frames protocol without sockets: bytes to frames, tensors to payloads, slots to offsets, the client's side."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.client.dialogue import Answer, Dialogue, Handle, request
from muster_agent.client.errors import InputRefused, Overloaded, ProtocolBroken, SchemaChanged, TooLate, Unreachable
from muster_agent.client.frames import (
    ANSWER_HEAD,
    HEAD,
    HEAD_BYTES,
    META,
    PAYLOAD_BYTES_MAX,
    PREFACE,
    SHAPED,
    Attach,
    Frame,
    FrameInvalid,
    Inbound,
    Kind,
    Refusal,
    Welcome,
    frame,
)
from muster_agent.client.layout import LINE_BYTES, Layout, RegionInvalid
from muster_agent.client.schema import Release, Side
from muster_agent.engines import port
from muster_agent.engines.port import Array
from muster_shared.bundle import DataType, TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))

Told = tuple[int, int, int, int, int, bytes]
frames = st.lists(
    st.builds(
        lambda kind, payload, flags, handle, extra, sequence, repeats: (
            kind,
            payload,
            flags,
            handle,
            extra,
            sequence,
            repeats,
        ),
        st.sampled_from([Kind.INFER, Kind.INFER, Kind.PING, Kind.ANSWER]),
        st.binary(max_size=40),
        st.integers(0, 3),
        st.integers(1, 2),
        st.integers(0, 1),
        st.one_of(st.integers(0, 50), st.just(0xFFFFFFFE)),
        st.integers(1, 6),
    ),
    max_size=8,
)


def wire(described: Sequence[tuple[Kind, bytes, int, int, int, int, int]]) -> tuple[bytes, list[Told]]:
    """Return bytes, and what each frame in them is; `repeats` makes runs that differ in payload and sequence."""
    raw, told = b"", []
    for kind, payload, flags, handle, extra, sequence, repeats in described:
        for step in range(repeats):
            number = (sequence + step) & 0xFFFFFFFF
            body = bytes((byte + step) & 0xFF for byte in payload)
            raw += frame(kind, body, flags=flags, handle=handle, extra=extra, sequence=number)
            told.append((kind, flags, handle, extra, number, body))
    return raw, told


def tell(received: Sequence[Frame]) -> list[Told]:
    singles = [each.part(index, 1) for each in received for index in range(each.count)]
    return [(each.kind, each.flags, each.handle, each.extra, each.sequence, bytes(each.payload)) for each in singles]


@given(frames, st.lists(st.integers(1, 60), max_size=30), st.booleans())
def test_frames_arrive_alike_in_whatever_pieces_they_come(
    described: Sequence[tuple[Kind, bytes, int, int, int, int, int]], cuts: Sequence[int], runs: bool
) -> None:
    raw, told = wire(described)
    inbound = Inbound(runs=runs)

    received: list[Frame] = []
    position = 0
    for size in (*cuts, len(raw)):
        received += inbound.feed(raw[position : position + size])
        position += size

    assert tell(received) == told
    assert inbound.is_between


def test_a_burst_of_requests_is_one_run_and_its_payloads_one_array() -> None:
    raw = b"".join(frame(Kind.INFER, bytes([step] * 8), handle=4, sequence=9 + step) for step in range(20))

    (run,) = Inbound(runs=True).feed(raw)

    assert (run.count, run.sequence, run.handle) == (20, 9, 4)
    assert run.payloads().tolist() == [[step] * 8 for step in range(20)]


@pytest.mark.parametrize("other", [{"handle": 5}, {"flags": 1}, {"extra": 7}, {"sequence": 90}])
def test_a_run_ends_where_anything_but_the_payload_changes(other: dict[str, int]) -> None:
    same = [frame(Kind.INFER, b"12345678", handle=4, sequence=step) for step in range(6)]
    same[4] = frame(Kind.INFER, b"12345678", **{"handle": 4, "sequence": 4, **other})

    received = Inbound(runs=True).feed(b"".join(same))

    assert received[0].count == 4
    assert len(tell(received)) == 6


def test_a_frame_that_claims_too_much_is_refused_before_it_is_read() -> None:
    head = HEAD.pack(PAYLOAD_BYTES_MAX + 1, Kind.INFER, 0, 1, 0, 1)

    with pytest.raises(FrameInvalid, match="16777217 bytes; the limit is 16777216"):
        Inbound().feed(head)


def test_a_frame_says_how_much_of_it_is_missing() -> None:
    inbound = Inbound()

    inbound.feed(frame(Kind.INFER, bytes(1000))[: HEAD_BYTES + 100])

    assert inbound.missing == 900


DTYPES: dict[DataType, str] = {"FP32": "<f4", "INT64": "<i8", "UINT8": "u1", "FP16": "<f2"}


@st.composite
def tensors(draw: st.DrawFn) -> tuple[tuple[TensorSpec, ...], list[Array]]:
    """Specs with any mix of fixed, free and batch axes, and arrays that fit them."""
    rows = draw(st.integers(1, 4))
    specs, arrays = [], []
    for index in range(draw(st.integers(1, 3))):
        shape = draw(st.lists(st.sampled_from([-1, 1, 2, 3]), max_size=3))
        if draw(st.booleans()):
            shape = [-1, *shape]
        sizes = [draw(st.integers(1, 4)) if size == -1 else size for size in shape]
        if shape and shape[0] == -1:
            sizes[0] = rows
        datatype: DataType = draw(st.sampled_from(["FP32", "INT64", "UINT8", "FP16", "BYTES"]))
        count = math.prod(sizes)
        if datatype == "BYTES":
            array = np.empty(count, dtype=object)
            array[:] = draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        else:
            array = np.arange(count).astype(DTYPES[datatype])
        specs.append(TensorSpec(name=f"t{index}", datatype=datatype, shape=tuple(shape)))
        arrays.append(array.reshape(sizes))
    return tuple(specs), arrays


@given(tensors())
def test_tensors_are_the_same_after_a_payload(case: tuple[tuple[TensorSpec, ...], list[Array]]) -> None:
    specs, arrays = case
    side = Side(specs)

    payload = b"".join(side.pack(arrays))
    if side.is_fixed:
        back: Sequence[Array] = side.arrays(payload, 0, side.rows(len(payload)))
    else:
        back = side.unpack_arrays(memoryview(payload))

    for array, other in zip(arrays, back, strict=True):
        assert other.shape == array.shape
        assert other.tolist() == array.tolist()


@given(tensors(), st.data())
def test_a_payload_that_was_cut_or_lengthened_is_refused(
    case: tuple[tuple[TensorSpec, ...], list[Array]], data: st.DataObject
) -> None:
    specs, arrays = case
    side = Side(specs)
    payload = b"".join(side.pack(arrays))
    changed = payload[: data.draw(st.integers(0, len(payload) - 1))] if data.draw(st.booleans()) else payload + b"\0"

    if side.is_fixed:
        rows = side.rows(len(changed))
        assert rows != side.rows(len(payload))
    else:
        with pytest.raises(port.InputRefused):
            side.unpack(memoryview(changed))


def test_sizes_that_claim_the_world_are_refused_before_anything_is_made() -> None:
    side = Side((TensorSpec(name="words", datatype="BYTES", shape=(-1, -1)),))
    sizes = np.array([0xFFFFFFFF, 0xFFFFFFFF, 0, 0], "<u4").tobytes()

    with pytest.raises(port.InputRefused, match="'words' has 0 bytes, too few"):
        side.unpack(memoryview(sizes))


@pytest.mark.parametrize(
    ("given_inputs", "message"),
    [
        (np.zeros((1, 4), np.float32), r"'x' has shape \[1, 4\]"),
        (np.zeros((1, 3), np.int64), r"'x' is INT64; the model takes FP32: use .astype\('float32'\)"),
        ({"z": np.zeros(3, np.float32)}, "'z' is not an input"),
        ({}, "'x' is missing"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_before_it_is_sent(given_inputs: Array, message: str) -> None:
    with pytest.raises(InputRefused, match=message):
        request(handle(), given_inputs)


def test_an_input_of_a_narrower_type_is_widened() -> None:
    asked = request(handle(), np.array([[1, 2, 3]], np.float16))

    assert asked.payload == [np.array([[1, 2, 3]], np.float32).tobytes()]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
def test_slots_of_different_tensors_never_overlap(slots: int, wide: int, narrow: int) -> None:
    inputs = Side((TensorSpec(name="a", datatype="UINT8", shape=(-1, wide)), X))
    outputs = Side((TensorSpec(name="b", datatype="INT64", shape=(-1, narrow)),))

    layout = Layout(inputs, outputs, slots)

    memory = memoryview(bytearray(layout.size))
    arrays = (*layout.inputs(memory), *layout.outputs(memory))
    for mark, array in enumerate(arrays, 1):
        array.reshape(-1).view(np.uint8)[:] = mark
    assert all(bool((array.reshape(-1).view(np.uint8) == mark).all()) for mark, array in enumerate(arrays, 1))
    assert all(offset % LINE_BYTES == 0 for offset in (*layout.input_offsets, *layout.output_offsets))


def test_a_model_with_free_sizes_has_no_slots() -> None:
    with pytest.raises(RegionInvalid, match="otherwise fixed sizes"):
        Layout(Side((TensorSpec(name="t", datatype="INT64", shape=(-1, -1)),)), Side((Y,)), 4)


# The client's side of a connection.


def release(index: int, version: str = "1.0.0", inputs: tuple[TensorSpec, ...] = (X,)) -> Release:
    return Release(index, "sums", version, f"{index:064x}", "onnxruntime", inputs, (Y,))


def handle() -> Handle:
    made = Handle("sums", None)
    made.take(1, release(1))
    return made


def begun() -> tuple[Dialogue, Handle]:
    """A dialogue that has been welcomed, with handle 1 on release 1."""
    dialogue = Dialogue()
    sequence, _ = dialogue.greet(None)
    welcome = Welcome("0.1.0", "abc-", 1000, 10)
    dialogue.receive(frame(Kind.WELCOME, msgspec.json.encode(welcome), sequence=sequence))
    del dialogue.replies[sequence]
    model = Handle("sums", None)
    sequence, raw = dialogue.attach(model)
    assert msgspec.json.decode(raw[HEAD_BYTES:], type=Attach) == Attach("sums")
    raw = msgspec.json.encode(release(1))
    dialogue.receive(frame(Kind.ATTACHED, raw, handle=1, extra=1, sequence=sequence))
    reply = dialogue.replies.pop(sequence)
    assert isinstance(reply, Frame)
    dialogue.attached(model, reply)
    return dialogue, model


def answer(sequence: int, rows: Array, *, index: int = 1, number: int = 7, count: int = 1) -> bytes:
    raw = rows.tobytes()
    return ANSWER_HEAD.pack(META.size + len(raw), Kind.ANSWER, 0, 1, index, sequence, number, count, 0) + raw


def error(sequence: int, status: int, said: str = "no") -> bytes:
    return frame(Kind.ERROR, msgspec.json.encode(Refusal(said, 2.5, "x")), extra=status, sequence=sequence)


def test_the_preface_comes_before_the_first_frame() -> None:
    _, raw = Dialogue().greet("secret")

    (hello,) = Inbound().feed(raw.removeprefix(PREFACE))
    assert hello.kind == Kind.HELLO
    assert b"secret" in bytes(hello.payload)


def test_one_answer_to_many_requests_gives_each_its_own_row_and_id() -> None:
    dialogue, model = begun()
    parts: list[bytes] = []
    batch, row = np.zeros((1, 3), np.float32), np.zeros(3, np.float32)
    sequences = [dialogue.ask(request(model, given), parts) for given in (batch, row, batch)]

    dialogue.receive(answer(sequences[0], np.arange(6, dtype=np.float32), number=255, count=3))

    got = [dialogue.outcomes[sequence] for sequence in sequences]
    assert [each.outputs["y"].tolist() for each in got if isinstance(each, Answer)] == [[[0, 1]], [2, 3], [[4, 5]]]
    ids = [each.request_id for each in got if isinstance(each, Answer)]
    assert ids == ["abc-0000000ff.0", "abc-0000000ff.1", "abc-0000000ff.2"]
    assert not dialogue.waiting


def test_each_answer_names_the_release_that_gave_it() -> None:
    dialogue, model = begun()
    parts: list[bytes] = []
    first, second, third = (dialogue.ask(request(model, np.zeros(3, np.float32)), parts) for _ in range(3))
    y = np.zeros(2, np.float32)

    dialogue.receive(frame(Kind.RELEASE, msgspec.json.encode(release(2, "2.0.0")), handle=1, extra=2))
    dialogue.receive(answer(first, y, index=1) + answer(second, y, index=2) + answer(third, y, index=1))

    versions = [each.version for each in dialogue.outcomes.values() if isinstance(each, Answer)]
    assert versions == ["1.0.0", "2.0.0", "1.0.0"]
    assert model.release.version == "1.0.0"  # The latest to answer.


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InputRefused), (409, SchemaChanged), (429, Overloaded), (503, Overloaded), (504, TooLate)],
)
def test_an_error_is_typed_by_what_to_do_about_it(status: int, kind: type[Exception]) -> None:
    dialogue, model = begun()
    sequence = dialogue.ask(request(model, np.zeros(3, np.float32)), [])

    dialogue.receive(error(sequence, status))

    outcome = dialogue.outcomes[sequence]
    assert type(outcome) is kind
    assert (outcome.status, outcome.retry_after_s, outcome.tensor) == (status, 2.5, "x")  # type: ignore[union-attr]


def test_what_nobody_waits_for_any_more_leaves_nothing_behind() -> None:
    dialogue, model = begun()
    first = dialogue.ask(request(model, np.zeros(3, np.float32)), [])
    second = dialogue.ask(request(model, np.zeros(3, np.float32)), [])
    dialogue.abandon(first)
    dialogue.abandon(second)

    dialogue.receive(answer(first, np.zeros(2, np.float32)) + error(second, 500))

    assert not dialogue.outcomes
    assert not dialogue.replies


def test_after_a_loss_each_request_is_asked_again_once_and_sequences_never() -> None:
    dialogue, model = begun()
    x = np.zeros(3, np.float32)
    plain = dialogue.ask(request(model, x), [])
    stateful = dialogue.ask(request(model, x, sequence=(5, True, False)), [])
    tried = request(model, x)
    tried.retried = True
    twice = dialogue.ask(tried, [])
    reason = Unreachable("/run/a.sock", "gone")

    again = dialogue.lost(reason)

    assert [sequence for sequence, _ in again] == [plain]
    assert dialogue.outcomes == {stateful: reason, twice: reason}


@pytest.mark.parametrize(
    "raw",
    [
        frame(Kind.ANSWER, b"short", handle=1, extra=1, sequence=3),
        frame(Kind.ANSWER, bytes(24), handle=9, extra=1, sequence=3),
        frame(Kind.ANSWER, bytes(24), handle=1, extra=9, sequence=3),
        frame(Kind.ANSWER, bytes(21), handle=1, extra=1, sequence=3),
        frame(Kind.ANSWER, bytes(24), flags=SHAPED, handle=1, extra=1, sequence=3),
        frame(Kind.RELEASE, b"{}", handle=1),
        frame(Kind.HELLO, b"{}"),
        error(0, 400),
    ],
)
def test_an_answer_that_makes_no_sense_breaks_the_connection_and_nothing_else(raw: bytes) -> None:
    dialogue, model = begun()
    dialogue.ask(request(model, np.zeros(3, np.float32)), [])

    with pytest.raises(ProtocolBroken):
        dialogue.receive(raw)


def test_a_request_that_no_frame_holds_is_refused_at_once() -> None:
    dialogue, model = begun()
    rows = PAYLOAD_BYTES_MAX // 12 + 1

    with pytest.raises(InputRefused, match="split the batch"):
        dialogue.ask(request(model, np.zeros((rows, 3), np.float32)), [])
