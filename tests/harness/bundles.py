"""Bundle folders for tests that never load what is in them: the smallest that is one, one with a card, any other."""

from collections.abc import Mapping
from pathlib import Path

from muster_shared.bundle import (
    Golden,
    Manifest,
    TensorSpec,
    Variant,
    describe_file,
    digest,
    encode_manifest,
    parse_manifest,
)
from muster_shared.ids import ModelName
from muster_shared.messages import ReleaseRef


def write_bundle(parent: Path, model: ModelName, release: int) -> Path:
    """Write a bundle folder for version `release`.0.0 of `model`, or the same one again, and return it."""
    files = {"model.onnx": f"{model} {release}".encode(), "golden.npz": b"cases"}
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    manifest = _unloaded(model, f"{release}.0.0", release, tensor, tensor, files)
    return write_contents(parent / f"{model}-{release}", manifest, files)


def write_named_bundle(folder: Path, model: ModelName, version: str, release: int) -> Path:
    """Write a bundle with a model card into a folder, and return that."""
    files = {"model.onnx": f"weights of {version}".encode() * 100, "golden.npz": b"golden" * 50}
    takes = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    gives = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
    card = f"# {model} {version}\n\nHandwritten digits, 8 x 8 pixels."
    return write_contents(folder, _unloaded(model, version, release, takes, gives, files, card), files)


def write_contents(folder: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> Path:
    """Write `bundle.json` and what is beside it into a folder, and return that."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in {**contents, "bundle.json": encode_manifest(manifest)}.items():
        (folder / name).write_bytes(raw)
    return folder


def release_ref(raw: bytes) -> ReleaseRef:
    """Return how the release whose `bundle.json` is `raw` is named to devices."""
    manifest = parse_manifest(raw)
    return ReleaseRef(
        model=manifest.model,
        version=manifest.version,
        release=manifest.release,
        bundle_sha256=digest(raw),
        bundle_length=len(raw),
    )


def _unloaded(
    model: ModelName,
    version: str,
    release: int,
    takes: TensorSpec,
    gives: TensorSpec,
    files: Mapping[str, bytes],
    card: str = "",
) -> Manifest:
    return Manifest(
        model=model,
        version=version,
        release=release,
        inputs=(takes,),
        outputs=(gives,),
        files=tuple(describe_file(name, raw) for name, raw in files.items()),
        variants=(Variant(name="any", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
        golden=Golden(file="golden.npz"),
        card=card,
    )
