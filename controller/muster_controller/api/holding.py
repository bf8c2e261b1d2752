"""Has the fleet do what follows from a hold that was set or lifted, or from an identity that was taken."""

from starlette.concurrency import run_in_threadpool

from muster_controller.api.services import Services
from muster_controller.fleet import Fleet
from muster_shared.ids import DeviceId

SETTLE_S = 5.0
"""So long an order waits until the broker has cut the connection."""


async def apply_holds(given: Services, device: DeviceId, what: str, reason: str) -> None:
    """Read the holds again, have the fleet follow them, and write a line into the device's history.

    Raises FleetUnavailable, LedgerUnavailable: the controller does it by itself in a few seconds, without the line.
    """
    changed = await run_in_threadpool(given.holds.refresh)

    def follow(fleet: Fleet) -> None:
        fleet.held(changed)
        fleet.note(what, device, reason)

    await given.fleet.call(follow)
    given.holds.took(changed)
