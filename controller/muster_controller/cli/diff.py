"""`muster diff`: what changed between two moments, or what is different between two devices."""

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson, ModelOption
from muster_controller.cli.client import connect, refuse
from muster_controller.cli.output import emit, fail
from muster_controller.cli.times import moment, stamp
from muster_shared.errors import MusterError


def diff(
    context: typer.Context,
    devices: Annotated[
        list[str] | None, typer.Argument(help="Two devices to compare.", autocompletion=completion.devices)
    ] = None,
    begin: Annotated[str, typer.Option("--from", help='"1h ago", "2026-11-22T11:20", "now".')] = "24h ago",
    end: Annotated[str, typer.Option("--to", help="Until when.")] = "now",
    model: ModelOption = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Of this device only.", autocompletion=completion.devices)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what changed, by what and by whom: between two moments, or from one device to another."""
    pair = devices or []
    if len(pair) not in (0, 2):
        fail("name two devices to compare them, or none for what changed between two moments")
    try:
        now = time.time()
        times: dict[str, str | int | list[str]] = {"from": str(moment(begin, now)), "to": str(moment(end, now))}
        times |= {name: value for name, value in (("model", model), ("device", device)) if value is not None}
        with connect(context) as api:
            found = api.get("/diff/devices", {"a": pair[0], "b": pair[1]}) if pair else api.get("/diff", times)
    except MusterError as error:
        refuse(error)
    emit(found, as_json, lambda console: (_print_devices if pair else _print_times)(console, found))


def _print_times(console: Console, found: dict[str, Any]) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(f"From {stamp(found['from'])} to {stamp(found['to'])} (UTC):")
    for each in found["assignments"]:
        sample = ", ".join(each["sample"][:5]) + (", …" if each["devices"] > 5 else "")
        moved = f"{each['model']} {each['before'] or 'nothing'} -> {each['after'] or 'nothing'}"
        say(f"  {moved}: {_devices(each)} ({sample}) by {each['rollout']} of {each['by']}")
    for each in found["switches"]:
        back = f", and {each['rolled_back']} went back from it" if each["rolled_back"] else ""
        say(f"  {each['model']} {each['version']}: {each['switched']} switches to it were reported{back}")
    for each in found["rollouts"]:
        say(f"  rollout {each['rollout']} of {each['created_by']}: {each['state']}. {each['reason']}".rstrip())
        if each["compared_with"]:
            say(f"    its policy is not that of {each['compared_with']}:")
        for change in each["policy_changes"]:
            say(f"      {change['what']}: {change['before']} -> {change['after']}")
        for order in each["orders"]:
            said = f": {order['detail']}" if order["detail"] else ""
            say(f"    {stamp(order['at'])} {order['what'].replace('_', ' ')} by {order['by']}{said}")
    for each in found["baselines"]:
        group = each["selector"] or "every device"
        say(f"  baseline of {each['model']} for {group}: {_moved(each)} by {each['rollout']} of {each['by']}")
    for each in (*found["trust"], *found["groups"]):
        say(f"  {stamp(each['at'])} {each['what'].replace('_', ' ')} {each['subject']}: {each['detail']}")
    for section, count in found["left_out"].items():
        say(f"  … and {count} more {section}; choose a shorter time, a model or a device")
    if not any(found[section] for section in SECTIONS):
        say("  nothing changed.")


SECTIONS = ("assignments", "switches", "rollouts", "baselines", "trust", "groups")


def _print_devices(console: Console, found: dict[str, Any]) -> None:
    one, other = found["a"]["device"], found["b"]["device"]
    table = Table("", one, other)
    for each in found["differences"]:
        table.add_row(each["what"], _shown(each["before"]), _shown(each["after"]))
    table.add_row("stands", found["a"]["standing"], found["b"]["standing"])
    for model in found["models"]:
        for name in ("desired", "active", "standby", "baseline"):
            if model["a"][name] != model["b"][name]:
                table.add_row(f"{model['model']} {name}", _shown(model["a"][name]), _shown(model["b"][name]))
    console.print(table)
    for model in found["models"]:
        same = "the same" if model["same"] else "DIFFERENT"
        console.print(f"{model['model']}: {same}", highlight=False)
        for name, side in ((one, "a"), (other, "b")):
            console.print(f"  {name}: {model[side]['why']}", highlight=False, soft_wrap=True)


def _moved(each: dict[str, Any]) -> str:
    if each["before"] == each["after"]:
        return f"{each['after']} again (the newest now)"
    return f"{each['before'] or 'none'} -> {each['after']}"


def _devices(each: dict[str, Any]) -> str:
    return "1 device" if each["devices"] == 1 else f"{each['devices']} devices"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)
