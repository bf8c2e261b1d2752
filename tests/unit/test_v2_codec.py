"""The V2 codec: round trips, the refusals by name, and garbage."""

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muster_agent.engines.port import Array
from muster_agent.engines.tensors import DTYPES
from muster_agent.serving import v2
from muster_agent.serving.v2 import InferRequest, RequestInvalid, Wanted
from muster_shared.bundle import DataType, TensorSpec

FIXED: list[DataType] = [datatype for datatype in DTYPES if datatype != "BYTES"]
X = (TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),)
Y = (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)), TensorSpec(name="s", datatype="BYTES", shape=(-1,)))


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5], **fields}


def decode_json(*tensors: dict[str, Any], **fields: Any) -> InferRequest:
    return v2.decode(json.dumps({"inputs": list(tensors), **fields}).encode(), None, X, Y)


def decode_binary(header: dict[str, Any], data: bytes, specs: tuple[TensorSpec, ...] = X) -> InferRequest:
    head = json.dumps(header).encode()
    return v2.decode(head + data, len(head), specs, Y)


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
    parts, length = v2.encode(
        [Wanted("x", binary)],
        {"x": array},
        {"x": datatype},
        model="m",
        version="1.0.0",
        request_id="r",
        parameters={"engine": "none"},
    )
    body = b"".join(parts)
    response = json.loads(body[:length])
    sent = response["outputs"][0]
    if nested and not binary:
        sent["data"] = array.tolist()
    head = json.dumps({"inputs": [sent]}).encode()

    request = v2.decode(head + (body[length:] if length else b""), len(head) if binary else None, spec, spec)

    assert response["id"] == "r"
    assert response["parameters"] == {"engine": "none"}
    assert sent["shape"] == list(array.shape)
    assert request.inputs["x"].dtype == DTYPES[datatype]
    np.testing.assert_array_equal(request.inputs["x"], array)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), min_size=1, max_size=6), st.booleans())
def test_strings_survive_both_ways(texts: list[str], binary: bool) -> None:
    spec = (TensorSpec(name="x", datatype="BYTES", shape=(-1,)),)
    array = np.array([text.encode() for text in texts], object)
    parts, length = v2.encode(
        [Wanted("x", binary)], {"x": array}, {"x": "BYTES"}, model="m", version="1", request_id="r", parameters={}
    )
    body = b"".join(parts)
    head = json.dumps({"inputs": json.loads(body[:length])["outputs"]}).encode()

    request = v2.decode(head + (body[length:] if length else b""), len(head) if binary else None, spec, spec)

    assert request.inputs["x"].tolist() == array.tolist()


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 250)))
def test_garbage_is_refused_and_nothing_else(body: bytes, header_bytes: int | None) -> None:
    with contextlib.suppress(RequestInvalid):
        v2.decode(body, header_bytes, X, Y)


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
        v2.decode(head + data, len(head), (TensorSpec(name="x", datatype=datatype, shape=(-1, 2)),), Y)


def test_a_binary_tensor_is_a_view_into_the_body() -> None:
    request = decode_binary(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]},
        np.array([1, 2], np.float32).tobytes(),
    )

    assert not request.inputs["x"].flags.owndata
    assert request.inputs["x"].tolist() == [[1, 2]]


def test_a_raw_body_is_the_one_input_and_its_free_size_follows() -> None:
    request = v2.decode(np.arange(6, dtype=np.float32).tobytes(), 0, X, Y)

    assert request.inputs["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert request.rows == 3
    assert all(wanted.binary for wanted in request.outputs)


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
        ([tensor(parameters={"shared_memory_region": "r"})], "shared_memory_region"),
    ],
)
def test_a_wrong_input_is_refused_by_name(sent: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        decode_json(*sent)


@pytest.mark.parametrize(
    ("size", "data", "message"),
    [
        (8, bytes(4), "'x' has a binary_data_size of 8; 4 bytes follow"),
        (4, bytes(4), "'x' has 4 bytes; .* needs 8"),
        (8, bytes(12), "4 bytes follow the last tensor"),
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
        v2.decode(body, None, spec, Y)


def test_outputs_are_those_asked_for_in_the_form_asked_for() -> None:
    every = decode_json(tensor())
    binary = decode_json(tensor(), parameters={"binary_data_output": True})
    chosen = decode_json(tensor(), outputs=[{"name": "s", "parameters": {"binary_data": True}}])

    assert every.outputs == (Wanted("y", False), Wanted("s", False))
    assert binary.outputs == (Wanted("y", True), Wanted("s", True))
    assert chosen.outputs == (Wanted("s", True),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outputs": [{"name": "q"}]}, "'q' is not an output"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "'y' is asked for twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "binary_data"),
        ({"id": "i" * 257}, "id has 257"),
        ({"id": 7}, "does not parse"),
    ],
)
def test_a_wrong_wish_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        decode_json(tensor(), **fields)


def test_a_nan_in_a_json_answer_is_null() -> None:
    parts, length = v2.encode(
        [Wanted("y", False)],
        {"y": np.array([[np.nan, 1]], np.float32)},
        {"y": "FP32"},
        model="m",
        version="1",
        request_id="r",
        parameters={},
    )

    assert length is None
    assert json.loads(b"".join(parts))["outputs"][0]["data"] == [None, 1.0]


def test_strings_that_are_not_text_need_binary_data() -> None:
    with pytest.raises(RequestInvalid, match="'s' is not UTF-8"):
        v2.encode(
            [Wanted("s", False)],
            {"s": np.array([b"\xff"], object)},
            {"s": "BYTES"},
            model="m",
            version="1",
            request_id="r",
            parameters={},
        )
