"""Speech: whether somebody speaks, 32 ms at a time, by two published generations of a real model that keeps a state.

    1.0.0  silero_vad.onnx of silero-vad 5.1.2               ONNX Runtime; `sr` comes with each request
    2.0.0  silero_vad_openvino_16k.onnx of silero-vad 6.2.3  ONNX Runtime and OpenVINO, 16 kHz only

Callers send the 512 samples that are new behind the 64 before them; the state is the device's own and goes from request
to request of a sequence. The weights are as published. Here is no speech to measure on: the signals are made, so the
releases claim no accuracy.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from muster_shared.bundle import (
    Golden,
    Lineage,
    Manifest,
    Serving,
    Slo,
    StateTensor,
    TensorSpec,
    Variant,
    describe_file,
    encode_manifest,
    parse_manifest,
)
from muster_shared.ids import ModelName, Sha256
from muster_simulator.workloads import fetch
from muster_simulator.workloads.card import CardText, render
from muster_simulator.workloads.spec import GOLDEN_FILE, parent, variant

MODEL = ModelName("speech")
PACKAGE = "silero-vad"
LICENCE = "MIT"
RATE_HZ = 16_000
# `OnnxWrapper.__call__` of the package: 512 new samples at 16 kHz, behind the last 64 of those before.
NEW, CONTEXT = 512, 64
INPUT = TensorSpec(name="input", datatype="FP32", shape=(1, CONTEXT + NEW), min=-1.0, max=1.0)
STATE = TensorSpec(name="state", datatype="FP32", shape=(2, 1, 128))
RATE = TensorSpec(name="sr", datatype="INT64", shape=(), min=RATE_HZ, max=RATE_HZ)
OUTPUT = TensorSpec(name="output", datatype="FP32", shape=(1, 1))
STATE_NEXT = TensorSpec(name="stateN", datatype="FP32", shape=(2, 1, 128))
SERVING = Serving(state=(StateTensor(input=STATE.name, output=STATE_NEXT.name),), batch_max=1)
GOLDEN_CASES = 16
GOLDEN_ATOL = 0.01
LATENCY_MS_P95 = 16.0  # Half of what a window of sound lasts.

_SHA256 = {
    "silero_vad/data/silero_vad.onnx": Sha256("2623a2953f6ff3d2c1e61740c6cdb7168133479b267dfef114a4a3cc5bdd788f"),
    "silero_vad/data/silero_vad_openvino_16k.onnx": Sha256(
        "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87"
    ),
}
_TEXT_DATA = (
    "Trained by its authors on recordings that are not published. Nothing was measured here: the signals are made."
)
_TEXT_LIMITS = (
    "One channel of 16 kHz. The answer is the probability of speech in the window as it comes: the package's own rules "
    "for where speech begins and ends are not applied. Without the 64 samples before the window it finds no speech."
)

Samples = NDArray[np.float32]
Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class SpeechRelease:
    """A release that is ready to be written: all its bytes."""

    manifest: Manifest
    files: Mapping[str, bytes]

    @property
    def model(self) -> bytes:
        """The ONNX file that all its variants load."""
        return self.files[self.manifest.variants[0].files[0]]


def releases(cache_folder: Path) -> tuple[SpeechRelease, SpeechRelease]:
    """Fetch the weights (once) and make both releases, older first; about a second.

    Raises:
        WeightsUnavailable: the weights are neither in `cache_folder` nor to be had.
    """
    old, new = (fetch.wheel(version, cache_folder, PACKAGE) for version in ("5.1.2", "6.2.3"))
    first = _release(
        "1.0.0",
        1,
        old,
        "silero_vad/data/silero_vad.onnx",
        (INPUT, STATE, RATE),
        "The model of silero-vad 5.1.2: the probability of speech in a window of 32 ms. `sr` is 16000.",
        (variant("onnxruntime", "fp32", "model.onnx"),),  # OpenVINO does not convert its two sampling rates.
    )
    second = _release(
        "2.0.0",
        2,
        new,
        "silero_vad/data/silero_vad_openvino_16k.onnx",
        (INPUT, STATE),
        "The 16 kHz model of silero-vad 6.2.3, on either engine: the probability of speech in a window of 32 ms.",
        (variant("onnxruntime", "fp32", "model.onnx"), variant("openvino", "fp32", "model.onnx")),
        parents=("1.0.0",),
    )
    return first, second


def write_release(release: SpeechRelease, folder: Path) -> Manifest:
    """Write `<folder>/bundle.json` and the files that it names; return the manifest as a reader parses it."""
    encoded = encode_manifest(release.manifest)
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in release.files.items():
        (folder / path).write_bytes(content)
    (folder / "bundle.json").write_bytes(encoded)
    return parse_manifest(encoded)


def voice(seconds: float, pitch_hz: float = 120.0) -> Samples:
    """Return something like a voice: pulses of the glottis through the formants of five vowels, five a second.

    The formants are those of men in Peterson and Barney, Control methods used in a study of the vowels, 1952, table II.
    """
    vowels = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    phase = np.cumsum(pitch_hz * (1 + 0.1 * np.sin(2 * np.pi * 2.1 * time_s))) / RATE_HZ
    pulses = np.diff(np.floor(phase), prepend=0.0)
    response_s = np.arange(RATE_HZ // 20) / RATE_HZ
    parts = []
    for at, start in enumerate(range(0, len(pulses), RATE_HZ // 5)):
        part = pulses[start : start + RATE_HZ // 5]
        for formant_hz in vowels[at % len(vowels)]:
            ringing = np.exp(-np.pi * 110 * response_s) * np.cos(2 * np.pi * formant_hz * response_s)
            part = np.convolve(part, ringing)[: len(part)]
        loudness = np.sqrt(np.sin(np.pi * (np.arange(len(part)) + 0.5) / len(part)))
        parts.append(loudness * part / max(1e-9, float(np.abs(part).max())))
    return (0.5 * np.concatenate(parts)).astype(np.float32)


def tone(seconds: float, pitch_hz: float = 440.0) -> Samples:
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return (0.5 * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.float32)


def noise(seconds: float, seed: int = 0) -> Samples:
    drawn = np.random.default_rng(seed).standard_normal(int(seconds * RATE_HZ))
    return np.clip(0.1 * drawn, -1.0, 1.0).astype(np.float32)


def windows(samples: Samples) -> Iterator[Samples]:
    """Yield what callers send, one after another: float32 [1, 576]. What is left over at the end is dropped."""
    padded = np.concatenate((np.zeros(CONTEXT, np.float32), samples))
    for start in range(0, len(samples) - NEW + 1, NEW):
        yield padded[start : start + CONTEXT + NEW][np.newaxis]


def reference(release: SpeechRelease, samples: Samples) -> Iterator[tuple[Arrays, Arrays]]:
    """Yield the inputs and the outputs of each window, by ONNX Runtime itself, the state handed on by hand."""
    session = onnxruntime.InferenceSession(release.model, _quiet(), providers=["CPUExecutionProvider"])
    yield from _run(session, release.manifest.inputs, samples)


def _run(
    session: onnxruntime.InferenceSession, inputs: tuple[TensorSpec, ...], samples: Samples
) -> Iterator[tuple[Arrays, Arrays]]:
    state: NDArray[np.generic] = np.zeros(STATE.shape, np.float32)
    for window in windows(samples):
        known = {INPUT.name: window, STATE.name: state, RATE.name: np.array(RATE_HZ, np.int64)}
        given = {spec.name: known[spec.name] for spec in inputs}
        probability, state = session.run([OUTPUT.name, STATE_NEXT.name], given)
        yield given, {OUTPUT.name: probability, STATE_NEXT.name: state}


def _release(
    version: str,
    release: int,
    wheel: Path,
    member: str,
    inputs: tuple[TensorSpec, ...],
    what: str,
    variants: tuple[Variant, ...],
    parents: tuple[str, ...] = (),
) -> SpeechRelease:
    model = fetch.read_member(wheel, member, _SHA256[member])
    files = {"model.onnx": model, GOLDEN_FILE: _golden(model, inputs)}
    manifest = Manifest(
        model=MODEL,
        version=version,
        release=release,
        inputs=inputs,
        outputs=(OUTPUT, STATE_NEXT),
        files=tuple(describe_file(path, content) for path, content in files.items()),
        variants=variants,
        # The largest of 128 numbers of a state is no class.
        golden=Golden(file=GOLDEN_FILE, atol=GOLDEN_ATOL, rtol=GOLDEN_ATOL, argmax_agreement=0.0),
        slo=Slo(latency_ms_p95=LATENCY_MS_P95),
        serving=SERVING,
        lineage=Lineage(
            parents=tuple(parent(MODEL, each) for each in parents),
            code_sha256=Sha256(hashlib.sha256(Path(__file__).read_bytes()).hexdigest()),
            source=wheel.name,
        ),
        licence=LICENCE,
        card=render(f"{MODEL} {version}", CardText(what, _TEXT_DATA, _TEXT_LIMITS), (), 0.0, 0, LICENCE),
    )
    return SpeechRelease(manifest, files)


def _golden(model: bytes, inputs: tuple[TensorSpec, ...]) -> bytes:
    """Return the golden cases: windows of noise and a voice, each with the state that the ones before it left."""
    session = onnxruntime.InferenceSession(model, _quiet(), providers=["CPUExecutionProvider"])
    samples = np.concatenate((noise(0.2), voice(1.0)))
    cases = list(_run(session, inputs, samples))
    chosen = cases[:: max(1, len(cases) // GOLDEN_CASES)][:GOLDEN_CASES]
    arrays = {
        **{f"input.{spec.name}": np.stack([given[spec.name] for given, _ in chosen]) for spec in inputs},
        **{f"output.{spec.name}": np.stack([made[spec.name] for _, made in chosen]) for spec in (OUTPUT, STATE_NEXT)},
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # Errors: it warns about the shapes of the published files.
    return options
