"""`muster rollout watch`: follow a rollout until it has finished, is aborted, or rests; and the picture of one."""

import sys
import time
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from muster_controller.cli.arguments import RolloutArgument
from muster_controller.cli.client import Api, connect, refuse
from muster_controller.cli.output import Form, fail, spoken, written
from muster_shared.errors import MusterError

POLL_S = 0.5
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
    """Follow a rollout until it has finished, is aborted, or pauses. The exit code says which."""
    end = None if timeout is None else time.monotonic() + timeout
    try:
        with connect(context) as api:
            state = _lines(api, rollout, end) if as_json else _live(api, rollout, end)
    except MusterError as error:
        refuse(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if state not in CODES:
        fail(f"{rollout} is still {state} after {timeout:g} s; watch it again")
    raise typer.Exit(CODES[state])


def _live(api: Api, rollout: str, end: float | None) -> str:
    found = api.get(f"/rollouts/{rollout}")
    with Live(picture(found), refresh_per_second=4) as live:
        while found["state"] not in CODES and (end is None or time.monotonic() < end):
            time.sleep(POLL_S)
            found = api.get(f"/rollouts/{rollout}")
            live.update(picture(found))
    return str(found["state"])


def _lines(api: Api, rollout: str, end: float | None) -> str:
    last = None
    while True:
        found = api.get(f"/rollouts/{rollout}")
        line = msgspec.json.encode({key: found[key] for key in LINE if key != "outlook"}).decode()
        if line != last:
            sys.stdout.write(written({key: found[key] for key in LINE}, spoken(Form.JSON), is_line=True))
            sys.stdout.flush()
            last = line
        if found["state"] in CODES or (end is not None and time.monotonic() >= end):
            return str(found["state"])
        time.sleep(POLL_S)


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
