"""The hot-swappable set of served releases: one for each model, changed at once; the old one ends its requests first.

    enter(model) ──> Place ──> ... run ... ──> place.leave()
    switch(model, new):  later `enter`s get the new place; the old one is retired ──> last `leave` ──> closed

A request keeps the place that it entered, so no request fails on a switch, and none mixes two releases. A candidate
that is being self-tested is just a session outside the table. It does not load, test or choose releases.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

import msgspec
import structlog

from muster_agent.core.answer_cache import AnswerCache
from muster_agent.core.breaker import Breaker
from muster_agent.core.plan import ServingPlan, call_ms
from muster_agent.core.sequences import Sequences
from muster_agent.core.split import Mode, Split
from muster_agent.engines.port import Array, Session
from muster_agent.engines.tensors import DTYPES
from muster_agent.io.glibc import release_memory
from muster_agent.io.host import usable_cpus
from muster_agent.metrics.port import DriftState
from muster_agent.metrics.reference import Reference
from muster_agent.serving.call import Call, Raw, Shape
from muster_agent.serving.config import PRIORITIES, ModelConfig, ServingConfig
from muster_agent.serving.execution import Execution
from muster_agent.serving.predict import PredictorOf
from muster_agent.serving.rooms import Pressure, Room
from muster_agent.serving.stats import WindowStats
from muster_agent.serving.trial import Trial
from muster_agent.serving.v2 import Ask, Provenance
from muster_shared.bundle import Manifest
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName, Sha256

log = structlog.get_logger(__name__)

LONG_MS = 0.25  # A call for later that is longer gets a thread: the hand-off is 0.09.


class ModelUnknown(MusterError):
    """No release of this model, or not this version, serves here."""

    def __init__(self, model: str, version: str | None) -> None:
        named = f"{model[:80]!r}" if version is None else f"{model[:80]!r} version {version[:80]!r}"
        super().__init__(f"request for unknown model: {named} is not served on this device")
        self.model = model
        self.version = version


@dataclass(frozen=True, eq=False, kw_only=True)
class Served:
    """One release, loaded, self-tested and warm."""

    manifest: Manifest
    manifest_sha256: Sha256
    session: Session
    latency_ms: float
    """As `engines.warmup.warm_up` measured it."""
    plan: ServingPlan
    """How its requests run."""
    variant: str = ""
    reference: Reference | None = None
    """What its confidence and inputs were like when it was made; None: unknown, or unreadable."""
    predictor: PredictorOf | None = None
    """What makes tensors of files, and sense of answers; None when the release has no pipeline."""
    slot: Literal["active", "standby"] = "active"
    stats: WindowStats = field(default_factory=WindowStats)


class Metered(Protocol):
    """What is known of a release beside its counts. To read only."""

    @property
    def cpu_ms(self) -> float: ...

    @property
    def drift(self) -> DriftState: ...


class Place:
    """A served release within the table: its room, and how many requests are in it."""

    def __init__(
        self,
        served: Served,
        config: ServingConfig,
        pressure: Pressure,
        ran: "Callable[[Place, Sequence[Call]], None]",
        emptied: "Callable[[Place], None]",
    ) -> None:
        """
        Args:
            ran: Is told, on the loop, of the calls of each batch once they have settled.
            emptied: Is told, from whatever thread, when the last request has left a retired place.
        """
        manifest = served.manifest
        declared = manifest.serving
        chosen = config.model(manifest.model)
        self.served = served
        self.model = manifest.model
        self.version = manifest.version
        carried = {state.input for state in declared.state}
        self.inputs = tuple(spec for spec in manifest.inputs if spec.name not in carried)
        """What callers give: the state of a stateful model is the device's own."""
        self.outputs = manifest.outputs
        plan = _bounded(served.plan, chosen)
        execution = Execution(
            served.session, manifest.inputs, manifest.outputs, rows_max=0 if plan.inline else plan.batch_max
        )
        self.batches = execution.rows_axis
        """Whether axis 0 of every tensor is the batch."""
        self.priority = PRIORITIES[chosen.priority or "now"]
        """Of calls that name none."""
        self.breaker = Breaker(manifest.model, config.breaker)
        self.cache: AnswerCache[tuple[Array, ...]] | None = None
        self.misses: dict[int, bytes] = {}
        """Digests of the inputs of calls under way whose answers the cache wants, by the calls' numbers."""
        self.sequences: Sequences[Call, tuple[bytes, ...]] | None = None
        if declared.state:
            self.sequences = Sequences(config.sequences_max, config.sequence_idle_s)
        elif declared.cache and config.cache_bytes:
            self.cache = AnswerCache(config.cache_bytes)
        self.plain = self.cache is None and self.sequences is None
        make = partial(
            Room,
            execution,
            stats=served.stats,
            queue_max=config.queue_max,
            usual_ns=int(config.timeout_s * 1e9),
            pressure=pressure,
            ran=partial(ran, self),
            left=self.leave,
        )
        self.room = make(plan)
        # Long work for later would hold up the loop, and the engine would wait for the loop between two calls of it.
        self.bulk = make(msgspec.structs.replace(plan, inline=False, instances_min=0)) if plan.inline else self.room
        self.understood: dict[bytes, Ask] = {}
        """What a front has understood of requests to this release, by the bytes that said it. The front bounds it."""
        self.counted: Callable[[Sequence[Call]], None] | None = None
        """Is told, on the loop, of the calls of each batch that have ended, for the metrics; None: nobody counts."""
        self.meter: Metered | None = None
        self.provenance: Provenance | None = None
        """What its answers say of their origin, made by the first."""
        served.stats.slow_ns = int(manifest.slo.latency_ms_p95 * 1e6)
        self.closed = threading.Event()
        self._emptied = emptied
        self._guests = 0
        self._retired = False
        self._lock = threading.Lock()

    @property
    def queued(self) -> int:
        """Rows waiting."""
        return self.room.queued + (self.bulk.queued if self.bulk is not self.room else 0)

    def room_for_later(self, rows: int) -> Room:
        """Return where a call of `rows` rows runs that is for later."""
        curve = self.served.plan.curve
        return self.bulk if curve and call_ms(curve, rows) >= LONG_MS else self.room

    def with_state(
        self, tensors: tuple[Raw, ...], shapes: tuple[Shape, ...], state: tuple[bytes, ...] | None
    ) -> tuple[tuple[Raw, ...], tuple[Shape, ...]]:
        """Return what the engine takes: what the caller gave, and the state (None: zeros) in its places."""
        manifest = self.served.manifest
        carried = {each.input: index for index, each in enumerate(manifest.serving.state)}
        given = iter(zip(tensors, shapes, strict=True))
        full_tensors: list[Raw] = []
        full_shapes: list[Shape] = []
        for spec in manifest.inputs:
            if spec.name not in carried:
                tensor, shape = next(given)
            else:
                shape = tuple(1 if size == -1 else size for size in spec.shape)
                size = math.prod(shape) * DTYPES[spec.datatype].itemsize
                tensor = bytes(size) if state is None else state[carried[spec.name]]
                shape = shape[1:] if spec.shape and spec.shape[0] == -1 else shape
            full_tensors.append(tensor)
            full_shapes.append(shape)
        return tuple(full_tensors), tuple(full_shapes)

    def state_of(self, call: Call) -> tuple[bytes, ...]:
        """Return the state that an answered call leaves to the next of its sequence."""
        names = [spec.name for spec in self.outputs]
        return tuple(call.output(names.index(each.output)).tobytes() for each in self.served.manifest.serving.state)

    def enter(self) -> bool:
        """Count one request in. False when the place is retired: the table has a newer one, or none."""
        with self._lock:
            if self._retired:
                return False
            self._guests += 1
            return True

    def leave(self, guests: int = 1) -> None:
        """Count requests out."""
        with self._lock:
            self._guests -= guests
            empty = self._retired and self._guests == 0
        if empty:
            self._emptied(self)

    def retire(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._retired = True
            empty = self._guests == 0
        if empty:
            self._emptied(self)


@dataclass(frozen=True, eq=False)
class Beside:
    """A candidate beside the release that serves."""

    place: Place
    trial: Trial


class ServingTable:
    """What serves. Every method may be called from any thread; only `close` waits for inferences."""

    def __init__(self, config: ServingConfig | None = None) -> None:
        self._config = config or ServingConfig()
        self.trials: Mapping[str, Beside] = {}
        """Candidates by model; replaced as a whole."""
        self._pressure = Pressure()
        self._observer: Callable[[Place, Sequence[Call]], None] = lambda place, calls: None
        self._begins: Callable[[Place], None] = lambda place: None
        self.serving: Mapping[ModelName, Place] = {}
        """What serves now, by model; replaced as a whole."""
        self._lock = threading.Lock()
        # Unloading takes milliseconds that the loop should not lose.
        self._closer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unload")
        self._retired: list[Place] = []

    def open_later(self, is_open: bool) -> None:
        """Let work for later run, or not: it is off-peak, or no longer."""
        self._pressure.later_open = is_open

    def observe(self, observer: Callable[[Place, Sequence[Call]], None]) -> None:
        """Tell `observer`, on the serving loop, of the calls of each batch once they have settled."""
        self._observer = observer

    def before_serving(self, act: Callable[[Place], None]) -> None:
        """Let `act` see each place before it answers callers, on whatever thread puts it there. Not a shadow's."""
        self._begins = act

    def switch(self, model: ModelName, served: Served) -> None:
        """Serve `served` from now on. The release before it ends its requests, and its session is closed."""
        if served.manifest.model != model:
            raise AssertionError(f"a release of {served.manifest.model} cannot serve as {model}")
        place = Place(served, self._config, self._pressure, self._ran, self._unload)
        self._begins(place)
        with self._lock:
            old = self.serving.get(model)
            self.serving = {**self.serving, model: place}
        self.end_trial(model)
        log.info(
            "serving_switched", model=model, version=served.manifest.version, engine=served.session.achieved.engine
        )
        self._retire(old)

    def remove(self, model: ModelName) -> None:
        """Serve no release of `model` any more; nothing happens when none does."""
        with self._lock:
            old = self.serving.get(model)
            self.serving = {name: place for name, place in self.serving.items() if name != model}
        self.end_trial(model)
        if old is not None:
            log.info("serving_stopped", model=model, version=old.served.manifest.version)
        self._retire(old)

    def begin_trial(self, served: Served, mode: Mode, share: float, draw: Callable[[], float]) -> None:
        """Put `served` beside the release that serves its model, which goes on serving. A trial before it ends.

        Args:
            share: Of the requests, 0..1.
            draw: Returns a uniform number in [0, 1).
        Raises:
            ModelUnknown: no release of the model serves.
            TrialUnfit: the candidate cannot be compared.
        """
        model = served.manifest.model
        primary = self._find(model, None)
        split = Split(mode, served.manifest_sha256, share)
        trial = Trial(split, primary.served.manifest, served.manifest, draw)
        place = Place(served, self._config, self._pressure, self._ran, self._unload)
        if mode is Mode.CANARY:
            self._begins(place)
        self.end_trial(model)
        with self._lock:
            self.trials = {**self.trials, model: Beside(place, trial)}
        log.info("trial_began", model=model, version=served.manifest.version, mode=mode.value, share=share)

    def end_trial(self, model: str) -> None:
        """Let the candidate of `model` end its requests, and close it; nothing happens when there is none."""
        with self._lock:
            beside = self.trials.get(model)
            self.trials = {name: other for name, other in self.trials.items() if name != model}
        if beside is not None:
            log.info("trial_ended", model=model, version=beside.trial.version)
            self._retire(beside.place)

    def promote(self, model: ModelName, manifest_sha256: Sha256) -> bool:
        """Let the candidate of `model` serve from now on, as it is loaded; False when this release is not on trial."""
        with self._lock:
            beside = self.trials.get(model)
            if beside is None or beside.place.served.manifest_sha256 != manifest_sha256:
                return False
            place, old = beside.place, self.serving.get(model)
            place.served = replace(place.served, slot="active")
            if beside.trial.split.mode is not Mode.CANARY:
                self._begins(place)
            self.serving = {**self.serving, model: place}
            self.trials = {name: other for name, other in self.trials.items() if name != model}
        log.info("serving_switched", model=model, version=place.version, engine=place.served.session.achieved.engine)
        self._retire(old)
        return True

    def enter(self, model: str, version: str | None = None) -> Place:
        """Return the place that serves `model` for one request, which must `leave` it once.

        Raises:
            ModelUnknown: no release of it serves, or not this version.
        """
        while True:
            place = self._find(model, version)
            if place.enter():  # Else it was retired since we looked: look again.
                return place

    def place(self, model: str, version: str | None = None) -> Place:
        """Return the place that serves `model`, to look at. Raises ModelUnknown, as `enter`."""
        return self._find(model, version)

    def served(self, model: str, version: str | None = None) -> Served:
        """Return the release that serves `model`, to read from it, not to run it.

        Raises:
            ModelUnknown: as `enter`.
        """
        return self._find(model, version).served

    def places(self) -> Mapping[ModelName, Place]:
        """Return what serves now, by model."""
        return self.serving

    def close(self, timeout_s: float) -> bool:
        """Retire everything and wait for the sessions to close. False when some request outlasted `timeout_s`.

        It blocks, and requests end on the serving loop: call it from another thread, after `HttpServer.stop`.
        A thread that hangs within an engine cannot be ended: on False, leave the process with `os._exit`.
        """
        deadline = time.monotonic() + timeout_s
        for model in self.serving:
            self.remove(model)
        with self._lock:
            retired = list(self._retired)
        in_time = all(place.closed.wait(max(0.0, deadline - time.monotonic())) for place in retired)
        if in_time:
            self._closer.shutdown()
        return in_time

    def _find(self, model: str, version: str | None) -> Place:
        place = self.serving.get(ModelName(model))
        if place is not None and version not in (None, place.version):
            beside = self.trials.get(model)
            place = place if beside is None else beside.place
        if place is None or version not in (None, place.version):
            raise ModelUnknown(model, version)
        return place

    def _retire(self, place: Place | None) -> None:
        if place is None:
            return
        with self._lock:
            self._retired.append(place)
        place.retire()

    def _ran(self, place: Place, calls: Sequence[Call]) -> None:
        self._observer(place, calls)

    def _unload(self, place: Place) -> None:
        self._closer.submit(self._close, place)

    def _close(self, place: Place) -> None:
        place.room.close()
        place.bulk.close()
        place.served.session.close()
        with self._lock:
            self._retired.remove(place)
        place.closed.set()
        release_memory()


def _bounded(plan: ServingPlan, chosen: ModelConfig) -> ServingPlan:
    """Return the plan within what this device's operator wants of the model."""
    instances = min(plan.instances_max, chosen.instances_max or plan.instances_max)
    if chosen.cpu_share:
        instances = max(1, min(instances, int(chosen.cpu_share * usable_cpus() / plan.threads)))
    return msgspec.structs.replace(
        plan,
        batch_max=min(plan.batch_max, chosen.batch_max or plan.batch_max),
        instances_max=instances,
        instances_min=min(plan.instances_min, instances),
    )
