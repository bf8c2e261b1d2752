"""HTTP/1.1 for local callers: an asyncio protocol on httptools, with keep-alive, pipelining, and a bound on everything.

    data ──> parse ──> pending ──> handler ──> an answer, now or later ──> written in the order of the requests
              │           └── more than one pending: reading pauses, so a caller's backlog stays in its own socket
              └── the same head as last time, byte for byte: parsed already (a caller's heads rarely differ)

A connection that begins with `MUSTER/1` speaks frames instead and is handed over. It knows nothing about models; `app`
answers. It has no TLS: it listens on the loopback or on a Unix socket.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import httptools
import msgspec
import structlog

from muster_agent.serving.listening import Listening

log = structlog.get_logger(__name__)

FRAMES = b"MUSTER/1"
KNOWN_BYTES_MAX = 64 * 1024  # Of a request whose head is worth remembering: a larger one is not parsed in a hurry.
PIECE_BYTES = 4096  # Pieces of a body below this are gathered: a list of single bytes takes more memory than the body.
GATHERED_BYTES = 64 * 1024
LINGER_S = 1.0  # How long a refused caller may take to notice.
INTERNAL_ERROR = "internal error; see the agent's log"
_encode = msgspec.json.Encoder().encode
# Two of one of these can be read in two ways, by us and by whoever passed them on.
_ONCE = frozenset(
    (
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"host",
        b"inference-header-content-length",
        b"transfer-encoding",
    )
)
_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
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


class Head:
    """A request without its body, parsed."""

    __slots__ = ("headers", "keep_alive", "memo", "method", "path")

    def __init__(self, method: bytes, path: str, headers: Mapping[bytes, bytes], *, keep_alive: bool) -> None:
        self.method = method
        self.path = path
        """Without query; never decoded: no name of ours needs escapes."""
        self.headers = headers
        """By lower-case name; of repeated ones the last, where repeating is allowed at all. Never trailers."""
        self.keep_alive = keep_alive
        self.memo: object = None
        """What the handler has made of this head, for the next request with the same."""


class Request:
    """A request, read whole. A handler that answers later calls `answer` once, on the loop."""

    __slots__ = ("_connection", "body", "head")

    def __init__(self, head: Head, body: bytes, connection: "Connection") -> None:
        self.head = head
        self.body = body
        self._connection = connection

    @property
    def method(self) -> bytes:
        return self.head.method

    @property
    def path(self) -> str:
        return self.head.path

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        return self.head.headers

    @property
    def origin(self) -> int:
        """A number of the connection, on which one request is answered at a time."""
        return id(self._connection)

    @property
    def peer(self) -> str:
        """Who is at the other end, as far as the system tells: an address, or the user of a Unix socket."""
        return self._connection.peer

    def answer(self, answer: "Response | bytes") -> None:
        """Answer: a response, or the bytes of one whole and prepared."""
        self._connection.answer(self, answer)

    def answer_from(self, future: "asyncio.Future[Response]") -> None:
        """Answer with what the future comes to; it is cancelled when the caller goes away."""
        self.on_gone(future.cancel)
        future.add_done_callback(self._settled)

    def on_gone(self, act: Callable[[], object]) -> None:
        """Call `act` when the caller goes away before it was answered."""
        self._connection.on_gone(self, act)

    def _settled(self, future: "asyncio.Future[Response]") -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            log.error("request_failed", exc_info=error)
        self.answer(refusal(500, INTERNAL_ERROR) if error else future.result())


@dataclass(frozen=True)
class Response:
    status: int
    parts: Sequence[bytes | memoryview]
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    close: bool = field(default=False, kw_only=True)


Handler = Callable[[Request], "Response | bytes | None"]
"""Answers now, or returns None and calls `Request.answer` later."""
Adopt = Callable[[], asyncio.Protocol]
"""Makes the protocol of a connection that speaks frames."""


def refusal(status: int, message: str, *headers: tuple[bytes, bytes], close: bool = False) -> Response:
    """Return `{"error": message}`, as Triton says it."""
    return Response(status, [_encode({"error": message})], headers=headers, close=close)


@dataclass(frozen=True, slots=True)
class _Known:
    """The head that a connection sent last, and how long the request with it was."""

    raw: bytes
    head: Head
    bytes: int


class Connection(asyncio.Protocol):
    """One caller. Everything happens on the loop."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._limits = server.limits
        self._loop = server.loop
        self._parser = httptools.HttpRequestParser(self)
        self._pending: deque[Request | Response] = deque()
        self._in_hand: Request | None = None  # With the handler.
        self._advancing = False
        self._keep_alive = True  # Of that request.
        self._bodiless = False  # The answer to that request is a head only.
        self._on_gone: Callable[[], object] | None = None
        self._known: _Known | None = None
        self._whole: bytes | None = None  # What was received, when the request in hand began with it.
        self._spoken = False
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
        has_room = self._server.joined(self)
        self._since = self._loop.time()
        self._arm(self._limits.read_s)
        if not has_room:
            self._stop(refusal(503, f"{self._limits.connections} connections are open; close some", close=True))
            self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stopping = True
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._in_hand is not None and self._on_gone is not None:
            self._on_gone()  # Work that has not begun is spared.
        self._on_gone = None
        self._server.left(self)

    def data_received(self, data: bytes) -> None:
        known = self._known
        if known is not None and len(data) == known.bytes and data.startswith(known.raw) and self._at_rest():
            request = self._in_hand = Request(known.head, data[len(known.raw) :], self)
            answer = self._server.handle(request)
            if answer is not None:
                self.answer(request, answer)
            return
        if self._stopping:
            return
        if not self._in_request:
            self._since = self._loop.time()  # The clock of `read_s` starts with the first byte.
            if not self._spoken:
                self._spoken = True
                if data.startswith(FRAMES) and self._server.adopt is not None:
                    self._hand_over(data, self._server.adopt())
                    return
            self._in_request = True
            self._whole = data if len(data) <= KNOWN_BYTES_MAX else None
        else:
            self._whole = None  # It comes in pieces.
        try:
            self._feed(data)
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
        self._count(len(name) + len(value) + 4)
        if self._head_whole:
            return  # A trailer: whoever checked the head did not see it.
        name = name.lower()
        if name in _ONCE and name in self._headers and not self._stopping:
            self._stop(refusal(400, f"the request has two {name.decode()} headers; send one", close=True))
        self._headers[name] = value.rstrip(b" \t")

    def on_headers_complete(self) -> None:
        self._head_whole = True
        if self._stopping:
            return
        announced = self._headers.get(b"content-length", b"0")
        if announced.isdigit() and len(announced) < 20 and int(announced) > self._limits.body_bytes:
            self._too_large()
        elif self._headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            self._stop(refusal(501, "a body may be chunked; no other transfer-encoding is understood", close=True))
        elif self._parser.should_upgrade() and (announced.strip(b"0") or b"transfer-encoding" in self._headers):
            # The parser takes such a body for the other protocol's first bytes.
            self._stop(refusal(501, "this server speaks HTTP/1.1 only; send no Upgrade header", close=True))
        elif self._expects_continue() and not self._due():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._too_large()
        elif not self._stopping:
            last = self._body[-1] if self._body else b""
            if isinstance(last, bytearray) and len(last) < GATHERED_BYTES:
                last += body
            elif self._body and len(body) < PIECE_BYTES:
                self._body.append(bytearray(body))
            else:
                self._body.append(body)

    def on_message_complete(self) -> None:
        self._in_request = False
        whole, self._whole = self._whole, None  # What follows in it is another request.
        if self._stopping:
            return
        body = bytes(self._body[0]) if len(self._body) == 1 else b"".join(self._body)
        path = b"".join(self._url).partition(b"?")[0].decode("latin-1")
        head = Head(self._parser.get_method(), path, self._headers, keep_alive=self._parser.should_keep_alive())
        if whole is not None and head.keep_alive:
            self._know(head, whole, len(body))
        self._pending.append(Request(head, body, self))
        self._begin()

    # Our own.

    def stop(self) -> None:
        """Answer what has arrived whole, then close."""
        self._stopping = True
        self._advance()

    def cut(self) -> None:
        """Close now, whatever is due."""
        self._transport.abort()

    @property
    def peer(self) -> str:
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) and name else "unix"

    def on_gone(self, request: Request, act: Callable[[], object]) -> None:
        if request is self._in_hand:
            self._on_gone = act

    def answer(self, request: Request, answer: Response | bytes) -> None:
        """Write the answer to the request in hand, and go on with the next. One that was answered before is not again.

        The next on this connection may be in hand by then: it must never get this answer.
        """
        if request is not self._in_hand:
            return
        self._in_hand = None
        self._on_gone = None
        if self._transport.is_closing():
            return
        if isinstance(answer, Response):
            bodiless, self._bodiless = self._bodiless, False
            self._write(answer, self._keep_alive, bodiless=bodiless)
        else:
            self._transport.write(answer)
            self._since = self._loop.time()
            if not self._keep_alive:  # The caller asked for the end itself, so the answer need not announce it.
                self._stopping = True
                self._pending.clear()
        if (self._pending or self._stopping or not self._reading) and not self._advancing:
            self._advance()

    def _hand_over(self, data: bytes, protocol: asyncio.Protocol) -> None:
        """This connection speaks frames: from here on it is another protocol's."""
        if self._timer is not None:
            self._timer.cancel()
        self._server.left(self)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(data)

    def _feed(self, data: bytes) -> None:
        """Let the parser read `data`. Raises HttpParserError."""
        rest = memoryview(data)
        while rest:
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # The caller would rather speak another protocol; it is answered in this one.
                self._parser = httptools.HttpRequestParser(self)
                rest = rest[upgrade.args[0] :]

    def _expects_continue(self) -> bool:
        expected = self._headers.get(b"expect", b"").lower()
        return expected == b"100-continue" and self._parser.get_http_version() == "1.1"

    def _know(self, head: Head, whole: bytes, body_bytes: int) -> None:
        """Remember a head that came in one piece with its body: the next with the same bytes is the same.

        Args:
            whole: What was received, from the first byte of the head; more may follow the body.
        """
        if head.method == b"HEAD" or b"transfer-encoding" in head.headers or b"expect" in head.headers:
            return
        size = whole.find(b"\r\n\r\n") + 4  # The parser takes no other end of a head.
        if size + body_bytes == len(whole) and int(head.headers.get(b"content-length", b"0")) == body_bytes:
            self._known = _Known(whole[:size], head, len(whole))

    def _begin(self) -> None:
        self._url: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._head_whole = False
        self._body: list[bytes | bytearray] = []
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
        self._pending.append(response)

    def _advance(self) -> None:
        """Answer what can be answered now, in order."""
        self._advancing = True
        while self._pending and self._in_hand is None and self._writable and not self._transport.is_closing():
            request = self._pending.popleft()
            if isinstance(request, Response):
                self._write(request, keep_alive=False)
                continue
            self._keep_alive = request.head.keep_alive
            self._bodiless = request.head.method == b"HEAD"
            self._in_hand = request
            answer = self._server.handle(request)
            if answer is not None:
                self.answer(request, answer)
        self._advancing = False
        if self._stopping and not self._due():
            self._end()
        elif self._reading != (len(self._pending) < 2):
            self._reading = not self._reading
            if self._reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _write(self, response: Response, keep_alive: bool, *, bodiless: bool = False) -> None:
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
        self._transport.writelines([head] if bodiless else [head, *response.parts])
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
            with suppress(OSError, RuntimeError):  # The caller may have gone meanwhile.
                self._transport.write_eof()
                self._transport.resume_reading()
            self._loop.call_later(LINGER_S, self._transport.abort)

    def _at_rest(self) -> bool:
        """Whether the next byte begins a request that can be handled at once."""
        if self._in_request or self._pending or self._stopping:
            return False
        return self._in_hand is None and self._writable

    def _due(self) -> bool:
        return self._in_hand is not None or bool(self._pending)

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


