"""A target: one parser, what it may refuse with, and what one input may cost.

`execute` is the oracle. Whatever is no documented refusal, takes too long, takes too much memory or is said in too many
words is a finding. It mutates nothing; `mutation` does.
"""

import resource
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from muster_shared.errors import MusterError

SECONDS_MAX = 2.0  # Of processor time, for the largest input; what is legitimate takes a tenth of it.
MEMORY_BYTES_MAX = 256 * 1024 * 1024
WORDS_MAX = 4096  # Characters of a refusal: it goes to a log, and whoever sent the input chose the words.
BYTES_MAX = 128 * 1024


@dataclass(frozen=True)
class Target:
    """One parser."""

    name: str
    run: Callable[[bytes], None]
    """Parses, and asserts what holds of everything that parses."""
    seeds: Callable[[], Sequence[bytes]]
    """Valid inputs."""
    refusals: tuple[type[Exception], ...] = (MusterError,)
    words: tuple[bytes, ...] = ()
    """Pieces of this parser's language, for inputs that are not JSON."""
    bytes_max: int = BYTES_MAX
    """Of an input: the parser's own limit, and a little more."""
    seconds_max: float = SECONDS_MAX


@dataclass(frozen=True)
class Finding:
    """Something that a target must not do."""

    kind: str
    """What to tell findings apart by: the error and where it came from, or the budget."""
    detail: str


def execute(target: Target, data: bytes) -> Finding | None:
    """Run `target` on `data`; return what is wrong with that."""
    memory = _peak_bytes()
    began = time.thread_time()
    try:
        target.run(data)
    except target.refusals as error:
        said = str(error)
        if len(said) > WORDS_MAX:
            return Finding(f"words {type(error).__name__} {_where(error)}", f"a refusal of {len(said)} characters")
    except Exception as error:
        return Finding(f"{type(error).__name__} {_where(error)}", traceback.format_exc(limit=-12))
    seconds = time.thread_time() - began
    if seconds > target.seconds_max:
        return Finding("seconds", f"{seconds:.1f} s of processor time for {len(data)} bytes")
    grown = _peak_bytes() - memory
    if grown > MEMORY_BYTES_MAX:
        return Finding("memory", f"{grown >> 20} MiB more for {len(data)} bytes")
    return None


def once(seeds: Callable[[], Sequence[bytes]]) -> Callable[[], Sequence[bytes]]:
    """Make `seeds` only when they are asked for, and only once."""
    return cache(seeds)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _where(error: BaseException) -> str:
    """The last line of ours that the error passed through, or the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "muster_" in frame.filename or Path(frame.filename).parent.name == "fuzz"]
    frame = (ours or list(frames))[-1]
    return f"{Path(frame.filename).name}:{frame.name}"
