"""`muster device`: what the devices report."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.api.standing import Standing
from muster_controller.cli.arguments import AsJson, DeviceArgument, Limit, Reason
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit
from muster_controller.cli.times import stamp
from muster_controller.identity.enrolment import IdentityState
from muster_shared.errors import MusterError

app = typer.Typer(help="Devices.", no_args_is_help=True, epilog=EXIT_CODES)


@app.command("list")
def list_(
    context: typer.Context,
    state: Annotated[Standing | None, typer.Option(help="How it stands against what it should run.")] = None,
    online: Annotated[bool | None, typer.Option("--online/--offline", help="Only these.")] = None,
    device_class: Annotated[str | None, typer.Option("--class", help="Of this class.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="key=value; repeat it.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List devices, by id."""
    params: dict[str, str | int | list[str]] = {"label": label or []}
    if state is not None:
        params["state"] = state.value
    if online is not None:
        params["online"] = str(online).lower()
    if device_class is not None:
        params["class"] = device_class
    try:
        with connect(context) as api:
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
