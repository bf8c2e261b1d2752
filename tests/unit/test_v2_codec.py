"""The V2 codec: round trips, the refusals by name, and garbage."""

import contextlib
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muster_agent.engines.port import Array
from muster_agent.engines.tensors import DTYPES
from muster_agent.serving import v2
from muster_agent.serving.call import Batch, Call, Priority
from muster_agent.serving.v2 import Ask, Provenance, Region, RequestInvalid, Wanted
from muster_shared.bundle import DataType, TensorSpec

Specs = tuple[TensorSpec, ...]

FIXED: list[DataType] = [datatype for datatype in DTYPES if datatype != "BYTES"]
X = (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),)
Y = (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)), TensorSpec(name="s", datatype="BYTES", shape=(-1,)))


class Memory:
    """Shared memory regions in memory."""

    def __init__(self, **regions: bytes) -> None:
        self.regions = {name: bytearray(content) for name, content in regions.items()}

    def read(self, name: str, offset: int, size: int, /) -> bytes:
        return bytes(self.regions[name][offset : offset + size])

    def write(self, name: str, offset: int, data: bytes | memoryview, /) -> None:
        self.regions[name][offset : offset + len(data)] = data


NO_MEMORY = Memory()


class Decoded:
    """A request as the engine's side sees it: whole arrays by name."""

    def __init__(self, ask: Ask, body: bytes, offset: int, inputs: Specs, regions: v2.Regions) -> None:
        self.ask = ask
        self.inputs: dict[str, Array] = {}
        for spec, raw, shape in zip(inputs, v2.tensors(ask, body, offset, inputs, regions), ask.shapes, strict=True):
            full = (ask.rows, *shape) if spec.shape[:1] == (-1,) else shape
            array = raw if isinstance(raw, np.ndarray) else np.frombuffer(raw, DTYPES[spec.datatype])
            assert array.size == np.prod(full)
            self.inputs[spec.name] = array.reshape(full)


def decode(
    body: bytes, header_bytes: int | None, inputs: Specs, outputs: Specs, regions: v2.Regions = NO_MEMORY
) -> Decoded:
    """Decode as a front does."""
    if header_bytes is None:
        return Decoded(v2.understand(body, inputs, outputs), body, len(body), inputs, regions)
    if header_bytes == 0:
        return Decoded(v2.understand_raw(len(body), inputs, outputs), body, 0, inputs, regions)
    if not 0 < header_bytes <= len(body):
        raise RequestInvalid("the front refuses that")
    return Decoded(v2.understand(body[:header_bytes], inputs, outputs), body, header_bytes, inputs, regions)


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5], **fields}


def decode_json(*tensors: dict[str, Any], **fields: Any) -> Decoded:
    return decode(json.dumps({"inputs": list(tensors), **fields}).encode(), None, X, Y)


def decode_binary(header: dict[str, Any], data: bytes, specs: Specs = X) -> Decoded:
    head = json.dumps(header).encode()
    return decode(head + data, len(head), specs, Y)


def answered(*arrays: Array, rows: int | None = None, start: int = 0) -> Call:
    """A call with this answer: all of it, or `rows` of a batch."""
    call = Call((), (), len(arrays[0]) if rows is None else rows)
    call.batch = Batch(arrays, 0, rows_axis=all(array.ndim > 0 for array in arrays))
    call.start = start
    return call


def whose(outputs: Specs, labels: tuple[str, ...] = ()) -> Provenance:
    return Provenance("m", "1.0.0", {"engine": "none"}, outputs, labels)


def encode(
    wanted: Sequence[Wanted],
    call: Call,
    outputs: Specs,
    *,
    labels: tuple[str, ...] = (),
    regions: v2.Regions = NO_MEMORY,
) -> tuple[dict[str, Any], bytes]:
    """Return the JSON of the response and what follows it."""
    ask = Ask(id="", sources=(), shapes=(), rows=call.rows, wanted=tuple(wanted), tail_bytes=0)
    parts, length = v2.encode(ask, call, whose(outputs, labels), "r", regions)
    body = b"".join(parts)
    return json.loads(body[:length]), body[length:] if length is not None else b""


@st.composite
def arrays(draw: st.DrawFn) -> tuple[DataType, Array]:
    datatype = draw(st.sampled_from(FIXED))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    elements = {"allow_nan": False, "allow_infinity": False} if DTYPES[datatype].kind == "f" else {}
    return datatype, draw(hnp.arrays(DTYPES[datatype], shape, elements=elements or None))


