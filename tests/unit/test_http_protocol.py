"""HTTP over a connection in memory: whatever arrives in whatever pieces is answered as if each request came alone.

No sockets and no time: the clock is the test's own.
"""

import json
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.memory_wire import CONTINUE, Clock, Wire
from muster_agent.serving.http import Connection, Handler, HttpServer, Limits, Request, Response

LIMITS = Limits(header_bytes=512, body_bytes=256, connections=4, idle_s=75.0, read_s=30.0)


class Server:
    """A server whose handler says what it was asked; at once, or when `turn` is called."""

    def __init__(self, *, at_once: bool = True, limits: Limits = LIMITS, handler: Handler | None = None) -> None:
        self.clock = Clock()
        self.server = HttpServer(handler or self._handle, limits, self.clock)
        self.asked: list[Request] = []
        self._waiting: list[Request] = []
        self._at_once = at_once

    def connect(self) -> tuple[Connection, Wire]:
        connection, wire = Connection(self.server), Wire()
        connection.connection_made(wire)
        return connection, wire

    def turn(self) -> None:
        """Answer the request in hand."""
        if self._waiting:
            request = self._waiting.pop(0)
            request.answer(echo(request))

    def _handle(self, request: Request) -> Response | None:
        self.asked.append(request)
        if self._at_once:
            return echo(request)
        assert not self._waiting, "a second request was handled before the first was answered"
        self._waiting.append(request)
        return None


def echo(request: Request) -> Response:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in sorted(request.headers.items())}
    said = [request.method.decode(), request.path, headers, request.body.decode("latin-1")]
    return Response(200, [json.dumps(said).encode()])


