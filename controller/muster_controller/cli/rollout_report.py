"""`muster rollout report`: what came of a rollout, as a document to keep and to share."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from muster_controller.cli.arguments import AsJson, RolloutArgument
from muster_controller.cli.client import connect, refuse
from muster_shared.errors import MusterError


def report(
    context: typer.Context,
    rollout: RolloutArgument,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown: what is done anyway.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file instead of the terminal.", dir_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report on a rollout: what, who, policy, what happened when, evidence, outcomes by class, failures by reason."""
    if as_json and as_markdown:
        raise typer.BadParameter("choose one of --json and --markdown")
    try:
        with connect(context) as api:
            if as_json:
                raw = msgspec.json.format(api.read(f"/rollouts/{rollout}/report"), indent=2) + b"\n"
            else:
                raw = api.read(f"/rollouts/{rollout}/report.md")
        if out is not None:
            out.write_bytes(raw)
    except (MusterError, OSError) as error:
        refuse(error)
    if out is None:
        sys.stdout.write(raw.decode("utf-8"))
    else:
        typer.echo(f"{out}: {len(raw)} bytes.", err=True)
