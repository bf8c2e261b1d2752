"""The device port: HTTPS for two requests, and nothing else of the controller behind it.

    accept ─ too many? ─▶ TLS handshake ─ one request, bounded ─ too often? ─▶ `EnrolmentService.answer` ─▶ one answer

It stands on hostile networks. One connection carries one request and has one deadline for all of it, so nobody holds a
place by being slow; each source address (of IPv6: each /64) has few places and a rate; sources over their rate are cut
before a handshake costs us anything. One thread with an event loop, and a few that look into the database.
"""

import asyncio
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import h11
import structlog

from muster_controller.errors import ServerUnavailable
from muster_controller.operators.limits import RateLimit
from muster_shared.enrolment import CA_PATH, PATH, REQUEST_BYTES_MAX, Answer, Granted, Refused, Waiting, encode

HEAD_BYTES_MAX = 16 * 1024
START_S = 10.0
ACCEPT_AGAIN_S = 0.1
_STATUS = {"token": 403, "device": 409, "revoked": 403, "serial": 403, "clock": 400, "request": 400, "busy": 503}
_CLOSED = (OSError, EOFError, TimeoutError, h11.RemoteProtocolError, ssl.SSLError)

log = structlog.get_logger()


@dataclass(frozen=True)
class PortLimits:
    """Attributes:
    connections, connections_a_source: open at once.
    requests_a_second, requests_at_once: of one source; what is above is answered with `busy`, and with nothing
        at all when it is four times as much.
    requests_a_second_in_all, requests_at_once_in_all: of everybody.
    answers_waiting: requests that wait for the database at once.
    handshake_s, exchange_s: of one connection, the latter for all of it.
    """

    connections: int = 512
    connections_a_source: int = 64
    requests_a_second: float = 5.0
    requests_at_once: float = 100.0
    requests_a_second_in_all: float = 100.0
    requests_at_once_in_all: float = 400.0
    answers_waiting: int = 128
    handshake_s: float = 5.0
    exchange_s: float = 20.0


@dataclass
class PortCounters:
    """Totals since the start."""

    answered: int = 0
    limited: int = 0
    dropped: int = 0
    """Connections that were cut before TLS."""
    broken: int = 0
    """Connections that failed, were too slow, or did not speak HTTP."""


