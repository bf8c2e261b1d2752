"""A release becomes a loaded session with a plan: files verified, variants proven and measured, or the choice recalled.

    verify files ─▶ lay out ─┬─ recalled ─▶ load, warm up ───────────────────────────┐
                             └─ else ─▶ engines.tuning: load, golden cases, measure ─┴─▶ Prepared      Refused

It runs on the lab's worker thread and takes seconds. It neither serves nor decides about releases.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import structlog

from muster_agent.engines.port import EngineError, EngineMissing, Session, without_folder
from muster_agent.engines.registry import engine
from muster_agent.engines.tuning import BUDGET_S, NothingPasses, Tuned, tune
from muster_agent.engines.warmup import warm_up
from muster_agent.errors import StoreError
from muster_agent.io.glibc import release_memory
from muster_agent.io.tuning_store import HardwareClass, Remembered, TuningStore, hardware_class
from muster_agent.io.views import Views
from muster_agent.metrics.reference import REFERENCE_BYTES_MAX, Reference, ReferenceUnreadable
from muster_agent.ports import Store
from muster_agent.serving.table import Served
from muster_shared.bundle import Manifest, Variant
from muster_shared.messages import Refusal, ReleaseRef, Tuning
from muster_shared.variants import files_of

WARM_RUNS = 5  # It was proven and measured before; after a start the first answer counts more than a good estimate.
WARM_S_MAX = 0.15
_MIB = 1024 * 1024

log = structlog.get_logger()


class Refused(Exception):
    """A verdict on its way out of the worker; it never leaves the lab."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.refusal = refusal
        self.detail = detail


@dataclass(frozen=True, eq=False)
class Prepared:
    """A release that can serve at once."""

    served: Served
    tuning: Tuning
    memory: int
    """Bytes by which the process grew."""


