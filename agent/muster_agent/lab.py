"""The lab: loads, proves and serves releases with the real engines, without making the conductor wait.

    self_test ─▶ worker: `loading` with proof ─▶ candidate, SelfTestDone
    serve     ─▶ candidate, or worker: `loading` ─▶ ServingTable.switch, or ServeFailed
    unload, or no memory ─▶ ServingTable.remove          reload ─▶ worker: `loading` ─▶ ServingTable.switch

One worker thread does the slow work, in order; what it found is posted back to the conductor's thread, where every
other line here runs. It decides nothing: `core.update` says what to test and what to serve, `core.residency` what stays
in memory.
"""

import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import structlog

from muster_agent.core import residency
from muster_agent.core.residency import Presence, Residency
from muster_agent.core.split import Mode
from muster_agent.engines.port import ModelUnloadable, Session
from muster_agent.engines.registry import available
from muster_agent.engines.tuning import BUDGET_S
from muster_agent.io.glibc import release_memory
from muster_agent.io.host import usable_cpus
from muster_agent.io.tuning_store import TuningStore
from muster_agent.io.views import Views
from muster_agent.loading import Prepared, Refused, ReleaseLoader
from muster_agent.ports import NOTHING, Did, Store
from muster_agent.serving.stats import Snapshot, WindowStats
from muster_agent.serving.table import ModelUnknown, ServingTable
from muster_shared.bundle import Manifest, Variant
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import Refusal, ReleaseRef, Tuning, WindowReport

_MIB = 1024 * 1024

log = structlog.get_logger()

Post = Callable[[Callable[[], None]], None]
"""Runs a call on the conductor's thread, later. May be called from any thread."""


class Answers(Protocol):
    """What the conductor wants to hear, on its own thread."""

    def self_test_done(self, bundle: Sha256, refusal: Refusal | None, detail: str) -> None: ...

    def serve_failed(self, bundle: Sha256, detail: str) -> None: ...


@dataclass(frozen=True)
class Serving:
    """`ports.ServedModel`."""

    engine: str
    requests: int
    latency_ms_p95: float | None
    tuning: Tuning | None = None
    did: Did = NOTHING


class Metered(Protocol):
    """What else is known of a release that serves. From any thread."""

    def cpu_ms(self, bundle: Sha256) -> float | None:
        """Return the processor time that it took; None: unknown."""
        ...

    def drift(self, bundle: Sha256) -> str | None:
        """Return `DRIFT` of it; None: the device does not say."""
        ...


@dataclass(frozen=True)
class _Held:
    """What a model is to serve, also while it is unloaded."""

    release: ReleaseRef
    manifest: Manifest
    variants: tuple[Variant, ...]


@dataclass
class _Counted:
    """The counts of one release for the life of the agent, however often it is loaded, and where its window began."""

    stats: WindowStats = field(default_factory=WindowStats)
    window_from: Snapshot = field(default_factory=Snapshot)
    opened_at: float = field(default_factory=time.monotonic)


