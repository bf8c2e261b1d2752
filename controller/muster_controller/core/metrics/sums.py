"""Noised sums as a mixer published them, and what several of them are together.

A pool is a sum of sums and a sum of variances: cells and periods add up because every device's part is in exactly one
of them. Negative numbers stay as they are: cutting noise off at 0 here would make every small class larger than it is.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from muster_shared.metrics import RELEASES_A_DAY, RHO_DAY, UNITS, WEIGHTS, Cell, Kind


@dataclass(frozen=True)
class MixedSum:
    """The sums of one kind of one cell and period, with noise.

    Attributes:
        mixer: who published it; empty: rolled up here.
        period_start: Unix seconds.
        period_s: 3600, or 86400 of a day that was sent merged, or that was rolled up of hours.
        devices: windows in it, exact; of a roll-up the most of any of its hours.
        late: beside others of the same cell and period; other devices.
        sums: in units (`muster_shared.metrics.UNITS` a device and period at most), `cell.dim(kind)` long.
        variance: of the noise on each of them, units^2.
        periods: how many windows of one device may be in it: 1, or up to 24 of a roll-up.
    """

    batch: str
    kind: Kind
    mixer: str
    cell: Cell
    period_start: float
    period_s: int
    devices: int
    sums: tuple[int, ...]
    variance: float
    late: bool = False
    periods: int = 1

    @property
    def is_rolled_up(self) -> bool:
        """Whether it was made of hours here, and not by a mixer."""
        return not self.mixer


@dataclass(frozen=True)
class Pool:
    """Sums over any set of cells and periods, of one kind.

    Attributes:
        sums: units.
        variances: of the noise on each, units^2.
        devices: the most that were in it in any one period.
        periods: windows that one device may have in it.
        rho: of zero-concentrated differential privacy, that all of it cost a device at most.
    """

    sums: tuple[int, ...] = ()
    variances: tuple[float, ...] = ()
    devices: int = 0
    periods: int = 0
    rho: float = 0.0

    @property
    def votes(self) -> float:
        """How many whole votes of a device are in it, by its noisy total; at least 1.

        A device gives UNITS x periods at most, so n_eff = (sum w)^2 / sum w^2 >= total / (UNITS x periods) whatever
        each of them gave: the sample is at least as good as so many devices that all gave everything to one class.
        """
        most = UNITS * max(1, self.periods)
        return float(min(max(self.devices, 1), max(1.0, sum(self.sums) / most)))


def pooled(found: Iterable[MixedSum]) -> Pool:
    """Return the sum of `found`, which are of one kind; shorter vectors count as ending in exact zeros."""
    sums: list[int] = []
    variances: list[float] = []
    devices: defaultdict[tuple[float, int, bool], int] = defaultdict(int)
    periods: dict[tuple[float, int, bool], int] = {}
    kind: Kind | None = None
    for each in found:
        assert kind in (None, each.kind), "a pool is of one kind"
        kind = each.kind
        lacking = len(each.sums) - len(sums)
        if lacking > 0:
            sums += [0] * lacking
            variances += [0.0] * lacking
        for index, number in enumerate(each.sums):
            sums[index] += number
            variances[index] += each.variance
        key = (each.period_start, each.period_s, each.is_rolled_up)  # A day sent merged stands beside its hours.
        devices[key] += each.devices
        periods[key] = max(periods.get(key, 0), each.periods)
    if kind is None:
        return Pool()
    windows = sum(periods.values())
    return Pool(tuple(sums), tuple(variances), max(devices.values()), windows, windows * rho_of(kind))


def rho_of(kind: Kind) -> float:
    """Return what one period of `kind` costs a device, of all cells together: sums of less noise are refused."""
    return RHO_DAY / RELEASES_A_DAY * WEIGHTS[kind]


def by(found: Iterable[MixedSum], key: Callable[[MixedSum], str]) -> dict[str, list[MixedSum]]:
    """Return `found` by `key`, sorted by it."""
    groups: defaultdict[str, list[MixedSum]] = defaultdict(list)
    for each in found:
        groups[key(each)].append(each)
    return dict(sorted(groups.items()))


def of(found: Iterable[MixedSum], kind: Kind, version: str | None = None) -> Sequence[MixedSum]:
    """Return those of `kind`, and of `version` if one is given."""
    return [each for each in found if each.kind is kind and version in (None, each.cell.version)]
