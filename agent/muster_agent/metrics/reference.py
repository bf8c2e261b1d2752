"""The reference of a release: what confidence, classes and inputs were like when it was made, as it came in its bundle.

    reference.npz ── parse: names, types, sizes, then values ──▶ Reference ──▶ the detectors, and what counts outliers

The format is described in docs/metrics-reference.md; `reference_build` writes it. A reference comes signed, but who
signs can be wrong: every defect is one `ReferenceUnreadable`. Nothing here decides what is drift.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from muster_shared.errors import BundleError
from muster_shared.metrics import CLASSES_MAX, CONFIDENCE_BINS

FORMAT: Final = 1
WINDOW: Final = 200
"""Inferences of a window: in the reference, and of what is compared with it."""
WINDOWS_MIN, WINDOWS_MAX = 100, 10_000
INPUTS_MAX: Final = 64
EDGES_MAX: Final = 63
REFERENCE_BYTES_MAX: Final = 1024 * 1024
"""Of the file, and of everything in it when it is unpacked."""
MARGIN: Final = 0.25
"""How far beyond its tails, as a share of what lies between them, a row is an outlier."""
RESOLUTION: Final = 1e-3
"""Differences below this share of the numbers of an input are rounding, not news."""
_ARRAYS_MAX = 6 + 5 * INPUTS_MAX

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
_Array = npt.NDArray[np.generic]
_Number = TypeVar("_Number", np.int64, np.float32, np.float64)


class ReferenceUnreadable(BundleError):
    """The reference of a release is damaged, too large, or says what cannot be. It serves, without detectors."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the reference of the release cannot be used: {reason}; publish a corrected release")
        self.reason = reason


