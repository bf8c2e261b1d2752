"""`muster receiver`: where alerts and reviews are told. For admins."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson, Reason
from muster_controller.cli.asking import delete, listed, post
from muster_controller.cli.client import EXIT_CODES
from muster_controller.cli.output import emit

app = typer.Typer(help="Where alerts and reviews are told. For admins.", no_args_is_help=True, epilog=EXIT_CODES)

ReceiverArgument = Annotated[str, typer.Argument(help="The receiver.", autocompletion=completion.receivers)]


class Severity(StrEnum):
    INFO = "info"
    TICKET = "ticket"
    PAGE = "page"


@app.command("add", epilog=EXIT_CODES)
def add_receiver(
    context: typer.Context,
    name: ReceiverArgument,
    webhook: Annotated[str | None, typer.Option(help="An http or https URL.")] = None,
    email: Annotated[str | None, typer.Option(help="A mail address.")] = None,
    mqtt: Annotated[str | None, typer.Option(help="A topic: mqtts://[user@]host[:port]/topic.")] = None,
    password_file: Annotated[Path | None, typer.Option(help="With the password of an MQTT user.")] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM: roots of a broker's certificate; else the usual ones.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM: a client certificate for a broker, its chain and its key, in one file.")
    ] = None,
    severity: Annotated[
        list[Severity] | None, typer.Option("--severity", "-s", help="Only these; repeat it. Default: all.")
    ] = None,
    reviews: Annotated[bool, typer.Option("--reviews", help="Weekly reviews, too.")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Add a receiver, and print the secret of a webhook's signature, this once."""
    given = {kind: each for kind, each in (("webhook", webhook), ("email", email), ("mqtt", mqtt)) if each is not None}
    if len(given) != 1:
        raise typer.BadParameter("give --webhook, --email or --mqtt")
    ((kind, address),) = given.items()
    files = {"password": password_file, "ca": ca, "certificate": certificate}
    order = {
        "name": name,
        "kind": kind,
        "address": address,
        **{what: _read(path) for what, path in files.items() if path is not None},
        "severities": [each.value for each in severity or []],
        "reviews": reviews,
        "reason": reason,
    }
    found = post(context, "/receivers", order)

    def human(console: Console) -> None:
        console.print(f"Receiver {name} is added; `muster receiver test {name}` tries it.", highlight=False)
        if found["secret"]:
            console.print("\nThe secret of its signature (Standard Webhooks), which is not shown again:\n")
            console.print(f"  {found['secret']}", highlight=False, markup=False, soft_wrap=True)

    emit(found, as_json, human)


def _read(path: Path) -> str:
    """Return what is in a small file, without the end of its last line."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error


@app.command("list", epilog=EXIT_CODES)
def list_receivers(context: typer.Context, as_json: AsJson = False) -> None:
    """List the receivers, and how what they are told stands."""
    found = listed(context, "/receivers", "receivers")

    def human(console: Console) -> None:
        table = Table("receiver", "kind", "address", "severities", "reviews", "waiting", "told", "given up", "trouble")
        for each in found:
            trouble = "disabled: it is gone" if each["disabled_at"] is not None else each["error"]
            words = (each["name"], each["kind"], each["address"], ", ".join(each["severities"]) or "all")
            counts = (str(each["waiting"]), str(each["told"]), str(each["given_up"]))
            table.add_row(*map(escape, words), "yes" if each["reviews"] else "no", *counts, escape(trouble))
        console.print(table if found else "Nobody is told; `muster receiver add NAME --webhook URL` adds somebody.")

    emit(found, as_json, human)


@app.command("remove", epilog=EXIT_CODES)
def remove_receiver(context: typer.Context, name: ReceiverArgument, as_json: AsJson = False) -> None:
    """Remove a receiver, and what waits for it."""
    delete(context, f"/receivers/{name}")
    emit({"name": name, "removed": True}, as_json, lambda console: console.print(f"Receiver {name} is removed."))


@app.command("test", epilog=EXIT_CODES)
def try_receiver(context: typer.Context, name: ReceiverArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Tell a receiver that this is a test, at once."""
    found = post(context, f"/receivers/{name}/test", {"reason": reason})
    emit(found, as_json, lambda console: console.print(f"Receiver {name} took it."))
