"""`muster context`: several controllers by name, and which one is meant when nothing else says so."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli import completion, contexts, logins
from muster_controller.cli.arguments import AsJson
from muster_controller.cli.client import EXIT_CODES, refuse
from muster_controller.cli.contexts import Context
from muster_controller.cli.output import emit, fail
from muster_shared.errors import MusterError

app = typer.Typer(help="Several controllers, by name.", no_args_is_help=True, epilog=EXIT_CODES)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The context.", autocompletion=completion.contexts)]


@app.command("list", epilog=EXIT_CODES)
def list_(as_json: AsJson = False) -> None:
    """List the contexts; the chosen one has a star."""
    try:
        known = contexts.read()
        people = {url: login.operator for url, login in logins.read().items()}
    except MusterError as error:
        refuse(error)
    found = [
        {
            "name": name,
            "chosen": name == known.current,
            "url": each.url,
            "ca": each.ca,
            "operator": people.get(each.url.rstrip("/")),
        }
        for name, each in sorted(known.contexts.items())
    ]

    def human(console: Console) -> None:
        table = Table("", "context", "controller", "CA", "logged in as")
        for each in found:
            table.add_row(
                "*" if each["chosen"] else "",
                *(str(each[name] or "–") for name in ("name", "url", "ca", "operator")),
            )
        console.print(table if found else "None; `muster context set NAME --url URL` makes one.")

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def use(name: NameArgument, as_json: AsJson = False) -> None:
    """Choose the controller that is meant when nothing else says so."""
    try:
        contexts.write(contexts.read().using(name))
    except (MusterError, OSError) as error:
        refuse(error)
    emit({"current": name}, as_json, lambda console: console.print(f"{name} is meant from now on.", highlight=False))


@app.command("set", epilog=EXIT_CODES)
def set_(
    name: NameArgument,
    url: Annotated[str | None, typer.Option("--url", help="The controller.")] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="The CA of its certificate, PEM.", exists=True, dir_okay=False)
    ] = None,
    no_ca: Annotated[bool, typer.Option("--no-ca", help="Trust what this machine trusts.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a context, or change one. The first is chosen at once."""
    if ca is not None and no_ca:
        raise typer.BadParameter("give --ca or --no-ca")
    try:
        known = contexts.read()
        before = known.contexts.get(name)
        meant = url or (before.url if before is not None else None)
        if meant is None:
            fail(f"{name} is new: give its --url")
        kept = None if no_ca or before is None else before.ca
        made = Context(meant.rstrip("/"), str(ca.resolve()) if ca is not None else kept)
        contexts.write(known.having(name, made))
    except (MusterError, OSError) as error:
        refuse(error)

    def human(console: Console) -> None:
        console.print(f"{name} is {made.url}.", highlight=False)
        console.print(f"Next: `muster --context {name} login`.", highlight=False)

    emit({"name": name, "url": made.url, "ca": made.ca}, as_json, human)


@app.command(epilog=EXIT_CODES)
def show(
    name: Annotated[
        str | None, typer.Argument(help="Default: the chosen one.", autocompletion=completion.contexts)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show one context."""
    try:
        known = contexts.read()
        meant = name or known.current
        if meant is None:
            fail("no context is chosen; `muster context use NAME` does it")
        each = known.named(meant)
        login = logins.find(each.url)
    except MusterError as error:
        refuse(error)
    found = {
        "name": meant,
        "chosen": meant == known.current,
        "url": each.url,
        "ca": each.ca,
        "operator": None if login is None else login.operator,
        "expires_at": None if login is None else login.expires_at,
    }

    def human(console: Console) -> None:
        console.print(f"{meant}{' (chosen)' if found['chosen'] else ''}: {each.url}", highlight=False, markup=False)
        console.print(f"CA: {each.ca or 'those that this machine trusts'}", highlight=False, markup=False)
        console.print(f"Logged in as: {found['operator'] or 'nobody'}", highlight=False, markup=False)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def remove(name: NameArgument, as_json: AsJson = False) -> None:
    """Forget a context. Its login is kept: `muster logout` first revokes it."""
    try:
        contexts.write(contexts.read().without(name))
    except (MusterError, OSError) as error:
        refuse(error)
    emit({"removed": name}, as_json, lambda console: console.print(f"{name} is forgotten.", highlight=False))


@app.command(epilog=EXIT_CODES)
def rename(
    name: NameArgument,
    to: Annotated[str, typer.Argument(help="Its new name.")],
    as_json: AsJson = False,
) -> None:
    """Give a context another name."""
    try:
        contexts.write(contexts.read().renamed(name, to))
    except (MusterError, OSError) as error:
        refuse(error)
    emit({"name": to}, as_json, lambda console: console.print(f"{name} is {to} now.", highlight=False))


@app.command(epilog=EXIT_CODES)
def clear(as_json: AsJson = False) -> None:
    """Choose none: the controller of ./muster-data is meant again, else the one on port 8080 here."""
    try:
        contexts.write(contexts.read().using(None))
    except (MusterError, OSError) as error:
        refuse(error)
    emit({"current": None}, as_json, lambda console: console.print("No context is chosen.", highlight=False))
