"""A lab without engines: it takes the time that real ones take, and answers from tables of what releases really know.

Requests come at a steady rate and walk through the labelled inputs in an order of the device's own, so that a window
holds a sample of what the release is asked, none of it twice before all were asked once. Counting is lazy: it happens
when somebody looks.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from muster_agent.metrics import port as metrics
from muster_agent.metrics.confidence import confidence_bins
from muster_agent.ports import NOTHING, Did, Store
from muster_shared.bundle import Manifest, Variant
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import Refusal, ReleaseRef, Tuning, WindowReport
from muster_shared.metrics import CLASSES_MAX, INPUTS, Kind, latency_place
from muster_shared.variants import files_of
from muster_simulator.load.truth import Truth, Truths

LOAD_S = 0.05
LOAD_BYTES_S = 40e6  # Hashing, parsing and optimising; as the reference workloads load on one core.
PROOF_RUNS = 36  # 16 golden cases, 20 runs to warm up.
P95_OVER_P50 = 1.4  # Of one small model alone on a core.
SPEEDS = (0.8, 1.6)  # Times of the machine that measured; a fleet's processors differ.

Later = Callable[[float, Callable[[], None]], None]
"""Runs a call on the conductor's thread after so many seconds."""


@dataclass
class Tally:
    """What one release was asked and how often it was right, on one device or on all."""

    requests: int = 0
    right: int = 0


@dataclass(frozen=True)
class Serving:
    """`ports.ServedModel`."""

    engine: str
    requests: int
    latency_ms_p95: float | None
    tuning: Tuning | None = None
    did: Did = NOTHING


@dataclass
class _Served:
    """One model's traffic: `asked` requests were counted for whichever release served at the time."""

    release: ReleaseRef
    truth: Truth
    engine: str
    since: float
    order: NDArray[np.int64]
    asked: int = 0


@dataclass
class _Counts:
    total: Tally = field(default_factory=Tally)
    opened: Tally = field(default_factory=Tally)
    opened_at: float = field(default_factory=time.monotonic)


class _Meter:
    """Counts of one release for the anonymous metrics. Drift is what a reference file says, and there is none here."""

    def __init__(self, release: metrics.Release, truth: Truth) -> None:
        self._release = release
        self._truth = truth
        self._inferences = 0
        self._counts: dict[Kind, Counter[int]] = defaultdict(Counter)

    def add(self, indices: NDArray[np.int64], speed: float) -> None:
        """Count the labelled inputs at `indices`, each of which takes `speed` times what it was measured to take."""
        said, asked = self._truth.answered, len(indices)
        self._inferences += asked
        if not asked or said is None:
            return
        last = self._release.classes - 1
        answered = np.minimum(said.answered[indices], last)
        bins = confidence_bins(said.confidence[indices])
        truths = said.truth[indices]
        known = truths >= 0
        marks = 2 * np.minimum(truths[known], last) + (said.right[indices][known])
        for kind, places in ((Kind.CLASSES, answered), (Kind.CONFIDENCE, bins), (Kind.FEEDBACK, marks)):
            self._counts[kind].update(places.tolist())
        self._counts[Kind.FEEDBACK][2 * self._release.classes] += int((~known).sum())
        self._counts[Kind.LATENCY][latency_place(self._truth.latency_ms * speed * 1e3)] += asked
        self._counts[Kind.INPUTS][INPUTS.index("plain")] += asked

    def take(self) -> metrics.Tally:
        counts = {kind: dict(found) for kind, found in self._counts.items()}
        tally = metrics.Tally(self._release, self._inferences, counts)
        self._inferences, self._counts = 0, defaultdict(Counter)
        return tally


def _measured(release: ReleaseRef, manifest: Manifest) -> metrics.Release:
    classes = min(len(manifest.labels), CLASSES_MAX)
    allow = frozenset(manifest.metrics.allow)
    return metrics.Release(release.model, release.version, release.bundle_sha256, classes, allow)


