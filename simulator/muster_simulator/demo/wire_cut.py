"""A line that can be cut: a TCP relay between one device and its broker.

    device ──▶ 127.0.0.1:port ══ relay ══▶ broker        cut: what was open is reset, what is opened leads nowhere

Mending resets what leads nowhere, as a router does that comes back. It runs on a thread of its own and does not look at
what passes.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

PIECE_BYTES = 64 * 1024
CALL_TIMEOUT_S = 10.0
_RESET = struct.pack("ii", 1, 0)  # Linger for no time: the close is a reset, as of a line that is torn.

T = TypeVar("T")


class WireCut:
    """A relay to `host:port`, mended at first. Its methods may be called from any thread."""

    def __init__(self, host: str, port: int) -> None:
        self.bytes_passed = 0
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire-cut", daemon=True)
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._nowhere: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self._port = 0

    @property
    def port(self) -> int:
        """Where the device connects, on 127.0.0.1; it stays the same when the line is cut and mended."""
        return self._port

    @property
    def is_cut(self) -> bool:
        return self._is_cut

    def start(self) -> Self:
        """Listen on a free port. Raises OSError."""
        self._thread.start()
        self._call(self._listen)
        return self

    def cut(self) -> None:
        """Reset every connection; new ones lead nowhere. Harmless when it is cut already."""
        self._call(self._cut)

    def mend(self) -> None:
        """Let new connections through. Harmless when it is whole."""
        self._call(self._mend)

    def stop(self) -> None:
        """Cut it for good."""
        if self._thread.is_alive():
            self._call(self._close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CALL_TIMEOUT_S)
        if not self._loop.is_closed() and not self._thread.is_alive():
            self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- on the loop -------------------------------------------------------------------------------------------------

    def _call(self, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(CALL_TIMEOUT_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        self._is_cut = True
        for writer in self._open:
            _tear(writer)
        if self._passing:  # They end by themselves: what they read from is gone.
            await asyncio.wait(self._passing, timeout=CALL_TIMEOUT_S / 2)

    async def _mend(self) -> None:
        self._is_cut = False
        for writer in self._nowhere:
            _tear(writer)
        self._nowhere.clear()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()
        await self._mend()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            self._nowhere.add(writer)
            return
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        self._open.add(writer)
        try:
            there, onward = await asyncio.open_connection(*self._target)
        except OSError:
            _tear(writer)  # The broker is down: the device sees what it would see without us.
        else:
            self._open.add(onward)
            if self.is_cut:  # Meanwhile.
                _tear(writer)
                _tear(onward)
            await asyncio.gather(self._pass(reader, onward), self._pass(there, writer))
            self._open.discard(onward)
        finally:
            self._open.discard(writer)
            self._passing.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                writer.write(piece)
                await writer.drain()
                self.bytes_passed += len(piece)
        with suppress(OSError):
            writer.close()


def _tear(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
