"""`muster rollout explain`: what the gate has counted, what E is of it, why it decided so, and what comes next."""

import json
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson
from muster_controller.cli.client import Api, connect, refuse
from muster_controller.cli.output import emit, fail
from muster_controller.cli.recompute import Recomputed, recompute
from muster_controller.cli.times import stamp
from muster_shared.errors import MusterError

EPILOG = (
    "Exit codes: 0 done, 1 failed, or E does not agree with its counts, 4 no such rollout, 6 no controller answers."
)
BARS = "▁▂▃▄▅▆▇█"
LINE_LENGTH = 60
POINTS_MAX = 10_000
FILE_MAX = 64 * 1024 * 1024


def explain(
    context: typer.Context,
    rollout: Annotated[str | None, typer.Argument(help="The rollout's id.", autocompletion=completion.rollouts)] = None,
    file: Annotated[
        Path | None, typer.Option("--from", help="What `--json` said before, instead of asking a controller.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--recompute", help="Compute E again from its counts, and say whether it agrees.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the gate has counted, what E is, why it decided what it did, and what happens next."""
    if (rollout is None) == (file is None):
        fail("name a rollout, or a file with --from")
    try:
        if file is not None:
            found = _read(file)
        else:
            with connect(context) as api:
                found = _ask(api, str(rollout))
        lines = recompute(found) if check else []
    except (MusterError, OSError) as error:
        refuse(error)
    if check:
        emit(lines, as_json, lambda console: _print_recomputed(console, lines))
        raise typer.Exit(0 if all(line.agrees for line in lines) else 1)
    emit(found, as_json, lambda console: _print(console, found))


def _ask(api: Api, rollout: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/rollouts/{rollout}")
    found["points"] = api.pages(f"/rollouts/{rollout}/evidence", "points", POINTS_MAX, {})
    found["waiting"] = api.get(f"/rollouts/{rollout}/waiting", {"limit": 1})["counts"]
    return found


def _read(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        raw = opened.read(FILE_MAX + 1)
    try:
        found = json.loads(raw) if len(raw) <= FILE_MAX else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        fail(f"{file} is not what `muster rollout explain --json` says")
    return found


def _print(console: Console, found: dict[str, Any]) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    over = f" over {found['previous']}" if found["previous"] else ""
    say(f"{found['model']} {found['version']}{over}, {found['state']}: {found['reason'] or 'nothing to say'}.")
    evidence, terms = found["evidence"], found["terms"]
    console.print(_strata(evidence["strata"]) if evidence["strata"] else "Nothing was counted yet.")
    console.print(_metrics(found))
    say(
        f"E = {_number(found['e'])}, the mean of the metrics by weight. Of failures: {_number(evidence['e_controls'])}"
        f" against devices that were held back, {_number(evidence['e_objective'])} against the objective of"
        f" {terms['failure_objective']:.2%}."
    )
    say(
        f"Nothing is promoted while any metric is at {found['hold_at']:g} or above (now {_number(found['hold_e'])}); at"
        f" E = {found['abort_at']:g} it is aborted. A harmless release gets there with a chance of {terms['alpha']:.0%}"
        " at most, however often one looks."
    )
    if found["points"]:
        say(f"E over time  {sparkline([point['e'] for point in found['points']], found['abort_at'])}")
    if found["verdicts"]:
        say("Verdicts (UTC):")
    for each in found["verdicts"]:
        say(_verdict(each))
    for each in found["approvals"]["given"]:
        before = "the end" if each["before"] == "finish" else f"wave {each['before']}"
        said = f": {each['reason']}" if each["reason"] else ""
        say(f"{before.capitalize()} was approved by {each['by']} at {stamp(each['at'])}{said}.")
    if found["waiting"]:
        say(
            "Devices: " + ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in found["waiting"].items()) + "."
        )
    say(f"Next: {found['outlook']}")
    if found["orders"]:
        say(f"Orders that it would obey now: {', '.join(found['orders'])}.")


def _strata(strata: Sequence[dict[str, Any]]) -> Table:
    table = Table("wave", "class", "treated", "bad", "held back", "bad", "paired", "slower", "compared", "disagreed")
    table.title = "Counted"
    for each in strata:
        pairs = sum(count for _, count in each["latency"])
        slower = sum(place * count for place, count in each["latency"]) * 0.005 / pairs if pairs else None
        table.add_row(
            str(each["wave"] + 1),
            each["device_class"],
            *(str(each[key]) for key in ("treated", "treated_bad", "controls", "controls_bad")),
            str(pairs or "–"),
            "–" if slower is None else f"{slower:+.1%}",
            *(str(each[key]) if each["compared"] else "–" for key in ("compared", "disagreed")),
        )
    return table


def _metrics(found: dict[str, Any]) -> Table:
    table = Table("metric", "E", "all devices", "by class", "weight", "alone it aborts at")
    table.title = "Evidence"
    for name, each in found["evidence"]["metrics"].items():
        weight = found["terms"]["weights"][name]
        classes = ", ".join(f"{device_class} {_number(e)}" for device_class, e in each["e_classes"].items())
        alone = _number(found["abort_at"] / weight)
        table.add_row(name, _number(each["e"]), _number(each["e_pooled"]), classes or "–", f"{weight:.2f}", alone)
    return table


def _verdict(each: dict[str, Any]) -> str:
    sums = {key: sum(stratum[key] for stratum in each["evidence"]["strata"]) for key in _COUNTS}
    counts = f"bad: {sums['treated_bad']} of {sums['treated']}, held back {sums['controls_bad']} of {sums['controls']}"
    return f"  {stamp(each['at'])}  wave {each['wave'] + 1} {each['kind']}: {each['reason']} ({counts})"


_COUNTS = ("treated", "treated_bad", "controls", "controls_bad")


def _print_recomputed(console: Console, lines: Sequence[Recomputed]) -> None:
    table = Table("verdict", "E as said", "E of its counts", "")
    for line in lines:
        table.add_row(line.name, f"{line.said:.12g}", f"{line.computed:.12g}", "agrees" if line.agrees else "DIFFERS")
    console.print(table)
    agree = all(line.agrees for line in lines)
    console.print("Every E agrees with its counts." if agree else "Some E is not what its counts come to.")


def sparkline(values: Sequence[float], abort_at: float) -> str:
    """Return E over time as bars on a logarithmic scale, from 1/10 up to where it aborts."""
    if len(values) > LINE_LENGTH:
        step = (len(values) - 1) / (LINE_LENGTH - 1)
        values = [values[round(place * step)] for place in range(LINE_LENGTH)]
    low, high = log(0.1), log(max(abort_at, 1.0))
    shares = ((log(max(value, 1e-9)) - low) / (high - low) for value in values)
    return "".join(BARS[min(len(BARS) - 1, max(0, int(share * (len(BARS) - 1))))] for share in shares)


def _number(value: float) -> str:
    return f"{value:.3g}"
