"""`muster trust`: what travels between the operator's offline folder and a controller that runs."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.init import DEFAULT_OPERATOR
from muster_controller.cli.model_words import left
from muster_controller.cli.output import emit
from muster_controller.registry import durable
from muster_controller.registry.keys import list_keys
from muster_controller.registry.operator import KEYS_FOLDER, all_roots, load_offline, newest_releases
from muster_shared.errors import MusterError

KEY_SHOWN = 16

app = typer.Typer(help="Trust metadata.", no_args_is_help=True, epilog=EXIT_CODES)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("online-keys", epilog=EXIT_CODES)
def online_keys(
    context: typer.Context, out: Annotated[Path, typer.Option("--out", help="Where they go.")], as_json: AsJson = False
) -> None:
    """Fetch the controller's public keys, for `muster init --online-keys`."""
    try:
        with connect(context) as api:
            durable.write(out, api.read("/trust/online-keys"))
    except (MusterError, OSError) as error:
        refuse(error)
    emit({"file": str(out)}, as_json, lambda console: console.print(f"Next: `muster init --online-keys {out}`."))


@app.command(epilog=EXIT_CODES)
def push(
    context: typer.Context,
    operator: Annotated[Path, typer.Argument(help="The operator's folder.")] = DEFAULT_OPERATOR,
    as_json: AsJson = False,
) -> None:
    """Bring the operator's root and targets to the controller: after `init`, `model add` and every renewal."""
    try:
        offline = load_offline(operator)
        with connect(context) as api:
            body = {
                "root": offline.root.decode(),
                "targets": offline.targets.decode(),
                "keys": offline.keys.decode(),
                "between": [root.decode() for root in all_roots(operator)[:-1]],
                "releases": {role: raw.decode() for role, raw in newest_releases(operator).items()},
            }
            found = api.post("/trust/offline", body)
    except (MusterError, OSError) as error:
        refuse(error)
    said = "The controller has it now." if found["changed"] else "The controller had it already."
    emit(found, as_json, lambda console: console.print(said))


@app.command(epilog=EXIT_CODES)
def keys(
    context: typer.Context,
    operator: Annotated[
        Path, typer.Option("--operator", "-o", help="The operator's folder, whose public keys give the ids names.")
    ] = DEFAULT_OPERATOR,
    as_json: AsJson = False,
) -> None:
    """Show who may sign what, and when keys and certificates run out."""
    try:
        with connect(context) as api:
            found = api.get("/keys")
        names = {key.keyid: key.name for key in list_keys(operator / KEYS_FOLDER)}
    except (MusterError, OSError) as error:
        refuse(error)

    def human(console: Console) -> None:
        now = time.time()
        roles = Table("role", "version", "needs", "holds", "keys")
        for role in found["roles"]:
            own = (
                f"{names.get(key['id'], key['id'][:KEY_SHOWN])}{' (signed)' if key['has_signed'] else ''}"
                for key in role["keys"]
            )
            holds = "nothing is signed yet" if role["expires_at"] is None else left(role["expires_at"], now)
            needs = f"{role['threshold']} of {len(role['keys'])}"
            roles.add_row(role["role"], str(role["version"] or "–"), needs, holds, "\n".join(own))
        console.print(roles if found["roles"] else "No metadata yet; `muster init` makes it.")
        certificates = Table("certificate", "name", "holds")
        for each in found["certificates"]:
            certificates.add_row(each["role"], each["name"], left(each["expires_at"], now))
        console.print(certificates)
        devices = found["devices"]
        console.print(
            f"Devices: {devices['valid']} certificates hold, {devices['lapsed']} devices were away until theirs ran "
            f"out, {devices['revoked']} certificates are revoked."
        )

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def show(context: typer.Context, as_json: AsJson = False) -> None:
    """Show when each role's metadata runs out."""
    try:
        with connect(context) as api:
            found = api.get("/trust")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("role", "version", "days left")
        now = time.time()
        for each in found["expiries"]:
            table.add_row(each["role"], str(each["version"]), f"{(each['expires_at'] - now) / 86_400:.1f}")
        console.print(table if found["expiries"] else "No metadata yet; `muster init` makes it.")

    emit(found, as_json, human)
