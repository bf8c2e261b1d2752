"""The shape of a fleet: how many devices of which class, how many offline, how fast and how busy. Parsing only.

Two documents are understood: what `muster device list --json` prints, and a few lines such as

    classes: {pi5-cpu: 800, nuc-gpu: 200}
    offline: 10%
    back_per_hour: 0.5
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from functools import cached_property
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from muster_controller.core import selector as selectors
from muster_controller.policy_document import units
from muster_controller.policy_document.nodes import Entries, Items, Node, NotYaml, Scalar, compose, text_of
from muster_simulator.rehearsal.scenarios import RehearsalRefused

LIST_BYTES_MAX = 64 * 2**20  # About 100,000 devices.
DEVICES_MAX = 100_000
CLASSES_MAX = 256
KNOWN_RESERVED = frozenset({"hw/class", "agent/version"})
"""What a list of devices tells of those keys that devices report themselves."""
_OFFSET = re.compile(r"([+-])([01][0-9]):([0-5][0-9])")

Share = float | str


class ClassShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device class of a short document."""

    devices: int
    labels: dict[str, str] = {}
    offline: Share | None = None
    fetch_s: float | None = None
    requests_per_hour: float | None = None


class Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A short document. Shares are 0..1 or "10%"; the texts below are those of docs/simulate.md."""

    classes: dict[str, int | ClassShape]
    offline: Share = 0.0
    """Devices that are offline at any moment."""
    back_per_hour: float = 0.0
    """How often an offline device comes back; 0: those that are offline stay so, and the others online."""
    fetch_s: float = 60.0
    """Median time to fetch and self-test the release."""
    fetch_spread: float = 0.5
    """Standard deviation of its logarithm."""
    requests_per_hour: float = 3600.0
    """Median traffic of a device; it spreads by a factor of two."""
    idle: Share = 0.0
    """Devices without any traffic."""
    busy: Share = 0.0
    """How often a device that may defer by its own rules does so when it is asked."""
    busy_s: float = 600.0
    """For how long, each time."""
    timezones: dict[str, Share] = {}
    """Shares of time zones, such as {Europe/Berlin: 70%, "+09:00": 30%}; none: UTC."""
    latency_noise: float = 0.08
    """Standard deviation of log p95 of one device between two windows; one device in twenty has four times that."""
    weather: float = 0.05
    """What an hour does to the p95 of a whole class, in the same unit."""
    after_report_s: float = 2.0
    """From a device's report to its being counted, on average."""


@dataclass(frozen=True)
class Kind:
    """What the rehearsal knows of one device beforehand."""

    device_class: str
    fetch_s: float
    requests_per_hour: float
    offline: float
    """Chance that it is offline: 0 or 1 where a list says it."""
    zone: str | None = None


@dataclass(frozen=True)
class Fleet:
    """The devices that a policy selects."""

    shape: Shape
    kinds: Mapping[str, Sequence[Kind]]
    """By class."""
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> dict[str, int]:
        return {name: len(self.kinds[name]) for name in sorted(self.kinds)}

    @property
    def devices(self) -> int:
        return sum(len(kinds) for kinds in self.kinds.values())

    @cached_property
    def is_part_offline(self) -> bool:
        return any(kind.offline for kinds in self.kinds.values() for kind in kinds)


