"""What a manifest may say of how it is served."""

from typing import Any

import msgspec
import pytest

from muster_shared.bundle import (
    Golden,
    Manifest,
    Serving,
    StateTensor,
    TensorSpec,
    Variant,
    describe_file,
    encode_manifest,
    parse_manifest,
)
from muster_shared.errors import ManifestInvalid
from muster_shared.ids import ModelName

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
STATE = TensorSpec(name="state", datatype="FP32", shape=(2, 8))
NEXT = TensorSpec(name="next", datatype="FP32", shape=(2, 8))
CARRIED = StateTensor(input="state", output="next")


def manifest(**changes: Any) -> Manifest:
    whole = Manifest(
        model=ModelName("sums"),
        version="1.0.0",
        release=1,
        inputs=(X, STATE),
        outputs=(X, NEXT),
        files=(describe_file("m.onnx", b"m"), describe_file("golden.npz", b"g")),
        variants=(Variant(name="any", runtime="onnxruntime", precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="golden.npz"),
        serving=Serving(state=(CARRIED,)),
    )
    return msgspec.structs.replace(whole, **changes)


def test_a_state_that_an_output_leaves_to_an_input_is_taken() -> None:
    stateful = manifest()

    parsed = parse_manifest(encode_manifest(stateful))

    assert parsed.serving.state == (CARRIED,)


@pytest.mark.parametrize(
    ("serving", "reason"),
    [
        (Serving(state=(StateTensor(input="state", output="nothing"),)), "not an input and an output"),
        (Serving(state=(StateTensor(input="state", output="x"),)), "not what input state takes"),
        (Serving(state=(CARRIED, CARRIED)), "names an input twice"),
        (Serving(state=(CARRIED,), cache=True), "serving.cache"),
        (Serving(batch_max=-1), "0 or more"),
        (Serving(batches_preferred=(0,)), "sizes from 1"),
    ],
)
def test_what_cannot_be_served_so_is_refused_by_its_name(serving: Serving, reason: str) -> None:
    raw = encode_manifest(manifest(serving=serving))

    with pytest.raises(ManifestInvalid, match=reason):
        parse_manifest(raw)


def test_a_state_must_leave_an_input_to_the_caller() -> None:
    raw = encode_manifest(manifest(inputs=(STATE,)))

    with pytest.raises(ManifestInvalid, match="leaves no input"):
        parse_manifest(raw)
