"""The page of a device, ready to be shown: what differs, its updates step by step, and its charts. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from muster_controller.api.schemas import DeviceDetail, ReleaseView
from muster_controller.db.device_samples import KEPT_S, DeviceSample
from muster_controller.holds import HoldKind
from muster_controller.web.plots import Mark, Plot, Series, Tone
from muster_shared.ids import ModelName
from muster_shared.messages import Event, OutcomeReported, Step, StepReached

UPDATES_SHOWN = 10
POINTS_MAX = 300
GAP_S = 600.0
"""Between two samples, from which on a line is broken: nothing is known of the time between."""

_TONES = (Tone.V1, Tone.V2, Tone.V3, Tone.V4, Tone.V0, Tone.V5)
_TONE_OF = {
    Step.COMMITTED: "good",
    Step.ROLLED_BACK: "bad",
    Step.FAILED: "bad",
    Step.CANCELLED: "idle",
    Step.DEFERRED: "wait",
}


@dataclass(frozen=True)
class Difference:
    """One thing that the controller wants and the device reports."""

    what: str
    desired: str
    reported: str
    note: str = ""

    @property
    def differs(self) -> bool:
        return self.desired != self.reported


def differences(device: DeviceDetail) -> list[Difference]:
    """Return the twin, desired against reported: each model, the counter, and the labels that operators gave."""
    rows = [
        Difference(
            f"{slot.model}, serves",
            _named(slot.desired),
            _named(slot.active),
            "" if slot.rollout is None else f"by {slot.rollout}",
        )
        for slot in device.slots
    ]
    rows.append(
        Difference(
            "assignment",
            f"number {device.assignment_counter}" if device.assignment_counter else "none",
            f"number {device.accepted_counter}" if device.accepted_counter else "none",
            "signed, and accepted",
        )
    )
    return rows


def _named(release: ReleaseView | None) -> str:
    return "nothing" if release is None else release.version


@dataclass(frozen=True)
class StepRow:
    step: str
    at: float
    """When the controller heard it, Unix seconds."""
    took_s: float | None
    """Since the step before, by the device's clock."""
    total_s: float
    fetched: int
    """Bytes, in all."""
    detail: str
    tone: str


@dataclass(frozen=True)
class Update:
    """One attempt at one release, with the newest step last."""

    model: str
    version: str
    rollout: str | None
    attempt: int
    steps: tuple[StepRow, ...]
    outcome: str = ""
    good: bool | None = None

    @property
    def began_at(self) -> float:
        return self.steps[0].at

    @property
    def total_s(self) -> float:
        return max(each.total_s for each in self.steps)

    @property
    def fetched(self) -> int:
        return max(each.fetched for each in self.steps)

    @property
    def last(self) -> StepRow:
        return self.steps[-1]


@dataclass
class _Open:
    body: StepReached
    events: list[tuple[float, StepReached]] = field(default_factory=list)
    outcome: OutcomeReported | None = None


def updates(events: Sequence[tuple[float, Event]]) -> list[Update]:
    """Return the newest updates first.

    Args:
        events: Of one device, newest first, each with when it was taken (Unix seconds).
    """
    found: list[_Open] = []
    current: dict[tuple[str, str | None, int], _Open] = {}
    for at, event in reversed(events):
        match event.body:
            case StepReached() as body:
                key = (body.release.bundle_sha256, body.rollout, body.attempt)
                known = current.get(key)
                if known is None or (known.events and body.seconds < known.events[-1][1].seconds):
                    known = current[key] = _Open(body)  # Time went back: it began anew.
                    found.append(known)
                known.events.append((at, body))
            case OutcomeReported() as outcome:
                reported = current.get((outcome.release.bundle_sha256, outcome.rollout, outcome.attempt))
                if reported is not None:
                    reported.outcome = outcome
            case _:
                pass
    return [_update(each) for each in reversed(found[-UPDATES_SHOWN:])]


def _update(found: _Open) -> Update:
    steps: list[StepRow] = []
    before: float | None = 0.0 if found.events[0][1].step is Step.ACCEPTED else None
    for at, body in found.events:
        why = " ".join(part for part in ("" if body.refusal is None else body.refusal.value, body.detail) if part)
        steps.append(
            StepRow(
                step=body.step.value.replace("_", " "),
                at=at,
                took_s=None if before is None else max(0.0, body.seconds - before),
                total_s=body.seconds,
                fetched=body.bytes_fetched,
                detail=why.replace("_", " "),
                tone=_TONE_OF.get(body.step, "busy"),
            )
        )
        before = body.seconds
    return Update(
        model=found.body.release.model,
        version=found.body.release.version,
        rollout=found.body.rollout,
        attempt=found.body.attempt,
        steps=tuple(steps),
        outcome="" if found.outcome is None else found.outcome.reason,
        good=None if found.outcome is None else found.outcome.good,
    )


# -- charts ----------------------------------------------------------------------------------------------------------


