"""The checker of pipelines: what it proves, how it names a mistake, and that what it proves holds at run time."""

import io
import math

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from harness.pipelines import load, manifest, tensor
from muster_shared import pipeline as p
from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant, describe_file, encode_manifest, parse_manifest
from muster_shared.errors import ManifestInvalid
from muster_shared.ids import ModelName
from muster_shared.pipeline_check import PipelineInvalid, prove

IMAGE = (p.DecodeImage(), p.Resize(height=8, width=6), p.Layout(order="NCHW"), p.Normalise())
PIXELS = tensor("FP32", -1, 3, 8, 6)
SCORES = TensorSpec(name="y", datatype="FP32", shape=(-1, 3))
LABELS = ("a", "b", "c")


def check(each: Manifest) -> None:
    assert each.pipeline is not None
    prove(each.pipeline, each.inputs, each.outputs, each.labels)


def refusal(each: Manifest) -> str:
    with pytest.raises(PipelineInvalid) as refused:
        check(each)
    return str(refused.value)


@pytest.mark.parametrize(
    ("steps", "wanted", "number", "words"),
    [
        ((p.Resize(height=8, width=6),), PIXELS, "step 1 (resize)", "got the raw image/png or image/jpeg"),
        ((p.DecodeImage(), p.DecodeImage()), PIXELS, "step 2 (decode_image)", "got a RGB image"),
        ((p.DecodeImage(), p.Crop(height=8, width=6)), PIXELS, "step 2 (crop)", "resize it first"),
        ((p.DecodeImage(), p.Normalise()), PIXELS, "step 2 (normalise)", "a tensor of numbers"),
        ((p.DecodeImage(), p.Layout(order="NCHW")), PIXELS, "after step 2", "got UINT8 [1, 3, -1, -1] in 0..255"),
        ((p.DecodeImage(colour="GRAY"), p.Layout(order="NCHW")), PIXELS, "step 2 (layout)", "decoded as RGB"),
        (IMAGE, tensor("FP32", -1, 8, 6, 3), "after step 4", "wants FP32 [-1, 8, 6, 3] for input 'x'"),
        (IMAGE, tensor("FP16", -1, 3, 8, 6), "after step 4", "got FP32 [1, 3, 8, 6] in 0..1"),
        ((*IMAGE, p.Cast(datatype="INT8"), p.Normalise(std=())), PIXELS, "step 6 (normalise)", "mean and std"),
        ((*IMAGE, p.Normalise(mean=(1.0, 2.0))), PIXELS, "step 5 (normalise)", "2 channels"),
        ((*IMAGE, p.Normalise(std=(0.0,))), PIXELS, "step 5 (normalise)", "not 0"),
        ((*IMAGE[:3], p.Cast(datatype="INT8")), PIXELS, "step 4 (cast)", "0..255, which do not all fit into INT8"),
        ((*IMAGE, p.Reshape(shape=(7, -1))), PIXELS, "step 5 (reshape)", "as many numbers"),
        ((*IMAGE, p.Transpose(axes=(0, 1, 1, 2))), PIXELS, "step 5 (transpose)", "not an order"),
        ((p.DecodeImage(), p.Region(left=0.5, right=0.5)), PIXELS, "step 2 (region)", "left must be below right"),
        ((*IMAGE, p.Constant(input="r", shape=(1,), values=(1.0,))), PIXELS, "step 5 (constant)", "no input"),
        ((p.DecodeImage(), p.Resize(height=8, width=6, filter="area", antialias=False)), PIXELS, "step 2", "antialias"),
    ],
)
def test_a_mistake_in_prepare_is_named_by_its_step_and_by_what_it_got(
    steps: tuple[p.PrepareStep, ...], wanted: TensorSpec, number: str, words: str
) -> None:
    message = refusal(manifest(steps, [wanted]))

    assert f"prepare{',' if 'after' in number else ''} {number}" in message
    assert words in message


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((p.Softmax(output="z"), p.TopK()), "finish step 1 (softmax): there is no tensor 'z'; there are y"),
        ((p.TopK(), p.TopK()), "finish step 2 (top_k): the field 'classes' is given twice"),
        ((p.Softmax(),), "gives no field to the answer"),
        ((p.Label(thresholds={"z": 0.5}),), "finish step 1 (label): 'z' is none of the manifest's labels"),
        ((p.Label(field="input"),), "a field cannot be called 'input'"),
        ((p.Boxes(boxes="y", scores="y"),), "finish step 1 (boxes): got FP32 [3]; it wants boxes of [n, 4]"),
        ((p.CtcGreedy(),), "finish step 1 (ctc_greedy): got FP32 [3]; it wants [time, 3]"),
        ((p.Softmax(into="z"), p.TopK()), "finish step 2 (top_k): say which `output` it reads: y, z"),
        ((p.Slice(axis=0, start=2, stop=4, into="z"), p.TopK(output="y")), "finish step 1 (slice)"),
        ((p.Pool(), p.TopK()), "finish step 2 (top_k): got FP32 []"),
    ],
)
def test_a_mistake_in_finish_is_named_by_its_step(steps: tuple[p.FinishStep, ...], words: str) -> None:
    assert words in refusal(manifest(IMAGE, [PIXELS], steps, [SCORES], labels=LABELS))


