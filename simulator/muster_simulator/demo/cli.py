"""`muster demo`: the command line. What is slow to import waits until it is called, or `muster --help` would wait.

exit 0   every step held (with --once; otherwise the fleet goes on until Ctrl-C)
exit 1   a step did not hold: the reason, and the log to read
exit 130 stopped by Ctrl-C or SIGTERM
"""

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from muster_controller.broker.embedded import BrokerKind
from muster_shared.errors import MusterError
from muster_simulator.load.config import COUNT_MAX

DEVICES_MIN = 20  # Four of each class: a first wave of five needs controls in every class.
CACHE = Path(".cache/weights")
COLUMNS = 160  # Of a log: rows of tables stay whole.
FAILED = 1
INTERRUPTED = 130


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop everything after the summary.")] = False,
    folder: Annotated[Path, typer.Option("--dir", help="Emptied first, if a demo made it.")] = Path("demo"),
    http_port: Annotated[int, typer.Option(min=1024, max=65_000, help="Of the controller's page and API.")] = 8080,
    devices: Annotated[int, typer.Option(min=DEVICES_MIN, max=COUNT_MAX, help="Simulated, beside five agents.")] = 50,
    broker: Annotated[BrokerKind, typer.Option(help="Which program carries the messages.")] = BrokerKind.AUTO,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; progress goes to stderr.")
    ] = False,
) -> None:
    """Run the whole story on this machine: real models, keys, broker and faults, five agents and a simulated fleet."""
    from muster_simulator.demo.run import run
    from muster_simulator.demo.stage import Options

    console = _console(to_stderr=as_json)
    options = Options(folder.absolute(), http_port, devices, broker, CACHE.absolute())
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        summary = run(options, console, once=once, as_json=as_json)
    except KeyboardInterrupt:
        console.print("stopped")
        raise typer.Exit(INTERRUPTED) from None
    except MusterError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from error
    if not summary.ok:
        raise typer.Exit(FAILED)


def _console(*, to_stderr: bool) -> Console:
    console = Console(stderr=to_stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=to_stderr, highlight=False, width=COLUMNS)


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
