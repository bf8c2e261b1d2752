"""`muster rollback`: bring the fleet to an earlier release of a model, at once or by a policy."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from muster_controller.cli import completion, rollout_watch
from muster_controller.cli.arguments import AsJson, ModelArgument, Reason
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit
from muster_controller.cli.plans import print_plan
from muster_controller.cli.policy_options import policy_of
from muster_shared.errors import MusterError

EPILOG = EXIT_CODES


def rollback(
    context: typer.Context,
    model: ModelArgument,
    to: Annotated[str, typer.Option("--to", help="The release to go to.", autocompletion=completion.versions)],
    policy: Annotated[Path | None, typer.Option(help="By a rollout of this policy, YAML or JSON.")] = None,
    at_once: Annotated[
        bool | None, typer.Option("--at-once", help="Tell every device now: what is done without a policy.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and do nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Then follow it, as `muster rollout watch`.")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Bring every device to an earlier release of a model: from its standby slot where it keeps it, without a download.

    At once, every rollout of the model that is under way ends. Each device gets a new signed assignment with a higher
    counter.
    """
    try:
        body: dict[str, object] = {"to": to, "reason": reason, "at_once": at_once}
        if policy is not None:
            body["policy"] = policy_of(policy)
        with connect(context) as api:
            if dry_run or not yes:
                plan = api.post(f"/models/{model}/rollback", {**body, "dry_run": True})
            if dry_run:
                emit(plan, as_json, lambda console: print_plan(console, plan))
                return
            if not yes:
                print_plan(Console(stderr=as_json), plan)
                typer.confirm(f"Bring {plan['changing']} devices to {model} {to}?", abort=True, err=as_json)
            found = api.post(f"/models/{model}/rollback", body)
    except (MusterError, OSError) as error:
        refuse(error)

    def human(console: Console) -> None:
        console.print(f"Rollback {found['id']} begins: {model} {to} to {found['counts']['devices']} devices.")
        if not watch:
            console.print(f"Next: `muster rollout watch {found['id']}`.", highlight=False)

    emit(found, as_json, human)
    if watch:
        rollout_watch.watch(context, found["id"], None, as_json)
