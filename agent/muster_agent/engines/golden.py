"""The self-test: the release's signed golden cases through a loaded session, judged against its signed outputs.

It proves (engine, variant, processor) on this device and nothing about accuracy. It never raises for what it finds: a
file that cannot be read, an engine that fails and an output that is wrong are all a report that has not passed.
"""

import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from muster_agent.engines.port import Array, EngineError, Session
from muster_shared.bundle import Golden, Manifest, TensorSpec

GOLDEN_BYTES_MAX = 256 * 1024 * 1024  # Unpacked; a device that serves a model can hold this beside it.
ARRAYS_MAX = 256
_MAGIC = 6  # Length of "\x93NUMPY".


class GoldenUnreadable(EngineError):
    """A golden file that is damaged, too large, or not about this manifest."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the golden cases cannot be used: {reason}; publish a corrected release")
        self.reason = reason


@dataclass(frozen=True, eq=False)
class GoldenCases:
    """The cases of one release: arrays with the cases on axis 0, by tensor name."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    count: int

    def feed(self, case: int, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
        """Return the inputs of one case, 0 <= case < count, shaped as a request for it would be."""
        return {spec.name: _one(self.inputs[spec.name], case, spec) for spec in specs}

    def expected(self, case: int, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
        return {spec.name: _one(self.outputs[spec.name], case, spec) for spec in specs}


class SelfTestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the self-test found; every number is finite, so that it travels as JSON."""

    passed: bool
    cases: int
    """How many were judged."""
    worst_abs: float
    """The largest absolute difference of an element; differences without a number count as the largest float."""
    argmax_agreement: float
    """The share of cases (0..1) whose class outputs point to the same class; 1 when there are no class outputs."""
    reason: str
    """Why it did not pass; empty when it did."""


def load_cases(file: Path, manifest: Manifest) -> GoldenCases:
    """Return the cases in `file`.

    Raises:
        GoldenUnreadable: it is damaged, unpacks to more than GOLDEN_BYTES_MAX, or lacks a tensor of the manifest.
    """
    try:
        arrays = _read(file)
    except Exception as error:  # zipfile, zlib and NumPy share no tree; whatever it is, the file is not usable.
        raise GoldenUnreadable(f"{type(error).__name__}: {error}") from error
    inputs = {spec.name: _pick(arrays, f"input.{spec.name}", spec) for spec in manifest.inputs}
    outputs = {spec.name: _pick(arrays, f"output.{spec.name}", spec) for spec in manifest.outputs}
    counts = {len(array) for array in (*inputs.values(), *outputs.values())}
    if len(counts) != 1 or 0 in counts:
        raise GoldenUnreadable(f"its arrays have {sorted(counts)} cases; all must have the same, at least one")
    return GoldenCases(inputs, outputs, counts.pop())


def self_test(session: Session, manifest: Manifest, golden_file: Path) -> SelfTestReport:
    """Run the golden cases in `golden_file` through `session` and judge them.

    One case at a time, as requests come: a dynamically quantized model answers differently in a batch.
    """
    try:
        cases = load_cases(golden_file, manifest)
        verdicts = [
            judge(
                cases.expected(case, manifest.outputs),
                session.run(cases.feed(case, manifest.inputs)),
                manifest.golden,
            )
            for case in range(cases.count)
        ]
    except EngineError as error:
        return SelfTestReport(passed=False, cases=0, worst_abs=0.0, argmax_agreement=0.0, reason=str(error))
    return _report(verdicts, manifest.golden)


@dataclass(frozen=True)
class Verdict:
    """The judgement of one case."""

    worst_abs: float
    agrees: bool
    """Every class output points to the same class."""
    problem: str
    """The first output that is not as it must be, classes aside; empty when all are."""


def judge(expected: Mapping[str, Array], actual: Mapping[str, Array], golden: Golden) -> Verdict:
    """Judge the outputs of one case. A NaN on either side is a problem: it compares as false with every tolerance."""
    worst, agrees, problem = 0.0, True, ""
    for name, want in expected.items():
        got = actual[name]
        if got.shape != want.shape:
            reason = f"has shape {list(got.shape)}, not {list(want.shape)}"
        elif want.dtype == object:
            reason = "" if bool(np.all(got == want)) else "has other strings"
        else:
            distance, reason = _compare(want, got, golden)
            worst = max(worst, distance)
            agrees = agrees and _same_class(want, got)
        if reason and not problem:
            problem = f"output {name!r} {reason}"
    return Verdict(worst, agrees, problem)


def _compare(want: Array, got: Array, golden: Golden) -> tuple[float, str]:
    """Return the largest absolute difference (finite) and what is wrong with it (empty when nothing is)."""
    if want.dtype.kind not in "biuf" or got.dtype.kind not in "biuf":
        return sys.float_info.max, f"has elements of type {got.dtype}, expected {want.dtype}"
    exact, close = want.astype(np.float64), got.astype(np.float64)
    if bool(np.isnan(close).any()) or bool(np.isnan(exact).any()):
        return sys.float_info.max, "has a NaN"
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.where(exact == close, 0.0, np.abs(close - exact))
        allowed = golden.atol + golden.rtol * np.abs(exact)
    worst = float(min(distance.max(initial=0.0), sys.float_info.max))
    # An infinite expectation would allow anything; only the same infinity is right.
    wrong = ~(distance <= allowed) | ~np.isfinite(distance)
    if not bool(wrong.any()):
        return worst, ""
    return worst, f"differs by up to {worst:.3g} in {int(wrong.sum())} of {wrong.size} elements"


def _same_class(want: Array, got: Array) -> bool:
    """Whether the largest along the last axis is in the same place; an exact tie in the expectation allows either."""
    if not want.ndim or want.shape[-1] < 2 or want.dtype.kind not in "iuf":
        return True
    chosen = np.take_along_axis(want, np.argmax(got, axis=-1, keepdims=True), axis=-1)
    return bool(np.all(chosen == want.max(axis=-1, keepdims=True)))


def _report(verdicts: list[Verdict], golden: Golden) -> SelfTestReport:
    agreement = sum(verdict.agrees for verdict in verdicts) / len(verdicts)
    problems = [(case, verdict.problem) for case, verdict in enumerate(verdicts) if verdict.problem]
    reason = ""
    if problems:
        case, problem = problems[0]
        reason = f"{len(problems)} of {len(verdicts)} cases fail; case {case}: {problem}"
    elif agreement < golden.argmax_agreement:
        reason = f"the class agrees in {agreement:.3f} of the cases; {golden.argmax_agreement:.3f} is required"
    return SelfTestReport(
        passed=not reason,
        cases=len(verdicts),
        worst_abs=max(verdict.worst_abs for verdict in verdicts),
        argmax_agreement=agreement,
        reason=reason,
    )


def _one(array: Array, case: int, spec: TensorSpec) -> Array:
    """Return one case, as a batch of one when the array has no batch axis beside its cases."""
    return array[case : case + 1] if array.ndim == len(spec.shape) else array[case, ...]  # Of a scalar, too, an array.


def _pick(arrays: Mapping[str, Array], key: str, spec: TensorSpec) -> Array:
    array = arrays.get(key)
    if array is None:
        raise GoldenUnreadable(f"it has no array {key!r}")
    if array.dtype.kind in "SU":  # Strings travel as fixed-width text: an object array would need pickle.
        array = _to_bytes(array)
    rank = len(spec.shape)
    batched = array.ndim == rank and rank > 0 and spec.shape[0] in (-1, 1)
    if not batched and array.ndim != rank + 1:
        raise GoldenUnreadable(f"{key!r} has shape {list(array.shape)}; axis 0 is the cases of {list(spec.shape)}")
    return array


def _to_bytes(array: Array) -> Array:
    raw = np.empty(array.shape, dtype=object)
    raw.ravel()[:] = [text.encode() if isinstance(text, str) else text for text in array.ravel().tolist()]
    return raw


def _read(file: Path) -> dict[str, Array]:
    with zipfile.ZipFile(file) as archive:
        _check_sizes(archive)
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Refuse an archive that unpacks to too much, by its directory and by the header of each array.

    NumPy allocates what a header says before it reads, so a header must not say more than its file holds.
    """
    members = archive.infolist()
    if len(members) > ARRAYS_MAX:
        raise ValueError(f"it has {len(members)} arrays; the limit is {ARRAYS_MAX}")
    total = sum(member.file_size for member in members)
    if total > GOLDEN_BYTES_MAX:
        raise ValueError(f"it unpacks to {total} bytes; the limit is {GOLDEN_BYTES_MAX}")
    for member in members:
        with archive.open(member) as stream:
            if _array_bytes(stream) > member.file_size:
                raise ValueError(f"{member.filename} claims more than it holds")


def _array_bytes(stream: IO[bytes]) -> int:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"NumPy format {version} is not understood")
    shape, _, dtype = readers[version](stream)
    size = int(dtype.itemsize)
    for extent in shape:
        size *= extent
    return size


def walk(cases: GoldenCases, specs: tuple[TensorSpec, ...]) -> Iterator[dict[str, Array]]:
    """Yield the inputs of the cases over and over, for a warm-up."""
    while True:
        for case in range(cases.count):
            yield cases.feed(case, specs)
