"""`muster top`: the fleet and its rollouts on one screen, live. What is shown and what keys do is `top_view`'s."""

import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live

from muster_controller.cli.arguments import AsJson
from muster_controller.cli.client import Api, Where, refuse, where_of
from muster_controller.cli.output import emit
from muster_controller.cli.top_view import (
    ALERTS_MAX,
    NOTES_MAX,
    ROLLOUTS_MAX,
    Ordered,
    Quit,
    Reading,
    Screen,
    picture,
    press,
    settled,
)
from muster_controller.cli.watching import Changes
from muster_controller.errors import ServerUnavailable
from muster_shared.errors import MusterError

FLOOR_S = 2.0  # Between two looks, however much changes.
EVERY_S = 10.0  # Looked at this often though nothing is said to have changed.
KEYS_S = 0.1  # How long a key may wait for its answer.
TIMEOUT_S = 10.0
ALERTS_READ = 50
KEY_BYTES_MAX = 16


def top(
    context: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="One picture, and no keys: also where there is no terminal.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Watch the fleet, its alerts and its rollouts on one live screen, and pause, resume or abort a rollout there.

    Keys: arrows or Tab choose a rollout, p pauses, r resumes, a aborts (each asks), q quits.
    """
    try:
        where = where_of(context)
        with Api(where, timeout_s=TIMEOUT_S) as api:
            reading = read(api, time.time())
            if as_json:
                emit(
                    {
                        "status": reading.status,
                        "rollouts": reading.rollouts,
                        "alerts": reading.alerts,
                        "notes": reading.notes,
                    },
                    True,
                    lambda _: None,
                )
            elif once or not sys.stdout.isatty() or not sys.stdin.isatty():
                console = Console()
                lines = picture(reading, Screen(), time.time(), console.width, 1000)[:-1]
                for line in lines:
                    console.print(line, highlight=False)
            else:
                _live(where, api, reading)
    except MusterError as error:
        refuse(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def read(api: Api, now: float) -> Reading:
    """Ask for everything that is shown. Raises ApiProblem, ServerUnavailable."""
    status = api.get("/status")
    rollouts = tuple(api.get(f"/rollouts/{each['id']}") for each in status["rollouts"][:ROLLOUTS_MAX])
    alerts = api.get("/alerts", {"state": "firing", "limit": max(ALERTS_READ, ALERTS_MAX)})["alerts"]
    notes = api.get("/notes", {"limit": NOTES_MAX})["notes"]
    return Reading(now, api.url, status, rollouts, tuple(alerts), tuple(notes))


def _live(where: Where, api: Api, reading: Reading) -> None:
    screen = settled(Screen(), reading)
    due, again = time.monotonic() + EVERY_S, time.monotonic() + FLOOR_S
    with ExitStack() as stack:
        changes = stack.enter_context(Changes(where))
        asking = stack.enter_context(Api(where, timeout_s=TIMEOUT_S, tries=1))
        stack.enter_context(_keys())
        live = stack.enter_context(Live(screen=True, auto_refresh=False))
        while True:
            size = shutil.get_terminal_size()
            live.update(Group(*picture(reading, screen, time.time(), size.columns, size.lines)), refresh=True)
            if key := _key(KEYS_S):
                screen, wanted = press(screen, key, reading)
                if isinstance(wanted, Quit):
                    return
                if isinstance(wanted, Ordered):
                    screen = replace(screen, said=_order(api, wanted))
                    due = 0.0
            if changes.wait(0.0):
                due = min(due, again)
            if time.monotonic() < due:
                continue
            try:
                reading = read(asking, time.time())
                screen = settled(replace(screen, lost_at=None), reading)
            except ServerUnavailable:
                screen = replace(screen, lost_at=screen.lost_at or time.time())
            again = time.monotonic() + FLOOR_S
            due = again if screen.lost_at is not None else time.monotonic() + EVERY_S


def _order(api: Api, wanted: Ordered) -> str:
    try:
        found = api.post(f"/rollouts/{wanted.rollout}/{wanted.order}", {"reason": wanted.reason})
    except MusterError as error:
        return f"{wanted.order}: {error}"
    return f"{wanted.rollout} is {found['state']}."


def _key(seconds: float) -> str:
    """Return the key that is pressed within `seconds`, an arrow as its whole sequence; else an empty text."""
    descriptor = sys.stdin.fileno()
    if not select.select([descriptor], [], [], seconds)[0]:
        return ""
    first = os.read(descriptor, 1)
    if not first:
        return "q"  # The terminal is gone.
    rest = b""
    if first == b"\x1b" or first[0] >= 0x80:
        while len(rest) < KEY_BYTES_MAX and select.select([descriptor], [], [], 0.01)[0]:
            rest += os.read(descriptor, 1)
    return (first + rest).decode(errors="replace")


@contextmanager
def _keys() -> Iterator[None]:
    """Have keys come at once and unseen, and give the terminal back as it was."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    kept = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, kept)
