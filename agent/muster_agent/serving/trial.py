"""A candidate beside the release that serves: who gets which, and how their answers and times differ.

    canary  ── the candidate answers its share; times and failures are counted
    shadow  ── the primary answers; then a copy of the request goes to the candidate in class `later`
                    └── its answer is compared, counted and dropped

A shadow never touches an answer nor holds one up: it begins after the primary's, waits for idle capacity, and is
skipped when IN_FLIGHT_MAX are under way. Nothing here routes or judges: the rollout's gate does. On the serving loop.
"""

import sys
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from muster_agent.core.latency import Histogram, StageSnapshot
from muster_agent.core.split import Mode, Split, chosen
from muster_agent.engines.port import Array, EngineError
from muster_agent.serving.call import Call, Priority, Raw
from muster_shared.bundle import Golden, Manifest
from muster_shared.errors import MusterError

IN_FLIGHT_MAX = 2  # Each holds a request and an answer in memory.
ELEMENTS_MAX = 16_384  # Of one output: comparing them takes about 0.1 ms of the loop. Of more, the first rows.

Flags = npt.NDArray[np.bool_]


class TrialUnfit(MusterError):
    """The candidate does not take what the serving release takes, or gives nothing that it gives."""

    def __init__(self, candidate: str, reason: str) -> None:
        super().__init__(f"{candidate} cannot shadow the release that serves: {reason}; roll it out as a canary")
        self.candidate = candidate
        self.reason = reason


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What the comparison of one request came to."""

    rows: int
    """That were looked at: of a large answer, the first ones."""
    disagreed: int
    """Rows with another class, or, of outputs that are no classes, outside the golden tolerance."""
    worst_abs: float
    """The largest absolute difference of an element; finite: what has no number counts as the largest float."""


class TrialSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One reading. Times are the engine's, of one request."""

    mode: Mode
    candidate: str
    """Its version."""
    share: float
    compared: int
    """Rows."""
    disagreed: int
    worst_abs: float
    errors: int
    """Requests that the candidate refused or failed on."""
    skipped: int
    """Shadows that were not run: the device had no capacity left for them."""
    primary: StageSnapshot
    candidate_latency: StageSnapshot

    @property
    def agreement(self) -> float | None:
        """Share (0..1) of compared rows that agree; None when there are none."""
        return 1 - self.disagreed / self.compared if self.compared else None


class Trial:
    """One candidate against the release that serves."""

    def __init__(self, split: Split, primary: Manifest, candidate: Manifest, draw: Callable[[], float]) -> None:
        """
        Args:
            draw: Returns a uniform number in [0, 1), for requests without a key.
        Raises:
            TrialUnfit: a shadow could not be compared.
        """
        self.split = split
        self.version = candidate.version
        self._draw = draw
        self._golden = primary.golden
        self._labels = len(primary.labels)
        places = {spec.name: place for place, spec in enumerate(candidate.outputs)}
        self._pairs = tuple(
            (place, places[spec.name]) for place, spec in enumerate(primary.outputs) if spec.name in places
        )
        if split.mode is Mode.SHADOW:
            if primary.serving.state or candidate.serving.state:
                raise TrialUnfit(candidate.version, "what it answers depends on a state of its own")
            _check_inputs(primary, candidate)
            if not self._pairs:
                raise TrialUnfit(candidate.version, "no output has the same name")
        self._in_flight = 0
        self._compared = 0
        self._disagreed = 0
        self._worst_abs = 0.0
        self._errors = 0
        self._skipped = 0
        self._primary = Histogram()
        self._candidate = Histogram()

    def chosen(self, key: str) -> bool:
        """Whether a request with this key (empty: none) goes to the candidate; as a shadow, too."""
        return chosen(self.split, key, self._draw)

    def answered(self, engine_ns: int, *, by_candidate: bool) -> None:
        """Count an answer that a caller got. For a canary; `mirror` counts for a shadow."""
        (self._candidate if by_candidate else self._primary).record(engine_ns)

    def failed(self) -> None:
        """The candidate refused a request, or failed on one."""
        self._errors += 1

    def mirror(self, call: Call) -> "Shadow | None":
        """Return the shadow of a call that the primary has answered, to be submitted to the candidate.

        None when enough are under way (counted as skipped). Whoever cannot submit it calls `drop`.
        """
        if self._in_flight >= IN_FLIGHT_MAX:
            self._skipped += 1
            return None
        assert call.batch is not None, "only an answered call has a shadow"
        self._in_flight += 1
        self._primary.record(call.batch.engine_ns)
        return Shadow(self, call, tuple(call.output(place) for place, _ in self._pairs))

    def snapshot(self) -> TrialSnapshot:
        return TrialSnapshot(
            mode=self.split.mode,
            candidate=self.version,
            share=self.split.share,
            compared=self._compared,
            disagreed=self._disagreed,
            worst_abs=self._worst_abs,
            errors=self._errors,
            skipped=self._skipped,
            primary=self._primary.snapshot(),
            candidate_latency=self._candidate.snapshot(),
        )

    def settled(self, shadow: "Shadow", expected: Sequence[Array]) -> None:
        """Count what a shadow came to."""
        self._in_flight -= 1
        if shadow.batch is None or shadow.error is not None:
            # Only the engine's word counts against the candidate: a full queue or a deadline is the device's.
            if isinstance(shadow.error, EngineError):
                self._errors += 1
            else:
                self._skipped += 1
            return
        self._candidate.record(shadow.batch.engine_ns)
        actual = [shadow.output(place) for _, place in self._pairs]
        difference = compare(expected, actual, shadow.rows, self._golden, self._labels)
        self._compared += difference.rows
        self._disagreed += difference.disagreed
        self._worst_abs = max(self._worst_abs, difference.worst_abs)