class ReleaseLoader:
    """Loads releases on one device. One call at a time."""

    def __init__(
        self,
        store: Store,
        views: Views,
        tunings: TuningStore | None,
        *,
        cpus: int,
        threads: int,
        runtimes: tuple[str, ...],
        tuning_s: float = BUDGET_S,
    ) -> None:
        """
        Args:
            tunings: Where what was measured is kept; None: it is measured at every load.
            cpus: Processors that the agent may use, >= 1.
            threads: At most this many for one inference, >= 1.
            runtimes: The engines that may be used.
            tuning_s: After so much no further trial begins.
        """
        self._store = store
        self._views = views
        self._tunings = tunings
        self._cpus = cpus
        self._threads = threads
        self._runtimes = runtimes
        self._tuning_s = tuning_s
        self._process = psutil.Process()
        self._hardware: HardwareClass | None = None

    def load(self, release: ReleaseRef, manifest: Manifest, variants: Sequence[Variant], *, prove: bool) -> Prepared:
        """Return the release, loaded and warm.

        Args:
            prove: Run the golden cases and measure, whatever is remembered.
        Raises:
            Refused: whatever goes wrong. What it says leaves the device, so it names no folder of it.
        """
        try:
            return self._load(release, manifest, variants, prove=prove)
        except Refused as refused:
            raise Refused(refused.refusal, without_folder(refused.detail, self._views.root)) from refused

    def _load(self, release: ReleaseRef, manifest: Manifest, variants: Sequence[Variant], *, prove: bool) -> Prepared:
        release_memory()
        before = self._resident()
        try:
            whole, folder = self._lay_out(release, manifest, variants)
            prepared = None if prove else self._recall(release, manifest, whole, folder)
            if prepared is None:
                prepared = self._tune(release, manifest, whole, folder)
            prepared = self._with_predictor(release, prepared, folder, prove=prove)
            prepared = replace(prepared, served=replace(prepared.served, reference=_reference(manifest, folder)))
        except Refused:
            raise
        except NothingPasses as error:
            missing = isinstance(error.first, EngineMissing)
            raise Refused(Refusal.ENGINE_MISSING if missing else Refusal.SELF_TEST_FAILED, str(error)) from error
        except (EngineError, StoreError) as error:
            raise Refused(Refusal.SELF_TEST_FAILED, str(error)) from error
        except Exception as error:
            # An engine's own bug, or out of memory: the release is at fault as far as this device can tell.
            log.exception("lab_load_failed", model=release.model, version=release.version)
            raise Refused(Refusal.SELF_TEST_FAILED, f"{type(error).__name__}: {error}") from error
        release_memory()
        grown = self._resident() - before
        variant = next(variant for variant in variants if variant.name == prepared.tuning.variant)
        memory = max(grown, sum(file.length for file in manifest.files_for(variant)))
        log.info(
            "release_proven" if prove else "release_loaded",
            model=release.model,
            version=release.version,
            variant=prepared.tuning.variant,
            engine=prepared.tuning.engine,
            precision=prepared.tuning.precision,
            threads=prepared.served.plan.threads,
            instances=prepared.served.plan.instances_max,
            batch_max=prepared.served.plan.batch_max,
            latency_ms_p95=round(prepared.served.latency_ms, 3),
            memory_mb=round(memory / _MIB, 1),
        )
        return Prepared(prepared.served, prepared.tuning, memory)

    def _lay_out(
        self, release: ReleaseRef, manifest: Manifest, variants: Sequence[Variant]
    ) -> tuple[tuple[Variant, ...], Path]:
        """Return the variants whose files are whole, and the folder with those."""
        files = files_of(manifest, tuple(variants))
        damaged = [file.path for file in files if not self._store.verify(file)]
        whole = tuple(
            variant for variant in variants if not any(file.path in damaged for file in manifest.files_for(variant))
        )
        if not whole:
            detail = f"{damaged[0]} is not what was fetched; it was damaged on the disk"
            raise Refused(Refusal.TAMPERED, detail)
        if damaged:
            log.error("variants_damaged", model=release.model, version=release.version, files=damaged)
        return whole, self._views.make(release.bundle_sha256, files_of(manifest, whole))

    def _recall(
        self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...], folder: Path
    ) -> Prepared | None:
        """Return the release as it was measured before on such a device; None when it must be measured."""
        if self._tunings is None:
            return None
        found = self._tunings.recall(release.bundle_sha256, self._class(), variants)
        if found is None:
            return None
        variant = next(variant for variant in variants if variant.name == found.variant)
        session: Session | None = None
        try:
            session = self._open(
                release, manifest, folder, variant, threads=found.plan.threads, instances=found.plan.instances_max
            )
            latency_ms = warm_up(
                session, manifest, folder / manifest.golden.file, runs=WARM_RUNS, seconds_max=WARM_S_MAX
            )
        except EngineError as error:  # Something else than what was measured has changed: measure again.
            log.warning("tuning_outdated", model=release.model, version=release.version, error=str(error))
            if session is not None:
                session.close()
            return None
        served = Served(
            manifest=manifest,
            manifest_sha256=release.bundle_sha256,
            session=session,
            latency_ms=latency_ms,
            plan=found.plan,
            variant=variant.name,
        )
        return Prepared(served, found.tuning, 0)

    def _tune(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...], folder: Path) -> Prepared:
        tuned: Tuned = tune(
            variants,
            partial(self._open, release, manifest, folder),
            manifest,
            folder / manifest.golden.file,
            cpus=self._cpus,
            threads_max=self._threads,
            clock=time.monotonic,
            resident_mb=lambda: self._resident() / _MIB,
            budget_s=self._tuning_s,
        )
        if self._tunings is not None:
            found = Remembered(hardware=self._class(), variant=tuned.variant.name, plan=tuned.plan, tuning=tuned.tuning)
            self._tunings.remember(release.bundle_sha256, found)
        session = tuned.session
        if not tuned.plan.inline:
            # The runtime keeps a block of memory for each batch size that was ever tried; few of them are used.
            session.close()
            session = self._open(
                release,
                manifest,
                folder,
                tuned.variant,
                threads=tuned.plan.threads,
                instances=tuned.plan.instances_max,
            )
            warm_up(session, manifest, folder / manifest.golden.file, runs=WARM_RUNS, seconds_max=WARM_S_MAX)
        served = Served(
            manifest=manifest,
            manifest_sha256=release.bundle_sha256,
            session=session,
            latency_ms=tuned.tuning.latency_ms_p95,
            plan=tuned.plan,
            variant=tuned.variant.name,
        )
        return Prepared(served, tuned.tuning, 0)

    def _with_predictor(self, release: ReleaseRef, prepared: Prepared, folder: Path, *, prove: bool) -> Prepared:
        """Return the release with its pipeline, which `prove` loads at once and runs on the signed raw cases.

        Raises:
            Refused: the pipeline is broken, or answers otherwise than signed.
        """
        manifest = prepared.served.manifest
        pipeline = manifest.pipeline
        if pipeline is None:
            return prepared
        # Imported here: a device whose releases have no pipelines does not hold them.
        from muster_agent.pipeline.golden_raw import prove_raw
        from muster_agent.pipeline.pipeline import load_pipeline
        from muster_agent.pipeline.value import PipelineError, PipelineMissing, PipelineUnloadable
        from muster_agent.serving.predict import PredictorOf

        predictor = PredictorOf(partial(load_pipeline, manifest, folder))
        if prove:
            try:
                problem = ""
                loaded = load_pipeline(manifest, folder)
                predictor = PredictorOf(lambda: loaded)  # What was proven is what serves.
                if pipeline.golden_raw:
                    problem = prove_raw(loaded, prepared.served.session.run, folder / pipeline.golden_raw)
            except PipelineMissing as error:  # Tensors can be served without.
                log.warning("pipeline_missing", model=release.model, version=release.version, reason=str(error))
            except (PipelineUnloadable, PipelineError) as error:
                problem = str(error)
            if problem:
                prepared.served.session.close()
                raise Refused(Refusal.SELF_TEST_FAILED, problem)
        return replace(prepared, served=replace(prepared.served, predictor=predictor))

    def _open(
        self,
        release: ReleaseRef,
        manifest: Manifest,
        folder: Path,
        variant: Variant,
        *,
        threads: int,
        instances: int,
    ) -> Session:
        return engine(variant.runtime).load(
            folder / variant.files[0],
            variant,
            manifest.inputs,
            manifest.outputs,
            threads=threads,
            cache_dir=self._views.cache(release.bundle_sha256),
            instances=instances,
        )

    def _class(self) -> HardwareClass:
        if self._hardware is None:
            self._hardware = hardware_class(cpus=self._cpus, threads_max=self._threads, runtimes=self._runtimes)
        return self._hardware

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)


def _reference(manifest: Manifest, folder: Path) -> Reference | None:
    """Return what the release was like when it was made. It serves without, too."""
    path = manifest.metrics.reference
    if path is None:
        return None
    try:
        length = manifest.file(path).length
        if length > REFERENCE_BYTES_MAX:
            raise ReferenceUnreadable(f"it has {length} bytes; the limit is {REFERENCE_BYTES_MAX}")
        return Reference.parse((folder / path).read_bytes())
    except (ReferenceUnreadable, OSError) as error:
        log.warning("reference_unreadable", model=manifest.model, version=manifest.version, reason=str(error))
        return None