def statistics(rows: _Array) -> tuple[Floats, Floats]:
    """Return the mean and the standard deviation of each row, float64 [n].

    Args:
        rows: Of one input, numeric or bool, [n, ...]; a row's elements are taken as they lie. What is not finite gives
            what is not finite.
    """
    flat = rows.reshape(len(rows), -1)
    if flat.dtype != np.float32:  # Others lose their exactness here, and none its order of magnitude.
        flat = flat.astype(np.float32 if flat.dtype.itemsize <= 2 else np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        means = np.add.reduce(flat, axis=1) / max(1, flat.shape[1])  # As `mean` does it, with less around it.
        centred = flat - means[:, None]
        stds = np.sqrt(np.einsum("ij,ij->i", centred, centred) / max(1, flat.shape[1]))
    return means.astype(np.float64), stds.astype(np.float64)


def binned(values: Floats, edges: Floats) -> Counts:
    """Return how many of `values` are in each bin, [edges + 1]; bin i is edges[i - 1] <= value < edges[i]."""
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


@dataclass(frozen=True, eq=False)
class InputReference:
    """What one numeric input was like, by the mean and the standard deviation of each of its rows."""

    mean_edges: Floats
    """[0..EDGES_MAX], ascending: the inner edges of the bins."""
    mean_counts: Counts
    """[edges + 1], of the rows of the reference; bin i is edges[i - 1] <= value < edges[i]."""
    std_edges: Floats
    std_counts: Counts
    tails: Floats
    """[4]: low and high of the mean, low and high of the standard deviation."""

    def outliers(self, rows: _Array) -> Bools:
        """Return for each of `rows` [n, ...] whether its mean or standard deviation lies beyond the tails by MARGIN of
        what is between them. A row that is not finite is an outlier."""
        return self.outlying(*statistics(rows))

    def outlying(self, means: Floats, stds: Floats) -> Bools:
        """Return the same of what `statistics` returned for the rows, bool [n]."""
        mean_low, mean_high, std_low, std_high = self._limits
        within: Bools = (means >= mean_low) & (means <= mean_high) & (stds >= std_low) & (stds <= std_high)
        return ~within

    @cached_property
    def _limits(self) -> tuple[float, float, float, float]:
        mean_low, mean_high, std_low, std_high = self.tails.tolist()
        # Of inputs that were normalised row by row, the last digit must not make an outlier.
        least = RESOLUTION * max(abs(mean_low), abs(mean_high), std_high)
        mean_margin = MARGIN * (mean_high - mean_low) + least
        std_margin = MARGIN * (std_high - std_low) + least
        return mean_low - mean_margin, mean_high + mean_margin, std_low - std_margin, std_high + std_margin


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference that was read and checked. Arrays are read-only."""

    inferences: int
    """Rows that it was made of, >= 1."""
    confidence_windows: npt.NDArray[np.float32]
    """[0, or WINDOWS_MIN..WINDOWS_MAX]: the mean confidence of windows of WINDOW inferences; empty without classes."""
    confidence_error: float
    """Standard error of the centre of these, because the inferences that they are drawn from were not without end."""
    classes: Counts
    """[0..CLASSES_MAX]: inferences by the class that they came out as; classes beyond the last but one in the last."""
    confidence: Counts
    """[CONFIDENCE_BINS]: inferences by confidence; all 0 without classes."""
    inputs: Mapping[str, InputReference] = field(default_factory=dict)
    """By the name of the input; inputs of text are not there."""

    @classmethod
    def parse(cls, raw: bytes) -> "Reference":
        """Return the reference in `raw`, the content of a NumPy `.npz`.

        Raises:
            ReferenceUnreadable: it is damaged, too large, or contradicts itself.
        """
        try:
            arrays = _unpack(raw)
        except ReferenceUnreadable:
            raise
        except Exception as error:  # zipfile, zlib and NumPy share no tree; whatever it is, the file is not usable.
            raise ReferenceUnreadable(f"{type(error).__name__}: {error}") from error
        if _integers(arrays, "format", 1, 1).tolist() != [FORMAT]:
            raise ReferenceUnreadable(f"its format is not {FORMAT}; update the agent first")
        windows = _floats(arrays, "confidence_windows", 0, WINDOWS_MAX)
        reference = cls(
            inferences=int(_integers(arrays, "inferences", 1, 1)[0]),
            confidence_windows=_sealed(windows.astype(np.float32)),
            confidence_error=float(_floats(arrays, "confidence_error", 1, 1)[0]),
            classes=_integers(arrays, "classes", 0, CLASSES_MAX),
            confidence=_integers(arrays, "confidence", CONFIDENCE_BINS, CONFIDENCE_BINS),
            inputs={name: _input(arrays, name) for name in _input_names(arrays)},
        )
        problem = next(_problems(reference), None)
        if problem is not None:
            raise ReferenceUnreadable(problem)
        return reference


def _problems(reference: Reference) -> Iterator[str]:
    windows, classes = reference.confidence_windows, reference.classes
    if reference.inferences < 1:
        yield "it is made of no inferences"
    if classes.size and windows.size < WINDOWS_MIN:
        yield f"it has {windows.size} windows; {WINDOWS_MIN} to {WINDOWS_MAX} are needed"
    if windows.size and not classes.size:
        yield "it has windows of confidence, and no classes"
    if classes.size == 1 or (classes.size and not classes.any()):
        yield "its classes count nothing"
    if windows.size and not (0 <= float(windows.min()) <= float(windows.max()) <= 1):
        yield "a confidence is a number from 0 to 1"
    if not 0 <= reference.confidence_error <= 1:
        yield "confidence_error is a number from 0 to 1"
    for name, one in reference.inputs.items():
        for edges, counts, what in (
            (one.mean_edges, one.mean_counts, "mean"),
            (one.std_edges, one.std_counts, "std"),
        ):
            if not (np.diff(edges) > 0).all():
                yield f"the {what}_edges of input {name!r} do not rise"
            if len(counts) != len(edges) + 1 or not counts.any():
                yield f"the {what}_counts of input {name!r} must count something, in one bin more than there are edges"
        mean_low, mean_high, std_low, std_high = one.tails.tolist()
        if mean_low > mean_high or not 0 <= std_low <= std_high:
            yield f"the tails of input {name!r} are the wrong way round"


def _input_names(arrays: Mapping[str, _Array]) -> list[str]:
    names = sorted({key[len("input.") :].rpartition(".")[0] for key in arrays if key.startswith("input.")})
    if len(names) > INPUTS_MAX or "" in names:
        raise ReferenceUnreadable(f"it names an input of no name, or more than {INPUTS_MAX}")
    return names


def _input(arrays: Mapping[str, _Array], name: str) -> InputReference:
    return InputReference(
        mean_edges=_floats(arrays, f"input.{name}.mean_edges", 0, EDGES_MAX),
        mean_counts=_integers(arrays, f"input.{name}.mean_counts", 1, EDGES_MAX + 1),
        std_edges=_floats(arrays, f"input.{name}.std_edges", 0, EDGES_MAX),
        std_counts=_integers(arrays, f"input.{name}.std_counts", 1, EDGES_MAX + 1),
        tails=_floats(arrays, f"input.{name}.tails", 4, 4),
    )


def _floats(arrays: Mapping[str, _Array], key: str, low: int, high: int) -> Floats:
    array = _picked(arrays, key, low, high)
    if array.dtype not in (np.dtype("<f4"), np.dtype("<f8")):
        raise ReferenceUnreadable(f"{key!r} is of {array.dtype}; it must be of float32 or float64")
    numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ReferenceUnreadable(f"{key!r} has what is not a finite number")
    return _sealed(numbers)


def _integers(arrays: Mapping[str, _Array], key: str, low: int, high: int) -> Counts:
    array = _picked(arrays, key, low, high)
    if array.dtype != np.dtype("<i8"):
        raise ReferenceUnreadable(f"{key!r} is of {array.dtype}; it must be of int64")
    counts: Counts = array.astype(np.int64)
    # So that no sum of them overflows.
    if counts.size and not 0 <= int(counts.min()) <= int(counts.max()) <= 1 << 48:
        raise ReferenceUnreadable(f"{key!r} counts less than none, or more than there can be")
    return _sealed(counts)


def _picked(arrays: Mapping[str, _Array], key: str, low: int, high: int) -> _Array:
    array = arrays.get(key)
    if array is None:
        raise ReferenceUnreadable(f"it has no array {key!r}")
    if array.ndim != 1 or not low <= array.size <= high:
        raise ReferenceUnreadable(f"{key!r} has shape {list(array.shape)}; it must have {low} to {high} numbers")
    return array


def _unpack(raw: bytes) -> dict[str, _Array]:
    """Return the arrays by name. Nothing is allocated by what a header says: an array must be all of its member."""
    if len(raw) > REFERENCE_BYTES_MAX:
        raise ReferenceUnreadable(f"it has {len(raw)} bytes; the limit is {REFERENCE_BYTES_MAX}")
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = archive.infolist()
        if len(members) > _ARRAYS_MAX:
            raise ReferenceUnreadable(f"it has {len(members)} arrays; the limit is {_ARRAYS_MAX}")
        total = sum(member.file_size for member in members)
        if total > REFERENCE_BYTES_MAX:
            raise ReferenceUnreadable(f"it unpacks to {total} bytes; the limit is {REFERENCE_BYTES_MAX}")
        if len({member.filename for member in members}) != len(members):
            raise ReferenceUnreadable("two of its arrays have one name")
        return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}


def _array(content: bytes) -> _Array:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ReferenceUnreadable(f"NumPy format {version} is not understood")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in "if" or len(shape) != 1:
        raise ReferenceUnreadable(f"an array of {dtype} with shape {list(shape)}; it must be numbers in a row")
    rest = content[stream.tell() :]
    if shape[0] * dtype.itemsize != len(rest):
        raise ReferenceUnreadable("an array that claims more, or less, than it holds")
    return np.frombuffer(rest, dtype)


def _sealed(array: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    array.setflags(write=False)
    return array
