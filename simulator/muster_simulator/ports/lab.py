"""A lab without engines: loading and proving take virtual time, and each release has a scripted truth.

    Truth ── kind, harmed devices ──▶ self-test · requests, errors, labels, latency in the window · crash · brick

Implements `muster_agent.ports.Lab`, `Trials` and `Lately`: a trial finds what the window would find. As the real one,
it hashes the files before it runs them, and answers later.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol

from muster_agent.core.trial import TrialReading
from muster_agent.ports import NOTHING, Did, Lab, Lately, Store, Trials
from muster_shared.assignment import Trial
from muster_shared.bundle import Manifest, Variant
from muster_shared.ids import DeviceId, ModelName, Sha256
from muster_shared.messages import Refusal, ReleaseRef, Tuning, WindowReport
from muster_shared.variants import files_of
from muster_simulator.stage import Stage


class Kind(Enum):
    """What a release does to the devices that it harms."""

    GOOD = "good"
    INACCURATE = "inaccurate"
    SLOW = "slow"
    FAILING = "failing"
    CRASHING = "crashing"
    BRICKING = "bricking"
    UNPROVEN = "unproven"
    """The golden cases fail."""


@dataclass(frozen=True)
class Truth:
    kind: Kind = Kind.GOOD
    harmed: frozenset[DeviceId] = frozenset()

    def on(self, device: DeviceId) -> Kind:
        return self.kind if device in self.harmed else Kind.GOOD


@dataclass(frozen=True)
class Serving:
    """`ports.ServedModel`."""

    engine: str
    requests: int
    latency_ms_p95: float | None
    tuning: Tuning | None = None
    did: Did = NOTHING


class Answers(Protocol):
    """The device's process: it takes answers, and suffers what the release does to it."""

    def self_test_done(self, bundle: Sha256, refusal: Refusal | None, detail: str) -> None: ...

    def serve_failed(self, bundle: Sha256, detail: str) -> None: ...

    def trial_measured(self, bundle: Sha256, reading: TrialReading) -> None: ...

    def trial_refused(self, bundle: Sha256, detail: str) -> None: ...

    def taken_down(self, by: ReleaseRef, off_s: float) -> None:
        """The release took the device down."""
        ...

    def run(self, act: Callable[[], None]) -> None:
        """Let the process do `act`; it may die in it."""
        ...


@dataclass(frozen=True)
class _Trying:
    trial: Trial
    since: float


