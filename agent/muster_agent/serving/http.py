"""HTTP/1.1 for local callers: an asyncio protocol on httptools, with keep-alive, pipelining, and a bound on everything.

    data ──> parse ──> pending ──> handler ──> Response, or a future of one ──> written in the order of the requests
                          └── more than one pending: reading pauses, so a caller's backlog stays in its own socket

It knows nothing about models; `app` answers. It has no TLS: it listens on the loopback or on a Unix socket.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import httptools
import msgspec
import structlog

log = structlog.get_logger(__name__)

LINGER_S = 1.0  # How long a refused caller may take to notice.
INTERNAL_ERROR = "internal error; see the agent's log"
SOCKET_MODE = 0o660  # The group of the socket file is who may ask for inferences.
_encode = msgspec.json.Encoder().encode
_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


@dataclass(frozen=True)
class Limits:
    """What one caller may take."""

    header_bytes: int = 16 * 1024
    """Target and headers together."""
    body_bytes: int = 16 * 1024 * 1024
    connections: int = 256
    idle_s: float = 75.0
    """A connection without a request is closed after this."""
    read_s: float = 30.0
    """A request must be here whole within this."""


@dataclass(frozen=True)
class Request:
    """A request, read whole."""

    method: bytes
    path: str
    """Without query; never decoded: no name of ours needs escapes."""
    headers: Mapping[bytes, bytes]
    """By lower-case name; of repeated ones the last."""
    body: bytes


@dataclass(frozen=True)
class Response:
    status: int
    parts: list[bytes | memoryview]
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    close: bool = field(default=False, kw_only=True)


Handler = Callable[[Request], "Response | asyncio.Future[Response]"]


def refusal(status: int, message: str, *headers: tuple[bytes, bytes], close: bool = False) -> Response:
    """Return `{"error": message}`, as Triton says it."""
    return Response(status, [_encode({"error": message})], headers=headers, close=close)


class Connection(asyncio.Protocol):
    """One caller. Everything happens on the loop."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._limits = server.limits
        self._loop = server.loop
        self._parser = httptools.HttpRequestParser(self)
        self._pending: deque[tuple[Request | Response, bool]] = deque()
        self._answering: asyncio.Future[Response] | None = None
        self._stopping = False  # No more requests are read: a refusal, an error, or the server is stopping.
        self._refused = False
        self._lingering = False
        self._reading = True
        self._writable = True
        self._timer: asyncio.TimerHandle | None = None
        self._in_request = False
        self._begin()

    # Of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but the class.
        self._server.joined(self)
        self._since = self._loop.time()
        self._arm(self._limits.read_s)
        if self._server.crowded():
            self._stop(refusal(503, f"{self._limits.connections} connections are open; close some", close=True))
            self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stopping = True
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._answering is not None:
            self._answering.cancel()  # Work that has not begun is spared.
        self._server.left(self)

    def data_received(self, data: bytes) -> None:
        if self._stopping:
            return
        if not self._in_request:
            self._since = self._loop.time()  # The clock of `read_s` starts with the first byte.
            self._in_request = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._stop(refusal(400, "this server speaks HTTP/1.1 only", close=True))
        except httptools.HttpParserError as error:
            if not self._stopping:
                self._stop(refusal(400, f"the request does not parse: {error}", close=True))
        self._advance()

    def eof_received(self) -> bool:
        # A caller may shut its writing side and still wait for answers.
        self._stopping = True
        return self._due()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._advance()

    # Of the parser.

    def on_message_begin(self) -> None:
        self._begin()
        self._in_request = True

    def on_url(self, url: bytes) -> None:
        self._url.append(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        self._count(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        if self._stopping:
            return
        announced = self._headers.get(b"content-length", b"0")
        if announced.isdigit() and len(announced) < 20 and int(announced) > self._limits.body_bytes:
            self._too_large()
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and not self._due():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._too_large()
        elif not self._stopping:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._in_request = False
        if self._stopping:
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        path = b"".join(self._url).partition(b"?")[0].decode("latin-1")
        request = Request(self._parser.get_method(), path, self._headers, body)
        self._pending.append((request, self._parser.should_keep_alive()))
        self._begin()

    # Our own.

    def stop(self) -> None:
        """Answer what has arrived whole, then close."""
        self._stopping = True
        self._advance()

    def cut(self) -> None:
        """Close now, whatever is due."""
        self._transport.abort()

    def _begin(self) -> None:
        self._url: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._header_bytes = 0
        self._body_bytes = 0
        self._in_request = False

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self._limits.header_bytes and not self._stopping:
            limit = self._limits.header_bytes
            self._stop(refusal(431, f"the headers are larger than {limit} bytes", close=True))

    def _too_large(self) -> None:
        if not self._stopping:
            limit = self._limits.body_bytes
            self._stop(refusal(413, f"the body is larger than {limit} bytes; send a smaller batch", close=True))

    def _stop(self, response: Response) -> None:
        """Read no more; `response` is the last, after those that are due before it."""
        self._stopping = self._refused = True
        self._pending.append((response, False))

    def _advance(self) -> None:
        """Answer what can be answered now, in order."""
        while self._pending and self._answering is None and self._writable and not self._transport.is_closing():
            request, keep_alive = self._pending.popleft()
            answer = request if isinstance(request, Response) else self._server.handle(request)
            if isinstance(answer, Response):
                self._write(answer, keep_alive)
            else:
                self._answering = answer
                answer.add_done_callback(partial(self._answered, keep_alive))
        if self._stopping and not self._due():
            self._end()
        elif self._reading != (len(self._pending) < 2):
            self._reading = not self._reading
            if self._reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _answered(self, keep_alive: bool, future: "asyncio.Future[Response]") -> None:
        self._answering = None
        if future.cancelled() or self._transport.is_closing():
            return
        error = future.exception()
        if error is not None:
            log.error("request_failed", exc_info=error)
        self._write(refusal(500, INTERNAL_ERROR) if error else future.result(), keep_alive)
        self._advance()

    def _write(self, response: Response, keep_alive: bool) -> None:
        keep = keep_alive and not response.close and not (self._stopping and not self._pending)
        length = sum(len(part) for part in response.parts)
        head = b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n" % (
            response.status,
            _REASONS[response.status],
            response.content_type,
            length,
            b"".join(b"%b: %b\r\n" % header for header in response.headers),
            b"" if keep else b"Connection: close\r\n",
        )
        self._transport.writelines([head, *response.parts])
        self._since = self._loop.time()
        if not keep:
            self._stopping = True
            self._pending.clear()
            self._end()

    def _end(self) -> None:
        if not self._refused:
            self._transport.close()
        elif not self._lingering:
            # Closing with input unread resets the connection, and the caller might never see the refusal.
            self._lingering = True
            self._transport.write_eof()
            self._transport.resume_reading()
            self._loop.call_later(LINGER_S, self._transport.abort)

    def _due(self) -> bool:
        return self._answering is not None or bool(self._pending)

    def _arm(self, delay_s: float) -> None:
        # One lazy timer a connection: re-arming one for each request costs more than a small inference.
        self._timer = self._loop.call_later(max(0.05, delay_s), self._check)

    def _check(self) -> None:
        allowed_s = self._limits.read_s if self._in_request else self._limits.idle_s
        left_s = self._since + allowed_s - self._loop.time()
        busy = self._due()
        if busy or left_s > 0:
            # Whoever reads its answers too slowly is bounded as well: `_since` stands at the last write.
            if not self._writable and self._since + self._limits.idle_s < self._loop.time():
                self._transport.abort()
                return
            self._arm(min(allowed_s if busy else left_s, self._limits.read_s))
        elif self._lingering:
            return
        elif self._in_request:
            self._stop(refusal(408, f"the request was not here whole within {allowed_s:g} s", close=True))
            self._advance()
        else:
            self._transport.close()


class HttpServer:
    """Listens, and keeps its connections. Made by `serve`."""

    def __init__(self, handler: Handler, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self.loop = loop
        self.port: int | None = None
        """Of the TCP listener."""
        self._handler = handler
        self._listeners: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def handle(self, request: Request) -> "Response | asyncio.Future[Response]":
        try:
            return self._handler(request)
        except Exception:  # A bug of ours must not take the other callers down.
            log.exception("request_failed", path=request.path[:200])
            return refusal(500, INTERNAL_ERROR)

    async def listen_tcp(self, host: str, port: int) -> None:
        listener = await self.loop.create_server(lambda: Connection(self), host, port)
        self._listeners.append(listener)
        self.port = listener.sockets[0].getsockname()[1]

    async def listen_unix(self, path: Path) -> None:
        listener = await self.loop.create_unix_server(lambda: Connection(self), str(path))
        self._listeners.append(listener)
        path.chmod(SOCKET_MODE)  # noqa: ASYNC240 - one system call, before anybody is served.

    async def stop(self, timeout_s: float) -> None:
        """Take no more callers, answer the requests that are here, then close; cut what remains after `timeout_s`."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.stop()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            log.warning("callers_cut", connections=len(self._connections))
            for connection in list(self._connections):
                connection.cut()

    def crowded(self) -> bool:
        return len(self._connections) > self.limits.connections

    def joined(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._empty.clear()

    def left(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()


async def serve(
    handler: Handler,
    *,
    host: str | None = "127.0.0.1",
    port: int = 8000,
    unix_path: Path | None = None,
    limits: Limits | None = None,
) -> HttpServer:
    """Listen for `handler` and return the running server.

    Args:
        host: Address of the TCP listener, None for none. There is no authentication: keep it on the loopback.
        port: 0 takes a free one, then in `HttpServer.port`.
        unix_path: Where to put a Unix socket as well; a stale one there is replaced.
    Raises:
        OSError: an address is taken or not allowed.
    """
    server = HttpServer(handler, limits or Limits(), asyncio.get_running_loop())
    try:
        if host is not None:
            await server.listen_tcp(host, port)
        if unix_path is not None:
            await server.listen_unix(unix_path)
    except OSError:
        await server.stop(0.0)
        raise
    return server
