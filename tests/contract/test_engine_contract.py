"""One suite over both engines: what a session promises, whatever runs it."""

import gc
import os
import stat
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from muster_agent.engines import compiled_cache, onnx_runtime, open_vino, registry
from muster_agent.engines.bench import Bench
from muster_agent.engines.golden import self_test
from muster_agent.engines.port import Array, Engine, InferenceFailed, InputRefused, ModelUnloadable, Session
from muster_agent.engines.warmup import warm_up
from muster_shared.bundle import Golden, HardwareMatch, Manifest, Runtime, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName

INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),)
X = np.array([[0.5, 2.0, 1.0], [9.0, 0.0, 3.0]], np.float32)


@pytest.fixture(params=registry.RUNTIMES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return registry.engine(request.param)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """y = x * 2 + 1, FP32 [N, 3]."""
    return write_model(tmp_path / "model.onnx")


@pytest.fixture
def load(engine: Engine, model_file: Path, tmp_path: Path) -> Callable[[], Session]:
    return lambda: engine.load(
        model_file, variant(engine.name), INPUTS, OUTPUTS, threads=1, cache_dir=tmp_path / "cache"
    )


def write_model(file: Path) -> Path:
    shape = ["N", 3]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["d"]), helper.make_node("Add", ["d", "one"], ["y"])],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0]),
            helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


def variant(runtime: Runtime, **options: str) -> Variant:
    return Variant(name="v", runtime=runtime, precision="fp32", files=("model.onnx",), options=options)


def manifest(**golden: float) -> Manifest:
    files = (describe_file("model.onnx", b"m"), describe_file("golden.npz", b"g"))
    return Manifest(
        model=ModelName("affine"),
        version="1.0.0",
        release=1,
        inputs=INPUTS,
        outputs=OUTPUTS,
        files=files,
        variants=(variant("onnxruntime"), variant("openvino")),
        golden=Golden(file="golden.npz", **golden),
    )


def write_golden(file: Path, **arrays: Array) -> Path:
    named = {key.replace("_", ".", 1): array for key, array in arrays.items()}
    np.savez(file, **named)  # type: ignore[arg-type]  # numpy-stubs: the keyword `allow_pickle` is not ours to shadow.
    return file


def test_it_runs_and_says_what_it_runs_on(load: Callable[[], Session], engine: Engine) -> None:
    session = load()

    outputs = session.run({"x": X})

    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], X * 2 + 1)
    assert outputs["y"].dtype == np.float32
    achieved = session.achieved
    assert (achieved.engine, achieved.device, achieved.precision, achieved.threads, achieved.fallback) == (
        engine.name,
        "CPU",
        "fp32",
        1,
        "",
    )
    assert achieved.version[0].isdigit()


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_any_batch_size_runs(load: Callable[[], Session], rows: int) -> None:
    session, x = load(), np.random.default_rng(0).random((rows, 3), np.float32)

    y = session.run({"x": x})["y"]

    np.testing.assert_allclose(y, x * 2 + 1, rtol=1e-6)


def test_an_answer_does_not_change_when_the_next_request_runs(load: Callable[[], Session]) -> None:
    session = load()

    first = session.run({"x": X})["y"]
    session.run({"x": X + 100})

    np.testing.assert_allclose(first, X * 2 + 1)


def test_a_read_only_and_unaligned_view_runs(load: Callable[[], Session]) -> None:
    body = b"{}." + X.tobytes()
    view = np.frombuffer(body, np.float32, offset=3).reshape(2, 3)

    np.testing.assert_allclose(load().run({"x": view})["y"], X * 2 + 1)