class ScriptedLab(Lab, Trials, Lately):
    """The lab of one process: what is loaded is gone with it."""

    def __init__(
        self,
        stage: Stage,
        device: DeviceId,
        store: Store,
        answers: Answers,
        truths: Mapping[Sha256, Truth],
        *,
        requests_per_s: float,
        random: Random,
    ) -> None:
        self.serving: dict[ModelName, ReleaseRef] = {}
        self._stage = stage
        self._device = device
        self._store = store
        self._answers = answers
        self._truths = truths
        self._requests_per_s = requests_per_s
        self._random = random
        self._candidates: set[Sha256] = set()
        self._wanted: dict[ModelName, Sha256] = {}
        self._windows: dict[Sha256, float] = {}
        self._trying: dict[Sha256, _Trying] = {}
        self._chance = stage.random(f"trials/{device}/{stage.timeline.now}")
        """Of trials and of the time before a window: what they draw changes nothing else."""
        self._ended = False

    def stop(self) -> None:
        """The process is gone, and with it whatever was under way."""
        self._ended = True

    # -- ports.Lab ---------------------------------------------------------------------------------------------------

    def self_test(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None:
        bundle = release.bundle_sha256
        if bundle in self._candidates:
            self._later(0.01, lambda: self._answers.self_test_done(bundle, None, "it is still loaded"))
            return

        def work() -> None:
            refusal, detail = self._prove(release, manifest, variants)
            if refusal is None:
                self._candidates.add(bundle)
                self._stage.observers.test_passed(self._device, bundle)
            self._answers.self_test_done(bundle, refusal, detail)

        self._later(self._random.uniform(0.5, 6.0), work)

    def serve(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None:
        bundle = release.bundle_sha256
        self._wanted[release.model] = bundle
        current = self.serving.get(release.model)
        if current is not None and current.bundle_sha256 == bundle:
            return
        if bundle in self._candidates:
            self._candidates.discard(bundle)
            self._trying.pop(bundle, None)
            self._switch(release, manifest, variants)
            return

        def work() -> None:
            if self._wanted.get(release.model) != bundle:
                return
            if all(self._store.verify(file) for file in files_of(manifest, variants)):
                self._switch(release, manifest, variants)
            else:
                self._answers.serve_failed(bundle, "a file was damaged on the disk")

        self._later(self._random.uniform(0.2, 2.0), work)

    def retire(self, model: ModelName) -> None:
        self._wanted.pop(model, None)
        self.serving.pop(model, None)

    def drop(self, keep: frozenset[Sha256]) -> None:
        self._candidates &= keep
        self._windows = {bundle: since for bundle, since in self._windows.items() if bundle in keep}
        self._trying = {bundle: trying for bundle, trying in self._trying.items() if bundle in keep}

    def open_window(self, release: ReleaseRef) -> None:
        self._windows[release.bundle_sha256] = self._stage.timeline.now
        match self._truth(release):
            case Kind.CRASHING:
                self._take_down(release, self._random.uniform(2.5, 12.0), self._random.uniform(3.0, 12.0))
            case Kind.BRICKING:
                self._take_down(
                    release, self._random.uniform(2.5, 8.0), self._random.uniform(600.0, 1200.0)
                )  # Until someone visits.
            case _:
                pass

    def measure(self, release: ReleaseRef) -> WindowReport:
        since = self._windows.get(release.bundle_sha256, self._stage.timeline.now)
        seconds = self._stage.timeline.now - since
        count = int(seconds * self._requests_per_s)
        if not count:
            return WindowReport(seconds=seconds)
        kind = self._truth(release)
        errors = count // 2 if kind is Kind.FAILING else 0
        labelled = count - errors
        right = int(labelled * (0.3 if kind is Kind.INACCURATE else 0.97))
        latency = self._random.uniform(90.0, 200.0) if kind is Kind.SLOW else self._random.uniform(8.0, 30.0)
        return WindowReport(
            seconds=seconds,
            requests=count - errors,
            errors=errors,
            labelled=labelled,
            right=right,
            latency_ms_p50=latency / 2,
            latency_ms_p95=latency,
        )

    def served(self, model: ModelName) -> Serving | None:
        return Serving("scripted", 0, None) if model in self.serving else None

    # -- ports.Trials --------------------------------------------------------------------------------------------------

    def begin(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...], trial: Trial) -> None:
        bundle = release.bundle_sha256

        def work() -> None:
            if not all(self._store.verify(file) for file in files_of(manifest, variants)):
                self._answers.trial_refused(bundle, "a file was damaged on the disk")
                return
            self._trying[bundle] = _Trying(trial, self._stage.timeline.now)
            self._candidates.add(bundle)
            if self._truth(release) is Kind.CRASHING:
                self._take_down_in_trial(release)

        self._later(0.1 if bundle in self._candidates else 1.0, work)

    def read(self, release: ReleaseRef) -> None:
        trying = self._trying.get(release.bundle_sha256)
        if trying is not None:
            reading = self._reading(release, trying)
            self._later(0.01, lambda: self._answers.trial_measured(release.bundle_sha256, reading))

    def end(self, release: ReleaseRef) -> None:
        self._trying.pop(release.bundle_sha256, None)

    # -- ports.Lately --------------------------------------------------------------------------------------------------

    def latency_ms_p95(self, release: ReleaseRef, seconds: float, requests_min: int) -> float | None:
        if seconds * self._requests_per_s < requests_min or release.model not in self.serving:
            return None
        slow = self._truth(release) is Kind.SLOW
        return self._chance.uniform(90.0, 200.0) if slow else self._chance.uniform(8.0, 30.0)

    # ----------------------------------------------------------------------------------------------------------------

    def _prove(
        self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]
    ) -> tuple[Refusal | None, str]:
        for file in files_of(manifest, variants):
            if not self._store.verify(file):
                return Refusal.TAMPERED, f"{file.path} was damaged on the disk"
        self._stage.observers.tested(self._device, release, manifest, variants[0])
        if self._truth(release) is Kind.UNPROVEN:
            return Refusal.SELF_TEST_FAILED, "case 3 of 8 differs by 0.4"
        return None, ""

    def _switch(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None:
        self.serving[release.model] = release
        self._stage.observers.served(self._device, release, manifest, variants[0])
        self._stage.history.add(self._device, "serves", release.model, release.version)

    def _reading(self, release: ReleaseRef, trying: _Trying) -> TrialReading:
        seconds = self._stage.timeline.now - trying.since
        count = int(seconds * self._requests_per_s * trying.trial.share)
        kind = self._truth(release)
        errors = count // 2 if kind is Kind.FAILING else 0
        compared = count - errors if trying.trial.mode == "shadow" else 0
        latency = self._chance.uniform(90.0, 200.0) if kind is Kind.SLOW else self._chance.uniform(19.0, 20.0)
        return TrialReading(
            seconds=seconds,
            compared=compared,
            disagreed=int(compared * (0.67 if kind is Kind.INACCURATE else 0.005)),
            answered=count - errors,
            errors=errors,
            latency_ms_p95=latency if count else None,
            serving_answered=count,
            serving_latency_ms_p95=19.5 if count else None,
        )

    def _take_down_in_trial(self, release: ReleaseRef) -> None:
        def fall() -> None:
            if release.bundle_sha256 in self._trying and not self._stage.is_peaceful:
                self._answers.taken_down(release, self._chance.uniform(3.0, 12.0))

        self._later(self._chance.uniform(2.5, 12.0), fall)

    def _take_down(self, release: ReleaseRef, delay_s: float, off_s: float) -> None:
        def fall() -> None:
            current = self.serving.get(release.model)
            if self._stage.is_peaceful:
                return
            if current == release and release.bundle_sha256 in self._windows:
                self._answers.taken_down(release, off_s)

        self._later(delay_s, fall)

    def _truth(self, release: ReleaseRef) -> Kind:
        return self._truths.get(release.bundle_sha256, Truth()).on(self._device)

    def _later(self, delay_s: float, work: Callable[[], None]) -> None:
        self._stage.timeline.after(delay_s, lambda: None if self._ended else self._answers.run(work))