@given(arrays(), st.booleans(), st.booleans())
def test_every_fixed_size_type_survives_both_ways(case: tuple[DataType, Array], binary: bool, nested: bool) -> None:
    datatype, array = case
    spec = (TensorSpec(name="x", datatype=datatype, shape=(-1,) * array.ndim),)
    response, data = encode([Wanted(0, "x", binary)], answered(array), spec)
    sent = response["outputs"][0]
    if nested and not binary:
        sent["data"] = array.tolist()
    head = json.dumps({"inputs": [sent]}).encode()

    request = decode(head + data, len(head) if binary else None, spec, spec)

    assert response["id"] == "r"
    assert response["parameters"] == {"engine": "none", "request_id": "r"}
    assert sent["shape"] == list(array.shape)
    assert request.inputs["x"].dtype == DTYPES[datatype]
    np.testing.assert_array_equal(request.inputs["x"], array)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=6), st.booleans())
def test_strings_survive_both_ways(texts: list[str], binary: bool) -> None:
    spec = (TensorSpec(name="x", datatype="BYTES", shape=(-1,)),)
    array = np.array([text.encode() for text in texts], object)
    response, data = encode([Wanted(0, "x", binary)], answered(array), spec)
    head = json.dumps({"inputs": response["outputs"]}).encode()

    request = decode(head + data, len(head) if binary else None, spec, spec)

    assert request.inputs["x"].tolist() == array.tolist()


@given(
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=3).flatmap(
        lambda shape: hnp.arrays(object, shape, elements=st.text("ab", max_size=2))
    )
)
def test_nested_strings_keep_their_places(texts: Array) -> None:
    spec = (TensorSpec(name="x", datatype="BYTES", shape=(-1,) * texts.ndim),)
    sent = {"name": "x", "datatype": "BYTES", "shape": texts.shape, "data": texts.tolist()}

    request = decode(json.dumps({"inputs": [sent]}).encode(), None, spec, Y)

    assert request.inputs["x"].shape == texts.shape
    assert [text.decode() for text in request.inputs["x"].ravel().tolist()] == texts.ravel().tolist()


def test_strings_nested_in_another_shape_are_refused() -> None:
    spec = (TensorSpec(name="x", datatype="BYTES", shape=(-1, -1)),)
    sent = {"name": "x", "datatype": "BYTES", "shape": [3, 2], "data": [["a", "b", "c"], ["d", "e", "f"]]}

    with pytest.raises(RequestInvalid, match="its shape is"):
        decode(json.dumps({"inputs": [sent]}).encode(), None, spec, Y)


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 250)))
def test_garbage_is_refused_and_nothing_else(body: bytes, header_bytes: int | None) -> None:
    with contextlib.suppress(RequestInvalid):
        decode(body, header_bytes, X, Y)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('a["', max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.just("k"), inner),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["x", "z"])},
        optional={
            "shape": st.lists(st.integers(-2, 3), max_size=4) | JSON,
            "datatype": st.sampled_from([*DTYPES, "no"]),
            "data": JSON,
            "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "q"]), JSON),
        },
    ),
    st.sampled_from(list(DTYPES)),
    st.binary(max_size=40),
)
def test_a_half_right_request_is_refused_and_nothing_else(
    sent: dict[str, Any], datatype: DataType, data: bytes
) -> None:
    head = json.dumps({"inputs": [sent]}).encode()

    with contextlib.suppress(RequestInvalid):
        decode(head + data, len(head), (TensorSpec(name="x", datatype=datatype, shape=(-1, 2)),), Y)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "priority",
                "timeout",
                "sequence_id",
                "sequence_start",
                "sequence_end",
                "request_key",
                "binary_data_output",
            ]
        ),
        JSON | st.sampled_from(["now", "1", "\u00b2", 2, 1 << 70, "9" * 30, [], {}]),
    ),
    st.dictionaries(
        st.sampled_from(
            ["classification", "binary_data", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"]
        ),
        JSON | st.sampled_from(["\u00b2", "7", 1 << 70]),
    ),
)
def test_parameters_of_any_kind_are_taken_or_refused_and_nothing_else(
    parameters: dict[str, Any], output: dict[str, Any]
) -> None:
    with contextlib.suppress(RequestInvalid):
        decode_json(tensor(), parameters=parameters, outputs=[{"name": "y", "parameters": output}])


def test_a_binary_tensor_is_read_where_the_header_ends() -> None:
    request = decode_binary(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]},
        np.array([1, 2], np.float32).tobytes(),
    )

    assert request.inputs["x"].tolist() == [[1, 2]]


