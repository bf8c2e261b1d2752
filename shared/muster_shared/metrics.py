"""Content metrics on the wire: anonymous windows from devices to the mixer, noised sums from there to the controller.

    device ── Window, sealed ──▶ metrics/<cohort> ──▶ mixer ── Mixed ──▶ mixed/<mixer> ──▶ controller

A window names what was measured (a `Cell`), never by whom. It distributes `UNITS` units over the classes, buckets or
bins of each `Kind`; a device that serves several models, or several releases in one hour, shares its units out among
their windows. So whatever one device saw in a period moves the sums of a kind, over all cells together, by at most
sqrt(2) * UNITS in L2: the sensitivity that the mixer's noise is made for (docs/decisions/0014).

Pure: bytes and values. Windows are sealed in `sealing`; who sends when, sums, noise and budgets are elsewhere.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final, Literal

import msgspec

from muster_shared import ids
from muster_shared.errors import WireError
from muster_shared.ids import ModelName
from muster_shared.messages import Message

HOUR_S: Final = 3600
DAY_S: Final = 86_400
UNITS: Final = 64
"""What a device has to give of each kind in each period: 64ths of a vote. Shares are rounded to them without bias."""
WINDOW_BYTES: Final = 2048
"""Of every window before it is sealed, padded with spaces: its size says nothing."""
SEALED_BYTES_MAX: Final = 4096
"""Of a whole message on `metrics/<cohort>`."""
NONCE_BYTES: Final = 16
COHORTS: Final = 16
"""Mixers scale out by cohort: which one a cell is in follows from its name, so that all of it meets in one place."""
K_MIN: Final = 20
"""Windows without which a cell is not published."""
CLASSES_MAX: Final = 256
"""Classes beyond the last but one are counted as the last."""
LATENCY_GRID: Final = 4
"""Buckets for each doubling of the fleet's latency histogram: floor(4 log2 us). The device's own has 16."""
REGION_LABEL: Final = "region"
LAB_BEHIND_S: Final = 6 * DAY_S
"""How far behind the wall a lab's fast clock begins; at 360 times the speed it catches up after 24 minutes."""


class Kind(StrEnum):
    """What is counted. Each has its place in a device's units, and its share of the privacy budget."""

    CLASSES = "classes"
    """By the class that an inference came out as."""
    CONFIDENCE = "confidence"
    """Of that class, CONFIDENCE_BINS equal bins of 0..1."""
    LATENCY = "latency"
    """Of the engine, LATENCY_BUCKETS of floor(4 log2 us)."""
    INPUTS = "inputs"
    """By `INPUTS`: what requests were like, error kinds included."""
    DRIFT = "drift"
    """By `DRIFT`: what the device's own detectors say at the end of the period."""
    FEEDBACK = "feedback"
    """Of labelled inferences: 2 * true class + (1 if it was right). The last place, 2 * classes, is of those whose true
    class the release does not know: all wrong, or a release would look the better the less it knows."""


CONFIDENCE_BINS: Final = 20
LATENCY_BUCKETS: Final = 128
INPUTS: Final = ("plain", "out_of_range", "outlier", "not_finite", "refused", "failed", "timed_out", "rejected")
"""A request is counted once, as the last of these that fits it; the first four were answered."""
DRIFT: Final = ("quiet", "drifting", "skewed", "unknown")

WEIGHTS: Final[Mapping[Kind, float]] = {
    Kind.CLASSES: 0.64,
    Kind.FEEDBACK: 0.14,
    Kind.CONFIDENCE: 0.06,
    Kind.LATENCY: 0.06,
    Kind.INPUTS: 0.06,
    Kind.DRIFT: 0.04,
}
"""How the budget of a period is shared out. They add up to 1."""


