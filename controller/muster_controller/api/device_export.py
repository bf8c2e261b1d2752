"""The filtered list as a file, piece by piece: no more than a few hundred rows are ever in memory. Pure."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from muster_controller.api.schemas import DeviceView

ROWS_A_PIECE: Final = 250
COLUMNS: Final = (
    "id",
    "online",
    "standing",
    "class",
    "seen_at",
    "agent_version",
    "labels",
    "serves",
    "should_serve",
    "error",
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def csv_pieces(devices: Iterable[DeviceView]) -> Iterator[str]:
    """Yield RFC 4180 text with a header. What devices say cannot become a formula of a spreadsheet."""
    yield _lines([COLUMNS])
    for piece in _pieces(devices):
        yield _lines([_row(device) for device in piece])


def json_pieces(devices: Iterable[DeviceView]) -> Iterator[str]:
    """Yield one JSON array, a device a line."""
    before = "[\n"
    for piece in _pieces(devices):
        yield before + ",\n".join(device.model_dump_json() for device in piece)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _row(device: DeviceView) -> Sequence[str]:
    seen = datetime.fromtimestamp(device.seen_at, UTC).isoformat(timespec="seconds") if device.seen_at > 0 else ""
    told = (
        device.id,
        "true" if device.online else "false",
        device.standing.value,
        device.device_class,
        seen,
        device.agent_version or "",
        _joined(device.labels, "="),
        _joined(device.active, " "),
        _joined(device.desired, " "),
        device.error or "",
    )
    return [f"'{each}" if each.startswith(_FORMULA) else each for each in told]


def _joined(found: Mapping[str, str], between: str) -> str:
    return "; ".join(f"{key}{between}{value}" for key, value in sorted(found.items()))


def _lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _pieces(devices: Iterable[DeviceView]) -> Iterator[list[DeviceView]]:
    found = iter(devices)
    while piece := list(islice(found, ROWS_A_PIECE)):
        yield piece
