"""The release bundle: `bundle.json`, which names everything that a device loads, and how its files are cut into chunks.

    bundle.json ─┬─ inputs, outputs          what the model takes and gives (Open Inference Protocol data types)
                 ├─ variants ── files        one runtime x precision x hardware; each file by length, digest and chunks
                 ├─ pipeline                 from a raw file to the inputs, and from the outputs to labels
                 ├─ golden                   signed inputs with the outputs that this release must give on any device
                 ├─ slo                      what the publisher claims; a device holds the release to it in probation
                 └─ lineage, licence, card   where it comes from

Pure: parsing, checking and cutting. Signing is in `signing`, files are opened by the registry and by the agent's store.
"""

import hashlib
from collections.abc import Iterator
from typing import Literal

import msgspec

from muster_shared import ids, pipeline_check
from muster_shared.errors import ManifestInvalid, WireError
from muster_shared.ids import ModelName, Sha256
from muster_shared.metrics import Kind
from muster_shared.pipeline import Pipeline
from muster_shared.undecodable import UNDECODABLE, reason

FORMAT = 1
CHUNK_BYTES = 60 * 1024
"""A chunk travels raw, one a message: larger ones hurt heartbeats on the same broker (p99 7 to 88 ms at 1 MiB)."""
PROBLEM_MAX = 500  # Characters of a refusal: it repeats names, and those may be as long as the manifest.
MANIFEST_BYTES_MAX = 4 * 1024 * 1024
FILE_BYTES_MAX = 8 * 1024**3
VARIANTS_MAX = 64
FILES_MAX = 64
CHUNK_BYTES_MIN, CHUNK_BYTES_MAX = 1024, 120 * 1024  # A chunk and its topic fit the smallest packet limit, 128 KiB.

