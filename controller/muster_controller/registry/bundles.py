"""Bundle folders: checking one, and building one from a TOML spec.

A folder holds `bundle.json` and exactly the files that it names. What a manifest may say is `muster_shared.bundle`'s;
here its files are opened. Nothing is signed and nothing is served.

The spec, `muster-model.toml`; paths are relative to it:

    model = "digits"
    version = "1.0.0"
    release = 1                          # a counter that only rises within the model
    licence = "BSD-3-Clause"             # optional
    card = "card.md"                     # optional, Markdown
    labels = ["zero", "one"]             # optional

    [[inputs]]
    name = "pixels"
    datatype = "FP32"
    shape = [-1, 64]

    [[outputs]]
    name = "scores"
    datatype = "FP32"
    shape = [-1, 10]

    [[variants]]
    name = "ort-fp32"
    runtime = "onnxruntime"              # or openvino
    precision = "fp32"
    files = ["model.onnx"]               # the first is loaded
    hardware = { arch = ["x86_64"] }     # optional; also accelerator, memory_mb_min
    options = {}                         # optional, passed to the engine

    [golden]
    file = "golden.npz"                  # arrays input.<name> and output.<name>, axis 0 the cases; or instead
    # inputs = "golden-inputs.npz"       # input.<name> only: outputs are computed here with ONNX Runtime
    atol = 1e-3                          # optional; also rtol, argmax_agreement

    [slo]                                # optional
    latency_ms_p95 = 20.0

    [lineage]                            # optional
    source = "https://example.org/digits"

    [pipeline]                           # optional: raw files in, labels out; every step is in docs/pipelines.md
    accepts = ["image/png", "image/jpeg"]
    prepare = [
      {step = "decode_image", colour = "GRAY"},
      {step = "resize", height = 8, width = 8, filter = "area"},
      {step = "layout", order = "NCHW", colour = "GRAY"},
      {step = "normalise"},
      {step = "reshape", shape = [1, 64]},
    ]
    finish = [{step = "top_k", k = 3}]
    golden_raw = "raw.zip"               # optional: raw files with what must be predicted for them

    [metrics]                            # optional: nothing leaves a device that is not allowed here
    allow = ["classes", "confidence", "latency", "inputs", "drift", "feedback"]
    reference = "reference.npz"          # optional: `muster-agent reference` makes it; without it no drift is seen

A pipeline is proven before anything is written: its types here, its files, rules and raw cases by the agent's own code,
which reads the reference as well, through the entry point group `muster.bundle_checks`.
"""

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import msgspec

from muster_controller.registry import durable
from muster_controller.registry.errors import BundleBroken
from muster_shared.bundle import (
    CHUNK_BYTES,
    MANIFEST_BYTES_MAX,
    BundleFile,
    Golden,
    HardwareMatch,
    Lineage,
    Manifest,
    Metrics,
    Precision,
    Runtime,
    Slo,
    TensorSpec,
    Variant,
    encode_manifest,
    parse_manifest,
)
from muster_shared.errors import FileTampered
from muster_shared.ids import ModelName, Sha256
from muster_shared.pipeline import Pipeline

MANIFEST = "bundle.json"
GOLDEN_COMPUTED = "golden.npz"
CHECKS = "muster.bundle_checks"
"""The entry point group of what looks into a bundle before it is signed: `(manifest, folder) -> None`, raising."""


class _Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    file: str | None = None
    inputs: str | None = None
    atol: float = 1e-3
    rtol: float = 1e-3
    argmax_agreement: float = 1.0


class _Variant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    runtime: Runtime
    precision: Precision
    files: tuple[str, ...]
    hardware: HardwareMatch = HardwareMatch()
    options: dict[str, str] = {}


class _Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: ModelName
    version: str
    release: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[_Variant, ...]
    golden: _Golden
    slo: Slo = Slo()
    lineage: Lineage = Lineage()
    pipeline: Pipeline | None = None
    metrics: Metrics = Metrics()
    labels: tuple[str, ...] = ()
    licence: str = "proprietary"
    card: str | None = None


