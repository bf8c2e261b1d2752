"""Bundle folders and the blob store."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from muster_controller.registry.blobs import BlobStore
from muster_controller.registry.bundles import build_bundle, check_bundle_folder
from muster_controller.registry.errors import BlobMismatch, BlobMissing, BundleBroken
from muster_shared.bundle import CHUNK_BYTES, parse_manifest
from muster_shared.errors import FileTampered, ManifestInvalid, WireError
from muster_shared.ids import Sha256

SPEC = """
model = "digits"
version = "1.0.0"
release = 1
licence = "MIT"
card = "card.md"
labels = ["low", "high"]

[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 2]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [-1, 2]

[[variants]]
name = "ort-fp32"
runtime = "onnxruntime"
precision = "fp32"
files = ["model.onnx", "weights/extra.bin"]
hardware = { arch = ["x86_64"], memory_mb_min = 64 }

[golden]
GOLDEN

[slo]
latency_ms_p95 = 20.0
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A spec with a model that doubles its input, and inputs of three cases."""
    folder = tmp_path / "source"
    (folder / "weights").mkdir(parents=True)
    shape: Sequence[str | int | None] = ["batch", 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    (folder / "weights/extra.bin").write_bytes(bytes(range(256)) * 300)  # Two chunks, the second one shorter.
    (folder / "card.md").write_text("# Digits\n")
    inputs = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(folder / "inputs.npz", **{"input.x": inputs})
    np.savez(folder / "golden.npz", **{"input.x": inputs, "output.y": inputs * 2})
    write_spec(folder, 'file = "golden.npz"')
    return folder


def write_spec(folder: Path, golden: str, old: str = "", new: str = "") -> Path:
    text = SPEC.replace("GOLDEN", golden)
    assert old in text
    text = text.replace(old, new) if old else text
    path = folder / "muster-model.toml"
    path.write_text(text)
    return path


def test_a_spec_becomes_a_folder_that_checks(source: Path, tmp_path: Path) -> None:
    manifest = build_bundle(source / "muster-model.toml", tmp_path / "out")

    assert check_bundle_folder(tmp_path / "out") == manifest
    assert parse_manifest((tmp_path / "out/bundle.json").read_bytes()) == manifest
    assert [file.path for file in manifest.files] == ["model.onnx", "weights/extra.bin", "golden.npz"]
    assert len(manifest.file("weights/extra.bin").chunks) == 2
    assert manifest.card == "# Digits\n"
    assert manifest.variants[0].hardware.memory_mb_min == 64


def test_golden_outputs_are_computed_when_only_inputs_are_given(source: Path, tmp_path: Path) -> None:
    spec = write_spec(source, 'inputs = "inputs.npz"')

    manifest = build_bundle(spec, tmp_path / "out")

    with np.load(tmp_path / "out" / manifest.golden.file) as golden:
        np.testing.assert_array_equal(golden["output.y"], golden["input.x"] * 2)
    check_bundle_folder(tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("release = 1", "release = 0", ManifestInvalid),
        ("release = 1", "relase = 1", BundleBroken),
        ('"model.onnx"', '"missing.onnx"', BundleBroken),
        ('"model.onnx"', '"../source/model.onnx"', BundleBroken),
        ('"model.onnx"', '"bundle.json"', BundleBroken),
        ('"card.md"', '"gone.md"', BundleBroken),
        ('file = "golden.npz"', 'file = "golden.npz"\ninputs = "inputs.npz"', BundleBroken),
        ('version = "1.0.0"', 'version = "new"', ManifestInvalid),
    ],
)
def test_a_spec_that_cannot_be_built_leaves_nothing_behind(
    source: Path, tmp_path: Path, old: str, new: str, error: type[Exception]
) -> None:
    spec = write_spec(source, 'file = "golden.npz"', old=old, new=new)

    with pytest.raises(error):
        build_bundle(spec, tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_bundle_folder_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    build_bundle(source / "muster-model.toml", tmp_path / "out")

    with pytest.raises(BundleBroken):
        build_bundle(source / "muster-model.toml", tmp_path / "out")


def test_a_folder_that_is_not_what_its_manifest_says_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = build_bundle(source / "muster-model.toml", out)
    extra = out / "weights/extra.bin"
    original = extra.read_bytes()

    extra.write_bytes(original[:-1] + b"!")
    with pytest.raises(FileTampered):
        check_bundle_folder(out)
    extra.write_bytes(original + b"!")
    with pytest.raises(FileTampered):
        check_bundle_folder(out)
    extra.unlink()
    with pytest.raises(BundleBroken):
        check_bundle_folder(out)
    extra.symlink_to(source / "weights/extra.bin")
    with pytest.raises(BundleBroken):
        check_bundle_folder(out)
    extra.unlink()
    extra.write_bytes(original)
    (out / "stowaway.so").write_bytes(b"!")
    with pytest.raises(BundleBroken):
        check_bundle_folder(out)
    (out / "stowaway.so").unlink()

    assert check_bundle_folder(out) == manifest


def test_a_chunk_digest_that_lies_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = build_bundle(source / "muster-model.toml", out)
    chunk = manifest.file("weights/extra.bin").chunks[1]
    raw = (out / "bundle.json").read_bytes()
    (out / "bundle.json").write_bytes(raw.replace(chunk.encode(), b"0" * 64))

    with pytest.raises(FileTampered) as caught:
        check_bundle_folder(out)

    assert caught.value.name == "weights/extra.bin chunk 1"


def digest(raw: bytes) -> Sha256:
    return Sha256(hashlib.sha256(raw).hexdigest())


def test_a_blob_is_kept_and_read_by_range(tmp_path: Path) -> None:
    raw = bytes(range(256)) * 1000
    store = BlobStore(tmp_path / "blobs")

    store.put(io.BytesIO(raw), digest(raw), len(raw))
    store.put(io.BytesIO(b"unread"), digest(raw), len(raw))

    assert store.has(digest(raw))
    assert store.length(digest(raw)) == len(raw)
    assert store.read_range(digest(raw), CHUNK_BYTES, CHUNK_BYTES) == raw[CHUNK_BYTES : 2 * CHUNK_BYTES]
    assert store.read_range(digest(raw), len(raw) - 1, 100) == raw[-1:]
    assert (tmp_path / "blobs" / digest(raw)[:2] / digest(raw)).is_file()


@pytest.mark.parametrize("sent", [b"short", b"right length!", b"much longer than it was said to be"])
def test_what_is_not_what_its_name_says_is_not_kept(tmp_path: Path, sent: bytes) -> None:
    right = b"RIGHT LENGTH!"
    store = BlobStore(tmp_path)

    with pytest.raises(BlobMismatch):
        store.put(io.BytesIO(sent), digest(right), len(right))

    assert not store.has(digest(right))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("length", [12, 14])
def test_the_length_must_be_right_as_well(tmp_path: Path, length: int) -> None:
    raw = b"RIGHT LENGTH!"

    with pytest.raises(BlobMismatch, match=f"{length} bytes"):
        BlobStore(tmp_path).put(io.BytesIO(raw), digest(raw), length)


class Endless:
    """A stream that never ends, and counts what was taken from it."""

    def __init__(self) -> None:
        self.taken = 0

    def read(self, size: int, /) -> bytes:
        self.taken += size
        return bytes(size)


def test_an_endless_stream_is_cut_off_at_the_expected_length(tmp_path: Path) -> None:
    stream = Endless()

    with pytest.raises(BlobMismatch):
        BlobStore(tmp_path).put(stream, digest(b""), 1000)

    assert stream.taken <= 1001


def test_a_blob_that_is_not_there_and_a_name_that_is_no_digest_are_told_apart(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)

    with pytest.raises(BlobMissing):
        store.read_range(digest(b"gone"), 0, 1)
    with pytest.raises(WireError):
        store.has(Sha256("../../etc/passwd"))


def test_leftovers_of_interrupted_writes_are_swept(tmp_path: Path) -> None:
    raw = b"kept"
    store = BlobStore(tmp_path)
    store.put(io.BytesIO(raw), digest(raw), len(raw))
    leftover = store.path(digest(raw)).parent / ".abc.tmp"
    leftover.write_bytes(b"half")

    store.sweep()

    assert not leftover.exists()
    assert store.has(digest(raw))
