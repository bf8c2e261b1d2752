"""Reference files: built as the data says, read back whole, and every defect one clear error."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from muster_agent.cli.program import main
from muster_agent.metrics.confidence import classes_and_confidence, confidence_bins, has_classes
from muster_agent.metrics.reference import (
    FORMAT,
    REFERENCE_BYTES_MAX,
    WINDOW,
    Reference,
    ReferenceUnreadable,
    statistics,
)
from muster_agent.metrics.reference_build import Observed, ReferenceUnbuildable, build, observe
from muster_controller.registry.bundles import build_bundle
from muster_shared.errors import MusterError
from muster_shared.metrics import Kind

Arrays = dict[str, np.ndarray]


def _observed(rows: int = 400, groups: np.ndarray | None = None) -> Observed:
    rng = np.random.default_rng(0)
    highest = rng.uniform(0.5, 1, rows)
    scores = np.stack([highest, 1 - highest], axis=1).astype(np.float32)
    return Observed({"x": rng.standard_normal((rows, 2, 4)).astype(np.float32)}, scores, groups)


RAW = build(_observed())


def _arrays() -> Arrays:
    with np.load(io.BytesIO(RAW)) as archive:
        return dict(archive.items())


def _npz(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


# -- building ----------------------------------------------------------------------------------------------------------


def test_what_was_built_is_read_back() -> None:
    observed = _observed()
    assert observed.scores is not None
    classes, confidence = classes_and_confidence(observed.scores)

    found = Reference.parse(RAW)

    assert found.inferences == 400
    assert found.classes.tolist() == [400, 0]
    assert found.confidence.sum() == 400
    np.testing.assert_array_equal(found.confidence, np.bincount(confidence_bins(confidence), minlength=20))
    assert len(found.confidence_windows) == 1000
    assert found.confidence_windows.mean() == pytest.approx(confidence.mean(), abs=0.002)
    assert found.confidence_windows.std() == pytest.approx(confidence.std() / WINDOW**0.5, rel=0.15)
    assert found.inputs["x"].mean_counts.tolist() == [20] * 20
    assert set(classes.tolist()) == {0}


def test_the_same_rows_give_the_same_bytes() -> None:
    assert build(_observed()) == RAW
    assert build(_observed(), seed=1) != RAW


def test_windows_are_of_one_scene_each_so_that_they_differ_as_scenes_do() -> None:
    groups = np.repeat([f"camera-{number}" for number in range(10)], 40)
    level = np.repeat(np.linspace(0.6, 0.9, 10), 40)
    scores = np.stack([level, 1 - level], axis=1).astype(np.float32)
    inputs = {"x": np.arange(400.0).reshape(400, 1)}

    apart, together = (Reference.parse(build(Observed(inputs, scores, each))) for each in (groups, None))

    assert {round(float(mean), 3) for mean in apart.confidence_windows} == {round(0.6 + at / 30, 3) for at in range(10)}
    assert together.confidence_windows.std() < 0.01 < 0.09 < apart.confidence_windows.std()
    # Ten scenes whose means spread by 0.1: the centre is known to a third of that, however many rows they have.
    assert apart.confidence_error == pytest.approx(level[::40].std(ddof=1) / 10**0.5, rel=0.01)
    assert together.confidence_error < apart.confidence_error / 4


def test_a_release_without_classes_has_a_reference_of_its_inputs() -> None:
    found = Reference.parse(build(Observed({"x": np.arange(300.0).reshape(100, 3)}, None)))

    assert found.classes.size == found.confidence_windows.size == 0
    assert list(found.inputs) == ["x"]


def test_text_is_left_out() -> None:
    observed = Observed({"words": np.array(["a"] * 100), "x": np.zeros((100, 2), np.uint8)}, None)

    assert list(Reference.parse(build(observed)).inputs) == ["x"]


@pytest.mark.parametrize(
    ("observed", "why"),
    [
        (Observed({"x": np.zeros((99, 1))}, None), "there are 99 rows"),
        (Observed({"x": np.zeros((200, 1)), "y": np.zeros((100, 1))}, None), "[100, 200] rows"),
        (Observed({"x": np.full((100, 1), np.nan)}, None), "input 'x' has what is not a finite number"),
        (Observed({"x": np.zeros((100, 1))}, np.full((100, 2), np.nan)), "look at those inputs first"),
        (Observed({"x": np.zeros((100, 1))}, np.ones((100, 2)), np.zeros(99)), "one for each of 100"),
    ],
)
def test_what_makes_no_reference_is_refused_with_the_reason(observed: Observed, why: str) -> None:
    with pytest.raises(ReferenceUnbuildable) as raised:
        build(observed)

    assert why in str(raised.value)


def test_each_row_is_asked_by_itself() -> None:
    asked = []

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        asked.append({name: array.shape for name, array in inputs.items()})
        return np.array([[0.2, 0.8]])

    found = observe({"batched": np.zeros((3, 4)), "fixed": np.zeros((3, 5))}, {"batched": 2, "fixed": 1}, run)

    assert asked == [{"batched": (1, 4), "fixed": (5,)}] * 3
    assert found.scores is not None
    assert found.scores.shape == (3, 2)


# -- confidence --------------------------------------------------------------------------------------------------------


def test_confidence_of_probabilities_is_the_largest_and_of_scores_what_softmax_says() -> None:
    classes, confidence = classes_and_confidence(np.array([[0.1, 0.7, 0.2], [4.0, 4.0, -1000.0], [-3.0, -2.0, -9.0]]))

    assert classes.tolist() == [1, 0, 1]
    np.testing.assert_allclose(confidence, [0.7, 0.5, 1 / (1 + np.exp(-1) + np.exp(-7))], rtol=1e-6)


def test_confidence_of_no_numbers_is_none() -> None:
    _, confidence = classes_and_confidence(np.array([[np.nan, 1.0], [0.5, np.nan], [np.inf, np.inf]], np.float32))

    assert np.isnan(confidence).all()


def test_classes_beyond_the_last_are_the_last() -> None:
    classes, _ = classes_and_confidence(np.eye(1000, dtype=np.float32)[[3, 255, 999]])

    assert classes.tolist() == [3, 255, 255]


@pytest.mark.parametrize("output", [np.zeros((2, 1)), np.zeros(3), np.zeros((1, 2, 3)), np.array([["a", "b"]])])
def test_other_outputs_have_no_classes(output: np.ndarray) -> None:
    assert not has_classes(output)


# -- outliers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8", "?"])
def test_statistics_are_those_of_numpy(dtype: str) -> None:
    rows = (np.random.default_rng(1).random((5, 3, 4)) * 2 * (100 if dtype != "?" else 0.8)).astype(dtype)

    means, stds = statistics(rows)

    np.testing.assert_allclose(means, rows.reshape(5, -1).mean(axis=1, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(stds, rows.reshape(5, -1).std(axis=1, dtype=np.float64), rtol=1e-5)


def test_outliers_are_rows_far_beyond_the_tails_and_those_that_are_no_numbers() -> None:
    reference = Reference.parse(RAW).inputs["x"]
    usual = np.random.default_rng(2).standard_normal((1000, 2, 4)).astype(np.float32)
    odd = np.stack([usual[0] + 5, usual[1] * 9, usual[2] * 0, np.full((2, 4), np.nan, np.float32), usual[3]])

    assert reference.outliers(usual).mean() < 0.01
    assert reference.outliers(odd).tolist() == [True, True, True, True, False]


def test_the_last_digit_of_normalised_rows_makes_no_outlier() -> None:
    rng = np.random.default_rng(3)

    def normalised(rows: int) -> np.ndarray:
        drawn = rng.standard_normal((rows, 50)).astype(np.float32)
        return np.asarray((drawn - drawn.mean(axis=1, keepdims=True)) / drawn.std(axis=1, keepdims=True))

    reference = Reference.parse(build(Observed({"x": normalised(200)}, None))).inputs["x"]

    assert not reference.outliers(normalised(2000)).any()
    assert reference.mean_edges.size == 0


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("format", np.array([2]), "its format is not 1; update the agent first"),
        ("format", None, "it has no array 'format'"),
        ("inferences", np.array([0]), "made of no inferences"),
        ("inferences", np.array([1 << 60]), "counts less than none, or more than there can be"),
        ("classes", np.array([-1, 5]), "counts less than none"),
        ("classes", np.zeros(257, np.int64), "it must have 0 to 256 numbers"),
        ("classes", np.array([0, 0]), "its classes count nothing"),
        ("classes", np.array([3]), "its classes count nothing"),
        ("classes", np.array([1.0, 2.0]), "it must be of int64"),
        ("classes", np.zeros(0, np.int64), "windows of confidence, and no classes"),
        ("confidence", np.zeros(19, np.int64), "it must have 20 to 20 numbers"),
        ("confidence_windows", np.zeros(99, np.float32), "99 windows; 100 to 10000"),
        ("confidence_windows", np.zeros(10_001, np.float32), "it must have 0 to 10000 numbers"),
        ("confidence_windows", np.full(100, 1.5, np.float32), "a number from 0 to 1"),
        ("confidence_windows", np.full(100, np.nan, np.float32), "not a finite number"),
        ("confidence_windows", np.full((10, 10), 0.5, np.float32), "numbers in a row"),
        ("confidence_windows", np.full(100, "0.5"), "must be numbers"),
        ("confidence_error", np.array([-0.1], np.float32), "confidence_error is a number from 0 to 1"),
        ("input.x.mean_edges", np.zeros(19), "do not rise"),
        ("input.x.mean_edges", np.zeros(64), "it must have 0 to 63 numbers"),
        ("input.x.std_counts", np.ones(7, np.int64), "one bin more than there are edges"),
        ("input.x.std_counts", np.zeros(20, np.int64), "must count something"),
        ("input.x.std_edges", None, "it has no array 'input.x.std_edges'"),
        ("input.x.tails", np.array([1.0, 0.0, 0.0, 1.0]), "the wrong way round"),
        ("input.x.tails", np.array([0.0, 1.0, -1.0, 1.0]), "the wrong way round"),
        ("input.x.tails", np.array([0.0, 1.0, 0.0]), "it must have 4 to 4 numbers"),
    ],
)
def test_each_defect_is_named(name: str, value: np.ndarray | None, why: str) -> None:
    arrays = {key: array for key, array in (_arrays() | {name: value}).items() if array is not None}

    with pytest.raises(ReferenceUnreadable) as raised:
        Reference.parse(_npz(arrays))

    assert why in str(raised.value)
    assert str(raised.value).endswith("publish a corrected release")


def test_an_object_array_is_refused_and_never_unpickled() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("classes.npy", "w") as member:
        np.lib.format.write_array(member, np.array([{"a": 1}, None], dtype=object), version=(1, 0))

    with pytest.raises(ReferenceUnreadable, match="must be numbers"):
        Reference.parse(buffer.getvalue())


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_does() -> None:
    bomb = _npz({"classes": np.zeros(REFERENCE_BYTES_MAX, np.int64)})

    assert len(bomb) < REFERENCE_BYTES_MAX / 10
    with pytest.raises(ReferenceUnreadable, match=r"it unpacks to .* bytes; the limit is"):
        Reference.parse(bomb)


def test_a_file_that_is_too_large_is_refused() -> None:
    with pytest.raises(ReferenceUnreadable, match="the limit is"):
        Reference.parse(bytes(REFERENCE_BYTES_MAX + 1))


def test_an_array_that_claims_more_than_it_holds_is_refused_without_being_made() -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": (1 << 50,)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("classes.npy", header.getvalue() + bytes(80))

    with pytest.raises(ReferenceUnreadable, match="claims more, or less, than it holds"):
        Reference.parse(buffer.getvalue())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused() -> None:
    buffer = io.BytesIO(RAW)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("classes.npy", archive.read("classes.npy"))

    with pytest.raises(ReferenceUnreadable, match="two of its arrays have one name"):
        Reference.parse(buffer.getvalue())


@given(st.data())
def test_a_damaged_file_is_one_error_or_still_a_reference(data: st.DataObject) -> None:
    raw = bytearray(RAW)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(raw), len(raw) // 2, 10, 0]))

    try:
        found = Reference.parse(bytes(raw[:cut]))
    except ReferenceUnreadable:
        return

    assert found.inferences >= 1


def test_arrays_of_a_reference_cannot_be_changed() -> None:
    found = Reference.parse(RAW)

    for array in (found.classes, found.confidence_windows, found.inputs["x"].mean_edges):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Softmax of its input: float32 [rows, 3]."""
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], axis=1)],
        "softmax",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def _command(model: Path, inputs: Arrays, *more: str) -> int:
    np.savez(model.parent / "held-out.npz", allow_pickle=False, **inputs)
    out = str(model.parent / "reference.npz")
    return main(["reference", str(model), "--inputs", str(model.parent / "held-out.npz"), "--output", out, *more])


