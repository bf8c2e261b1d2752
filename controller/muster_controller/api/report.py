"""The report of a rollout: from the rollout, its history and its chart to one document, and to Markdown. Pure."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from math import ceil, exp, sqrt

from muster_controller.api.rollout_views import rollout_detail
from muster_controller.api.schemas import EvidencePointView, NoteView, RolloutDetail
from muster_controller.api.schemas.rollout_report import (
    ClassView,
    FailureView,
    MetricReport,
    RolloutReport,
    ShareView,
    SpreadView,
    TimelineEntry,
)
from muster_controller.core.rollout.roll import Group, Roll, roll_of
from muster_controller.core.rollout.state import Member, Outcome, Rollout, is_in_flight
from muster_controller.policy_document import dump

CLASSES_MAX = 100
FAILURES_MAX = 50
EXAMPLES_MAX = 5
TIMELINE_MAX = 500
POINTS_MAX = 300
_Z = 1.96  # Of a 95 % interval.


def report(
    rollout: Rollout,
    points: Sequence[EvidencePointView],
    notes: Sequence[NoteView],
    now: float,
    sees: Callable[[str], bool] = lambda _: True,
    roll: Roll | None = None,
) -> RolloutReport:
    """Return the report as of `now`.

    Args:
        notes: Of the history, those about this rollout, in any order.
        sees: Whether a device may be named to whoever reads this.
        roll: Of the rollout, where it is at hand.
    """
    roll = roll_of(rollout) if roll is None else roll
    detail = rollout_detail(rollout, now, roll)
    seconds: list[float] = []
    ratios: list[float] = []
    for member in rollout.members.values():
        if member.seconds > 0:
            seconds.append(member.seconds)
        if member.latency is not None:
            ratios.append(exp(member.latency))
    bad = roll.names(roll.where(lambda member: member.outcome is Outcome.BAD))
    failures, others = _failures([rollout.members[name] for name in bad], sees)
    return RolloutReport(
        id=detail.id,
        model=detail.model,
        version=detail.version,
        previous=detail.previous,
        state=detail.state,
        reason=detail.reason,
        outlook=detail.outlook,
        selector=detail.selector,
        at_once=detail.at_once,
        created_by=detail.created_by,
        created_at=detail.created_at,
        ended_at=detail.ended_at,
        seconds=(now if detail.ended_at is None else detail.ended_at) - detail.created_at,
        written_at=now,
        counts=detail.counts,
        e=detail.e,
        hold_at=detail.hold_at,
        abort_at=detail.abort_at,
        metrics=[
            MetricReport(
                metric=name,
                e=each.e,
                alone_at=detail.abort_at / detail.terms.weights[name],
                e_classes=dict(sorted(each.e_classes.items())[:CLASSES_MAX]),
            )
            for name, each in detail.evidence.metrics.items()
        ],
        classes=_classes(roll, detail),
        failures=failures,
        other_failures=others,
        waves=detail.wave_views,
        timeline=timeline(detail, notes)[-TIMELINE_MAX:],
        update_s=spread(seconds),
        latency_ratio=spread(ratios),
        bytes_fetched=detail.counts.bytes_fetched,
        policy=detail.policy,
        policy_document=dump(rollout.policy),
        points=thinned(points, POINTS_MAX),
    )


def timeline(detail: RolloutDetail, notes: Sequence[NoteView]) -> list[TimelineEntry]:
    """Return what happened, oldest first: the history's lines, and the gate's verdicts with what they went by."""
    found = [TimelineEntry(at=each.at, what=each.what, detail=each.detail, by=each.actor) for each in notes]
    for verdict in detail.verdicts:
        strata = verdict.evidence.strata
        counts = (
            f"E {verdict.evidence.e:.3g}; bad: {sum(each.treated_bad for each in strata)} of"
            f" {sum(each.treated for each in strata)}, held back {sum(each.controls_bad for each in strata)} of"
            f" {sum(each.controls for each in strata)}"
        )
        found.append(
            TimelineEntry(
                at=verdict.at,
                what=f"verdict_{verdict.kind}",
                detail=f"wave {verdict.wave + 1}: {verdict.reason} ({counts})",
                by="gate",
            )
        )
    return sorted(found, key=lambda each: each.at)


def thinned(points: Sequence[EvidencePointView], most: int) -> list[EvidencePointView]:
    """Return at most about `most` of the points: of each stretch the one with the greatest E, and the last of all."""
    if len(points) <= most:
        return list(points)
    size = ceil(len(points) / most)
    stretches = (points[start : start + size] for start in range(0, len(points), size))
    found = [max(stretch, key=lambda point: point.e) for stretch in stretches]
    return found if found[-1] is points[-1] else [*found, points[-1]]


def wilson(bad: int, of: int) -> ShareView | None:
    """Return a share with its interval (Wilson 1927); None of nobody."""
    if not of:
        return None
    share, square = bad / of, _Z**2 / of
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * sqrt(share * (1 - share) / of + square / (4 * of))
    low = max(0.0, centre - half) if bad else 0.0
    return ShareView(bad=bad, of=of, share=share, low=low, high=min(1.0, centre + half) if bad < of else 1.0)


def spread(values: Sequence[float]) -> SpreadView | None:
    """Return how values are spread, a quantile being the smallest that so many do not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    median, p90 = (ordered[ceil(share * len(ordered)) - 1] for share in (0.5, 0.9))
    return SpreadView(of=len(ordered), median=median, p90=p90, greatest=ordered[-1])


