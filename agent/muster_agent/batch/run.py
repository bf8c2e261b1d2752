"""One batch job from its first row to its last: keep the agent busy, wait for it, and write in order.

    chunk ──> begin a part ──> ... up to `parts` under way ... ──> end the oldest ──> write ──> checkpoint now and then
                 ├── Busy: the same part again, later and later
                 └── Lost: another carrier, and everything that is under way again

Nobody's answer is believed twice, and none is written before those of all rows before it. It knows no formats and no
protocol, and its clock is an argument.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from muster_agent.batch import mapping
from muster_agent.batch.carriers import Carrier, Outcome
from muster_agent.batch.errors import Busy, Lost, Moved, RowsRefused, Unfinished
from muster_agent.batch.journal import Span, extend
from muster_agent.batch.mapping import Chunk, Feed
from muster_agent.batch.output import Output
from muster_agent.batch.sources import Source
from muster_agent.engines.port import Array

CHECKPOINT_S = 0.5
PAUSE_S, PAUSE_S_MAX = 0.002, 2.0


class Clock(Protocol):
    """Time, and how to let it pass."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do."""

    source: Source
    feeds: tuple[Feed, ...]
    keep: tuple[str, ...]
    """Columns that are copied."""
    outputs: tuple[str, ...]
    """That are written."""
    rows: int
    """Of the input, from its first."""
    rows_per_request: int
    parts: int
    """Requests under way at the same time."""
    digest: str
    """Of the release that must answer; empty: any."""
    wait_s: float
    """For how long an agent that answers nothing is waited for."""


@dataclass(slots=True)
class Done:
    """What came of it."""

    rows: int = 0
    spans: tuple[Span, ...] = ()
    requests: int = 0
    repeated: int = 0
    """Requests that were sent again."""
    waited_s: float = 0.0
    """For a busy agent or one that was away."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One request under way, with all that is needed to send it again."""

    number: int
    first_row: int
    rows: int
    tensors: Mapping[str, Array]
    kept: Chunk


