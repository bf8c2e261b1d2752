"""How far the job is, for whoever watches: a bar with tqdm (the extra `batch`), else a line now and then, on a terminal
only. Nothing is shown to a log file: the summary says it all."""

import sys
import time
from typing import Any, Protocol

LINE_S = 5.0


class Display(Protocol):
    """What is told of rows."""

    def show(self, rows: int) -> None: ...

    def close(self) -> None: ...


class Silence:
    """Nobody watches."""

    def show(self, rows: int) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing was shown."""


class Bar:
    """tqdm's."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def show(self, rows: int) -> None:
        if rows < self._bar.n or not self._bar.n:
            self._bar.initial = rows
        self._bar.update(rows - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class Lines:
    """A line every LINE_S."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._said_s = time.monotonic()
        self._before = -1

    def show(self, rows: int) -> None:
        now = time.monotonic()
        if self._before < 0:
            self._before = rows
        elif now - self._said_s >= LINE_S:
            rate = (rows - self._before) / (now - self._said_s)
            print(f"{rows:,} of {self._total:,} rows, {rate:,.0f}/s", file=sys.stderr, flush=True)
            self._said_s, self._before = now, rows

    def close(self) -> None:
        """The summary follows."""


def display(total: int) -> Display:
    """Return what suits the terminal, if it is one."""
    if not sys.stderr.isatty():
        return Silence()
    try:
        from tqdm import tqdm
    except ImportError:
        return Lines(total)
    return Bar(tqdm(total=total, unit="row", unit_scale=True, file=sys.stderr, dynamic_ncols=True))
