"""What inputs were like, of a sample: each row's mean and standard deviation, and what is odd about it.

    one call of every SAMPLED_EVERY rows ── take: references, or a thin copy ──▶ fold: statistics ──▶ Seen

A statistic of an input costs more than the rest of the counting, so it is taken of few rows: SAMPLED_ROWS of a call at
most, and of a large row about ELEMENTS_MAX of its elements, spread over it. What waits is BYTES_MAX at most, and one
call. Only inputs that can be odd are looked at: those that the reference knows, and those that may be no number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from muster_agent.engines.tensors import DTYPES
from muster_agent.metrics.reference import Bools, Floats, InputReference, Reference, statistics
from muster_agent.serving.call import Call, Raw
from muster_shared.bundle import Manifest
from muster_shared.ids import ModelName
from muster_shared.metrics import INPUTS

SAMPLED_EVERY: Final = 64
"""Rows: of these one is looked at, or more where fewer come in a second, and the first after each look besides."""
SAMPLED_ROWS: Final = 16
"""Of one call."""
ELEMENTS_MAX: Final = 65_536
"""Of one row that are looked at, about: 60 us of the serving loop."""
BYTES_MAX: Final = 1024 * 1024
FOLD_CALLS: Final = 128
"""So many sampled calls at once: a fold costs the same for few of them."""
OUT_OF_RANGE, OUTLIER, NOT_FINITE = (INPUTS.index(name) for name in ("out_of_range", "outlier", "not_finite"))


class Keeper(Protocol):
    """Where odd inputs go that the device's owner wants to look at: `outliers.Ring`. They never leave the device."""

    def keep(self, model: ModelName, version: str, inputs: Mapping[str, npt.NDArray[np.generic]], reason: str) -> None:
        """Copy `inputs`, of one row; `reason` is one of INPUTS. On the serving loop."""
        ...


@dataclass(frozen=True, eq=False)
class Seen:
    """What a fold of the sample came to."""

    places: npt.NDArray[np.int64]
    """[len(INPUTS)]: sampled rows by what they were like; only the first four can be."""
    statistics: tuple[tuple[str, Floats, Floats], ...]
    """(input, row means, row standard deviations), of the inputs that the reference knows."""


@dataclass(frozen=True)
class _Watched:
    name: str
    index: int
    """In the manifest, and so in a call's tensors."""
    dtype: np.dtype[np.generic]
    is_batched: bool
    """Whether axis 0 is the batch, and not in a call's shapes."""
    reference: InputReference | None


class Sampler:
    """The sample of one release. On the serving loop only."""

    def __init__(self, manifest: Manifest, reference: Reference | None, keeper: Keeper | None = None) -> None:
        self._manifest = manifest
        self._watched = tuple(_watched(manifest, reference))
        # Else a call is one row, whatever it is made of.
        self._has_rows = all(spec.shape[:1] == (-1,) for spec in manifest.inputs)
        self._keeper = keeper
        self._waiting: dict[tuple[int, ...], list[tuple[bytes, ...]]] = {}
        """Rows of each watched input, by how many elements of a row are there."""
        self._calls = self._bytes = 0
        self._indices = tuple(one.index for one in self._watched)
        self._usual = self._usual_widths()

    @property
    def is_of_use(self) -> bool:
        """Whether any input can be told to be odd."""
        return bool(self._watched)

    @property
    def is_full(self) -> bool:
        """Whether as much waits as may."""
        return self._calls >= FOLD_CALLS or self._bytes >= BYTES_MAX

    def take(self, call: Call) -> None:
        """Sample an answered call. What is in shared memory is copied: its owner may write there again."""
        self._calls += 1
        if self._usual is not None and call.rows == 1 and self._keeper is None:
            rows = tuple([bytes(call.tensors[index]) for index in self._indices])  # Of `bytes` no copy.
            self._keep(self._usual, rows)
            return
        parts = [_thin(one, call, self._has_rows) for one in self._watched]
        widths = tuple(width for width, _ in parts)
        if not all(widths):
            return  # Of nothing there is no statistic.
        rows = tuple(part for _, part in parts)
        if self._keeper is not None:
            self._look_at_once(self._keeper, call, widths, rows)
        self._keep(widths, rows)

    def _keep(self, widths: tuple[int, ...], rows: tuple[bytes, ...]) -> None:
        waiting = self._waiting.get(widths)
        if waiting is None:
            waiting = self._waiting[widths] = []
        waiting.append(rows)
        self._bytes += sum(map(len, rows))

    def _usual_widths(self) -> tuple[int, ...] | None:
        """Return how many elements a row of each watched input has, where that is fixed and not too many."""
        shapes = [spec.shape[1:] for spec in self._manifest.inputs if spec.name in {one.name for one in self._watched}]
        widths = tuple(math.prod(shape) for shape in shapes)
        known = self._has_rows and all(size > 0 for shape in shapes for size in shape)
        return widths if known and all(width <= ELEMENTS_MAX for width in widths) else None

    def fold(self) -> Seen | None:
        """Return what was sampled since the last fold; None: nothing."""
        if not self._waiting:
            return None
        waiting, self._waiting, self._calls, self._bytes = self._waiting, {}, 0, 0
        places = np.zeros(len(INPUTS), np.int64)
        found: list[tuple[str, Floats, Floats]] = []
        for widths, taken in waiting.items():
            columns = [b"".join(column) for column in zip(*taken, strict=True)]
            odd, told = self._judge(columns, widths)
            places += np.bincount(odd, minlength=len(INPUTS))
            found += told
        return Seen(places, tuple(found))

    def _judge(
        self, columns: Sequence[bytes], widths: Sequence[int]
    ) -> tuple[npt.NDArray[np.int64], list[tuple[str, Floats, Floats]]]:
        """Return the place in INPUTS of each row, the last that fits any of its inputs, and the statistics."""
        odd: npt.NDArray[np.int64] | None = None
        told: list[tuple[str, Floats, Floats]] = []
        for one, raw, width in zip(self._watched, columns, widths, strict=True):
            means, stds = statistics(np.frombuffer(raw, one.dtype).reshape(-1, width))
            if one.reference is not None:
                told.append((one.name, means, stds))
                here = _against(one.reference, means, stds)
                if here.any():  # What is no number lies within no tails.
                    here[~np.isfinite(means)] = NOT_FINITE
            else:
                here = np.where(np.isfinite(means), 0, NOT_FINITE)
            odd = here if odd is None else np.maximum(odd, here)
        assert odd is not None, "nothing is sampled where nothing is watched"
        return odd, told

    def _look_at_once(self, keeper: Keeper, call: Call, widths: Sequence[int], rows: Sequence[bytes]) -> None:
        odd, _ = self._judge(rows, widths)
        step = _row_step(call.rows)
        for row in np.flatnonzero(odd >= OUTLIER).tolist():
            inputs = {one.name: _whole(one, call) for one in self._watched}
            if self._has_rows:
                inputs = {name: array[row * step] for name, array in inputs.items()}
            keeper.keep(self._manifest.model, self._manifest.version, inputs, INPUTS[int(odd[row])])