class EngineLab:
    """`ports.Lab`. Call `attach` before the conductor starts."""

    def __init__(
        self,
        store: Store,
        views: Views,
        table: ServingTable,
        post: Post,
        *,
        threads: int,
        cpus: int | None = None,
        runtimes: tuple[str, ...] | None = None,
        tunings: TuningStore | None = None,
        tuning_s: float = BUDGET_S,
        memory_mb: int | None = None,
        pinned: frozenset[ModelName] = frozenset(),
        metered: Metered | None = None,
    ) -> None:
        """
        Args:
            threads: At most this many for one inference, >= 1.
            cpus: Processors to share out; None: all that the agent may use.
            runtimes: The engines that may be used; None: all that are installed.
            tunings: Where what was measured is kept; None: it is measured at every load.
            tuning_s: How long to try what is fastest; see `engines.tuning`.
            memory_mb: Budget for all models together, beyond which the least recently used are unloaded; None: no
                limit.
            pinned: Models that are not unloaded for that.
            metered: What the twin tells of a release is asked there; None: processor time is unknown.
        """
        self._views = views
        self._table = table
        self._post = post
        self._tunings = tunings
        self._metered = metered
        self._loader = ReleaseLoader(
            store,
            views,
            tunings,
            cpus=cpus or usable_cpus(),
            threads=threads,
            runtimes=runtimes or available(),
            tuning_s=tuning_s,
        )
        self._answers: Answers | None = None
        self._candidates: dict[Sha256, Prepared] = {}
        self._tried: dict[Sha256, Prepared] = {}
        """Candidates beside what serves; the table closes them."""
        self._tuned: dict[Sha256, Tuning] = {}
        self._counted: dict[Sha256, _Counted] = {}
        self._held: dict[ModelName, _Held] = {}
        self._residency = Residency(None if memory_mb is None else memory_mb * _MIB, pinned)
        self._keep: frozenset[Sha256] | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def attach(self, answers: Answers) -> None:
        self._answers = answers

    # -- ports.Lab ---------------------------------------------------------------------------------------------------

    def self_test(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None:
        bundle = release.bundle_sha256
        if bundle in self._candidates:
            self._post(lambda: self._answer().self_test_done(bundle, None, "it passed before and is still loaded"))
            return
        self._submit(lambda: self._test(_Held(release, manifest, variants)))

    def serve(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None:
        bundle = release.bundle_sha256
        before = self._held.get(release.model)
        held = self._held[release.model] = _Held(release, manifest, variants)
        if self._is_served(release.model, bundle):
            return
        candidate = self._candidates.pop(bundle, None)
        if candidate is not None:
            self._switch(release.model, candidate)
            return
        tried = self._tried.pop(bundle, None)
        if tried is not None and self._table.promote(release.model, bundle):
            self._resides(residency.Loaded(release.model, tried.memory))
            return
        if before == held and self._residency.presence(release.model) is Presence.UNLOADED:
            return  # It comes back when somebody asks for it.
        self._submit(lambda: self._load_to_serve(held))

    def retire(self, model: ModelName) -> None:
        self._held.pop(model, None)
        self._table.remove(model)
        self._resides(residency.Gone(model))

    def drop(self, keep: frozenset[Sha256]) -> None:
        self._keep = keep
        for bundle in sorted(self._candidates.keys() - keep):
            self._close(self._candidates.pop(bundle).served.session)
        self._tried = {bundle: tried for bundle, tried in self._tried.items() if bundle in keep}
        for bundle in sorted(self._counted.keys() - keep):
            del self._counted[bundle]
        for bundle in sorted(self._tuned.keys() - keep):
            del self._tuned[bundle]
        self._submit(lambda: self._collect(keep))

    def open_window(self, release: ReleaseRef) -> None:
        counted = self._count(release.bundle_sha256)
        counted.window_from, counted.opened_at = counted.stats.snapshot(), time.monotonic()

    def measure(self, release: ReleaseRef) -> WindowReport:
        counted = self._count(release.bundle_sha256)
        seen = counted.stats.snapshot().since(counted.window_from)
        return WindowReport(
            seconds=time.monotonic() - counted.opened_at,
            requests=seen.requests - seen.errors,
            errors=seen.errors,
            labelled=seen.labelled,
            right=seen.right,
            latency_ms_p50=seen.p50_ms,
            latency_ms_p95=seen.p95_ms,
        )

    def served(self, model: ModelName) -> Serving | None:
        try:
            served = self._table.served(model)
        except ModelUnknown:
            return None
        achieved, seen = served.session.achieved, served.stats.snapshot()
        how = f"{achieved.engine} {achieved.version} {achieved.device} {achieved.precision} x{achieved.threads}"
        bundle = served.manifest_sha256
        did = Did(
            errors=seen.errors,
            slow=seen.slow,
            inferences=seen.rows,
            cpu_ms=None if self._metered is None else self._metered.cpu_ms(bundle),
            drift=None if self._metered is None else self._metered.drift(bundle),
        )
        return Serving(how, seen.requests, seen.p95_ms, self._tuned.get(bundle), did)

    # -- trials ------------------------------------------------------------------------------------------------------

    def begin_trial(
        self,
        release: ReleaseRef,
        manifest: Manifest,
        variants: tuple[Variant, ...],
        mode: Mode,
        share: float,
        done: Callable[[MusterError | None], None],
    ) -> None:
        """Put `release` beside the one that serves its model. On the conductor's thread, as `done` is.

        What has just passed its self-test is not loaded again, and stays loaded when it cannot be tried.

        Args:
            share: Of the requests, 0..1.
            done: Is told None, or why it cannot be: ModelUnloadable, ModelUnknown, TrialUnfit.
        """
        candidate = self._candidates.pop(release.bundle_sha256, None)
        if candidate is not None:
            error = self._try_out(candidate, mode, share)
            if error is not None:
                self._candidates[release.bundle_sha256] = candidate
            done(error)
            return

        def load() -> None:
            try:
                prepared = self._loader.load(release, manifest, variants, prove=False)
            except Refused as refused:
                error = ModelUnloadable(refused.detail)
                self._post(lambda: done(error))
            else:
                self._post(lambda: self._loaded_to_try(self._with_counts(prepared), mode, share, done))

        self._submit(load)

    def _loaded_to_try(
        self, prepared: Prepared, mode: Mode, share: float, done: Callable[[MusterError | None], None]
    ) -> None:
        error = self._try_out(prepared, mode, share)
        if error is not None:
            self._close(prepared.served.session)
        done(error)

    def _try_out(self, prepared: Prepared, mode: Mode, share: float) -> MusterError | None:
        served = replace(prepared.served, slot="standby")
        try:
            self._table.begin_trial(served, mode, share, random.random)
        except MusterError as error:
            return error
        self._tuned[served.manifest_sha256] = prepared.tuning
        self._tried[served.manifest_sha256] = prepared
        return None

    # -- memory ------------------------------------------------------------------------------------------------------

    def unload(self, model: ModelName) -> bool:
        """Take `model` out of memory until `reload`, or until a newer release of it serves.

        Returns whether this device has a release of it. On the conductor's thread.
        """
        self._resides(residency.Unloaded(model))
        return model in self._held

    def reload(self, model: ModelName) -> bool:
        """Load `model` again if it is unloaded; others may be unloaded to make room. It serves some time later.

        Returns whether this device has a release of it. On the conductor's thread.
        """
        self._resides(residency.Asked(model))
        return model in self._held

    def unloaded(self) -> frozenset[ModelName]:
        """Return the models that this device has a release of, and that `reload` brings back. From any thread."""
        known = self._residency.models  # A frozen value, replaced as a whole.
        return frozenset(name for name, model in known.items() if model.presence is not Presence.LOADED)

    def _resides(self, event: residency.Event) -> None:
        """Let the core decide what stays in memory, by when each model was last asked, and do it."""
        for name, place in self._table.places().items():
            self._residency, _ = residency.advance(
                self._residency, residency.Used(name, place.served.stats.last_ns / 1e9), time.monotonic()
            )
        self._residency, effects = residency.advance(self._residency, event, time.monotonic())
        for effect in effects:
            match effect:
                case residency.Unload(model):
                    log.info("model_unloaded", model=model, held_mb=round(self._residency.held / _MIB, 1))
                    self._table.remove(model)
                case residency.Load(model):
                    self._submit(partial(self._load_to_serve, self._held[model]))

    def _switch(self, model: ModelName, prepared: Prepared) -> None:
        self._tuned[prepared.served.manifest_sha256] = prepared.tuning
        self._table.switch(model, prepared.served)
        self._resides(residency.Loaded(model, prepared.memory))

    # -- on the conductor's thread, after the worker -----------------------------------------------------------------

    def _tested(self, release: ReleaseRef, prepared: Prepared) -> None:
        bundle = release.bundle_sha256
        if bundle in self._candidates or self._is_served(release.model, bundle):
            self._close(prepared.served.session)
        else:
            self._candidates[bundle] = self._with_counts(prepared)
        self._answer().self_test_done(bundle, None, "")
        if self._keep is not None and bundle not in self._keep and bundle in self._candidates:
            self._close(self._candidates.pop(bundle).served.session)  # Called off while it was tested.

    def _loaded(self, release: ReleaseRef, prepared: Prepared) -> None:
        if not self._is_wanted(release):
            self._close(prepared.served.session)  # Another release took over while this one was loading.
        elif self._is_served(release.model, release.bundle_sha256):
            self._close(prepared.served.session)
        elif self._residency.presence(release.model) is Presence.UNLOADED:
            self._close(prepared.served.session)  # It was unloaded while it was loading.
        else:
            self._switch(release.model, self._with_counts(prepared))

    def _failed_to_serve(self, release: ReleaseRef, detail: str) -> None:
        if self._is_wanted(release):
            self._resides(residency.LoadFailed(release.model))
            self._answer().serve_failed(release.bundle_sha256, detail)

    def _is_wanted(self, release: ReleaseRef) -> bool:
        held = self._held.get(release.model)
        return held is not None and held.release.bundle_sha256 == release.bundle_sha256

    def _answer(self) -> Answers:
        assert self._answers is not None, "attach comes first"
        return self._answers

    def _count(self, bundle: Sha256) -> _Counted:
        return self._counted.setdefault(bundle, _Counted())

    def _with_counts(self, prepared: Prepared) -> Prepared:
        served = replace(prepared.served, stats=self._count(prepared.served.manifest_sha256).stats)
        return replace(prepared, served=served)

    def _is_served(self, model: ModelName, bundle: Sha256) -> bool:
        try:
            return self._table.served(model).manifest_sha256 == bundle
        except ModelUnknown:
            return False

    def _close(self, session: Session) -> None:
        self._submit(session.close)

    def _submit(self, job: Callable[[], None]) -> None:
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="lab", daemon=True)
            self._worker.start()
        self._jobs.put(job)

    # -- on the worker's thread --------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception:  # A bug of ours must not end the worker: the update would wait for ever.
                log.exception("lab_job_failed")
            del job  # It holds a session until the next one comes.
            release_memory()

    def _test(self, held: _Held) -> None:
        bundle = held.release.bundle_sha256
        try:
            prepared = self._loader.load(held.release, held.manifest, held.variants, prove=True)
        except Refused as refused:
            refusal, detail = refused.refusal, refused.detail
            self._post(lambda: self._answer().self_test_done(bundle, refusal, detail))
        else:
            self._post(lambda: self._tested(held.release, prepared))

    def _load_to_serve(self, held: _Held) -> None:
        try:
            prepared = self._loader.load(held.release, held.manifest, held.variants, prove=False)
        except Refused as refused:
            detail = refused.detail
            self._post(lambda: self._failed_to_serve(held.release, detail))
        else:
            self._post(lambda: self._loaded(held.release, prepared))

    def _collect(self, keep: frozenset[Sha256]) -> None:
        self._views.collect(keep)
        if self._tunings is not None:
            self._tunings.collect(keep)