@pytest.mark.parametrize(
    ("inputs", "tensor", "reason"),
    [
        ({"z": X}, "x", "missing"),
        ({}, "x", "missing"),
        ({"x": X, "z": X}, "z", "not an input"),
        ({"x": X.astype(np.float64)}, "x", "FP64"),
        ({"x": np.zeros((2, 4), np.float32)}, "x", r"\[2, 4\]"),
        ({"x": np.zeros(3, np.float32)}, "x", r"\[3\]"),
        ({"x": np.zeros((0, 3), np.float32)}, "x", r"\[0, 3\]"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_by_name(
    load: Callable[[], Session], inputs: dict[str, Array], tensor: str, reason: str
) -> None:
    session = load()
    session.run({"x": X})  # An engine that keeps the last input must not answer from it.

    with pytest.raises(InputRefused, match=reason) as refused:
        session.run(inputs)

    assert refused.value.tensor == tensor


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_damaged_file_does_not_load(load: Callable[[], Session], model_file: Path, content: bytes | None) -> None:
    model_file.write_bytes(model_file.read_bytes()[:-9] if content is None else content)

    with pytest.raises(ModelUnloadable):
        load()


def test_a_missing_file_does_not_load(load: Callable[[], Session], model_file: Path) -> None:
    model_file.unlink()

    with pytest.raises(ModelUnloadable):
        load()


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ((TensorSpec(name="z", datatype="FP32", shape=(-1, 3)),), OUTPUTS, "'z'"),
        ((TensorSpec(name="x", datatype="INT8", shape=(-1, 3)),), OUTPUTS, "'x' is FP32 in the model, INT8"),
        ((TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),), OUTPUTS, "'x' has shape"),
        (INPUTS, (TensorSpec(name="q", datatype="FP32", shape=(-1, 3)),), "'q'"),
        (INPUTS, (TensorSpec(name="y", datatype="FP32", shape=(-1, 9)),), "'y' has shape"),
    ],
)
def test_a_model_that_is_not_what_the_manifest_says_does_not_load(
    engine: Engine,
    model_file: Path,
    tmp_path: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    message: str,
) -> None:
    with pytest.raises(ModelUnloadable, match=message):
        engine.load(model_file, variant(engine.name), inputs, outputs, threads=1, cache_dir=tmp_path)


def test_an_option_that_the_engine_does_not_know_does_not_load(
    engine: Engine, model_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelUnloadable, match="NONSENSE"):
        engine.load(model_file, variant(engine.name, NONSENSE="1"), INPUTS, OUTPUTS, threads=1, cache_dir=tmp_path)


def test_openvino_falls_back_to_the_cpu_and_says_why(model_file: Path, tmp_path: Path) -> None:
    engine = registry.engine("openvino")

    session = engine.load(
        model_file, variant("openvino", DEVICES="NPU7"), INPUTS, OUTPUTS, threads=1, cache_dir=tmp_path
    )

    assert session.achieved.device == "CPU"
    assert session.achieved.fallback.startswith("NPU7: ")


@pytest.mark.parametrize(("options", "is_pinned"), [({}, False), ({"ENABLE_CPU_PINNING": "YES"}, True)])
def test_openvino_takes_whichever_processor_is_free_unless_the_variant_says_otherwise(
    model_file: Path, tmp_path: Path, options: dict[str, str], is_pinned: bool
) -> None:
    engine = open_vino.OpenVino()

    session = engine.load(
        model_file, variant("openvino", **options), INPUTS, OUTPUTS, threads=1, cache_dir=tmp_path / "cache"
    )

    assert session._compiled is not None
    assert session._compiled.get_property("ENABLE_CPU_PINNING") is is_pinned


def test_a_closed_session_fails_and_is_freed(load: Callable[[], Session]) -> None:
    session = load()
    inner = weakref.ref(getattr(session, "_session", None) or getattr(session, "_compiled"))  # noqa: B009

    session.close()
    session.close()
    gc.collect()

    assert inner() is None
    with pytest.raises(InferenceFailed, match="closed"):
        session.run({"x": X})


def test_concurrent_callers_each_get_their_own_answer(load: Callable[[], Session]) -> None:
    session = load()

    def ask(number: int) -> bool:
        x = np.full((1 + number % 5, 3), number, np.float32)
        return bool(np.array_equal(session.run({"x": x})["y"], x * 2 + 1))

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(ask, range(400)))


def test_arrays_give_what_named_inputs_give(load: Callable[[], Session]) -> None:
    session = load()

    outputs = session.run_arrays((X,))

    assert len(outputs) == 1
    np.testing.assert_array_equal(outputs[0], session.run({"x": X})["y"])


