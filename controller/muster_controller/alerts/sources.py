"""Sources: where each kind of facts comes from, as the rules want it. Reads rows and files; decides nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509

from muster_controller.core.alerts.content import Compared, Drifting
from muster_controller.core.alerts.expiring import Expiring
from muster_controller.core.alerts.mixing import MixerFacts
from muster_controller.core.alerts.running import Peak
from muster_controller.core.metrics.estimates import drift_shares
from muster_controller.core.metrics.series import HOST, headroom
from muster_controller.core.metrics.slices import Labelled, slices
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.identity.ca import CertificateInfo
from muster_controller.identity.enrolment import IdentityState
from muster_controller.identity.mixers import Mixer
from muster_controller.registry.errors import RegistryError
from muster_controller.releases import Releases
from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.ids import ModelName
from muster_shared.messages import ReleaseRef
from muster_shared.metrics import DAY_S, HOUR_S, Kind

DRIFT_HOURS: Final = 3
"""That are taken together: the noise of one hour hides all but the largest shares."""
LATE_HOURS: Final = 3
"""An hour is published two hours after its end at the latest, and is not missed before."""
COMPARED_S: Final = 14 * DAY_S
"""Before and after: labels come slowly, and a season is no regression."""
SERVED_S: Final = 2 * DAY_S
"""A release that published nothing for so long is not served any more; days are what is known of it."""
PUBLISHED_EVERY_S: Final = 300.0
MODELS_MAX: Final = 50
CERTIFICATE_BYTES_MAX: Final = 1024 * 1024


@dataclass
class Content:
    """What windows tell, from the noised sums."""

    store: MetricsStore
    releases: Releases
    clock: Callable[[], float]

    def drift(self) -> Iterator[Drifting]:
        """Yield each release that was published in the last hours, and each class of devices of it."""
        until = self.clock()
        since = (until - (DRIFT_HOURS + LATE_HOURS) * HOUR_S) // HOUR_S * HOUR_S
        found: dict[tuple[str, str], list[MixedSum]] = {}
        for each in self.store.mixed(kind=Kind.DRIFT, period_s=HOUR_S, since=since, until=until):
            found.setdefault((each.cell.model, each.cell.version), []).append(each)
        for (model, version), every in sorted(found.items()):
            hours = sorted({each.period_start for each in every})[-DRIFT_HOURS:]
            newest = [each for each in every if each.period_start >= hours[0]]
            classes = sorted({each.cell.device_class for each in newest})
            for name in ("", *(classes if len(classes) > 1 else ())):
                own = [each for each in newest if name in ("", each.cell.device_class)]
                shares = drift_shares(own)
                yield Drifting(model, version, name, shares["drifting"], shares["skewed"], len(hours))

    def compared(self) -> Iterator[Compared]:
        """Yield the newest release of each model that is served now, against the one before it."""
        now = self.clock()
        since = now - COMPARED_S
        first: dict[str, dict[str, float]] = {}
        last: dict[str, dict[str, float]] = {}
        for known in self.store.known():
            if known.last >= since and {Kind.FEEDBACK, Kind.INPUTS} & set(known.kinds):
                model, version = known.cell.model, known.cell.version
                firsts, lasts = first.setdefault(model, {}), last.setdefault(model, {})
                firsts[version] = min(known.first, firsts.get(version, known.first))
                lasts[version] = max(known.last, lasts.get(version, known.last))
        for name in sorted(first)[:MODELS_MAX]:
            numbers = {version: self._number(name, version) for version in first[name]}
            ordered = sorted(numbers, key=lambda version: (numbers[version], first[name][version]))
            served = [version for version in ordered if last[name][version] >= now - SERVED_S]
            if not served or served[-1] == ordered[0]:
                continue
            after = served[-1]
            before = ordered[ordered.index(after) - 1]
            old, new = self._sums(name, before, since), self._sums(name, after, since)
            yield Compared(name, before, after, tuple(slices(old, new, labels=self._labels(name, before, after))))

    def peaks(self) -> Iterator[Peak]:
        """Yield the busiest hour of each device class in the last day."""
        hours = self.store.series(model=HOST, period_s=HOUR_S, since=self.clock() - DAY_S)
        for each in headroom(hours):
            if each.cpu_percent is not None and each.at is not None:
                yield Peak(each.device_class, each.cpu_percent, each.at, each.devices)

    def _sums(self, model: str, version: str, since: float) -> list[MixedSum]:
        return [
            each
            for kind in (Kind.FEEDBACK, Kind.INPUTS)
            for each in self.store.mixed(model=model, version=version, kind=kind, since=since)
        ]

    def _number(self, model: str, version: str) -> int:
        """Return the release's own counter, which says which came first; 0: it is not here any more."""
        found = self._release(model, version)
        return 0 if found is None else found.release

    def _labels(self, model: str, before: str, after: str) -> Labelled | None:
        found = [self._release(model, version) for version in (before, after)]
        manifests = [None if each is None else self.releases.manifest(each.bundle_sha256) for each in found]
        old, new = (() if each is None else each.labels for each in manifests)
        return (old, new) if old and new else None

    def _release(self, model: str, version: str) -> ReleaseRef | None:
        try:
            return self.releases.release(ModelName(ids.name(model, "model")), version)
        except (RegistryError, WireError):
            return None