def test_binary_tensors_follow_in_the_order_of_the_header_and_stand_beside_json_and_memory() -> None:
    specs = tuple(TensorSpec(name=name, datatype="INT16", shape=(-1,)) for name in "abcd")
    fields = {"shape": [2], "datatype": "INT16"}
    region = {"shared_memory_region": "r", "shared_memory_offset": 2, "shared_memory_byte_size": 4}
    sent = [
        {"name": "d", **fields, "parameters": {"binary_data_size": 4}},
        {"name": "c", **fields, "data": [5, 6]},
        {"name": "b", **fields, "parameters": region},
        {"name": "a", **fields, "parameters": {"binary_data_size": 4}},
    ]
    head = json.dumps({"inputs": sent}).encode()
    body = head + np.array([7, 8, 1, 2], "<i2").tobytes()

    request = decode(body, len(head), specs, Y, Memory(r=np.array([0, 3, 4], "<i2").tobytes()))

    assert [array.tolist() for array in request.inputs.values()] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert not request.ask.reusable


def test_one_header_asks_the_same_of_every_body_when_it_holds_no_data() -> None:
    sent = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [sent]}).encode()
    ask = v2.understand(head, X, Y)

    found = [
        Decoded(ask, head + np.array(values, np.float32).tobytes(), len(head), X, NO_MEMORY).inputs["x"].tolist()
        for values in ([1, 2], [3, 4])
    ]

    assert ask.reusable
    assert found == [[[1, 2]], [[3, 4]]]


def test_a_raw_body_is_the_one_input_and_its_free_size_follows() -> None:
    request = decode(np.arange(6, dtype=np.float32).tobytes(), 0, X, Y)

    assert request.inputs["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert request.ask.rows == 3
    assert all(wanted.binary for wanted in request.ask.wanted)


@pytest.mark.parametrize(
    ("specs", "size"),
    [
        ((), 8),
        (X, 0),
        (X, 7),
        (X * 2, 8),
        ((TensorSpec(name="x", datatype="BYTES", shape=(-1,)),), 8),
        ((TensorSpec(name="x", datatype="FP32", shape=(-1, -1)),), 8),
        ((TensorSpec(name="x", datatype="FP32", shape=(2,)),), 16),
    ],
)
def test_a_raw_body_whose_shape_does_not_follow_is_refused(specs: Specs, size: int) -> None:
    with pytest.raises(RequestInvalid):
        decode(bytes(size), 0, specs, Y)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([tensor(name="z")], "'z' is not an input"),
        ([], "'x' is missing"),
        ([tensor(), tensor()], "'x' is given twice"),
        ([tensor(datatype="FP64")], "'x' is 'FP64'"),
        ([tensor(shape=[1, 3])], r"'x' has shape \[1, 3\]"),
        ([tensor(shape=[0, 2])], r"'x' has shape \[0, 2\]"),
        ([tensor(shape=[2, 2])], "'x' has 2 elements"),
        ([tensor(data=["a", "b"])], "'x' has data that is not FP32"),
        ([tensor(data=[[1], [2]])], "'x' has 2 elements"),
        ([tensor(data=[[1], [2, 3]])], "'x' has data that is not FP32"),
        ([tensor(data=[1e300, 0])], "'x' has a number that FP32 cannot hold"),
        ([{"name": "x", "shape": [1, 2], "datatype": "FP32"}], "'x' has neither data nor"),
        ([tensor(parameters={"binary_data_size": 8})], "'x' has both"),
        ([tensor(parameters={"shared_memory_region": "r"})], "'x' names shared memory without"),
        ([tensor(parameters={"shared_memory_region": 1, "shared_memory_byte_size": 8})], "shared_memory_region"),
        ([tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8})], "'x' has both"),
        (
            [{**tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 9})} | {"data": []}],
            "'x' has both",
        ),
    ],
)
def test_a_wrong_input_is_refused_by_name(sent: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        decode_json(*sent)


@pytest.mark.parametrize(
    ("size", "data", "message"),
    [
        (8, bytes(4), "4 bytes follow the header, which announces 8"),
        (4, bytes(4), "'x' has 4 bytes; .* needs 8"),
        (8, bytes(12), "12 bytes follow the header, which announces 8"),
        (-1, bytes(8), "'x' has a binary_data_size"),
        (True, bytes(8), "'x' has a binary_data_size"),
        ("8", bytes(8), "'x' has a binary_data_size"),
    ],
)
def test_binary_data_of_another_size_is_refused(size: object, data: bytes, message: str) -> None:
    sent = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": size}}

    with pytest.raises(RequestInvalid, match=message):
        decode_binary({"inputs": [sent]}, data)


@pytest.mark.parametrize("data", [b"", b"\x01\x00", struct.pack("<I", 9) + b"short", struct.pack("<I", 1) + b"ab"])
def test_damaged_strings_are_refused(data: bytes) -> None:
    spec = (TensorSpec(name="x", datatype="BYTES", shape=(-1,)),)
    sent = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}

    with pytest.raises(RequestInvalid, match="'x'"):
        decode_binary({"inputs": [sent]}, data, spec)


