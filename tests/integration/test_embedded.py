"""The engine within a program of its own: what it opens, what it refuses to open, and what it answers."""

import io
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from muster_agent.embedded import Engine, NothingFits
from muster_agent.engines.port import InferenceFailed, InputRefused, ModelUnloadable
from muster_shared.bundle import (
    Golden,
    HardwareMatch,
    Manifest,
    Runtime,
    TensorSpec,
    Variant,
    describe_file,
    digest,
    encode_manifest,
)
from muster_shared.errors import FileTampered, ManifestInvalid
from muster_shared.ids import ModelName

X = np.array([[1, 2, 3]], np.float32)


def bundle(
    folder: Path, *, constant: float = 7, expected: float = 7, variants: Sequence[Variant] | None = None
) -> Path:
    """A bundle folder whose model answers y = x + constant, and whose golden case expects x + expected."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("c", TensorProto.FLOAT, [1], [constant])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    cases = io.BytesIO()
    np.savez(cases, **{"input.x": X, "output.y": X + np.float32(expected)})
    files = {"m.onnx": model.SerializeToString(), "golden.npz": cases.getvalue()}
    manifest = Manifest(
        model=ModelName("sums"),
        version="1.0.0",
        release=1,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3), max=100),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
        files=tuple(describe_file(name, raw) for name, raw in files.items()),
        variants=tuple(variants or (variant("onnxruntime"),)),
        golden=Golden(file="golden.npz"),
    )
    folder.mkdir()
    for name, raw in {**files, "bundle.json": encode_manifest(manifest)}.items():
        (folder / name).write_bytes(raw)
    return folder


def variant(runtime: Runtime, *, arch: tuple[str, ...] = (), name: str = "") -> Variant:
    return Variant(
        name=name or runtime,
        runtime=runtime,
        precision="fp32",
        files=("m.onnx",),
        hardware=HardwareMatch(arch=arch),
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_bundle_is_opened_proven_and_answers(tmp_path: Path, runtime: Runtime) -> None:
    folder = bundle(tmp_path / "b", variants=[variant(runtime)])

    with Engine.open(folder) as engine:
        batch, row = engine.infer({"x": np.repeat(X, 5, axis=0)}), engine.infer(X[0])

    assert batch.outputs["y"].tolist() == [[8, 9, 10]] * 5
    assert row.outputs["y"].tolist() == [8, 9, 10]
    assert (row.version, row.digest) == ("1.0.0", digest((folder / "bundle.json").read_bytes()))
    assert row.release.engine.startswith(runtime)
    assert row.request_id != batch.request_id


def test_the_first_variant_that_runs_here_is_taken(tmp_path: Path) -> None:
    elsewhere, here = variant("onnxruntime", arch=("z80",), name="elsewhere"), variant("onnxruntime", name="here")
    folder = bundle(tmp_path / "b", variants=[elsewhere, here])

    with Engine.open(folder, threads=1) as engine:
        assert engine.release.engine.endswith("(here)")
    with pytest.raises(NothingFits, match="elsewhere: it needs onnxruntime and z80"):
        Engine.open(folder, variant="elsewhere")
    with pytest.raises(ModelUnloadable, match="no variant 'absent'"):
        Engine.open(folder, variant="absent")
    with pytest.raises(NothingFits, match="here: it needs onnxruntime"):
        Engine.open(folder, runtimes=("openvino",))


def test_a_file_that_is_not_the_one_named_is_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b")
    raw = bytearray((folder / "m.onnx").read_bytes())
    raw[-1] ^= 1
    (folder / "m.onnx").write_bytes(raw)

    with pytest.raises(FileTampered, match=r"m\.onnx"):
        Engine.open(folder)


def test_an_engine_that_fails_the_golden_cases_is_not_used(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "b", constant=7, expected=8)

    with pytest.raises(NothingFits, match="onnxruntime: it fails the golden cases") as caught:
        Engine.open(folder)

    assert set(caught.value.reasons) == {"onnxruntime"}


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid, match="muster model build"):
        Engine.open(tmp_path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.array([[1, np.nan, 3]], np.float32), "not a finite number"),
        (np.array([[1, 2, 101]], np.float32), "above 100"),
        (np.zeros((1, 4), np.float32), "has shape"),
        (np.zeros((1, 3), np.float64), "is FP64"),
    ],
)
def test_an_input_that_the_manifest_does_not_allow_is_refused(tmp_path: Path, given: np.ndarray, said: str) -> None:
    with Engine.open(bundle(tmp_path / "b")) as engine, pytest.raises(InputRefused, match=said):
        engine.infer(given)


def test_threads_may_share_an_engine(tmp_path: Path) -> None:
    with Engine.open(bundle(tmp_path / "b")) as engine, ThreadPoolExecutor(4) as pool:
        together = threading.Barrier(4)

        def ask(k: int) -> list[float]:
            together.wait(20)
            return [float(engine.infer(X * k).outputs["y"][0, 0]) for _ in range(50)]

        answers = list(pool.map(ask, range(4)))

    assert answers == [[k + 7.0] * 50 for k in range(4)]


def test_after_it_was_closed_it_answers_no_more_and_leaves_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "cache"
    engine = Engine.open(bundle(tmp_path / "b"), cache_dir=kept)

    engine.close()
    engine.close()

    with pytest.raises(InferenceFailed, match="closed"):
        engine.infer(X)
    assert [each.name for each in kept.iterdir()] == [engine.release.digest]
