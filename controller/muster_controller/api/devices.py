"""Routes: devices."""

from typing import Annotated

from fastapi import APIRouter, Query

from muster_controller.api.authentication import require
from muster_controller.api.fleet import Limit
from muster_controller.api.schemas import DeviceDetail, DevicePage
from muster_controller.api.services import Given
from muster_controller.api.standing import Standing, select
from muster_controller.api.views import device_detail, device_view
from muster_controller.operators.roles import Permission
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId

router = APIRouter(prefix="/devices", tags=["devices"], dependencies=[require(Permission.VIEW)])


def parse_labels(labels: list[str]) -> dict[str, str]:
    """Return `key=value` words as a dictionary. Raises WireError."""
    pairs = [label.partition("=") for label in labels]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise WireError(f"a label is written key=value, not {key!r}")
    return {key: value for key, _, value in pairs}


@router.get("")
def list_devices(
    given: Given,
    state: Standing | None = None,
    online: bool | None = None,
    device_class: Annotated[str | None, Query(alias="class")] = None,
    label: Annotated[list[str] | None, Query(description="key=value; repeat it.")] = None,
    q: Annotated[str | None, Query(description="Part of the id.")] = None,
    limit: Limit = 100,
    cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> DevicePage:
    """Devices to which every given filter applies, by id."""
    fleet = given.committed()
    found = select(
        fleet,
        state=state,
        online=online,
        of_class=device_class,
        labels=parse_labels(label or []),
        text=q,
        after=None if cursor is None else DeviceId(cursor),
    )
    views = [device_view(device, fleet.desired.get(device.id)) for device, _ in zip(found, range(limit), strict=False)]
    return DevicePage(devices=views, next=views[-1].id if len(views) == limit else None)


@router.get("/{device_id}")
def show_device(given: Given, device_id: str) -> DeviceDetail:
    """One device: what it reports, what it should run, and what its slots hold."""
    device = given.device(DeviceId(device_id))
    granted = {} if given.open_lab else given.identity.labels(device.id)
    return device_detail(device, given.committed().desired.get(device.id), granted)
