"""`muster audit`: who changed what, whether the log of it holds, and the log as a file.

`verify` never takes the controller's word: it reads the lines (from the controller, a database or a file) and computes
their hashes here.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.audit import checkpoint as checkpoints
from muster_controller.audit.chain import BEGIN, Break, Flaw, Report, verify
from muster_controller.audit.checkpoint import Checkpoint
from muster_controller.audit.export import LINE_BYTES_MAX, read
from muster_controller.cli.arguments import AsJson, Limit
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.output import emit, fail
from muster_controller.cli.times import moment, stamp
from muster_shared.errors import MusterError

app = typer.Typer(no_args_is_help=True, help="Who changed what, why, and whether the log of it holds.")

Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        help="Read this SQLite file or postgresql: URL instead of asking a controller; a password goes in PGPASSWORD.",
    ),
]
After = Annotated[int, typer.Option(min=0, help="Only the lines behind this one.")]


@dataclass(frozen=True)
class Verdict:
    """What `verify` says as JSON."""

    holds: bool
    lines: int
    start: int
    """The log that was checked begins behind this line."""
    head: int
    hash: str
    breaks: tuple[Break, ...]
    count: int
    signed_by: str
    """The key of the checkpoint at its end; empty: nobody signed it."""
    signed_at: float | None
    warnings: tuple[str, ...]


@app.command("list", epilog=EXIT_CODES)
def list_(
    context: typer.Context,
    actor: Annotated[str | None, typer.Option(help="What this one did.")] = None,
    subject: Annotated[str | None, typer.Option(help="What was done to this rollout, device, model ...")] = None,
    action: Annotated[str | None, typer.Option(help='"rollout.abort", or all of a kind: "rollout."')] = None,
    request: Annotated[str | None, typer.Option(help="What this request led to.")] = None,
    since: Annotated[str | None, typer.Option(help='"1h ago", "2026-11-22T11:20".')] = None,
    until: Annotated[str | None, typer.Option(help="Until when.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List changes, newest first."""
    try:
        now = time.time()
        wanted = {"actor": actor, "subject": subject, "action": action, "request_id": request}
        params: dict[str, str | int | list[str]] = {name: value for name, value in wanted.items() if value is not None}
        params |= {
            name: str(moment(text, now)) for name, text in (("since", since), ("until", until)) if text is not None
        }
        with connect(context) as api:
            found = api.pages("/audit", "lines", limit, params)
    except MusterError as error:
        refuse(error)
    emit(found, as_json, lambda console: _print_lines(console, found))


@app.command(epilog=EXIT_CODES)
def show(
    context: typer.Context,
    ordinal: Annotated[int, typer.Argument(min=1, help="The line's number.")],
    as_json: AsJson = False,
) -> None:
    """Show one change with all of its text."""
    try:
        with connect(context) as api:
            found = api.get(f"/audit/{ordinal}")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        for name in ("ordinal", "actor", "action", "subject", "detail", "reason", "request_id", "hash"):
            console.print(f"{name:10} {found[name]}", highlight=False, markup=False, soft_wrap=True)
        console.print(f"{'at':10} {stamp(found['at'])} (UTC)", highlight=False)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def head(context: typer.Context, as_json: AsJson = False) -> None:
    """Say the newest line's hash, signed: keep the JSON elsewhere, for `muster audit verify --since`."""
    try:
        with connect(context) as api:
            found = api.get("/audit/head")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        said = f"line {found['ordinal']} {found['hash']}\nsigned at {stamp(found['at'])} (UTC) by {found['key']}"
        console.print(said, highlight=False, soft_wrap=True)

    emit(found, as_json, human)


@app.command(epilog=EXIT_CODES)
def export(
    context: typer.Context,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file. Default: standard output.")] = None,
    after: After = 0,
    database: Database = None,
) -> None:
    """Write the log as JSON Lines, oldest first; the last line is a checkpoint that the controller signed."""
    try:
        with _lines(context, None, database, after) as lines:
            if output is None:
                _copy(lines, sys.stdout.buffer)
                return
            partial = output.with_name(f"{output.name}.part")  # Half a log is never mistaken for a whole one.
            with partial.open("wb") as file:
                _copy(lines, file)
            partial.replace(output)
    except (MusterError, OSError) as error:
        refuse(error)


