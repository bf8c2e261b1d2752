"""`muster device pin|unpin|quarantine|release|decommission|holds|call|calls`: what is ordered of one device."""

import time
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson, DeviceArgument, Limit, Reason
from muster_controller.cli.asking import get
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit
from muster_controller.cli.times import stamp
from muster_controller.errors import Conflict
from muster_controller.holds import HoldKind
from muster_shared.call import LINES_MAX
from muster_shared.errors import MusterError

LOOK_S = 0.5
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether you mean it.")]


class What(Enum):
    SELF_TEST = "self-test"
    BENCHMARK = "benchmark"
    LOGS = "logs"


def register(app: typer.Typer) -> None:
    for command in (pin, unpin, quarantine, release, decommission, holds, call, calls):
        app.command(epilog=EXIT_CODES)(command)


def pin(
    context: typer.Context, device: DeviceArgument, reason: Reason = "", yes: Yes = False, as_json: AsJson = False
) -> None:
    """Keep a device on what it runs: rollouts and rollbacks leave it alone until it is unpinned."""
    _confirm(f"{device} stays on what it runs now; an update that is under way on it is called off.", yes)
    _order(context, device, "pin", reason, as_json)


def unpin(context: typer.Context, device: DeviceArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let rollouts take a pinned device again; it gets what its group runs by now."""
    _order(context, device, "unpin", reason, as_json)


def quarantine(
    context: typer.Context, device: DeviceArgument, reason: Reason = "", yes: Yes = False, as_json: AsJson = False
) -> None:
    """Keep a device out: no rollout takes it, and what it reports counts for nothing. It goes on serving."""
    _confirm(f"{device} leaves every rollout, and what it reports from now on counts for nothing.", yes)
    _order(context, device, "quarantine", reason, as_json)


def release(context: typer.Context, device: DeviceArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let rollouts take a device again that is quarantined, or was decommissioned and is back."""
    _order(context, device, "release", reason, as_json)


def decommission(
    context: typer.Context, device: DeviceArgument, reason: Reason = "", yes: Yes = False, as_json: AsJson = False
) -> None:
    """Take a device out for good: its identity is revoked, and the fleet forgets it. Its history stays."""
    _confirm(
        f"{device} loses its identity and its connection for good, and the fleet forgets it. This is not undone;"
        " it would have to enrol again.",
        yes,
    )
    try:
        with connect(context) as api:
            found = api.post(f"/devices/{device}/decommission", {"reason": reason})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        identity = "its identity is revoked" if found["identity"] == "revoked" else "it had no identity"
        console.print(f"{device} is decommissioned: {identity}, and the fleet has forgotten it.", highlight=False)

    emit(found, as_json, human)


def holds(
    context: typer.Context,
    kind: Annotated[HoldKind | None, typer.Option(help="Only these.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List the devices that operators keep out of rollouts."""
    try:
        with connect(context) as api:
            found = api.pages("/holds", "holds", limit, {} if kind is None else {"kind": kind.value})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("device", "held", "since", "by", "reason")
        for each in found:
            words = (each["device"], each["kind"], stamp(each["at"]), each["by"], each["reason"])
            table.add_row(*(escape(str(word)) for word in words))
        console.print(table if found else "No device is held: rollouts take them all.")

    emit(found, as_json, human)


def call(
    context: typer.Context,
    device: DeviceArgument,
    what: Annotated[What, typer.Argument(help="What it should do now.")],
    lines: Annotated[int, typer.Option(min=1, max=LINES_MAX, help="Of `logs`: how many, from the end.")] = 100,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the answer.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask a device to test what serves, to measure it, or for the end of its agent's log."""
    body: dict[str, object] = {"what": what.value.replace("-", "_"), "lines": lines}
    try:
        with connect(context) as api:
            found = api.post(f"/devices/{device}/calls", body)
            while wait and found["state"] == "waiting":
                time.sleep(LOOK_S)
                found = api.get(f"/devices/{device}/calls/{found['id']}")
            if wait and found["state"] == "expired":
                raise Conflict(
                    f"{device} did not answer in time; is it there, is its agent new enough, and is its clock right?"
                )
    except MusterError as error:
        refuse(error)
    emit(found, as_json, lambda console: _show(console, found))
    if wait and found["ok"] is False:
        raise typer.Exit(1)


def calls(
    context: typer.Context,
    device: DeviceArgument,
    call: Annotated[
        str | None, typer.Argument(help="One of them, with all that it answered.", autocompletion=completion.calls)
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List what a device was asked, newest first, and what it answered; or show one call whole."""
    if call is not None:
        one = get(context, f"/devices/{device}/calls/{call}")
        emit(one, as_json, lambda console: _show(console, one))
        return
    try:
        with connect(context) as api:
            found = api.pages(f"/devices/{device}/calls", "calls", limit, {})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("call", "asked for", "asked", "by", "came to")
        for each in found:
            words = (each["id"], each["what"], stamp(each["asked_at"]), each["asked_by"], _came_to(each))
            table.add_row(*(escape(str(word)) for word in words))
        console.print(table if found else f"Nobody asked {device} for anything yet.")

    emit(found, as_json, human)


def _order(context: typer.Context, device: str, order: str, reason: str, as_json: bool) -> None:
    try:
        with connect(context) as api:
            found = api.post(f"/devices/{device}/{order}", {"reason": reason})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        hold = found["hold"]
        said = "rollouts take it again" if hold is None else f"{hold['kind']} by {hold['by']}"
        console.print(f"{device}: {said}.", highlight=False)

    emit(found, as_json, human)


def _confirm(what: str, yes: bool) -> None:
    if not yes:
        typer.confirm(f"{what} Do it?", abort=True, err=True)


def _came_to(found: dict[str, Any]) -> str:
    if found["state"] != "answered":
        return str(found["state"])
    answer = found["answer"]
    return ("well" if found["ok"] else "not well") + (f": {answer['detail']}" if answer["detail"] else "")


def _show(console: Console, found: dict[str, Any]) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    answer = found["answer"]
    if answer is None:
        if found["state"] != "waiting":
            say(f"{found['device']} did not answer {found['id']} ({found['what'].replace('_', ' ')}) in time.")
            return
        say(f"Asked as {found['id']}; `muster device calls {found['device']}` shows what comes of it.")
        return
    say(f"{found['device']} answered after {answer['seconds']:.1f} s: {_came_to(found)}.")
    for each in answer["models"]:
        figures = ""
        if each["rows_per_s"] is not None:
            figures = (
                f"; {each['rows_per_s']:,.0f} rows/s, p50 {each['latency_ms_p50']:.2f} ms,"
                f" p95 {each['latency_ms_p95']:.2f} ms"
            )
        say(f"  {each['model']} {each['version']}: {'good' if each['ok'] else 'BAD'}, {each['detail']}{figures}")
    for line in answer["lines"]:
        say(line)
