"""The line between a device and its broker, cut and mended."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from muster_simulator.demo.wire_cut import WireCut

WAIT_S = 5.0


class Echo:
    """A server that repeats what it hears."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                threading.Thread(target=self._repeat, args=(peer,), daemon=True).start()

    def _repeat(self, peer: socket.socket) -> None:
        with suppress(OSError), peer:
            while heard := peer.recv(4096):
                peer.sendall(heard)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def line(echo: Echo) -> Iterator[WireCut]:
    with WireCut("127.0.0.1", echo.port) as line:
        yield line


def connect(line: WireCut) -> socket.socket:
    return socket.create_connection(("127.0.0.1", line.port), timeout=WAIT_S)


def repeats(sock: socket.socket, said: bytes) -> bool:
    sock.sendall(said)
    heard = b""
    while len(heard) < len(said) and (more := sock.recv(4096)):
        heard += more
    return heard == said


def test_a_whole_line_passes_bytes_both_ways(line: WireCut) -> None:
    said = bytes(range(256)) * 1000

    with connect(line) as sock:
        heard_again = repeats(sock, said)

    assert heard_again
    assert line.bytes_passed == 2 * len(said)


def test_a_cut_resets_open_connections(line: WireCut) -> None:
    with connect(line) as sock:
        assert repeats(sock, b"before")

        line.cut()

        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_what_is_opened_on_a_cut_line_leads_nowhere_until_it_is_mended(line: WireCut) -> None:
    line.cut()

    with connect(line) as sock:
        sock.sendall(b"is anybody there?")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        line.mend()
        sock.settimeout(WAIT_S)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_mended_line_passes_again_on_the_same_port(line: WireCut) -> None:
    port = line.port
    line.cut()

    line.mend()

    assert not line.is_cut
    assert line.port == port
    with connect(line) as sock:
        assert repeats(sock, b"after")


def test_cutting_and_mending_twice_is_harmless(line: WireCut) -> None:
    line.cut()
    line.cut()
    line.mend()
    line.mend()

    with connect(line) as sock:
        assert repeats(sock, b"after")


def test_a_broker_that_is_down_looks_as_it_would_without_the_line(echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]

    # The reset may arrive while the connection is being made, or after.
    with WireCut("127.0.0.1", port) as line, pytest.raises(ConnectionResetError), connect(line) as sock:
        sock.recv(1)


def test_when_the_broker_closes_the_device_sees_the_end() -> None:
    broker = socket.create_server(("127.0.0.1", 0))
    line = WireCut("127.0.0.1", broker.getsockname()[1])
    with broker, line, connect(line) as sock:
        peer, _ = broker.accept()

        peer.close()

        assert sock.recv(1) == b""
