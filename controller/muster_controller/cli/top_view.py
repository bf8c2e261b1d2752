"""What `muster top` shows, as text of a given size, and what a key does. No terminal, network or clock.

LOOK --p/r/a--> SURE --y--> WHY --Enter--> the order, and LOOK again
                 |any other key   |Escape
                 +----> LOOK <----+
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from rich.text import Text

WIDTH_MIN = 40
ORDERS = {"p": "pause", "r": "resume", "a": "abort"}
REASON_MAX = 200
UP, DOWN, TAB, ESCAPE, ENTER, BACKSPACE = "\x1b[A", "\x1b[B", "\t", "\x1b", "\r", "\x7f"
ALERTS_MAX = 3
NOTES_MAX = 5
ROLLOUTS_MAX = 5


@dataclass(frozen=True)
class Reading:
    """What the controller said last."""

    at: float
    url: str
    status: dict[str, Any]
    rollouts: tuple[dict[str, Any], ...]
    """Those under way, whole, in the order of the list."""
    alerts: tuple[dict[str, Any], ...]
    notes: tuple[dict[str, Any], ...]


class Stage(Enum):
    LOOK = "look"
    SURE = "sure"
    WHY = "why"


@dataclass(frozen=True)
class Screen:
    """What the person at the keys has chosen."""

    chosen: str | None = None
    """A rollout."""
    stage: Stage = Stage.LOOK
    order: str = ""
    reason: str = ""
    said: str = ""
    """What came of the last order."""
    lost_at: float | None = None


@dataclass(frozen=True)
class Ordered:
    """Send this."""

    rollout: str
    order: str
    reason: str


@dataclass(frozen=True)
class Quit:
    pass


def settled(screen: Screen, reading: Reading) -> Screen:
    """Return the screen with a rollout chosen that is still there; a question about one that is gone is dropped."""
    names = [each["id"] for each in reading.rollouts]
    if screen.chosen in names:
        return screen
    return replace(screen, chosen=names[0] if names else None, stage=Stage.LOOK, order="", reason="")


def press(screen: Screen, key: str, reading: Reading) -> tuple[Screen, Ordered | Quit | None]:
    """Return the screen after a key, and what is to be done."""
    match screen.stage:
        case Stage.LOOK:
            names = [each["id"] for each in reading.rollouts]
            if key in ("q", "Q"):
                return screen, Quit()
            if key in (UP, DOWN, TAB, "j", "k") and names:
                step = -1 if key in (UP, "k") else 1
                place = names.index(screen.chosen) if screen.chosen in names else 0
                return replace(screen, chosen=names[(place + step) % len(names)], said=""), None
            if key in ORDERS and screen.chosen is not None:
                return replace(screen, stage=Stage.SURE, order=ORDERS[key], reason="", said=""), None
            return screen, None
        case Stage.SURE:
            if key in ("y", "Y"):
                return replace(screen, stage=Stage.WHY), None
            return replace(screen, stage=Stage.LOOK, order=""), None
        case Stage.WHY:
            if key == ESCAPE:
                return replace(screen, stage=Stage.LOOK, order="", reason=""), None
            if key in (ENTER, "\n"):
                ordered = Ordered(str(screen.chosen), screen.order, screen.reason.strip())
                return replace(screen, stage=Stage.LOOK, order="", reason=""), ordered
            if key in (BACKSPACE, "\b"):
                return replace(screen, reason=screen.reason[:-1]), None
            if key.isprintable():
                return replace(screen, reason=(screen.reason + key)[:REASON_MAX]), None
            return screen, None


@dataclass
class _Page:
    width: int
    lines: list[Text] = field(default_factory=list)

    def add(self, *parts: str | tuple[str, str]) -> None:
        line = Text.assemble(*parts)
        line.truncate(self.width, overflow="ellipsis")
        self.lines.append(line)


def picture(reading: Reading, screen: Screen, now: float, width: int, height: int) -> list[Text]:
    """Return the lines: at most `height` of at most `width` cells. What is most urgent comes first."""
    page = _Page(max(WIDTH_MIN, width))
    _head(page, reading, screen, now)
    _tiles(page, reading.status)
    _alerts(page, reading.alerts, now)
    for each in reading.rollouts[:ROLLOUTS_MAX]:
        _rollout(page, each, is_chosen=each["id"] == screen.chosen)
    if not reading.rollouts:
        page.add(("No rollout is under way.", "dim"))
    more = len(reading.status["rollouts"]) - len(reading.rollouts[:ROLLOUTS_MAX])
    if more > 0:
        page.add((f"and {more} more: `muster rollout list`", "dim"))
    _versions(page, reading.status)
    _notes(page, reading.notes, now)
    room = max(1, height - 1)
    foot = _Page(page.width)
    _foot(foot, screen, reading)
    body = page.lines[:room]
    return [*body, *foot.lines][:height]


def _head(page: _Page, reading: Reading, screen: Screen, now: float) -> None:
    status = reading.status
    broker = ("", "") if status["broker_connected"] else ("  broker NOT connected", "bold red")
    lab = ("  open lab", "bold red") if status.get("open_lab") else ("", "")
    page.add((f"muster top  {status['fleet']}", "bold"), f"  {reading.url}  up {span(status['uptime_s'])}", broker, lab)
    if screen.lost_at is not None:
        ago = span(max(0.0, now - screen.lost_at))
        page.add((f"Connection lost {ago} ago: this is what was known then. Trying again.", "bold red"))


def _tiles(page: _Page, status: dict[str, Any]) -> None:
    bad = {"failing": "red", "behind": "yellow", "silent": "yellow", "updating": "cyan"}
    parts: list[str | tuple[str, str]] = [(f"{status['online']} of {status['devices']} online", "bold")]
    for name, count in status["standings"].items():
        style = bad.get(name, "green") if count else "dim"
        parts += ["  ", (f"{count} {name.replace('_', ' ')}", style)]
    page.add(*parts)


def _alerts(page: _Page, alerts: tuple[dict[str, Any], ...], now: float) -> None:
    if not alerts:
        page.add(("Nothing fires.", "dim"))
        return
    for each in alerts[:ALERTS_MAX]:
        style = "bold red" if each["severity"] in ("critical", "page") else "yellow"
        page.add((f"! {each['severity']} {each['rule']}", style), f" {each['summary']}, {_ago(each['began_at'], now)}")
    if len(alerts) > ALERTS_MAX:
        page.add((f"! and {len(alerts) - ALERTS_MAX} more: `muster alerts`", "yellow"))


def _rollout(page: _Page, each: dict[str, Any], *, is_chosen: bool) -> None:
    counts = each["counts"]
    reported, devices = counts["good"] + counts["bad"], max(1, counts["devices"])
    strata = each["evidence"]["strata"]
    treated_bad = sum(stratum["treated_bad"] for stratum in strata)
    controls_bad = sum(stratum["controls_bad"] for stratum in strata)
    wave = f"wave {each['wave'] + 1} of {len(each['waves'])}"
    state = {"running": "green", "paused": "yellow"}.get(each["state"], "red")
    page.add(
        ("> " if is_chosen else "  ", "bold"),
        (f"{each['model']} {each['version']}", "bold"),
        "  ",
        (each["state"], state),
        f"  {wave}  {each['id']}",
    )
    page.add(
        "    ",
        (bar(reported / devices, 24), "cyan"),
        f" {reported}/{counts['devices']} reported, {counts['pending']} pending",
    )
    page.add(
        f"    E {each['e']:.3g} (hold {each['hold_at']:.3g}, abort {each['abort_at']:.3g})",
        ("  bad: ", ""),
        (f"{treated_bad} treated", "red" if treated_bad else ""),
        f", {controls_bad} controls",
    )
    if is_chosen and each.get("outlook"):
        page.add((f"    {each['outlook']}", "dim"))


def _versions(page: _Page, status: dict[str, Any]) -> None:
    models: dict[str, list[str]] = {}
    for each in status["versions"]:
        mark = "*" if status["baselines"].get(each["model"]) == each["version"] else ""
        models.setdefault(each["model"], []).append(f"{each['version']}{mark} on {each['devices']}")
    for model, shares in sorted(models.items()):
        page.add((f"{model}: ", "bold"), ", ".join(shares))


def _notes(page: _Page, notes: tuple[dict[str, Any], ...], now: float) -> None:
    for each in notes[:NOTES_MAX]:
        what = each["what"].replace("_", " ")
        words = " ".join(word for word in (what, each["subject"], each["detail"]) if word)
        page.add((f"{_ago(each['at'], now):>9} ", "dim"), words, (f"  {each['actor']}", "dim"))


def _foot(page: _Page, screen: Screen, reading: Reading) -> None:
    match screen.stage:
        case Stage.LOOK if screen.said:
            page.add((screen.said, "bold"))
        case Stage.LOOK:
            orders = "  arrows choose  p pause  r resume  a abort" if reading.rollouts else ""
            page.add((f"q quit{orders}", "reverse"))
        case Stage.SURE:
            chosen = next((each for each in reading.rollouts if each["id"] == screen.chosen), None)
            devices = f" ({chosen['counts']['devices']} devices)" if chosen else ""
            page.add((f"{screen.order} {screen.chosen}{devices}? y/n", "bold reverse"))
        case Stage.WHY:
            page.add((f"Reason (Enter sends, Esc does not): {screen.reason}_", "bold reverse"))


def bar(share: float, width: int) -> str:
    """Return a bar of `width` cells, `share` of it (0..1) full."""
    full = round(min(1.0, max(0.0, share)) * width)
    return "━" * full + "─" * (width - full)


def span(seconds: float) -> str:
    """Return a length of time in one unit: "8 s", "5 min", "3 h", "2 d"."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _ago(at: float, now: float) -> str:
    return f"{span(max(0.0, now - at))} ago"
