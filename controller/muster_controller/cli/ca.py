"""`muster ca`: the fleet CA. What changes it works on the data folder, on the controller's machine.

The controller may run meanwhile: it takes the change over within a minute.
"""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli.arguments import AsJson
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit, fail
from muster_controller.config import DATA
from muster_controller.identity.ca import FleetCa
from muster_shared.errors import MusterError

app = typer.Typer(help="The fleet CA, which certifies devices.", no_args_is_help=True, epilog=EXIT_CODES)
Data = Annotated[Path, typer.Option("--data", "-d", envvar="MUSTER_DATA", help="The controller's folder.")]


@app.command(epilog=EXIT_CODES)
def show(context: typer.Context, as_json: AsJson = False) -> None:
    """Show its certificates, when they run out, and whether the root's key is still on the controller."""
    try:
        with connect(context) as api:
            found = api.get("/ca")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("role", "subject", "days left", "SHA-256")
        now = time.time()
        for each in found["certificates"]:
            days = f"{(each['expires_at'] - now) / 86_400:.1f}"
            table.add_row(each["role"], each["subject"], days, each["sha256"][:16])
        console.print(table)
        if found["root_key_is_here"]:
            console.print("The root's key is still on the controller: `muster ca take-root FOLDER` moves it away.")

    emit(found, as_json, human)


@app.command("take-root")
def take_root(
    folder: Annotated[Path, typer.Argument(help="Where the key goes: removable, and guarded from now on.")],
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Move the root's private key out of the controller. It is needed again once a year, to renew the intermediate."""
    try:
        key = FleetCa.existing(data, time.time()).take_root(folder)
    except FileExistsError:
        fail(f"{folder} holds a root.key already, and keys are never overwritten; choose another folder")
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        console.print(
            f"The root's key is {key}, and nowhere else. Make a second copy; without one the fleet ends with it."
        )
        console.print(f"Once a year: `muster ca renew --root-key {key}`.")

    emit({"root_key": str(key)}, as_json, human)


@app.command()
def renew(
    data: Data = DATA,
    root_key: Annotated[Path | None, typer.Option(help="The root's key, if it was taken away.")] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make another key for the intermediate: somebody may have the old one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let the root sign the intermediate anew. With the root's key on the controller that happens by itself."""
    try:
        now = time.time()
        ca = FleetCa.existing(data, now)
        ca.renew(now, root_key=root_key, new_key=new_key)
    except (MusterError, OSError) as error:
        fail(error)
    days = (ca.intermediate_expires_at - now) / 86_400
    said = f"The intermediate holds {days:.0f} days from now. A controller that runs takes it over within a minute."
    emit({"expires_at": ca.intermediate_expires_at}, as_json, lambda console: console.print(said))


@app.command()
def use(
    file: Annotated[
        Path, typer.Argument(help="PEM: an intermediate's key and certificate, and its chain with the root.")
    ],
    data: Data = DATA,
    announce: Annotated[
        bool,
        typer.Option("--announce", help="FILE is a root alone: let devices trust it too from their next renewal on."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="No device is enrolled, or all are enrolled anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Issue from an intermediate that your own CA issued. Devices have to know its root before: `--announce`."""
    try:
        now = time.time()
        ca = FleetCa.existing(data, now)
        if announce:
            ca.announce(file, now)
        else:
            ca.use(file, now, force=force)
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        if announce:
            console.print("Devices trust it from their next renewal on: a week from now, those that were online do.")
        else:
            console.print("Certificates come from it from now on. Restart the controller; tokens made before are void.")

    emit({"root_sha256": ca.pin}, as_json, human)


@app.command()
def server(
    names: Annotated[list[str], typer.Argument(help="Host names and addresses under which devices reach it.")],
    out: Annotated[Path, typer.Option("--out", help="A file for key, certificate and chain (0600).")],
    data: Data = DATA,
    as_json: AsJson = False,
) -> None:
    """Issue a certificate for a broker of yours, which devices will trust. It holds 30 days."""
    try:
        issued = FleetCa.existing(data, time.time()).issue_server(names, out, time.time())
    except (MusterError, OSError) as error:
        fail(error)
    said = f"{out}: key, certificate and chain for {', '.join(names)}. Renew it within 30 days."
    emit({"file": str(out), "expires_at": issued.expires_at}, as_json, lambda console: console.print(said))