def _watched(manifest: Manifest, reference: Reference | None) -> list[_Watched]:
    carried = {state.input for state in manifest.serving.state}  # Of a stateful model: the device's own.
    known = {} if reference is None else reference.inputs
    found = []
    for index, spec in enumerate(manifest.inputs):
        may_be_no_number = spec.datatype.startswith("FP") and not spec.finite
        if spec.datatype == "BYTES" or spec.name in carried or not (may_be_no_number or spec.name in known):
            continue
        batched = spec.shape[:1] == (-1,)
        found.append(_Watched(spec.name, index, DTYPES[spec.datatype], batched, known.get(spec.name)))
    return found


def _against(reference: InputReference, means: Floats, stds: Floats) -> npt.NDArray[np.int64]:
    """Return 0, OUT_OF_RANGE (beyond where all but 0.2 % of the reference's rows end, on any side) or OUTLIER."""
    mean_low, mean_high, std_low, std_high = reference.tails.tolist()
    within: Bools = (means >= mean_low) & (means <= mean_high) & (stds >= std_low) & (stds <= std_high)
    if within.all():
        return np.zeros(len(means), np.int64)
    return np.where(reference.outlying(means, stds), OUTLIER, np.where(within, 0, OUT_OF_RANGE))


def _thin(one: _Watched, call: Call, has_rows: bool) -> tuple[int, bytes]:
    """Return how many elements of each row are kept, and those of SAMPLED_ROWS rows at most."""
    raw = call.tensors[one.index]
    rows = call.rows if has_rows else 1
    width = math.prod(call.shapes[one.index]) * (call.rows if one.is_batched else 1) // rows
    if width <= ELEMENTS_MAX and rows <= SAMPLED_ROWS:
        return width, bytes(raw)  # Of `bytes` no copy.
    step = _element_step(width)
    kept = _array(raw, one.dtype).reshape(rows, width)[:: _row_step(rows), ::step]
    return kept.shape[1], kept.tobytes()


def _array(raw: Raw, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    return np.frombuffer(raw, dtype)


def _whole(one: _Watched, call: Call) -> npt.NDArray[np.generic]:
    shape = call.shapes[one.index]
    return _array(call.tensors[one.index], one.dtype).reshape((call.rows, *shape) if one.is_batched else shape)


def _row_step(rows: int) -> int:
    return -(-rows // SAMPLED_ROWS)


def _element_step(width: int) -> int:
    """Return a step that is no multiple of 2 or 3: one that is would look at one colour of each pixel."""
    step = -(-width // ELEMENTS_MAX)
    while step > 1 and (step % 2 == 0 or step % 3 == 0):
        step += 1
    return step