def test_arrays_keep_the_order_of_the_manifest(engine: Engine, tmp_path: Path) -> None:
    """The model names its tensors b, a -> q, p, and the manifest a, b -> p, q, without r."""
    info = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "abpqr"}
    nodes = [helper.make_node(*node) for node in (("Neg", ["b"], ["q"]), ("Sub", ["a", "b"], ["p"]))]
    nodes.append(helper.make_node("Abs", ["a"], ["r"]))
    graph = helper.make_graph(nodes, "two", [info["b"], info["a"]], [info["q"], info["r"], info["p"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    inputs = tuple(TensorSpec(name=name, datatype="FP32", shape=(-1, 3)) for name in "ab")
    outputs = tuple(TensorSpec(name=name, datatype="FP32", shape=(-1, 3)) for name in "pq")
    session = engine.load(file, variant(engine.name), inputs, outputs, threads=1, cache_dir=tmp_path / "cache")

    p, q = session.run_arrays((X, X * 10))

    np.testing.assert_array_equal(p, X - X * 10)
    np.testing.assert_array_equal(q, -X * 10)


def test_read_only_arrays_run_and_are_left_alone(load: Callable[[], Session]) -> None:
    raw = X.tobytes()
    session = load()

    first = session.run_arrays((np.frombuffer(raw, np.float32).reshape(2, 3),))[0]
    second = session.run_arrays((np.zeros((2, 3), np.float32),))[0]

    np.testing.assert_array_equal(first, X * 2 + 1)
    np.testing.assert_array_equal(second, np.ones((2, 3), np.float32))
    assert raw == X.tobytes()


def test_sizes_that_change_with_every_call_are_each_answered(load: Callable[[], Session]) -> None:
    session = load()

    for rows in (1, 33, 2, 64, 1, 8, 33):
        x = np.full((rows, 3), rows, np.float32)
        np.testing.assert_array_equal(session.run_arrays((x,))[0], x * 2 + 1)


def test_what_large_batches_took_is_given_back_without_a_wrong_answer(
    load: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_vino, "QUIET_S", 0.0)
    monkeypatch.setattr(onnx_runtime, "HEAVY_ROW_S", 0.0)
    session = load()
    session.run({"x": X})

    def ask(number: int) -> bool:
        x = np.full(((1, 64, 2)[number % 3], 3), number, np.float32)
        return bool(np.array_equal(session.run_arrays((x,))[0], x * 2 + 1))

    assert all(ask(number) for number in range(12))
    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(ask, range(200)))


@pytest.mark.parametrize("instances", [1, 3])
def test_as_many_calls_as_there_are_instances_and_more_each_get_their_own_answer(
    engine: Engine, model_file: Path, tmp_path: Path, instances: int
) -> None:
    session = engine.load(
        model_file, variant(engine.name), INPUTS, OUTPUTS, threads=1, cache_dir=tmp_path / "cache", instances=instances
    )

    def ask(number: int) -> bool:
        x = np.full((1 + number % 5, 3), number, np.float32)
        return bool(np.array_equal(session.run_arrays((x,))[0], x * 2 + 1))

    assert session.concurrency >= instances
    assert session.achieved.threads == 1
    with ThreadPoolExecutor(instances + 2) as callers:
        assert all(callers.map(ask, range(400)))


def test_a_session_that_is_closed_under_load_answers_or_says_that_it_is(
    engine: Engine, model_file: Path, tmp_path: Path
) -> None:
    session = engine.load(
        model_file, variant(engine.name), INPUTS, OUTPUTS, threads=1, cache_dir=tmp_path / "cache", instances=2
    )

    def ask(number: int) -> bool:
        if number == 100:
            session.close()
        try:
            return bool(np.array_equal(session.run_arrays((X,))[0], X * 2 + 1))
        except InferenceFailed as error:
            return "closed" in str(error)

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(ask, range(400)))
    with pytest.raises(InferenceFailed, match="closed"):
        session.run_arrays((X,))


def test_the_golden_cases_pass(load: Callable[[], Session], tmp_path: Path) -> None:
    golden = write_golden(tmp_path / "golden.npz", input_x=X, output_y=X * 2 + 1)

    report = self_test(load(), manifest(), golden)

    assert (report.passed, report.cases, report.argmax_agreement, report.reason) == (True, 2, 1.0, "")
    assert report.worst_abs < 1e-5


def test_a_wrong_element_fails_though_the_class_agrees(load: Callable[[], Session], tmp_path: Path) -> None:
    y = X * 2 + 1
    y[1, 0] += 0.5
    golden = write_golden(tmp_path / "golden.npz", input_x=X, output_y=y)

    report = self_test(load(), manifest(), golden)

    assert not report.passed
    assert report.argmax_agreement == 1.0
    assert report.worst_abs == pytest.approx(0.5)
    assert "1 of 2 cases" in report.reason
    assert "'y'" in report.reason


def test_another_class_fails_though_the_elements_agree(load: Callable[[], Session], tmp_path: Path) -> None:
    x = np.array([[1.0, 1.01, 0.0], [5.0, 0.0, 0.0]], np.float32)
    y = np.array([[3.02, 3.0, 1.0], [11.0, 1.0, 1.0]], np.float32)
    golden = write_golden(tmp_path / "golden.npz", input_x=x, output_y=y)

    strict = self_test(load(), manifest(atol=0.1), golden)
    lenient = self_test(load(), manifest(atol=0.1, argmax_agreement=0.5), golden)

    assert (strict.passed, strict.argmax_agreement) == (False, 0.5)
    assert lenient.passed


@pytest.mark.parametrize("side", ["input_x", "output_y"])
def test_a_nan_fails_on_either_side(load: Callable[[], Session], tmp_path: Path, side: str) -> None:
    arrays = {"input_x": X.copy(), "output_y": X * 2 + 1}
    arrays[side][0, 0] = np.nan
    golden = write_golden(tmp_path / "golden.npz", **arrays)

    report = self_test(load(), manifest(atol=1e9, argmax_agreement=0.0), golden)

    assert not report.passed
    assert "NaN" in report.reason
    assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-30]),
        lambda file: file.write_bytes(b"not a zip"),
        lambda file: file.unlink(),
        lambda file: write_golden(file, input_x=X),
        lambda file: write_golden(file, input_x=X, output_y=np.zeros((3, 3), np.float32)),
        lambda file: write_golden(file, input_x=X, output_y=np.zeros((2, 3, 3, 3), np.float32)),
        lambda file: write_golden(file, input_x=X[:0], output_y=X[:0]),
        lambda file: write_golden(file, input_x=X, output_y=np.array([[{}], [{}]], object)),
    ],
)
def test_an_unusable_golden_file_is_a_failed_self_test(
    load: Callable[[], Session], tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    golden = write_golden(tmp_path / "golden.npz", input_x=X, output_y=X)
    spoil(golden)

    report = self_test(load(), manifest(), golden)

    assert not report.passed
    assert "golden" in report.reason


def test_a_warm_up_measures_something_positive(load: Callable[[], Session], tmp_path: Path) -> None:
    golden = write_golden(tmp_path / "golden.npz", input_x=X, output_y=X * 2 + 1)

    latency_ms = warm_up(load(), manifest(), golden, runs=5)

    assert 0 < latency_ms < 1000


def test_a_warm_up_without_time_still_measures(load: Callable[[], Session], tmp_path: Path) -> None:
    golden = write_golden(tmp_path / "golden.npz", input_x=X, output_y=X * 2 + 1)

    assert 0 < warm_up(load(), manifest(), golden, runs=1_000_000, seconds_max=0.0) < 1000


@pytest.mark.parametrize("streams", [1, 3])
def test_a_bench_gets_rows_out_of_a_session_and_passes_on_why_it_does_not(
    load: Callable[[], Session], streams: int
) -> None:
    session, bench = load(), Bench()

    rate = bench.rate(session, [(X[:1],), (X[1:],)], streams=streams, seconds=0.0)
    session.close()

    assert rate.rows_per_s > 0
    assert rate.ms_p95 > 0
    with pytest.raises(InferenceFailed, match="closed"):
        bench.rate(session, [(X[:1],)], streams=streams, seconds=0.0)
    with pytest.raises(InferenceFailed, match="closed"):
        bench.call_ms(session, (X,))


def test_both_engines_are_available_here() -> None:
    assert registry.available() == ("onnxruntime", "openvino")


def test_bytes_tensors_run_on_onnx_runtime_and_are_refused_by_openvino(tmp_path: Path) -> None:
    spec = (TensorSpec(name="x", datatype="BYTES", shape=(-1,)),)
    out = (TensorSpec(name="y", datatype="BYTES", shape=(-1,)),)
    info = [helper.make_tensor_value_info(name, TensorProto.STRING, ["N"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "echo", info[:1], info[1:])
    file = tmp_path / "echo.onnx"
    file.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    )
    session = registry.engine("onnxruntime").load(
        file, variant("onnxruntime"), spec, out, threads=1, cache_dir=tmp_path
    )
    words = np.array([b"one", "zwölf".encode()], object)

    assert session.run({"x": words})["y"].tolist() == words.tolist()
    with pytest.raises(InputRefused, match="UTF-8"):
        session.run({"x": np.array([b"\xff"], object)})
    with pytest.raises(ModelUnloadable, match="BYTES"):
        registry.engine("openvino").load(file, variant("openvino"), spec, out, threads=1, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"PROVIDERS": "CUDA"}, "CUDA: not in this build"),
        ({"PROVIDERS": "TensorRT, CUDAExecutionProvider,CPU,OpenVINO"}, "Tensorrt: not in this build"),
    ],
)
def test_onnx_runtime_falls_back_to_the_cpu_and_says_why(
    model_file: Path, tmp_path: Path, asked: dict[str, str], reason: str
) -> None:
    session = registry.engine("onnxruntime").load(
        model_file, variant("onnxruntime", **asked), INPUTS, OUTPUTS, threads=1, cache_dir=tmp_path
    )

    assert session.achieved.device == "CPU"
    assert session.achieved.fallback.startswith(reason)
    np.testing.assert_array_equal(session.run_arrays((X,))[0], X * 2 + 1)