@app.command("verify", epilog="Exit codes: 0 it holds, 1 it does not or cannot be read, 2 usage, 6 no controller.")
def verify_(
    context: typer.Context,
    since: Annotated[
        list[Path] | None,
        typer.Option(
            "--since",
            help="A checkpoint from earlier: the JSON of `muster audit head --json`, or an export. Prove that the log "
            "extends it. More than one may be given.",
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="An exported log.")] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Compute every hash anew; where the log does not hold, say where and how, and exit with 1."""
    try:
        seen = [_read_checkpoint(path) for path in since or ()]
        with _lines(context, file, database, 0) as lines:
            exported = read(lines)
            start = exported.header.after
            report = verify(exported.items, start, [each.anchor for each in seen])
            verdict = _verdict(report, exported.header.fleet, exported.checkpoint, exported.why_unsigned, seen)
    except (MusterError, OSError) as error:
        refuse(error)
    emit(verdict, as_json, lambda console: _print_verdict(console, verdict, seen))
    if not verdict.holds:
        raise typer.Exit(1)


def _verdict(report: Report, fleet: str, end: Checkpoint | None, why_unsigned: str, seen: list[Checkpoint]) -> Verdict:
    breaks, warnings = list(report.breaks), []
    for each in seen:
        if fleet and each.fleet != fleet:  # A database does not say whose it is.
            said = f"the checkpoint of line {each.ordinal} is one of the fleet {each.fleet!r}; this log says {fleet!r}"
            breaks.append(Break(each.ordinal, each.ordinal, Flaw.FORKED, said))
        elif end is not None and end.is_signed and end.key != each.key:
            warnings.append(f"another key signed the end than the checkpoint of line {each.ordinal}; was it replaced?")
    if why_unsigned:
        warnings.append(why_unsigned)
    if report.start != BEGIN and not any(each.anchor == report.start for each in seen):
        said = f"it begins behind line {report.start.ordinal}: give the checkpoint of that line with --since"
        warnings.append(f"{said}, or nothing says that this is the same log")
    if not seen:
        warnings.append("without --since, nothing here shows that it was not written anew as a whole")
    return Verdict(
        holds=not breaks,
        lines=report.lines,
        start=report.start.ordinal,
        head=report.head.ordinal,
        hash=report.head.hash,
        breaks=tuple(sorted(breaks, key=lambda each: each.ordinal)),
        count=report.count + len(breaks) - len(report.breaks),
        signed_by="" if end is None or why_unsigned else end.key,
        signed_at=None if end is None or why_unsigned else end.at,
        warnings=tuple(warnings),
    )


@contextmanager
def _lines(context: typer.Context, file: Path | None, database: str | None, after: int) -> Iterator[Iterator[bytes]]:
    """Give the lines of an export: of a file, a database, or the controller."""
    if file is not None and database is not None:
        fail("give --file or --database, not both")
    if file is not None:
        with file.open("rb") as stream:
            yield iter(lambda: stream.readline(LINE_BYTES_MAX + 1), b"")
    elif database is not None:
        # Only here: the tables cost half a second, which every other command would pay, and completion too.
        from muster_controller.audit.book import AuditBook
        from muster_controller.db.audit import AuditReader
        from muster_controller.db.engine import find_database

        reader = AuditReader(find_database(_where(database)))
        try:
            yield AuditBook(reader, "", None, time.time).export(after)
        finally:
            reader.close()
    else:
        with connect(context) as api, api.lines("/audit/export", {"after": after}) as lines:
            yield lines


def _where(database: str) -> Path | str:
    if "://" in database:
        return database
    path = Path(database)
    if not path.is_file():  # Opening it would make an empty one.
        fail(f"there is no database at {path}; a controller's is muster.db in its --data folder")
    return path


def _read_checkpoint(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        return checkpoints.parse(_last_line(file))


def _last_line(file: BinaryIO) -> bytes:
    """Return all of a checkpoint's file, or the last line of an export."""
    file.seek(0, 2)
    length = file.tell()
    file.seek(max(0, length - checkpoints.BYTES_MAX))
    end = file.read()
    if length <= checkpoints.BYTES_MAX and not end.startswith(b'{"after"'):
        return end
    return end.rstrip(b"\n").rpartition(b"\n")[2]


def _copy(lines: Iterator[bytes], out: Any) -> None:
    for line in lines:
        out.write(line)
    out.flush()


def _print_lines(console: Console, found: list[dict[str, Any]]) -> None:
    if not found:
        console.print("nothing fits.")
        return
    table = Table("line", "when (UTC)", "who", "did", "to", "what", "why")
    for each in found:
        texts = (each["actor"], each["action"], each["subject"], each["detail"], each["reason"])
        table.add_row(str(each["ordinal"]), stamp(each["at"]), *(text.replace("[", r"\[") for text in texts))
    console.print(table)


def _print_verdict(console: Console, verdict: Verdict, seen: list[Checkpoint]) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    if verdict.holds:
        proof = f", and extends what {len(seen)} checkpoints saw" if len(seen) > 1 else ""
        proof = f", and extends the checkpoint of line {seen[0].ordinal}" if len(seen) == 1 else proof
        say(f"The log holds: {verdict.lines} lines up to line {verdict.head} ({verdict.hash[:16]}…){proof}.")
    else:
        say(f"The log does NOT hold: {verdict.count} breaks in {verdict.lines} lines.", "red")
        for each in verdict.breaks:
            say(f"  line {each.ordinal} {each.flaw.value}: {each.said}")
    if verdict.signed_at is not None:
        say(f"  signed at {stamp(verdict.signed_at)} (UTC) by {verdict.signed_by}")
    for warning in verdict.warnings:
        say(f"  note: {warning}")
