"""A connection in memory: a loop with a clock of its own, and the other end of one transport. No sockets, no time."""

import asyncio
from collections.abc import Callable
from typing import Any

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Clock(asyncio.BaseEventLoop):
    """A loop that has a clock and timers, and runs them when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.close()  # It is never run.
        self.now_s = 1000.0
        self._timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def call_later(  # type: ignore[override]  # Nothing here needs a context.
        self, delay: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        self._timers.append(asyncio.TimerHandle(self.now_s + delay, callback, args, self))
        return self._timers[-1]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._timers.remove(handle)

    def pass_time(self, seconds: float) -> None:
        end = self.now_s + seconds
        while due := [timer for timer in self._timers if timer.when() <= end]:
            first = min(due, key=lambda timer: timer.when())
            self._timers.remove(first)
            self.now_s = max(self.now_s, first.when())
            first._run()
        self.now_s = end


class Wire(asyncio.Transport):
    """The other end of one connection: what was written, and whether more is read."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reading = True
        self.closed = False
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "something was written after the end"
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        for part in list_of_data:
            self.write(part)

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 5000) if name == "peername" else default

    @property
    def answers(self) -> bytes:
        """Without the interim ones, which depend on how the request is cut."""
        return bytes(self.written).replace(CONTINUE, b"")

    @property
    def over(self) -> bool:
        return self.closed or self.ended
