"""Overload spill against an upstream on the loopback: what is passed on, what comes back, and what never goes there."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from muster_agent.serving.config import UpstreamConfig
from muster_agent.serving.spill import Spill, Spilled, SpillFailed

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DEADLINE_S = 30.0  # Only a test that fails waits for as long.

Answer = Callable[[int], bytes]
"""The raw answer to the request with this number, from 0; empty closes the connection."""


@dataclass
class Upstream:
    """A server that answers what it is told to, and keeps what it was sent."""

    answer: Answer = lambda _: OK
    port: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)  # (head, body)
    connections: int = 0
    hold: asyncio.Event | None = None  # Answers wait for it.
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    closed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
                number = len(self.requests)
                self.requests.append((head, await reader.readexactly(length)))
                self.arrived.release()
                if self.hold is not None:
                    await self.hold.wait()
                answer = self.answer(number)
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()
        self.closed.release()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def head(self, number: int = 0) -> list[bytes]:
        return self.requests[number][0].rstrip().split(b"\r\n")


@asynccontextmanager
async def listening(upstream: Upstream) -> AsyncIterator[Upstream]:
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", upstream.port)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        if upstream.hold is not None:
            upstream.hold.set()
        server.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def spill_to(url: str, clock: Clock | None = None, **settings: object) -> Spill:
    config = UpstreamConfig(url=url, **{"timeout_s": DEADLINE_S, **settings})  # type: ignore[arg-type]  # By name.
    return Spill(config, clock_ns=clock or Clock())


async def ask(spill: Spill, body: bytes = b"body", **headers: bytes) -> Spilled:
    return await spill.forward(
        "digits", None, body, {name.replace("_", "-").encode(): v for name, v in headers.items()}
    )


def test_the_request_goes_there_whole_and_the_answer_comes_back_marked() -> None:
    async def test() -> None:
        reply = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nInference-Header-Content-Length: 3\r\n"
            b"Muster-Release: 7\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\nabcde"
        )
        async with listening(Upstream(lambda _: reply)) as upstream:
            spill = spill_to(upstream.url + "/edge/", token="upstream-token")

            answer = await spill.forward(
                "digits",
                "1.0.0",
                b"tensor bytes",
                {
                    b"content-type": b"application/octet-stream",
                    b"inference-header-content-length": b"6",
                    b"traceparent": b"00-1-2-01",
                    b"authorization": b"Bearer the-caller's-own",
                    b"cookie": b"secret",
                },
            )
            spill.close()

            head = upstream.head()
            assert head[0] == b"POST /edge/v2/models/digits/versions/1.0.0/infer HTTP/1.1"
            assert set(head[1:]) == {
                b"Host: 127.0.0.1:%d" % upstream.port,
                b"Muster-Spilled: 1",
                b"content-type: application/octet-stream",
                b"inference-header-content-length: 6",
                b"traceparent: 00-1-2-01",
                b"Authorization: Bearer upstream-token",
                b"Content-Length: 12",
            }
            assert upstream.requests[0][1] == b"tensor bytes"
            assert (answer.status, answer.content_type, answer.body) == (200, b"application/octet-stream", b"abcde")
            assert dict(answer.headers) == {
                b"inference-header-content-length": b"3",
                b"muster-release": b"7",
                b"Muster-Spilled": b"127.0.0.1:%d" % upstream.port,
            }
            assert spill.counts().spilled == 1

    run(test)


def test_a_connection_is_used_again() -> None:
    async def test() -> None:
        async with listening(Upstream()) as upstream:
            spill = spill_to(upstream.url)

            for _ in range(5):
                assert (await ask(spill)).body == b"ok"
            spill.close()

            assert (len(upstream.requests), upstream.connections) == (5, 1)

    run(test)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        OK + OK,
    ],
    ids=["chunked", "after_continue", "closing", "more_than_asked"],
)
def test_an_answer_is_read_however_it_is_framed(reply: bytes) -> None:
    async def test() -> None:
        async with listening(Upstream(lambda _: reply)) as upstream:
            spill = spill_to(upstream.url)

            answers = [await ask(spill), await ask(spill)]
            spill.close()

            assert [answer.body for answer in answers] == [b"ok", b"ok"]

    run(test)


def test_a_request_that_was_spilled_to_us_is_not_sent_on() -> None:
    async def test() -> None:
        async with listening(Upstream()) as upstream:
            spill = spill_to(upstream.url)

            with pytest.raises(SpillFailed, match="already"):
                await ask(spill, muster_spilled=b"1")

            assert upstream.requests == []

    run(test)


@pytest.mark.parametrize(
    "status", [b"400 Bad Request", b"401 Unauthorized", b"404 Not Found", b"429 Too Many", b"503 No"]
)
def test_anything_but_an_answer_is_a_failure(status: bytes) -> None:
    async def test() -> None:
        reply = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
        async with listening(Upstream(lambda _: reply)) as upstream:
            spill = spill_to(upstream.url)

            with pytest.raises(SpillFailed, match=status[:3].decode()):
                await ask(spill)
            spill.close()

            assert spill.counts().failed == 1

    run(test)


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000 + b"\r\nContent-Length: 2\r\n\r\nok",
        b"",
    ],
    ids=["another_protocol", "cut_off", "too_large", "headers_too_large", "nothing"],
)
def test_a_broken_answer_is_a_failure(reply: bytes) -> None:
    async def test() -> None:
        async with listening(Upstream()) as upstream:
            spill = spill_to(upstream.url, response_bytes_max=1024)

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"body")
                writer.write(reply)
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            spill = spill_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", response_bytes_max=1024)

            with pytest.raises(SpillFailed):
                await ask(spill)

            assert spill.counts().failed == 1
            assert spill.counts().in_flight == 0
            server.close()

    run(test)


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    async def test() -> None:
        # The second request on a connection gets no answer: the upstream closed just as it was sent.
        async with listening(Upstream(lambda number: b"" if number == 1 else OK)) as upstream:
            spill = spill_to(upstream.url)
            await ask(spill)

            answer = await ask(spill)
            spill.close()

            assert answer.body == b"ok"
            assert upstream.connections == 2

    run(test)


def test_more_than_the_bound_under_way_fail_at_once() -> None:
    async def test() -> None:
        async with listening(Upstream(hold=asyncio.Event())) as upstream:
            spill = spill_to(upstream.url, in_flight=2)
            under_way = [asyncio.create_task(ask(spill)) for _ in range(2)]
            for _ in under_way:
                await upstream.arrived.acquire()

            with pytest.raises(SpillFailed, match="limit"):
                await ask(spill)
            assert upstream.hold is not None
            upstream.hold.set()

            assert [answer.body for answer in await asyncio.gather(*under_way)] == [b"ok", b"ok"]
            assert (await ask(spill)).body == b"ok"
            spill.close()

    run(test)


def test_an_answer_that_does_not_come_in_time_is_a_failure_and_its_connection_is_closed() -> None:
    async def test() -> None:
        async with listening(Upstream(hold=asyncio.Event())) as upstream:
            spill = spill_to(upstream.url, timeout_s=0.01)

            with pytest.raises(SpillFailed, match=r"no answer within 0\.01 s"):
                await ask(spill)

            assert spill.counts().in_flight == 0
            assert upstream.hold is not None
            upstream.hold.set()
            if upstream.connections:
                await upstream.closed.acquire()

    run(test)


def test_an_upstream_that_is_down_is_left_alone_for_a_while() -> None:
    async def test() -> None:
        async with listening(Upstream()) as upstream:
            url = upstream.url
        clock = Clock()
        spill = spill_to(url, clock)
        for _ in range(4):
            with pytest.raises(SpillFailed, match="Refused"):
                await ask(spill)

        with pytest.raises(SpillFailed, match="of late"):
            await ask(spill)
        async with listening(upstream):
            clock.ns += 1_000_000_000
            assert (await ask(spill)).body == b"ok"
            assert (await ask(spill)).body == b"ok"
            spill.close()

    run(test)


def test_a_caller_that_goes_away_frees_its_place_and_counts_against_nobody() -> None:
    async def test() -> None:
        async with listening(Upstream(hold=asyncio.Event())) as upstream:
            spill = spill_to(upstream.url, in_flight=1)
            for _ in range(8):
                task = asyncio.create_task(ask(spill))
                await upstream.arrived.acquire()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert upstream.hold is not None
            upstream.hold.set()

            assert (await ask(spill)).body == b"ok"
            spill.close()

    run(test)


def test_a_header_cannot_smuggle_another_one() -> None:
    async def test() -> None:
        async with listening(Upstream()) as upstream:
            spill = spill_to(upstream.url)

            await ask(spill, traceparent=b"00\r\nAuthorization: Bearer stolen")
            await spill.forward("../../admin?x=", "1 HTTP/1.1\r\nX: y", b"", {})
            spill.close()

            assert b"stolen" not in upstream.requests[0][0]
            assert upstream.head(1)[0] == (
                b"POST /v2/models/..%2F..%2Fadmin%3Fx%3D/versions/1%20HTTP%2F1.1%0D%0AX%3A%20y/infer HTTP/1.1"
            )

    run(test)


def test_a_large_batch_goes_there_and_back() -> None:
    async def test() -> None:
        large = bytes(range(256)) * 20_000
        reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large) + large
        async with listening(Upstream(lambda _: reply)) as upstream:
            spill = spill_to(upstream.url)

            answer = await ask(spill, large)
            spill.close()

            assert upstream.requests[0][1] == large
            assert answer.body == large

    run(test)


def certificate(folder: Path) -> Path:
    """Write a key and its own certificate for 127.0.0.1 into one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "upstream.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + signed.public_bytes(Encoding.PEM)
    )
    return pem


def test_an_upstream_at_https_must_show_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    async def test() -> None:
        pem = certificate(tmp_path)
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(pem)
        upstream = Upstream()
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=theirs)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        config = UpstreamConfig(url=url, timeout_s=DEADLINE_S)
        trusting = Spill(config, tls=ssl.create_default_context(cafile=str(pem)), clock_ns=Clock())

        answers = [await ask(trusting), await ask(trusting)]
        trusting.close()
        with pytest.raises(SpillFailed, match="CERTIFICATE_VERIFY_FAILED"):
            await ask(Spill(config, clock_ns=Clock()))
        server.close()

        assert [answer.body for answer in answers] == [b"ok", b"ok"]
        assert upstream.connections == 1

    run(test)
