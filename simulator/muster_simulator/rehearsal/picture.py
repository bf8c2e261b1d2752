"""A rehearsal as people look at it: one table of answers, then bars. Nothing is reckoned here."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from muster_simulator.rehearsal.summary import Bin, Chance, Spread, Summary

BAR = 28
GOOD, POOR, BAD = "green", "yellow", "red"
SURE = 0.95  # A harmful release that passes more often than one time in twenty is red.
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_EIGHTHS = " ▏▎▍▌▋▊▉"


def show(console: Console, head: str, notes: Sequence[str], summaries: Sequence[Summary]) -> None:
    """Print the whole picture."""
    console.print(Text(head, style="bold"))
    for note in notes:
        console.print(Text(f"note: {note}", style=POOR))
    for summary in summaries:
        if summary.is_harmless:
            console.print(_harmless(summary))
    harmful = [summary for summary in summaries if not summary.is_harmless]
    if harmful:
        console.print(_harmful(harmful))
        console.print()
        for summary in harmful:
            console.print(_exposure(summary))


def duration(seconds: float) -> str:
    """Return seconds as people say them: 95 -> "95 s", 5400 -> "90 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"


def _from_to(each: Bin) -> str:
    """Return a stretch of time in one unit, and fine enough to tell it from the next."""
    unit_s, unit = next((pair for pair in _UNITS if each.high >= 2 * pair[0]), _UNITS[-1])
    low, high = each.low / unit_s, each.high / unit_s
    digits = 0 if high - low >= 1 else 1
    return f"{low:.{digits}f} – {high:.{digits}f} {unit}"


def _harmless(summary: Summary) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for label, chance, style in (
        ("false abort", summary.aborted, BAD),
        ("false pause", summary.paused, POOR),
        ("finishes", summary.finished, GOOD),
        ("no end in 120 days", summary.unfinished, BAD),
    ):
        if chance.runs or label != "no end in 120 days":
            table.add_row(f"  {label}", _bar(chance.share, style), _chance(chance))
    parts: list[RenderableType] = [Text(), Text(f"If the release is {summary.title}", style="bold"), table]
    if summary.to_finish_s is not None:
        found = summary.to_finish_s
        parts.append(
            Text(f"  time to completion: median {duration(found.median)}, p90 {duration(found.p90)}", style="bold")
        )
        parts.append(_histogram(summary.to_finish_bins, summary.runs, GOOD, is_time=True))
    if summary.pauses and not summary.paused.runs:
        parts.append(Text(f"  undecided waves that people let pass: {summary.pauses:.2f} a rollout"))
    if summary.unreached.median and summary.finished.runs:
        parts.append(Text(f"  never told, as they were offline: median {summary.unreached.median:.0f} devices"))
    return Group(*parts)


def _harmful(summaries: Sequence[Summary]) -> RenderableType:
    table = Table(title="If it is worse", title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what is wrong")
    for name in ("missed (95 %)", "exposed", "harmed", "stopped after"):
        table.add_column(name, justify="right")
    for summary in summaries:
        table.add_row(
            summary.title,
            Text(_interval(summary.finished), style=_style(summary)),
            _pair(summary.exposed),
            _pair(summary.harmed),
            "–" if summary.to_stop_s is None else _times(summary.to_stop_s),
        )
    return Group(Text(), table, Text("Devices exposed and harmed, and times: median / p90.", style="dim"))


def _exposure(summary: Summary) -> RenderableType:
    stopped = summary.stopped
    by = ", ".join(f"{why} {_percent(runs / stopped.runs)}" for why, runs in list(summary.stopped_by.items())[:3])
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("  stopped", _bar(stopped.share, _style(summary)), _percent(stopped.share))
    head = Text(f"{summary.title}: devices exposed when it ended", style="bold")
    return Group(
        head,
        table,
        Text(f"  by {by}" if by else "  by nothing", style="dim"),
        _histogram(summary.exposed_bins, summary.runs, BAD, is_time=False),
        Text(),
    )


def _style(summary: Summary) -> str:
    return GOOD if summary.stopped.share >= SURE else BAD


def _histogram(bins: Sequence[Bin], runs: int, style: str, *, is_time: bool) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", min_width=16)
    most = max((each.runs for each in bins), default=1)
    for each in bins:
        if is_time:
            label = _from_to(each)
        else:
            label = f"{each.low:.0f}" if each.low == each.high else f"{each.low:.0f} – {each.high:.0f}"
        table.add_row(label, _bar(each.runs / max(1, most), style), _percent(each.runs / runs) if each.runs else "")
    return table


def _bar(share: float, style: str, width: int = BAR) -> Text:
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    full, rest = divmod(eighths, 8)
    text = "█" * full + (_EIGHTHS[rest] if rest else "")
    return Text(text.ljust(width), style=style)


def _chance(chance: Chance) -> str:
    return f"{_percent(chance.share)}  (95 %: {_percent(chance.low)} to {_percent(chance.high)})"


def _interval(chance: Chance) -> str:
    return f"{_percent(chance.share)} ({_bare(chance.low)}–{_bare(chance.high)})"


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.001 else f"{_bare(share)} %"


def _bare(share: float) -> str:
    """Return percent to the figures that matter, near 0 and near 1 too."""
    return f"{100 * share:.1f}" if 0 < share < 0.1 or 0.95 < share < 1 else f"{100 * share:.0f}"


def _pair(spread: Spread) -> str:
    return f"{spread.median:.0f} / {spread.p90:.0f}"


def _times(spread: Spread) -> str:
    return f"{duration(spread.median)} / {duration(spread.p90)}"
