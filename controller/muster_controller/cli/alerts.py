"""`muster alerts` and `muster alert`: what fires, what it is about, and who looks at it."""

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from muster_controller.cli import completion
from muster_controller.cli.arguments import AsJson, Limit, Reason
from muster_controller.cli.asking import delete, get, listed, post
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit
from muster_controller.cli.times import length, moment, stamp
from muster_shared.errors import MusterError

app = typer.Typer(help="One alert, and silences.", no_args_is_help=True, epilog=EXIT_CODES)

AlertArgument = Annotated[
    str, typer.Argument(help="Its id, as `muster alerts` shows it.", autocompletion=completion.alerts)
]
RuleOption = Annotated[
    str | None, typer.Option("--rule", help="Of this rule only.", autocompletion=completion.alert_rules)
]


def alerts(
    context: typer.Context,
    rule: RuleOption = None,
    subject: Annotated[str | None, typer.Option(help="About this device, rollout, release or what else only.")] = None,
    ended: Annotated[bool, typer.Option("--ended", "-a", help="Those that are over, too.")] = False,
    pending: Annotated[bool, typer.Option("--pending", help="Those that may come, too.")] = False,
    since: Annotated[
        str | None, typer.Option(help='With --ended: only what had not ended then; "7d ago", "2026-11-22".')
    ] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List what fires, newest first. `muster alert show` says more of one."""
    states = ["firing", *(["resolved"] if ended else []), *(["pending"] if pending else [])]
    try:
        params: dict[str, str | int | list[str]] = {"state": states}
        if rule is not None:
            params["rule"] = rule
        if subject is not None:
            params["subject"] = subject
        if since is not None:
            params["since"] = str(moment(since, time.time()))
        with connect(context) as api:
            found = api.pages("/alerts", "alerts", limit, params)
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        if not found:
            console.print("Nothing fires.")
            return
        table = Table("alert", "severity", "state", "rule", "subject", "since", "what")
        for each in found:
            words = (each["id"], each["severity"], _state(each), each["rule"], each["subject"], stamp(each["began_at"]))
            table.add_row(*(escape(str(word)) for word in words), escape(each["summary"]))
        console.print(table)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def show(context: typer.Context, alert: AlertArgument, as_json: AsJson = False) -> None:
    """Show one alert: what it was decided from, and what to do."""
    found = get(context, f"/alerts/{alert}")

    def human(console: Console) -> None:
        _say(console, found)
        console.print(f"\n{found['summary']}\n", markup=False, highlight=False)
        for name, value in sorted(found["facts"].items()):
            console.print(f"  {name}: {value}", markup=False, highlight=False)
        if found["runbook"]:
            console.print(f"\nWhat to do: {found['runbook']}", markup=False, highlight=False)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def ack(
    context: typer.Context,
    alert: AlertArgument,
    comment: Annotated[str, typer.Option("--comment", "-c", help="What you do about it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say that you look at it: it is not told again, except when it gets worse, and when it is over."""
    found = post(context, f"/alerts/{alert}/acknowledge", {"comment": comment})
    emit(found, as_json, lambda console: _say(console, found))


@app.command(epilog=EXIT_CODES)
def silence(
    context: typer.Context,
    rule: Annotated[
        str,
        typer.Option(help="Of this rule; `*` at its end stands for anything.", autocompletion=completion.alert_rules),
    ] = "",
    subject: Annotated[str, typer.Option(help="About this; `magika/*` is about all releases of magika.")] = "",
    for_: Annotated[str, typer.Option("--for", help="How long: 30m, 2h, 7d; 30d at most.")] = "2h",
    every: Annotated[bool, typer.Option("--all", help="Every alert, without --rule and --subject.")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Keep alerts from being told for a while. They still fire, and are listed."""
    if not rule and not subject and not every:
        raise typer.BadParameter("name a --rule or a --subject; --all silences every alert")
    try:
        order = {"rule": rule, "subject": subject, "length_s": length(for_), "reason": reason}
    except MusterError as error:
        refuse(error)
    found = post(context, "/silences", order)

    def human(console: Console) -> None:
        console.print(f"Silence {found['id']}: {_what(found)}, until {stamp(found['ends_at'])} UTC.", highlight=False)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def silences(context: typer.Context, as_json: AsJson = False) -> None:
    """List the silences that have not ended."""
    found = listed(context, "/silences", "silences")

    def human(console: Console) -> None:
        table = Table("silence", "what", "begins", "ends", "by", "reason")
        for each in found:
            words = (each["id"], _what(each), stamp(each["begins_at"]), stamp(each["ends_at"]), each["by"])
            table.add_row(*map(escape, words), escape(each["reason"]))
        console.print(table if found else "Nothing is silenced.")

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def unsilence(
    context: typer.Context,
    silence: Annotated[str, typer.Argument(help="Its id, as `silences` shows it.", autocompletion=completion.silences)],
    as_json: AsJson = False,
) -> None:
    """End a silence now. What still fires is told within half a minute."""
    delete(context, f"/silences/{silence}")
    emit({"id": silence, "ended": True}, as_json, lambda console: console.print(f"Silence {silence} is over."))


@app.command(epilog=EXIT_CODES)
def rules(context: typer.Context, as_json: AsJson = False) -> None:
    """List every alert that there can be, and its runbook."""
    found = get(context, "/alerts/rules")["rules"]

    def human(console: Console) -> None:
        table = Table("rule", "what", "fires after", "ends after", "runbook")
        for each in found:
            waits = (f"{each['for_s'] / 60:.0f} min", f"{each['clear_s'] / 60:.0f} min")
            table.add_row(each["name"], each["title"], *waits, each["runbook"])
        console.print(table)

    emit(found, as_json, human)


def _say(console: Console, alert: dict[str, Any]) -> None:
    said = f"{alert['id']}: {alert['severity']}, {_state(alert)}, {alert['rule']} of {alert['subject']},"
    console.print(f"{said} since {stamp(alert['began_at'])} UTC.", markup=False, highlight=False)
    if alert["comment"]:
        console.print(f"{alert['acknowledged_by']}: {alert['comment']}", markup=False, highlight=False)


def _state(alert: dict[str, Any]) -> str:
    words = [alert["state"]]
    if alert["state"] != "resolved":
        words += ["acknowledged"] if alert["acknowledged_at"] is not None else []
        words += ["silenced"] if alert["silenced"] else []
    return ", ".join(words)


def _what(silence: dict[str, Any]) -> str:
    return f"{silence['rule'] or 'every rule'}, {silence['subject'] or 'every subject'}"