DataType = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]
Runtime = Literal["onnxruntime", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output. `shape` has -1 where the size is free; axis 0 is the batch when it is -1.

    Of an input, `finite` refuses NaN and infinities, `min` and `max` (inclusive) what lies outside.
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    finite: bool = True
    min: float | None = None
    max: float | None = None


class BundleFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file by content. `chunks`: SHA-256 of consecutive pieces of `chunk_bytes` (the last may be shorter)."""

    path: str
    sha256: Sha256
    length: int
    chunk_bytes: int = CHUNK_BYTES
    chunks: tuple[Sha256, ...] = ()


class HardwareMatch(msgspec.Struct, frozen=True, kw_only=True):
    """What a device must be to run a variant. Empty means: any."""

    arch: tuple[str, ...] = ()
    """As `platform.machine()` says: x86_64, aarch64."""
    accelerator: tuple[str, ...] = ()
    """One of which the device must report: cpu, gpu, npu."""
    memory_mb_min: int = 0


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the release: runtime, precision, the hardware that it fits, its files (the first is loaded)."""

    name: str
    runtime: Runtime
    precision: Precision
    files: tuple[str, ...]
    hardware: HardwareMatch = HardwareMatch()
    options: dict[str, str] = {}
    """Passed to the engine, such as INFERENCE_PRECISION_HINT."""


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """The self-test: `file` is a NumPy `.npz` with `input.<name>` and `output.<name>` arrays, axis 0 the cases.

    `atol` and `rtol` bound each output element; `argmax_agreement` is the share of cases (0..1) whose largest
    output must be in the same place, for models that end in classes.
    """

    file: str
    atol: float = 1e-3
    rtol: float = 1e-3
    argmax_agreement: float = 1.0


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """What the publisher claims of the release on its declared hardware; probation is judged against it."""

    latency_ms_p95: float = 1000.0
    memory_mb: int = 2048
    error_rate: float = 0.0
    accuracy: float | None = None
    """Share (0..1) of labelled feedback that is right; None when nothing is claimed."""


class StateTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor that a device carries from a request of a sequence to the next: zeros first, then `output`'s value."""

    input: str
    output: str


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """How a device should serve the release. What is 0 or empty is measured on the device, within `slo`."""

    batch_max: int = 0
    """Rows of one call of the engine at most; 1: never batch."""
    delay_us_max: int = 0
    """How long a request may wait for others to fill a batch."""
    batches_preferred: tuple[int, ...] = ()
    """Sizes to run as soon as they are full, ascending."""
    instances_max: int = 0
    """Concurrent calls of the engine at most."""
    cache: bool = False
    """Answer an input that was seen before from memory. Only for models that always answer alike."""
    state: tuple[StateTensor, ...] = ()
    """Of a stateful model; requests then name their sequence, and the state's tensors are the device's own."""
    selection: Literal["first", "measured"] = "first"
    """Which fitting variant runs: the publisher's first, or the fastest of all that pass the golden cases here."""


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    parents: tuple[str, ...] = ()
    data_sha256: Sha256 | None = None
    code_sha256: Sha256 | None = None
    source: str = ""


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """What may leave a device of what the release saw and said (`muster_shared.metrics`), and the reference for it."""

    allow: tuple[Kind, ...] = ()
    """Nothing leaves that is not named here. Kinds without classes need none."""
    reference: str | None = None
    """A file of the bundle, NumPy `.npz` (docs/metrics-reference.md): what confidence, classes and inputs were like
    when the release was made. Without it no drift is seen."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`bundle.json`."""

    format: int = FORMAT
    model: ModelName
    version: str
    release: int
    """A counter that only rises within a model: what 'newer' means."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[BundleFile, ...]
    variants: tuple[Variant, ...]
    golden: Golden
    slo: Slo = Slo()
    serving: Serving = Serving()
    pipeline: Pipeline | None = None
    """From a raw file to the inputs, and from the outputs to predictions; None: the release takes tensors only."""
    metrics: Metrics = Metrics()
    labels: tuple[str, ...] = ()
    lineage: Lineage = Lineage()
    licence: str = "proprietary"
    card: str = ""
    """The model card, Markdown."""

    @property
    def target(self) -> str:
        """The TUF target path of this release."""
        return target_path(self.model, self.version)

    def file(self, path: str) -> BundleFile:
        """Return the file named `path`; every path that a checked manifest mentions is there."""
        return next(file for file in self.files if file.path == path)

    def files_for(self, variant: Variant) -> tuple[BundleFile, ...]:
        """Return what a device needs to run `variant`: its files, the golden cases and what the pipeline reads."""
        more = self.pipeline.files if self.pipeline is not None else ()
        reference = () if self.metrics.reference is None else (self.metrics.reference,)
        paths = dict.fromkeys((*variant.files, self.golden.file, *more, *reference))
        return tuple(self.file(path) for path in paths)


def target_path(model: ModelName, version: str) -> str:
    return f"models/{model}/{version}/bundle.json"


def parse_manifest(raw: bytes) -> Manifest:
    """Return the manifest in `raw`, checked as far as it can be without its files.

    Raises:
        ManifestInvalid: it does not parse, or contradicts itself; the message names the field.
    """
    if len(raw) > MANIFEST_BYTES_MAX:
        raise ManifestInvalid(f"bundle.json has {len(raw)} bytes; the limit is {MANIFEST_BYTES_MAX}")
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except UNDECODABLE as error:
        raise ManifestInvalid(f"bundle.json: {reason(error)}") from error
    problem = next(_problems(manifest), None)
    if problem is not None:
        raise ManifestInvalid(f"bundle.json: {problem[:PROBLEM_MAX]}")
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the canonical bytes of `manifest` (what is hashed, signed and sent)."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1)


def describe_file(path: str, raw: bytes, chunk_bytes: int = CHUNK_BYTES) -> BundleFile:
    """Return the manifest entry of a file with the content `raw`."""
    return BundleFile(
        path=path,
        sha256=digest(raw),
        length=len(raw),
        chunk_bytes=chunk_bytes,
        chunks=tuple(digest(raw[start : start + chunk_bytes]) for start in range(0, len(raw), chunk_bytes)),
    )


def digest(raw: bytes) -> Sha256:
    return Sha256(hashlib.sha256(raw).hexdigest())


def _problems(manifest: Manifest) -> Iterator[str]:
    if manifest.format != FORMAT:
        yield f"format {manifest.format} is not understood (this is {FORMAT}); update the agent first"
    try:
        ids.name(manifest.model, "model")
        ids.version(manifest.version)
        for file in manifest.files:
            ids.sha256(file.sha256)
            for chunk in file.chunks:
                ids.sha256(chunk)
        for variant in manifest.variants:
            ids.name(variant.name, "variant")
    except WireError as error:
        yield str(error)
    if manifest.release < 1:
        yield "release must be a counter from 1"
    if not manifest.inputs or not manifest.outputs:
        yield "inputs and outputs must not be empty"
    if not 1 <= len(manifest.variants) <= VARIANTS_MAX:
        yield f"there must be 1 to {VARIANTS_MAX} variants"
    if not 1 <= len(manifest.files) <= FILES_MAX:
        yield f"there must be 1 to {FILES_MAX} files"
    for tensor in (*manifest.inputs, *manifest.outputs):
        if any(size == 0 or size < -1 for size in tensor.shape):
            yield f"shape {tensor.shape} of {tensor.name}: each size is positive, or -1 for free"
    paths = [file.path for file in manifest.files]
    if len(set(paths)) != len(paths):
        yield "two files have one path"
    for file in manifest.files:
        if not file.path or file.path.startswith("/") or "\\" in file.path or ".." in file.path.split("/"):
            yield f"path {file.path!r} must stay inside the bundle"
        if not 0 < file.length <= FILE_BYTES_MAX:
            yield f"{file.path} has a length of {file.length}; it must be 1 to {FILE_BYTES_MAX}"
        elif not CHUNK_BYTES_MIN <= file.chunk_bytes <= CHUNK_BYTES_MAX:
            yield f"{file.path} has chunks of {file.chunk_bytes} bytes; they must be 1 to 120 KiB"
        elif len(file.chunks) != -(-file.length // file.chunk_bytes):
            yield f"{file.path} lists {len(file.chunks)} chunks; its length needs {-(-file.length // file.chunk_bytes)}"
    for variant in manifest.variants:
        if not variant.files:
            yield f"variant {variant.name} has no files"
        for path in variant.files:
            if path not in paths:
                yield f"variant {variant.name} names {path}, which is not in files"
    if manifest.golden.file not in paths:
        yield f"golden names {manifest.golden.file}, which is not in files"
    if manifest.metrics.reference is not None and manifest.metrics.reference not in paths:
        yield f"metrics.reference names {manifest.metrics.reference}, which is not in files"
    if manifest.pipeline is not None:
        inputs, outputs = manifest.inputs, manifest.outputs
        yield from pipeline_check.problems(manifest.pipeline, inputs, outputs, manifest.labels, paths)
    yield from _serving_problems(manifest)
    if not 0 <= manifest.golden.argmax_agreement <= 1:
        yield "golden.argmax_agreement is a share from 0 to 1"
    if manifest.slo.accuracy is not None and not 0 <= manifest.slo.accuracy <= 1:
        yield "slo.accuracy is a share from 0 to 1"
    if not 0 <= manifest.slo.error_rate < 1:
        yield "slo.error_rate is a share from 0 to 1"


def _serving_problems(manifest: Manifest) -> Iterator[str]:
    serving = manifest.serving
    if min(serving.batch_max, serving.delay_us_max, serving.instances_max, 0) < 0:
        yield "serving.batch_max, delay_us_max and instances_max are 0 or more"
    if any(size < 1 for size in serving.batches_preferred):
        yield "serving.batches_preferred are sizes from 1"
    inputs = {tensor.name: (tensor.datatype, tensor.shape) for tensor in manifest.inputs}
    outputs = {tensor.name: (tensor.datatype, tensor.shape) for tensor in manifest.outputs}
    for state in serving.state:
        if state.input not in inputs or state.output not in outputs:
            yield f"serving.state names {state.input} and {state.output}, which are not an input and an output"
        elif inputs[state.input] != outputs[state.output]:
            yield f"serving.state: output {state.output} is not what input {state.input} takes"
    if len({state.input for state in serving.state}) != len(serving.state):
        yield "serving.state names an input twice"
    if serving.state and len(serving.state) == len(manifest.inputs):
        yield "serving.state leaves no input to the caller"
    if serving.state and serving.cache:
        yield "serving.cache: the answers of a stateful model are not the same for the same input"