def check_bundle_folder(folder: Path) -> Manifest:
    """Return the manifest of `folder` if the folder is exactly what it says.

    Raises:
        BundleBroken: a file is missing, too many, or no plain file.
        FileTampered: a file or chunk is not the one that the manifest names.
        ManifestInvalid: `bundle.json` does not say what it must.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleBroken(str(folder), f"there is no {MANIFEST}; build the folder with `muster model build`")
    if path.stat().st_size > MANIFEST_BYTES_MAX:
        raise BundleBroken(str(path), f"it has more than {MANIFEST_BYTES_MAX} bytes")
    manifest = parse_manifest(path.read_bytes())
    named = {file.path for file in manifest.files}
    for found in sorted(folder.rglob("*")):
        name = found.relative_to(folder).as_posix()
        if found.is_symlink() or not (found.is_file() or found.is_dir()):
            raise BundleBroken(name, "only plain files belong into a bundle; put the file itself there")
        if found.is_file() and name not in named and name != MANIFEST:
            raise BundleBroken(name, f"{MANIFEST} does not name it; remove it, or build the bundle again")
    for file in manifest.files:
        if not (folder / file.path).is_file():
            raise BundleBroken(file.path, f"{MANIFEST} names it but it is not there; build the bundle again")
        actual = describe_path(folder / file.path, file.path, file.chunk_bytes)
        if actual.sha256 != file.sha256 or actual.length != file.length:
            raise FileTampered(file.path, file.sha256, actual.sha256)
        for index, (expected, chunk) in enumerate(zip(file.chunks, actual.chunks, strict=True)):
            if expected != chunk:
                raise FileTampered(f"{file.path} chunk {index}", expected, chunk)
    return manifest


def describe_path(path: Path, name: str, chunk_bytes: int = CHUNK_BYTES) -> BundleFile:
    """Return the manifest entry of the file at `path`, in constant memory."""
    whole, length, chunks = hashlib.sha256(), 0, []
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            whole.update(chunk)
            length += len(chunk)
            chunks.append(Sha256(hashlib.sha256(chunk).hexdigest()))
    return BundleFile(
        path=name,
        sha256=Sha256(whole.hexdigest()),
        length=length,
        chunk_bytes=chunk_bytes,
        chunks=tuple(chunks),
    )


def build_bundle(spec_file: Path, out: Path) -> Manifest:
    """Build the folder `out`, which must not exist, from a TOML spec (see the head of this module).

    Raises:
        BundleBroken: the spec does not parse or a file is missing; `out` is not made then.
        ManifestInvalid: what the spec says contradicts itself.
        MusterError: a check of the group `muster.bundle_checks` refuses it.
    """
    spec = _read_spec(spec_file)
    if out.exists():
        raise BundleBroken(str(out), "it is there already and is never overwritten; remove it or choose another")
    durable.make_folder(out.parent)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=durable.TEMPORARY, dir=out.parent))
    try:
        manifest = _fill(spec, spec_file.parent, work)
        check_bundle_folder(work)
        _check_by_agent(manifest, work)
        work.chmod(0o755)
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    durable.sync_folder(out.parent)
    return manifest


def _check_by_agent(manifest: Manifest, folder: Path) -> None:
    """Let the agent's own code load the reference, and load and run the pipeline. Raises MusterError."""
    what = "pipeline" if manifest.pipeline is not None else "metrics.reference"
    if manifest.pipeline is None and manifest.metrics.reference is None:
        return
    checks = tuple(entry_points(group=CHECKS))
    if not checks:
        raise BundleBroken(
            what, "it must be tried before it is signed, and the agent is not installed here; install muster-agent"
        )
    for entry in checks:
        try:
            check = entry.load()
        except ImportError as error:
            raise BundleBroken(what, f"its check {entry.value} cannot be loaded ({error})") from error
        check(manifest, folder)


def _read_spec(spec_file: Path) -> _Spec:
    try:
        return msgspec.toml.decode(spec_file.read_bytes(), type=_Spec)
    except OSError as error:
        raise BundleBroken(str(spec_file), f"it cannot be read ({error})") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise BundleBroken(str(spec_file), f"it is not a model spec: {error}") from error