def post(path: bytes, body: bytes, *headers: bytes, version: bytes = b"1.1", length: int | None = None) -> bytes:
    announced = len(body) if length is None else length
    lines = [b"POST %b HTTP/%b" % (path, version), b"Host: here", b"Content-Length: %d" % announced, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def get(path: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([b"%b %b HTTP/%b" % (method, path, version), b"Host: here", *headers]) + b"\r\n\r\n"


def chunked(path: bytes, *chunks: bytes, trailer: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" % path
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailer + b"\r\n"


def alone(sent: bytes) -> tuple[bytes, bool]:
    """Return what `sent` is answered on a connection of its own, and whether that ends with it."""
    connection, wire = Server().connect()
    connection.data_received(sent)
    return wire.answers, wire.over


def play(pieces: Sequence[bytes], *, at_once: bool) -> tuple[bytes, bool]:
    """Return the same for all `pieces` on one connection; what is not answered at once is when reading pauses."""
    server = Server(at_once=at_once)
    connection, wire = server.connect()
    for number, piece in enumerate(pieces):
        while not wire.reading:
            server.turn()
        if wire.closed:
            break
        connection.data_received(piece)
        if number % 3 == 0:
            server.turn()
    for _ in range(100):
        server.turn()
    return wire.answers, wire.over


# Heads of equal length, so that one can be taken for the other; bodies that look like heads.
USUAL = st.one_of(
    st.builds(
        post, st.sampled_from([b"/a", b"/b"]), st.sampled_from([b"", b"x", b"y", b"xy", b"\r\n\r\n", get(b"/b")])
    ),
    st.builds(post, st.just(b"/a"), st.sampled_from([b"x", b"y"]), st.sampled_from([b"X: 1", b"X: 2", b"Y: 1"])),
    st.builds(get, st.sampled_from([b"/a", b"/b", b"/a?q"]), method=st.sampled_from([b"GET", b"HEAD", b"PUT"])),
)
UNUSUAL = st.one_of(
    st.builds(chunked, st.just(b"/a"), st.binary(min_size=1, max_size=9), st.just(b"x")),
    st.builds(chunked, st.just(b"/a"), trailer=st.sampled_from([b"", b"X: 1\r\n", b"Host: there\r\n"])),
    st.builds(
        post, st.just(b"/a"), st.just(b"xy"), st.sampled_from([b"Expect: 100-continue", b"Expect: 100-Continue"])
    ),
    st.builds(get, st.just(b"/a"), st.just(b"Connection: Upgrade, HTTP2-Settings"), st.just(b"Upgrade: h2c")),
    st.builds(get, st.just(b"/a"), st.just(b"Connection: keep-alive"), version=st.just(b"1.0")),
    st.builds(lambda sent: b"\r\n" + sent, USUAL),
)
LAST = st.one_of(
    st.builds(get, st.just(b"/a"), st.just(b"Connection: close")),
    st.builds(post, st.just(b"/a"), st.just(b"x"), version=st.just(b"1.0")),
    st.builds(get, st.just(b"/a"), version=st.just(b"1.0")),
    st.builds(get, st.just(b"/" + b"a" * 600)),
    st.builds(get, st.just(b"/a"), st.just(b"X: " + b"x" * 600)),
    st.builds(post, st.just(b"/a"), st.just(b"x" * 300)),
    st.builds(post, st.just(b"/a"), st.just(b""), length=st.just(300)),
    st.builds(chunked, st.just(b"/a"), st.just(b"x" * 200), st.just(b"y" * 200)),
    st.builds(post, st.just(b"/a"), st.just(b"xy!"), length=st.just(2)),
    st.builds(post, st.just(b"/a"), st.just(b"x"), length=st.just(2)),
    st.builds(post, st.just(b"/a"), st.just(b"xy"), st.just(b"Connection: Upgrade"), st.just(b"Upgrade: h2c")),
    st.builds(get, st.just(b"/a"), method=st.just(b"CONNECT")),
    st.just(b"nonsense\r\n\r\n"),
    st.just(post(b"/a", b"x", b"Content-Length: 1")),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[int]]:
    """Requests, and where their bytes are cut: mostly between them, as callers send them."""
    usual = draw(st.lists(USUAL, min_size=1, max_size=3))
    requests = draw(st.lists(st.sampled_from(usual) | UNUSUAL, min_size=1, max_size=8))
    requests += draw(st.lists(LAST, max_size=1))
    ends = [sum(map(len, requests[: number + 1])) for number in range(len(requests))]
    between = [end for end in ends if draw(st.integers(0, 3))]
    anywhere = draw(st.lists(st.integers(0, ends[-1]), max_size=4))
    return requests, sorted({*between, *anywhere})


PAIR = [post(b"/a", b"x"), post(b"/b", b"y")]


@given(streams(), st.booleans())
@example(stream=(PAIR * 3, [2 * len(PAIR[0]) * number for number in range(3)]), at_once=True)
@settings(max_examples=400, deadline=None)
def test_a_stream_is_answered_as_if_each_request_came_alone(
    stream: tuple[list[bytes], list[int]], at_once: bool
) -> None:
    requests, cuts = stream
    expected, over = b"", False
    for sent in requests:
        answer, over = alone(sent)
        expected += answer
        if over:
            break
    whole = b"".join(requests)
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True) if begin < end]

    found = play(pieces, at_once=at_once)

    assert found == (expected, over)


def test_a_pair_of_pipelined_requests_gets_two_answers_also_when_it_comes_again() -> None:
    server = Server()
    connection, wire = server.connect()

    for _ in range(3):
        connection.data_received(b"".join(PAIR))

    assert [(request.path, request.body) for request in server.asked] == [("/a", b"x"), ("/b", b"y")] * 3
    assert wire.answers.count(b"HTTP/1.1 200 OK") == 6


def test_a_head_that_came_before_is_not_parsed_again() -> None:
    server = Server()
    connection, _ = server.connect()

    for body in (b"x", b"y"):
        connection.data_received(post(b"/a", body))

    first, second = server.asked
    assert (first.body, second.body) == (b"x", b"y")
    assert first.head is second.head


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([b"Content-Length: 1", b"Content-Length: 1"], 400),
        ([b"Content-Length: 1", b"Content-Length: 2"], 400),
        ([b"Content-Length: 1", b"Transfer-Encoding: chunked"], 400),
        ([b"Transfer-Encoding: chunked", b"Content-Length: 1"], 400),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 400),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"], 400),
        ([b"Transfer-Encoding: chunked, identity"], 400),
        ([b"Transfer-Encoding: identity"], 501),
        ([b"Transfer-Encoding: xchunked"], 501),
        ([b"Transfer-Encoding:\x0bchunked"], 400),
        ([b"Transfer-Encoding : chunked"], 400),
        ([b"Transfer-Encoding: gzip, chunked"], 501),
        ([b"Content-Length: +1"], 400),
        ([b"Content-Length: 0x1"], 400),
        ([b"Content-Length: 1, 1"], 400),
        ([b"Content-Length: "], 400),
        ([b"Content-Length: 18446744073709551617"], 400),
        ([b"X: 1\r\n folded", b"Content-Length: 1"], 400),
        ([b"X: 1\nContent-Length: 1"], 400),
        ([b"X: \x00", b"Content-Length: 1"], 400),
        ([b"Host: a", b"Host: b", b"Content-Length: 1"], 400),
        ([b"Inference-Header-Content-Length: 1", b"Inference-Header-Content-Length: 0", b"Content-Length: 1"], 400),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(headers: list[bytes], status: int) -> None:
    server = Server()
    connection, wire = server.connect()

    connection.data_received(b"\r\n".join([b"POST /a HTTP/1.1", *headers, b"", b"0\r\n\r\nGET /b HTTP/1.1\r\n\r\n"]))

    assert wire.answers.startswith(b"HTTP/1.1 %d " % status)
    assert wire.answers.count(b"HTTP/1.1 ") == 1
    assert server.asked == []
    assert wire.over


