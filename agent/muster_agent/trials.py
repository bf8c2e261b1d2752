"""The trial of a candidate that the rollout asks for: begun, read and ended on the real serving table.

    conductor ── begin ──▶ lab: beside what serves      read ──▶ serving loop: counts ──▶ post ──▶ trial_measured
              ── end ────▶ table: the candidate closes

It counts and compares nothing itself (`serving.trial` does), and decides nothing (`core.trial` does). What a local
caller ends or replaces by `muster-agent trial` begins anew at the next reading.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from muster_agent.core.split import Mode
from muster_agent.core.trial import TrialReading
from muster_agent.lab import EngineLab
from muster_agent.serving.stats import Snapshot
from muster_agent.serving.table import ModelUnknown, ServingTable
from muster_agent.serving.trial import TrialSnapshot
from muster_shared.assignment import Trial
from muster_shared.bundle import Manifest, Variant
from muster_shared.errors import MusterError
from muster_shared.ids import Sha256
from muster_shared.messages import ReleaseRef

Run = Callable[[Callable[[], None]], object]
"""Runs a call on another thread, soon."""


class Answers(Protocol):
    """What the conductor wants to hear, on its own thread."""

    def trial_measured(self, bundle: Sha256, reading: TrialReading) -> None: ...

    def trial_refused(self, bundle: Sha256, detail: str) -> None: ...


@dataclass
class _Candidate:
    release: ReleaseRef
    manifest: Manifest
    variants: tuple[Variant, ...]
    trial: Trial
    began_at: float
    serving_from: Snapshot = field(default_factory=Snapshot)
    """The counts of what serves when it began."""
    beginning: bool = False


class EngineTrials:
    """`ports.Trials`. Call `attach` before the conductor starts; on its thread, but for the reading itself."""

    def __init__(
        self,
        lab: EngineLab,
        table: ServingTable,
        on_loop: Run,
        post: Run,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            on_loop: Runs a call on the serving loop, where trials are counted.
            post: Runs a call on the conductor's thread.
        """
        self._lab = lab
        self._table = table
        self._on_loop = on_loop
        self._post = post
        self._monotonic = monotonic
        self._answers: Answers | None = None
        self._candidates: dict[Sha256, _Candidate] = {}

    def attach(self, answers: Answers) -> None:
        self._answers = answers

    # -- ports.Trials --------------------------------------------------------------------------------------------------

    def begin(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...], trial: Trial) -> None:
        for bundle, other in list(self._candidates.items()):
            if other.release.model == release.model:
                del self._candidates[bundle]  # A model has one candidate.
        candidate = _Candidate(release, manifest, variants, trial, self._monotonic())
        self._candidates[release.bundle_sha256] = candidate
        self._begin(candidate)

    def read(self, release: ReleaseRef) -> None:
        if release.bundle_sha256 in self._candidates:
            self._on_loop(lambda: self._read(release))

    def end(self, release: ReleaseRef) -> None:
        self._candidates.pop(release.bundle_sha256, None)
        beside = self._table.trials.get(release.model)
        if beside is not None and beside.place.served.manifest_sha256 == release.bundle_sha256:
            self._table.end_trial(release.model)

    # ------------------------------------------------------------------------------------------------------------------

    def _begin(self, candidate: _Candidate) -> None:
        trial = candidate.trial
        candidate.beginning = True
        self._lab.begin_trial(
            candidate.release,
            candidate.manifest,
            candidate.variants,
            Mode(trial.mode),
            trial.share,
            lambda error: self._began(candidate, error),
        )

    def _began(self, candidate: _Candidate, error: MusterError | None) -> None:
        candidate.beginning = False
        release = candidate.release
        if self._candidates.get(release.bundle_sha256) is not candidate:
            if error is None and release.bundle_sha256 not in self._candidates:
                self.end(release)  # It was called off while it was being loaded.
        elif error is None:
            candidate.serving_from = self._serving(release)
        elif not isinstance(error, ModelUnknown):  # What serves may be loading still; the next reading tries again.
            del self._candidates[release.bundle_sha256]
            self._answer().trial_refused(release.bundle_sha256, str(error))

    def _read(self, release: ReleaseRef) -> None:
        """On the serving loop."""
        beside = self._table.trials.get(release.model)
        is_ours = beside is not None and beside.place.served.manifest_sha256 == release.bundle_sha256
        counted = beside.trial.snapshot() if beside is not None and is_ours else None
        self._post(lambda: self._counted(release, counted))

    def _counted(self, release: ReleaseRef, counted: TrialSnapshot | None) -> None:
        candidate = self._candidates.get(release.bundle_sha256)
        if candidate is None:
            return  # It ended meanwhile.
        reading = TrialReading(self._monotonic() - candidate.began_at)
        if counted is not None:
            reading = self._reading(candidate, counted, reading.seconds)
        elif not candidate.beginning:
            self._begin(candidate)
        self._answer().trial_measured(release.bundle_sha256, reading)

    def _reading(self, candidate: _Candidate, counted: TrialSnapshot, seconds: float) -> TrialReading:
        served = self._serving(candidate.release).since(candidate.serving_from)
        return TrialReading(
            seconds=seconds,
            compared=counted.compared,
            disagreed=counted.disagreed,
            answered=counted.candidate_latency.count,
            errors=counted.errors,
            latency_ms_p95=counted.candidate_latency.quantile_ms(0.95),
            serving_answered=counted.primary.count,
            serving_errors=served.errors,
            serving_latency_ms_p95=counted.primary.quantile_ms(0.95),
        )

    def _serving(self, release: ReleaseRef) -> Snapshot:
        try:
            return self._table.served(release.model).stats.snapshot()
        except ModelUnknown:
            return Snapshot()

    def _answer(self) -> Answers:
        assert self._answers is not None, "attach comes first"
        return self._answers