class HttpServer(Listening[Connection]):
    """Listens, and keeps its connections. Made by `serve`."""

    def __init__(
        self, handler: Handler, limits: Limits, loop: asyncio.AbstractEventLoop, adopt: Adopt | None = None
    ) -> None:
        super().__init__(loop, limits.connections)
        self.limits = limits
        self.adopt = adopt
        self.port: int | None = None
        """Of the TCP listener."""
        self._handler = handler

    def handle(self, request: Request) -> Response | bytes | None:
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
        await self._listen_unix(path, lambda: Connection(self))


async def serve(
    handler: Handler,
    *,
    host: str | None = "127.0.0.1",
    port: int = 8000,
    unix_path: Path | None = None,
    limits: Limits | None = None,
    adopt: Adopt | None = None,
) -> HttpServer:
    """Listen for `handler` and return the running server.

    Args:
        host: Address of the TCP listener, None for none. There is no authentication: keep it on the loopback.
        port: 0 takes a free one, then in `HttpServer.port`.
        unix_path: Where to put a Unix socket as well; a stale one there is replaced.
        adopt: Makes the protocol for a connection that speaks frames; None: there are none.
    Raises:
        OSError: an address is taken or not allowed.
    """
    server = HttpServer(handler, limits or Limits(), asyncio.get_running_loop(), adopt)
    try:
        if host is not None:
            await server.listen_tcp(host, port)
        if unix_path is not None:
            await server.listen_unix(unix_path)
    except OSError:
        await server.stop(0.0)
        raise
    return server
