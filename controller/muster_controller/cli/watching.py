"""Watching: what the controller's stream tells, and a command that is run again whenever it told something.

Where the stream cannot be had (a proxy that holds it back), it is looked at every few seconds all the same.
"""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from muster_controller.cli.client import Api, Where, where_of
from muster_controller.cli.output import Form, Human, Lost, Speaking, fail, speaking
from muster_shared.errors import MusterError

FLOOR_S = 0.5  # Between two looks, however much changes.
STREAM_TIMEOUT_S = 25.0  # Heartbeats come every ten seconds; without two of them the connection is gone.
AGAIN_S = 1.0
AGAIN_MAX_S = 15.0
LOST_EXIT = 6
STOPPED_EXIT = 130


@dataclass(frozen=True)
class Told:
    """One message of the stream. `event` is "heartbeat", "reset" or the kind of thing that changed."""

    event: str
    id: str


def told(lines: Iterable[bytes]) -> Iterator[Told]:
    """Yield the messages of server-sent events (WHATWG HTML, 9.2.6); what they carry is not looked at."""
    event, last = "", ""
    for raw in lines:
        line = raw.rstrip(b"\r\n").decode(errors="replace")
        name, _, value = line.partition(":")
        match name:
            case "" if not line:
                if event:
                    yield Told(event, last)
                event = ""
            case "event":
                event = value.removeprefix(" ")
            case "id":
                last = value.removeprefix(" ")[:200]
            case _:
                pass


class Changes:
    """Follows the stream in a thread of its own. Use it as a context manager."""

    def __init__(self, where: Where) -> None:
        self._where = where
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._lost_at: float | None = None
        self._api: Api | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True, name="changes")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()  # The thread is not waited for: it reads, and ends with the process.

    @property
    def lost_at(self) -> float | None:
        """Since when the stream is away, in seconds since 1970; None: it is there."""
        return self._lost_at

    def wait(self, every_s: float) -> bool:
        """Return when something changed, or after `every_s`; whether something changed."""
        changed = self._changed.wait(every_s)
        self._changed.clear()
        return changed

    def _follow(self) -> None:
        last, again_s = "", AGAIN_S
        while not self._stopped.is_set():
            try:
                headers = {"Last-Event-ID": last} if last else {}
                with (
                    Api(self._where, timeout_s=STREAM_TIMEOUT_S, tries=1) as api,
                    api.lines("/stream", {}, headers=headers) as lines,
                ):
                    for each in told(lines):
                        if self._stopped.is_set():
                            return
                        was_lost, self._lost_at, again_s = self._lost_at is not None, None, AGAIN_S
                        last = each.id or last
                        if each.event != "heartbeat" or was_lost:
                            self._changed.set()
            except (MusterError, OSError, ValueError):
                pass
            if self._lost_at is None:
                self._lost_at = time.time()
            self._stopped.wait(again_s * random.uniform(0.7, 1.3))
            again_s = min(AGAIN_MAX_S, again_s * 2)


def repeat(context: typer.Context, form: Form, every_s: float, run: Callable[[], object]) -> None:
    """Run a command now and whenever something changed, until Ctrl-C.

    To a terminal it repaints; else it says what is new: a JSON line or a YAML document for each change.
    """
    try:
        where = where_of(context)
    except MusterError as error:
        fail(error)
    painter = _Painter(form)
    with Changes(where) as changes, painter, suppress(KeyboardInterrupt):
        while True:
            try:
                with speaking(Speaking(form, painter.say)):
                    run()
            except Lost as lost:
                if not painter.has_said:
                    painter.close()
                    Console(stderr=True, soft_wrap=True).print(f"error: {lost}", style="red", markup=False)
                    raise typer.Exit(LOST_EXIT) from lost
                painter.lose(time.time())
                time.sleep(AGAIN_S)
                continue
            time.sleep(FLOOR_S)
            changes.wait(max(0.0, every_s - FLOOR_S))
    raise typer.Exit(STOPPED_EXIT)


class _Painter:
    """Says what a command says again and again."""

    def __init__(self, form: Form) -> None:
        self._live: Live | None = None
        if form is Form.TEXT and sys.stdout.isatty():
            self._live = Live(Text(), screen=True, auto_refresh=False, vertical_overflow="crop")
        self._last: str | None = None
        self._lost_at: float | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def has_said(self) -> bool:
        return self._last is not None

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, what: str | Human) -> None:
        said = what if isinstance(what, str) else _captured(what, is_terminal=self._live is not None)
        was_lost, self._lost_at = self._lost_at is not None, None
        if self._live is not None:
            head = Text(f"{time.strftime('%H:%M:%S')}  Ctrl-C ends\n", style="dim")
            self._live.update(head + Text.from_ansi(said), refresh=True)
        elif said != self._last or was_lost:
            sys.stdout.write(said)
            sys.stdout.flush()
        self._last = said

    def lose(self, now: float) -> None:
        """Say once that no controller answers, or keep saying it where there is a screen."""
        is_new = self._lost_at is None
        self._lost_at = self._lost_at or now
        words = f"connection lost since {time.strftime('%H:%M:%S', time.localtime(self._lost_at))}"
        if self._live is not None:
            self._live.update(
                Text(f"{words}; trying again\n", style="red") + Text.from_ansi(self._last or ""), refresh=True
            )
        elif is_new:
            Console(stderr=True).print(f"{words}; trying again", style="red", highlight=False)


def _captured(human: Human, *, is_terminal: bool) -> str:
    console = Console(force_terminal=True if is_terminal else None)
    with console.capture() as capture:
        human(console)
    return capture.get()
