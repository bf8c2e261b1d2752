"""`muster-agent batch`: from options to a job, and from what came of it to a summary."""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from muster_agent.batch import http_carriers, journal
from muster_agent.batch.carriers import Carrier, Outcome
from muster_agent.batch.database import DatabaseSink
from muster_agent.batch.encoders import encoder
from muster_agent.batch.errors import BatchError, Busy, JobInvalid, Lost, Moved, RowsRefused, Unfinished
from muster_agent.batch.flat import values
from muster_agent.batch.folder import CONTENT, FILE, FolderSource
from muster_agent.batch.journal import Binding
from muster_agent.batch.mapping import Column, Feed, feeds, tensor
from muster_agent.batch.output import FileOutput, Output, TableOutput
from muster_agent.batch.progress import display
from muster_agent.batch.run import Done, Job, Run, kept_columns
from muster_agent.batch.sources import DATABASES, Source, open_source
from muster_agent.cli.asking import endpoint_of, token
from muster_agent.cli.exits import FAILED, INTERRUPTED, MOVED, UNFINISHED, UNREACHABLE, USAGE, CommandFailed
from muster_agent.cli.served import Served, connector, grown_rows, look
from muster_agent.engines.port import Array
from muster_agent.errors import StoreError

SHOWN_ELEMENTS = 8


class _Time:
    """The clock of this machine."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A job that could begin."""

    job: Job
    served: Served
    binding: Binding
    columns: tuple[Column, ...]
    """Of the output."""
    connect: Callable[[], Carrier]
    first: Outcome | None
    """The answer to the first row, where it had to be asked for."""


def batch(options: argparse.Namespace) -> None:
    """Run the job, or show what it would do.

    Raises:
        CommandFailed: with an exit code for each thing that the caller does differently.
    """
    try:
        with closing(open_source(options.source, table=options.table, query=options.query)) as source:
            plan = _plan(options, source, endpoint_of(options, prefer_unix=True))
            if options.dry_run:
                _show(options, plan)
            else:
                _execute(options, plan)
    except KeyboardInterrupt as error:
        raise CommandFailed(INTERRUPTED, "interrupted; the same command goes on from there") from error
    except (BatchError, StoreError) as error:
        raise CommandFailed(_code(error), str(error)) from error


def _code(error: BatchError | StoreError) -> int:
    match error:
        case JobInvalid():
            return USAGE
        case Unfinished():
            return UNFINISHED
        case Moved():
            return MOVED
        case Lost() | Busy():  # Before the job had begun.
            return UNREACHABLE
        case _:
            return FAILED


def _plan(options: argparse.Namespace, source: Source, endpoint: str) -> _Plan:
    served = look(endpoint, token(), options.model)
    files = isinstance(source, FolderSource)
    keep: tuple[str, ...] = options.keep
    if files:
        keep = keep or (FILE,)
        fed: tuple[Feed, ...] = (Feed(CONTENT, np.dtype(object), (), (CONTENT,)),)
    else:
        fed = feeds(served.inputs, source.columns, chosen=options.columns, inputs=dict(options.input), keep=keep)
    total = source.rows if options.limit is None else min(options.limit, source.rows)
    if not total:
        raise JobInvalid(f"{options.source} has no rows")
    per_request = _rows_per_request(options, served, endpoint, source, fed, total)
    parts = options.window or served.parts(per_request) * (2 if files else 1)
    connect = connector(
        endpoint, token(), served, rows=per_request, parts=parts, files=files, any_version=options.any_version
    )
    first = _first(connect, source, fed) if files or options.dry_run else None
    answers = http_carriers.predicted_columns(first) if files and first is not None else _answers(served)
    unknown = [name for name in options.output if name not in {column.name for column in answers}]
    if unknown:
        raise JobInvalid(f"there is no output {unknown[0]!r}; there are {', '.join(each.name for each in answers)}")
    wanted = kept_columns(answers, options.output) if options.output else answers
    both = [name for name in keep if name in {column.name for column in wanted}]
    if both:
        raise JobInvalid(
            f"{both[0]!r} is a column that is kept, and an output too; leave one out with --keep or --output"
        )
    columns = (*kept_columns(source.columns, keep), *wanted)
    job = Job(
        source=source,
        feeds=fed,
        keep=keep,
        outputs=tuple(column.name for column in wanted),
        rows=total,
        rows_per_request=per_request,
        parts=parts,
        digest="" if options.any_version else served.digest,
        wait_s=options.wait,
    )
    binding = Binding(
        source=source.identity,
        model=served.model,
        version=served.version,
        digest=job.digest,
        mapping="; ".join(f"{feed.tensor} of {', '.join(feed.columns)}" for feed in fed),
        output=f"{options.out.suffix} {options.into} {', '.join(map(str, columns))}",
        rows=total,
        rows_per_request=per_request,
    )
    return _Plan(job=job, served=served, binding=binding, columns=columns, connect=connect, first=first)


