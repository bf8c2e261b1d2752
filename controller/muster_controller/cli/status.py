"""`muster status`: the fleet at a glance."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli.client import connect, refuse
from muster_controller.cli.output import emit
from muster_shared.errors import MusterError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the fleet: devices, what they run, rollouts under way."""
    try:
        with connect(context) as api:
            found = api.get("/status")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        broker = "connected" if found["broker_connected"] else "NOT connected"
        console.print(f"Fleet {found['fleet']} at {api.url}, broker {found['broker_url']} {broker}.")
        if found.get("open_lab"):
            console.print("Open lab: the broker takes any program on its machine as any device.", style="bold red")
        words = ", ".join(f"{count} {name}" for name, count in found["standings"].items()) or "none yet"
        console.print(f"{found['online']} of {found['devices']} devices online: {words}.")
        if found["versions"]:
            table = Table("model", "version", "devices")
            for each in found["versions"]:
                is_baseline = found["baselines"].get(each["model"]) == each["version"]
                mark = " (baseline)" if is_baseline else ""
                table.add_row(each["model"], f"{each['version']}{mark}", str(each["devices"]))
            console.print(table)
        for rollout in found["rollouts"]:
            console.print(
                f"Rollout {rollout['id']}: {rollout['state']}, wave {rollout['wave'] + 1} of {len(rollout['waves'])}, "
                f"E = {rollout['e']:.2g}"
            )
        if not found["initialised"]:
            console.print(
                "Next: `muster trust online-keys --out online.json` and `muster init --online-keys online.json`."
            )

    emit(found, as_json, human)
