"""`muster review`: what the last week was like, beside the week before."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from muster_controller.cli.arguments import AsJson
from muster_controller.cli.client import connect, refuse
from muster_controller.cli.output import emit, fail
from muster_controller.cli.times import stamp
from muster_shared.errors import MusterError

WEEKS_MAX = 520  # Ten years.


def review(
    context: typer.Context,
    week: Annotated[
        str | None, typer.Option("--week", "-w", help='Such as 2026-W47, or "now". Default: the newest there is.')
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say which weeks have one.")] = False,
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, as it is mailed.")] = False,
) -> None:
    """Show a week: regressions, odd inputs that go with errors, headroom, what is coming, and costs.

    It is made on Monday at 06:00 UTC, and told to every receiver that was added with --reviews.
    """
    if as_json and as_markdown:
        fail("give --json or --markdown, not both")
    try:
        with connect(context) as api:
            known = api.pages("/reviews", "reviews", WEEKS_MAX, {}) if list_ or week is None else []
            if list_:
                emit(known, as_json, lambda console: _print_weeks(console, known))
                return
            if week is None and not known:
                fail("there is no review yet: the first is made on the Monday after devices have reported; --week now")
            found = api.get(f"/reviews/{week or known[0]['week']}")
    except MusterError as error:
        refuse(error)
    if as_markdown:
        sys.stdout.write(found["markdown"])
        return
    said = {name: value for name, value in found.items() if name != "markdown"}
    emit(said, as_json, lambda console: console.print(Markdown(found["markdown"])))


def _print_weeks(console: Console, known: list[dict[str, object]]) -> None:
    for each in known:
        made_at = each["made_at"]
        assert isinstance(made_at, float | int)
        console.print(f"{each['week']}  made {stamp(made_at)} (UTC)", highlight=False)
    if not known:
        console.print("none yet.")