class DevicePort:
    """Serves from `start` to `stop`. It is a `Gatekeeper`."""

    def __init__(
        self,
        listener: socket.socket,
        certificate: Path,
        answer: Callable[[bytes], Answer],
        root_pem: Callable[[], bytes],
        clock: Callable[[], float],
        limits: PortLimits | None = None,
    ) -> None:
        """
        Args:
            listener: bound; it is closed at the end.
            certificate: PEM: key, certificate and chain in one file.
            clock: Unix seconds.
        """
        self.counters = PortCounters()
        self._listener = listener
        self._certificate = certificate
        self._answer = answer
        self._root_pem = root_pem
        self._clock = clock
        self._limits = limits or PortLimits()
        bounds = self._limits
        self._requests = RateLimit(bounds.requests_a_second, bounds.requests_at_once)
        self._everybody = RateLimit(bounds.requests_a_second_in_all, bounds.requests_at_once_in_all, kept=1)
        self._knocks = RateLimit(4 * bounds.requests_a_second, 4 * bounds.requests_at_once)
        self._context = self._load()
        self._open: Counter[str] = Counter()
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._executor = ThreadPoolExecutor(4, "device-port-answer")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device-port", daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Raises ServerUnavailable."""
        self._thread.start()
        if not self._ready.wait(START_S):
            raise ServerUnavailable("the device port does not come up; its log says why")

    def stop(self) -> None:
        """Cut every connection and end. Doing it twice is harmless."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(stopping.set)
            self._thread.join(10.0)
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._listener.close()

    def refresh(self) -> None:
        """Nothing: each request is decided by the rows."""

    def reload_certificates(self) -> None:
        """Raises OSError when the new ones cannot be used; the old ones stay then."""
        self._context = self._load()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        context.load_cert_chain(self._certificate)
        context.set_alpn_protocols(["http/1.1"])
        return context

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("device_port_failed")

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._listener.setblocking(False)
        self._listener.listen(1024)
        accepting = asyncio.create_task(self._accept(self._loop))
        self._ready.set()
        await self._stopping.wait()
        tasks = [accepting, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                connection, address = await loop.sock_accept(self._listener)
            except OSError:  # No file descriptors are left, or the peer has gone already.
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            source = source_of(address[0])
            if not self._admits(source, loop.time()):
                self.counters.dropped += 1
                connection.close()
                continue
            self._open[source] += 1
            task = asyncio.create_task(self._connection(loop, connection, source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _admits(self, source: str, now: float) -> bool:
        if len(self._tasks) >= self._limits.connections or self._open[source] >= self._limits.connections_a_source:
            return False
        return self._knocks.take(source, now) == 0.0

    async def _connection(self, loop: asyncio.AbstractEventLoop, connection: socket.socket, source: str) -> None:
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(self._limits.exchange_s):
                reader = asyncio.StreamReader(limit=HEAD_BYTES_MAX)
                protocol = asyncio.StreamReaderProtocol(reader)
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol,
                    connection,
                    ssl=self._context,
                    ssl_handshake_timeout=self._limits.handshake_s,
                    ssl_shutdown_timeout=self._limits.handshake_s,
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                await self._exchange(reader, writer, source)
                writer.close()
                with suppress(*_CLOSED):  # It has its answer; many clients leave without a word then.
                    await writer.wait_closed()
        except _CLOSED:
            self.counters.broken += 1
        except Exception:  # A bug of ours ends this connection and no other.
            log.exception("device_port_request_failed")
        finally:
            if transport is not None:
                transport.abort()
            connection.close()
            self._open[source] -= 1
            if self._open[source] <= 0:
                del self._open[source]

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        request: h11.Request | None = None
        body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                if http.they_are_waiting_for_100_continue:
                    writer.write(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                http.receive_data(await reader.read(HEAD_BYTES_MAX))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > REQUEST_BYTES_MAX:
                    reason = f"a request has at most {REQUEST_BYTES_MAX} bytes"
                    await self._reply(http, writer, 413, self._refused("request", reason))
                    return
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                await self._route(http, writer, request, body, source)
                return
            else:  # The peer went away.
                return

    async def _route(
        self, http: h11.Connection, writer: asyncio.StreamWriter, request: h11.Request, body: bytes, source: str
    ) -> None:
        now = asyncio.get_running_loop().time()
        path = request.target.partition(b"?")[0].decode("latin-1")
        wait_s = max(self._requests.take(source, now), self._everybody.take("all", now))
        if wait_s > 0.0:
            self.counters.limited += 1
            refused = self._refused("busy", f"too many requests; ask again in {max(1, round(wait_s))} s")
            await self._reply(http, writer, 429, refused, retry_s=wait_s)
        elif path == CA_PATH and request.method in (b"GET", b"HEAD"):
            await self._send(http, writer, 200, "application/x-pem-file", self._root_pem())
        elif path == PATH and request.method == b"POST":
            await self._reply(http, writer, *await self._answered(body))
        else:
            status = 405 if path in (CA_PATH, PATH) else 404
            refused = self._refused("request", f"there is GET {CA_PATH} and POST {PATH}, and nothing else")
            await self._reply(http, writer, status, refused)
        self.counters.answered += 1

    async def _answered(self, body: bytes) -> tuple[int, Answer]:
        if self._waiting >= self._limits.answers_waiting:
            return 503, self._refused("busy", "too much to do; ask again later")
        self._waiting += 1
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._executor, self._answer, body)
        finally:
            self._waiting -= 1
        return status_of(answer), answer

    async def _reply(
        self, http: h11.Connection, writer: asyncio.StreamWriter, status: int, answer: Answer, retry_s: float = 0.0
    ) -> None:
        retry_s = answer.retry_s if isinstance(answer, Waiting) else retry_s
        await self._send(http, writer, status, "application/json", encode(answer), retry_s)

    async def _send(
        self,
        http: h11.Connection,
        writer: asyncio.StreamWriter,
        status: int,
        kind: str,
        body: bytes,
        retry_s: float = 0,
    ) -> None:
        headers = [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Date", formatdate(self._clock(), usegmt=True)),
            ("Connection", "close"),
        ]
        if retry_s > 0:
            headers.append(("Retry-After", str(max(1, round(retry_s)))))
        writer.write(http.send(h11.Response(status_code=status, headers=headers)) or b"")
        writer.write(http.send(h11.Data(data=body)) or b"")
        writer.write(http.send(h11.EndOfMessage()) or b"")
        await writer.drain()

    def _refused(self, code: str, reason: str) -> Refused:
        return Refused(code="busy" if code == "busy" else "request", reason=reason, server_time=self._clock())


def status_of(answer: Answer) -> int:
    """Return the HTTP status that goes with an answer."""
    match answer:
        case Granted():
            return 200
        case Waiting():
            return 202
        case Refused(code=code):
            return _STATUS[code]


def source_of(address: str) -> str:
    """Return who counts as one: an IPv4 address, or the /64 that an IPv6 host can choose its addresses from."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inside: IPv4Address | None = found.ipv4_mapped
        return str(inside) if inside is not None else f"{IPv6Address(int(found) >> 64 << 64)}/64"
    return str(found)


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket for the device port. Raises ServerUnavailable."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServerUnavailable(f"--device-host {host} is no address of this machine ({error})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise ServerUnavailable(
            f"port {port} on {host} cannot be used for devices ({error.strerror}); end what has it, or choose another "
            "with --device-port"
        ) from error
    return listener