def _rows_per_request(
    options: argparse.Namespace, served: Served, endpoint: str, source: Source, fed: tuple[Feed, ...], total: int
) -> int:
    """Return what was asked for, else what the job began with, else what the device gains most by."""
    files = isinstance(source, FolderSource)
    if files or not served.is_batched:
        if options.rows not in (None, 1):
            what = "files" if files else f"{served.model} has no batch axis: its rows"
            raise JobInvalid(f"{what} are asked one by one; leave out --rows")
        return 1
    if options.rows:
        return int(options.rows)
    begun = None if options.restart else journal.read(journal.journal_path(options.out))
    if begun is not None:
        return begun.binding.rows_per_request
    rows = served.rows_per_request()
    if options.dry_run or total < rows:
        return rows
    tensors = _tensors(source, fed, rows)
    connect = connector(endpoint, token(), served, rows=rows, parts=1, files=False, any_version=options.any_version)
    return grown_rows(served, rows, total, tensors, connect, lambda: look(endpoint, token(), served.model))


def _tensors(source: Source, fed: tuple[Feed, ...], rows: int) -> dict[str, Array]:
    """Return the tensors of the first rows."""
    names = tuple(dict.fromkeys(name for feed in fed for name in feed.columns))
    chunk = next(source.chunks(0, rows, rows, names))
    return {feed.tensor: tensor(feed, chunk, 0) for feed in fed}


def _answers(served: Served) -> tuple[Column, ...]:
    side = served.outputs
    return tuple(
        Column(name, dtype, shape) for name, dtype, shape in zip(side.names, side.dtypes, side.row_shapes, strict=True)
    )


def _first(connect: Callable[[], Carrier], source: Source, fed: tuple[Feed, ...]) -> Outcome:
    """Return the answer to the first row."""
    with closing(connect()) as carrier:
        try:
            carrier.begin(0, _tensors(source, fed, 1), 1)
            outcome = carrier.end(0)
        except RowsRefused as error:
            raise RowsRefused(f"row 0: {error}") from error
        # The carrier's memory goes with it.
        return outcome._replace(outputs={name: array.copy() for name, array in outcome.outputs.items()})


def _output(options: argparse.Namespace, plan: _Plan) -> Output:
    if options.out.suffix.lower() in DATABASES:
        sink = DatabaseSink(options.out, options.into or options.model, plan.columns)
        return TableOutput(options.out, sink, plan.binding, restart=options.restart)
    return FileOutput(
        options.out, encoder(options.out, plan.columns, plan.job.rows), plan.binding, restart=options.restart
    )


def _execute(options: argparse.Namespace, plan: _Plan) -> None:
    began = time.monotonic()
    used: list[str] = []

    def connect() -> Carrier:
        carrier = plan.connect()
        used.append(carrier.name)
        return carrier

    output = _output(options, plan)
    try:
        resumed = output.progress.rows
        shown = display(plan.job.rows)
        try:
            done = Run(plan.job, output, connect, _Time(), shown.show).execute()
        finally:
            shown.close()
    finally:
        output.close()
    _tell(options, plan, done, resumed, time.monotonic() - began, used)