def _fill(spec: _Spec, source: Path, work: Path) -> Manifest:
    golden, computed = spec.golden.file, spec.golden.inputs
    if (golden is None) == (computed is None):
        raise BundleBroken("golden", "name either `file` or `inputs`")
    paths = list(dict.fromkeys(path for variant in spec.variants for path in variant.files))
    if golden is not None and golden not in paths:
        paths.append(golden)
    if spec.pipeline is not None:
        paths += [path for path in spec.pipeline.files if path not in paths]
    if spec.metrics.reference is not None and spec.metrics.reference not in paths:
        paths.append(spec.metrics.reference)
    for path in paths:
        _copy(source, path, work)
    if computed is not None:
        golden = GOLDEN_COMPUTED
        if golden in paths:
            raise BundleBroken(golden, "the computed golden cases take this name; rename the other file")
        _compute_golden(spec, source / computed, work, work / golden)
        paths.append(golden)
    manifest = Manifest(
        model=spec.model,
        version=spec.version,
        release=spec.release,
        inputs=spec.inputs,
        outputs=spec.outputs,
        files=tuple(describe_path(work / path, path) for path in paths),
        variants=tuple(
            Variant(
                name=variant.name,
                runtime=variant.runtime,
                precision=variant.precision,
                files=variant.files,
                hardware=variant.hardware,
                options=variant.options,
            )
            for variant in spec.variants
        ),
        golden=Golden(
            file=str(golden),
            atol=spec.golden.atol,
            rtol=spec.golden.rtol,
            argmax_agreement=spec.golden.argmax_agreement,
        ),
        slo=spec.slo,
        pipeline=spec.pipeline,
        metrics=spec.metrics,
        labels=spec.labels,
        lineage=spec.lineage,
        licence=spec.licence,
        card=_read_card(source, spec.card),
    )
    raw = encode_manifest(manifest)
    parse_manifest(raw)
    durable.write(work / MANIFEST, raw)
    return manifest


def _copy(source: Path, path: str, work: Path) -> None:
    parts = path.split("/")
    if not path or path == MANIFEST or path.startswith("/") or ".." in parts or "\\" in path:
        raise BundleBroken(path, "a file of a bundle has a plain relative path")
    target = work / path
    durable.make_folder(target.parent)
    try:
        with (source / path).open("rb") as original, target.open("xb") as copy:
            shutil.copyfileobj(original, copy, 1024 * 1024)
            copy.flush()
            os.fsync(copy.fileno())
    except OSError as error:
        raise BundleBroken(path, f"it cannot be copied ({error})") from error
    durable.sync_folder(target.parent)


def _read_card(source: Path, card: str | None) -> str:
    if card is None:
        return ""
    try:
        return (source / card).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleBroken(card, f"the model card cannot be read ({error})") from error


def _compute_golden(spec: _Spec, inputs_file: Path, work: Path, out: Path) -> None:
    """Write the golden cases: the given inputs with what ONNX Runtime answers, one case at a time."""
    try:
        import numpy as np
        import onnxruntime
    except ImportError as error:
        raise BundleBroken(
            "golden.inputs", "ONNX Runtime is not installed here; install `onnxruntime`, or give `golden.file` instead"
        ) from error
    variant = next((variant for variant in spec.variants if variant.runtime == "onnxruntime"), None)
    if variant is None:
        raise BundleBroken("golden.inputs", "no variant runs on ONNX Runtime; give `golden.file` instead")
    arrays: dict[str, Any] = {}  # NumPy arrays by name, straight into the archive.
    try:
        session = onnxruntime.InferenceSession(str(work / variant.files[0]), providers=["CPUExecutionProvider"])
        with np.load(inputs_file, allow_pickle=False) as given:
            feeds = {tensor.name: given[f"input.{tensor.name}"] for tensor in spec.inputs}
        cases = {len(feed) for feed in feeds.values()}
        if len(cases) != 1:
            raise BundleBroken(inputs_file.name, "its arrays differ in their number of cases (axis 0)")
        names = [tensor.name for tensor in spec.outputs]
        answers = [session.run(names, _case(spec, feeds, case)) for case in range(cases.pop())]
        for name, feed in feeds.items():
            arrays[f"input.{name}"] = feed
        for position, tensor in enumerate(spec.outputs):
            join = np.concatenate if tensor.shape[:1] in ((-1,), (1,)) else np.stack
            arrays[f"output.{tensor.name}"] = join([answer[position] for answer in answers])
    except BundleBroken:
        raise
    except Exception as error:  # The engine and NumPy share no error tree; either way the spec cannot be built.
        raise BundleBroken("golden.inputs", f"the golden outputs cannot be computed ({error})") from error
    np.savez(out, **arrays)
    durable.write(out, out.read_bytes())


def _case(spec: _Spec, feeds: dict[str, Any], case: int) -> dict[str, Any]:
    """Return one case, as a batch of one when the array has no axis of cases beside the tensor's own."""
    return {
        tensor.name: feed[case : case + 1] if feed.ndim == len(tensor.shape) else feed[case]
        for tensor in spec.inputs
        for feed in (feeds[tensor.name],)
    }
