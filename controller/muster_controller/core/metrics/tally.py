"""Operational counts from twins: what rose since the twin before, added up in bins of 5 minutes.

    twin before, twin now ─ take ─▶ what rose ─▶ bin (5 minutes, release, device class, region) ─ ended ─▶ Series

Counters begin at 0 with each start of the agent, and with each release that becomes active. What rose while nobody
listened is spread evenly over that time. Of a device that was not known before nothing is counted but that it is there:
how long its counters have been rising, nobody knows. In memory alone: what ends before `ended` took it is lost.
"""

import math
from collections.abc import Iterator
from typing import Final

from muster_controller.core.metrics.series import BIN_S, HOST, Group, Series
from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId
from muster_shared.messages import Twin, TwinModel
from muster_shared.metrics import DAY_S, REGION_LABEL

BINS_MAX: Final = 20_000
"""Of all groups and times together; more are not taken, and counted: somebody makes names up."""
PLACES_MAX: Final = 10_000
COUNT_MAX: Final = 10**9
"""That a counter may rise within one twin: beyond it a device tells nonsense."""
GAP_MAX_S: Final = 3 * DAY_S
PIECES_MAX: Final = 72
MB: Final = 1e6

_Key = tuple[float, str, str, str, str]


class _Bin:
    """One bin while it is counted."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "cpu_max",
        "cpu_ms",
        "cpu_sum",
        "cpu_told",
        "devices",
        "energy_j",
        "errors",
        "inferences",
        "latency_max",
        "requests",
        "slow",
    )

    def __init__(self) -> None:
        self.devices: set[DeviceId] = set()
        self.requests = self.errors = self.slow = self.inferences = self.cpu_told = 0
        self.cpu_ms = self.bytes_sent = self.bytes_received = self.cpu_sum = 0.0
        self.energy_j: float | None = None
        self.latency_max: float | None = None
        self.cpu_max: float | None = None

    def count(self, rise: "_Rise", number: int, count: int) -> None:
        """Add piece `number` of `count` of what rose."""
        self.cpu_ms += rise.cpu_ms / count
        if count == 1:
            self.requests += rise.requests
            self.errors += rise.errors
            self.slow += rise.slow
            self.inferences += rise.inferences
            return
        self.requests += _piece(rise.requests, number, count)
        self.errors += _piece(rise.errors, number, count)
        self.slow += _piece(rise.slow, number, count)
        self.inferences += _piece(rise.inferences, number, count)

    def measure(self, latency: float | None, cpu: float | None) -> None:
        """Take what a device measures now; None: it does not tell."""
        if latency is not None and (self.latency_max is None or latency > self.latency_max):
            self.latency_max = latency
        if cpu is not None:
            self.cpu_sum += cpu
            self.cpu_told += 1
            if self.cpu_max is None or cpu > self.cpu_max:
                self.cpu_max = cpu


class _Rise:
    """What rose on one device, of one release or (`HOST`) of all."""

    __slots__ = ("cpu_ms", "errors", "inferences", "latency", "model", "requests", "slow", "version")

    def __init__(self, model: str, version: str) -> None:
        self.model, self.version = model, version
        self.requests = self.errors = self.slow = self.inferences = 0
        self.cpu_ms = 0.0
        self.latency: float | None = None


class Tally:
    """Of one thread."""

    def __init__(self) -> None:
        self.refused = 0
        """Twins' parts that went into no bin: of no proper name, or beyond BINS_MAX."""
        self._bins: dict[_Key, _Bin] = {}
        self._taken: dict[DeviceId, tuple[str, int]] = {}
        """The newest twin of each device: when the database takes a batch twice, it counts once."""
        self._places: dict[tuple[str, str], tuple[str, str]] = {}

    def take(self, before: Twin | None, after: Twin, now: float, gap_s: float) -> None:
        """Count what rose between two twins of a device.

        Args:
            gap_s: since `before` arrived, by the clock of `now`.
        """
        boot, sequence = self._taken.get(after.device, ("", 0))
        if boot == after.boot and sequence >= after.sequence:
            return
        self._taken[after.device] = (after.boot, after.sequence)
        rises = _rises(before, after)
        whole = _Rise(HOST, HOST)
        for each in rises:
            whole.requests += each.requests
            whole.errors += each.errors
            whole.slow += each.slow
            whole.inferences += each.inferences
            whole.cpu_ms += each.cpu_ms
        energy, sent, received = _host_rises(before, after)
        device_class, region = self._place(after)
        cpu = after.host.cpu_percent
        if cpu is not None and not 0 <= cpu <= 100:
            cpu = None
        pieces = list(_pieces(now, 0.0 if before is None else gap_s))
        count = len(pieces)
        for rise, part in zip((*rises, whole), (*_parts(rises, whole), 1.0), strict=True):
            for number, at in enumerate(pieces):
                found = self._bin(at, rise, device_class, region)
                if found is None:
                    continue
                found.devices.add(after.device)
                found.count(rise, number, count)
                found.bytes_sent += sent * part / count
                found.bytes_received += received * part / count
                if energy is not None:
                    found.energy_j = (found.energy_j or 0.0) + energy * part / count
                if number == count - 1:
                    found.measure(rise.latency, cpu)

    def ended(self, now: float) -> list[Series]:
        """Take out and return the bins that have ended; all of them if `now` is infinite."""
        keys = sorted(key for key in self._bins if key[0] + BIN_S <= now)
        return [_series(key, self._bins.pop(key)) for key in keys]

    def _bin(self, at: float, rise: _Rise, device_class: str, region: str) -> _Bin | None:
        key = (at, rise.model, rise.version, device_class, region)
        found = self._bins.get(key)
        if found is None:
            if len(self._bins) >= BINS_MAX or not _is_named(rise):
                self.refused += 1
                return None
            found = self._bins[key] = _Bin()
        return found

    def _place(self, twin: Twin) -> tuple[str, str]:
        """Return the class and region of a device, "unknown" and "" where it gives no proper ones."""
        said = (twin.hardware.device_class, twin.labels.get(REGION_LABEL, ""))
        found = self._places.get(said)
        if found is None:
            if len(self._places) >= PLACES_MAX:
                self._places.clear()
            found = self._places[said] = (_name(said[0], "unknown"), _name(said[1], ""))
        return found


