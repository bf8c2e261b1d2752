"""Operational series: counts of one release on one device class and region, by time; and what headroom they leave.

They come from the twins, which name the device: pseudonymous at best, never anonymous. They say nothing of inputs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from muster_shared.metrics import DAY_S, HOUR_S

BIN_S: Final = 300
PERIODS: Final = (BIN_S, HOUR_S, DAY_S)
HOST: Final = ""
"""The model of the series of whole devices: each is in it once, however many models it serves."""


@dataclass(frozen=True)
class Group:
    """What a series is of. `model` and `version` are `HOST` in the series of whole devices."""

    model: str
    version: str
    device_class: str
    region: str = ""


@dataclass(frozen=True)
class Series:
    """One point of a series.

    Attributes:
        at: beginning of the period, Unix seconds; a multiple of `period_s`.
        period_s: 300, 3600 or 86400.
        devices: that said something; of an hour or a day the most in any 5 minutes of it.
        requests, errors, slow, inferences: within the period; `errors` and `slow` are among the requests.
        cpu_ms, energy_j, bytes_sent, bytes_received: of whole devices; a model's part of them is by its share of the
            processor's time there. `energy_j` is None where no device has a sensor.
        latency_ms_p95_max: of the slowest device; None: nobody told. So `cpu_percent_max`, of the busiest.
        cpu_percent_sum, cpu_told: the mean over twins is their quotient.
    """

    group: Group
    at: float
    period_s: int
    devices: int = 0
    requests: int = 0
    errors: int = 0
    slow: int = 0
    inferences: int = 0
    cpu_ms: float = 0.0
    energy_j: float | None = None
    bytes_sent: float = 0.0
    bytes_received: float = 0.0
    latency_ms_p95_max: float | None = None
    cpu_percent_max: float | None = None
    cpu_percent_sum: float = 0.0
    cpu_told: int = 0

    @property
    def cpu_percent_mean(self) -> float | None:
        return self.cpu_percent_sum / self.cpu_told if self.cpu_told else None


@dataclass(frozen=True)
class Headroom:
    """What one device class has left in its busiest hour.

    Attributes:
        at: when the hour began in which the processors were busiest on average.
        cpu_percent: of an average device in it; None: no device tells. `cpu_percent_max`: of the busiest device.
        requests_peak: requests a second, of all devices of the class, in the hour with most of them.
        factor: how much more an average device could do before its processor is full, if load rises evenly.
    """

    device_class: str
    at: float | None
    cpu_percent: float | None
    cpu_percent_max: float | None
    devices: int
    requests_peak: float
    requests_peak_at: float | None
    factor: float | None


def merged(one: Series, other: Series) -> Series:
    """Return two points of the same group and period as one."""
    assert (one.group, one.at, one.period_s) == (other.group, other.at, other.period_s)
    return replace(
        one,
        devices=max(one.devices, other.devices),
        requests=one.requests + other.requests,
        errors=one.errors + other.errors,
        slow=one.slow + other.slow,
        inferences=one.inferences + other.inferences,
        cpu_ms=one.cpu_ms + other.cpu_ms,
        energy_j=_either(one.energy_j, other.energy_j, lambda a, b: a + b),
        bytes_sent=one.bytes_sent + other.bytes_sent,
        bytes_received=one.bytes_received + other.bytes_received,
        latency_ms_p95_max=_either(one.latency_ms_p95_max, other.latency_ms_p95_max, max),
        cpu_percent_max=_either(one.cpu_percent_max, other.cpu_percent_max, max),
        cpu_percent_sum=one.cpu_percent_sum + other.cpu_percent_sum,
        cpu_told=one.cpu_told + other.cpu_told,
    )


def rolled_up(points: Iterable[Series], period_s: int) -> list[Series]:
    """Return points of a longer period made of shorter ones, sorted by group and time."""
    found: dict[tuple[Group, float], Series] = {}
    for each in points:
        longer = replace(each, at=each.at - each.at % period_s, period_s=period_s)
        key = (longer.group, longer.at)
        found[key] = merged(found[key], longer) if key in found else longer
    return [found[key] for key in sorted(found, key=_order)]


def headroom(hours: Iterable[Series]) -> list[Headroom]:
    """Return the headroom of each device class, from hourly points of whole devices (`HOST`), the least first.

    Regions of a class are taken together: an hour is one, wherever the devices are.
    """
    classes: dict[str, dict[float, Series]] = {}
    for each in hours:
        assert (each.group.model, each.period_s) == (HOST, HOUR_S), "hours of whole devices"
        plain = replace(each, group=Group(HOST, HOST, each.group.device_class))
        of_class = classes.setdefault(each.group.device_class, {})
        known = of_class.get(each.at)
        of_class[each.at] = (
            plain if known is None else replace(merged(known, plain), devices=known.devices + plain.devices)
        )
    found = [_headroom(name, list(of_class.values())) for name, of_class in classes.items()]
    return sorted(found, key=lambda each: (each.factor is None, each.factor or 0.0, each.device_class))


def _headroom(name: str, hours: list[Series]) -> Headroom:
    told = [each for each in hours if each.cpu_told]
    busiest = max(told, key=lambda each: (each.cpu_percent_mean or 0.0, -each.at), default=None)
    peak = max(hours, key=lambda each: (each.requests, -each.at))
    mean = None if busiest is None else busiest.cpu_percent_mean
    return Headroom(
        device_class=name,
        at=None if busiest is None else busiest.at,
        cpu_percent=mean,
        cpu_percent_max=None if busiest is None else busiest.cpu_percent_max,
        devices=max(each.devices for each in hours),
        requests_peak=peak.requests / HOUR_S,
        requests_peak_at=peak.at if peak.requests else None,
        factor=None if mean is None or mean <= 0 else 100.0 / mean,
    )


def _order(key: tuple[Group, float]) -> tuple[str, str, str, str, float]:
    group, at = key
    return group.model, group.version, group.device_class, group.region, at


def _either(one: float | None, other: float | None, both: Callable[[float, float], float]) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return both(one, other)
