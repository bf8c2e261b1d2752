"""`muster device`: what the devices report."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.cli import completion, device_actions, device_labels, device_views
from muster_controller.cli.arguments import AsJson, DeviceArgument, Limit, ModelOption, Reason
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.device_choice import (
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
    chosen,
)
from muster_controller.cli.output import emit
from muster_controller.cli.times import stamp
from muster_controller.identity.enrolment import IdentityState
from muster_shared.errors import MusterError

app = typer.Typer(help="Devices.", no_args_is_help=True, epilog=EXIT_CODES)
device_actions.register(app)
device_labels.register(app)
app.add_typer(device_views.app, name="views")


@app.command("list")
def list_(
    context: typer.Context,
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
    view: Annotated[
        str | None,
        typer.Option(
            "--view", help="As this view of yours says; other options come before it.", autocompletion=completion.views
        ),
    ] = None,
    limit: Limit = 100,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all of them as CSV, whatever the limit.")] = False,
    as_json: AsJson = False,
) -> None:
    """List devices."""
    params = chosen(
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
    try:
        with connect(context) as api:
            if view is not None:
                params = {**device_views.found(api, view), **params}
            if as_csv:
                unsorted = {key: value for key, value in params.items() if key != "sort"}
                with api.lines("/devices.csv", unsorted) as lines:
                    for line in lines:
                        sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                return
            devices = api.pages("/devices", "devices", limit, params)
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("device", "link", "stands", "class", "serves", "error")
        for device in devices:
            table.add_row(
                str(device["id"]),
                "online" if device["online"] else "offline",
                str(device["standing"]),
                str(device["device_class"]),
                _versions(device["active"]),
                str(device["error"] or ""),
            )
        console.print(table if devices else "No device is like that; without options all are listed.")

    emit(devices, as_json, human)


@app.command(epilog=EXIT_CODES)
def show(context: typer.Context, device: DeviceArgument, as_json: AsJson = False) -> None:
    """Show one device: its slots and its newest events."""
    try:
        with connect(context) as api:
            found = api.get(f"/devices/{device}")
            found["events"] = api.get("/events", {"device": device, "limit": 10})["events"]
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        link = "online" if found["online"] else "offline"
        console.print(f"{found['id']}: {found['device_class']}, {link}, {found['standing']}.")
        granted = found.get("granted_labels", {})
        labels = [
            f"{key}={value}{' (by an operator)' if key in granted else ''}" for key, value in found["labels"].items()
        ]
        if labels:
            console.print(f"Labels: {', '.join(labels)}", highlight=False, markup=False)
        table = Table("model", "serves", "kept", "should serve", "by rollout", "phase", "engine", "error")
        for slot in found["slots"]:
            table.add_row(
                slot["model"],
                *(slot[key]["version"] if slot[key] else "–" for key in ("active", "standby", "desired")),
                slot["rollout"] or "–",
                slot["phase"],
                slot["engine"] or "–",
                slot["last_error"] or "",
            )
        if found["slots"]:
            console.print(table)
        for event in found["events"]:
            console.print(f"  {event['summary']}", highlight=False, markup=False)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def identities(
    context: typer.Context,
    state: Annotated[IdentityState | None, typer.Option(help="Only these.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List who enrolled, or waits to be accepted."""
    try:
        with connect(context) as api:
            found = api.pages("/identities", "identities", limit, {} if state is None else {"state": state.value})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("device", "state", "key", "token", "serial number", "asked", "by", "reason")
        for each in found:
            words = [each[name] for name in ("device", "state", "fingerprint", "token", "hardware_serial")]
            words[2] = str(words[2])[:16]
            words += [stamp(each["asked_at"]), each["decided_by"], each["reason"]]
            table.add_row(*(escape(str(word)) for word in words))
        console.print(table if found else "Nobody; `muster enroll-token create` makes what lets devices enrol.")

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def accept(context: typer.Context, device: DeviceArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let a device in that waits. Compare its key with what the device says first."""
    _order(context, device, "accept", reason, as_json)


@app.command(epilog=EXIT_CODES)
def reject(context: typer.Context, device: DeviceArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Turn a device away that waits."""
    _order(context, device, "reject", reason, as_json)


@app.command(epilog=EXIT_CODES)
def revoke(context: typer.Context, device: DeviceArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Take a device's identity for good: its connection is cut, and its key is worth nothing any more."""
    _order(context, device, "revoke", reason, as_json)


@app.command(epilog=EXIT_CODES)
def forget(context: typer.Context, device: DeviceArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Free a device's name, so that it can enrol with another key. What it had is worth nothing any more."""
    _order(context, device, "forget", reason, as_json)


def _order(context: typer.Context, device: str, order: str, reason: str, as_json: bool) -> None:
    try:
        with connect(context) as api:
            found = api.post(f"/identities/{device}/{order}", {"reason": reason})
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        said = "forgotten" if order == "forget" else str(found["identity"]["state"])
        later = "" if found["in_effect"] else " The broker has not taken it yet; it is told until it does."
        console.print(f"{device} (key {found['identity']['fingerprint'][:16]}) is {said}.{later}", highlight=False)

    emit(found, as_json, human)


def _versions(active: object) -> str:
    return ", ".join(f"{model} {version}" for model, version in active.items()) if isinstance(active, dict) else ""
