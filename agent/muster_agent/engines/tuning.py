"""The measured choice: which variant, on how many threads, in how many instances and batches, by trying them here.

    variants x (threads, instances) ──> load ──> golden cases ──> rate ──> duel with the best so far ──> the winner
                                          └── refused: why              its latency curve ──> core.plan ──> the plan

At most two sessions are loaded at a time. It remembers nothing (`io.tuning_store` does) and serves nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import structlog

from muster_agent.core.plan import GAIN_OF_DOUBLING, INLINE_CALL_MS, Curve, ServingPlan, plan_from_curve
from muster_agent.engines.bench import Bench, Feed, Rate, batches, proves_batched, single_rows
from muster_agent.engines.golden import GoldenCases, load_cases, self_test
from muster_agent.engines.port import EngineError, Session
from muster_shared.bundle import Manifest, Variant
from muster_shared.messages import TRIAL_TEXT_MAX, TRIALS_MAX, Tuning, TuningTrial

BUDGET_S = 6.0
CURVE_BUDGET_S = 1.5
CURVE_ROWS = (1, 2, 4, 8, 16, 32, 64)
CURVE_CALL_MS_MAX = 100.0
WINDOW_CALLS = 20
WINDOW_S_MIN, WINDOW_S_MAX = 0.05, 0.4
MUST_GAIN = 1.05  # Or the publisher's order stands: two windows of one session differ by as much.
CLOSE = 1.25  # Rates that differ by less are measured again, in turns.
HOPELESS = 0.6  # Of the best so far with one thread; other threads are not worth the time.

log = structlog.get_logger(__name__)


class Load(Protocol):
    def __call__(self, variant: Variant, *, threads: int, instances: int) -> Session:
        """Return a loaded session. Raises EngineError."""
        ...


class NothingPasses(EngineError):
    """No variant could be loaded and proven; `first` is what was wrong with the publisher's first."""

    def __init__(self, first: EngineError, trials: Sequence[TuningTrial]) -> None:
        others = "; ".join(f"{trial.variant}: {trial.refused}" for trial in trials[1:])
        super().__init__(f"{first}; {others}" if others else str(first))
        self.first = first
        self.trials = tuple(trials)


