"""What the pages of rollouts show: waves and their devices, the evidence over time, control against treated. Pure."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10, sqrt
from typing import TypeGuard

from muster_controller.api.report import POINTS_MAX, thinned, wilson
from muster_controller.api.rollout_views import member_views, rollout_detail
from muster_controller.api.schemas import EvidencePointView, RolloutDetail
from muster_controller.api.schemas.rollout_report import RolloutReport, ShareView
from muster_controller.api.schemas.rollouts import MemberView, StratumView, WaveView
from muster_controller.core.gate.strata import LATENCY_STEP
from muster_controller.core.rollout.explain import Why
from muster_controller.core.rollout.outlook import is_waiting
from muster_controller.core.rollout.roll import Roll, roll_of
from muster_controller.core.rollout.state import ENDED, Rollout, RolloutState
from muster_controller.core.rollout.words import devices
from muster_controller.web.actions import ActionPanel, actions
from muster_controller.web.charts import Segment, segments
from muster_controller.web.plots import Axis, Mark, Plot, Series, Shape, Tone
from muster_controller.web.present import number, words
from muster_shared.messages import Step

SQUARES_MAX = 1200  # Squares a rollout; more would be dust, and a bar says it better.
UNDER_WAY = (Why.UNDER_WAY, Why.DONE)  # These are told, and stand among the devices of their wave.
WAVE_MARKS_MAX = 12
CLASSES_MAX = 40
E_LOW = 1e-3  # Below this a line would only say "very little", ...
E_HIGH = 1e3  # ... and beyond so many times the limit only "very much".
_Z = 1.96  # Of a 95 % interval.
_METRIC_TONES = {"failures": Tone.V3, "latency": Tone.V4, "agreement": Tone.V2}


@dataclass(frozen=True)
class Square:
    tone: str
    title: str
    device: str
    """Empty: whoever looks may not know its name."""


@dataclass(frozen=True)
class WavePanel:
    name: str
    state: str
    """done, current or ahead."""
    words: str
    squares: tuple[Square, ...]
    bar: tuple[Segment, ...]
    began_at: float | None = None
    soak_ends_at: float | None = None


@dataclass(frozen=True)
class MetricRow:
    """One metric against what would stop the rollout by it alone."""

    name: str
    e: float
    alone_at: float
    classes: tuple[tuple[str, float], ...]
    is_held: bool


@dataclass(frozen=True)
class ArmRow:
    """One device class, treated against held back; None: nobody to ask."""

    name: str
    treated: ShareView | None
    controls: ShareView | None
    slower: tuple[float, float, float, int] | None
    """Mean change of p95 against the device's own controls, its 95 % interval, and of how many pairs."""
    disagreed: ShareView | None


@dataclass(frozen=True)
class RolloutPanel:
    detail: RolloutDetail
    headline: str
    share: float
    waves: tuple[WavePanel, ...]
    plot: Plot
    metrics: tuple[MetricRow, ...]
    actions: tuple[ActionPanel, ...] = field(default=())

    @property
    def policy(self) -> tuple[tuple[str, str], ...]:
        return policy_rows(self.detail.policy_written)


def rollout_panel(
    rollout: Rollout,
    points: Sequence[EvidencePointView],
    now: float,
    sees: Callable[[str], bool] = lambda _: True,
    roll: Roll | None = None,
) -> RolloutPanel:
    """Return one rollout with its waves, squares, evidence and what can be ordered.

    Args:
        sees: who may be named.
        roll: of the rollout, where it is at hand.
    """
    roll = roll_of(rollout) if roll is None else roll
    detail = rollout_detail(rollout, now, roll)
    counts = detail.counts
    return RolloutPanel(
        detail=detail,
        headline=headline(detail),
        share=(counts.good + counts.bad) / counts.devices if counts.devices else 0.0,
        waves=_wave_panels(rollout, roll, detail.wave_views, sees),
        plot=evidence_plot(detail, points, now),
        metrics=metric_rows(detail),
        actions=actions(rollout, now, roll),
    )


def headline(detail: RolloutDetail) -> str:
    before = "" if detail.previous is None else f" over {detail.previous}"
    return f"{detail.model} {detail.version}{before}"


