"""What the templates show, ready to be shown: words, numbers and geometry. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlencode

from muster_controller.api.rollout_views import member_views, rollout_detail
from muster_controller.api.schemas import EvidencePointView, ModelView, RolloutDetail, Status
from muster_controller.api.schemas.rollouts import WaveView
from muster_controller.api.standing import Standing
from muster_controller.core.rollout.explain import Explained, Why
from muster_controller.core.rollout.state import ENDED, Outcome, Rollout, RolloutState
from muster_controller.web.actions import ActionPanel, actions
from muster_controller.web.charts import EvidenceChart, Segment, evidence_chart, segments
from muster_shared.messages import Step

SQUARES_MAX = 1200  # Squares a rollout; more would be dust, and a bar says it better.
TONES = 6  # Colours of versions; they repeat.
UNDER_WAY = (Why.UNDER_WAY,)  # These are told, and stand among the devices of their wave.


@dataclass(frozen=True)
class Tile:
    label: str
    count: int
    hint: str
    tone: str
    href: str


@dataclass(frozen=True)
class ModelBar:
    model: str
    baseline: str | None
    segments: tuple[Segment, ...]
    total: int


@dataclass(frozen=True)
class Square:
    tone: str
    title: str
    device: str


@dataclass(frozen=True)
class WavePanel:
    name: str
    state: str
    """done, current or ahead."""
    words: str
    squares: tuple[Square, ...]
    bar: tuple[Segment, ...]


@dataclass(frozen=True)
class MetricRow:
    """One metric against what would stop the rollout by it alone."""

    name: str
    e: float
    alone_at: float
    classes: tuple[tuple[str, float], ...]
    is_held: bool


@dataclass(frozen=True)
class RolloutPanel:
    detail: RolloutDetail
    headline: str
    share: float
    waves: tuple[WavePanel, ...]
    chart: EvidenceChart
    chart_words: str
    metrics: tuple["MetricRow", ...]
    began: float
    ended: float
    actions: tuple[ActionPanel, ...] = field(default=())


def tiles(status: Status) -> tuple[Tile, ...]:
    """Return the fleet at a glance."""
    counts = status.standings

    def tile(label: str, standing: Standing, hint: str, tone: str) -> Tile:
        return Tile(
            label, counts.get(standing, 0), hint, tone, "/?" + urlencode({"state": standing.value}) + "#devices"
        )

    return (
        Tile("online", status.online, f"of {status.devices}", "calm", "/?online=true#devices"),
        tile("on desired", Standing.CURRENT, "run what they should", "good"),
        tile("updating", Standing.UPDATING, "fetch or test now", "busy"),
        tile("behind", Standing.BEHIND, "have not begun", "wait"),
        tile("failing", Standing.FAILING, "could not change", "bad"),
    )


def model_bars(models: Sequence[ModelView]) -> tuple[ModelBar, ...]:
    """Return the versions that serve, oldest first, for each model that serves anywhere."""
    bars = []
    for model in models:
        known = [version for version in model.versions if version in model.devices]
        gone = sorted(version for version in model.devices if version not in model.versions)
        counts = [(version, model.devices[version]) for version in (*gone, *known)]
        if counts:
            bars.append(ModelBar(model.name, model.baseline, segments(counts), sum(count for _, count in counts)))
    return tuple(bars)


def rollout_panel(rollout: Rollout, points: Sequence[EvidencePointView], now: float) -> RolloutPanel:
    """Return one rollout with its waves, squares, evidence and what can be ordered."""
    detail = rollout_detail(rollout, now)
    counts = detail.counts
    ended = rollout.ended_at if rollout.ended_at is not None else now
    line = [(rollout.created_at, 1.0), *((point.at, point.e) for point in points if point.at > rollout.created_at)]
    if line[-1][0] < ended:
        line.append((ended, detail.e))
    ended = line[-1][0]  # Reports still arrive after an abort, and are counted.
    return RolloutPanel(
        detail=detail,
        headline=_headline(rollout),
        share=(counts.good + counts.bad) / counts.devices if counts.devices else 0.0,
        waves=_wave_panels(rollout, detail.wave_views),
        chart=evidence_chart(line, detail.hold_at, detail.abort_at),
        chart_words=(
            f"Evidence that {detail.version} does harm: E is {number(detail.e)} now. Promotion holds from "
            f"{detail.hold_at:g}, and the rollout is aborted at {detail.abort_at:g}."
        ),
        metrics=metric_rows(detail),
        began=rollout.created_at,
        ended=ended,
        actions=actions(rollout, now),
    )


def metric_rows(detail: RolloutDetail) -> tuple[MetricRow, ...]:
    """Return each metric in use; `alone_at` is where it would abort if it were the only one to speak."""
    return tuple(
        MetricRow(
            name=name,
            e=each.e,
            alone_at=detail.abort_at / detail.terms.weights[name],
            classes=tuple(sorted(each.e_classes.items())),
            is_held=each.e >= detail.hold_at,
        )
        for name, each in detail.evidence.metrics.items()
    )


def waiting_counts(waiting: Sequence[Explained]) -> tuple[tuple[str, int], ...]:
    """Return for how many devices each reason holds, the most frequent first."""
    return tuple((each.value, count) for each, count in Counter(found.why for found in waiting).most_common())


def _headline(rollout: Rollout) -> str:
    before = "" if rollout.previous is None else f" over {rollout.previous.version}"
    return f"{rollout.model} {rollout.release.version}{before}"


def _wave_panels(rollout: Rollout, views: Sequence[WaveView]) -> tuple[WavePanel, ...]:
    draws_squares = len(rollout.members) + len(rollout.controls) <= SQUARES_MAX
    members: dict[int | None, list[Square]] = {}
    for view in member_views(rollout) if draws_squares else ():
        tone: str = view.outcome
        if view.arm == "control":
            tone = "control-pending" if view.outcome == "left" else f"control-{view.outcome}"
        elif view.arm == "waiting" or view.outcome == "left" or view.assigned_at is None:
            tone = "waiting"
        elif view.returned:
            tone = f"returned-{view.outcome}"
        elif tone == "pending" and view.step == Step.SWITCHED.value:
            tone = "probation"
        step = "" if view.step is None else f", {view.step.replace('_', ' ')}"
        why = f": {view.reason}" if view.reason else ""
        title = f"{view.device} ({view.device_class}), {view.arm}, {view.outcome}{step}{why}"
        members.setdefault(view.wave, []).append(Square(tone, title, view.device))
    panels = []
    for wave in views:
        if wave.wave > rollout.wave:
            continue
        pending = f", {wave.pending} pending" if wave.pending else ""
        pending += f" ({wave.deferred} deferred)" if wave.deferred else ""
        pending += f", {wave.queued} queued" if wave.queued else ""
        pending += f", {wave.left} left" if wave.left else ""
        held = f"; {wave.controls} held back to compare" if wave.controls else ""
        panels.append(
            WavePanel(
                name=f"Wave {wave.wave + 1}",
                state="current" if wave.wave == rollout.wave and rollout.state not in ENDED else "done",
                words=f"{wave.devices} devices: {wave.good} good, {wave.bad} bad{pending}{held}",
                squares=tuple(members.get(wave.wave, ())),
                bar=segments(
                    (("good", wave.good), ("bad", wave.bad), ("pending", wave.pending), ("waiting", wave.queued))
                ),
            )
        )
    left = sum(member.wave is None and member.outcome is Outcome.PENDING for member in rollout.members.values())
    if left:
        planned = [size for index, size in enumerate(rollout.waves) if index > rollout.wave]
        waves = f" in {len(planned)} waves of {', '.join(map(str, planned))}" if len(planned) > 1 else ""
        is_over = rollout.state in ENDED or rollout.state is RolloutState.ABORTING
        words = f"{left} devices were not touched" if is_over else f"{left} devices wait{waves}"
        squares = tuple(members.get(None, ()))
        panels.append(WavePanel("Not begun", "ahead", words, squares, segments((("waiting", left),))))
    return tuple(panels)


# -- words ---------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return an E as people read it: 0.042, 1.7, 260."""
    if value >= 100:
        return f"{value:,.0f}" if value < 1e4 else f"{value:.1e}"
    return f"{value:.2g}"