def _tell(options: argparse.Namespace, plan: _Plan, done: Done, resumed: int, seconds: float, used: list[str]) -> None:
    rate = (done.rows - resumed) / seconds if seconds else 0.0
    summary: dict[str, Any] = {
        "model": plan.served.model,
        "engine": plan.served.engine,
        "in": str(options.source),
        "out": str(options.out),
        "out_bytes": options.out.stat().st_size,
        "rows": done.rows,
        "resumed_at": resumed,
        "seconds": round(seconds, 3),
        "rows_per_s": round(rate, 1),
        "rows_per_request": plan.job.rows_per_request,
        "window": plan.job.parts,
        "requests": done.requests,
        "repeated": done.repeated,
        "waited_s": round(done.waited_s, 3),
        "over": used[-1] if used else None,
        "releases": [
            {"from": each.start, "to": each.stop, "version": each.version, "digest": each.digest} for each in done.spans
        ],
    }
    if options.json:
        print(json.dumps(summary, indent=2))
        return
    print(f"{done.rows:,} rows in {seconds:.1f} s ({rate:,.0f}/s) into {options.out}, {summary['out_bytes']:,} bytes")
    if resumed:
        print(f"  went on at row {resumed:,}")
    for span in done.spans:
        print(f"  rows {span.start:,} to {span.stop - 1:,}: {plan.served.model} {span.version} ({span.digest[:12]})")
    if done.waited_s >= 1:
        print(f"  waited {done.waited_s:.1f} s for the agent")


# -- dry run -----------------------------------------------------------------------------------------------------------


def _show(options: argparse.Namespace, plan: _Plan) -> None:
    job = plan.job
    described = _described(options.out, plan)
    begun = journal.read(journal.journal_path(options.out))
    assert plan.first is not None, "a dry run asks for the first row"
    first = {name: values(array)[0] for name, array in plan.first.outputs.items() if name in job.outputs}
    if options.json:
        summary = {
            "model": plan.served.model,
            "version": plan.served.version,
            "digest": plan.served.digest,
            "engine": plan.served.engine,
            "inputs": [{"input": feed.tensor, "columns": list(feed.columns)} for feed in job.feeds],
            "columns": [str(column) for column in job.source.columns],
            "rows": job.rows,
            "rows_per_request": job.rows_per_request,
            "window": job.parts,
            "out": str(options.out),
            "writes": [asdict(column) | {"dtype": _dtype(column)} for column in plan.columns],
            "resumes_at": 0 if begun is None else begun.rows,
            "first": first,
        }
        print(json.dumps(summary, indent=2, default=str))
        return
    print(f"model   {plan.served.model} {plan.served.version} on {plan.served.engine}")
    for feed in job.feeds:
        shape = f"[{', '.join(map(str, feed.shape))}]"
        print(f"input   {feed.tensor} {feed.dtype.name}{shape} of {_some(feed.columns)}")
    print(
        f"rows    {job.rows:,} of {job.source.rows:,}, {job.rows_per_request} a request, {job.parts} requests under way"
    )
    print(f"writes  {options.out}: {described}")
    if begun is not None and not options.restart:
        print(f"resumes at row {begun.rows:,}")
    for name, value in first.items():
        print(f"first   {name} = {_shown(value)}")
    print("nothing was written")


def _described(out: Path, plan: _Plan) -> str:
    if out.suffix.lower() in DATABASES:
        return ", ".join(map(str, plan.columns))
    return encoder(out, plan.columns, plan.job.rows).described


def _dtype(column: Column) -> str:
    return "text or bytes" if column.dtype.kind == "O" else column.dtype.name


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= SHOWN_ELEMENTS else f"{names[0]} ... {names[-1]} ({len(names)} columns)"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 300 else f"{text[:300]}..."
