"""What the routes and the page stand on, made by `server` and handed to the app."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request

from muster_controller.api.hub import Hub
from muster_controller.api.schemas import ExpiryView, Status, VersionView
from muster_controller.api.standing import sums
from muster_controller.api.views import rollout_summary
from muster_controller.core.rollout import Rollout
from muster_controller.db.reader import LedgerReader
from muster_controller.db.snapshot import Committed
from muster_controller.errors import NotFound
from muster_controller.fleet import Fleet
from muster_controller.gateway.fleet_thread import FleetThread
from muster_controller.ports import Device
from muster_controller.releases import Releases
from muster_shared.ids import DeviceId, FleetId, RolloutId


@dataclass(frozen=True)
class Services:
    fleet_id: FleetId
    version: str
    broker_url: str
    """Without a password."""
    online_keys: bytes
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
        found = self.committed().running.get(rollout) or self.reader.rollout(rollout)
        if found is None:
            raise NotFound("rollout", rollout)
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
            initialised=self.releases.repository.is_ready,
            devices=found.devices,
            online=found.online,
            standings=dict(found.standings),
            classes=dict(found.classes),
            versions=[
                VersionView(model=each.model, version=each.version, release=each.release, devices=each.devices)
                for each in found.versions
            ],
            baselines={name: baseline.release.version for name, baseline in sorted(fleet.baselines.items())},
            rollouts=[rollout_summary(rollout) for rollout in running],
            expiries=self.expiries(),
            counters=self.counters(),
        )

    async def republish_trust(self) -> None:
        """Say the trust metadata to the fleet again, because it changed."""
        await self.fleet.call(Fleet.publish_trust)


def services(request: Request) -> Services:
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


Given = Annotated[Services, Depends(services)]