def test_integers_out_of_range_are_refused() -> None:
    spec = (TensorSpec(name="x", datatype="UINT8", shape=(-1,)),)
    body = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "UINT8", "data": [256]}]}).encode()

    with pytest.raises(RequestInvalid, match="'x' has data that is not UINT8"):
        decode(body, None, spec, Y)


def test_outputs_are_those_asked_for_in_the_form_asked_for() -> None:
    every = decode_json(tensor())
    binary = decode_json(tensor(), parameters={"binary_data_output": True})
    chosen = decode_json(tensor(), outputs=[{"name": "s", "parameters": {"binary_data": True}}])

    assert every.ask.wanted == (Wanted(0, "y", False), Wanted(1, "s", False))
    assert binary.ask.wanted == (Wanted(0, "y", True), Wanted(1, "s", True))
    assert chosen.ask.wanted == (Wanted(1, "s", True),)


def test_a_request_says_how_urgent_it_is_and_to_whom_it_belongs() -> None:
    ask = decode_json(
        tensor(),
        id="i",
        parameters={
            "priority": 3,
            "timeout": "2500",
            "sequence_id": 7,
            "sequence_start": True,
            "sequence_end": False,
            "request_key": "k",
            "unknown": [1],
        },
    ).ask

    assert (ask.id, ask.priority, ask.timeout_us, ask.key) == ("i", Priority.LATER, 2500, "k")
    assert ask.sequence == (7, True, False)


@pytest.mark.parametrize(
    ("priority", "understood"),
    [(0, None), ("", None), (1, Priority.NOW), ("soon", Priority.SOON), ("later", Priority.LATER)],
)
def test_priorities_are_triton_s_numbers_or_our_words(priority: object, understood: Priority | None) -> None:
    assert decode_json(tensor(), parameters={"priority": priority}).ask.priority == understood


def test_inputs_that_disagree_on_the_batch_are_refused() -> None:
    specs = tuple(TensorSpec(name=name, datatype="FP32", shape=(-1,)) for name in "ab")
    sent = [
        {"name": "a", "shape": [1], "datatype": "FP32", "data": [1]},
        {"name": "b", "shape": [2], "datatype": "FP32", "data": [1, 2]},
    ]

    with pytest.raises(RequestInvalid, match="'b' has a batch of 2, but 'a' has 1"):
        decode(json.dumps({"inputs": sent}).encode(), None, specs, Y)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outputs": [{"name": "q"}]}, "'q' is not an output"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "'y' is asked for twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": -3}}]}, "classification"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 10_001}}]}, "limit is 10000"),
        ({"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "shared_memory_byte_size"),
        ({"parameters": {"priority": 4}}, "priority '4' is not now, soon or later"),
        ({"parameters": {"priority": [1]}}, "priority"),
        ({"parameters": {"timeout": -1}}, "timeout"),
        ({"parameters": {"timeout": "\u00b2"}}, "timeout"),
        ({"parameters": {"sequence_id": "s" * 129}}, "sequence_id"),
        ({"parameters": {"sequence_id": 1, "sequence_start": 1}}, "sequence_start"),
        ({"parameters": {"request_key": 1}}, "request_key"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "binary_data"),
        ({"id": "i" * 257}, "id has 257"),
        ({"id": 7}, "does not parse"),
    ],
)
def test_a_wrong_wish_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        decode_json(tensor(), **fields)


def test_a_nan_in_a_json_answer_is_null() -> None:
    response, _ = encode([Wanted(0, "y", False)], answered(np.array([[np.nan, 1]], np.float32)), Y)

    assert response["outputs"][0]["data"] == [None, 1.0]


