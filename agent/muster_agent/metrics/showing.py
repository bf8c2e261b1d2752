"""What would be sent next, and what would not: the answer to `muster-agent metrics --show`. It changes nothing."""

from collections.abc import Callable, Mapping, Sequence
from random import Random, SystemRandom

import msgspec

from muster_agent.core.periods import LATE_S, SPREAD_S, end_of
from muster_agent.metrics.book import Book, Key, Stage, Totals
from muster_agent.metrics.port import Release
from muster_agent.metrics.sending import Mixer
from muster_agent.metrics.windows import dim
from muster_shared.errors import WireError
from muster_shared.ids import FleetId, ModelName
from muster_shared.metrics import (
    CLASSES_MAX,
    CONFIDENCE_BINS,
    DAY_S,
    DRIFT,
    HOUR_S,
    INPUTS,
    LATENCY_GRID,
    UNITS,
    Cell,
    Kind,
    Window,
    cohort,
    units,
)
from muster_shared.topics import MetricsTopic, build

SHOWN_MAX = 200
ANONYMOUS = (
    f"A window says of one release and one hour how its inferences were spread, in {UNITS} units that all releases of "
    "this device share, and of this device only its class and region. It carries no name, address or time of day below "
    "the hour. It is sealed to the mixer: neither broker nor controller can read it. The mixer adds the windows "
    "of at least 20 devices, adds noise, and tells the controller the sums alone. No input, no single inference and "
    "nothing that the release's metrics.allow does not name is in it."
)
Labels = Callable[[Release], Sequence[str]]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """One window, opened."""

    state: str
    """`running`: of the hour that is not over, as it would be now; `waiting`; `under way`."""
    model: str
    version: str
    device_class: str
    region: str
    period_start: int
    period_s: int
    inferences: int
    """They are not in the window."""
    kinds: dict[str, dict[str, int]]
    """What is in it: units by what they stand for."""
    left_out: dict[str, str]
    """Kinds that are not in it, and why."""
    topic: str
    bytes: int | None
    """Of the whole message; None: nobody to seal it to."""
    nonce: str
    earliest: float
    """When it may leave, seconds of the metrics' clock."""
    latest: float | None
    """It leaves before that, if the link is there: an hour, or else it goes into its day. None: a day waits."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    hours: int = 0
    days: int = 0
    windows: int = 0
    merging: int = 0
    """Parts of days that are not over, or not decided."""
    inferences: int = 0
    oldest: int | None = None
    """When the oldest of it began."""


class Showing(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    anonymous: str = ANONYMOUS
    enabled: bool = True
    running: bool = True
    """Whether the agent runs; else this is what its journal says."""
    waits_for: str
    """Why nothing leaves; empty: it does."""
    mixer: str | None
    """The id of the key to which windows are sealed."""
    at: float | None
    """Of the metrics' clock."""
    next: tuple[Shown, ...]
    shown_max: int = SHOWN_MAX
    waiting: Waiting
    totals: Totals


def showing(
    book: Book,
    due: Mapping[Key, float],
    at: float | None,
    *,
    fleet: FleetId,
    mixer: Mixer | None,
    waits_for: str,
    random: Random,
    labels: Labels = lambda release: (),
    spread_s: float = SPREAD_S,
    running: bool = True,
) -> Showing:
    """Return what there is to see.

    Args:
        due: The moments that were drawn.
        random: For the windows that the running hour would make now; those that count are drawn when it is over.
        labels: The names of a release's classes, as far as they are known.
    """
    size = None if mixer is None else _size(mixer)
    shown = [
        _shown(
            part.window,
            part.counted.release,
            part.counted.inferences,
            "under way" if part.stage is Stage.UNDER_WAY else "waiting",
            (due.get(part.key, _earliest(part.key, at)), _latest(part.key)),
            (fleet, size, labels),
        )
        for part in sorted(book.parts.values(), key=lambda part: due.get(part.key, _earliest(part.key, at)))
        if part.window is not None
    ]
    counted = {each.release: each.inferences for each in book.running.counted}
    for release, window in book.preview(random).items():
        end = end_of(window.period_start, HOUR_S)
        moments = (float(end), float(end + spread_s))
        shown.append(_shown(window, release, counted[release], "running", moments, (fleet, size, labels)))
    starts = {(part.period_s, part.start) for part in book.parts.values()}
    return Showing(
        running=running,
        waits_for=waits_for,
        mixer=None if mixer is None else mixer.key,
        at=at,
        next=tuple(shown[:SHOWN_MAX]),
        waiting=Waiting(
            hours=sum(1 for period_s, _ in starts if period_s == HOUR_S),
            days=sum(1 for period_s, _ in starts if period_s == DAY_S),
            windows=sum(1 for part in book.parts.values() if part.window is not None),
            merging=sum(1 for part in book.parts.values() if part.stage is Stage.MERGING),
            inferences=sum(part.counted.inferences for part in book.parts.values()),
            oldest=min((start for _, start in starts), default=None),
        ),
        totals=book.totals,
    )