def _classes(roll: Roll, detail: RolloutDetail) -> list[ClassView]:
    by_class: dict[str, list[Group[Member]]] = {}
    sizes = Counter[str]()
    for group in roll.members.values():
        by_class.setdefault(group.each.device_class, []).append(group)
        sizes[group.each.device_class] += group.devices
    found = []
    for name, size in sorted(sizes.items(), key=lambda each: (-each[1], each[0]))[:CLASSES_MAX]:
        outcomes = Counter[Outcome]()
        pending = returned = 0
        for group in by_class[name]:
            outcomes[group.each.outcome] += group.devices
            pending += group.devices * is_in_flight(group.each)
            returned += group.devices * group.each.returned
        strata = [each for each in detail.evidence.strata if each.device_class == name]
        found.append(
            ClassView(
                device_class=name,
                devices=size,
                good=outcomes[Outcome.GOOD],
                bad=outcomes[Outcome.BAD],
                pending=pending,
                untouched=outcomes[Outcome.PENDING] - pending,
                left=outcomes[Outcome.LEFT],
                returned=returned,
                treated=wilson(sum(each.treated_bad for each in strata), sum(each.treated for each in strata)),
                controls=wilson(sum(each.controls_bad for each in strata), sum(each.controls for each in strata)),
            )
        )
    return found


def _failures(members: Sequence[Member], sees: Callable[[str], bool]) -> tuple[list[FailureView], int]:
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for member in members:
        if member.outcome is Outcome.BAD:
            key = member.cause, member.reason
            counts[key] += 1
            named = examples.setdefault(key, [])
            if len(named) < EXAMPLES_MAX and sees(member.device):
                named.append(member.device)
    most = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    found = [
        FailureView(cause=cause, reason=reason, devices=count, examples=examples[cause, reason])
        for (cause, reason), count in most[:FAILURES_MAX]
    ]
    return found, sum(count for _, count in most[FAILURES_MAX:])


# -- Markdown ------------------------------------------------------------------------------------------------------