class Cell(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """What a window tells of: nothing that the controller does not know of thousands of devices anyway."""

    model: ModelName
    version: str
    device_class: str
    region: str = ""
    """The label REGION_LABEL that the fleet granted to the device; empty: none."""
    classes: int = 0
    """How many classes the release has, CLASSES_MAX at most, from its manifest; 0: none, as for a regression."""

    def dim(self, kind: Kind) -> int:
        """Return the length of the vector of `kind`."""
        match kind:
            case Kind.CLASSES:
                return self.classes
            case Kind.CONFIDENCE:
                return CONFIDENCE_BINS if self.classes else 0
            case Kind.LATENCY:
                return LATENCY_BUCKETS
            case Kind.INPUTS:
                return len(INPUTS)
            case Kind.DRIFT:
                return len(DRIFT)
            case Kind.FEEDBACK:
                return 2 * self.classes + 1 if self.classes else 0


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """One device's part in one cell and period. Devices send one for each cell that they are in, also when nothing was
    asked of them: that somebody sent says nothing of what he saw."""

    cell: Cell
    period_start: int
    """Unix seconds, a multiple of `period_s`."""
    period_s: Literal[3600, 86400]
    """A day: of hours that could not be sent in time, merged."""
    nonce: str
    """NONCE_BYTES of randomness in hex: what comes twice is counted once."""
    units: dict[Kind, bytes]
    """Packed (`pack`); a kind that the release's allow-list lacks, or that nothing was measured of, is not there."""
    v: Literal[1] = 1


class Sealed(Message, frozen=True, kw_only=True):
    """What is on `metrics/<cohort>`: a window that only the mixer can open (HPKE, RFC 9180: X25519, HKDF-SHA256,
    ChaCha20-Poly1305), and neither the broker nor whoever owns it."""

    key: str
    """Which key of the mixer: `key_id`."""
    box: bytes


class Mixed(Message, frozen=True, kw_only=True):
    """The noised sums of one cell and period: what is on `mixed/<mixer>`. At least once, idempotent by `batch`."""

    batch: str
    """A name of its own, 1-64 characters as an id."""
    mixer: str
    cell: Cell
    period_start: int
    period_s: int
    devices: int
    """Windows in it, exact: who takes part is known anyway, only what he saw is not. >= K_MIN."""
    late: bool = False
    """Beside the sums of this period that were published before: other devices, which came late."""
    sums: dict[Kind, tuple[int, ...]]
    """In units, with noise: may be negative. `cell.dim(kind)` long. Every kind that the cell can have is there,
    whatever the windows held, as noise alone if need be: whether anybody measured it is as private as what."""
    sigma: dict[Kind, float]
    """Of the discrete Gaussian noise on each number, in units."""
    mixed_at: float


class MixedAck(Message, frozen=True, kw_only=True):
    """Batches that are safe in the controller's database, on `mixed/<mixer>/ack`."""

    batches: tuple[str, ...]


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """One day of the ledger of a mixer. rho of zero-concentrated differential privacy (Bun and Steinke 2016)."""

    day: int
    """Days since 1970 of what was measured."""
    rho_spent: float
    rho_budget: float


class MixerState(Message, frozen=True, kw_only=True):
    """How a mixer is: retained on `mixed/<mixer>/state`."""

    mixer: str
    sent_at: float
    key: str
    cohorts: tuple[int, ...]
    delta: float
    eps_day: float
    eps_30_days: float
    k_min: int
    budgets: tuple[Budget, ...] = ()
    """Newest first, 40 at most."""
    windows: int = 0
    """Taken since the ledger was begun; the next four were not."""
    refused: int = 0
    repeated: int = 0
    too_late: int = 0
    suppressed: int = 0
    """Windows of cells that had fewer than k_min."""
    out_of_budget: int = 0
    """Cells that were not published because the budget was spent."""


def metrics_time(wall: float, speed: float = 1.0, since: float = 0.0) -> float:
    """Return the time of the metrics, Unix seconds. In the field it is that on the wall.

    In a lab it passes `speed` times as fast, beginning LAB_BEHIND_S before `since` (a moment on the wall that all parts
    of the lab are told), so that it stays in the past for as long as a demonstration takes.
    """
    return wall if speed == 1.0 else since - LAB_BEHIND_S + (wall - since) * speed


def latency_place(latency_us: float) -> int:
    """Return the bucket of a latency in `Kind.LATENCY`: floor(4 log2 us), the first for 1 us and less."""
    if latency_us <= 1.0:
        return 0
    return min(LATENCY_BUCKETS - 1, math.floor(LATENCY_GRID * math.log2(latency_us)))


# -- packing -----------------------------------------------------------------------------------------------------------


def pack(counts: Mapping[int, int] | Iterable[tuple[int, int]]) -> bytes:
    """Return a sparse histogram as (gap, count) pairs of LEB128 numbers; zeros are left out."""
    packed = bytearray()
    last = -1
    for index, count in sorted(counts.items() if isinstance(counts, Mapping) else counts):
        assert index > last, "an index comes once"
        assert count >= 0, "nothing is counted less than never"
        if count:
            _put(packed, index - last - 1)
            _put(packed, count)
            last = index
    return bytes(packed)


def unpack(packed: bytes, dim: int) -> dict[int, int]:
    """Return index -> count, ascending. Raises WireError: not packed by `pack`, or an index of `dim` or beyond."""
    counts: dict[int, int] = {}
    at, index = 0, -1
    while at < len(packed):
        gap, at = _take(packed, at)
        count, at = _take(packed, at)
        index += gap + 1
        if index >= dim or not count:
            raise WireError(f"a histogram of {dim} has no place {index}, or nothing in it")
        counts[index] = count
    return counts


def _put(packed: bytearray, number: int) -> None:
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)