def test_strings_that_are_not_text_need_binary_data() -> None:
    call = answered(np.array([[0, 0]], np.float32), np.array([b"\xff"], object))

    with pytest.raises(RequestInvalid, match="'s' is not UTF-8"):
        encode([Wanted(1, "s", False)], call, Y)


def test_a_call_is_answered_with_its_own_rows_of_the_batch() -> None:
    batch = np.arange(8, dtype=np.float32).reshape(4, 2)

    response, data = encode([Wanted(0, "y", True)], answered(batch, rows=2, start=1), Y)

    assert response["outputs"][0]["shape"] == [2, 2]
    assert data == batch[1:3].tobytes()


def test_classes_come_best_first_with_their_labels() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.5]], np.float32)
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),)

    response, _ = encode([Wanted(0, "y", False, classes=2)], answered(scores), outputs, labels=("a", "b"))

    (output,) = response["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    assert output["data"] == ["0.700000:1:b", "0.200000:2", "0.500000:0:a", "0.500000:2"]


def test_more_classes_than_there_are_are_all_of_them() -> None:
    response, data = encode([Wanted(0, "y", True, classes=9)], answered(np.array([[1, 2]], np.float32)), Y)

    assert response["outputs"][0]["shape"] == [1, 2]
    assert data == b"".join(struct.pack("<I", 10) + text for text in (b"2.000000:1", b"1.000000:0"))


def test_strings_have_no_classes() -> None:
    call = answered(np.array([[0, 0]], np.float32), np.array([b"a"], object))

    with pytest.raises(RequestInvalid, match="'s' has no classes"):
        encode([Wanted(1, "s", False, classes=1)], call, Y)


def test_an_output_in_shared_memory_is_written_there_and_not_sent() -> None:
    memory = Memory(r=bytes(20))
    call = answered(np.array([[1, 2]], np.float32))

    response, data = encode([Wanted(0, "y", False, region=Region("r", 4, 16))], call, Y, regions=memory)

    (output,) = response["outputs"]
    assert output["parameters"] == {
        "shared_memory_region": "r",
        "shared_memory_offset": 4,
        "shared_memory_byte_size": 8,
    }
    assert "data" not in output
    assert data == b""
    assert np.frombuffer(memory.regions["r"][4:12], np.float32).tolist() == [1, 2]


def test_an_output_larger_than_its_shared_memory_is_refused_and_nothing_is_written() -> None:
    memory = Memory(r=bytes(4))

    with pytest.raises(RequestInvalid, match="'y' has 8 bytes; its shared memory takes 4"):
        encode(
            [Wanted(0, "y", False, region=Region("r", 0, 4))], answered(np.ones((1, 2), np.float32)), Y, regions=memory
        )

    assert memory.regions["r"] == bytes(4)


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.sampled_from(["p-1", "p-2"])), min_size=1, max_size=6),
    st.booleans(),
)
def test_a_template_says_what_encode_says(rows: int, answers: list[tuple[int, int, str]], fixed: bool) -> None:
    outputs = (
        TensorSpec(name="y", datatype="FP32", shape=(-1, 2 if fixed else -1)),
        TensorSpec(name="n", datatype="INT64", shape=(-1,)),
    )
    wanted = (Wanted(1, "n", True), Wanted(0, "y", True))
    ask = Ask(id="", sources=(), shapes=(), rows=rows, wanted=wanted, tail_bytes=0)

    for start, width, request_id in answers:
        batch = np.random.default_rng(1).random((6, 2 if fixed else width), np.float32), np.arange(6)
        call = answered(*batch, rows=rows, start=start)
        parts, length = v2.encode(ask, call, whose(outputs), request_id, NO_MEMORY)
        form = v2.template(ask, call, whose(outputs), request_id)
        assert form is not None
        known = request_id.encode()
        header = b"".join((form.before, known, form.between, known, form.after))
        data = b"".join(call.raw(output.index) for output in wanted)

        assert header + data == b"".join(parts)
        assert (form.header_bytes, form.data_bytes) == (length, len(data))


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(0, "y", False),
        Wanted(0, "y", True, classes=1),
        Wanted(0, "y", True, region=Region("r", 0, 8)),
        Wanted(1, "s", True),
    ],
)
def test_an_answer_that_is_not_plainly_binary_has_no_template(wanted: Wanted) -> None:
    call = answered(np.ones((1, 2), np.float32), np.array([b"a"], object))
    ask = Ask(id="", sources=(), shapes=(), rows=1, wanted=(wanted,), tail_bytes=0)

    assert v2.template(ask, call, whose(Y), "r") is None