class TruthLab:
    """`ports.Lab`. Set `self_test_done` and `serve_failed` before the conductor starts."""

    def __init__(
        self,
        store: Store,
        truths: Truths,
        later: Later,
        *,
        requests_per_s: Callable[[ModelName], float],
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self.self_test_done: Callable[[Sha256, Refusal | None, str], None]
        self.serve_failed: Callable[[Sha256, str], None]
        self.self_tests = 0
        self._store = store
        self._truths = truths
        self._later = later
        self._requests_per_s = requests_per_s
        self._clock = clock
        self._order_seed = random.getrandbits(32)
        self._speed = random.uniform(*SPEEDS)
        self._served: dict[ModelName, _Served] = {}
        self._counts: dict[Sha256, _Counts] = {}
        self._names: dict[Sha256, tuple[ModelName, str]] = {}
        self._meters: dict[Sha256, _Meter] = {}

    # -- ports.Lab ---------------------------------------------------------------------------------------------------

    def self_test(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None:
        self.self_tests += 1
        bundle = release.bundle_sha256
        files = files_of(manifest, variants)
        truth = self._truths.of(bundle)
        if not all(self._store.verify(file) for file in files):
            self._later(0.0, lambda: self.self_test_done(bundle, Refusal.TAMPERED, "a file is not what was fetched"))
        elif truth is None:
            detail = f"nobody has measured {release.model} {release.version}"
            self._later(0.0, lambda: self.self_test_done(bundle, Refusal.ENGINE_MISSING, detail))
        else:
            takes_s = LOAD_S + sum(file.length for file in files) / LOAD_BYTES_S + PROOF_RUNS * truth.latency_ms / 1e3
            self._later(takes_s * self._speed, lambda: self.self_test_done(bundle, None, ""))

    def serve(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None:
        truth = self._truths.of(release.bundle_sha256)
        if truth is None:
            self._later(0.0, lambda: self.serve_failed(release.bundle_sha256, "nobody has measured it"))
            return
        self._settle(release.model)
        order = np.random.default_rng(self._order_seed).permutation(len(truth.right))
        engine = f"simulated {variants[0].runtime} {variants[0].precision}"
        self._names[release.bundle_sha256] = (release.model, release.version)
        self._meters.setdefault(release.bundle_sha256, _Meter(_measured(release, manifest), truth))
        self._served[release.model] = _Served(release, truth, engine, self._clock(), order)

    def retire(self, model: ModelName) -> None:
        self._settle(model)
        self._served.pop(model, None)

    def drop(self, keep: frozenset[Sha256]) -> None:
        """Nothing is held open; counts stay for the status."""

    def open_window(self, release: ReleaseRef) -> None:
        self._settle(release.model)
        counts = self._count(release.bundle_sha256)
        counts.opened = Tally(counts.total.requests, counts.total.right)
        counts.opened_at = time.monotonic()

    def measure(self, release: ReleaseRef) -> WindowReport:
        self._settle(release.model)
        counts = self._count(release.bundle_sha256)
        requests = counts.total.requests - counts.opened.requests
        p50_ms = self._p50_ms(release.bundle_sha256) if requests else None
        return WindowReport(
            seconds=time.monotonic() - counts.opened_at,
            requests=requests,
            labelled=requests,
            right=counts.total.right - counts.opened.right,
            latency_ms_p50=p50_ms,
            latency_ms_p95=None if p50_ms is None else p50_ms * P95_OVER_P50,
        )

    def served(self, model: ModelName) -> Serving | None:
        served = self._served.get(model)
        if served is None:
            return None
        self._settle(model)
        bundle = served.release.bundle_sha256
        return Serving(served.engine, self._count(bundle).total.requests, self._p50_ms(bundle) * P95_OVER_P50)

    # -- for the status ----------------------------------------------------------------------------------------------

    def tallies(self) -> dict[tuple[ModelName, str], Tally]:
        """Return what each model and version was asked on this device so far."""
        for model in self._served:
            self._settle(model)
        return {self._names[bundle]: counts.total for bundle, counts in self._counts.items() if bundle in self._names}

    # -- metrics.port.Meters -----------------------------------------------------------------------------------------

    def take(self) -> list[metrics.Tally]:
        """Return what was counted of each release since the last call: from what it really says to each input."""
        for model in self._served:
            self._settle(model)
        serving = {served.release.bundle_sha256 for served in self._served.values()}
        taken = [self._meters[bundle].take() for bundle in sorted(self._meters)]
        self._meters = {bundle: meter for bundle, meter in self._meters.items() if bundle in serving}
        return taken

    def _settle(self, model: ModelName) -> None:
        """Count the requests up to now for the release that has served them."""
        served = self._served.get(model)
        if served is None:
            return
        upto = max(served.asked, int((self._clock() - served.since) * self._requests_per_s(model)))
        positions = np.arange(served.asked, upto) % len(served.order)
        total = self._count(served.release.bundle_sha256).total
        self._meters[served.release.bundle_sha256].add(served.order[positions], self._speed)
        total.requests += len(positions)
        total.right += int(served.truth.right[served.order[positions]].sum())
        served.asked = upto

    def _count(self, bundle: Sha256) -> _Counts:
        return self._counts.setdefault(bundle, _Counts())

    def _p50_ms(self, bundle: Sha256) -> float:
        truth = self._truths.of(bundle)
        return 0.0 if truth is None else truth.latency_ms * self._speed
