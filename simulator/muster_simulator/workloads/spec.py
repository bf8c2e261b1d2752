"""A release before it is published: all its bytes and claims, and how they become a bundle folder.

    Draft ── prove each variant on the golden cases, make the reference ──> ReleaseSpec ── write_release ──> bundle.json
                                                                                                              + files

What does not hold on this machine is not shipped. Signing and publishing are the controller's.
"""

import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from muster_agent.metrics import reference_build
from muster_shared.bundle import (
    Golden,
    Lineage,
    Manifest,
    Metrics,
    Precision,
    Runtime,
    Slo,
    TensorSpec,
    Variant,
    describe_file,
    encode_manifest,
    parse_manifest,
    target_path,
)
from muster_shared.errors import BundleError
from muster_shared.ids import ModelName, Sha256
from muster_shared.metrics import Kind
from muster_shared.pipeline import Pipeline
from muster_simulator.workloads import inference, raw
from muster_simulator.workloads.card import CardText, Proof, render
from muster_simulator.workloads.labelled import Array, LabelledInputs

GOLDEN_FILE = "golden.npz"
REFERENCE_FILE = "reference.npz"
GOLDEN_CASES = 16
GOLDEN_MARGIN = 0.1  # Between the two largest outputs: a near tie tests how a processor rounds, not the release.
AGREEMENT_MIN = 1.0
ATOL_RUNGS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
ATOL_INT8_MIN = 0.05  # One step of one activation, rounded the other way, moves a probability by up to 0.03.
ATOL_MARGIN = 2.0  # Other processors round differently from the one that built the release, int8 most of all.


class VariantUnproven(BundleError):
    """The variant that defines a release does not run, or no variant holds its golden cases."""


@dataclass(frozen=True)
class Draft:
    """What an author hands in. The first variant defines the golden outputs and is always ONNX Runtime."""

    model: ModelName
    version: str
    release: int
    input: TensorSpec
    output: TensorSpec
    models: dict[str, bytes]
    variants: tuple[Variant, ...]
    golden_candidates: Array
    """Inputs to take the golden cases from, in order of preference."""
    labels: tuple[str, ...]
    latency_ms_p95: float
    text: CardText
    lineage: Lineage
    licence: str
    pipeline: Pipeline
    """Without raw cases: they are added here."""
    raw_candidates: tuple[raw.RawInput, ...]
    """The golden candidates as a client sends them, in the same order."""
    claim: float | None = None
    """An accuracy that is claimed without measuring; None measures it."""


@dataclass(frozen=True)
class ReleaseSpec:
    """A release that is ready to be written. `files` holds every byte of it but the manifest."""

    model: ModelName
    version: str
    release: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[tuple[str, bytes], ...]
    variants: tuple[Variant, ...]
    golden: Golden
    slo: Slo
    pipeline: Pipeline
    metrics: Metrics
    labels: tuple[str, ...]
    lineage: Lineage
    licence: str
    card: str
    proofs: tuple[Proof, ...]
    """One for each variant shipped, in order; what this machine measured, not what the author claims."""

    @property
    def accuracy(self) -> float:
        """Share (0..1) of the labelled inputs that the defining variant answers right."""
        return self.proofs[0].accuracy

    def content(self, path: str) -> bytes:
        """Return the bytes of the file at `path`. Raises KeyError when there is none."""
        return dict(self.files)[path]

    def manifest(self) -> Manifest:
        return Manifest(
            model=self.model,
            version=self.version,
            release=self.release,
            inputs=self.inputs,
            outputs=self.outputs,
            files=tuple(describe_file(path, raw) for path, raw in self.files),
            variants=self.variants,
            golden=self.golden,
            slo=self.slo,
            pipeline=self.pipeline,
            metrics=self.metrics,
            labels=self.labels,
            lineage=self.lineage,
            licence=self.licence,
            card=self.card,
        )


def write_release(spec: ReleaseSpec, folder: Path) -> Manifest:
    """Write `<folder>/bundle.json` and the files that it names; return the manifest as a reader parses it.

    Raises:
        ManifestInvalid: the release contradicts itself.
    """
    encoded = encode_manifest(spec.manifest())
    manifest = parse_manifest(encoded)
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in spec.files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "bundle.json").write_bytes(encoded)
    return manifest


def variant(runtime: Runtime, precision: Precision, path: str) -> Variant:
    """Return the variant that loads the ONNX file at `path`."""
    # OpenVINO otherwise runs bf16 on processors that have it, without saying so: magika loses five points of accuracy.
    options = {"INFERENCE_PRECISION_HINT": "f32"} if runtime == "openvino" else {}
    return Variant(name=f"{runtime}-{precision}", runtime=runtime, precision=precision, files=(path,), options=options)


def parent(model: ModelName, version: str) -> str:
    """Return how a lineage names the release that another was made from."""
    return target_path(model, version)


