"""What the templates show, ready to be shown: words, numbers and geometry. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlencode

from muster_controller.api.schemas import EvidencePointView, ModelView, RolloutDetail, Status
from muster_controller.api.standing import Standing
from muster_controller.api.views import member_views, rollout_detail, wave_views
from muster_controller.core.rollout import ENDED, Order, Outcome, Rollout, RolloutState
from muster_controller.web.charts import EvidenceChart, Segment, evidence_chart, segments
from muster_shared.messages import Step

SQUARES_MAX = 1200  # Squares a rollout; more would be dust, and a bar says it better.
TONES = 6  # Colours of versions; they repeat.


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
class ActionPanel:
    """A button and what it will do to how many devices."""

    order: Order
    title: str
    consequence: str
    is_dangerous: bool


@dataclass(frozen=True)
class RolloutPanel:
    detail: RolloutDetail
    headline: str
    share: float
    waves: tuple[WavePanel, ...]
    chart: EvidenceChart
    chart_words: str
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
    detail = rollout_detail(rollout)
    counts = detail.counts
    ended = rollout.ended_at if rollout.ended_at is not None else now
    line = [(point.at, point.e) for point in points] or [(rollout.created_at, 1.0)]
    if line[-1][0] < ended:
        line.append((ended, detail.e))
    ended = line[-1][0]  # Reports still arrive after an abort, and are counted.
    return RolloutPanel(
        detail=detail,
        headline=_headline(rollout),
        share=(counts.good + counts.bad) / counts.devices if counts.devices else 0.0,
        waves=_wave_panels(rollout),
        chart=evidence_chart(line, detail.hold_at, detail.abort_at),
        chart_words=(
            f"Evidence that {detail.version} does harm: E is {number(detail.e)} now. Promotion holds from "
            f"{detail.hold_at:g}, and the rollout is aborted at {detail.abort_at:g}."
        ),
        began=rollout.created_at,
        ended=ended,
        actions=_actions(rollout),
    )


def _headline(rollout: Rollout) -> str:
    before = "" if rollout.previous is None else f" over {rollout.previous.version}"
    return f"{rollout.model} {rollout.release.version}{before}"


def _wave_panels(rollout: Rollout) -> tuple[WavePanel, ...]:
    draws_squares = len(rollout.members) + len(rollout.controls) <= SQUARES_MAX
    members: dict[int | None, list[Square]] = {}
    for view in member_views(rollout) if draws_squares else ():
        tone: str = "waiting" if view.arm == "waiting" else view.outcome
        if view.arm == "control":
            tone = f"control-{view.outcome}"
        elif view.returned:
            tone = f"returned-{view.outcome}"
        elif tone == "pending" and view.step == Step.SWITCHED.value:
            tone = "probation"
        step = "" if view.step is None else f", {view.step.replace('_', ' ')}"
        why = f": {view.reason}" if view.reason else ""
        title = f"{view.device} ({view.device_class}), {view.arm}, {view.outcome}{step}{why}"
        members.setdefault(view.wave, []).append(Square(tone, title, view.device))
    panels = []
    for wave in wave_views(rollout):
        if wave.wave > rollout.wave:
            continue
        pending = f", {wave.pending} pending" if wave.pending else ""
        held = f"; {wave.controls} held back to compare" if wave.controls else ""
        panels.append(
            WavePanel(
                name=f"Wave {wave.wave + 1}",
                state="current" if wave.wave == rollout.wave and rollout.state not in ENDED else "done",
                words=f"{wave.devices} devices: {wave.good} good, {wave.bad} bad{pending}{held}",
                squares=tuple(members.get(wave.wave, ())),
                bar=segments((("good", wave.good), ("bad", wave.bad), ("pending", wave.pending))),
            )
        )
    left = sum(member.wave is None for member in rollout.members.values())
    if left:
        planned = [size for index, size in enumerate(rollout.waves) if index > rollout.wave]
        waves = f" in {len(planned)} waves of {', '.join(map(str, planned))}" if len(planned) > 1 else ""
        is_over = rollout.state in ENDED or rollout.state is RolloutState.ABORTING
        words = f"{left} devices were not touched" if is_over else f"{left} devices wait{waves}"
        squares = tuple(members.get(None, ()))
        panels.append(WavePanel("Not begun", "ahead", words, squares, segments((("waiting", left),))))
    return tuple(panels)


def _actions(rollout: Rollout) -> tuple[ActionPanel, ...]:
    touched = sum(member.wave is not None for member in rollout.members.values())
    pending = sum(member.wave is not None and member.outcome is Outcome.PENDING for member in rollout.members.values())
    left = len(rollout.members) - touched
    version = rollout.release.version
    previous = None if rollout.previous is None else rollout.previous.version
    if previous is None:
        back = f"{devices(touched)} keep {version}, because there is no release before it"
    elif rollout.policy.on_abort == "stop":
        back = f"{devices(touched)} keep {version}, because the policy says stop"
    else:
        back = f"{devices(touched)} go back to {previous}"
    pause = ActionPanel(
        Order.PAUSE,
        "Pause",
        f"No further wave begins: {devices(left)} stay as they are. {devices(pending).capitalize()} under way go on, "
        "and the evidence can still abort it.",
        False,
    )
    resume = ActionPanel(
        Order.RESUME,
        "Resume",
        f"You let wave {rollout.wave + 1} pass whatever the gate says of it, and {devices(left)} that wait are next.",
        False,
    )
    abort = ActionPanel(Order.ABORT, "Abort", f"{back[0].upper()}{back[1:]}. {devices(left)} get nothing.", True)
    match rollout.state:
        case RolloutState.RUNNING:
            return (pause, abort)
        case RolloutState.PAUSED:
            return (resume, abort)
        case RolloutState.FINISHED if previous is not None:
            consequence = f"{devices(touched)} go back to {previous}, and it is what the fleet runs again."
            return (ActionPanel(Order.ROLL_BACK, "Roll back", consequence, True),)
        case _:
            return ()


# -- words ---------------------------------------------------------------------------------------------------------


def devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count:,} devices"


def number(value: float) -> str:
    """Return an E as people read it: 0.042, 1.7, 260."""
    if value >= 100:
        return f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"
    return f"{value:.2g}"


def ago(at: float, now: float) -> str:
    """Return how long ago `at` was."""
    seconds = now - at
    if at <= 0:
        return "never"
    if seconds < 5:
        return "just now"
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} d ago"


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