@dataclass
class Mixing:
    """What mixers say of themselves, and how many cells each had refused a day ago."""

    store: MetricsStore
    newest_hours: Callable[[float], dict[str, float]]
    """When each mixer published last, of those that did since then."""
    clock: Callable[[], float]
    _refused: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    _published: dict[str, float] = field(default_factory=dict)
    _asked_at: float = float("-inf")

    def mixers(self) -> Iterator[MixerFacts]:
        now = self.clock()
        entries = self.store.mixers()
        if entries and now - self._asked_at >= PUBLISHED_EVERY_S:
            self._published, self._asked_at = self.newest_hours(now - 2 * DAY_S), now
        for each in entries:
            state = each.state
            budget = None if state is None or not state.budgets else state.budgets[0]
            refused = 0 if state is None else state.out_of_budget
            yield MixerFacts(
                mixer=each.id,
                created_at=each.created_at,
                seen_at=each.seen_at,
                day=None if budget is None else budget.day,
                rho_spent=0.0 if budget is None else budget.rho_spent,
                rho_budget=0.0 if budget is None else budget.rho_budget,
                out_of_budget=refused,
                out_of_budget_before=self._before(each.id, refused, now) if state is not None else 0,
                summed_at=self._published.get(each.id),
            )

    def _before(self, mixer: str, refused: int, now: float) -> int:
        """Return how many it had refused a day ago, or when it was seen first; a new ledger begins anew."""
        seen = self._refused.setdefault(mixer, [])
        if not seen or seen[-1][1] != refused:
            if seen and refused < seen[-1][1]:
                seen.clear()
            seen.append((now, refused))
        while len(seen) > 1 and seen[1][0] <= now - DAY_S:
            del seen[0]
        return seen[0][1]


def certificates(own: Sequence[CertificateInfo], mixers: Sequence[Mixer], page: Path | None) -> list[Expiring]:
    """Return every certificate that this controller answers for, by who has it.

    Devices' renew themselves, and are seen as offline otherwise; a mixer that was revoked is to get no other.
    """
    found = [
        Expiring(f"ca-{each.role}", _named(each), each.expires_at, each.expires_at - each.issued_at) for each in own
    ]
    found += [
        Expiring("mixer", f"certificate of mixer {each.mixer}", each.expires_at, 7 * DAY_S)
        for each in mixers
        if each.expires_at is not None and each.identity.state is not IdentityState.REVOKED
    ]
    read = None if page is None else _read("certificate of the page", page)
    return found if read is None else [*found, read]


def keys(releases: Releases) -> list[Expiring]:
    """Return the TUF metadata that is there. Raises RegistryError."""
    if not releases.repository.is_ready:
        return []
    found = releases.repository.expiries()
    return [Expiring(each.role, f"{each.role} metadata", each.expires.timestamp()) for each in found]


def _named(info: CertificateInfo) -> str:
    words = {"root": "root of the fleet CA", "intermediate": "intermediate of the fleet CA"}
    return words.get(info.role, f"{info.role} certificate")


def _read(name: str, file: Path) -> Expiring | None:
    """Return the first certificate of a PEM file; None: it cannot be read, which its owner says."""
    try:
        with file.open("rb") as stream:
            found = x509.load_pem_x509_certificates(stream.read(CERTIFICATE_BYTES_MAX))[0]
    except (OSError, ValueError, IndexError):
        return None
    begins, ends = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    return Expiring("page", name, ends, ends - begins)
