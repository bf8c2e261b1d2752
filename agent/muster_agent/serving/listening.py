"""What a front that listens does, whatever it speaks: it keeps its connections, and ends them in order.

    listen ──> joined, left ... ──> stop: no more callers, what is due is answered, what remains after a while is cut

It reads and writes nothing; `http` and `frames` do.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

SOCKET_MODE = 0o660  # The group of the socket file is who may ask for inferences.

log = structlog.get_logger(__name__)


class Ends(Protocol):
    """A connection, as its listener knows it."""

    def stop(self) -> None:
        """Answer what has arrived whole, then close."""
        ...

    def cut(self) -> None:
        """Close now, whatever is due."""
        ...


C = TypeVar("C", bound=Ends)


class Listening(Generic[C]):
    """Listens, and keeps its connections. Everything happens on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connections_max: int) -> None:
        self.loop = loop
        self._connections_max = connections_max
        self._listeners: list[asyncio.Server] = []
        self._connections: set[C] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def stop(self, timeout_s: float) -> None:
        """Take no more callers, answer the requests that are here, then close; cut what remains after `timeout_s`."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.stop()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            log.warning("callers_cut", front=type(self).__name__, connections=len(self._connections))
            for connection in list(self._connections):
                connection.cut()

    def joined(self, connection: C) -> bool:
        """Count a caller in. False when there are too many: it is to be told, and leaves as any other."""
        self._connections.add(connection)
        self._empty.clear()
        return len(self._connections) <= self._connections_max

    def left(self, connection: C) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def _listen_unix(self, path: Path, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Listen at `path`; a stale socket there is replaced."""
        listener = await self.loop.create_unix_server(protocol, str(path))
        self._listeners.append(listener)
        path.chmod(SOCKET_MODE)  # noqa: ASYNC240 - one system call, before anybody is served.
