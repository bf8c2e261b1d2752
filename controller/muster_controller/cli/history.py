"""`muster history`: what happened, for people; with a device or a rollout, what was reported of it, too."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson, Limit
from muster_controller.cli.client import connect, refuse
from muster_controller.cli.output import emit
from muster_controller.cli.times import stamp
from muster_shared.errors import MusterError


def history(
    context: typer.Context,
    about: Annotated[
        str | None, typer.Option("--about", help="A device, rollout, model: only what is about it.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="What this device reported.", autocompletion=completion.devices),
    ] = None,
    rollout: Annotated[
        str | None,
        typer.Option("--rollout", help="What devices reported of this rollout.", autocompletion=completion.rollouts),
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List what happened in the fleet, newest first; with --device or --rollout, what devices reported."""
    if about is not None and (device is not None or rollout is not None):
        raise typer.BadParameter("give --about, or --device and --rollout")
    is_reports = device is not None or rollout is not None
    asked = {"device": device, "rollout": rollout} if is_reports else {"subject": about}
    params: dict[str, str | int | list[str]] = {name: value for name, value in asked.items() if value is not None}
    name = "events" if is_reports else "notes"
    try:
        with connect(context) as api:
            found = api.pages(f"/{name}", name, limit, params)
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        if is_reports:
            for each in found:
                console.print(
                    f"{stamp(each['taken_at'])}  {each['device']}  {each['summary']}", markup=False, highlight=False
                )
        elif found:
            table = Table("at", "what", "about", "by", "detail")
            for each in found:
                words = (
                    stamp(each["at"]),
                    each["what"].replace("_", " "),
                    each["subject"],
                    each["actor"],
                    each["detail"],
                )
                table.add_row(*map(escape, words))
            console.print(table)
        if not found:
            console.print("Nothing is known.")

    emit(found, as_json, human)