def test_labels_that_are_not_as_many_as_the_classes_are_refused() -> None:
    message = refusal(manifest(IMAGE, [PIXELS], [p.TopK()], [SCORES], labels=("a", "b")))

    assert "got FP32 [3]; it wants [2], as many as there are labels" in message


def test_an_input_range_that_the_steps_leave_is_refused_before_any_request() -> None:
    narrow = TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 8, 6), min=0.0, max=0.5)

    assert "got FP32 [1, 3, 8, 6] in 0..1" in refusal(manifest(IMAGE, [narrow]))


def test_every_input_must_be_fed_and_none_twice() -> None:
    rate = tensor("INT64", 1, name="sr")
    constant = p.Constant(input="sr", shape=(1,), values=(16000.0,))

    check(manifest((constant, *IMAGE), [PIXELS, rate]))
    assert "for 'x', 'sr'; feed the others" in refusal(manifest(IMAGE, [PIXELS, rate]))
    assert "step 2 (constant): input 'sr' is fed twice" in refusal(
        manifest((constant, constant, *IMAGE), [PIXELS, rate])
    )


def test_a_model_with_a_fixed_batch_of_one_or_none_takes_the_same_steps() -> None:
    flat = p.Reshape(shape=(3, 8, 6))

    check(manifest((*IMAGE, flat), [tensor("FP32", -1, 3, 8, 6)]))
    check(manifest((*IMAGE, flat), [tensor("FP32", 1, 3, 8, 6)]))
    check(manifest((*IMAGE, flat), [tensor("FP32", 3, 8, 6)]))


def test_the_manifest_itself_is_refused_with_the_step_that_is_wrong() -> None:
    good = _bundle(IMAGE)
    bad = _bundle(IMAGE[:3])

    assert parse_manifest(encode_manifest(good)) == good
    with pytest.raises(ManifestInvalid, match=r"bundle.json: pipeline: prepare, after step 3: got UINT8"):
        parse_manifest(encode_manifest(bad))


def test_a_tokenizer_that_is_not_among_the_files_is_refused() -> None:
    text = (p.DecodeText(), p.Tokenise(file="tokenizer.json", tokens_max=6, ids="x"))

    with pytest.raises(ManifestInvalid, match=r"pipeline names tokenizer.json, which is not in files"):
        parse_manifest(encode_manifest(_bundle(text, accepts=("text/plain",))))


@pytest.mark.parametrize("change", ['{"step": "run_code"}', '{"step": "invert", "amount": 1}', '{"step": "crop"}'])
def test_a_step_that_this_version_does_not_know_is_refused_and_not_skipped(change: str) -> None:
    raw = encode_manifest(_bundle(IMAGE))
    document = msgspec.json.decode(raw)
    document["pipeline"]["prepare"].insert(1, msgspec.json.decode(change))

    with pytest.raises(ManifestInvalid, match=r"\$\.pipeline\.prepare\[1\]"):
        parse_manifest(msgspec.json.encode(document))


def test_a_release_without_a_pipeline_stays_as_it_was() -> None:
    document = msgspec.json.decode(encode_manifest(_bundle(IMAGE)))
    del document["pipeline"]

    assert parse_manifest(msgspec.json.encode(document)).pipeline is None