def test_what_comes_after_a_chunked_body_is_no_header() -> None:
    server = Server()
    connection, _ = server.connect()

    connection.data_received(chunked(b"/a", b"x", trailer=b"Authorization: Bearer stolen\r\nHost: there\r\n"))

    (request,) = server.asked
    assert set(request.headers) == {b"transfer-encoding"}


def test_trailers_are_bounded_like_headers() -> None:
    connection, wire = Server().connect()

    connection.data_received(chunked(b"/a", b"x", trailer=b"X: y\r\n" * 200))

    assert wire.answers.startswith(b"HTTP/1.1 431 ")


def test_the_answer_to_head_has_no_body() -> None:
    connection, wire = Server().connect()

    connection.data_received(get(b"/a", method=b"HEAD"))

    head, _, body = wire.answers.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"Content-Length: 0" not in head
    assert body == b""


def test_a_caller_that_would_rather_speak_another_protocol_is_answered_in_this_one() -> None:
    server = Server()
    connection, wire = server.connect()

    connection.data_received(get(b"/a", b"Connection: Upgrade", b"Upgrade: h2c") + get(b"/b"))

    assert [request.path for request in server.asked] == ["/a", "/b"]
    assert not wire.over


@pytest.mark.parametrize("body", [b"x", get(b"/b")])
def test_a_body_that_came_with_an_upgrade_is_never_taken_for_a_request(body: bytes) -> None:
    server = Server()
    connection, wire = server.connect()

    connection.data_received(post(b"/a", body, b"Connection: Upgrade", b"Upgrade: h2c"))

    assert server.asked == []
    assert wire.answers.startswith(b"HTTP/1.1 501 ")
    assert wire.over


def test_a_body_in_single_bytes_arrives_whole() -> None:
    server = Server(limits=Limits(body_bytes=100_000))
    connection, _ = server.connect()
    body = bytes(number % 251 for number in range(80_000))

    connection.data_received(chunked(b"/a", *(body[at : at + 1] for at in range(len(body)))))

    (request,) = server.asked
    assert request.body == body
    assert type(request.body) is bytes


@pytest.mark.parametrize(("version", "told"), [(b"1.1", True), (b"1.0", False)])
def test_a_caller_that_waits_for_leave_to_send_is_given_it(version: bytes, told: bool) -> None:
    connection, wire = Server().connect()

    connection.data_received(post(b"/a", b"", b"Expect: 100-continue", version=version, length=2))

    assert bytes(wire.written) == (CONTINUE if told else b"")


def test_a_caller_that_announces_too_much_is_refused_before_it_sends_it() -> None:
    connection, wire = Server().connect()

    connection.data_received(post(b"/a", b"", b"Expect: 100-continue", length=257))

    assert bytes(wire.written).startswith(b"HTTP/1.1 413 ")


def test_a_refused_caller_may_finish_sending_for_a_moment() -> None:
    server = Server()
    connection, wire = server.connect()

    connection.data_received(post(b"/a", b"", length=257))
    connection.data_received(b"x" * 257)
    closed_at_once = wire.closed
    server.clock.pass_time(1.0)

    assert wire.ended
    assert not closed_at_once
    assert wire.closed


def test_a_caller_that_goes_away_is_told_of_once() -> None:
    gone: list[str] = []

    def wait(request: Request) -> None:
        request.on_gone(lambda: gone.append(request.path))

    connection, _ = Server(handler=wait).connect()
    connection.data_received(get(b"/a") + get(b"/b"))

    connection.connection_lost(None)

    assert gone == ["/a"]  # The second was never begun.


def test_a_caller_that_was_answered_is_not_told_of() -> None:
    gone: list[str] = []
    server = Server(at_once=False)
    connection, _ = server.connect()
    connection.data_received(get(b"/a"))
    server.asked[0].on_gone(lambda: gone.append("/a"))
    server.turn()

    connection.connection_lost(None)

    assert gone == []


def test_an_answer_after_the_caller_has_gone_goes_nowhere() -> None:
    server = Server(at_once=False)
    connection, wire = server.connect()
    connection.data_received(get(b"/a"))
    wire.close()
    connection.connection_lost(None)

    server.turn()

    assert wire.answers == b""


