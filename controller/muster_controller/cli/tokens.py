"""`muster token`: API tokens for machines: one's own, or (for admins) another operator's."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli.arguments import AsJson, Reason
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit
from muster_controller.cli.times import length, stamp
from muster_controller.operators.roles import Role
from muster_shared.errors import MusterError

app = typer.Typer(help="API tokens.", no_args_is_help=True, epilog=EXIT_CODES)

LISTED = 1000


@app.command(epilog=EXIT_CODES)
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for.")],
    owner: Annotated[str | None, typer.Option("--for", help="Whose. Default: yours; others' by admins alone.")] = None,
    role: Annotated[Role | None, typer.Option(help="Less than its operator. Default: as its operator.")] = None,
    selector: Annotated[str, typer.Option("--selector", "-s", help="Only devices that this selector names.")] = "",
    ttl: Annotated[str, typer.Option(help='How long it lives, such as "12h" or "90d"; a year at most.')] = "90d",
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Make an API token and print it, this once. Programs send it as `Authorization: Bearer`, or in MUSTER_TOKEN."""
    try:
        body = {"name": name, "operator": owner, "role": role and role.value, "selector": selector}
        with connect(context) as api:
            found = api.post("/tokens", {**body, "ttl_s": length(ttl), "reason": reason})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        scope = f"{found['role'] or 'as its operator'}, {found['selector'] or 'every device'}"
        console.print(
            f"Token {found['id']} of {found['operator']}: {scope}, until {stamp(found['expires_at'])} UTC. Keep it:",
            highlight=False,
        )
        console.print(found["token"], highlight=False, soft_wrap=True, markup=False)

    emit(found, as_json, human)


@app.command("list", epilog=EXIT_CODES)
def list_(
    context: typer.Context,
    owner: Annotated[str | None, typer.Option("--for", help="Of this operator; admins alone.")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Of every operator; admins alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """List your sessions and tokens that count, newest first."""
    params: dict[str, str | int | list[str]] = {"all": str(everybody).lower()}
    if owner is not None:
        params["operator"] = owner
    try:
        with connect(context) as api:
            found = api.pages("/tokens", "credentials", LISTED, params)
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("id", "operator", "kind", "name", "role", "devices", "last used", "runs out")
        for each in found:
            table.add_row(
                each["id"],
                each["operator"],
                each["kind"],
                each["name"],
                each["role"] or "–",
                each["selector"] or "all",
                stamp(each["used_at"]),
                stamp(each["expires_at"]),
            )
        console.print(table if found else "None; `muster token create NAME` makes one (`--for`, with the local token).")

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def revoke(
    context: typer.Context,
    token: Annotated[str, typer.Argument(help="Its id, as `muster token list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """End a token or a session, at once."""
    try:
        with connect(context) as api:
            api.delete(f"/tokens/{token}")
    except MusterError as error:
        refuse(error)
    emit({"id": token, "revoked": True}, as_json, lambda console: console.print(f"{token} is revoked."))