SIDES = st.integers(1, 40)
FILTERS = st.sampled_from(["nearest", "bilinear", "bicubic", "area", "lanczos"])
SHARES = st.floats(0, 1)
STEPS = st.one_of(
    st.just(p.Invert()),
    st.builds(p.Resize, height=SIDES, width=SIDES, filter=FILTERS, antialias=st.booleans()),
    st.builds(p.ResizeShorter, side=SIDES, filter=FILTERS),
    st.builds(p.Letterbox, height=SIDES, width=SIDES, filter=FILTERS, place=st.sampled_from(["centre", "corner"])),
    st.builds(p.Crop, height=SIDES, width=SIDES),
    st.builds(p.Region, left=SHARES, top=SHARES, right=SHARES, bottom=SHARES),
    st.builds(p.Layout, order=st.sampled_from(["NCHW", "NHWC"]), colour=st.sampled_from(["RGB", "BGR", "GRAY"])),
    st.builds(p.Normalise, mean=st.just((0.5,)), std=st.sampled_from([(0.5,), (-2.0,), (0.1, 0.2, 0.3)])),
    st.builds(
        p.Quantise,
        scale=st.sampled_from([0.01, 2.0]),
        zero_point=st.integers(0, 127),
        datatype=st.sampled_from(["UINT8", "INT8"]),
    ),
    st.builds(p.Cast, datatype=st.sampled_from(["UINT8", "INT8", "INT32", "FP16", "FP64"])),
    st.builds(p.Transpose, axes=st.permutations(range(4)).map(tuple)),
    st.builds(p.Reshape, shape=st.sampled_from([(1, -1), (-1,), (1, 1, -1)])),
)


@settings(max_examples=400, deadline=None)
@given(
    colour=st.sampled_from(["RGB", "GRAY"]),
    steps=st.lists(STEPS, min_size=1, max_size=5),
    size=st.tuples(SIDES, SIDES),
)
def test_what_is_proven_of_an_image_pipeline_holds_for_every_image(
    colour: str, steps: list[p.PrepareStep], size: tuple[int, int]
) -> None:
    """Steps at random; those that do not fit are left out, so every example is a pipeline that was proven."""
    fitting: list[p.PrepareStep] = [p.DecodeImage(colour=colour)]  # type: ignore[arg-type]
    wanted = tensor("BYTES", -1)
    for step in [*steps, p.Layout(order="NHWC", colour=colour)]:  # type: ignore[arg-type]
        message = refusal(manifest([*fitting, step], [wanted]))
        if f"after step {len(fitting) + 1}" in message:
            fitting.append(step)
            proven = message
    datatype, shape, low, high = _read(proven)
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")

    array = (
        load(manifest(fitting, [TensorSpec(name="x", datatype=datatype, shape=shape)]))  # type: ignore[arg-type]
        .prepare(buffer.getvalue(), "image/png")
        .arrays["x"]
    )

    assert array.flags.c_contiguous
    assert array.ndim == len(shape)
    assert all(want in (-1, actual) for want, actual in zip(shape, array.shape, strict=True))
    slack = 1e-5 * max(1.0, abs(low), abs(high)) if array.dtype.kind == "f" else 0.0
    slack = 0.01 * max(1.0, abs(low), abs(high)) if array.dtype == np.float16 else slack
    assert low - slack <= float(array.min())
    assert float(array.max()) <= high + slack


def _read(message: str) -> tuple[str, tuple[int, ...], float, float]:
    """Return what the checker says that it got: "got UINT8 [1, 3, 4, 5] in 0..255; it wants …"."""
    got = message.partition("got ")[2].partition(";")[0]
    datatype, _, rest = got.partition(" ")
    sizes, _, span = rest.partition(" in ")
    low, _, high = span.partition("..")
    shape = tuple(int(size) for size in sizes.strip("[]").split(",") if size)
    return datatype, shape, float(low or -math.inf), float(high or math.inf)


def _bundle(steps: tuple[p.PrepareStep, ...], accepts: tuple[p.Media, ...] = ("image/png",)) -> Manifest:
    model, golden = describe_file("model.onnx", b"model"), describe_file("golden.npz", b"golden")
    wanted = PIXELS if accepts == ("image/png",) else tensor("INT64", -1, 6)
    return Manifest(
        model=ModelName("m"),
        version="1.0.0",
        release=1,
        inputs=(wanted,),
        outputs=(SCORES,),
        files=(model, golden),
        variants=(Variant(name="any", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
        golden=Golden(file="golden.npz"),
        pipeline=p.Pipeline(accepts=accepts, prepare=steps, finish=(p.Softmax(), p.TopK())),
        labels=LABELS,
    )