def policy_rows(written: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Return what a policy says beyond its defaults, as names and values that people read."""
    return tuple(
        (words(name.removesuffix("_s")), _length(value) if name.endswith("_s") and _is_number(value) else _told(value))
        for name, value in written.items()
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _length(seconds: float) -> str:
    """Return a time in the largest unit that says it exactly."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def _told(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case Mapping():
            pairs = policy_rows({str(name): each for name, each in value.items()})
            return ", ".join(f"{name} {each}" for name, each in pairs) or "none"
        case list() | tuple():
            joint = "; " if any(isinstance(each, Mapping) for each in value) else ", "
            return joint.join(_told(each) for each in value) or "none"
        case None:
            return "none"
        case _:
            return str(value)


# -- evidence ------------------------------------------------------------------------------------------------------


def evidence_plot(detail: RolloutDetail, points: Sequence[EvidencePointView], now: float) -> Plot:
    """Return E over time, and that of each metric where there are several, against where it holds and aborts."""
    metrics = {name: each.e for name, each in detail.evidence.metrics.items()}
    return _evidence(detail, metrics, detail.wave_views, points, now)


def report_plot(found: RolloutReport) -> Plot:
    """Return the same of a report."""
    metrics = {each.metric: each.e for each in found.metrics}
    return _evidence(found, metrics, found.waves, found.points, found.written_at)


def _evidence(
    said: RolloutDetail | RolloutReport,
    metrics: Mapping[str, float],
    waves: Sequence[WaveView],
    points: Sequence[EvidencePointView],
    now: float,
) -> Plot:
    end = said.ended_at if said.ended_at is not None else now
    known = thinned([point for point in points if point.at > said.created_at], POINTS_MAX)
    ceiling = said.abort_at * E_HIGH

    def line(values: Sequence[tuple[float, float]], last: float) -> list[tuple[float, float | None]]:
        found = [(said.created_at, 1.0), *values]
        if found[-1][0] < end:  # Reports still arrive after an abort, and are counted.
            found.append((end, last))
        return [(at, min(max(e, E_LOW), ceiling)) for at, e in found]

    whole = Series("E", line([(point.at, point.e) for point in known], said.e), shape=Shape.STEP)
    parts = [
        Series(
            name,
            line([(point.at, point.metrics[name]) for point in known if name in point.metrics], e),
            tone=_METRIC_TONES.get(name, Tone.IDLE),
            shape=Shape.STEP,
        )
        for name, e in metrics.items()
        if len(metrics) > 1
    ]
    begun = [Mark(f"wave {wave.wave + 1}", x=wave.began_at) for wave in waves if wave.began_at is not None]
    everything = [e for series in (whole, *parts) for _, e in series.points if e is not None]
    return Plot(
        id=f"evidence-{said.id}",
        title="Evidence of harm, E (log scale)",
        words=(
            f"Evidence that {said.version} does harm: E is {number(said.e)} now. Below {said.hold_at:g} waves are"
            f" promoted, from there on promotion holds, and at {said.abort_at:g} the rollout is aborted."
        ),
        series=(*parts, whole),
        marks=(
            Mark(f"hold {number(said.hold_at)}", y=said.hold_at, tone=Tone.WAIT),
            Mark(f"abort {number(said.abort_at)}", y=said.abort_at, tone=Tone.BAD),
            *begun[:WAVE_MARKS_MAX],
        ),
        is_log=True,
        low=10.0 ** floor(log10(min(0.1, *everything))),
        high=10.0 ** ceil(log10(max(said.abort_at * 2, *everything))),
    )


def metric_rows(detail: RolloutDetail) -> tuple[MetricRow, ...]:
    """Return each metric in use; `alone_at` is where it would abort if it were the only one to speak."""
    return tuple(
        MetricRow(
            name=name,
            e=each.e,
            alone_at=detail.abort_at / detail.terms.weights[name],
            classes=tuple(sorted(each.e_classes.items()))[:CLASSES_MAX],
            is_held=each.e >= detail.hold_at,
        )
        for name, each in detail.evidence.metrics.items()
    )


# -- control against treated ---------------------------------------------------------------------------------------


def arm_rows(strata: Sequence[StratumView]) -> tuple[ArmRow, ...]:
    """Return the classes over all waves, the largest first, and all of them together where there are several."""
    by_class: dict[str, list[StratumView]] = {}
    for each in strata:
        by_class.setdefault(each.device_class, []).append(each)
    rows = [_arm(name, found) for name, found in by_class.items()]
    rows.sort(key=lambda row: (-(0 if row.treated is None else row.treated.of), row.name))
    return (*rows[:CLASSES_MAX], *((_arm("all classes", strata),) if len(rows) > 1 else ()))


def _arm(name: str, strata: Sequence[StratumView]) -> ArmRow:
    def total(count: str, of: str) -> ShareView | None:
        return wilson(sum(getattr(each, count) for each in strata), sum(getattr(each, of) for each in strata))

    bins: Counter[int] = Counter()
    for each in strata:
        bins.update(dict(each.latency))
    return ArmRow(
        name,
        total("treated_bad", "treated"),
        total("controls_bad", "controls"),
        _slower(bins),
        total("disagreed", "compared"),
    )


def _slower(bins: Mapping[int, int]) -> tuple[float, float, float, int] | None:
    """Return the mean change of p95 as a relative one (log is close enough to it here), and its normal interval."""
    pairs = sum(bins.values())
    if not pairs:
        return None
    values = [((place + 0.5) * LATENCY_STEP, count) for place, count in bins.items()]
    mean = sum(value * count for value, count in values) / pairs
    if pairs < 2:
        return mean, mean, mean, pairs
    spread = sqrt(sum(count * (value - mean) ** 2 for value, count in values) / (pairs - 1))
    half = _Z * spread / sqrt(pairs)
    return mean, mean - half, mean + half, pairs


def arms_plot(rollout: str, rows: Sequence[ArmRow]) -> Plot:
    """Return the failures of each class, treated beside held back, in percent."""

    def bars(name: str, tone: Tone, shares: Sequence[ShareView | None]) -> Series:
        points = [(float(place), None if each is None else 100 * each.share) for place, each in enumerate(shares)]
        return Series(name, points, tone=tone, shape=Shape.BAR)

    return Plot(
        id=f"arms-{rollout}",
        title="Failures, treated against held back",
        words="Failed devices of each class, in percent, of those that have the release and of those held back.",
        series=(
            bars("treated", Tone.ACCENT, [row.treated for row in rows]),
            bars("held back", Tone.V5, [row.controls for row in rows]),
        ),
        x=Axis.NAME,
        names=[row.name for row in rows],
        unit=" %",
        low=0.0,
        height=160,
    )


# -- waves and devices ---------------------------------------------------------------------------------------------


def waiting_counts(counts: Mapping[Why, int]) -> tuple[tuple[Why, int], ...]:
    """Return for how many devices each reason holds, the most frequent first, without those under way."""
    found = [(why, count) for why, count in counts.items() if why not in UNDER_WAY]
    return tuple(sorted(found, key=lambda each: (-each[1], each[0].value)))


def _wave_panels(
    rollout: Rollout, roll: Roll, views: Sequence[WaveView], sees: Callable[[str], bool]
) -> tuple[WavePanel, ...]:
    draws_squares = len(rollout.members) + len(rollout.controls) <= SQUARES_MAX
    members: dict[int | None, list[Square]] = {}
    for view in member_views(rollout) if draws_squares else ():
        members.setdefault(view.wave, []).append(_square(view, is_named=sees(view.device)))
    panels = []
    for wave in views:
        if wave.wave > rollout.wave:
            continue
        pending = f", {wave.pending} pending" if wave.pending else ""
        pending += f" ({wave.deferred} deferred)" if wave.deferred else ""
        pending += f", {wave.queued} queued" if wave.queued else ""
        pending += f", {wave.left} left" if wave.left else ""
        held = f"; {wave.controls} held back to compare" if wave.controls else ""
        is_current = wave.wave == rollout.wave and rollout.state not in ENDED
        panels.append(
            WavePanel(
                name=f"Wave {wave.wave + 1}",
                state="current" if is_current else "done",
                words=f"{devices(wave.devices)}: {wave.good} good, {wave.bad} bad{pending}{held}",
                squares=tuple(members.get(wave.wave, ())),
                bar=segments(
                    (("good", wave.good), ("bad", wave.bad), ("pending", wave.pending), ("waiting", wave.queued))
                ),
                began_at=wave.began_at,
                soak_ends_at=wave.soak_ends_at,
            )
        )
    left = roll.count(is_waiting)
    if left:
        planned = [size for index, size in enumerate(rollout.waves) if index > rollout.wave]
        waves = f" in {len(planned)} waves of {', '.join(map(str, planned))}" if len(planned) > 1 else ""
        is_over = rollout.state in ENDED or rollout.state is RolloutState.ABORTING
        words = f"{devices(left)} not touched" if is_over else f"{devices(left)} waiting{waves}"
        squares = tuple(members.get(None, ()))
        panels.append(WavePanel("Not begun", "ahead", words, squares, segments((("waiting", left),))))
    return tuple(panels)


def _square(view: MemberView, *, is_named: bool) -> Square:
    tone: str = view.outcome
    if view.arm == "control":
        tone = "control-pending" if view.outcome == "left" else f"control-{view.outcome}"
    elif view.arm == "waiting" or view.outcome == "left" or view.assigned_at is None:
        tone = "waiting"
    elif view.returned:
        tone = f"returned-{view.outcome}"
    elif tone == "pending" and view.step == Step.SWITCHED.value:
        tone = "probation"
    if not is_named:
        return Square(tone, f"another's device ({view.device_class}), {view.arm}, {view.outcome}", "")
    step = "" if view.step is None else f", {view.step.replace('_', ' ')}"
    why = f": {view.reason}" if view.reason else ""
    title = f"{view.device} ({view.device_class}), {view.arm}, {view.outcome}{step}{why}"
    return Square(tone, title, view.device)