def _take(packed: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(packed) or shift > 56:
            raise WireError("a histogram that ends in the middle of a number")
        byte = packed[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


# -- windows -----------------------------------------------------------------------------------------------------------


def cohort(cell: Cell) -> int:
    """Return the cohort of `cell`, 0 <= it < COHORTS."""
    name = "\0".join((cell.model, cell.version, cell.device_class, cell.region))
    return hashlib.sha256(name.encode()).digest()[0] % COHORTS


def key_id(public_key: bytes) -> str:
    """Return the name of a mixer's key: the first 16 hex digits of SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def units(window: Window, kind: Kind) -> Mapping[int, int]:
    """Return index -> units of `kind`; of a checked window, UNITS in sum at most. Raises WireError."""
    return unpack(window.units.get(kind, b""), window.cell.dim(kind))


def check_cell(cell: Cell) -> None:
    """Raises WireError: it has no names, or too many classes."""
    ids.name(cell.model, "model")
    ids.version(cell.version)
    ids.name(cell.device_class, "device class")
    if cell.region:
        ids.name(cell.region, "region")
    if not 0 <= cell.classes <= CLASSES_MAX:
        raise WireError(f"a cell of {cell.classes} classes; 0 to {CLASSES_MAX}")


def problems(window: Window) -> Iterator[str]:
    """Say what is wrong with a window from outside, without repeating anything of it."""
    try:
        check_cell(window.cell)
    except WireError:
        yield "a window of a cell without names"
    if len(window.nonce) != 2 * NONCE_BYTES or not set(window.nonce) <= set("0123456789abcdef"):
        yield "a window without a nonce"
    if not 0 <= window.period_start < 1 << 40 or window.period_start % window.period_s:
        yield "a window of no period"
    for kind in window.units:
        try:
            if sum(units(window, kind).values()) > UNITS:
                yield "a window that gives more than it has"
        except WireError:
            yield "a window that does not unpack"


# -- privacy -----------------------------------------------------------------------------------------------------------

RHO_DAY: Final = 0.1
"""Of everything that one device tells of one day: eps 2.45 a day, 15.9 over 30 days, at DELTA."""
DELTA: Final = 1e-6
RELEASES_A_DAY: Final = 25
"""Twenty-four hours, and one day for what could not be sent in time."""


def sigma(kind: Kind, *, rho_day: float = RHO_DAY) -> float:
    """Return the standard deviation of the noise on each number of `kind`, in units.

    A device that is put in the place of another moves the vector by sqrt(2) * UNITS at most, and Gaussian noise of
    sigma costs sensitivity^2 / (2 sigma^2) of rho (Bun and Steinke 2016, proposition 1.6).
    """
    rho = rho_day / RELEASES_A_DAY * WEIGHTS[kind]
    return float(UNITS / rho**0.5)


def eps(rho: float, delta: float = DELTA) -> float:
    """Return eps of (eps, delta) that rho-zCDP implies: rho + 2 sqrt(rho ln(1/delta)) (Bun and Steinke 2016, 1.3)."""
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))
