"""What the demo shows while it runs: finished facts as lines, and on a terminal, below them, what is going on now.

Where nobody watches, there are only lines, and the state of things from time to time. It shows; it measures nothing
but time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

REFRESH_HZ = 4.0
LINES_EVERY_S = 5.0  # Between two states in a log.


class Display:
    """One demo's output. `step` around each step, `say` within it."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.took_s: dict[str, float] = {}
        """By step, as far as they have ended."""
        self._began_at = time.monotonic()
        self._step: str | None = None
        self._step_at = 0.0
        self._now: Callable[[], Sequence[str]] = lambda: ()
        self._told_at = 0.0
        self._live: Live | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began_at

    def watch(self, now: Callable[[], Sequence[str]]) -> None:
        """From now on, show what `now` returns as the state of things; it must not wait."""
        self._now = now

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show what goes on until the end of the block."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self, console=self.console, refresh_per_second=REFRESH_HZ, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step of the story. Its time is kept when it ends well."""
        self._step, self._step_at = title, time.monotonic()
        self._line(Text.assemble((title, "bold")))
        try:
            yield
            took_s = time.monotonic() - self._step_at
            self.took_s[title] = took_s
            self._line(Text.assemble("  ", ("done", "green"), f" in {took_s:.1f} s"))
        finally:
            self._step = None

    def say(self, fact: str, style: str = "") -> None:
        """Tell one fact of the current step."""
        self._line(Text(f"  {fact}", style))

    def tell(self) -> None:
        """Write down the state of things, where nothing is shown live and it is time."""
        if self._live is None and time.monotonic() >= self._told_at + LINES_EVERY_S:
            self._told_at = time.monotonic()
            for line in self._now():
                self._line(Text(f"    {line}", "dim"))

    def __rich__(self) -> RenderableType:
        """What is going on now."""
        if self._step is None:
            return Text()
        head = Spinner("dots", Text(f"{self._step}  {time.monotonic() - self._step_at:.0f} s"))
        return Group(head, *(Text(f"    {line}", "dim", no_wrap=True, overflow="ellipsis") for line in self._now()))

    def _line(self, text: Text) -> None:
        self.console.print(Text.assemble((f"{self.elapsed_s:6.1f} s  ", "dim"), text), soft_wrap=True)
