"""Timing a loaded session: how fast single rows go through it at once, and how long a call with more rows takes.

It chooses nothing: `tuning` says what to time and for how long.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from muster_agent.engines.golden import GoldenCases, judge
from muster_agent.engines.port import Array, EngineError, InferenceFailed, Session
from muster_shared.bundle import Manifest, TensorSpec

Feed = tuple[Array, ...]
"""Inputs of one call, in the manifest's order."""

CALLS_MIN = 3
CURVE_CALLS_MIN, CURVE_CALLS_MAX = 4, 20
CURVE_WINDOW_S = 0.02
PROOF_ROWS = 8
JOIN_S = 60.0  # A call that outlasts this hangs; the release is refused instead of the lab waiting for ever.


@dataclass(frozen=True)
class Rate:
    """What `streams` callers got out of a session, one row a call."""

    rows_per_s: float
    ms_p95: float


class Bench:
    """Times by the machine's own clock, with real threads."""

    def rate(self, session: Session, feeds: Sequence[Feed], *, streams: int, seconds: float) -> Rate:
        """Return the rate of `streams` concurrent callers over about `seconds` (CALLS_MIN calls of each at least).

        Raises:
            EngineError: the session fails, or a call hangs.
        """
        took_s: list[list[float]] = [[] for _ in range(streams)]
        failed: list[EngineError] = []
        begin = threading.Barrier(streams)

        def ask(own: list[float], first: int) -> None:
            try:
                session.run_arrays(feeds[first % len(feeds)])  # Each instance allocates on its first call.
            except EngineError as error:
                failed.append(error)
            begin.wait(JOIN_S)
            if failed:
                return
            stop = time.perf_counter() + seconds
            try:
                for feed in cycle([*feeds[first % len(feeds) :], *feeds[: first % len(feeds)]]):
                    started = time.perf_counter()
                    session.run_arrays(feed)
                    ended = time.perf_counter()
                    own.append(ended - started)
                    if ended >= stop and len(own) >= CALLS_MIN:
                        return
            except EngineError as error:
                failed.append(error)

        others = [
            threading.Thread(target=ask, args=(took_s[number], number), name="bench", daemon=True)
            for number in range(1, streams)
        ]
        for thread in others:
            thread.start()
        ask(took_s[0], 0)
        for thread in others:
            thread.join(JOIN_S)
            if thread.is_alive():
                raise InferenceFailed(f"a call takes longer than {JOIN_S:g} s")
        if failed:
            raise failed[0]
        together = sorted(took for own in took_s for took in own)
        rows_per_s = sum(len(own) / sum(own) for own in took_s)
        return Rate(rows_per_s, together[min(len(together) - 1, int(0.95 * len(together)))] * 1e3)

    def call_ms(self, session: Session, feed: Feed) -> float:
        """Return the lower quartile of the duration of calls with `feed`, but the first: what it takes undisturbed.

        Raises:
            EngineError: the session fails.
        """
        session.run_arrays(feed)
        took_s: list[float] = []
        stop = time.perf_counter() + CURVE_WINDOW_S
        while len(took_s) < CURVE_CALLS_MIN or (len(took_s) < CURVE_CALLS_MAX and time.perf_counter() < stop):
            started = time.perf_counter()
            session.run_arrays(feed)
            took_s.append(time.perf_counter() - started)
        return sorted(took_s)[len(took_s) // 4] * 1e3


def single_rows(cases: GoldenCases, specs: tuple[TensorSpec, ...]) -> list[Feed]:
    """Return each golden case as the inputs of one call."""
    return [
        tuple(np.ascontiguousarray(array) for array in cases.feed(case, specs).values()) for case in range(cases.count)
    ]


def batches(cases: GoldenCases, manifest: Manifest) -> Callable[[int], Feed] | None:
    """Return what makes a batch of any number of rows of the golden inputs; None when the model takes no batches."""
    if manifest.serving.state or not all(spec.shape and spec.shape[0] == -1 for spec in _tensors(manifest)):
        return None
    rows = [_rows(cases.inputs, spec) for spec in manifest.inputs]
    count = len(rows[0])
    if any(len(array) != count for array in rows):
        return None
    return lambda size: tuple(np.ascontiguousarray(array[np.arange(size) % count]) for array in rows)


def proves_batched(session: Session, cases: GoldenCases, manifest: Manifest) -> bool:
    """Return whether golden rows get the right answers also together: a dynamically quantized model may not give them.

    Raises:
        EngineError: the session fails.
    """
    expected = {spec.name: _rows(cases.outputs, spec)[:PROOF_ROWS] for spec in manifest.outputs}
    feed = tuple(np.ascontiguousarray(_rows(cases.inputs, spec)[:PROOF_ROWS]) for spec in manifest.inputs)
    outputs = session.run_arrays(feed)
    actual = {spec.name: array for spec, array in zip(manifest.outputs, outputs, strict=True)}
    verdict = judge(expected, actual, manifest.golden)
    return not verdict.problem and (verdict.agrees or manifest.golden.argmax_agreement < 1)


def _tensors(manifest: Manifest) -> tuple[TensorSpec, ...]:
    return (*manifest.inputs, *manifest.outputs)


def _rows(arrays: Mapping[str, Array], spec: TensorSpec) -> Array:
    """Return the golden rows of one tensor: its cases, or the rows of all its cases when a case is a batch."""
    array = arrays[spec.name]
    return array if array.ndim == len(spec.shape) else array.reshape(-1, *array.shape[2:])