def test_a_variant_for_accelerators_names_each_provider_that_it_did_not_get(model_file: Path, tmp_path: Path) -> None:
    wanting = msgspec.structs.replace(variant("onnxruntime"), hardware=HardwareMatch(accelerator=("npu", "gpu", "cpu")))

    session = registry.engine("onnxruntime").load(model_file, wanting, INPUTS, OUTPUTS, threads=1, cache_dir=tmp_path)

    refused = [part.partition(":")[0] for part in session.achieved.fallback.split("; ")]
    assert refused == ["QNN", "VitisAI", "OpenVINO", "CoreML", "Nnapi", "CUDA", "MIGraphX", "Dml", "WebGpu"]


def test_a_provider_that_nobody_knows_does_not_load(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnloadable, match="CUDDA"):
        registry.engine("onnxruntime").load(
            model_file, variant("onnxruntime", PROVIDERS="CUDDA"), INPUTS, OUTPUTS, threads=1, cache_dir=tmp_path
        )


class TestCompiledModels:
    """What OpenVINO keeps of a compilation, which it would itself serve unseen."""

    def load(self, model_file: Path, cache_dir: Path) -> Session:
        return registry.engine("openvino").load(
            model_file, variant("openvino"), INPUTS, OUTPUTS, threads=1, cache_dir=cache_dir
        )

    def answer(self, model_file: Path, cache_dir: Path) -> list[float]:
        session = self.load(model_file, cache_dir)
        answer: list[float] = session.run_arrays((X[:1],))[0][0].tolist()
        session.close()
        return answer

    def folder(self, cache_dir: Path) -> Path:
        (folder,) = (cache_dir / compiled_cache.FOLDER).iterdir()
        return folder

    def blob(self, cache_dir: Path) -> Path:
        (blob,) = self.folder(cache_dir).glob("*.blob")
        return blob

    def test_it_is_served_again_from_a_private_folder(self, model_file: Path, tmp_path: Path) -> None:
        first = self.answer(model_file, tmp_path / "cache")
        blob = self.blob(tmp_path / "cache")
        written_at = blob.stat().st_mtime_ns

        second = self.answer(model_file, tmp_path / "cache")

        assert first == second == [2.0, 5.0, 3.0]
        assert blob.stat().st_mtime_ns == written_at
        assert stat.S_IMODE(blob.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(blob.parent.parent.stat().st_mode) == 0o700

    def test_a_flipped_byte_is_noticed_and_compiled_away(self, model_file: Path, tmp_path: Path) -> None:
        self.answer(model_file, tmp_path / "cache")
        blob = self.blob(tmp_path / "cache")
        whole = blob.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            damaged = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
            blob.write_bytes(damaged)

            assert compiled_cache._mismatch(blob.parent) == f"{blob.name} has changed"
            assert self.answer(model_file, tmp_path / "cache") == [2.0, 5.0, 3.0]
            assert compiled_cache._mismatch(blob.parent) == ""
            assert self.blob(tmp_path / "cache").read_bytes() != damaged

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda folder: (folder / compiled_cache.DIGESTS).unlink(),
            lambda folder: (folder / compiled_cache.DIGESTS).write_bytes(b"{"),
            lambda folder: (folder / compiled_cache.DIGESTS).write_bytes(b'{"x": 1}'),
            lambda folder: (folder / "another.blob").write_bytes(b"slipped in"),
            lambda folder: next(folder.glob("*.blob")).unlink(),
            lambda folder: (folder / "nested").mkdir(),
        ],
    )
    def test_a_folder_that_is_not_as_it_was_sealed_is_emptied(
        self, model_file: Path, tmp_path: Path, spoil: Callable[[Path], object]
    ) -> None:
        self.answer(model_file, tmp_path / "cache")
        folder = self.folder(tmp_path / "cache")
        spoil(folder)

        assert self.answer(model_file, tmp_path / "cache") == [2.0, 5.0, 3.0]
        assert compiled_cache._mismatch(folder) == ""
        assert [path.suffix for path in sorted(folder.iterdir())] == [".blob", ".json"]

    def test_a_changed_model_under_the_same_path_size_and_time_is_never_served_from_it(
        self, model_file: Path, tmp_path: Path
    ) -> None:
        times = model_file.stat()
        before = self.answer(model_file, tmp_path / "cache")
        raw = model_file.read_bytes()
        two, three = np.float32(2).tobytes(), np.float32(3).tobytes()
        assert raw.count(two) == 1
        model_file.write_bytes(raw.replace(two, three))
        os.utime(model_file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert model_file.stat().st_size == times.st_size

        after = self.answer(model_file, tmp_path / "cache")

        assert before == [2.0, 5.0, 3.0]
        assert after == [2.5, 7.0, 4.0]

    def test_another_engine_or_processor_compiles_for_itself(self, model_file: Path) -> None:
        def key(*, version: str = "1", processor: str = "p", device: str = "CPU", threads: str = "1") -> str:
            return compiled_cache.key(version, processor, device, {"THREADS": threads}, [model_file])

        keys = {key(), key(version="2"), key(processor="q"), key(device="GPU"), key(threads="2")}

        assert len(keys) == 5

    def test_only_so_many_configurations_are_kept(self, tmp_path: Path) -> None:
        for number in range(20):
            folder = compiled_cache.prepare(tmp_path, f"{number:02}")
            assert folder is not None
            (folder / "a.blob").write_bytes(b"x")
            compiled_cache.seal(folder)

        kept = sorted((tmp_path / compiled_cache.FOLDER).iterdir())

        assert len(kept) == compiled_cache.CONFIGURATIONS_MAX
        assert kept[-1].name == "19"

    def test_a_folder_that_cannot_be_made_is_done_without(self, model_file: Path, tmp_path: Path) -> None:
        (tmp_path / "cache").write_bytes(b"a file in the way")

        assert self.answer(model_file, tmp_path / "cache") == [2.0, 5.0, 3.0]