def test_a_caller_that_stops_sending_is_still_answered() -> None:
    server = Server(at_once=False)
    connection, wire = server.connect()
    connection.data_received(get(b"/a"))

    stays = connection.eof_received()
    server.turn()

    assert stays
    assert wire.answers.startswith(b"HTTP/1.1 200 ")
    assert wire.closed


def test_a_second_answer_to_one_request_is_not_written() -> None:
    server = Server(at_once=False)
    connection, wire = server.connect()
    connection.data_received(get(b"/a"))
    server.turn()

    server.asked[0].answer(Response(500, [b""]))

    assert wire.answers.count(b"HTTP/1.1 ") == 1


def test_a_second_answer_to_one_request_never_goes_to_the_next() -> None:
    gone: list[str] = []
    server = Server(at_once=False)
    connection, wire = server.connect()
    connection.data_received(get(b"/a") + get(b"/b"))
    server.turn()
    first, second = server.asked

    first.answer(Response(500, [b""]))
    first.on_gone(lambda: gone.append("/a"))
    second.on_gone(lambda: gone.append("/b"))
    connection.connection_lost(None)

    assert wire.answers.count(b"HTTP/1.1 ") == 1
    assert gone == ["/b"]


def test_a_backlog_stays_with_its_caller() -> None:
    server = Server(at_once=False)
    connection, wire = server.connect()

    connection.data_received(get(b"/a") * 3)
    paused = not wire.reading
    server.turn()
    server.turn()

    assert paused
    assert wire.reading


def test_nothing_is_answered_while_the_caller_does_not_read_and_in_the_end_it_is_cut() -> None:
    server = Server()
    connection, wire = server.connect()
    connection.data_received(get(b"/a"))
    connection.pause_writing()

    connection.data_received(get(b"/a"))
    answered = len(server.asked)
    server.clock.pass_time(LIMITS.idle_s + LIMITS.read_s + 1)

    assert answered == 1
    assert wire.closed


@pytest.mark.parametrize("sent", [b"POST /a HT", post(b"/a", b"x", length=2), get(b"/b") + b"GET"])
def test_a_request_that_does_not_come_whole_in_time_is_refused(sent: bytes) -> None:
    server = Server()
    connection, wire = server.connect()
    connection.data_received(sent)

    server.clock.pass_time(LIMITS.read_s - 1)
    early = wire.ended
    server.clock.pass_time(2)

    assert not early
    assert b"HTTP/1.1 408 " in wire.answers
    assert wire.ended


def test_a_byte_now_and_then_buys_no_more_time() -> None:
    server = Server()
    connection, wire = server.connect()

    for byte in post(b"/a", b"x")[:16]:
        connection.data_received(bytes([byte]))
        server.clock.pass_time(2.0)

    assert wire.answers.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", get(b"/a")])
def test_a_connection_without_a_request_is_closed_after_a_while(sent: bytes) -> None:
    server = Server()
    connection, wire = server.connect()
    if sent:
        connection.data_received(sent)

    server.clock.pass_time(LIMITS.idle_s - LIMITS.read_s)
    early = wire.closed
    server.clock.pass_time(2 * LIMITS.read_s + 1)

    assert not early
    assert wire.closed
    assert b" 408 " not in wire.answers


def test_a_connection_that_waits_for_its_answer_is_kept() -> None:
    server = Server(at_once=False)
    connection, wire = server.connect()
    connection.data_received(get(b"/a"))

    server.clock.pass_time(10 * LIMITS.idle_s)
    server.turn()

    assert wire.answers.startswith(b"HTTP/1.1 200 ")


def test_one_connection_too_many_is_told_so() -> None:
    server = Server()
    for _ in range(LIMITS.connections):
        server.connect()

    _, wire = server.connect()

    assert wire.answers.startswith(b"HTTP/1.1 503 ")
    assert wire.over


def test_a_server_that_stops_answers_what_is_here_whole_and_nothing_else() -> None:
    server = Server(at_once=False)
    connection, wire = server.connect()
    connection.data_received(get(b"/a") + b"GET /b")

    connection.stop()
    connection.data_received(b" HTTP/1.1\r\n\r\n")
    server.turn()

    assert wire.answers.count(b"HTTP/1.1 200 ") == 1
    assert wire.closed


def test_a_handler_that_fails_is_an_answer_and_the_connection_goes_on() -> None:
    def fail(request: Request) -> Response:
        if request.path == "/a":
            raise ZeroDivisionError
        return echo(request)

    connection, wire = Server(handler=fail).connect()

    connection.data_received(get(b"/a") + get(b"/b"))

    statuses = [wire.answers.index(b"HTTP/1.1 %d" % status) for status in (500, 200)]
    assert statuses == sorted(statuses)