@dataclass(slots=True)
class Run:
    """The job under way."""

    job: Job
    output: Output
    connect: Callable[[], Carrier]
    """Makes a carrier. Raises Lost when the agent is not there, Moved when it serves another release."""
    clock: Clock
    advanced: Callable[[int], None] = lambda rows: None
    """Is told how many rows are written, of all."""
    done: Done = field(default_factory=Done)
    _under_way: deque[_Part] = field(default_factory=deque)
    _carrier: Carrier | None = None
    _heard_s: float = 0.0
    """When the last answer came."""
    _saved_s: float = 0.0

    def execute(self) -> Done:
        """Run to the end.

        Raises:
            Unfinished, Moved, RowsRefused: it stopped; what is written up to there is on disk.
        """
        found = self.output.progress
        self.done.rows, self.done.spans = found.rows, found.spans
        self._heard_s = self._saved_s = self.clock.now()
        self.advanced(self.done.rows)
        try:
            try:
                if self.done.rows < self.job.rows:
                    self._all()
            finally:
                if self._carrier is not None:
                    self._carrier.close()
        except BaseException:
            self.output.checkpoint(self.done.rows, self.done.spans, wait=True)
            raise
        self.output.finish(self.done.rows, self.done.spans)
        return self.done

    def _all(self) -> None:
        job = self.job
        names = tuple(dict.fromkeys([*(name for feed in job.feeds for name in feed.columns), *job.keep]))
        first_row = self.done.rows
        for number, chunk in enumerate(job.source.chunks(first_row, job.rows, job.rows_per_request, names)):
            if len(self._under_way) == job.parts:
                self._end_oldest()
            rows = min(job.rows_per_request, job.rows - first_row)
            if any(len(array) != rows for array in chunk.values()):
                raise Moved(f"the input ended before row {first_row + rows}; it changed while it was read")
            tensors = {feed.tensor: mapping.tensor(feed, chunk, first_row) for feed in job.feeds}
            part = _Part(number % job.parts, first_row, rows, tensors, {name: chunk[name] for name in job.keep})
            self._under_way.append(part)
            self._begin(part)
            first_row += rows
        while self._under_way:
            self._end_oldest()

    def _begin(self, part: _Part) -> None:
        self.done.requests += 1
        try:
            if self._carrier is None:
                self._carrier = self.connect()
            self._carrier.begin(part.number, part.tensors, part.rows)
        except Lost as error:
            self._begin_again(error)

    def _end_oldest(self) -> None:
        part = self._under_way[0]
        outcome = self._outcome(part)
        self._check(part, outcome)
        self._under_way.popleft()
        outputs = {
            name: outcome.outputs[name] if name in outcome.outputs else _nothing(part.rows) for name in self.job.outputs
        }
        self.output.write({**part.kept, **outputs}, part.first_row)
        digest = self.job.digest or outcome.digest
        self.done.rows += part.rows
        self.done.spans = extend(self.done.spans, part.first_row, self.done.rows, outcome.version, digest)
        now = self._heard_s = self.clock.now()
        if now - self._saved_s >= CHECKPOINT_S and self.output.checkpoint(self.done.rows, self.done.spans, wait=False):
            self._saved_s = now
        self.advanced(self.done.rows)

    def _check(self, part: _Part, outcome: Outcome) -> None:
        job = self.job
        if job.digest and not (outcome.digest and job.digest.startswith(outcome.digest)):
            raise Moved(
                f"release {outcome.version} took over at row {part.first_row}; the rows before are on disk, and of the"
                " release before. Assign it again and give the same command, or --restart with the new one, or"
                " --any-version with --restart for answers of whatever serves"
            )
        wrong = [name for name in job.outputs if name in outcome.outputs and len(outcome.outputs[name]) != part.rows]
        if wrong:
            raise RowsRefused(
                f"rows {part.first_row} to {part.first_row + part.rows - 1}: {wrong[0]!r} has"
                f" {len(outcome.outputs[wrong[0]])} rows for {part.rows}; give --rows 1"
            )

    def _outcome(self, part: _Part) -> Outcome:
        """Return the answer to the oldest part, however long it takes within the deadline."""
        # Beside another of ours the queue was too short for a moment: what is under way leaves it before this arrives.
        pause_s = 0.0 if len(self._under_way) > 1 else PAUSE_S
        while True:
            assert self._carrier is not None, "something is under way"
            try:
                return self._carrier.end(part.number)
            except Lost as error:
                self._begin_again(error)
            except RowsRefused as error:
                last = part.first_row + part.rows - 1
                raise RowsRefused(f"rows {part.first_row} to {last}: {error}") from error
            except Busy as error:
                pause_s = self._wait(pause_s, error)
                self.done.repeated += 1
                try:
                    self._carrier.begin(part.number, part.tensors, part.rows)
                except Lost as lost:
                    self._begin_again(lost)

    def _begin_again(self, error: Lost) -> None:
        """Make another carrier, and send everything that is under way once more."""
        pause_s = PAUSE_S
        while True:
            if self._carrier is not None:
                self._carrier.close()
                self._carrier = None
            pause_s = self._wait(pause_s, error)
            try:
                self._carrier = self.connect()
                for part in self._under_way:
                    self._carrier.begin(part.number, part.tensors, part.rows)
                    self.done.repeated += 1
            except (Lost, Busy) as again:
                error = again if isinstance(again, Lost) else error
            else:
                return

    def _wait(self, pause_s: float, error: Exception) -> float:
        """Let some time pass, and return how much more next time."""
        left_s = self._heard_s + self.job.wait_s - self.clock.now()
        if left_s <= 0:
            raise Unfinished(
                f"no answer for {self.job.wait_s:g} s ({error}); {self.done.rows} of {self.job.rows} rows are on disk,"
                " and the same command goes on from there"
            ) from error
        if pause_s:
            pause_s = min(pause_s, left_s)
            self.clock.sleep(pause_s)
            self.done.waited_s += pause_s
        return min(PAUSE_S_MAX, max(PAUSE_S, pause_s * 2))


def kept_columns(columns: Sequence[mapping.Column], keep: Sequence[str]) -> tuple[mapping.Column, ...]:
    """Return the columns `keep`, in that order."""
    known = {column.name: column for column in columns}
    return tuple(known[name] for name in keep)


def _nothing(rows: int) -> Array:
    empty: Array = np.full(rows, None, dtype=object)
    return empty
