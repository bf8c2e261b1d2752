"""A lab without engines: it takes the time that real ones take, and answers from tables of what releases really know.

Requests come at a steady rate and walk through the labelled inputs in an order of the device's own, so that a window
holds a sample of what the release is asked, none of it twice before all were asked once. Counting is lazy: it happens
when somebody looks.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from muster_agent.ports import Store
from muster_shared.bundle import Manifest, Variant
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import Refusal, ReleaseRef, Tuning, WindowReport
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

    def _settle(self, model: ModelName) -> None:
        """Count the requests up to now for the release that has served them."""
        served = self._served.get(model)
        if served is None:
            return
        upto = max(served.asked, int((self._clock() - served.since) * self._requests_per_s(model)))
        positions = np.arange(served.asked, upto) % len(served.order)
        total = self._count(served.release.bundle_sha256).total
        total.requests += len(positions)
        total.right += int(served.truth.right[served.order[positions]].sum())
        served.asked = upto

    def _count(self, bundle: Sha256) -> _Counts:
        return self._counts.setdefault(bundle, _Counts())

    def _p50_ms(self, bundle: Sha256) -> float:
        truth = self._truths.of(bundle)
        return 0.0 if truth is None else truth.latency_ms * self._speed
