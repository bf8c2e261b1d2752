"""`muster user`: operators, their roles, and the one-time links by which they set a password. For admins."""

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson, Reason
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.login import read_password
from muster_controller.cli.output import emit
from muster_controller.cli.times import stamp
from muster_controller.operators.roles import Role
from muster_shared.errors import MusterError

app = typer.Typer(help="Operators.", no_args_is_help=True, epilog=EXIT_CODES)

NameArgument = Annotated[str, typer.Argument(help="The operator's name.", autocompletion=completion.operators)]
RoleOption = Annotated[Role, typer.Option("--role", help="viewer < operator < publisher, approver < admin.")]
SelectorOption = Annotated[
    str, typer.Option("--selector", "-s", help="Only devices that this label selector names. Default: all.")
]


@app.command(epilog=EXIT_CODES)
def create(
    context: typer.Context,
    name: NameArgument,
    role: RoleOption = Role.VIEWER,
    selector: SelectorOption = "",
    subject: Annotated[str, typer.Option(help='"ISSUER SUB", for who logs in by OIDC.')] = "",
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Add an operator, and print the one-time link by which they set their password."""
    body = {"name": name, "role": role.value, "selector": selector, "subject": subject, "reason": reason}
    found = _post(context, "/operators", body)

    def human(console: Console) -> None:
        _say(console, found["operator"])
        _say_link(console, name, found["link"])

    emit(found, as_json, human)


@app.command("list", epilog=EXIT_CODES)
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List the operators, by name."""
    try:
        with connect(context) as api:
            found = api.pages("/operators", "operators", 1000, {})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("operator", "role", "devices", "login", "state", "since")
        for each in found:
            login = [word for word, there in (("password", each["has_password"]), ("OIDC", each["subject"])) if there]
            table.add_row(
                each["name"],
                each["role"],
                each["selector"] or "all",
                ", ".join(login) or "none yet",
                _state(each),
                stamp(each["created_at"]),
            )
        console.print(table if found else "There is no operator; `muster user create NAME --role ROLE` adds one.")

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def disable(context: typer.Context, name: NameArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let an operator in no more; sessions, tokens and links end at once, and for good."""
    _order(context, name, "disable", {"reason": reason}, as_json)


@app.command(epilog=EXIT_CODES)
def enable(context: typer.Context, name: NameArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let an operator in again, who needs a new session and new tokens."""
    _order(context, name, "enable", {"reason": reason}, as_json)


@app.command(epilog=EXIT_CODES)
def unlock(context: typer.Context, name: NameArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Forget an operator's failed logins."""
    _order(context, name, "unlock", {"reason": reason}, as_json)


@app.command(epilog=EXIT_CODES)
def role(
    context: typer.Context,
    name: NameArgument,
    role: Annotated[Role, typer.Argument(help="viewer, operator, publisher, approver or admin.")],
    selector: SelectorOption = "",
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Change role and devices. It counts from the operator's next request on."""
    _order(context, name, "role", {"role": role.value, "selector": selector, "reason": reason}, as_json)


@app.command(epilog=EXIT_CODES)
def link(context: typer.Context, name: NameArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Print a new one-time link to set a password by; the one before it is void."""
    found = _post(context, f"/operators/{name}/link", {"reason": reason})
    emit(found, as_json, lambda console: _say_link(console, name, found))


@app.command(epilog=EXIT_CODES)
def password(
    context: typer.Context,
    name: NameArgument,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read it from the first line of stdin.")
    ] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Set an operator's password; it asks for it. `muster user link` is better: then only its owner knows it."""
    secret = read_password(f"New password of {name}", from_stdin=password_stdin, twice=True)
    _post(context, f"/operators/{name}/password", {"password": secret, "reason": reason})

    def human(console: Console) -> None:
        console.print(f"{name} has a new password; their sessions are over.", highlight=False)

    emit({"name": name, "changed": True}, as_json, human)


def _order(context: typer.Context, name: str, order: str, body: dict[str, str], as_json: bool) -> None:
    found = _post(context, f"/operators/{name}/{order}", body)
    emit(found, as_json, lambda console: _say(console, found))


def _post(context: typer.Context, path: str, body: dict[str, str]) -> Any:
    try:
        with connect(context) as api:
            return api.post(path, body)
    except MusterError as error:
        refuse(error)


def _say(console: Console, operator: dict[str, Any]) -> None:
    devices = f"devices of {operator['selector']}" if operator["selector"] else "every device"
    console.print(f"{operator['name']}: {operator['role']}, {devices}, {_state(operator)}.", highlight=False)


def _say_link(console: Console, name: str, link: dict[str, Any]) -> None:
    console.print(f"{name} sets a password here, once, until {stamp(link['expires_at'])} UTC:", highlight=False)
    console.print(link["link"], highlight=False, soft_wrap=True, markup=False)


def _state(operator: dict[str, Any]) -> str:
    if not operator["enabled"]:
        return "disabled"
    return "locked" if operator["locked_until"] > time.time() else "enabled"
