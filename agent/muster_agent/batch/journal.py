"""How far a batch job is on disk: `OUT.progress`, replaced as a whole, and only after the rows that it speaks of.

    rows into OUT.part ── fdatasync ── OUT.progress.new ── fsync ── rename over OUT.progress ── fsync of the folder

Whatever is beyond it in OUT.part is cut off when the job goes on, so a kill at any byte loses nothing and repeats
nothing. It knows no formats.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from muster_agent.batch.errors import JobInvalid, Moved
from muster_agent.io import durable

FORMAT = 1
JOURNAL_BYTES_MAX = 16 * 1024 * 1024


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """What a result depends on: two runs with equal bindings give equal bytes."""

    source: str
    """Size and time of change of the input, or of its files."""
    model: str
    version: str
    digest: str
    """SHA-256 of the release's manifest; empty: whatever serves (`--any-version`)."""
    mapping: str
    output: str
    """Format and columns."""
    rows: int
    """Of the whole job."""
    rows_per_request: int
    """What shares a call of the engine may change the last bit of an answer."""


class Span(msgspec.Struct, frozen=True):
    """Rows that one release answered: from `start` to before `stop`."""

    start: int
    stop: int
    version: str
    digest: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """`OUT.progress`."""

    format: int = FORMAT
    binding: Binding
    rows: int
    """That are on disk."""
    length: int
    """Bytes of OUT.part that they take; 0 for a database."""
    spans: tuple[Span, ...] = ()


_decoder = msgspec.json.Decoder(Progress)


def journal_path(out: Path) -> Path:
    return out.with_name(out.name + ".progress")


def read(path: Path) -> Progress | None:
    """Return what is on disk, or None when the job has not begun.

    Raises:
        JobInvalid: it cannot be read.
    """
    try:
        if path.stat().st_size > JOURNAL_BYTES_MAX:
            raise JobInvalid(f"{path} is no progress of a batch job; give --restart to begin anew")
        progress = _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JobInvalid(f"{path} cannot be read ({error}); give --restart to begin anew") from error
    if progress.format != FORMAT:
        raise JobInvalid(f"{path} is of another version of this program; give --restart to begin anew")
    return progress


def write(path: Path, progress: Progress) -> None:
    """Make `progress` durable. What it speaks of must be so already."""
    durable.replace(path, msgspec.json.encode(progress))


def check(progress: Progress, binding: Binding) -> None:
    """Refuse to go on with another job than the one that began.

    Raises:
        Moved: the message says what differs.
    """
    then = progress.binding
    words = {
        "source": "the input file has changed",
        "model": f"it began with the model {then.model}",
        "digest": f"it began with release {then.version or 'whatever serves'}, and {binding.version} serves now",
        "mapping": f"it began with other columns ({then.mapping})",
        "output": f"it began with another output ({then.output})",
        "rows": f"it began with {then.rows} rows, now they are {binding.rows}",
        "rows_per_request": f"it began with --rows {then.rows_per_request}",
    }
    differs = [text for field, text in words.items() if getattr(then, field) != getattr(binding, field)]
    if differs:
        raise Moved(
            f"this job is at row {progress.rows} of {then.rows}, and cannot go on: {'; '.join(differs)}. Give --restart"
            " to begin anew, or name another output"
        )


def extend(spans: Sequence[Span], start: int, stop: int, version: str, digest: str) -> tuple[Span, ...]:
    """Return `spans` with the rows from `start` to before `stop` answered by a release."""
    if spans and spans[-1].digest == digest and spans[-1].stop == start:
        return (*spans[:-1], Span(spans[-1].start, stop, version, digest))
    return (*spans, Span(start, stop, version, digest))