def markdown(found: RolloutReport) -> str:
    """Return the report as a Markdown document."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: RolloutReport) -> Iterator[str]:
    over = f" over {found.previous}" if found.previous else ""
    yield f"# {found.model} {found.version}{over}: {found.state}"
    yield ""
    yield from _bullets(
        ("Rollout", found.id),
        ("Why", found.reason or "–"),
        ("Devices", found.selector or "every device that can run it"),
        ("Begun", f"{_moment(found.created_at)} by {found.created_by}"),
        ("Ended", "not yet" if found.ended_at is None else _moment(found.ended_at)),
        ("Took", _length(found.seconds)),
        ("Evidence of harm", f"E = {found.e:.3g}; promotion holds from {found.hold_at:g}, abort at {found.abort_at:g}"),
        ("Report of", _moment(found.written_at)),
    )
    yield ""
    counts = found.counts
    yield (
        f"{counts.good} of {counts.devices} devices did well, {counts.bad} badly; {counts.pending} have no outcome yet,"
        f" {counts.waiting + counts.queued} were not told, {counts.left} left it, {counts.returned} are back on what"
        f" they had. {counts.controls} were held back to compare."
    )
    if found.classes:
        yield from _table(
            "By device class",
            ("class", "devices", "good", "bad", "not told", "failures of treated", "of held back"),
            [
                (c.device_class, c.devices, c.good, c.bad, c.untouched, _share(c.treated), _share(c.controls))
                for c in found.classes
            ],
        )
    if found.failures:
        yield from _table(
            "Failures by reason",
            ("devices", "cause", "reason", "for example"),
            [(each.devices, each.cause, each.reason, ", ".join(each.examples)) for each in found.failures],
        )
        if found.other_failures:
            yield f"\n{found.other_failures} more failed for other reasons."
    if found.metrics:
        yield from _table(
            "Evidence by metric",
            ("metric", "E", "alone it aborts at", "by class"),
            [
                (m.metric, f"{m.e:.3g}", f"{m.alone_at:.3g}", ", ".join(f"{k} {v:.3g}" for k, v in m.e_classes.items()))
                for m in found.metrics
            ],
        )
    yield from _table(
        "Waves",
        ("wave", "devices", "good", "bad", "held back", "begun"),
        [
            (w.wave + 1, w.devices, w.good, w.bad, w.controls, "–" if w.began_at is None else _moment(w.began_at))
            for w in found.waves
        ],
    )
    if found.update_s is not None:
        took = found.update_s
        yield ""
        yield (
            f"To fetch and switch, {took.of} devices took {_length(took.median)} (median), {_length(took.p90)} (p90),"
            f" {_length(took.greatest)} at most; {found.bytes_fetched / 1e6:,.1f} MB were fetched."
        )
    if found.latency_ratio is not None:
        ratio = found.latency_ratio
        yield f"p95 latency after / before: median {ratio.median:.2f}, p90 {ratio.p90:.2f}, of {ratio.of} devices."
    yield from _table(
        "What happened (UTC)",
        ("when", "what", "by", "detail"),
        [(_moment(each.at), each.what.replace("_", " "), each.by, each.detail) for each in found.timeline],
    )
    yield "\n## Policy\n"
    yield f"```yaml\n{found.policy_document.rstrip()}\n```"


def _bullets(*pairs: tuple[str, str]) -> Iterator[str]:
    for name, said in pairs:
        yield f"- **{name}**: {_cell(said)}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield f"\n## {title}\n"
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(str(each)) for each in row)} |"


def _cell(text: str) -> str:
    """Return text of devices and people so that it neither ends a cell nor becomes markup."""
    flat = " ".join(text.split()).replace("\\", "\\\\")
    for letter in "|<>`*[]":
        flat = flat.replace(letter, f"\\{letter}")
    return flat


def _share(found: ShareView | None) -> str:
    if found is None:
        return "–"
    return f"{found.bad} of {found.of}: {found.share:.1%} ({found.low:.1%} to {found.high:.1%})"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _length(seconds: float) -> str:
    for size, unit in ((172_800.0, "days"), (7200.0, "h"), (120.0, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86_400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.1f} s"