def charts(samples: Sequence[DeviceSample], targets: Mapping[str, float] | None = None) -> list[Plot]:
    """Return latency, requests and host over the recorded time.

    Args:
        samples: Oldest first.
        targets: Milliseconds that a model's release declares, by model.
    """
    kept = _thinned(samples)
    names = sorted({name for each in kept for name in each.models})
    nothing = (
        "Nothing is recorded yet: a device is recorded from when somebody first looks at it, and the first figures come"
        " with its next report, within a minute or two."
    )
    latency = Plot(
        id="plot-latency",
        title="Latency, p95",
        words=nothing if not names else f"How long 95 % of the requests took, by model: {', '.join(names)}.",
        series=[
            Series(name, _points(kept, partial(_latency, name)), tone=tone)
            for name, tone in zip(names, _TONES, strict=False)
        ],
        marks=[Mark(f"{name}, declared", y=at) for name, at in sorted((targets or {}).items()) if name in names][:2],
        unit=" ms",
        low=0.0,
    )
    traffic = Plot(
        id="plot-requests",
        title="Requests a minute",
        words=nothing if len(kept) < 2 else "Requests a minute, by model.",
        series=[
            Series(name, _rate(kept, name), tone=tone)
            for name, tone in zip(names, _TONES, strict=False)
            if len(kept) > 1
        ],
        low=0.0,
    )
    shares: tuple[tuple[str, Tone, Callable[[DeviceSample], float | None]], ...] = (
        ("processor", Tone.V1, lambda each: each.cpu_percent),
        ("memory", Tone.V2, lambda each: each.memory_percent),
        ("disk", Tone.V3, lambda each: each.disk_percent),
    )
    host = Plot(
        id="plot-host",
        title="Host",
        words=nothing if not kept else "How much of the host's processor, memory and disk is in use.",
        series=[
            Series(name, points, tone=tone)
            for name, tone, points in ((name, tone, _points(kept, read)) for name, tone, read in shares)
            if any(y is not None for _, y in points)
        ],
        unit=" %",
        low=0.0,
        high=100.0,
    )
    found = [latency, traffic, host]
    heat = _points(kept, lambda each: each.temperature_c)
    if any(y is not None for _, y in heat):
        found.append(
            Plot(
                id="plot-heat",
                title="Temperature",
                words="How warm the host is.",
                series=[Series("temperature", heat, tone=Tone.BUSY)],
                unit=" °C",
            )
        )
    return found


def _thinned(samples: Sequence[DeviceSample]) -> list[DeviceSample]:
    step = -(-len(samples) // POINTS_MAX) or 1
    kept = list(samples[::step])
    if kept and samples[-1] is not kept[-1]:
        kept.append(samples[-1])
    return kept


def _points(
    kept: Sequence[DeviceSample], read: Callable[[DeviceSample], float | None]
) -> list[tuple[float, float | None]]:
    """Return the points of a line, broken where nothing was heard for GAP_S."""
    found: list[tuple[float, float | None]] = []
    for each in kept:
        if found and each.at - found[-1][0] > max(GAP_S, 3 * KEPT_S / POINTS_MAX):
            found.append((found[-1][0] + 1.0, None))
        found.append((each.at, read(each)))
    return found


def _latency(name: ModelName, sample: DeviceSample) -> float | None:
    found = sample.models.get(name)
    return None if found is None else found.latency_ms_p95


def _rate(kept: Sequence[DeviceSample], name: ModelName) -> list[tuple[float, float | None]]:
    """Return requests a minute between one sample and the next; a count that fell began anew."""
    found: list[tuple[float, float | None]] = []
    for before, after in pairwise(kept):
        was, now = before.models.get(name), after.models.get(name)
        apart_s = after.at - before.at
        if was is None or now is None or now.requests < was.requests or apart_s <= 0:
            found.append((after.at, None))
        else:
            found.append((after.at, (now.requests - was.requests) * 60.0 / apart_s))
    return found


# -- what is ordered -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Action:
    """A button with its dialog. `id` is that of the button."""

    id: str
    title: str
    order: str
    consequence: str
    is_dangerous: bool = False
    permission: str = "operate"


def actions(device: DeviceDetail) -> list[Action]:
    """Return what can be ordered of the device as it is held now, each with what it will do."""
    serves = ", ".join(f"{model} {version}" for model, version in sorted(device.active.items())) or "nothing"
    kind = None if device.hold is None else device.hold.kind
    found: list[Action] = []
    if kind is HoldKind.PINNED:
        found.append(
            Action(
                "unpin",
                "Unpin",
                "unpin",
                "Rollouts take this device again. If its group runs another release by now, it gets that.",
            )
        )
    elif kind is None:
        found.append(
            Action(
                "pin",
                "Pin",
                "pin",
                f"This device stays on what it serves now ({serves}). Rollouts and rollbacks leave it alone until it is"
                " unpinned; an update that is under way on it is called off, and counts for nothing.",
            )
        )
    if kind is HoldKind.QUARANTINED or kind is HoldKind.GONE:
        found.append(
            Action("release", "Release", "release", "Rollouts take this device again, and what it reports counts.")
        )
    elif kind is not HoldKind.REVOKED:
        found.append(
            Action(
                "quarantine",
                "Quarantine",
                "quarantine",
                f"This device leaves every rollout, and what it reports from now on counts for nothing. It goes on"
                f" serving {serves}.",
            )
        )
    found.append(
        Action(
            "decommission",
            "Decommission",
            "decommission",
            "This device loses its identity and its connection for good, leaves every rollout, and the fleet forgets"
            f" what it runs ({serves}). Its history and the audit log stay. To be back it enrols with a new key.",
            is_dangerous=True,
            permission="administer",
        )
    )
    return found
