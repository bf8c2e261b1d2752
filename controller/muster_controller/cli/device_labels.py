"""`muster device label` and `muster label`: the labels in use, and their edit for all devices of a filter at once."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson, Limit, ModelOption, Reason
from muster_controller.cli.asking import post
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.device_choice import (
    ClassOption,
    ErrorOption,
    HeldOption,
    LabelOption,
    OnlineOption,
    SelectorOption,
    SilentOption,
    StateOption,
    TextOption,
    VersionOption,
    chosen,
)
from muster_controller.cli.output import emit
from muster_shared.errors import MusterError


def register(app: typer.Typer) -> None:
    """Add the commands to `muster device`."""
    app.command(epilog=EXIT_CODES)(label)
    app.command(epilog=EXIT_CODES)(labels)


def label(
    context: typer.Context,
    changes: Annotated[
        list[str], typer.Argument(help="KEY=VALUE sets a label, KEY- takes it off.", metavar="CHANGE...")
    ],
    selector: SelectorOption = None,
    state: StateOption = None,
    online: OnlineOption = None,
    device_class: ClassOption = None,
    has_label: LabelOption = None,
    text: TextOption = None,
    model: ModelOption = None,
    version: VersionOption = None,
    held: HeldOption = None,
    error: ErrorOption = None,
    silent_s: SilentOption = None,
    device: Annotated[
        str | None,
        typer.Option("--device", "-d", help="Of this one alone; it does not ask.", autocompletion=completion.devices),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every device.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Set labels of all devices that fit, and take others off. It says first to how many, and asks."""
    where = chosen(
        selector,
        state,
        online,
        device_class,
        has_label,
        text=text,
        model=model,
        version=version,
        held=held,
        error=error,
        silent_s=silent_s,
    )
    if device is not None:
        if where or everything or dry_run:
            raise typer.BadParameter("--device is one device alone; leave out what chooses more, and --dry-run")
        _label_one(context, device, changes, reason, as_json)
        return
    if not where and not everything:
        raise typer.BadParameter("say whose labels, such as --selector site=oslo; --all is every device")
    order = {"where": where, "changes": changes, "reason": reason}
    try:
        with connect(context) as api:
            found = api.post("/devices/labels", {**order, "dry_run": True})
            if not dry_run and found["changed"]:
                if not yes and not typer.confirm(f"Change the labels of {_words(found)}?", err=True):
                    raise typer.Exit(1)
                found = api.post("/devices/labels", {**order, "expect": found["devices"]})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        word = "Would change" if found["dry_run"] else "Changed"
        console.print(f"{word} the labels of {_words(found)}.", highlight=False)

    emit(found, as_json, human)


def _label_one(context: typer.Context, device: str, changes: list[str], reason: str, as_json: bool) -> None:
    found = post(context, f"/devices/{device}/labels", {"changes": changes, "reason": reason})

    def human(console: Console) -> None:
        said = ", ".join(f"{key}={value}" for key, value in sorted(found["granted_labels"].items()))
        console.print(f"{device} has by operators: {said or 'no label'}.", highlight=False, markup=False)

    emit(found, as_json, human)


def labels(
    context: typer.Context,
    prefix: Annotated[
        str, typer.Argument(help="Of a key; KEY= and a prefix of values.", autocompletion=completion.label_words)
    ] = "",
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List the labels in use, with their most frequent values."""
    try:
        with connect(context) as api:
            found = api.pages("/labels", "labels", limit, {"prefix": prefix})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("key", "devices", "values", "the most frequent")
        for each in found:
            top = ", ".join(f"{value['value']} ({value['devices']})" for value in each["top"][:6])
            table.add_row(escape(each["key"]), str(each["devices"]), str(each["values"]), escape(top))
        console.print(table if found else "No device has such a label.")

    emit(found, as_json, human)


def _words(found: dict[str, int]) -> str:
    said = f"{found['changed']:,} of {found['devices']:,} devices"
    if found["unchanged"]:
        said += f"; {found['unchanged']:,} have them so already"
    if found["without_identity"]:
        said += f"; {found['without_identity']:,} have no identity, and keep their own"
    return said
