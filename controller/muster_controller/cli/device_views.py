"""`muster device views`: filters of the list of devices that you keep under a name; the page has the same ones."""

from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson, ModelOption
from muster_controller.cli.asking import delete, put
from muster_controller.cli.client import EXIT_CODES, Api, connect, refuse
from muster_controller.cli.device_choice import (
    Chosen,
    ClassOption,
    ErrorOption,
    HeldOption,
    LabelOption,
    OnlineOption,
    SelectorOption,
    SilentOption,
    SortOption,
    StateOption,
    TextOption,
    VersionOption,
    choice_of,
    chosen,
    query_of,
)
from muster_controller.cli.output import emit
from muster_controller.cli.times import stamp
from muster_controller.errors import NotFound
from muster_shared.errors import MusterError

PAGE = "devices"
VIEWS_MAX = 1000

app = typer.Typer(help="Filters that you keep under a name.", no_args_is_help=True, epilog=EXIT_CODES)

ViewArgument = Annotated[str, typer.Argument(help="The view's name.", autocompletion=completion.views)]


@app.command("list", epilog=EXIT_CODES)
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List your views. Those of others are theirs alone."""
    try:
        with connect(context) as api:
            views = api.pages("/views", "views", VIEWS_MAX, {"page": PAGE})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("view", "chooses", "saved")
        for each in views:
            table.add_row(escape(each["name"]), escape(_words(choice_of(each["query"]))), stamp(each["saved_at"]))
        console.print(table if views else "You keep none; `muster device views save NAME` with a filter does.")

    emit(views, as_json, human)


@app.command(epilog=EXIT_CODES)
def save(
    context: typer.Context,
    name: ViewArgument,
    state: StateOption = None,
    online: OnlineOption = None,
    device_class: ClassOption = None,
    label: LabelOption = None,
    selector: SelectorOption = None,
    text: TextOption = None,
    model: ModelOption = None,
    version: VersionOption = None,
    held: HeldOption = None,
    error: ErrorOption = None,
    silent_s: SilentOption = None,
    sort: SortOption = None,
    as_json: AsJson = False,
) -> None:
    """Keep a filter under a name; the one that had it is replaced. Options are those of `muster device list`."""
    choice = chosen(
        selector,
        state,
        online,
        device_class,
        label,
        text=text,
        model=model,
        version=version,
        held=held,
        error=error,
        silent_s=silent_s,
        sort=sort,
    )
    if not choice:
        raise typer.BadParameter(
            "say what it chooses, such as --selector site=oslo; without a filter it is every device"
        )
    kept = put(context, _path(name), {"query": query_of(choice)})

    def human(console: Console) -> None:
        console.print(f"Saved {name}: {_words(choice)}.", highlight=False, markup=False)
        console.print(f"Next: `muster device list --view {name!r}`.", highlight=False, markup=False)

    emit(kept, as_json, human)


@app.command("delete", epilog=EXIT_CODES)
def delete_(context: typer.Context, name: ViewArgument, as_json: AsJson = False) -> None:
    """Forget a view."""
    delete(context, _path(name))
    emit({"name": name, "deleted": True}, as_json, lambda console: console.print(f"Forgot {name}.", markup=False))


def found(api: Api, name: str) -> Chosen:
    """Return what the view of that name chooses. Raises NotFound and what `Api` raises."""
    views = api.pages("/views", "views", VIEWS_MAX, {"page": PAGE})
    kept = next((each for each in views if each["name"] == name), None)
    if kept is None:
        raise NotFound("view", name, "`muster device views list` shows yours")
    return choice_of(kept["query"])


def _path(name: str) -> str:
    return f"/views/{PAGE}/{quote(name, safe='')}"


def _words(choice: Chosen) -> str:
    return "; ".join(f"{key}={', '.join(value) if isinstance(value, list) else value}" for key, value in choice.items())
