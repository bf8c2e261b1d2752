"""Overload spill: what exceeds a queue's bound may go to one upstream V2 endpoint, if the operator named one.

    429 here ──> forward ──> POST {upstream}/v2/models/M[/versions/V]/infer     Muster-Spilled: 1
                    ├── 200 within timeout_s ──> the answer, marked Muster-Spilled: <upstream host>
                    └── anything else ──> SpillFailed: the 429 stands

Only inferences, only when there is room among `in_flight`, and never a request that was spilled to us: two devices that
name each other do not play ball. The caller's own token stays here. An upstream that fails is left alone for a while
(`core.breaker`). It reads no models and touches no bodies.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import httptools
import msgspec

from muster_agent.core.breaker import Breaker, BreakerSettings
from muster_agent.serving.config import UpstreamConfig
from muster_shared.errors import MusterError

MARK = b"muster-spilled"
IDLE_S = 30.0  # A connection that was unused for longer is not trusted.
HEADER_BYTES_MAX = 32 * 1024
READ_BYTES = 256 * 1024
BREAKER = BreakerSettings(window_s=10.0, calls_min=4, share_max=0.5, open_s=1.0, open_s_max=30.0, probes=1)
_PASSED_ON = (b"content-type", b"inference-header-content-length", b"accept", b"traceparent", b"tracestate")
_PASSED_BACK = (b"inference-header-content-length", b"triton-request-id")

Headers = tuple[tuple[bytes, bytes], ...]


class SpillFailed(MusterError):
    """The upstream did not take the request. What was to be answered without an upstream is to be answered."""

    def __init__(self, upstream: str, reason: str) -> None:
        super().__init__(f"{upstream} did not take the request: {reason}; see serving.upstream in agent.toml")
        self.upstream = upstream
        self.reason = reason


@dataclass(frozen=True)
class Spilled:
    """The upstream's answer."""

    status: int
    content_type: bytes
    headers: Headers
    """With the mark."""
    body: bytes


class SpillCounts(msgspec.Struct, frozen=True, kw_only=True):
    in_flight: int = 0
    spilled: int = 0
    """Answered by the upstream."""
    failed: int = 0
    """Not answered, for whatever reason."""


class _Stale(Exception):
    """A kept connection turned out to be closed before it gave a byte."""


