"""`muster rollout`: begin rollouts and look at them. Watching, explaining and orders stand beside it."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli import rollout_explain, rollout_orders, rollout_report, rollout_watch
from muster_controller.cli.arguments import (
    AsJson,
    Limit,
    ModelArgument,
    ModelOption,
    RolloutArgument,
    VersionArgument,
)
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.device_choice import TextOption
from muster_controller.cli.output import emit
from muster_controller.cli.plans import print_plan
from muster_controller.cli.policy_options import policy_of
from muster_controller.core.rollout.explain import Why
from muster_controller.core.rollout.state import Outcome, RolloutState
from muster_shared.errors import MusterError


class Arm(Enum):
    TREATED = "treated"
    CONTROL = "control"
    WAITING = "waiting"


app = typer.Typer(help="Staged rollouts.", no_args_is_help=True, epilog=EXIT_CODES)


@app.command(epilog=EXIT_CODES)
def create(
    context: typer.Context,
    model: ModelArgument,
    version: VersionArgument,
    policy: Annotated[
        Path | None, typer.Option(help="The policy, YAML or JSON; what it leaves out is default.")
    ] = None,
    wave: Annotated[
        list[str] | None, typer.Option("--wave", "-w", help='Devices, or a share such as "25%"; repeat it.')
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="Only devices with key=value.")] = None,
    selector: Annotated[
        str | None, typer.Option("--selector", "-s", help="Only devices that this label selector names.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and do nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Then follow it, as `muster rollout watch`.")] = False,
    as_json: AsJson = False,
) -> None:
    """Begin bringing a release to the fleet, wave by wave."""
    try:
        written = policy_of(policy, wave or [], label or [], selector)
        with connect(context) as api:
            order = {"model": model, "version": version, "policy": written, "dry_run": dry_run}
            found = api.post("/rollouts", order)
    except (MusterError, OSError) as error:
        refuse(error)

    def human(console: Console) -> None:
        if dry_run:
            print_plan(console, found)
            return
        console.print(f"Rollout {found['id']} begins: {model} {version} to {found['counts']['devices']} devices.")
        console.print(found["outlook"], highlight=False)
        if not watch:
            console.print(f"Next: `muster rollout watch {found['id']}`.", highlight=False)

    emit(found, as_json, human)
    if watch and not dry_run:
        rollout_watch.watch(context, found["id"], None, as_json)


@app.command("list", epilog=EXIT_CODES)
def list_(
    context: typer.Context,
    state: Annotated[RolloutState | None, typer.Option(help="Only these.")] = None,
    model: ModelOption = None,
    text: Annotated[
        str | None, typer.Option("--text", "-q", help="With this in its id, model, creator or reason.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List the rollouts, newest first."""
    params: dict[str, str | int | list[str]] = {}
    if state is not None:
        params["state"] = state.value
    if model is not None:
        params["model"] = model
    if text is not None:
        params["q"] = text
    try:
        with connect(context) as api:
            rollouts = api.pages("/rollouts", "rollouts", limit, params)
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("rollout", "state", "wave", "good", "bad", "E", "why")
        for each in rollouts:
            counts = each["counts"]
            wave = f"{each['wave'] + 1}/{len(each['waves'])}"
            good, bad = str(counts["good"]), str(counts["bad"])
            table.add_row(each["id"], each["state"], wave, good, bad, f"{each['e']:.2g}", each["reason"])
        console.print(table if rollouts else "No rollout is like that; begin with `muster rollout create`.")

    emit(rollouts, as_json, human)


@app.command(epilog=EXIT_CODES)
def show(context: typer.Context, rollout: RolloutArgument, as_json: AsJson = False) -> None:
    """Show one rollout: waves, counts, evidence, and what happens next."""
    try:
        with connect(context) as api:
            found = api.get(f"/rollouts/{rollout}")
    except MusterError as error:
        refuse(error)
    emit(found, as_json, lambda console: console.print(rollout_watch.picture(found)))


@app.command(epilog=EXIT_CODES)
def devices(
    context: typer.Context,
    rollout: RolloutArgument,
    outcome: Annotated[Outcome | None, typer.Option(help="Only these.")] = None,
    wave: Annotated[int | None, typer.Option(min=1, help="Of this wave, from 1.")] = None,
    arm: Annotated[Arm | None, typer.Option(help="Only these; control: held back.")] = None,
    text: TextOption = None,
    limit: Limit = 10_000,
    as_json: AsJson = False,
) -> None:
    """List the devices of a rollout: treated and waiting in their order, then those held back."""
    params: dict[str, str | int | list[str]] = {}
    if outcome is not None:
        params["outcome"] = outcome.value
    if wave is not None:
        params["wave"] = wave - 1
    if arm is not None:
        params["arm"] = arm.value
    if text is not None:
        params["q"] = text
    try:
        with connect(context) as api:
            members = api.pages(f"/rollouts/{rollout}/members", "members", limit, params)
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("device", "class", "wave", "arm", "outcome", "step", "attempt", "why")
        for each in members:
            table.add_row(
                each["device"],
                each["device_class"],
                "–" if each["wave"] is None else str(each["wave"] + 1),
                "held back" if each["arm"] == "control" else each["arm"],
                "back" if each["returned"] else each["outcome"],
                (each["step"] or "–").replace("_", " "),
                str(each["attempt"] or "–"),
                _said(each),
            )
        console.print(table if members else "No device of it is like that.")

    emit(members, as_json, human)


@app.command(epilog=EXIT_CODES)
def waiting(
    context: typer.Context,
    rollout: RolloutArgument,
    why: Annotated[Why | None, typer.Option(help="Only those that wait for this.")] = None,
    limit: Limit = 10_000,
    as_json: AsJson = False,
) -> None:
    """List each device that has no outcome yet, or is out of it, and why."""
    params: dict[str, str | int | list[str]] = {} if why is None else {"why": why.value}
    try:
        with connect(context) as api:
            found = api.get(f"/rollouts/{rollout}/waiting", {"limit": 1})
            lines = api.pages(f"/rollouts/{rollout}/waiting", "waiting", limit, params)
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found["counts"].items())
        console.print(f"{said or 'Nobody waits'}.", highlight=False)
        table = Table("device", "class", "wave", "waits for", "why")
        for each in lines:
            wave = "–" if each["wave"] is None else str(each["wave"] + 1)
            table.add_row(each["device"], each["device_class"], wave, each["why"].replace("_", " "), each["sentence"])
        if lines:
            console.print(table)
        console.print(found["outlook"], highlight=False)

    emit(lines, as_json, human)


def _said(member: dict[str, Any]) -> str:
    said = str(member["reason"])
    if member["cause"] and member["cause"] not in said:
        said += f" ({member['cause']})"
    return said + (f"; tried again: {member['second']}" if member["second"] else "")


app.command(epilog=rollout_watch.EPILOG)(rollout_watch.watch)
app.command(epilog=rollout_explain.EPILOG)(rollout_explain.explain)
app.command(epilog=EXIT_CODES)(rollout_report.report)
rollout_orders.register(app)