class ProofFailed(EngineError):
    """A session does not answer the golden cases as the publisher's did."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """The winner, loaded, proven and warm."""

    session: Session
    variant: Variant
    plan: ServingPlan
    tuning: Tuning


@dataclass(frozen=True)
class Shape:
    """How the processors are shared out: `instances` calls at once, of `threads` threads each."""

    threads: int
    instances: int


@dataclass(eq=False)
class _Trial:
    variant: Variant
    shape: Shape
    session: Session
    alone: Rate
    """One caller."""
    loaded: Rate
    """As many callers as there will be at once."""

    @property
    def inline(self) -> bool:
        return self.alone.ms_p95 <= INLINE_CALL_MS

    @property
    def streams(self) -> int:
        return 1 if self.inline else self.shape.instances


@dataclass(eq=False)
class _Search:
    """What one tuning has found so far."""

    best: _Trial | None = None
    tried: list[TuningTrial] = field(default_factory=list)
    first_error: EngineError | None = None


def shapes(cpus: int, threads_max: int, instances_max: int) -> tuple[Shape, ...]:
    """Return what to try: one thread each first, then powers of two, then all threads that one call may have.

    Args:
        cpus: Processors that the agent may use, >= 1.
        threads_max: Of one call, >= 1.
        instances_max: As the publisher says; 0: any.
    """
    most = min(threads_max, cpus)
    threads = sorted({1, most} | {1 << power for power in range(most.bit_length()) if 1 << power <= most})
    return tuple(Shape(count, min(cpus // count, instances_max or cpus)) for count in threads)


def tune(
    variants: Sequence[Variant],
    load: Load,
    manifest: Manifest,
    golden_file: Path,
    *,
    cpus: int,
    threads_max: int,
    clock: Callable[[], float],
    resident_mb: Callable[[], float],
    bench: Bench | None = None,
    budget_s: float = BUDGET_S,
) -> Tuned:
    """Return the fastest of `variants` x `shapes` that passes the golden cases, within the release's SLO if any is.

    Args:
        variants: In the publisher's order, at least one; ties go to the first.
        clock: Seconds that only rise.
        resident_mb: What the process holds now; the curve stays within the release's `slo.memory_mb` above it.
        budget_s: For all of it; CURVE_BUDGET_S of that are for the curve. A trial that has begun ends, and the first
            variant that passes serves however long it takes.
    Raises:
        NothingPasses: no variant loads and passes.
        EngineError: the golden cases cannot be read.
    """
    ends_at = clock() + budget_s - CURVE_BUDGET_S
    before_mb = resident_mb()
    bench = bench or Bench()
    cases = load_cases(golden_file, manifest)
    feeds = single_rows(cases, manifest.inputs)
    search = _Search()
    order = list(variants)
    try:
        for shape in shapes(cpus, threads_max, manifest.serving.instances_max):
            threaded: dict[str, _Trial] = {}
            for variant in order:
                if search.best is not None and clock() >= ends_at:
                    _note(search, variant, shape, refused="not tried: the time was up")
                    continue
                try:
                    trial = _try(variant, shape, load, manifest, golden_file, feeds, bench)
                except EngineError as error:
                    search.first_error = search.first_error or error
                    _note(search, variant, shape, refused=str(error))
                    continue
                if not trial.inline:  # One that runs on the loop has one thread and one instance.
                    threaded[variant.name] = trial
                _duel(search, trial, feeds, bench, manifest.slo.latency_ms_p95)
            best = search.best
            if best is None:
                assert search.first_error is not None, "there is a variant, and none passed"
                raise NothingPasses(search.first_error, search.tried)
            floor = HOPELESS * best.loaded.rows_per_s
            rates = {name: trial.loaded.rows_per_s for name, trial in threaded.items()}
            order = [variant for variant in order if rates.get(variant.name, 0.0) >= floor]
            order.sort(key=lambda variant: rates[variant.name], reverse=True)
        assert search.best is not None
        return _finish(search, search.best, manifest, cases, bench, cpus, clock, resident_mb, before_mb)
    except BaseException:
        if search.best is not None:
            search.best.session.close()
        raise


def _try(
    variant: Variant,
    shape: Shape,
    load: Load,
    manifest: Manifest,
    golden_file: Path,
    feeds: Sequence[Feed],
    bench: Bench,
) -> _Trial:
    session = load(variant, threads=shape.threads, instances=shape.instances)
    try:
        report = self_test(session, manifest, golden_file)
        if not report.passed:
            raise ProofFailed(report.reason)
        alone = bench.rate(session, feeds, streams=1, seconds=WINDOW_S_MIN)
        trial = _Trial(variant, shape, session, alone, alone)
        if trial.streams > 1:
            trial.loaded = bench.rate(session, feeds, streams=trial.streams, seconds=_window_s(trial))
    except BaseException:
        session.close()
        raise
    return trial


def _duel(search: _Search, trial: _Trial, feeds: Sequence[Feed], bench: Bench, slo_ms: float) -> None:
    """Keep the better of the best so far and `trial`, and close the other."""
    best = search.best
    if best is None:
        search.best = trial
        return
    try:
        ratio = trial.loaded.rows_per_s / best.loaded.rows_per_s
        if (
            1 / CLOSE < ratio < CLOSE
        ):  # The device may have been busy with something else: in turns, and the best counts.
            for _ in range(2):
                for one in (best, trial):
                    again = bench.rate(one.session, feeds, streams=one.streams, seconds=_window_s(one))
                    one.loaded = max(one.loaded, again, key=lambda rate: rate.rows_per_s)
        wins = _wins(trial, best, slo_ms)
    except EngineError as error:  # It passed before: whichever failed now, keep what was the best.
        log.warning("tuning_interrupted", error=str(error))
        wins = False
    winner, loser = (trial, best) if wins else (best, trial)
    search.best = winner
    loser.session.close()
    late = loser.loaded.ms_p95 > slo_ms >= winner.loaded.ms_p95
    why = f"p95 of {loser.loaded.ms_p95:.3g} ms exceeds the SLO of {slo_ms:g} ms" if late else ""
    _note(
        search,
        loser.variant,
        Shape(loser.shape.threads, loser.streams),
        rows_per_s=loser.loaded.rows_per_s,
        refused=why,
    )


def _wins(trial: _Trial, best: _Trial, slo_ms: float) -> bool:
    trial_in_time, best_in_time = trial.loaded.ms_p95 <= slo_ms, best.loaded.ms_p95 <= slo_ms
    if trial_in_time != best_in_time:
        return trial_in_time
    if not trial_in_time:
        return trial.loaded.ms_p95 < best.loaded.ms_p95
    return trial.loaded.rows_per_s > MUST_GAIN * best.loaded.rows_per_s


def _finish(
    search: _Search,
    best: _Trial,
    manifest: Manifest,
    cases: GoldenCases,
    bench: Bench,
    cpus: int,
    clock: Callable[[], float],
    resident_mb: Callable[[], float],
    before_mb: float,
) -> Tuned:
    curve, batchable = _curve(
        best.session,
        manifest,
        cases,
        bench,
        stop=lambda spent_s: spent_s >= CURVE_BUDGET_S or resident_mb() - before_mb > manifest.slo.memory_mb,
        clock=clock,
    )
    plan = plan_from_curve(
        curve,
        serving=manifest.serving,
        slo=manifest.slo,
        cpus=min(cpus, best.shape.threads * best.shape.instances),
        threads=best.shape.threads,
        batchable=batchable,
        call_ms_p95=best.alone.ms_p95,
    )
    achieved = best.session.achieved
    tuning = Tuning(
        variant=best.variant.name,
        engine=f"{achieved.engine} {achieved.version}",
        device=achieved.device,
        precision=achieved.precision,
        threads=best.shape.threads,
        instances=plan.instances_max,
        batch_max=plan.batch_max,
        rows_per_s=round(best.loaded.rows_per_s, 1),
        latency_ms_p95=round(best.loaded.ms_p95, 4),
        fallback=achieved.fallback[:TRIAL_TEXT_MAX],
        alternatives=tuple(search.tried[:TRIALS_MAX]),
    )
    return Tuned(best.session, best.variant, plan, tuning)


def _curve(
    session: Session,
    manifest: Manifest,
    cases: GoldenCases,
    bench: Bench,
    *,
    stop: Callable[[float], bool],
    clock: Callable[[], float],
) -> tuple[Curve, bool]:
    """Return the latency curve as far as it says something, and whether rows may share a call at all."""
    feed = batches(cases, manifest)
    one = single_rows(cases, manifest.inputs)[0]
    curve = [(1, bench.call_ms(session, one))]
    if feed is None or manifest.serving.batch_max == 1:
        return tuple(curve), False
    if not proves_batched(session, cases, manifest):
        log.warning("batches_refused", model=manifest.model, reason="golden rows get other answers together")
        return tuple(curve), False
    cap = manifest.serving.batch_max or CURVE_ROWS[-1]
    began_at = clock()
    for rows in sorted({size for size in CURVE_ROWS[1:] if size <= cap} | {min(cap, CURVE_ROWS[-1])}):
        if stop(clock() - began_at):
            break
        # Two doublings without a gain: this model only computes, and larger batches only cost memory.
        if len(curve) > 2 and all(_flat(before, after) for before, after in pairwise(curve[-3:])):
            break
        ms = bench.call_ms(session, feed(rows))
        curve.append((rows, ms))
        if ms > CURVE_CALL_MS_MAX:
            break
    # Once more, and the shorter counts: whatever else ran meanwhile must not look like a gain of the next size.
    for at, (rows, ms) in enumerate(curve):
        if len(curve) > 1 and not stop(clock() - began_at):
            curve[at] = (rows, min(ms, bench.call_ms(session, feed(rows))))
    return tuple(curve), True


def _flat(before: tuple[int, float], after: tuple[int, float]) -> bool:
    return (after[0] / after[1]) / (before[0] / before[1]) < GAIN_OF_DOUBLING


def _window_s(trial: _Trial) -> float:
    return min(WINDOW_S_MAX, max(WINDOW_S_MIN, WINDOW_CALLS * trial.alone.ms_p95 / 1e3))


def _note(
    search: _Search, variant: Variant, shape: Shape, *, rows_per_s: float | None = None, refused: str = ""
) -> None:
    search.tried.append(
        TuningTrial(
            variant=variant.name,
            threads=shape.threads,
            instances=shape.instances,
            rows_per_s=None if rows_per_s is None else round(rows_per_s, 1),
            refused=refused[:TRIAL_TEXT_MAX],
        )
    )
