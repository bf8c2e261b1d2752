"""From what was counted to windows: UNITS of each kind, shared out among models, releases and places.

    Tally ── count ──▶ Counted, one a release and period ── windows ──▶ Window, or none where nothing is allowed

Within a kind the models that have something of it share equally; a model's share goes to what was counted of it, over
all of its releases. Whatever was counted, no kind gets more than UNITS in all: that is the sensitivity that the
mixer's noise is made for. Pure: randomness is an argument.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from random import Random
from typing import Literal

import msgspec

from muster_agent.metrics.port import DriftState, Release, Tally
from muster_agent.metrics.rounding import share_out
from muster_shared.metrics import DRIFT, NONCE_BYTES, UNITS, Cell, Kind, Window, pack, unpack

PeriodS = Literal[3600, 86400]
RELEASES_MAX = UNITS
"""Of a device in one period: more would not get a unit each."""


class Place(msgspec.Struct, frozen=True):
    """What a window says of where it comes from: what thousands of devices have in common."""

    device_class: str
    region: str = ""


class Counted(msgspec.Struct, frozen=True):
    """What was counted of one release in one period. Only of the kinds that may leave: the others are not kept."""

    release: Release
    inferences: int = 0
    counts: Mapping[Kind, bytes] = {}
    """Packed: a device without a link keeps months of them."""
    drift: DriftState = DriftState.UNKNOWN
    """As it was last."""

    def plus(self, later: "Counted") -> "Counted":
        """Return both together; `later` was counted after this."""
        return Counted(
            release=later.release,
            inferences=self.inferences + later.inferences,
            counts={kind: self._sum(later, kind) for kind in sorted({*self.counts, *later.counts})},
            drift=later.drift,
        )

    def of(self, kind: Kind) -> dict[int, int]:
        """Return index -> count."""
        return unpack(self.counts.get(kind, b""), dim(self.release, kind))

    def _sum(self, later: "Counted", kind: Kind) -> bytes:
        if kind not in self.counts or kind not in later.counts:
            return self.counts.get(kind) or later.counts[kind]
        total = self.of(kind)
        for index, count in later.of(kind).items():
            total[index] = total.get(index, 0) + count
        return pack(total)


def counted(tally: Tally) -> Counted:
    """Return what of `tally` may leave. Places beyond a kind's last are counted as the last."""
    counts: dict[Kind, bytes] = {}
    for kind in kinds(tally.release):
        last = dim(tally.release, kind) - 1
        clipped: dict[int, int] = {}
        for index, count in tally.counts.get(kind, {}).items():
            clipped[min(index, last)] = clipped.get(min(index, last), 0) + count
        if any(clipped.values()):
            counts[kind] = pack(clipped)
    return Counted(tally.release, tally.inferences, counts, tally.drift)


def dim(release: Release, kind: Kind) -> int:
    """Return how many places `kind` has for this release."""
    return Cell(model=release.model, version=release.version, device_class="", classes=release.classes).dim(kind)


def kinds(release: Release) -> list[Kind]:
    """Return what may leave of `release`, and is there."""
    return [kind for kind in Kind if kind in release.allow and dim(release, kind)]


def windows(
    period: Iterable[Counted], place: Place, start: int, period_s: PeriodS, random: Random
) -> dict[Release, Window]:
    """Return the windows of one device and period, by release; all releases at once, for they share the units."""
    rows = sorted((each for each in period if kinds(each.release)), key=lambda each: _order(each.release))
    units: dict[Release, dict[Kind, bytes]] = {each.release: {} for each in rows}
    for kind in Kind:
        for release, shares in _shared(rows, kind, random).items():
            if shares:
                units[release][kind] = pack(shares)
    return {
        each.release: Window(
            cell=Cell(
                model=each.release.model,
                version=each.release.version,
                device_class=place.device_class,
                region=place.region,
                classes=each.release.classes,
            ),
            period_start=start,
            period_s=period_s,
            nonce=f"{random.getrandbits(8 * NONCE_BYTES):0{2 * NONCE_BYTES}x}",
            units=units[each.release],
        )
        for each in rows
    }


def _shared(rows: Sequence[Counted], kind: Kind, random: Random) -> dict[Release, dict[int, int]]:
    """Return the units of `kind`, by release and index."""
    models: dict[str, list[tuple[Release, int, int]]] = {}
    served = {row.release.model for row in rows if kind in row.release.allow and row.inferences}
    for row in rows:
        if kind in row.release.allow:
            leaves = [(row.release, index, weight) for index, weight in _weights(row, kind, served).items()]
            models.setdefault(row.release.model, []).extend(leaves)
    groups = [leaves for _, leaves in sorted(models.items())]
    given = share_out([[weight for _, _, weight in leaves] for leaves in groups], UNITS, random)
    shared: dict[Release, dict[int, int]] = {}
    for leaves, numbers in zip(groups, given, strict=True):
        for (release, index, _), number in zip(leaves, numbers, strict=True):
            if number:
                shared.setdefault(release, {})[index] = number
    return shared


def _weights(row: Counted, kind: Kind, served: Container[str]) -> dict[int, int]:
    """
    Args:
        served: The models of which some release that tells of `kind` was asked.
    """
    if kind is not Kind.DRIFT:
        return row.of(kind)
    # A state is there without requests, too.
    return {DRIFT.index(row.drift.value): row.inferences if row.release.model in served else 1}


def _order(release: Release) -> tuple[str, str, str]:
    return (release.model, release.version, release.bundle_sha256)
