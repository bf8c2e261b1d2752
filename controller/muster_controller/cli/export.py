"""`muster export`: metrics as files for other tools."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from muster_controller.cli.arguments import AsJson
from muster_controller.cli.client import EXIT_CODES, Api, connect, refuse
from muster_controller.cli.output import emit, fail
from muster_controller.cli.times import moment
from muster_controller.export import tables
from muster_controller.export.lines import parse_series, parse_sums
from muster_controller.export.tables import SERIES, SUMS, Format, Row
from muster_shared.errors import MusterError

DAY_S = 86_400
DAYS_MAX = 800
TABLES = ("sums", "series")

app = typer.Typer(no_args_is_help=True, help="Metrics as files for other tools.")


@app.callback()
def group() -> None:
    """Keep `metrics` a command of its own, though there is no other."""


@app.command(epilog=EXIT_CODES)
def metrics(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder; files of the same days are replaced.")],
    since: Annotated[str, typer.Option(help='From this day on: "7d ago", "2026-11-16".')] = "7d ago",
    until: Annotated[str, typer.Option(help="To the end of this day, UTC.")] = "now",
    fmt: Annotated[Format, typer.Option("--format", "-f", help="Parquet needs muster-controller[parquet].")] = (
        Format.PARQUET
    ),
    period: Annotated[Literal["hour", "day"], typer.Option(help="How fine. Hours are kept for 35 days.")] = "hour",
    as_json: AsJson = False,
) -> None:
    """Write noised sums and operational series, a file for each day (UTC): OUT/sums/DAY.parquet and so on.

    Sums are anonymous, with the standard deviation of their noise beside them; docs/observability.md says what the
    columns mean and how to make shares of them.
    """
    try:
        tables.check(fmt)
        now = time.time()
        first, last = (int(moment(text, now) // DAY_S) for text in (since, until))
        if not 0 <= last - first < DAYS_MAX:
            fail(f"export from a day to the same or a later one, {DAYS_MAX} days at most")
        written: dict[str, int] = {}
        with connect(context) as api:
            for day in range(first, last + 1):
                for table in TABLES:
                    path = out / table / f"{_named(day)}.{fmt.value}"
                    columns = SUMS if table == "sums" else SERIES
                    count = tables.save(path, columns, _rows(api, table, day, period), fmt)
                    if count:
                        written[str(path)] = count
                    else:  # A day without a word is no file: globs of readers would meet it for nothing.
                        path.unlink(missing_ok=True)
    except (MusterError, OSError) as error:
        refuse(error)
    emit(written, as_json, lambda console: _print(console, written))


def _rows(api: Api, table: str, day: int, period: str) -> Iterator[Row]:
    query = {"since": str(day * DAY_S), "until": str((day + 1) * DAY_S), "period": period}
    with api.lines(f"/export/{table}", query) as lines:
        for line in lines:
            if table == "sums":
                yield from tables.sums_rows(parse_sums(line))
            else:
                yield from tables.series_rows(parse_series(line))


def _named(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_S, UTC).strftime("%Y-%m-%d")


def _print(console: Console, written: dict[str, int]) -> None:
    for path, count in written.items():
        console.print(f"{path}  {count} rows", highlight=False, markup=False, soft_wrap=True)
    if not written:
        console.print("nothing was measured in that time.")
