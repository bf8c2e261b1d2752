"""The lab: loads, proves and serves releases with the real engines, without making the conductor wait.

    self_test ─▶ worker: hash, load, golden cases, warm up ─▶ candidate, SelfTestDone
    serve     ─▶ candidate, or worker: hash, load, warm up ─▶ ServingTable.switch, or ServeFailed

One worker thread does the slow work, in order; what it found is posted back to the conductor's thread, where every
other line here runs. It decides nothing about releases: `core.update` says what to test and what to serve.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from muster_agent.engines.golden import self_test
from muster_agent.engines.port import EngineError, EngineMissing, Session
from muster_agent.engines.registry import engine
from muster_agent.engines.warmup import warm_up
from muster_agent.errors import StoreError
from muster_agent.io.glibc import release_memory
from muster_agent.io.views import Views
from muster_agent.ports import Store
from muster_agent.serving.stats import Snapshot, WindowStats
from muster_agent.serving.table import ModelUnknown, Served, ServingTable
from muster_shared.bundle import Manifest, Variant
from muster_shared.ids import ModelName, Sha256
from muster_shared.messages import Refusal, ReleaseRef, WindowReport

WARM_RUNS = 20
WARM_RUNS_AT_START = 5  # It was proven before; after a start the first answer counts more than a good estimate.

log = structlog.get_logger()

Post = Callable[[Callable[[], None]], None]
"""Runs a call on the conductor's thread, later. May be called from any thread."""


class Answers(Protocol):
    """What the conductor wants to hear, on its own thread."""

    def self_test_done(self, bundle: Sha256, refusal: Refusal | None, detail: str) -> None: ...

    def serve_failed(self, bundle: Sha256, detail: str) -> None: ...


