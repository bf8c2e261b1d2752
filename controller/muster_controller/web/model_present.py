"""What the pages of models show of releases, ready to be shown. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from muster_controller.api.schemas import ModelView
from muster_controller.api.schemas.releases import LatencyChange, ReleaseTrust, VersionUse
from muster_controller.core.selector import label_safe
from muster_controller.db.reader import Headline
from muster_controller.web.charts import Segment, segments
from muster_controller.web.lifetimes import Lifetime, of_metadata
from muster_controller.web.plots import Axis, Plot, Series, Shape, Tone
from muster_controller.web.present import ModelBar
from muster_shared.bundle import Manifest
from muster_shared.messages import ReleaseRef

KEY_SHOWN = 12
LABEL_KEYS_SHOWN = 6


@dataclass(frozen=True)
class ReleaseRow:
    release: ReleaseRef
    manifest: Manifest
    devices: int
    is_baseline: bool

    @property
    def bytes(self) -> int:
        return sum(file.length for file in self.manifest.files)


@dataclass(frozen=True)
class ModelCard:
    """A model in the registry. `rows`: its newest releases, newest first; `more`: how many are not shown."""

    view: ModelView
    bar: ModelBar | None
    rows: tuple[ReleaseRow, ...]
    more: int
    last: Headline | None


@dataclass(frozen=True)
class Place:
    """Devices of one group that serve a release, and the page that lists them."""

    name: str
    devices: int
    href: str


@dataclass(frozen=True)
class LabelPlaces:
    key: str
    bar: tuple[Segment, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Signatures:
    """Who signed, in words."""

    words: str
    is_enough: bool
    life: Lifetime | None
    """Of the role's metadata."""


def release_rows(
    view: ModelView, releases: Sequence[tuple[ReleaseRef, Manifest]], most: int | None = None
) -> tuple[ReleaseRow, ...]:
    """Return the releases of one model, newest first."""
    own = [(ref, manifest) for ref, manifest in releases if ref.model == view.name]
    own.sort(key=lambda each: -each[0].release)
    return tuple(
        ReleaseRow(ref, manifest, view.devices.get(ref.version, 0), ref.version == view.baseline)
        for ref, manifest in own[:most]
    )


def key_short(keyid: str) -> str:
    """Return so much of a key id as people compare."""
    return keyid[:KEY_SHOWN]


def signatures(trust: ReleaseTrust, now: float) -> Signatures:
    role = trust.role
    enough = role.signed >= role.threshold
    words = f"{role.signed} of its {len(role.keys)} keys signed; {role.threshold} are needed"
    life = None if role.expires_at is None else of_metadata(role.role, role.expires_at, now)
    return Signatures(words, enough, life)


def class_places(use: VersionUse) -> tuple[Place, ...]:
    """Return the device classes that serve a release, the largest first."""
    return tuple(
        Place(name, count, _devices(use, f"hw/class={label_safe(name)}")) for name, count in use.classes.items()
    )


def label_places(use: VersionUse) -> tuple[LabelPlaces, ...]:
    """Return by label which devices serve a release, for the labels that group most of them."""
    keys = sorted(use.labels, key=lambda key: (-sum(use.labels[key].values()), key))[:LABEL_KEYS_SHOWN]
    return tuple(
        LabelPlaces(
            key,
            segments(list(use.labels[key].items())),
            tuple(Place(value, count, _devices(use, f"{key}={value}")) for value, count in use.labels[key].items()),
        )
        for key in keys
    )


def latency_plot(changes: Sequence[LatencyChange], before: str, after: str) -> Plot:
    """Return p95 by device class, both releases beside each other; unknown ones have no bar."""
    shown = [each for each in changes if each.before_ms is not None or each.after_ms is not None]
    names = [each.device_class for each in shown]
    told = "; ".join(f"{each.device_class} {_ms(each.before_ms)} to {_ms(each.after_ms)}" for each in shown)
    series = (
        Series(before, [(float(n), each.before_ms) for n, each in enumerate(shown)], tone=Tone.V0, shape=Shape.BAR),
        Series(after, [(float(n), each.after_ms) for n, each in enumerate(shown)], tone=Tone.V1, shape=Shape.BAR),
    )
    words = f"p95 latency of requests by device class: {told}." if shown else "No device has told how fast either runs."
    return Plot(
        id="latency",
        title="Latency p95 by device class",
        words=words,
        series=series,
        x=Axis.NAME,
        names=names,
        unit=" ms",
        low=0.0,
    )


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} ms"


def _devices(use: VersionUse, selector: str) -> str:
    return "/devices?" + urlencode({"selector": selector, "model": use.model, "version": use.version})
