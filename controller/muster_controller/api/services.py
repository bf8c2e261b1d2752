"""What the routes and the page stand on, made by `server` and handed to the app."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from muster_controller.alerts.desk import AlertDesk
from muster_controller.api.authentication import Edge, Who
from muster_controller.api.hub import Hub
from muster_controller.api.rollout_presence import Seats
from muster_controller.api.rollout_views import rollout_summary
from muster_controller.api.schemas import ExpiryView, Status, VersionView
from muster_controller.api.standing import sums
from muster_controller.api.views import newest_baselines
from muster_controller.audit.book import AuditBook
from muster_controller.calling import CallDesk
from muster_controller.core.metrics.statement import markdown
from muster_controller.core.rollout.roll import Roll, roll_of
from muster_controller.core.rollout.state import Rollout
from muster_controller.core.selector import parse
from muster_controller.db.device_samples import DeviceSamples
from muster_controller.db.hold_store import HoldStore
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.db.once_store import OnceStore
from muster_controller.db.reader import LedgerReader
from muster_controller.db.sample_store import SampleStore
from muster_controller.db.snapshot import Committed
from muster_controller.db.view_store import ViewStore
from muster_controller.errors import NotFound
from muster_controller.export.reading import MetricsReading
from muster_controller.fleet import Fleet
from muster_controller.fleet_index.part import part_of
from muster_controller.gateway.fleet_thread import FleetThread
from muster_controller.holds import Holds
from muster_controller.identity.desk import IdentityDesk
from muster_controller.metrics.stating import stated
from muster_controller.operators.oidc import Oidc
from muster_controller.operators.roles import Principal
from muster_controller.operators.service import Operators
from muster_controller.ports import Device
from muster_controller.rehearsing import Rehearsals
from muster_controller.releases import Releases
from muster_controller.review.desk import ReviewDesk
from muster_controller.served import Served
from muster_shared import ids
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId
from muster_shared.messages import ReleaseRef


@dataclass(frozen=True)
class Services:
    fleet_id: FleetId
    version: str
    broker_url: str
    """Without a password."""
    online_keys: Callable[[], bytes]
    """The public halves of this controller's keys, as `muster init --online-keys` takes them."""
    started_at: float
    clock: Callable[[], float]
    committed: Callable[[], Committed]
    reader: LedgerReader
    releases: Releases
    fleet: FleetThread
    hub: Hub
    broker_connected: Callable[[], bool]
    counters: Callable[[], dict[str, int]]
    operators: Operators
    edge: Edge
    audit: AuditBook
    identity: IdentityDesk
    alerts: AlertDesk
    metrics: MetricsStore
    metrics_reading: MetricsReading
    reviews: ReviewDesk
    once: OnceStore
    holds: Holds
    """Which devices rollouts leave alone, as of a moment ago."""
    hold_store: HoldStore
    calls: CallDesk
    device_samples: DeviceSamples
    fleet_samples: SampleStore
    views: ViewStore
    open_lab: bool = False
    """Whether the broker takes anybody on this machine."""
    oidc: Oidc | None = None
    viewer: Principal | None = None
    """Whose eyes these services see with; None: the controller's own."""
    whole: Callable[[], Committed] | None = None
    """Where `committed` is a part: all of it."""
    page_certificate: Path | None = None
    """The file with the certificate of page and API; None: they speak plain HTTP."""
    served: Served = field(default_factory=Served)
    seats: Seats = field(default_factory=Seats)
    rehearsals: Rehearsals = field(default_factory=Rehearsals)

    def seen_by(self, who: Principal) -> "Services":
        """Return the services as `who` may see them: of the fleet, its devices alone."""
        if not who.selector:
            return replace(self, viewer=who)
        found: list[Committed] = []

        def committed() -> Committed:
            if not found:
                found.append(part_of(self.committed(), parse(who.selector)))
            return found[0]

        return replace(self, viewer=who, committed=committed, whole=self.committed)

    @property
    def is_partial(self) -> bool:
        """Whether some devices are out of sight."""
        return self.viewer is not None and bool(self.viewer.selector)

    @property
    def eyes(self) -> str:
        """The selector of what is in sight; empty: everything."""
        return "" if self.viewer is None else self.viewer.selector

    def sees(self, device: str) -> bool:
        return not self.is_partial or DeviceId(device) in self.committed().devices

    def sees_subject(self, subject: str) -> bool:
        """Return whether a line of history about `subject` may be told: all but other people's devices."""
        return self.whole is None or self.sees(subject) or DeviceId(subject) not in self.whole().devices

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def device(self, device: DeviceId) -> Device:
        """Raises NotFound."""
        found = self.committed().devices.get(device)
        if found is None:
            raise NotFound("device", device)
        return found

    def rollout(self, rollout: RolloutId) -> Rollout:
        """Raises NotFound."""
        found = self.find_rollout(rollout)
        if found is None:
            raise NotFound("rollout", rollout)
        return found

    def rollout_id(self, rollout: str) -> RolloutId:
        """Return the id of a rollout that there is, without reading it. Raises NotFound."""
        found = RolloutId(rollout)
        if found not in self.committed().running and not self.reader.has_rollout(found):
            raise NotFound("rollout", found)
        return found

    def roll(self, rollout: Rollout) -> Roll:
        """Return the roll of a rollout that these services returned: followed where it is, else taken now."""
        fleet = self.committed()
        if fleet.running.get(rollout.id) is rollout and rollout.id in fleet.rolls:
            return fleet.rolls[rollout.id]
        return self.reader.ended.roll(rollout) or roll_of(rollout)

    def find_rollout(self, rollout: RolloutId) -> Rollout | None:
        return self.committed().running.get(rollout) or self.reader.rollout(rollout)

    def release(self, model: str, version: str) -> ReleaseRef:
        """Return a published release. Raises NotFound, and WireError where these are no names."""
        name, number = ModelName(ids.name(model, "model")), ids.version(version)
        found = self.releases.release(name, number)
        if found is None:
            raise NotFound("model", f"{model} {version}")
        return found

    def expiries(self) -> list[ExpiryView]:
        if not self.releases.repository.is_ready:
            return []
        return [
            ExpiryView(role=each.role, version=each.version, expires_at=each.expires.timestamp())
            for each in self.releases.repository.expiries()
        ]

    def status(self) -> Status:
        """Return the fleet at a glance."""
        fleet = self.committed()
        found = sums(fleet)
        running = sorted(fleet.running.values(), key=lambda rollout: rollout.created_at, reverse=True)
        return Status(
            fleet=self.fleet_id,
            version=self.version,
            uptime_s=self.clock() - self.started_at,
            broker_url=self.broker_url,
            broker_connected=self.broker_connected(),
            open_lab=self.open_lab,
            initialised=self.releases.repository.is_ready,
            devices=found.devices,
            online=found.online,
            standings=dict(found.standings),
            classes=dict(found.classes),
            versions=[
                VersionView(model=each.model, version=each.version, release=each.release, devices=each.devices)
                for each in found.versions
            ],
            baselines=newest_baselines(fleet),
            rollouts=[rollout_summary(rollout, fleet.tallies.get(rollout.id)) for rollout in running],
            expiries=self.expiries(),
            counters=self.counters(),
        )

    def statement(self) -> str:
        """Return the privacy statement with the parameters in force, as Markdown."""
        return markdown(stated(self.fleet_id, self.clock(), self.releases, self.metrics))

    async def republish_trust(self, what: str, subject: str, detail: str) -> None:
        """Say the trust metadata to the fleet again, because it changed, and write down what did."""

        def say(fleet: Fleet) -> None:
            fleet.publish_trust()
            fleet.note(what, subject, detail)

        await self.fleet.call(say)


async def services(request: Request) -> Services:
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


async def _seen(who: Who, found: Annotated[Services, Depends(services)]) -> Services:
    return found.seen_by(who)


Given = Annotated[Services, Depends(_seen)]
"""The services, as the principal may see them."""
Bare = Annotated[Services, Depends(services)]
"""The services themselves: for the few routes that nobody has to be known for."""
