"""`muster metrics`: what the anonymous metrics tell, with intervals; comparisons, slices, mixers, and the statement.

`muster metrics MODEL` is short for `muster metrics show MODEL`.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from muster_controller.cli.arguments import AsJson, ModelArgument, VersionArgument
from muster_controller.cli.asking import get
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit
from muster_controller.cli.times import TimeInvalid, moment, stamp
from muster_controller.metrics.questions import Step
from muster_shared.errors import MusterError

BAR = 20  # Characters.
CLASSES_SHOWN = 20
SLICES_SHOWN = 20
KINDS = ("accuracy", "confidence", "latency", "inputs", "drift", "classes")

Json = Mapping[str, Any]
"""An answer of the API, of which the controller's schemas say more."""


class _ModelFirst(TyperGroup):
    """A group in which a word that is no command is a model to show."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    help="What models see and say on the devices: anonymous sums, with intervals. `muster metrics MODEL` shows one.",
    cls=_ModelFirst,
    no_args_is_help=True,
    epilog=EXIT_CODES,
)

Version = Annotated[str | None, typer.Option("--version", help="Of this release only.")]
Class = Annotated[str | None, typer.Option("--class", help="Of this device class only.")]
Region = Annotated[str | None, typer.Option("--region", help="Of this region only; empty: devices without one.")]
Since = Annotated[str | None, typer.Option("--since", help='"7d ago", or a moment such as 2026-11-22T11:20.')]


@app.command("show", epilog=EXIT_CODES)
def show(
    context: typer.Context,
    model: ModelArgument,
    version: Version = None,
    device_class: Class = None,
    region: Region = None,
    since: Since = None,
    step: Annotated[
        Step, typer.Option(help="Hours: the last day, if no time is given. Days: the last 30.")
    ] = Step.HOUR,
    as_json: AsJson = False,
) -> None:
    """Show one model: accuracy, confidence, latency, inputs, drift and classes, each with its 95 % interval."""
    try:
        asked = {**_asked(version, device_class, region, since), "step": step.value}
        with connect(context) as api:
            found = {kind: api.get(f"/metrics/{model}/{kind}", asked) for kind in KINDS}
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        any_kind = found["classes"]
        of = [model, version or "all releases", device_class or "", region or ""]
        console.print(f"{', '.join(each for each in of if each)}: {_span(any_kind)}", highlight=False, markup=False)
        table = Table("figure", "value", "95 % interval", "", "devices", "eps")
        for kind, name, said in (
            ("accuracy", "all", "accuracy, of labelled ones"),
            ("confidence", "mean", "mean confidence"),
            ("inputs", "not_answered", "requests not answered"),
            ("inputs", "outlier", "outlier inputs"),
            ("inputs", "out_of_range", "inputs out of range"),
            ("drift", "drifting", "devices with drift"),
            ("drift", "skewed", "devices with skew"),
        ):
            _row(table, said, _figure(found[kind], name))
        for name in ("p50", "p95", "p99"):
            _row(table, f"latency {name}, ms", _figure(found["latency"], name), is_share=False)
        console.print(table)
        classes = sorted(any_kind["figures"], key=lambda each: -(each["figure"]["value"] or 0.0))
        if any(each["figure"]["value"] is not None for each in classes):
            table = Table("class", "share", "95 % interval", "", "devices", "eps")
            for each in classes[:CLASSES_SHOWN]:
                _row(table, each["name"], each["figure"])
            console.print(table)
            if len(classes) > CLASSES_SHOWN:
                console.print(f"and {len(classes) - CLASSES_SHOWN} more; --json has all.")
        if not any(found[kind]["points"] for kind in KINDS):
            console.print("No sums were published of that; `muster metrics list` shows what there is.")

    emit(found, as_json, human)


@app.command("list", epilog=EXIT_CODES)
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List what there are sums of: releases, device classes and regions."""
    found = _get(context, "/metrics/models")

    def human(console: Console) -> None:
        table = Table("model", "version", "class", "region", "kinds", "devices", "first day", "last day")
        for model in found["models"]:
            for each in model["cells"]:
                days = (stamp(each[name])[:5] for name in ("first", "last"))
                kinds = ", ".join(each["kinds"])
                names = (model["model"], each["version"], each["device_class"], each["region"] or "–")
                table.add_row(*names, kinds, str(each["devices"]), *days)
        nothing = "No mixer has published sums yet; `muster metrics mixers` shows how the mixers are."
        console.print(table if found["models"] else nothing)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def compare(
    context: typer.Context,
    model: ModelArgument,
    before: VersionArgument,
    after: VersionArgument,
    device_class: Class = None,
    region: Region = None,
    after_class: Annotated[
        str | None, typer.Option("--after-class", help="The second of this device class, where it is another.")
    ] = None,
    after_region: Annotated[
        str | None, typer.Option("--after-region", help="The second of this region, where it is another.")
    ] = None,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Compare two releases, or device classes or regions: what differs, with its interval and what it is worth."""
    asked = _asked(None, device_class, region, since)
    asked |= {} if after_class is None else {"after_class": after_class}
    asked |= {} if after_region is None else {"after_region": after_region}
    found = _get(context, f"/metrics/{model}/compare", before, after, asked)

    def human(console: Console) -> None:
        console.print(f"{model} {before} and {after}: {_span(found)}", highlight=False, markup=False)
        table = Table("figure", before, after, "difference", "95 % interval", "p", "e")
        classes = [each for each in found["classes"] if each["difference"]["value"] is not None]
        classes.sort(key=lambda each: each["difference"]["p"])
        for each in [*found["figures"], *classes[:CLASSES_SHOWN]]:
            is_class = each not in found["figures"]
            is_share = "latency" not in each["name"] or is_class
            difference = each["difference"]
            table.add_row(
                f"class {each['name']}" if is_class else each["name"],
                _value(each["before"]["value"], is_share=is_share),
                _value(each["after"]["value"], is_share=is_share),
                _signed(difference["value"]),
                "" if difference["value"] is None else f"{_signed(difference['low'])} … {_signed(difference['high'])}",
                _small(difference["p"]),
                _small(difference["e"]),
            )
        console.print(table)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def slices(
    context: typer.Context,
    model: ModelArgument,
    before: VersionArgument,
    after: VersionArgument,
    device_class: Class = None,
    region: Region = None,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Find where a release got worse, also where the average got better: by true class, device class and region."""
    found = _get(context, f"/metrics/{model}/slices", before, after, _asked(None, device_class, region, since))

    def human(console: Console) -> None:
        tested = [each for each in found["slices"] if each["p"] is not None]
        worse = sum(each["is_regression"] for each in tested)
        said = f"{worse} of {found['tested']} slices got worse; {found['untested']} hold too little to tell."
        console.print(f"{model}, from {before} to {after}: {said}", highlight=False, markup=False)
        table = Table("slice", "measure", before, after, "worse by", "95 % interval", "p, corrected", "")
        for each in tested[:SLICES_SHOWN]:
            mark = "WORSE, and the average is not" if each["is_hidden"] else "WORSE" if each["is_regression"] else ""
            table.add_row(
                f"{each['dimension'].replace('_', ' ')} {each['name'] or '–'}",
                each["measure"],
                _value(each["before"]["value"]),
                _value(each["after"]["value"]),
                _signed(each["worse"]),
                f"{_signed(each['low'])} … {_signed(each['high'])}",
                _small(each["p_adjusted"]),
                mark,
            )
        if tested:
            console.print(table)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def mixers(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the mixers: what they took, what they did not publish, and what of the privacy budget is spent."""
    found = _get(context, "/metrics/mixers")

    def human(console: Console) -> None:
        table = Table("mixer", "heard", "key", "windows", "suppressed", "out of budget", "newest day", "spent", "")
        for each in found["mixers"]:
            newest = each["budgets"][0] if each["budgets"] else None
            spent = 0.0 if newest is None else newest["rho_spent"] / max(newest["rho_budget"], 1e-12)
            table.add_row(
                each["mixer"],
                stamp(each["seen_at"]) if each["seen_at"] else "never",
                each["key"] or "–",
                *(str(each[name] if each[name] is not None else "–") for name in _COUNTS),
                "–" if newest is None else newest["day"],
                "–" if newest is None else f"{spent:.0%}, eps {newest['eps_spent']:.2f}",
                _bar(spent, spent),
            )
        console.print(table if found["mixers"] else "No mixer; `muster mixer` says how one is made.")

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def headroom(context: typer.Context, since: Since = None, as_json: AsJson = False) -> None:
    """Show how much each device class has left in its busiest hour, of the last week if no time is given."""
    found = _get(context, "/metrics/headroom", asked=_asked(None, None, None, since))

    def human(console: Console) -> None:
        table = Table(
            "class", "devices", "busiest hour", "processor", "busiest device", "", "could do", "requests/s, peak"
        )
        for each in found["classes"]:
            mean, most = each["cpu_percent"], each["cpu_percent_max"]
            table.add_row(
                each["device_class"],
                str(each["devices"]),
                "unknown" if each["at"] is None else stamp(each["at"]),
                "unknown" if mean is None else f"{mean:.0f} %",
                "unknown" if most is None else f"{most:.0f} %",
                "" if mean is None else _bar(mean / 100, (most or mean) / 100),
                "unknown" if each["factor"] is None else f"{each['factor']:.1f} x",
                f"{each['requests_peak']:.1f}",
            )
        console.print(table if found["classes"] else "No device has told of itself yet.")

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def statement(context: typer.Context, as_json: AsJson = False) -> None:
    """Print the privacy statement with the parameters in force, as Markdown."""
    found = _get(context, "/metrics/statement")
    emit(found, as_json, lambda console: _write(found["markdown"]))


_COUNTS = ("windows", "suppressed", "out_of_budget")


def _get(
    context: typer.Context,
    path: str,
    before: str = "",
    after: str = "",
    asked: Mapping[str, str | int | list[str]] | None = None,
) -> Json:
    params = dict(asked or {})
    params |= {"before": before, "after": after} if before else {}
    found = get(context, path, params)
    assert isinstance(found, dict), "every answer about metrics is an object"
    return found


def _asked(
    version: str | None, device_class: str | None, region: str | None, since: str | None
) -> dict[str, str | int | list[str]]:
    asked: dict[str, str | int | list[str]] = {}
    for name, value in (("version", version), ("device_class", device_class), ("region", region)):
        if value is not None:
            asked[name] = value
    if since is not None:
        try:
            asked["from"] = int(moment(since, time.time()))
        except TimeInvalid as error:
            refuse(error)
    return asked


def _write(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def _figure(answer: Json, name: str) -> Json:
    figures: Sequence[Json] = answer["figures"]
    return next((each["figure"] for each in figures if each["name"] == name), _NOTHING)


_NOTHING: Json = {"value": None, "low": None, "high": None, "devices": 0, "eps": 0.0}


def _row(table: Table, said: str, figure: Json, *, is_share: bool = True) -> None:
    low, high = figure["low"], figure["high"]
    is_known = figure["value"] is not None
    table.add_row(
        said,
        _value(figure["value"], is_share=is_share),
        f"{_value(low, is_share=is_share)} … {_value(high, is_share=is_share)}" if is_known else "",
        _bar(low or 0.0, high or 0.0) if is_known and is_share else "",
        str(figure["devices"]),
        f"{figure['eps']:.2f}",
    )


def _value(value: float | None, *, is_share: bool = True) -> str:
    if value is None:
        return "unknown"
    return f"{value:.2%}" if is_share else f"{value:.3g}"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2%}"


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _bar(low: float, high: float) -> str:
    """Return a bar that is full up to `low` and grey up to `high`, both 0..1."""
    full = round(min(max(low, 0.0), 1.0) * BAR)
    grey = round(min(max(high, 0.0), 1.0) * BAR)
    return "█" * full + "▒" * (grey - full) + "·" * (BAR - max(full, grey))


def _span(answer: Json) -> str:
    return f"{stamp(answer['since'])} to {stamp(answer['until'])} UTC."