def _rises(before: Twin | None, after: Twin) -> list[_Rise]:
    found = []
    goes_on = before is not None and before.boot == after.boot
    for model in after.models:
        if model.active is None:
            continue
        rise = _Rise(model.model, model.active.version)
        latency = model.latency_ms_p95
        rise.latency = latency if latency is not None and latency >= 0 else None
        if before is not None:
            _count(rise, _same(before, model) if goes_on else None, model)
        found.append(rise)
    return found


def _same(before: Twin, model: TwinModel) -> TwinModel | None:
    """Return what the twin before said of the same release, if it was active."""
    for each in before.models:
        if each.model == model.model:
            is_same = each.active is not None and each.active.bundle_sha256 == model.active.bundle_sha256  # type: ignore[union-attr]
            return each if is_same else None
    return None


def _count(rise: _Rise, then: TwinModel | None, now: TwinModel) -> None:
    if then is None or now.requests < then.requests:
        rise.requests = _counted(now.requests)
        rise.errors = _counted(now.errors)
        rise.slow = _counted(now.slow)
        rise.inferences = _counted(now.inferences)
        rise.cpu_ms = _rose(None, now.cpu_ms) or 0.0
    else:
        rise.requests = _counted(now.requests - then.requests)
        rise.errors = _counted(now.errors - then.errors)
        rise.slow = _counted(now.slow - then.slow)
        rise.inferences = _counted(now.inferences - then.inferences)
        rise.cpu_ms = _rose(then.cpu_ms, now.cpu_ms) or 0.0
    rise.errors = min(rise.errors, rise.requests)
    rise.slow = min(rise.slow, rise.requests)


def _host_rises(before: Twin | None, after: Twin) -> tuple[float | None, float, float]:
    """Return energy in J (None: no sensor), and bytes sent and received."""
    now = after.host
    if before is None:
        return (None if now.energy_j is None else 0.0), 0.0, 0.0
    then = before.host
    goes_on = before.boot == after.boot
    # Of the host, which may have gone on when the agent began anew; without a reading before, nobody knows since when.
    was_told = then.energy_j is not None
    energy = _rose(then.energy_j, now.energy_j) if was_told or now.energy_j is None else 0.0
    sent = _rose(then.net_sent_mb if goes_on else None, now.net_sent_mb) or 0.0
    received = _rose(then.net_received_mb if goes_on else None, now.net_received_mb) or 0.0
    return energy, sent * MB, received * MB


def _parts(rises: list[_Rise], whole: _Rise) -> list[float]:
    """Return which part of what the whole device used each release is given: by processor time, else by inferences."""
    if whole.cpu_ms > 0:
        return [each.cpu_ms / whole.cpu_ms for each in rises]
    if whole.inferences > 0:
        return [each.inferences / whole.inferences for each in rises]
    return [1 / len(rises) for _ in rises]


def _pieces(now: float, gap_s: float) -> Iterator[float]:
    """Return the bins over which what rose in the last `gap_s` is spread, the newest last."""
    if gap_s <= 2 * BIN_S:
        yield now - now % BIN_S
        return
    gap_s = min(gap_s, GAP_MAX_S)
    count = min(math.ceil(gap_s / BIN_S), PIECES_MAX)
    for number in range(count):
        at = now - gap_s * (count - 1 - number) / count
        yield at - at % BIN_S


def _piece(total: int, number: int, count: int) -> int:
    return total * (number + 1) // count - total * number // count


def _counted(rise: int) -> int:
    return min(max(rise, 0), COUNT_MAX)


def _rose(then: float | None, now: float | None) -> float | None:
    """Return how far a counter rose that may have begun anew meanwhile; None: nobody told."""
    if now is None or not math.isfinite(now) or now < 0:
        return None
    return min(now - then if then is not None and now >= then else now, float(COUNT_MAX))


def _is_named(rise: _Rise) -> bool:
    if rise.model == HOST:
        return True
    try:
        ids.name(rise.model, "model")
        ids.version(rise.version)
    except WireError:
        return False
    return True


def _name(said: str, otherwise: str) -> str:
    try:
        return ids.name(said, "name")
    except WireError:
        return otherwise


def _series(key: _Key, found: _Bin) -> Series:
    at, model, version, device_class, region = key
    return Series(
        Group(model, version, device_class, region),
        at,
        BIN_S,
        devices=len(found.devices),
        requests=found.requests,
        errors=found.errors,
        slow=found.slow,
        inferences=found.inferences,
        cpu_ms=found.cpu_ms,
        energy_j=found.energy_j,
        bytes_sent=found.bytes_sent,
        bytes_received=found.bytes_received,
        latency_ms_p95_max=found.latency_max,
        cpu_percent_max=found.cpu_max,
        cpu_percent_sum=found.cpu_sum,
        cpu_told=found.cpu_told,
    )
