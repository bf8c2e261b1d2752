"""`muster rollout`: begin rollouts, watch them, and give orders to them."""

import getpass
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from muster_controller.cli.client import EXIT_CODES, Api, connect, refuse
from muster_controller.cli.output import emit, fail
from muster_shared.errors import MusterError

POLL_S = 0.5
WATCH_CODES = {"finished": 0, "aborted": 2, "paused": 3}
WATCH_EPILOG = "Exit codes: 0 finished, 2 aborted, 3 paused, 1 failed, 4 no such rollout, 6 no controller answers."

app = typer.Typer(help="Staged rollouts.", no_args_is_help=True, epilog=EXIT_CODES)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(help="The rollout's id, as `muster rollout list` shows it.")]
Why = Annotated[str, typer.Option("--reason", "-r", help="For the history.")]


@app.command(epilog=EXIT_CODES)
def create(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[str, typer.Argument(help="A published release of it.")],
    policy: Annotated[
        Path | None, typer.Option(help="The policy as a JSON file; what it leaves out is default.")
    ] = None,
    wave: Annotated[
        list[str] | None, typer.Option("--wave", "-w", help='Devices, or a share such as "25%"; repeat it.')
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="Only devices with key=value.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Begin bringing a release to the fleet, wave by wave."""
    try:
        written: dict[str, Any] = (
            {} if policy is None else msgspec.json.decode(policy.read_bytes(), type=dict[str, Any])
        )
        if wave:
            written["waves"] = [int(each) if each.isdecimal() else each for each in wave]
        if label:
            written["selector"] = dict(each.split("=", 1) for each in label)
        with connect(context) as api:
            found = api.post(
                "/rollouts",
                {"model": model, "version": version, "policy": written, "dry_run": dry_run, "actor": getpass.getuser()},
            )
    except (msgspec.MsgspecError, ValueError) as error:
        fail(f"{policy or 'the options'}: {error}")
    except (MusterError, OSError) as error:
        refuse(error)

    def human(console: Console) -> None:
        if dry_run:
            classes = ", ".join(f"{count} {name}" for name, count in found["classes"].items())
            console.print(f"{model} {version} would go to {found['devices']} devices ({classes or 'none fits'}).")
            console.print(f"{found['online']} of them are online; waves of {', '.join(map(str, found['waves']))}.")
            return
        console.print(f"{found['id']}: {found['state']}, waves of {', '.join(map(str, found['waves']))}.")
        console.print(f"Next: `muster rollout watch {found['id']}`.")

    emit(found, as_json, human)


@app.command("list", epilog=EXIT_CODES)
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List rollouts, newest first."""
    try:
        with connect(context) as api:
            rollouts = api.get("/rollouts")["rollouts"]
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("rollout", "state", "wave", "good", "bad", "E", "why")
        for each in rollouts:
            counts = each["counts"]
            wave = f"{each['wave'] + 1}/{len(each['waves'])}"
            good, bad = str(counts["good"]), str(counts["bad"])
            table.add_row(each["id"], each["state"], wave, good, bad, f"{each['e']:.2g}", each["reason"])
        console.print(table if rollouts else "Nothing was rolled out; begin with `muster rollout create`.")

    emit(rollouts, as_json, human)


@app.command(epilog=EXIT_CODES)
def show(context: typer.Context, rollout: Id, as_json: AsJson = False) -> None:
    """Show one rollout: waves, counts and evidence."""
    try:
        with connect(context) as api:
            found = api.get(f"/rollouts/{rollout}")
    except MusterError as error:
        refuse(error)
    emit(found, as_json, lambda console: console.print(_picture(found)))


@app.command(epilog=EXIT_CODES)
def explain(context: typer.Context, rollout: Id, as_json: AsJson = False) -> None:
    """Say what the gate has counted, what E is, and why it decided what it did."""
    try:
        with connect(context) as api:
            found = api.get(f"/rollouts/{rollout}")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        evidence = found["evidence"]
        table = Table("wave", "class", "treated", "bad", "held back", "bad", title="Counted")
        for stratum in evidence["strata"]:
            keys = ("device_class", "treated", "treated_bad", "controls", "controls_bad")
            table.add_row(str(stratum["wave"] + 1), *(str(stratum[key]) for key in keys))
        console.print(table if evidence["strata"] else "Nothing was counted yet.")
        console.print(
            f"E = {evidence['e']:.3g}: {evidence['e_controls']:.3g} against devices that were held back, "
            f"{evidence['e_objective']:.3g} against the objective of {found['policy']['failure_objective']:.0%}.",
            highlight=False,
        )
        console.print(
            f"Nothing is promoted from E = {found['hold_at']:g} on; at {found['abort_at']:g} it is aborted. A harmless "
            f"release gets there with a chance of {found['policy']['alpha']:.0%} at most, however often one looks.",
            highlight=False,
        )
        for verdict in found["verdicts"]:
            console.print(f"  wave {verdict['wave'] + 1} {verdict['kind']}: {verdict['reason']}", highlight=False)

    emit({"evidence": found["evidence"], "verdicts": found["verdicts"]}, as_json, human)


@app.command(epilog=WATCH_EPILOG)
def watch(
    context: typer.Context,
    rollout: Id,
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds, with exit code 1.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, whenever something changed.")
    ] = False,
) -> None:
    """Follow a rollout until it has finished, is aborted, or pauses. The exit code says which."""
    end = None if timeout is None else time.monotonic() + timeout
    try:
        with connect(context) as api:
            state = _watch_lines(api, rollout, end) if as_json else _watch_live(api, rollout, end)
    except MusterError as error:
        refuse(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if state not in WATCH_CODES:
        fail(f"{rollout} is still {state} after {timeout:g} s; watch it again")
    raise typer.Exit(WATCH_CODES[state])


def _watch_live(api: Api, rollout: str, end: float | None) -> str:
    found = api.get(f"/rollouts/{rollout}")
    with Live(_picture(found), refresh_per_second=4) as live:
        while found["state"] not in WATCH_CODES and (end is None or time.monotonic() < end):
            time.sleep(POLL_S)
            found = api.get(f"/rollouts/{rollout}")
            live.update(_picture(found))
    return str(found["state"])


def _watch_lines(api: Api, rollout: str, end: float | None) -> str:
    last = None
    while True:
        found = api.get(f"/rollouts/{rollout}")
        line = msgspec.json.encode(
            {key: found[key] for key in ("id", "state", "reason", "wave", "counts", "e")}
        ).decode()
        if line != last:
            print(line, flush=True)
            last = line
        if found["state"] in WATCH_CODES or (end is not None and time.monotonic() >= end):
            return str(found["state"])
        time.sleep(POLL_S)


def _picture(found: dict[str, Any]) -> RenderableType:
    counts = found["counts"]
    head = Text.assemble(
        (f"{found['model']} {found['version']}", "bold"),
        f" over {found['previous']}" if found["previous"] else "",
        f"  {found['state']}",
        f"  {found['reason']}" if found["reason"] else "",
    )
    table = Table("wave", "devices", "", "good", "bad", "pending", "held back", box=None)
    for wave in found["wave_views"]:
        devices = wave["devices"] or wave["planned"] or 0
        bar = ProgressBar(total=max(1, devices), completed=wave["good"] + wave["bad"], width=24)
        numbers = (str(wave[key]) for key in ("good", "bad", "pending", "controls"))
        table.add_row(str(wave["wave"] + 1), str(devices), bar, *numbers)
    reported = counts["good"] + counts["bad"]
    foot = Text(
        f"{reported} of {counts['devices']} reported, {counts['waiting']} not begun.  "
        f"E = {found['e']:.3g} (hold {found['hold_at']:g}, abort {found['abort_at']:g})"
    )
    return Group(head, table, foot)


def _order(context: typer.Context, rollout: str, order: str, reason: str, as_json: bool) -> None:
    try:
        with connect(context) as api:
            found = api.post(f"/rollouts/{rollout}/{order}", {"reason": reason, "actor": getpass.getuser()})
    except MusterError as error:
        refuse(error)
    emit(found, as_json, lambda console: console.print(f"{rollout} is {found['state']}."))


@app.command(epilog=EXIT_CODES)
def pause(context: typer.Context, rollout: Id, reason: Why = "", as_json: AsJson = False) -> None:
    """Begin no further wave; what is under way goes on, and the evidence can still abort it."""
    _order(context, rollout, "pause", reason, as_json)


@app.command(epilog=EXIT_CODES)
def resume(context: typer.Context, rollout: Id, reason: Why = "", as_json: AsJson = False) -> None:
    """Let the present wave pass, and go on with the next."""
    _order(context, rollout, "resume", reason, as_json)


@app.command(epilog=EXIT_CODES)
def abort(context: typer.Context, rollout: Id, reason: Why = "", as_json: AsJson = False) -> None:
    """End it, and bring back what was there before (unless its policy says stop)."""
    _order(context, rollout, "abort", reason, as_json)


@app.command(epilog=EXIT_CODES)
def rollback(context: typer.Context, rollout: Id, reason: Why = "", as_json: AsJson = False) -> None:
    """Take a finished rollout back: every device of it returns to the release before."""
    _order(context, rollout, "rollback", reason, as_json)