HOST = {
    "cpu_percent": ("processor", "{:.0f} %"),
    "memory_percent": ("memory", "{:.0f} %"),
    "disk_percent": ("disk", "{:.0f} %"),
    "temperature_c": ("temperature", "{:.0f} °C"),
    "agent_rss_mb": ("agent's memory", "{:.0f} MB"),
    "throttled": ("held back by heat or power", "{}"),
    "pressure_cpu_percent": ("waited for the processor", "{:.1f} %"),
    "pressure_memory_percent": ("waited for memory", "{:.1f} %"),
    "pressure_io_percent": ("waited for disks", "{:.1f} %"),
    "steal_percent": ("taken by the hypervisor", "{:.1f} %"),
    "battery_percent": ("battery", "{:.0f} %"),
    "energy_j": ("energy since start", "{:,.0f} J"),
    "net_sent_mb": ("sent", "{:,.1f} MB"),
    "net_received_mb": ("received", "{:,.1f} MB"),
}
"""Of `HostTelemetry`: what it is called, and how it is written. What is not here is written as it comes."""


def host_rows(host: Mapping[str, object]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return what a host tells of itself, ready to be read, and the names of what it does not tell."""
    told: list[tuple[str, str]] = []
    untold: list[str] = []
    for key, value in host.items():
        name, form = HOST.get(key, (words(key), "{}"))
        if value is None:
            untold.append("running for" if key == "uptime_s" else name)
        elif key == "uptime_s" and isinstance(value, int | float):
            told.append(("running for", span(value)))
        elif isinstance(value, bool):
            told.append((name, "yes" if value else "no"))
        else:
            told.append((name, form.format(value)))
    return told, untold


def day_time(at: float) -> str:
    """Return a moment of a chart over days: `22 Nov 18:00`, UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%-d %b %H:%M}"


def span(seconds: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 5 h, 3 days."""
    for size, unit in ((172_800, "days"), (7200, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86_400, 'h': 3600, 'min': 60}[unit]:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(at: float, now: float) -> str:
    """Return how long ago `at` was, or how long it is until then."""
    if at <= 0:
        return "never"
    seconds = abs(now - at)
    if seconds < 5:
        return "just now"
    units = ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h"))
    size, unit = next(((size, unit) for limit, size, unit in units if seconds < limit), (86_400, "d"))
    return f"in {seconds / size:.0f} {unit}" if at > now else f"{seconds / size:.0f} {unit} ago"


def clock_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC")


def stamp(at: float) -> str:
    """Return the `datetime` attribute of a <time>."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def size(count: float) -> str:
    """Return bytes in decimal units."""
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB")):
        if count < limit:
            return f"{count / limit * 1e3:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"


def percent(share: float) -> str:
    return f"{share:.0%}"


def words(text: str) -> str:
    """Return an event name as words."""
    return text.replace("_", " ")


def query(current: Mapping[str, str], **changes: str | None) -> str:
    """Return the query string of `current` with `changes`; None takes a field out."""
    merged = {**current, **{key: value for key, value in changes.items() if value is not None}}
    kept = {key: value for key, value in merged.items() if value and changes.get(key, value) is not None}
    return "?" + urlencode(kept)