def test_the_command_writes_a_reference_and_says_what_it_is_worth(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.random.default_rng(4).standard_normal((300, 3)).astype(np.float32)

    code = _command(model, {"input.x": rows, "group": np.arange(300) % 30})

    found = Reference.parse((model.parent / "reference.npz").read_bytes())
    assert code == 0
    assert found.inferences == 300
    assert found.classes.tolist() == np.bincount(rows.argmax(axis=1)).tolist()
    told = capsys.readouterr().out
    assert "300 inferences, 3 classes, inputs x" in told
    assert "no array 'group'" not in told


def test_the_command_draws_windows_enough_and_not_too_many(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.zeros((200, 3), np.float32)

    assert [_command(model, {"input.x": rows}, "--windows", number) for number in ("99", "10001")] == [2, 2]
    assert "99 windows; draw 100 to 10,000" in capsys.readouterr().err


def test_the_command_replaces_nothing_unless_it_is_told_to(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.zeros((200, 3), np.float32)
    (model.parent / "reference.npz").write_bytes(b"mine")

    assert _command(model, {"input.x": rows}) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert (model.parent / "reference.npz").read_bytes() == b"mine"
    assert _command(model, {"input.x": rows}, "--force") == 0
    assert "no array 'group'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"x": np.zeros((200, 3), np.float32)}, "has no array 'input.x'"),
        ({"input.x": np.zeros((20, 3), np.float32)}, "there are 20 rows"),
        ({"input.x": np.zeros((200, 3), np.float64)}, "the model refuses a row"),
        ({"input.x": np.zeros((200, 3), np.float32), "group": np.zeros(3)}, "one for each of 200"),
    ],
)
def test_the_command_says_what_is_wrong_with_the_inputs(
    model: Path, capsys: pytest.CaptureFixture[str], inputs: Arrays, why: str
) -> None:
    assert _command(model, inputs) == 2
    assert why in capsys.readouterr().err
    assert not (model.parent / "reference.npz").exists()


# -- in a bundle -------------------------------------------------------------------------------------------------------

_SPEC = """
model = "softmax"
version = "1.0.0"
release = 1
inputs = [{name = "x", datatype = "FP32", shape = [-1, 3]}]
outputs = [{name = "y", datatype = "FP32", shape = [-1, 3]}]
variants = [{name = "cpu", runtime = "onnxruntime", precision = "fp32", files = ["m.onnx"]}]
golden = {inputs = "held-out.npz"}
metrics = {allow = ["classes", "drift"], reference = "reference.npz"}
"""


@pytest.fixture
def spec(model: Path) -> Path:
    _command(model, {"input.x": np.random.default_rng(5).standard_normal((100, 3)).astype(np.float32)})
    (model.parent / "muster-model.toml").write_text(_SPEC)
    return model.parent / "muster-model.toml"


def test_a_bundle_takes_its_reference_along_and_says_what_may_leave(spec: Path, tmp_path: Path) -> None:
    manifest = build_bundle(spec, tmp_path / "out")

    assert manifest.metrics.allow == (Kind.CLASSES, Kind.DRIFT)
    assert manifest.metrics.reference == "reference.npz"
    assert manifest.file("reference.npz") in manifest.files_for(manifest.variants[0])
    assert Reference.parse((tmp_path / "out" / "reference.npz").read_bytes()).inferences == 100


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"not one", "the reference of the release cannot be used"),
        (build(Observed({"z": np.zeros((100, 1))}, None)), "an input 'z', which the release does not have"),
    ],
)
def test_no_bundle_is_built_with_a_reference_that_a_device_could_not_use(
    spec: Path, tmp_path: Path, raw: bytes, why: str
) -> None:
    (spec.parent / "reference.npz").write_bytes(raw)

    with pytest.raises(MusterError, match=why):
        build_bundle(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_format_is_the_first_that_there_is() -> None:
    assert _arrays()["format"].tolist() == [FORMAT] == [1]