class _Listed(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of one device of `muster device list --json`."""

    id: str
    device_class: str = "unknown"
    online: bool = True
    labels: dict[str, str] = {}
    agent_version: str | None = None
    timezone: str | None = None


@dataclass(frozen=True)
class _Found:
    kind: Kind
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Document:
    """A fleet before a policy has selected from it."""

    shape: Shape
    found: Sequence[_Found]
    is_list: bool

    def select(self, selector: str) -> Fleet:
        """Return the devices that `selector` names. Raises SelectorInvalid.

        Of what devices report of themselves a list tells little: conditions on the rest are taken to hold, with a note.
        """
        parsed = selectors.parse(selector)
        untold = {key for key in parsed.keys if key.startswith(selectors.RESERVED) and key not in KNOWN_RESERVED}
        asked = selectors.Selector(tuple(each for each in parsed.requirements if each.key not in untold))
        notes = (f"the fleet's document does not tell {', '.join(sorted(untold))}: taken to hold for all",)
        kinds: dict[str, list[Kind]] = {}
        for each in self.found:
            if asked.matches(each.labels):
                kinds.setdefault(each.kind.device_class, []).append(each.kind)
        return Fleet(self.shape, kinds, notes if untold else ())


def parse(raw: bytes, name: str, overrides: Mapping[str, float] | None = None) -> Document:
    """Return the fleet in `raw`, JSON or YAML.

    Args:
        name: Of the file, as messages show it.
        overrides: Fields of `Shape` that an operator gave beside the file.
    Raises:
        RehearsalRefused: no fleet, or one that is too large; the message says what to write.
    """
    if len(raw) > LIST_BYTES_MAX:
        raise RehearsalRefused(f"{name}: {len(raw)} bytes; the limit is {LIST_BYTES_MAX}")
    if raw.lstrip()[:1] == b"[":
        try:
            listed = msgspec.json.decode(raw, type=list[_Listed])
        except msgspec.MsgspecError as error:
            raise RehearsalRefused(f"{name}: not what `muster device list --json` prints: {error}") from error
        return of_list(listed, name, overrides)
    try:
        built = _built(compose(text_of(raw)))
        if isinstance(built, dict):
            built.update(overrides or {})
        shape = msgspec.convert(built, Shape)
    except NotYaml as error:
        at = name if error.line is None else f"{name}:{error.line}"
        raise RehearsalRefused(f"{at}: {error}") from error
    except msgspec.ValidationError as error:
        example = "classes: {pi5-cpu: 800, nuc-gpu: 200}"
        raise RehearsalRefused(f"{name}: {error}; a fleet is written like `{example}`, see docs/simulate.md") from error
    return of_shape(shape, name)


def of_devices(devices: object, name: str, overrides: Mapping[str, float] | None = None) -> Document:
    """Return the fleet in what the controller's API lists. Raises RehearsalRefused."""
    try:
        listed = msgspec.convert(devices, list[_Listed])
    except msgspec.ValidationError as error:
        raise RehearsalRefused(f"{name}: not a list of devices: {error}") from error
    return of_list(listed, name, overrides)


def of_list(listed: Sequence[_Listed], name: str, overrides: Mapping[str, float] | None = None) -> Document:
    shape = msgspec.convert({"classes": {}, **(overrides or {})}, Shape)
    _check(shape, name)
    if not 0 < len(listed) <= DEVICES_MAX:
        raise RehearsalRefused(f"{name}: {len(listed)} devices; a rehearsal needs 1 to {DEVICES_MAX}")
    found = []
    for each in sorted(listed, key=lambda device: device.id):
        offline = 0.0 if each.online else 1.0
        kind = Kind(each.device_class, shape.fetch_s, shape.requests_per_hour, offline, each.timezone)
        if each.timezone is not None:
            zone(each.timezone)
        found.append(_Found(kind, _labels(each.labels, each.device_class, each.agent_version)))
    away = sum(not each.online for each in listed) / len(listed)
    return Document(msgspec.structs.replace(shape, offline=away), found, is_list=True)


def of_shape(shape: Shape, name: str) -> Document:
    """Return the fleet of a short document. Raises RehearsalRefused."""
    _check(shape, name)
    if not 0 < len(shape.classes) <= CLASSES_MAX:
        raise RehearsalRefused(f"{name}: {len(shape.classes)} classes; a fleet has 1 to {CLASSES_MAX}")
    found: list[_Found] = []
    for device_class, written in sorted(shape.classes.items()):
        each = ClassShape(devices=written) if isinstance(written, int) else written
        if not 1 <= each.devices <= DEVICES_MAX - len(found):
            raise RehearsalRefused(
                f"{name}: class {device_class} has {each.devices} devices; a rehearsal takes 1 to {DEVICES_MAX} in all"
            )
        kind = Kind(
            device_class,
            shape.fetch_s if each.fetch_s is None else each.fetch_s,
            shape.requests_per_hour if each.requests_per_hour is None else each.requests_per_hour,
            share(shape.offline if each.offline is None else each.offline, "offline"),
        )
        _positive(kind.fetch_s, "fetch_s", name)
        found += [_Found(kind, _labels(each.labels, device_class, None))] * each.devices
    return Document(shape, found, is_list=False)


def share(value: Share, field: str) -> float:
    """Return a share as a number. Raises RehearsalRefused."""
    number = units.share(value) if isinstance(value, str) else value
    if number is None or not 0 <= number <= 1:
        raise RehearsalRefused(f'{field} is {value!r}; write a share such as "10%", or 0.1')
    return number


def zone(name: str | None) -> tzinfo:
    """Return a time zone by its IANA name or its offset; None is UTC. Raises RehearsalRefused."""
    if name is None:
        return timezone.utc  # noqa: UP017  # `datetime.UTC` is no tzinfo that a signature can name.
    if offset := _OFFSET.fullmatch(name):
        ahead = timedelta(hours=int(offset[2]), minutes=int(offset[3]))
        return timezone(ahead if offset[1] == "+" else -ahead)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise RehearsalRefused(f"no time zone is called {name[:60]!r}; write Europe/Berlin or +02:00") from error


def week_minute(at: float, where: tzinfo) -> tuple[int, int]:
    """Return weekday (Monday is 0) and minute of the day that a clock in `where` shows at `at`, Unix seconds."""
    local = datetime.fromtimestamp(at, where)
    return local.weekday(), local.hour * 60 + local.minute


def _check(shape: Shape, name: str) -> None:
    for field in ("offline", "idle", "busy"):
        share(getattr(shape, field), f"{name}: {field}")
    for field in ("back_per_hour", "fetch_spread", "requests_per_hour", "latency_noise", "weather", "after_report_s"):
        if not 0 <= getattr(shape, field) < 1e9:
            raise RehearsalRefused(f"{name}: {field} is {getattr(shape, field):g}; write 0 or more")
    for field in ("fetch_s", "busy_s"):
        _positive(getattr(shape, field), field, name)
    if share(shape.offline, "offline") == 1 and shape.back_per_hour == 0:
        raise RehearsalRefused(f"{name}: all devices are offline and none comes back; lower offline")
    total = sum(share(value, f"{name}: timezones.{key}") for key, value in shape.timezones.items())
    if shape.timezones and abs(total - 1) > 0.01:
        raise RehearsalRefused(f"{name}: the shares of timezones sum to {total:.0%}; make it 100%")
    for key in shape.timezones:
        zone(key)


def _positive(value: float, field: str, name: str) -> None:
    if not 0 < value < 1e9:
        raise RehearsalRefused(f"{name}: {field} is {value:g}; write a number above 0")


def _labels(labels: Mapping[str, str], device_class: str, agent_version: str | None) -> dict[str, str]:
    found = selectors.device_labels(labels, None, agent_version)
    return found | {"hw/class": selectors.label_safe(device_class)}


def _built(node: Node) -> object:
    """Return plain values; times such as "90s" become seconds."""
    match node:
        case Scalar(value=value):
            return value
        case Items(items):
            return [_built(item) for item in items]
        case Entries(entries):
            found: dict[str, object] = {}
            for key, child in entries:
                built = _built(child)
                is_time = key.text.endswith("_s") and isinstance(built, str) and units.seconds(built) is not None
                found[key.text] = units.seconds(str(built)) if is_time else built
            return found
