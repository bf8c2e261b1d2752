"""Routes: devices, one by one and as lists, and the list as a file."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from muster_controller.api.asking import filter_of
from muster_controller.api.authentication import require
from muster_controller.api.device_export import csv_pieces, json_pieces
from muster_controller.api.schemas import DeviceDetail, DevicePage, DeviceView
from muster_controller.api.schemas.labels import DeviceListing, DeviceQuestion
from muster_controller.api.services import Given, Services
from muster_controller.api.views import device_detail, device_view
from muster_controller.fleet_index.view import Filter, parse_order
from muster_controller.operators.roles import Permission
from muster_shared.ids import DeviceId

router = APIRouter(tags=["devices"], dependencies=[require(Permission.VIEW)])


@router.get("/devices")
def list_devices(given: Given, asked: Annotated[DeviceListing, Query()]) -> DevicePage:
    """Devices to which every given filter applies."""
    fleet = given.committed()
    found = fleet.view.page(filter_of(asked, given), parse_order(asked.sort), asked.cursor, asked.limit)
    return DevicePage(
        devices=[device_view(fleet.devices[each], fleet.desired.get(each)) for each in found.devices],
        found=found.total,
        next=found.next,
    )


@router.get(
    "/devices.csv",
    response_class=StreamingResponse,
    responses={200: {"description": "A header and a line for each device.", "content": {"text/csv": {}}}},
)
def devices_as_csv(given: Given, asked: Annotated[DeviceQuestion, Query()]) -> StreamingResponse:
    """All devices to which every given filter applies, by id, as CSV."""
    return _file(csv_pieces(_rows(given, filter_of(asked, given))), "text/csv; charset=utf-8", "devices.csv")


@router.get(
    "/devices.json",
    response_class=StreamingResponse,
    responses={200: {"description": "An array with a line for each device.", "content": {"application/json": {}}}},
)
def devices_as_json(given: Given, asked: Annotated[DeviceQuestion, Query()]) -> StreamingResponse:
    """All devices to which every given filter applies, by id, as one JSON array."""
    return _file(json_pieces(_rows(given, filter_of(asked, given))), "application/json", "devices.json")


def _rows(given: Services, wanted: Filter) -> Iterator[DeviceView]:
    fleet = given.committed()  # As of one commit, however long it takes to send it.
    return (device_view(fleet.devices[each], fleet.desired.get(each)) for each in fleet.view.devices(wanted))


def _file(pieces: Iterator[str], media_type: str, name: str) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(pieces, media_type=media_type, headers=headers)


@router.get("/devices/{device_id}")
def show_device(given: Given, device_id: str) -> DeviceDetail:
    """One device: what it reports, what it should run, and what its slots hold."""
    device = given.device(DeviceId(device_id))
    granted = {} if given.open_lab else given.identity.labels(device.id)
    return device_detail(device, given.committed().desired.get(device.id), granted, given.holds(device.id))
