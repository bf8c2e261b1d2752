"""Pages of devices."""

from fastapi import Request
from fastapi.responses import HTMLResponse

from muster_controller.api.services import Given
from muster_controller.api.views import device_detail, event_view
from muster_controller.web.frame import pages, render
from muster_shared.ids import DeviceId

EVENTS_SHOWN = 30

router = pages()


@router.get("/devices/{device_id}")
def device_page(request: Request, given: Given, device_id: str) -> HTMLResponse:
    device = given.device(DeviceId(device_id))
    events = given.reader.events(device=device.id, limit=EVENTS_SHOWN)
    return render(
        request,
        "device.html",
        device=device_detail(device, given.committed().desired.get(device.id)),
        events=[event_view(entry) for entry in events],
        now=given.clock(),
    )