class Shadow(Call):
    """A copy of an answered request, on its way to the candidate. It settles into its trial, and answers nobody."""

    __slots__ = ("_expected", "_settled", "_trial")

    def __init__(self, trial: Trial, call: Call, expected: tuple[Array, ...]) -> None:
        super().__init__(tuple(map(_kept, call.tensors)), call.shapes, call.rows)
        self.priority = Priority.LATER
        self._trial = trial
        self._expected = expected
        self._settled = False

    def settle(self) -> None:
        if not self._settled:
            self._settled = True
            self._trial.settled(self, self._expected)

    def drop(self) -> None:
        """It was not submitted after all."""
        self.batch = self.error = None
        self.settle()


def compare(
    expected: Sequence[Array], actual: Sequence[Array], rows: int, golden: Golden, labels: int = 0
) -> Difference:
    """Compare two answers, outputs in the same order, the first one decisive where it is class scores.

    Class scores are numeric [rows, classes], two classes or more, as many as there are `labels` (0: any number); their
    rows agree when the largest is in the same place, an exact tie in the expectation allowing either.
    """
    largest = max(want.size for want in expected) // rows
    looked_at = min(rows, max(1, ELEMENTS_MAX // max(1, largest)))
    worst, outside = 0.0, np.zeros(looked_at, np.bool_)
    for want, got in zip(expected, actual, strict=True):
        distance, wrong = _compare_output(want, got, rows, looked_at, golden)
        worst = max(worst, distance)
        outside = outside | wrong
    first, other = expected[0][:looked_at], actual[0][:looked_at]
    classes = first.shape[1] if first.ndim == 2 and first.dtype.kind in "iuf" and len(first) == looked_at else 0
    if classes >= 2 and labels in (0, classes) and first.shape == other.shape and other.dtype.kind in "iuf":
        there = np.take_along_axis(first, np.argmax(other, axis=1)[:, None], axis=1)
        outside = there[:, 0] != first.max(axis=1)
    return Difference(rows=looked_at, disagreed=int(outside.sum()), worst_abs=worst)


def _compare_output(want: Array, got: Array, rows: int, looked_at: int, golden: Golden) -> tuple[float, Flags]:
    """Return the largest difference in the first rows, and which of them are outside the tolerance."""
    if want.shape != got.shape or (want.dtype == object) != (got.dtype == object):
        return sys.float_info.max, np.ones(looked_at, np.bool_)
    here, there = (array.reshape(rows, -1)[:looked_at, :ELEMENTS_MAX] for array in (want, got))
    if here.dtype == object:
        return 0.0, np.any(here != there, axis=1)
    exact, close = here.astype(np.float64), there.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.where(exact == close, 0.0, np.abs(close - exact))
        wrong = ~(distance <= golden.atol + golden.rtol * np.abs(exact)) | ~np.isfinite(distance)
    # A NaN on either side is no number, and outside of every tolerance.
    worst = np.nan_to_num(distance, nan=sys.float_info.max, posinf=sys.float_info.max).max(initial=0.0)
    return float(worst), np.any(wrong, axis=1)


def _check_inputs(primary: Manifest, candidate: Manifest) -> None:
    here = [(spec.name, spec.datatype, spec.shape) for spec in primary.inputs]
    there = [(spec.name, spec.datatype, spec.shape) for spec in candidate.inputs]
    if here != there:
        raise TrialUnfit(candidate.version, f"its inputs are {there}, not {here}")


def _kept(tensor: Raw) -> Raw:
    """Return a tensor that stays as it is: a caller may write to shared memory again once it has its answer."""
    return bytes(tensor) if isinstance(tensor, memoryview) and not tensor.readonly else tensor
