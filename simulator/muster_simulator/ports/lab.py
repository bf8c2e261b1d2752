"""A lab without engines: loading and proving take virtual time, and each release has a scripted truth.

    Truth ── kind, harmed devices ──▶ self-test · requests, errors, labels, latency in the window · crash · brick

Implements `muster_agent.ports.Lab`. As the real one, it hashes the files before it runs them, and answers later.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol

from muster_agent.ports import Lab, Store
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


class Answers(Protocol):
    """The device's process: it takes answers, and suffers what the release does to it."""

    def self_test_done(self, bundle: Sha256, refusal: Refusal | None, detail: str) -> None: ...

    def serve_failed(self, bundle: Sha256, detail: str) -> None: ...

    def taken_down(self, by: ReleaseRef, off_s: float) -> None:
        """The release took the device down."""
        ...

    def run(self, act: Callable[[], None]) -> None:
        """Let the process do `act`; it may die in it."""
        ...


class ScriptedLab(Lab):
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
        self._ended = False

    def end(self) -> None:
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