def digest_arrays(*arrays: NDArray[np.generic]) -> Sha256:
    """Return one digest over the content of `arrays`, for `Lineage.data_sha256`."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).tobytes())
    return Sha256(content.hexdigest())


def finish(draft: Draft, labelled: LabelledInputs) -> ReleaseSpec:
    """Prove each variant of `draft` on this machine and return the release with those that hold.

    Raises:
        VariantUnproven: not even the defining variant agrees with itself.
    """
    tests = labelled.batch(draft.input)
    definer = inference.load(draft.variants[0], draft.models[draft.variants[0].files[0]])
    chosen, golden_outputs = _golden_cases(definer, draft.golden_candidates)
    golden_inputs = draft.golden_candidates[chosen]
    raw_cases = _raw_cases(draft, chosen, golden_outputs)
    proven = [
        (candidate, proof)
        for candidate in draft.variants
        if _holds(proof := _prove(draft, candidate, (golden_inputs, golden_outputs), (tests, labelled.truths)))
    ]
    if not proven or proven[0][0] != draft.variants[0]:
        raise VariantUnproven(f"{draft.model} {draft.version}: {draft.variants[0].name} does not repeat its own output")
    variants = tuple(candidate for candidate, _ in proven)
    proofs = tuple(proof for _, proof in proven)
    measured = math.floor(min(proof.accuracy for proof in proofs) * 100) / 100
    claim = measured if draft.claim is None else draft.claim
    shipped = {path for each in variants for path in each.files}
    # The labelled inputs were not trained on, and nothing is known of where they are from: one scene.
    observed = reference_build.Observed({draft.input.name: tests}, inference.run(definer, tests))
    golden_file = _npz({f"input.{draft.input.name}": golden_inputs, f"output.{draft.output.name}": golden_outputs})
    return ReleaseSpec(
        model=draft.model,
        version=draft.version,
        release=draft.release,
        inputs=(draft.input,),
        outputs=(draft.output,),
        files=(
            *((path, model) for path, model in draft.models.items() if path in shipped),
            (GOLDEN_FILE, golden_file),
            (raw.RAW_FILE, raw_cases),
            (REFERENCE_FILE, reference_build.build(observed)),
        ),
        variants=variants,
        golden=Golden(
            file=GOLDEN_FILE,
            atol=_tolerance(proven),
            argmax_agreement=AGREEMENT_MIN,
        ),
        slo=Slo(latency_ms_p95=draft.latency_ms_p95, accuracy=claim),
        pipeline=msgspec.structs.replace(draft.pipeline, golden_raw=raw.RAW_FILE),
        metrics=Metrics(allow=tuple(Kind), reference=REFERENCE_FILE),
        labels=draft.labels,
        lineage=draft.lineage,
        licence=draft.licence,
        card=render(
            f"{draft.model} {draft.version}",
            draft.text,
            proofs if draft.claim is None else (),
            claim,
            len(labelled),
            draft.licence,
        ),
        proofs=proofs,
    )


def right(outputs: Array, labels: tuple[str, ...], truths: tuple[str, ...]) -> NDArray[np.bool_]:
    """Return for each row of `outputs` [cases, classes] whether its largest is the label named in `truths`."""
    answers = (labels[index] for index in outputs.argmax(axis=1))
    return np.array([answer == truth for answer, truth in zip(answers, truths, strict=True)])


def _golden_cases(definer: inference.Network, candidates: Array) -> tuple[NDArray[np.intp], Array]:
    """Return the positions of the first clear cases among `candidates`, and their outputs."""
    outputs = inference.run(definer, candidates)
    ranked = np.sort(outputs, axis=1)
    clear = np.flatnonzero(ranked[:, -1] - ranked[:, -2] >= GOLDEN_MARGIN)[:GOLDEN_CASES]
    return clear, outputs[clear]


def _raw_cases(draft: Draft, chosen: NDArray[np.intp], outputs: Array) -> bytes:
    """Return the raw cases: the first of the golden ones that are small enough to travel."""
    labels = [draft.labels[index] for index in outputs.argmax(axis=1)]
    cases = [(draft.raw_candidates[position], label) for position, label in zip(chosen, labels, strict=True)]
    return raw.pack([case for case in cases if len(case[0][1]) <= raw.RAW_BYTES_MAX][: raw.RAW_CASES])


def _prove(
    draft: Draft, candidate: Variant, golden: tuple[Array, Array], tests: tuple[Array, tuple[str, ...]]
) -> Proof:
    """Hold `candidate` against the golden (inputs, outputs) and against the tests (inputs, truths)."""
    network = inference.load(candidate, draft.models[candidate.files[0]])
    golden_outputs, outputs = golden[1], inference.run(network, golden[0])
    return Proof(
        variant=candidate.name,
        error_max=float(np.abs(outputs - golden_outputs).max()),
        argmax_agreement=float((outputs.argmax(axis=1) == golden_outputs.argmax(axis=1)).mean()),
        accuracy=float(right(inference.run(network, tests[0]), draft.labels, tests[1]).mean()),
    )


def _holds(proof: Proof) -> bool:
    return proof.argmax_agreement >= AGREEMENT_MIN and proof.error_max * ATOL_MARGIN <= ATOL_RUNGS[-1]


def _tolerance(proven: list[tuple[Variant, Proof]]) -> float:
    """Return the smallest rung that every proven variant keeps, here and most likely on another processor."""
    has_int8 = any(candidate.precision == "int8" for candidate, _ in proven)
    needed = max(ATOL_INT8_MIN if has_int8 else 0.0, *(proof.error_max * ATOL_MARGIN for _, proof in proven))
    return next(rung for rung in ATOL_RUNGS if needed <= rung)


def _npz(arrays: dict[str, Array]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