def from_journal(book: Book, fleet: FleetId, spread_s: float) -> Showing:
    """Return what the journal of an agent that does not run says."""
    return showing(
        book,
        {},
        None,
        fleet=fleet,
        mixer=None,
        waits_for="no agent answers here; what it seals to is known once one does",
        random=SystemRandom(),
        spread_s=spread_s,
        running=False,
    )


def _shown(
    window: Window,
    release: Release,
    inferences: int,
    state: str,
    moments: tuple[float, float | None],
    where: tuple[FleetId, int | None, Labels],
) -> Shown:
    fleet, size, labels = where
    names = labels(release)
    return Shown(
        state=state,
        model=window.cell.model,
        version=window.cell.version,
        device_class=window.cell.device_class,
        region=window.cell.region,
        period_start=window.period_start,
        period_s=window.period_s,
        inferences=inferences,
        kinds={
            kind.value: {_name(kind, index, names): count for index, count in units(window, kind).items()}
            for kind in Kind
            if kind in window.units
        },
        left_out={kind.value: _why(release, kind) for kind in Kind if kind not in window.units},
        topic=build(fleet, MetricsTopic(cohort(window.cell))),
        bytes=size,
        nonce=window.nonce,
        earliest=moments[0],
        latest=moments[1],
    )


def _why(release: Release, kind: Kind) -> str:
    if kind not in release.allow:
        return "the release's metrics.allow does not name it"
    if not dim(release, kind):
        return "the release has no classes"
    return "nothing was counted, or too little for a unit"


def _name(kind: Kind, index: int, labels: Sequence[str]) -> str:
    match kind:
        case Kind.CLASSES:
            return _label(index, labels)
        case Kind.FEEDBACK if labels and index == 2 * min(len(labels), CLASSES_MAX):
            return "a class that the release does not know, so wrong"
        case Kind.FEEDBACK:
            return f"{_label(index // 2, labels)} {'right' if index % 2 else 'wrong'}"
        case Kind.CONFIDENCE:
            return f"{index / CONFIDENCE_BINS:.2f}-{(index + 1) / CONFIDENCE_BINS:.2f}"
        case Kind.LATENCY:
            return f"{_time(index)}-{_time(index + 1)}"
        case Kind.INPUTS:
            return INPUTS[index]
        case Kind.DRIFT:
            return DRIFT[index]


def _label(index: int, labels: Sequence[str]) -> str:
    return labels[index] if index < len(labels) else f"class {index}"


def _time(bucket: int) -> str:
    us = 2.0 ** (bucket / LATENCY_GRID)
    return f"{us:.3g} us" if us < 1e3 else f"{us / 1e3:.3g} ms" if us < 1e6 else f"{us / 1e6:.3g} s"


def _earliest(key: Key, at: float | None) -> float:
    return max(float(end_of(key.start, key.period_s)), at or 0.0)


def _latest(key: Key) -> float | None:
    return float(end_of(key.start, key.period_s) + LATE_S) if key.period_s == HOUR_S else None


def _size(mixer: Mixer) -> int | None:
    """Return how long each message is: all are of one length, whatever is in them."""
    from muster_shared.sealing import seal

    cell = Cell(model=ModelName("any"), version="0.0.0", device_class="any")
    empty = Window(cell=cell, period_start=0, period_s=HOUR_S, nonce="", units={})
    try:
        return len(seal(empty, mixer.public_key))
    except WireError:
        return None
