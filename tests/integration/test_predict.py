"""Raw files through real releases: built with their pipeline, checked as the builder does, and predicted from."""

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from muster_agent.engines.port import Session
from muster_agent.engines.registry import engine
from muster_agent.pipeline.build import check_bundle
from muster_agent.pipeline.golden_raw import prove_raw
from muster_agent.pipeline.pipeline import load_pipeline
from muster_agent.pipeline.value import PipelineMissing, PipelineUnloadable, RawRefused
from muster_agent.serving.predict import Predictor
from muster_controller.registry.bundles import build_bundle, check_bundle_folder
from muster_shared.bundle import Manifest
from muster_shared.errors import ManifestInvalid
from muster_simulator.workloads import digits, fetch, magika, raw
from muster_simulator.workloads.spec import write_release

CACHE = Path(__file__).parents[2] / ".cache" / "weights"

SPEC = """
model = "digits"
version = "1.0.0"
release = 1
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]

[[inputs]]
name = "pixels"
datatype = "FP32"
shape = [-1, 1, 8, 8]

[[outputs]]
name = "probabilities"
datatype = "FP32"
shape = [-1, 10]

[[variants]]
name = "ort-fp32"
runtime = "onnxruntime"
precision = "fp32"
files = ["model.onnx"]

[golden]
file = "golden.npz"

[pipeline]
accepts = ["image/png", "image/jpeg"]
prepare = [
  {step = "decode_image", colour = "GRAY"},
  {step = "invert"},
  {step = "resize", height = 8, width = 8, filter = "area"},
  {step = "layout", order = "NCHW", colour = "GRAY"},
  {step = "normalise", divisor = 255.0},
]
finish = [
  {step = "label"},
  {step = "top_k", k = 3},
  {step = "rules", rules = [{name = "even", when = "int(label) % 2 == 0"}]},
]
golden_raw = "raw.zip"
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The linear digits release, as the workload writes it."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, write_release(digits.releases()[0], folder)


@pytest.fixture(scope="module")
def session(release: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder, manifest = release
    loaded = _load(folder, manifest, tmp_path_factory.mktemp("cache"))
    yield loaded
    loaded.close()


@pytest.fixture
def source(release: tuple[Path, Manifest], tmp_path: Path) -> Path:
    """A spec with the release's own files beside it."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("model.onnx", "golden.npz", "raw.zip"):
        (folder / name).write_bytes((release[0] / name).read_bytes())
    (folder / "muster-model.toml").write_text(SPEC)
    return folder


def test_scans_as_pictures_are_read_as_well_as_their_tensors(release: tuple[Path, Manifest], session: Session) -> None:
    folder, manifest = release
    predictor = Predictor(load_pipeline(manifest, folder))
    data = digits.split()
    right = 0

    for image, digit in zip(data.test_images, data.test_digits, strict=True):
        prepared = predictor.prepare(digits.scan(image), None)
        np.testing.assert_allclose(prepared.arrays["pixels"][0], image, atol=1 / 255)
        predictions = predictor.predictions(list(session.run(prepared.arrays).values()), prepared.context)
        right += predictions["label"] == digits.LABELS[digit]

    assert manifest.slo.accuracy is not None
    assert right / len(data.test_digits) >= manifest.slo.accuracy


def test_a_large_photo_of_a_digit_as_jpeg_gives_its_label(release: tuple[Path, Manifest], session: Session) -> None:
    folder, manifest = release
    pipeline = load_pipeline(manifest, folder)
    data = digits.split()
    scan = Image.open(io.BytesIO(digits.scan(data.train_images[0])))
    buffer = io.BytesIO()
    scan.convert("RGB").resize((640, 640), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=90)

    prepared = pipeline.prepare(buffer.getvalue(), "image/jpeg")
    predictions = pipeline.finish(session.run(prepared.arrays), prepared.context)

    assert predictions["label"] == digits.LABELS[data.train_digits[0]]
    assert len(predictions["classes"]) == 3  # type: ignore[arg-type]


def test_threads_share_one_pipeline_without_mixing_their_files(
    release: tuple[Path, Manifest], session: Session
) -> None:
    folder, manifest = release
    pipeline = load_pipeline(manifest, folder)
    scans = [digits.scan(image) for image in digits.split().test_images[:64]]

    def predict(content: bytes) -> dict[str, object]:
        prepared = pipeline.prepare(content, "image/png")
        return pipeline.finish(session.run(prepared.arrays), prepared.context)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(predict, scans * 3))

    assert together == [predict(content) for content in scans] * 3


