"""`muster slo`: service level objectives of models, and what is left of their error budgets."""

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson, Reason
from muster_controller.cli.asking import delete, get, listed, put
from muster_controller.cli.client import EXIT_CODES
from muster_controller.cli.output import emit

app = typer.Typer(help="Service level objectives of models.", no_args_is_help=True, epilog=EXIT_CODES)

ObjectiveArgument = Annotated[str, typer.Argument(help="The objective.", autocompletion=completion.objectives)]


class Indicator(StrEnum):
    AVAILABILITY = "availability"
    LATENCY = "latency"


@app.command("list", epilog=EXIT_CODES)
def list_objectives(context: typer.Context, as_json: AsJson = False) -> None:
    """List the objectives, and what is left of their error budgets of 28 days."""
    found = listed(context, "/objectives", "objectives")

    def human(console: Console) -> None:
        table = Table(
            "objective", "model", "class", "indicator", "target", "budget left", "burn 1 h", "burn 6 h", "requests"
        )
        for each in found:
            rates = [_number(each["rates"].get(window)) for window in ("3600", "21600")]
            words = (each["name"], each["model"], each["device_class"] or "all", each["indicator"])
            left = _percent(each["budget_left"])
            table.add_row(*map(escape, words), f"{each['target']:.4%}", left, *rates, f"{each['requests']:,}")
        console.print(table if found else "There is no objective; `muster slo set NAME --model M` sets one.")

    emit(found, as_json, human)


@app.command("show", epilog=EXIT_CODES)
def show_objective(context: typer.Context, name: ObjectiveArgument, as_json: AsJson = False) -> None:
    """Show how one objective stands."""
    found = get(context, f"/objectives/{name}")
    emit(found, as_json, lambda console: _say_objective(console, found))


@app.command("set", epilog=EXIT_CODES)
def set_objective(
    context: typer.Context,
    name: ObjectiveArgument,
    model: Annotated[str, typer.Option("--model", "-m", help="The model.", autocompletion=completion.models)],
    indicator: Annotated[
        Indicator,
        typer.Option(help="availability: answered without an error; latency: within the release's slo.latency_ms_p95."),
    ] = Indicator.AVAILABILITY,
    target: Annotated[float, typer.Option(help="Share of requests that must be good over 28 days.")] = 0.999,
    device_class: Annotated[str, typer.Option("--class", help="On devices of this class only.")] = "",
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Set an objective, or put another in its place. It alerts as soon as its budget burns too fast."""
    body = {"model": model, "indicator": indicator.value, "target": target, "device_class": device_class}
    found = put(context, f"/objectives/{name}", {**body, "reason": reason})
    emit(found, as_json, lambda console: _say_objective(console, found))


@app.command("remove", epilog=EXIT_CODES)
def remove_objective(context: typer.Context, name: ObjectiveArgument, as_json: AsJson = False) -> None:
    """Remove an objective; an alert of it ends by itself."""
    delete(context, f"/objectives/{name}")
    emit({"name": name, "removed": True}, as_json, lambda console: console.print(f"Objective {name} is removed."))


def _say_objective(console: Console, found: dict[str, Any]) -> None:
    where = f" on {found['device_class']}" if found["device_class"] else ""
    said = f"{found['name']}: {found['target']:.4%} {found['indicator']} of {found['model']}{where}."
    console.print(said, markup=False, highlight=False)
    if found["budget_left"] is None:
        console.print("No requests were counted in 28 days.")
        return
    counted = f"{found['bad']:,} of {found['requests']:,} requests in 28 days were bad"
    console.print(f"{counted}; {_percent(found['budget_left'])} of the error budget is left.", highlight=False)
    for window, rate in sorted(found["rates"].items(), key=lambda each: int(each[0])):
        console.print(f"  burn rate over {_span(int(window))}: {_number(rate)}", highlight=False)


def _number(number: float | None) -> str:
    return "no traffic" if number is None else f"{number:.2f}"


def _percent(share: float | None) -> str:
    return "no traffic" if share is None else f"{share:.1%}"


def _span(seconds: int) -> str:
    for size, word in ((86_400, "d"), (3600, "h")):
        if seconds >= size:
            return f"{seconds // size} {word}"
    return f"{seconds // 60} min"
