"""The smallest bundle folder that is one: for tests of signatures, which never load what is signed."""

from pathlib import Path

from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant, describe_file, encode_manifest
from muster_shared.ids import ModelName


def write_bundle(parent: Path, model: ModelName, release: int) -> Path:
    """Write a bundle folder for version `release`.0.0 of `model`, or the same one again, and return it."""
    files = {"model.onnx": f"{model} {release}".encode(), "golden.npz": b"cases"}
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    manifest = Manifest(
        model=model,
        version=f"{release}.0.0",
        release=release,
        inputs=(tensor,),
        outputs=(tensor,),
        files=tuple(describe_file(name, raw) for name, raw in files.items()),
        variants=(Variant(name="any", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
        golden=Golden(file="golden.npz"),
    )
    folder = parent / f"{model}-{release}"
    folder.mkdir(exist_ok=True)
    for name, raw in {**files, "bundle.json": encode_manifest(manifest)}.items():
        (folder / name).write_bytes(raw)
    return folder