def test_the_raw_cases_of_a_release_hold_and_other_expectations_do_not(
    release: tuple[Path, Manifest], session: Session, tmp_path: Path
) -> None:
    folder, manifest = release
    pipeline = load_pipeline(manifest, folder)
    blank = raw.grey_png(np.full((32, 32), 255, np.uint8))
    (tmp_path / "wrong.zip").write_bytes(raw.pack([(("image/png", blank), "none")]))
    (tmp_path / "damaged.zip").write_bytes((folder / "raw.zip").read_bytes()[:-30])
    (tmp_path / "other.zip").write_bytes(raw.pack([(("image/png", b"GIF89a"), "0")]))

    assert prove_raw(pipeline, session.run, folder / "raw.zip") == ""
    assert "raw case 0 (case-0): predictions.label is" in prove_raw(pipeline, session.run, tmp_path / "wrong.zip")
    assert "no readable image/png" in prove_raw(pipeline, session.run, tmp_path / "other.zip")
    with pytest.raises(PipelineUnloadable, match=r"damaged.zip: BadZipFile"):
        prove_raw(pipeline, session.run, tmp_path / "damaged.zip")


def test_a_zip_that_unpacks_to_too_much_is_never_unpacked(
    release: tuple[Path, Manifest], session: Session, tmp_path: Path
) -> None:
    folder, manifest = release
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cases.json", json.dumps({"cases": []}))
        archive.writestr("zeros", bytes(65 * 1024 * 1024))

    with pytest.raises(PipelineUnloadable, match="unpacks to"):
        prove_raw(load_pipeline(manifest, folder), session.run, tmp_path / "bomb.zip")


def test_a_spec_with_a_pipeline_becomes_a_bundle_that_was_run_before_it_is_signed(source: Path, tmp_path: Path) -> None:
    manifest = build_bundle(source / "muster-model.toml", tmp_path / "out")

    assert check_bundle_folder(tmp_path / "out") == manifest
    assert manifest.pipeline is not None
    assert "raw.zip" in {file.path for file in manifest.files_for(manifest.variants[0])}
    assert [msgspec.json.decode(msgspec.json.encode(step))["step"] for step in manifest.pipeline.finish] == [
        "label",
        "top_k",
        "rules",
    ]


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ('"decode_image", colour = "GRAY"', '"decode_image"', ManifestInvalid, "step 4 (layout): got a RGB image"),
        ("divisor = 255.0", "divisor = 0.0", ManifestInvalid, "prepare step 5 (normalise)"),
        ("int(label)", "int(lable)", PipelineUnloadable, "rule even does not compile"),
        ('{step = "invert"},', "", PipelineUnloadable, "raw case"),
        ("k = 3", "k = 3, output = 'scores'", ManifestInvalid, "no tensor 'scores'"),
    ],
)
def test_a_pipeline_that_does_not_work_is_not_built(
    source: Path, tmp_path: Path, old: str, new: str, error: type[Exception], words: str
) -> None:
    assert old in SPEC
    (source / "muster-model.toml").write_text(SPEC.replace(old, new))

    with pytest.raises(error) as refused:
        build_bundle(source / "muster-model.toml", tmp_path / "out")

    assert words in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_step_that_is_not_known_is_named_by_the_builder(source: Path, tmp_path: Path) -> None:
    (source / "muster-model.toml").write_text(SPEC.replace('"invert"', '"exec"'))

    with pytest.raises(Exception, match=r"it is not a model spec: Invalid value 'exec' - at `\$.pipeline.prepare"):
        build_bundle(source / "muster-model.toml", tmp_path / "out")


def test_both_magika_generations_answer_a_raw_file(tmp_path: Path) -> None:
    try:
        fetch.wheel("0.5.1", CACHE)
        fetch.wheel("1.0.3", CACHE)
    except fetch.WeightsUnavailable as error:
        pytest.skip(str(error))
    labelled = magika.inputs()
    for spec in magika.releases(CACHE)[:2]:
        folder = tmp_path / spec.version
        manifest = write_release(spec, folder)
        check_bundle(manifest, folder)
        predictor = Predictor(load_pipeline(manifest, folder))

        for content in labelled.contents:
            prepared = predictor.prepare(content, "application/octet-stream")
            np.testing.assert_array_equal(
                prepared.arrays["bytes"], magika.features(manifest.inputs[0], content), strict=True
            )


def test_a_device_without_the_library_says_which_extra_it_lacks(
    release: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = release
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "muster_agent.pipeline.image", raising=False)
    import muster_agent.pipeline

    monkeypatch.delattr(muster_agent.pipeline, "image", raising=False)

    with pytest.raises(PipelineMissing, match=r"install muster-agent\[image\], or send tensors"):
        load_pipeline(manifest, folder)


def test_a_damaged_upload_is_the_callers_fault_and_names_the_step(release: tuple[Path, Manifest]) -> None:
    folder, manifest = release
    predictor = Predictor(load_pipeline(manifest, folder))
    scan = digits.scan(digits.split().test_images[0])

    with pytest.raises(RawRefused, match=r"the input is refused by step 1 \(decode_image\): it is a damaged image/png"):
        predictor.prepare(scan[: len(scan) // 2], "image/png")


def _load(folder: Path, manifest: Manifest, cache: Path) -> Session:
    variant = manifest.variants[0]
    return engine(variant.runtime).load(
        folder / variant.files[0], variant, manifest.inputs, manifest.outputs, threads=1, cache_dir=cache
    )