class Refused(Exception):
    """A verdict on its way out of the worker; it never leaves this module."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.refusal = refusal
        self.detail = detail


@dataclass(frozen=True)
class Serving:
    """`ports.ServedModel`."""

    engine: str
    requests: int
    latency_ms_p95: float | None


@dataclass
class _Counted:
    """The counts of one release for the life of the agent, however often it is loaded, and where its window began."""

    stats: WindowStats = field(default_factory=WindowStats)
    window_from: Snapshot = field(default_factory=Snapshot)
    opened_at: float = field(default_factory=time.monotonic)


class EngineLab:
    """`ports.Lab`. Call `attach` before the conductor starts."""

    def __init__(self, store: Store, views: Views, table: ServingTable, post: Post, *, threads: int) -> None:
        """
        Args:
            threads: At most this many for one inference, >= 1.
        """
        self._store = store
        self._views = views
        self._table = table
        self._post = post
        self._threads = threads
        self._answers: Answers | None = None
        self._candidates: dict[Sha256, Served] = {}
        self._counted: dict[Sha256, _Counted] = {}
        self._wanted: dict[ModelName, Sha256] = {}
        self._keep: frozenset[Sha256] | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def attach(self, answers: Answers) -> None:
        self._answers = answers

    # -- ports.Lab ---------------------------------------------------------------------------------------------------

    def self_test(self, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        bundle = release.bundle_sha256
        if bundle in self._candidates:
            self._post(lambda: self._answer().self_test_done(bundle, None, "it passed before and is still loaded"))
            return
        self._submit(lambda: self._test(release, manifest, variant))

    def serve(self, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        bundle = release.bundle_sha256
        self._wanted[release.model] = bundle
        if self._is_served(release.model, bundle):
            return
        candidate = self._candidates.pop(bundle, None)
        if candidate is not None:
            self._table.switch(release.model, candidate)
            return
        self._submit(lambda: self._load_to_serve(release, manifest, variant))

    def retire(self, model: ModelName) -> None:
        self._wanted.pop(model, None)
        self._table.remove(model)

    def drop(self, keep: frozenset[Sha256]) -> None:
        self._keep = keep
        for bundle in sorted(self._candidates.keys() - keep):
            self._close(self._candidates.pop(bundle).session)
        for bundle in sorted(self._counted.keys() - keep):
            del self._counted[bundle]
        self._submit(lambda: self._views.collect(keep))

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
        return Serving(how, seen.requests, seen.p95_ms)

    # -- on the conductor's thread, after the worker -----------------------------------------------------------------

    def _tested(self, release: ReleaseRef, served: Served) -> None:
        bundle = release.bundle_sha256
        if bundle in self._candidates or self._is_served(release.model, bundle):
            self._close(served.session)
        else:
            self._candidates[bundle] = self._with_counts(served)
        self._answer().self_test_done(bundle, None, "")
        if self._keep is not None and bundle not in self._keep and bundle in self._candidates:
            self._close(self._candidates.pop(bundle).session)  # Called off while it was tested.

    def _loaded(self, release: ReleaseRef, served: Served) -> None:
        if self._wanted.get(release.model) != release.bundle_sha256:
            self._close(served.session)  # Another release took over while this one was loading.
        elif self._is_served(release.model, release.bundle_sha256):
            self._close(served.session)
        else:
            self._table.switch(release.model, self._with_counts(served))

    def _failed_to_serve(self, release: ReleaseRef, detail: str) -> None:
        if self._wanted.get(release.model) == release.bundle_sha256:
            self._answer().serve_failed(release.bundle_sha256, detail)

    def _answer(self) -> Answers:
        assert self._answers is not None, "attach comes first"
        return self._answers

    def _count(self, bundle: Sha256) -> _Counted:
        return self._counted.setdefault(bundle, _Counted())

    def _with_counts(self, served: Served) -> Served:
        return replace(served, stats=self._count(served.manifest_sha256).stats)

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

    def _test(self, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        bundle = release.bundle_sha256
        try:
            served = self._load(release, manifest, variant, golden=True)
        except Refused as refused:
            refusal, detail = refused.refusal, refused.detail
            self._post(lambda: self._answer().self_test_done(bundle, refusal, detail))
        else:
            self._post(lambda: self._tested(release, served))

    def _load_to_serve(self, release: ReleaseRef, manifest: Manifest, variant: Variant) -> None:
        try:
            served = self._load(release, manifest, variant, golden=False)
        except Refused as refused:
            detail = refused.detail
            self._post(lambda: self._failed_to_serve(release, detail))
        else:
            self._post(lambda: self._loaded(release, served))

    def _load(self, release: ReleaseRef, manifest: Manifest, variant: Variant, *, golden: bool) -> Served:
        """Return the release, loaded and warm; with `golden`, proven as well. Raises Refused, whatever goes wrong."""
        session: Session | None = None
        try:
            files = manifest.files_for(variant)
            for file in files:
                if not self._store.verify(file):
                    raise Refused(Refusal.TAMPERED, f"{file.path} is not what was fetched; it was damaged on the disk")
            folder = self._views.make(release.bundle_sha256, files)
            session = engine(variant.runtime).load(
                folder / variant.files[0],
                variant,
                manifest.inputs,
                manifest.outputs,
                threads=self._threads,
                cache_dir=self._views.cache(release.bundle_sha256),
            )
            golden_file = folder / manifest.golden.file
            if golden:
                report = self_test(session, manifest, golden_file)
                if not report.passed:
                    raise Refused(Refusal.SELF_TEST_FAILED, report.reason)
            latency_ms = warm_up(session, manifest, golden_file, runs=WARM_RUNS if golden else WARM_RUNS_AT_START)
        except BaseException as error:
            if session is not None:
                session.close()
            if isinstance(error, Refused):
                raise
            if isinstance(error, EngineMissing):
                raise Refused(Refusal.ENGINE_MISSING, str(error)) from error
            if isinstance(error, EngineError | StoreError):
                raise Refused(Refusal.SELF_TEST_FAILED, str(error)) from error
            # An engine's own bug, or out of memory: the release is at fault as far as this device can tell.
            log.exception("lab_load_failed", model=release.model, version=release.version)
            raise Refused(Refusal.SELF_TEST_FAILED, f"{type(error).__name__}: {error}") from error
        log.info(
            "release_proven" if golden else "release_loaded",
            model=release.model,
            version=release.version,
            engine=session.achieved.engine,
            precision=session.achieved.precision,
            latency_ms_p95=round(latency_ms, 3),
        )
        return Served(
            manifest=manifest,
            manifest_sha256=release.bundle_sha256,
            session=session,
            latency_ms=latency_ms,
        )
