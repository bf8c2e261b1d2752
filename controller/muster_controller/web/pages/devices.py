"""The page of one device."""

from typing import Annotated

from fastapi import Query, Request
from fastapi.responses import HTMLResponse

from muster_controller.api.device_actions import call_view
from muster_controller.api.services import Given, Services
from muster_controller.api.views import device_detail, event_view
from muster_controller.identity.enrolment import Identity
from muster_controller.identity.errors import IdentityUnknown
from muster_controller.ports import Device
from muster_controller.web import device_present
from muster_controller.web.frame import pages, render
from muster_shared.ids import DeviceId

EVENTS_SHOWN = 30
EVENTS_READ = 200
"""Of which its updates are put together."""
CALLS_SHOWN = 5

router = pages()


@router.get("/devices/{device_id}")
def device_page(
    request: Request, given: Given, device_id: str, before: Annotated[int | None, Query(ge=1)] = None
) -> HTMLResponse:
    device = given.device(DeviceId(device_id))
    fleet, now = given.committed(), given.clock()
    granted = {} if given.open_lab else given.identity.labels(device.id)
    detail = device_detail(device, fleet.desired.get(device.id), granted, given.holds(device.id))
    newest = given.reader.events(device=device.id, limit=EVENTS_READ)
    shown = (
        given.reader.events(device=device.id, before=before, limit=EVENTS_SHOWN) if before else newest[:EVENTS_SHOWN]
    )
    given.device_samples.watch(device.id)
    identity = _identity(given, device.id)
    return render(
        request,
        "device.html",
        device=detail,
        rows=device_present.differences(detail),
        updates=device_present.updates([(entry.taken_at, entry.event) for entry in newest]),
        charts=device_present.charts(given.device_samples.samples(device.id), _targets(given, device)),
        actions=device_present.actions(detail),
        calls=[call_view(each, now) for each in given.calls.store.calls(device.id, CALLS_SHOWN)],
        identity=identity,
        certificates=() if identity is None else given.identity.enrolment.certificates(device.id),
        events=[event_view(entry) for entry in shown],
        before=before,
        older=shown[-1].ordinal if len(shown) == EVENTS_SHOWN else None,
        now=now,
    )


def _identity(given: Services, device: DeviceId) -> Identity | None:
    try:
        return given.identity.enrolment.identity(device)
    except IdentityUnknown:
        return None


def _targets(given: Services, device: Device) -> dict[str, float]:
    """Return what the releases that serve declare of their latency, by model."""
    found: dict[str, float] = {}
    for each in device.twin.models if device.twin is not None else ():
        manifest = None if each.active is None else given.releases.manifest(each.active.bundle_sha256)
        if manifest is not None and manifest.slo.latency_ms_p95 is not None:
            found[each.model] = manifest.slo.latency_ms_p95
    return found
