"""One demo from the first process to the last: prepares, tells the story, says how it ended, ends what it started."""

import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack

import msgspec
from rich.console import Console

from muster_shared.errors import MusterError
from muster_simulator.demo.desk import Desk
from muster_simulator.demo.display import Display
from muster_simulator.demo.hands import CONTROLLER
from muster_simulator.demo.processes import Crew, end_leftovers
from muster_simulator.demo.stage import Options, Stage, set_stage
from muster_simulator.demo.story import Story
from muster_simulator.demo.summary import Summary, show

PIDS = "pids.json"
SUMMARY = "summary.json"


def run(
    options: Options,
    console: Console,
    *,
    once: bool,
    as_json: bool,
    opening: Callable[[Stage, Desk], None] = lambda _stage, _desk: None,
) -> Summary:
    """Tell the story and return how it ended; nothing runs any more afterwards.

    Args:
        once: Do not wait for Ctrl-C after a story that held.
        opening: Called when the controller and its broker answer, and nobody else has come yet.

    Raises:
        FolderNotOurs, PortTaken: it cannot begin.
        KeyboardInterrupt: Ctrl-C, or SIGTERM; everything is stopped.
    """
    pids = options.folder / PIDS
    left = end_leftovers(pids)
    if left:
        console.print(f"ended what an earlier demo left running: {', '.join(left)}")
    stage = set_stage(options)
    display = Display(console)
    crew = Crew(pids)
    with ExitStack() as stack:
        # Devices say goodbye while the broker is still there.
        stack.callback(crew.stop, lambda name: name != CONTROLLER)
        story = Story(stage, crew, display, opening)
        stack.callback(story.stop)
        failure: MusterError | None = None
        with display.running():
            try:
                story.tell()
            except MusterError as error:
                failure = error
        summary = story.summary(failure)
        (options.folder / SUMMARY).write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1))
        _tell(summary, console, as_json=as_json)
        if failure is None and not once:
            console.print(f"\nThe fleet goes on at {stage.url} - Ctrl-C stops everything.")
            console.print(f"Log in as admin, once, at {story.link()}", soft_wrap=True)
            threading.Event().wait()
    return summary


def _tell(summary: Summary, console: Console, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(summary), indent=2).decode() + "\n")
        sys.stdout.flush()
    else:
        show(summary, console)
    if summary.reason is not None:
        console.print(f"\nfailed: {summary.reason}", style="red", markup=False, soft_wrap=True)
