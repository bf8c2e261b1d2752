"""`muster rollout watch`: follow a rollout until it has finished, is aborted, or rests; and the picture of one."""

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from muster_controller.cli.arguments import RolloutArgument
from muster_controller.cli.client import connect, is_away, refuse, where_of
from muster_controller.cli.output import Form, fail, spoken, written
from muster_controller.cli.watching import FLOOR_S, Changes
from muster_shared.errors import MusterError

EVERY_S = 5.0
"""Between two looks although nothing is said to have changed."""
CODES = {"finished": 0, "aborted": 2, "paused": 3}
EPILOG = "Exit codes: 0 finished, 2 aborted, 3 paused, 1 failed, 4 no such rollout, 6 no controller answers."
LINE = ("id", "state", "reason", "outlook", "wave", "counts", "e")


def watch(
    context: typer.Context,
    rollout: RolloutArgument,
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds, with exit code 1.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, whenever something changed.")
    ] = False,
) -> None:
    """Follow a rollout until it has finished, is aborted, or pauses. The exit code says which.

    It goes on when the controller was away for a while.
    """
    end = None if timeout is None else time.monotonic() + timeout
    try:
        looks = _looks(context, rollout, end)
        state = _lines(looks) if as_json else _live(looks)
    except MusterError as error:
        refuse(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if state not in CODES:
        fail(f"{rollout} is still {state} after {timeout:g} s; watch it again")
    raise typer.Exit(CODES[state])


def _looks(context: typer.Context, rollout: str, end: float | None) -> Iterator[dict[str, Any] | float]:
    """Yield the rollout at first and whenever something changed; while no controller answers, since when (Unix time).

    Ends with its last state, or at `end`, of the monotonic clock. Raises ApiProblem; ServerUnavailable if none answered
    at all.
    """
    with connect(context) as api:
        found = api.get(f"/rollouts/{rollout}")
    yield found
    lost_at: float | None = None
    with Changes(where_of(context)) as changes:
        while found["state"] not in CODES:
            left_s = EVERY_S if end is None else min(EVERY_S, end - time.monotonic())
            if left_s <= 0:
                return
            time.sleep(min(FLOOR_S, left_s))
            changes.wait(min(left_s, FLOOR_S if changes.lost_at else EVERY_S))
            try:
                with connect(context) as api:  # One that was started again on this machine has another token.
                    found = api.get(f"/rollouts/{rollout}")
            except MusterError as error:
                if not is_away(error, was_away=lost_at is not None):
                    raise
                lost_at = lost_at or time.time()
                yield lost_at
            else:
                lost_at = None
                yield found


def _live(looks: Iterator[dict[str, Any] | float]) -> str:
    found = next(looks)
    assert isinstance(found, dict), "the first look is of the rollout"
    with Live(picture(found), refresh_per_second=4) as live:
        for look in looks:
            if isinstance(look, float):
                live.update(Group(picture(found), Text(_lost(look), style="red")))
            else:
                found = look
                live.update(picture(found))
    return str(found["state"])


def _lines(looks: Iterator[dict[str, Any] | float]) -> str:
    last: bytes | None = None
    state = ""
    is_lost = False
    for look in looks:
        if isinstance(look, float):
            if not is_lost:
                Console(stderr=True).print(_lost(look), style="red", highlight=False)
            is_lost = True
            continue
        is_lost, state = False, str(look["state"])
        line = msgspec.json.encode({key: look[key] for key in LINE if key != "outlook"})
        if line != last:
            sys.stdout.write(written({key: look[key] for key in LINE}, spoken(Form.JSON), is_line=True))
            sys.stdout.flush()
            last = line
    return state


def _lost(since: float) -> str:
    return f"connection lost since {time.strftime('%H:%M:%S', time.localtime(since))}; trying again"


def picture(found: dict[str, Any]) -> RenderableType:
    """Return one rollout as `show` and `watch` draw it."""
    counts = found["counts"]
    head = Text.assemble(
        (f"{found['model']} {found['version']}", "bold"),
        f" over {found['previous']}" if found["previous"] else "",
        f"  {found['state']}",
        f"  {found['reason']}" if found["reason"] else "",
    )
    table = Table("wave", "devices", "", "good", "bad", "pending", "queued", "deferred", "held back", box=None)
    for wave in found["wave_views"]:
        devices = wave["devices"] or wave["planned"] or 0
        bar = ProgressBar(total=max(1, devices), completed=wave["good"] + wave["bad"], width=24)
        names = ("good", "bad", "pending", "queued", "deferred", "controls")
        table.add_row(str(wave["wave"] + 1), str(devices), bar, *(str(wave[name]) for name in names))
    reported = counts["good"] + counts["bad"]
    left = f", {counts['left']} left" if counts["left"] else ""
    metrics = ", ".join(f"{name} {each['e']:.3g}" for name, each in found["evidence"]["metrics"].items())
    foot = Text(
        f"{reported} of {counts['devices']} reported, {counts['waiting']} not begun{left}.  "
        f"E = {found['e']:.3g} ({metrics}; hold {found['hold_at']:g}, abort {found['abort_at']:g})"
    )
    return Group(head, table, foot, Text(found["outlook"]))
