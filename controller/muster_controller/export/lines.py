"""What an export is on the way: JSON Lines, a line for each vector of noised sums and for each point of a series.

Files have a row for each number (`tables`); whoever asks makes them, so that the controller needs no Parquet.
"""

from collections.abc import Sequence

import msgspec

from muster_controller.core.metrics.series import Series
from muster_controller.core.metrics.sums import MixedSum
from muster_shared.errors import WireError
from muster_shared.metrics import DRIFT, INPUTS, Kind
from muster_shared.undecodable import UNDECODABLE, reason

MEDIA_TYPE = "application/x-ndjson"


class SumsLine(msgspec.Struct, frozen=True, kw_only=True):
    """The noised sums of one kind of one cell and period. As `core.metrics.sums.MixedSum`."""

    batch: str
    kind: Kind
    model: str
    version: str
    device_class: str
    region: str
    period_start: float
    period_s: int
    devices: int
    periods: int
    late: bool
    sums: tuple[int, ...]
    sigma: float
    labels: tuple[str, ...] = ()
    """Of the indices, as far as they have names."""


class SeriesLine(msgspec.Struct, frozen=True, kw_only=True):
    """One point of a series. As `core.metrics.series.Series`; `model` is empty of whole devices."""

    model: str
    version: str
    device_class: str
    region: str
    period_start: float
    period_s: int
    devices: int
    requests: int
    errors: int
    slow: int
    inferences: int
    cpu_ms: float
    energy_j: float | None
    bytes_sent: float
    bytes_received: float
    latency_ms_p95_max: float | None
    cpu_percent_max: float | None
    cpu_percent_mean: float | None


def sums_line(found: MixedSum, classes: Sequence[str]) -> bytes:
    """Return the line, with its end. `classes`: what the classes of the release are called; empty: nobody says."""
    line = SumsLine(
        batch=found.batch,
        kind=found.kind,
        model=found.cell.model,
        version=found.cell.version,
        device_class=found.cell.device_class,
        region=found.cell.region,
        period_start=found.period_start,
        period_s=found.period_s,
        devices=found.devices,
        periods=found.periods,
        late=found.late,
        sums=found.sums,
        sigma=found.variance**0.5,
        labels=_labels(found.kind, classes),
    )
    return msgspec.json.encode(line) + b"\n"


def series_line(found: Series) -> bytes:
    """Return the line, with its end."""
    group = msgspec.to_builtins(found.group)
    fields = {name: getattr(found, name) for name in SeriesLine.__struct_fields__ if hasattr(found, name)}
    return msgspec.json.encode(SeriesLine(**group, **fields, period_start=found.at)) + b"\n"


def parse_sums(line: bytes) -> SumsLine:
    """Raises WireError: it is no such line."""
    try:
        return msgspec.json.decode(line, type=SumsLine)
    except UNDECODABLE as error:
        raise WireError(f"not a line of noised sums: {reason(error)}") from error


def parse_series(line: bytes) -> SeriesLine:
    """Raises WireError: it is no such line."""
    try:
        return msgspec.json.decode(line, type=SeriesLine)
    except UNDECODABLE as error:
        raise WireError(f"not a line of a series: {reason(error)}") from error


def _labels(kind: Kind, classes: Sequence[str]) -> tuple[str, ...]:
    match kind:
        case Kind.CLASSES:
            return tuple(classes)
        case Kind.FEEDBACK:
            known = [f"{name}, {said}" for name in classes for said in ("wrong", "right")]
            return (*known, "class that the release does not know, wrong") if known else ()
        case Kind.INPUTS:
            return INPUTS
        case Kind.DRIFT:
            return DRIFT
        case Kind.CONFIDENCE | Kind.LATENCY:
            return ()
