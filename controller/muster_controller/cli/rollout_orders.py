"""`muster rollout pause|resume|skip|retry|extend|approve|abort|rollback`: orders, each with a reason."""

from typing import Annotated

import typer
from rich.console import Console

from muster_controller.cli.arguments import AsJson, Reason, RolloutArgument
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit
from muster_controller.cli.times import length
from muster_shared.errors import MusterError


def register(app: typer.Typer) -> None:
    for command in (pause, resume, skip, retry, extend, approve, abort, rollback):
        app.command(epilog=EXIT_CODES)(command)


def pause(context: typer.Context, rollout: RolloutArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Tell no further device; what is under way goes on, and the evidence can still abort it."""
    _order(context, rollout, "pause", reason, as_json)


def resume(context: typer.Context, rollout: RolloutArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Go on after a pause by hand. A wave that the gate could not decide passes by `skip` alone."""
    _order(context, rollout, "resume", reason, as_json)


def skip(context: typer.Context, rollout: RolloutArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let the present wave pass whatever the gate says of it, in your name."""
    _order(context, rollout, "skip", reason, as_json)


def retry(context: typer.Context, rollout: RolloutArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Have every failed device try once more. What was counted stays counted."""
    _order(context, rollout, "retry", reason, as_json)


def extend(
    context: typer.Context,
    rollout: RolloutArgument,
    by_time: Annotated[str, typer.Option("--by", help='How much longer, such as "30m" or "2h".')],
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Give the devices under way more time before their silence counts."""
    try:
        seconds = length(by_time)
    except MusterError as error:
        refuse(error)
    _order(context, rollout, "extend", reason, as_json, seconds)


def approve(context: typer.Context, rollout: RolloutArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Agree with what comes next: the next wave, or the end."""
    _order(context, rollout, "approve", reason, as_json)


def abort(context: typer.Context, rollout: RolloutArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """End it, and do with its devices what its policy says: by default they go back to what they ran."""
    _order(context, rollout, "abort", reason, as_json)


def rollback(context: typer.Context, rollout: RolloutArgument, reason: Reason = "", as_json: AsJson = False) -> None:
    """Take a finished rollout back: every device of it returns. To any other release: `muster rollback MODEL`."""
    _order(context, rollout, "rollback", reason, as_json)


def _order(
    context: typer.Context,
    rollout: str,
    order: str,
    reason: str,
    as_json: bool,
    seconds: float | None = None,
) -> None:
    body: dict[str, str | float] = {"reason": reason}
    if seconds is not None:
        body["seconds"] = seconds
    try:
        with connect(context) as api:
            found = api.post(f"/rollouts/{rollout}/{order}", body)
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        console.print(f"{rollout} is {found['state']}. {found['outlook']}", highlight=False, soft_wrap=True)

    emit(found, as_json, human)
