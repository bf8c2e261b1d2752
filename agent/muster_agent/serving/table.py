"""The hot-swappable set of served releases: one for each model, changed at once; the old one ends its requests first.

    enter(model) ──> Place ──> ... run ... ──> leave(place)
    switch(model, new):  later `enter`s get the new place; the old one is retired ──> last `leave` ──> closed

A request keeps the place that it entered, so no request fails on a switch, and none mixes two releases. A candidate
that is being self-tested is just a session outside the table. It does not load, test or choose releases.
"""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import structlog

from muster_agent.engines.port import Session
from muster_agent.io.glibc import release_memory
from muster_agent.serving.rooms import QUEUE_MAX, Room
from muster_agent.serving.stats import WindowStats
from muster_shared.bundle import DataType, Manifest
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName, Sha256

log = structlog.get_logger(__name__)


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
    """As `engines.warmup.warm_up` measured it; decides where its requests run."""
    slot: Literal["active", "standby"] = "active"
    stats: WindowStats = field(default_factory=WindowStats)


class Place:
    """A served release within the table: its room, and how many requests are in it."""

    def __init__(self, served: Served, queue_max: int) -> None:
        self.served = served
        self.room = Room(served.latency_ms, queue_max)
        self.datatypes: Mapping[str, DataType] = {spec.name: spec.datatype for spec in served.manifest.outputs}
        self._guests = 0
        self._retired = False
        self._lock = threading.Lock()
        self.closed = threading.Event()

    def enter(self) -> bool:
        """Count one request in. False when the place is retired: the table has a newer one, or none."""
        with self._lock:
            if self._retired:
                return False
            self._guests += 1
            return True

    def leave(self) -> bool:
        """Count one request out. True when it was the last of a retired place."""
        with self._lock:
            self._guests -= 1
            return self._retired and self._guests == 0

    def retire(self) -> bool:
        """Let nobody in any more. True when the place is empty already."""
        with self._lock:
            self._retired = True
            return self._guests == 0


class ServingTable:
    """What serves. Every method may be called from any thread; only `close` waits for inferences."""

    def __init__(self, queue_max: int = QUEUE_MAX) -> None:
        """
        Args:
            queue_max: Requests waiting or running at most, for each model.
        """
        self._queue_max = queue_max
        self._places: dict[ModelName, Place] = {}
        self._lock = threading.Lock()
        # Unloading takes milliseconds that the loop should not lose.
        self._closer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unload")
        self._retired: list[Place] = []

    def switch(self, model: ModelName, served: Served) -> None:
        """Serve `served` from now on. The release before it ends its requests, and its session is closed."""
        if served.manifest.model != model:
            raise AssertionError(f"a release of {served.manifest.model} cannot serve as {model}")
        place = Place(served, self._queue_max)
        with self._lock:
            old = self._places.get(model)
            self._places = {**self._places, model: place}
        log.info(
            "serving_switched", model=model, version=served.manifest.version, engine=served.session.achieved.engine
        )
        self._retire(old)

    def remove(self, model: ModelName) -> None:
        """Serve no release of `model` any more; nothing happens when none does."""
        with self._lock:
            old = self._places.get(model)
            self._places = {name: place for name, place in self._places.items() if name != model}
        if old is not None:
            log.info("serving_stopped", model=model, version=old.served.manifest.version)
        self._retire(old)

    def enter(self, model: str, version: str | None = None) -> Place:
        """Return the place that serves `model` for one request, which must `leave` it once.

        Raises:
            ModelUnknown: no release of it serves, or not this version.
        """
        while True:
            place = self._find(model, version)
            if place.enter():  # Else it was retired since we looked: look again.
                return place

    def leave(self, place: Place) -> None:
        if place.leave():
            self._closer.submit(self._close, place)

    def served(self, model: str, version: str | None = None) -> Served:
        """Return the release that serves `model`, to read from it, not to run it.

        Raises:
            ModelUnknown: as `enter`.
        """
        return self._find(model, version).served

    def places(self) -> Mapping[ModelName, Place]:
        """Return what serves now, by model."""
        return self._places

    def close(self, timeout_s: float) -> bool:
        """Retire everything and wait for the sessions to close. False when some request outlasted `timeout_s`.

        It blocks, and requests end on the serving loop: call it from another thread, after `HttpServer.stop`.
        A thread that hangs within an engine cannot be ended: on False, leave the process with `os._exit`.
        """
        deadline = time.monotonic() + timeout_s
        for model in self._places:
            self.remove(model)
        with self._lock:
            retired = list(self._retired)
        in_time = all(place.closed.wait(max(0.0, deadline - time.monotonic())) for place in retired)
        if in_time:
            self._closer.shutdown()
        return in_time

    def _find(self, model: str, version: str | None) -> Place:
        place = self._places.get(ModelName(model))
        if place is None or version not in (None, place.served.manifest.version):
            raise ModelUnknown(model, version)
        return place

    def _retire(self, place: Place | None) -> None:
        if place is None:
            return
        with self._lock:
            self._retired.append(place)
        if place.retire():
            self._closer.submit(self._close, place)

    def _close(self, place: Place) -> None:
        place.room.close()
        place.served.session.close()
        with self._lock:
            self._retired.remove(place)
        place.closed.set()
        release_memory()
