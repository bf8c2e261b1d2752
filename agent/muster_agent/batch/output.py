"""Where answers go, durably: `OUT.part` and `OUT.progress` while the job runs, OUT when it has ended.

    write ──> OUT.part ──checkpoint, on a thread──> fdatasync, OUT.progress
    finish ─> OUT.part whole on disk ──> OUT ──> OUT.progress removed

A checkpoint never holds up the rows: while the disk works, the agent is asked on.
"""

import fcntl
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from muster_agent.batch import journal
from muster_agent.batch.database import DatabaseSink
from muster_agent.batch.encoders import Encoder
from muster_agent.batch.errors import JobInvalid
from muster_agent.batch.journal import Binding, Progress
from muster_agent.batch.mapping import Chunk
from muster_agent.errors import DiskFull
from muster_agent.io import durable
from muster_agent.io.disk import FULL

Spans = tuple[journal.Span, ...]


class Output(Protocol):
    """What a run writes to."""

    @property
    def progress(self) -> Progress:
        """As it was found, or begun."""
        ...

    def write(self, chunk: Chunk, first_row: int) -> None: ...

    def checkpoint(self, rows: int, spans: Spans, *, wait: bool) -> bool:
        """Make all rows so far durable, and say so in the journal.

        Args:
            wait: Until that is done; else it goes on beside. False when another is under way.
        """
        ...

    def finish(self, rows: int, spans: Spans) -> None:
        """Make OUT of it."""
        ...

    def close(self) -> None: ...


class FileOutput:
    """A file that grows."""

    def __init__(self, out: Path, encoder: Encoder, binding: Binding, *, restart: bool) -> None:
        """
        Raises:
            JobInvalid: OUT is there already, another job writes it, or what had been written of it is gone.
            Moved: the job that began it is another.
        """
        self._out = out
        self._part = out.with_name(out.name + ".part")
        self._journal = journal.journal_path(out)
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        found = None if restart else journal.read(self._journal)
        if found is None and out.exists() and not restart:
            raise JobInvalid(f"{out} is there already; give --restart to replace it, or name another output")
        if found is not None:
            journal.check(found, binding)
        self._descriptor = _open(self._part)
        try:
            self._length = self._begin(found, binding)
            self._before = (-1, 0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _begin(self, found: Progress | None, binding: Binding) -> int:
        length = os.fstat(self._descriptor).st_size
        if found is not None and length < found.length:
            if found.rows < binding.rows or length or not self._out.exists():
                raise JobInvalid(f"{self._part} has lost rows that were on disk; give --restart to begin anew")
            self.progress = found  # It had been moved to its place already.
            self._part.unlink()
            return found.length
        if found is not None:
            os.ftruncate(self._descriptor, found.length)
            os.lseek(self._descriptor, found.length, os.SEEK_SET)
            self.progress = found
            return found.length
        os.ftruncate(self._descriptor, 0)
        self._length = 0
        self._append(self._encoder.head())
        os.fsync(self._descriptor)
        self.progress = Progress(binding=binding, rows=0, length=self._length)
        journal.write(self._journal, self.progress)
        return self._length

    def write(self, chunk: Chunk, first_row: int) -> None:
        """See `Output`."""
        self._before = (first_row, self._length)
        self._append(self._encoder.encode(chunk))

    def checkpoint(self, rows: int, spans: Spans, *, wait: bool) -> bool:
        """See `Output`."""
        under_way = self._under_way
        if under_way is not None:
            if not wait and not under_way.done():
                return False
            under_way.result()
        # Whoever interrupts a write has its rows half there, and not counted.
        length = self._before[1] if rows == self._before[0] else self._length
        progress = Progress(binding=self.progress.binding, rows=rows, length=length, spans=spans)
        self._under_way = self._thread.submit(self._save, progress)
        if wait:
            self._under_way.result()
        return True

    def finish(self, rows: int, spans: Spans) -> None:
        """See `Output`."""
        if self._part.exists():  # Else it had been moved before the journal could be removed.
            self.checkpoint(rows, spans, wait=True)
            try:
                self._place()
            except OSError as error:
                raise _full(self._out, error) from error
        self._journal.unlink(missing_ok=True)

    def _place(self) -> None:
        fresh = self._out.with_name(self._out.name + ".new")
        if self._encoder.convert(self._part, fresh):
            durable.sync(fresh)
            fresh.replace(self._out)
            durable.sync(self._out.parent)
            self._part.unlink()
        else:
            self._part.replace(self._out)
            durable.sync(self._out.parent)

    def close(self) -> None:
        """Let the files go."""
        self._thread.shutdown(wait=True)
        os.close(self._descriptor)

    def _save(self, progress: Progress) -> None:
        try:
            os.fdatasync(self._descriptor)
            journal.write(self._journal, progress)
        except OSError as error:
            raise _full(self._part, error) from error

    def _append(self, raw: bytes | memoryview) -> None:
        view = memoryview(raw)
        self._length += len(view)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise _full(self._part, error) from error


class TableOutput:
    """A table of a database; its own commits are the durable state, the journal says of what job."""

    def __init__(self, out: Path, sink: DatabaseSink, binding: Binding, *, restart: bool) -> None:
        """As `FileOutput`."""
        self._sink = sink
        self._journal = journal.journal_path(out)
        self._lock = _open(out.with_name(out.name + ".part"))
        self._lock_path = out.with_name(out.name + ".part")
        found = None if restart else journal.read(self._journal)
        if found is not None:
            journal.check(found, binding)
        elif not restart and sink.exists():
            raise JobInvalid(f"{out} has this table already; give --restart to replace it, or another one with --into")
        self.progress = found or Progress(binding=binding, rows=0, length=0)
        sink.begin(self.progress.rows)
        if found is None:
            journal.write(self._journal, self.progress)

    def write(self, chunk: Chunk, first_row: int) -> None:
        """See `Output`."""
        self._sink.write(chunk, first_row)

    def checkpoint(self, rows: int, spans: Spans, *, wait: bool) -> bool:
        """See `Output`."""
        self._sink.commit()
        journal.write(self._journal, Progress(binding=self.progress.binding, rows=rows, length=0, spans=spans))
        return True

    def finish(self, rows: int, spans: Spans) -> None:
        """See `Output`."""
        self.checkpoint(rows, spans, wait=True)
        self._journal.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let the files go."""
        self._sink.close()
        os.close(self._lock)


def _open(part: Path) -> int:
    """Return a descriptor of `part`, which no other job writes."""
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise JobInvalid(f"{part} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise JobInvalid(
            f"another batch job writes {part.with_suffix('')}; wait for it, or name another output"
        ) from error
    return descriptor


def _full(path: Path, error: OSError) -> Exception:
    if error.errno in FULL:
        return DiskFull(f"no room for {path}; free some, and the same command goes on")
    return error