class Spill:
    """The way to one upstream. Lives on one loop."""

    def __init__(
        self,
        config: UpstreamConfig,
        *,
        tls: ssl.SSLContext | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """
        Args:
            config: Checked.
            tls: For https; None: the system's certificate authorities.
        """
        parts = urlsplit(config.url)
        self.upstream = parts.netloc
        self._config = config
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/")
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._clock_ns = clock_ns
        self._breaker = Breaker(self.upstream, BREAKER)
        self._idle: list[_Connection] = []
        self._in_flight = self._spilled = self._failed = 0

    async def forward(
        self, model: str, version: str | None, body: bytes | memoryview, headers: Mapping[bytes, bytes]
    ) -> Spilled:
        """Return the upstream's answer to an inference.

        Args:
            headers: Of the request, by lower-case name; only what the protocol needs is passed on.
        Raises:
            SpillFailed: there is none within the time, or it is no answer (any status but 200).
        """
        began_ns = self._clock_ns()
        try:
            self._check(headers, began_ns)
        except SpillFailed:
            self._failed += 1
            raise
        self._in_flight += 1
        try:
            async with asyncio.timeout(self._config.timeout_s):
                spilled = await self._ask(self._head(model, version, len(body), headers), body)
        except (OSError, ValueError, httptools.HttpParserError, SpillFailed) as error:
            self._failed += 1
            self._breaker.failed(began_ns, self._clock_ns())
            if isinstance(error, SpillFailed):
                raise
            late = isinstance(error, TimeoutError)
            reason = f"no answer within {self._config.timeout_s:g} s" if late else f"{type(error).__name__}: {error}"
            raise SpillFailed(self.upstream, reason) from error
        except asyncio.CancelledError:
            self._breaker.abandoned(began_ns, self._clock_ns())
            raise
        finally:
            self._in_flight -= 1
        self._spilled += 1
        self._breaker.succeeded(began_ns, self._clock_ns())
        return spilled

    def counts(self) -> SpillCounts:
        return SpillCounts(in_flight=self._in_flight, spilled=self._spilled, failed=self._failed)

    def close(self) -> None:
        """Close the connections that wait for use. Those in use end with their requests' deadlines."""
        while self._idle:
            self._idle.pop().close()

    def _check(self, headers: Mapping[bytes, bytes], now_ns: int) -> None:
        if MARK in headers:
            raise SpillFailed(self.upstream, "it was spilled to this device already")
        if self._in_flight >= self._config.in_flight:
            raise SpillFailed(self.upstream, f"{self._in_flight} requests are under way there, which is the limit")
        if not self._breaker.allows(now_ns):
            raise SpillFailed(self.upstream, "it failed too often of late")

    def _head(self, model: str, version: str | None, length: int, headers: Mapping[bytes, bytes]) -> bytes:
        path = f"{self._prefix}/v2/models/{quote(model, safe='')}"
        path += f"/versions/{quote(version, safe='')}/infer" if version is not None else "/infer"
        lines = [b"POST %b HTTP/1.1" % path.encode(), b"Host: " + self.upstream.encode(), b"Muster-Spilled: 1"]
        for name in _PASSED_ON:
            value = headers.get(name)
            if value is not None and b"\r" not in value and b"\n" not in value:
                lines.append(b"%b: %b" % (name, value))
        if self._config.token:
            lines.append(b"Authorization: Bearer " + self._config.token.encode())
        return b"\r\n".join([*lines, b"Content-Length: %d\r\n\r\n" % length])

    async def _ask(self, head: bytes, body: bytes | memoryview) -> Spilled:
        connection = self._kept()
        if connection is not None:
            try:
                return self._spilled_by(await self._exchange(connection, head, body))
            except _Stale:
                self.close()  # The others are as old.
        fresh = await _Connection.open(self._host, self._port, self._tls)
        try:
            return self._spilled_by(await self._exchange(fresh, head, body))
        except _Stale as error:
            raise SpillFailed(self.upstream, "it closed the connection without an answer") from error

    def _kept(self) -> "_Connection | None":
        """Return the connection that was used last, if it can still be."""
        oldest = asyncio.get_running_loop().time() - IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.used_at >= oldest and not connection.ended():
                return connection
            connection.close()
        return None

    async def _exchange(self, connection: "_Connection", head: bytes, body: bytes | memoryview) -> "_Reply":
        """Send a request and read its answer; keep the connection when both ended well, else close it."""
        reply = _Reply(self.upstream, self._config.response_bytes_max)
        kept = False
        try:
            await connection.exchange(head, body, reply)
            kept = reply.keep_alive and len(self._idle) < self._config.in_flight
        finally:
            if kept:
                connection.used_at = asyncio.get_running_loop().time()
                self._idle.append(connection)
            else:
                connection.close()
        return reply

    def _spilled_by(self, reply: "_Reply") -> Spilled:
        if reply.status != 200:
            raise SpillFailed(self.upstream, f"it answered {reply.status}")
        passed = (
            (name, value)
            for name, value in reply.headers.items()
            if name in _PASSED_BACK or (name.startswith(b"muster-") and name != MARK)
        )
        content_type = reply.headers.get(b"content-type", b"application/json")
        marked = (*passed, (b"Muster-Spilled", self.upstream.encode()))
        return Spilled(200, content_type, marked, b"".join(reply.body))


class _Connection:
    """One connection to the upstream, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.used_at = 0.0  # On the loop's clock.

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext | None) -> "_Connection":
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=READ_BYTES)
        return cls(reader, writer)

    def ended(self) -> bool:
        return self._reader.at_eof() or self._reader.exception() is not None or self._writer.is_closing()

    def close(self) -> None:
        self._writer.transport.abort()  # Nothing is owed, and TLS's farewell could wait for ever.

    async def exchange(self, head: bytes, body: bytes | memoryview, reply: "_Reply") -> None:
        received = False
        try:
            self._writer.writelines([head, body])
            await self._writer.drain()
            while not reply.whole:
                data = await self._reader.read(READ_BYTES)
                if not data:
                    break
                received = True
                reply.feed(data)
        except OSError as error:
            if received:
                raise
            raise _Stale from error
        if not received:
            raise _Stale
        if not reply.whole:
            raise SpillFailed(reply.upstream, "it closed the connection within its answer")


class _Reply:
    """One answer as it arrives; `httptools` calls back."""

    def __init__(self, upstream: str, bytes_max: int) -> None:
        self.upstream = upstream
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body: list[bytes] = []
        self.whole = False
        self.keep_alive = False
        self._bytes_max = bytes_max
        self._header_bytes = 0
        self._body_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)
        # Checked here: an exception from a callback would come out as the parser's.
        if self._header_bytes > HEADER_BYTES_MAX:
            raise SpillFailed(self.upstream, f"its headers are larger than {HEADER_BYTES_MAX} bytes")
        if self._body_bytes > self._bytes_max:
            raise SpillFailed(self.upstream, f"its answer is larger than {self._bytes_max} bytes")

    def on_message_begin(self) -> None:
        if self.whole:
            self.keep_alive = False  # More than was asked for: not a connection to keep.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if not self.whole:
            self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if not self.whole:
            self.body.append(body)

    def on_message_complete(self) -> None:
        if self.whole:
            return
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like come before the answer.
            self.headers.clear()
            return
        self.status = status
        self.whole = True
        self.keep_alive = self._parser.should_keep_alive()
