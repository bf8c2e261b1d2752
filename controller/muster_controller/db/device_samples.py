"""What a few devices said of their hosts and models over the last day: those that somebody looked at in that time.

A hundred thousand devices a minute would be 1,700 rows a second for pages that nobody opens, so a device is recorded
from when its page is first opened until nobody has come back for a day; the fleet as a whole has its own series.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
from sqlalchemy import delete, select

from muster_controller.db.errors import LedgerRefused
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import DeviceSampleRow, table
from muster_controller.db.writing import upsert
from muster_shared.ids import DeviceId, ModelName
from muster_shared.messages import Twin

KEPT_S: Final = 86_400.0
EVERY_S: Final = 55.0  # Twins come each minute; those in between, of steps of an update, are left out.
WATCHED_MAX: Final = 200
PENDING_MAX: Final = 10_000
READ_MAX: Final = 2000

_SAMPLE = table(DeviceSampleRow)
log = structlog.get_logger()


class ModelSample(msgspec.Struct, frozen=True, omit_defaults=True):
    requests: int = 0
    errors: int = 0
    latency_ms_p95: float | None = None


class DeviceSample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One twin, in short. `at`: Unix seconds by the controller's clock."""

    at: float
    cpu_percent: float | None = None
    memory_percent: float | None = None
    disk_percent: float | None = None
    temperature_c: float | None = None
    models: dict[ModelName, ModelSample] = {}


class DeviceSamples:
    """Safe from any thread. `heard` never waits and never fails."""

    def __init__(self, side: SideDatabase, clock: Callable[[], float]) -> None:
        self._side = side
        self._clock = clock
        self._mutex = threading.Lock()
        self._watched: OrderedDict[DeviceId, float] = OrderedDict()
        self._last: dict[DeviceId, float] = {}
        self._pending: dict[tuple[DeviceId, float], DeviceSample] = {}

    def watch(self, device: DeviceId) -> None:
        """Record this device from now on: somebody looks at it."""
        with self._mutex:
            self._watched[device] = self._clock()
            self._watched.move_to_end(device)
            while len(self._watched) > WATCHED_MAX:
                self._last.pop(self._watched.popitem(last=False)[0], None)

    def heard(self, twin: Twin) -> None:
        """Take a new twin, if its device is watched and the last sample is old enough."""
        if twin.device not in self._watched:
            return
        now = self._clock()
        with self._mutex:
            since_s = now - self._last.get(twin.device, float("-inf"))
            if 0 <= since_s < EVERY_S or len(self._pending) >= PENDING_MAX:
                return
            self._last[twin.device] = now
            self._pending[twin.device, now] = _sample(twin, now)

    def flush(self) -> None:
        """Write what came since the last time, and forget what is a day old. Raises LedgerUnavailable."""
        now = self._clock()
        with self._mutex:
            for device in [name for name, at in self._watched.items() if now - at > KEPT_S]:
                del self._watched[device]
                self._last.pop(device, None)
            written = dict(self._pending)
        rows = [(str(device), at, msgspec.json.encode(each)) for (device, at), each in written.items()]
        try:
            with self._side.transaction() as connection:
                upsert(connection, DeviceSampleRow, rows)
                connection.execute(delete(_SAMPLE).where(_SAMPLE.c.at < now - KEPT_S))
        except LedgerRefused:
            log.exception("samples_refused", rows=len(rows))
        with self._mutex:
            for key in written:
                self._pending.pop(key, None)

    def samples(self, device: DeviceId) -> list[DeviceSample]:
        """Return those of the last day, oldest first. Raises LedgerUnavailable."""
        since = self._clock() - KEPT_S
        query = select(_SAMPLE.c.body).where(_SAMPLE.c.device == device, _SAMPLE.c.at >= since)
        with self._side.reading() as connection:
            bodies = connection.execute(query.order_by(_SAMPLE.c.at.desc()).limit(READ_MAX)).scalars().all()
        found = {each.at: each for each in (msgspec.json.decode(body, type=DeviceSample) for body in bodies)}
        with self._mutex:
            found |= {at: each for (name, at), each in self._pending.items() if name == device}
        return [found[at] for at in sorted(found)]


def _sample(twin: Twin, now: float) -> DeviceSample:
    host = twin.host
    return DeviceSample(
        at=now,
        cpu_percent=host.cpu_percent,
        memory_percent=host.memory_percent,
        disk_percent=host.disk_percent,
        temperature_c=host.temperature_c,
        models={
            each.model: ModelSample(each.requests, each.errors, each.latency_ms_p95)
            for each in twin.models
            if each.active is not None
        },
    )
