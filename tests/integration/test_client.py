"""Our own clients and the frames server over real sockets: answers, swaps, restarts, shared memory, rude callers."""

import asyncio
import fcntl
import hashlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import uvloop

from muster_agent.client import (
    Answer,
    AsyncClient,
    Client,
    InferenceFailed,
    InputRefused,
    ModelUnknown,
    Overloaded,
    RegionInvalid,
    SchemaChanged,
    TokenRefused,
    TooLate,
    Unreachable,
)
from muster_agent.client.dialogue import Dialogue, Handle
from muster_agent.client.frames import HEAD, IN_SHARED, PREFACE, SHARED, Frame, Inbound, Kind, frame
from muster_agent.core.plan import ServingPlan
from muster_agent.engines.port import Achieved, Array
from muster_agent.engines.port import InferenceFailed as EngineFailed
from muster_agent.serving.admission import Admission
from muster_agent.serving.config import ClientConfig, ServingConfig
from muster_agent.serving.frames import FrameConnection, FrameServer
from muster_agent.serving.http import Response, serve
from muster_agent.serving.service import Service
from muster_agent.serving.table import Served, ServingTable
from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName, Sha256

MODEL = ModelName("sums")
WAIT_S = 20.0
X = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 3))
ONE = np.array([1, 2, 3], np.float32)
INLINE = ServingPlan(inline=True, batch_max=64)
THREADED = ServingPlan(inline=False, batch_max=64)

Run = Callable[[tuple[Array, ...]], list[Array]]


class Computed:
    """An engine in memory: its answers are what a function says."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 1

    def __init__(self, run: Run) -> None:
        self._run = run
        self._closed = False

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        assert not self._closed, "asked after it was closed"
        return self._run(arrays)

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        raise NotImplementedError

    def close(self) -> None:
        self._closed = True


def plus(constant: int) -> Run:
    return lambda arrays: [arrays[0] + np.float32(constant)]


def release(
    number: int,
    run: Run | None = None,
    *,
    inputs: tuple[TensorSpec, ...] = (X,),
    outputs: tuple[TensorSpec, ...] = (Y,),
    plan: ServingPlan = INLINE,
) -> Served:
    """Release 1.0.<number> of `sums`; without `run` it answers y = x + number."""
    manifest = Manifest(
        model=MODEL,
        version=f"1.0.{number}",
        release=number + 1,
        inputs=inputs,
        outputs=outputs,
        files=(describe_file("m.onnx", b"m"),),
        variants=(Variant(name="v", runtime="onnxruntime", precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="m.onnx"),
    )
    session = Computed(run or plus(number))
    return Served(
        manifest=manifest, manifest_sha256=Sha256(f"{number:064x}"), session=session, latency_ms=0.01, plan=plan
    )


class Endpoint:
    """A frames server on its own loop and thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path, config: ServingConfig) -> None:
        self.path = path
        self.table = ServingTable(config)
        self._loop = loop
        self._config = config
        self._thread = threading.Thread(target=loop.run_forever)
        self._thread.start()
        self.listen()

    def listen(self) -> None:
        async def start() -> FrameServer:
            server = FrameServer(Service(self.table, self._config), Admission(self._config))
            await server.listen_unix(self.path)
            return server

        self._server = self._do(start())

    def hang_up(self) -> None:
        """Close every connection and the socket, as an agent does that ends."""
        self._do(self._server.stop(0.0))
        self.path.unlink()

    def stop(self) -> None:
        self._do(self._server.stop(WAIT_S))
        assert self.table.close(WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def _do(self, work):  # type: ignore[no-untyped-def]  # A coroutine's own type.
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)


Start = Callable[..., Endpoint]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    running: list[Endpoint] = []

    def begin(*served: Served, config: ServingConfig | None = None) -> Endpoint:
        endpoint = Endpoint(request.param(), tmp_path / "agent.sock", config or ServingConfig())
        running.append(endpoint)
        for each in served:
            endpoint.table.switch(MODEL, each)
        return endpoint

    yield begin
    for endpoint in running:
        endpoint.stop()


def y(answer: Answer) -> list[object]:
    return list(answer.outputs["y"].tolist())


def test_an_answer_has_the_outputs_and_says_where_they_come_from(start: Start) -> None:
    endpoint = start(release(7))

    with Client(endpoint.path) as client:
        model = client.model("sums")
        row = model.infer(ONE)
        batch = model.infer({"x": np.stack([ONE, ONE * 2])})

    assert y(row) == [8, 9, 10]
    assert y(batch) == [[8, 9, 10], [9, 11, 13]]
    assert (row.version, row.digest) == ("1.0.7", f"{7:064x}")
    assert row.request_id != batch.request_id
    assert model.release.engine.startswith("onnxruntime 0 CPU fp32")


@pytest.mark.parametrize("window", [1, 2, 7, 32, 500])
@pytest.mark.parametrize("plan", [INLINE, THREADED], ids=["inline", "threaded"])
def test_many_inferences_are_answered_each_by_itself_and_in_order(start: Start, window: int, plan: ServingPlan) -> None:
    endpoint = start(release(1, plan=plan))

    with Client(endpoint.path) as client:
        answers = list(client.model("sums").infer_many((ONE * k for k in range(1000)), window=min(window, 200)))

    assert [y(answer) for answer in answers] == [[k + 1, 2 * k + 1, 3 * k + 1] for k in range(1000)]
    assert len({answer.request_id for answer in answers}) == 1000


def test_a_bad_row_in_a_burst_costs_its_neighbours_nothing(start: Start) -> None:
    endpoint = start(release(1))
    bad = np.array([1, np.nan, 3], np.float32)

    with Client(endpoint.path) as client:
        model = client.model("sums")
        pending = [model.submit(bad if k == 5 else ONE * k) for k in range(12)]
        with pytest.raises(InputRefused, match="'x' has a value that is not a finite number") as caught:
            pending[5].result()
        others = [each.result() for k, each in enumerate(pending) if k != 5]

    assert caught.value.tensor == "x"
    assert [y(answer)[0] for answer in others] == [k + 1 for k in range(12) if k != 5]


def test_free_sizes_and_strings_travel(start: Start) -> None:
    words = TensorSpec(name="words", datatype="BYTES", shape=(-1, -1))
    counts = TensorSpec(name="counts", datatype="INT64", shape=(-1, -1))
    echoed = TensorSpec(name="echoed", datatype="BYTES", shape=(-1, -1))

    def lengths(arrays: tuple[Array, ...]) -> list[Array]:
        sizes = np.array([len(word) for word in arrays[0].ravel()], np.int64)
        return [sizes.reshape(arrays[0].shape)[:, :0] if not sizes.any() else sizes.reshape(arrays[0].shape), arrays[0]]

    endpoint = start(release(1, lengths, inputs=(words,), outputs=(counts, echoed)))

    with Client(endpoint.path) as client:
        model = client.model("sums")
        answer = model.infer(np.array([["a", "süß", ""], ["bb", "c", "d"]]))
        empty = model.infer(np.array([[""]]))

    assert answer.outputs["counts"].tolist() == [[1, 5, 0], [2, 1, 1]]
    assert answer.outputs["echoed"][0, 1] == "süß".encode()
    assert empty.outputs["counts"].shape == (1, 0)


def test_a_model_without_a_batch_axis_answers_one_request_at_a_time(start: Start) -> None:
    x, scale = (
        TensorSpec(name="x", datatype="FP32", shape=(3,)),
        TensorSpec(name="scale", datatype="INT32", shape=()),
    )
    product = TensorSpec(name="y", datatype="FP32", shape=(3,))
    endpoint = start(
        release(1, lambda arrays: [arrays[0] * np.float32(arrays[1])], inputs=(x, scale), outputs=(product,))
    )

    with Client(endpoint.path) as client:
        given = [{"x": ONE * k, "scale": np.array(2, np.int32)} for k in range(10)]
        answers = list(client.model("sums").infer_many(given))

    assert [y(answer)[2] for answer in answers] == [6 * k for k in range(10)]


def test_large_answers_and_large_requests_do_not_wait_for_each_other(start: Start) -> None:
    wide = TensorSpec(name="x", datatype="FP32", shape=(-1, 1 << 19))
    echo = TensorSpec(name="y", datatype="FP32", shape=(-1, 1 << 19))
    endpoint = start(release(0, lambda arrays: [arrays[0]], inputs=(wide,), outputs=(echo,)))
    image = np.arange(1 << 19, dtype=np.float32)

    with Client(endpoint.path, timeout_s=WAIT_S) as client:
        answers = client.model("sums").infer_many((image + k for k in range(24)), window=16)
        firsts = [float(answer.outputs["y"][0]) for answer in answers]

    assert firsts == list(range(24))


def test_no_swap_under_load_fails_a_request_or_mixes_two_releases(start: Start) -> None:
    endpoint = start(release(0))
    done = threading.Event()

    def swap() -> int:
        number = 0
        while not done.is_set():
            number += 1
            endpoint.table.switch(MODEL, release(number, plan=THREADED if number % 2 else INLINE))
        return number

    with ThreadPoolExecutor(1) as pool, Client(endpoint.path) as client:
        swaps = pool.submit(swap)
        try:
            model = client.model("sums")
            pairs = [(answer.version, y(answer)[0]) for answer in model.infer_many(ONE for _ in range(4000))]
        finally:
            done.set()

    assert swaps.result() > 10
    assert len({version for version, _ in pairs}) > 5
    assert all(value == 1 + int(version.rpartition(".")[2]) for version, value in pairs)


def test_a_release_with_other_tensors_is_told_and_then_used(start: Start) -> None:
    endpoint = start(release(1))
    wider = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))

    with Client(endpoint.path) as client:
        model = client.model("sums")
        model.infer(ONE)
        endpoint.table.switch(MODEL, release(2, inputs=(wider,), outputs=(wider,)))
        with pytest.raises(SchemaChanged, match="takes or gives other tensors"):
            model.infer(ONE)
        answer = model.infer(np.zeros(4, np.float32))

    assert model.release.version == "1.0.2"
    assert answer.outputs["x"].tolist() == [2, 2, 2, 2]


def test_errors_are_of_the_kind_that_says_what_to_do(start: Start) -> None:
    def fail(arrays: tuple[Array, ...]) -> list[Array]:
        raise EngineFailed("no more")

    endpoint = start(release(1, fail))

    with Client(endpoint.path) as client:
        with pytest.raises(ModelUnknown, match="'absent' is not served"):
            client.model("absent")
        with pytest.raises(ModelUnknown, match=r"version '9\.9\.9'"):
            client.model("sums", "9.9.9")
        model = client.model("sums", "1.0.1")
        with pytest.raises(InferenceFailed, match="no more"):
            model.infer(ONE)
        endpoint.table.remove(MODEL)
        with pytest.raises(ModelUnknown):
            model.infer(ONE)


def test_more_than_the_queue_takes_is_refused_with_a_time_and_the_rest_is_answered(start: Start) -> None:
    gate = threading.Event()

    def wait(arrays: tuple[Array, ...]) -> list[Array]:
        assert gate.wait(WAIT_S)
        return [arrays[0]]

    plan = ServingPlan(inline=False, batch_max=1)
    endpoint = start(release(1, wait, plan=plan), config=ServingConfig(queue_max=4))

    with Client(endpoint.path) as client:
        model = client.model("sums")
        pending = [model.submit(ONE) for _ in range(20)]
        with pytest.raises(Overloaded) as caught:
            pending[-1].result()
        gate.set()
        outcomes = []
        for each in pending[:-1]:
            try:
                outcomes.append(y(each.result()))
            except Overloaded:
                outcomes.append([])

    assert caught.value.retry_after_s >= 1
    assert 4 <= outcomes.count([1, 2, 3]) < 19


def test_a_request_that_waits_too_long_is_given_up_and_the_connection_goes_on(start: Start) -> None:
    gate = threading.Event()

    def wait(arrays: tuple[Array, ...]) -> list[Array]:
        assert gate.wait(WAIT_S)
        return [arrays[0]]

    endpoint = start(release(1, wait, plan=THREADED))

    with Client(endpoint.path) as client:
        model = client.model("sums")
        with pytest.raises(TooLate):
            model.infer(ONE, timeout_s=0.02)
        gate.set()
        assert y(model.infer(ONE)) == [1, 2, 3]


def test_work_for_later_is_answered_when_nothing_else_is_asked(start: Start) -> None:
    endpoint = start(release(1, plan=THREADED))

    with Client(endpoint.path) as client:
        assert y(client.model("sums").infer(ONE, priority="later")) == [2, 3, 4]


def test_nobody_at_the_path_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "absent.sock"

    with pytest.raises(Unreachable, match=r"absent\.sock.*check that it runs") as caught:
        Client(path)

    assert caught.value.path == str(path)


def test_a_token_is_asked_for_and_checked(start: Start) -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    known = ClientConfig(name="app", token_sha256=digest)
    endpoint = start(release(1), config=ServingConfig(require_token=True, clients=(known,)))

    for token in (None, "wrong"):
        with pytest.raises(TokenRefused):
            Client(endpoint.path, token)
    with Client(endpoint.path, "right") as client:
        assert y(client.model("sums").infer(ONE)) == [2, 3, 4]


def test_what_was_under_way_when_the_agent_restarts_is_asked_again(start: Start) -> None:
    started, gate = threading.Semaphore(0), threading.Event()

    def wait(arrays: tuple[Array, ...]) -> list[Array]:
        started.release()
        assert gate.wait(WAIT_S)
        return [arrays[0]]

    endpoint = start(release(1, wait, plan=THREADED))

    with Client(endpoint.path, reconnect_s=WAIT_S) as client:
        model = client.model("sums")
        pending = [model.submit(ONE * k) for k in range(5)]
        assert started.acquire(timeout=WAIT_S)
        endpoint.hang_up()
        gate.set()
        endpoint.listen()
        answers = [y(each.result())[0] for each in pending]
        after = model.infer(ONE)

    assert answers == [0, 1, 2, 3, 4]
    assert y(after) == [1, 2, 3]


def test_an_agent_that_does_not_come_back_is_unreachable(start: Start) -> None:
    endpoint = start(release(1))

    with Client(endpoint.path, reconnect_s=0.05) as client:
        model = client.model("sums")
        endpoint.hang_up()
        with pytest.raises(Unreachable):
            model.infer(ONE)
        endpoint.listen()
        assert y(model.infer(ONE)) == [2, 3, 4]


def test_stopping_answers_what_has_arrived(start: Start) -> None:
    started, gate = threading.Semaphore(0), threading.Event()

    def wait(arrays: tuple[Array, ...]) -> list[Array]:
        started.release()
        assert gate.wait(WAIT_S)
        return [arrays[0]]

    endpoint = start(release(1, wait, plan=THREADED))

    with Client(endpoint.path) as client:
        pending = client.model("sums").submit(ONE)
        assert started.acquire(timeout=WAIT_S)
        stopping = asyncio.run_coroutine_threadsafe(endpoint._server.stop(WAIT_S), endpoint._loop)
        gate.set()
        answer = pending.result()
        stopping.result(WAIT_S)

    assert y(answer) == [1, 2, 3]


# Shared memory.


def test_rows_in_shared_memory_are_answered_where_they_lie(start: Start) -> None:
    endpoint = start(release(1))

    with Client(endpoint.path) as client, client.model("sums").shared(slots=64) as shared:
        shared.inputs["x"][:] = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
        first = shared.submit(0, 32)
        second = shared.submit(32, 32)
        second.result()
        answer = first.result()
        right = bool((shared.outputs["y"] == shared.inputs["x"] + 1).all())
        shared.run(5, 1)

    assert right
    assert answer.version == "1.0.1"


def test_shared_memory_stays_usable_when_the_agent_restarts(start: Start) -> None:
    endpoint = start(release(1))

    with Client(endpoint.path, reconnect_s=WAIT_S) as client, client.model("sums").shared(slots=4) as shared:
        shared.inputs["x"][:] = 1
        shared.run(0, 4)
        endpoint.hang_up()
        endpoint.listen()
        shared.inputs["x"][:] = 5
        shared.run(0, 4)
        after = shared.outputs["y"].tolist()

    assert after == [[6, 6, 6]] * 4


def test_integers_in_shared_memory_are_read_once(start: Start) -> None:
    indices = TensorSpec(name="x", datatype="INT32", shape=(-1, 3))
    read: list[Array] = []

    def keep(arrays: tuple[Array, ...]) -> list[Array]:
        read.append(arrays[0])
        return [arrays[0].astype(np.float32)]

    endpoint = start(release(1, keep, inputs=(indices,)))

    with Client(endpoint.path) as client, client.model("sums").shared(slots=2) as shared:
        shared.inputs["x"][:] = 7
        shared.run(0, 2)
        shared.inputs["x"][:] = 1 << 30

    assert read[0].tolist() == [[7, 7, 7], [7, 7, 7]]


def test_slots_beyond_the_region_are_refused_on_both_sides(start: Start) -> None:
    endpoint = start(release(1))

    with Client(endpoint.path) as client, client.model("sums").shared(slots=4) as shared:
        with pytest.raises(ValueError, match="not within the 4"):
            shared.run(3, 2)
        with pytest.raises(RegionInvalid):
            client.model("sums").shared(slots=0)


def test_slots_for_other_tensors_than_the_model_has_now_are_of_no_use(start: Start) -> None:
    endpoint = start(release(1))
    wider = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))

    with Client(endpoint.path) as client:
        model = client.model("sums")
        with model.shared(slots=2) as shared:
            endpoint.table.switch(MODEL, release(2, inputs=(wider,), outputs=(wider,)))
            for _ in range(2):
                with pytest.raises(SchemaChanged):
                    shared.run(0, 1)
        with model.shared(slots=2) as shared:
            shared.inputs["x"][:] = 1
            shared.run(0, 2)

            assert shared.outputs["x"].tolist() == [[3] * 4] * 2


def test_one_socket_speaks_http_and_frames(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"

    def ask() -> tuple[bytes, Answer]:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(WAIT_S)
            peer.connect(str(path))
            peer.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            said = b"".join(iter(lambda: peer.recv(65536), b""))
        with Client(path) as client:
            return said, client.model("sums").infer(ONE)

    async def run() -> tuple[bytes, Answer]:
        table = ServingTable()
        table.switch(MODEL, release(1))
        frames = FrameServer(Service(table), Admission(ServingConfig()))
        server = await serve(
            lambda request: Response(200, [b"{}"]), host=None, unix_path=path, adopt=lambda: FrameConnection(frames)
        )
        answers = await asyncio.to_thread(ask)
        await frames.stop(WAIT_S)
        await server.stop(WAIT_S)
        assert await asyncio.to_thread(table.close, WAIT_S)
        return answers

    said, answer = uvloop.run(run())

    assert said.startswith(b"HTTP/1.1 200 OK")
    assert y(answer) == [2, 3, 4]


# Rude callers.


@dataclass
class Raw:
    """A caller that writes its own bytes."""

    peer: socket.socket
    inbound: Inbound

    def ask(self, raw: bytes) -> Frame:
        self.peer.sendall(raw)
        return self.next()

    def next(self) -> Frame:
        while True:
            data = self.peer.recv(65536)
            assert data, "the server closed the connection"
            frames = self.inbound.feed(data)
            if frames:
                return frames[0]

    def until_closed(self) -> bytes:
        chunks = []
        while chunk := self.peer.recv(65536):
            chunks.append(chunk)
        return b"".join(chunks)


@pytest.fixture
def raw(start: Start) -> Iterator[Raw]:
    endpoint = start(release(1))
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(WAIT_S)
        peer.connect(str(endpoint.path))
        yield Raw(peer, Inbound())
    with Client(endpoint.path) as client:  # Whatever was sent, the others are served.
        assert y(client.model("sums").infer(ONE)) == [2, 3, 4]


def attached(raw: Raw) -> int:
    """Greet and attach; return the handle."""
    dialogue = Dialogue()
    assert raw.ask(dialogue.greet(None)[1]).kind == Kind.WELCOME
    reply = raw.ask(dialogue.attach(Handle("sums", None))[1])
    assert reply.kind == Kind.ATTACHED
    return reply.handle


def refusal(received: Frame) -> tuple[int, int, str]:
    assert received.kind == Kind.ERROR
    return received.sequence, received.extra, msgspec.json.decode(received.payload)["error"]


@pytest.mark.parametrize(
    "sent",
    [
        b"MUSTER/2" + bytes(100),
        PREFACE + frame(Kind.PING),
        PREFACE + frame(Kind.HELLO, b"not json"),
        PREFACE + HEAD.pack(0xFFFFFFFF, Kind.HELLO, 0, 0, 0, 1),
        PREFACE + frame(Kind.HELLO, b"{}", sequence=1) + frame(Kind.ANSWER, sequence=2),
        PREFACE + frame(Kind.HELLO, b"{}", sequence=1) + HEAD.pack(0, 250, 0, 0, 0, 1),
    ],
)
def test_what_is_no_frame_ends_the_connection(raw: Raw, sent: bytes) -> None:
    raw.peer.sendall(sent)

    raw.until_closed()


def test_frames_that_come_byte_by_byte_are_understood(raw: Raw) -> None:
    handle = attached(raw)
    request = frame(Kind.INFER, ONE.tobytes(), handle=handle, sequence=77)

    for position in range(len(request)):
        raw.peer.sendall(request[position : position + 1])
    answer = raw.next()

    assert (answer.kind, answer.sequence) == (Kind.ANSWER, 77)
    assert np.frombuffer(answer.payload[16:], np.float32).tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("payload", "flags", "handle", "status", "said"),
    [
        (b"", 0, None, 400, "'x' has 0 bytes"),
        (bytes(13), 0, None, 400, "'x' has 13 bytes; a row of all inputs has 12"),
        (bytes(12), 0, 99, 404, "handle 99 is not attached"),
        (bytes(4), 1 << 2, None, 400, "'x' has 4 bytes, too few for the sizes"),
        (struct.pack("<IIQ", 1, 9, 0), 1 << 2, None, 400, r"has shape \[1, 9\]"),
        (bytes(3), 1 << 3, None, 400, "too short to name its sequence"),
        (bytes(16), IN_SHARED, None, 400, "region 0 is not one of this model"),
        (bytes(3), IN_SHARED, None, 400, "names its region"),
    ],
)
def test_a_request_that_does_not_fit_is_answered_with_its_error(
    raw: Raw, payload: bytes, flags: int, handle: int | None, status: int, said: str
) -> None:
    attachment = attached(raw)

    received = raw.ask(frame(Kind.INFER, payload, flags=flags, handle=handle or attachment, sequence=5))

    sequence, code, message = refusal(received)
    assert (sequence, code) == (5, status)
    assert re.search(said, message)


def region(raw: Raw, handle: int, slots: int, descriptor: int | None) -> Frame:
    """Offer a region and return what the server says of it."""
    ready = raw.ask(frame(Kind.REGION, handle=handle, extra=slots, sequence=6))
    if ready.kind != Kind.REGION_READY:
        return ready
    if descriptor is None:
        raw.peer.sendall(b"\0")
    else:
        socket.send_fds(raw.peer, [b"\0"], [descriptor])
    return raw.next()


def test_memory_that_could_shrink_is_refused_and_the_connection_goes_on(raw: Raw) -> None:
    handle = attached(raw)
    descriptor = os.memfd_create("rude", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 1 << 20)

    unsealed = refusal(region(raw, handle, 4, descriptor))
    os.close(descriptor)
    missing = refusal(region(raw, handle, 4, None))
    huge = refusal(region(raw, handle, 0xFFFFFFFF, None))
    answer = raw.ask(frame(Kind.INFER, ONE.tobytes(), handle=handle, sequence=8))

    assert unsealed[:2] == (6, 400)
    assert "may shrink" in unsealed[2]
    assert "no descriptor" in missing[2]
    assert "slots" in huge[2]
    assert answer.kind == Kind.ANSWER


def test_a_request_beyond_its_region_is_refused(raw: Raw) -> None:
    handle = attached(raw)
    descriptor = os.memfd_create("fair", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 1 << 20)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    mapped = region(raw, handle, 4, descriptor)
    os.close(descriptor)

    for slot, count in ((3, 2), (0, 0), (4, 1), (0xFFFFFFFF, 1)):
        where = SHARED.pack(mapped.extra, slot, count, 0)
        received = raw.ask(frame(Kind.INFER, where, flags=IN_SHARED, handle=handle, sequence=9))

        assert refusal(received)[1] == 400


def test_a_caller_that_never_reads_its_answers_is_held_back_not_obeyed(start: Start) -> None:
    wide = TensorSpec(name="y", datatype="FP32", shape=(-1, 1 << 16))
    asked = []

    def count(arrays: tuple[Array, ...]) -> list[Array]:
        asked.append(len(arrays[0]))
        return [np.zeros((len(arrays[0]), 1 << 16), np.float32)]

    endpoint = start(release(1, count, outputs=(wide,), plan=ServingPlan(inline=True, batch_max=1)))
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(WAIT_S)
        peer.connect(str(endpoint.path))
        caller = Raw(peer, Inbound())
        request = frame(Kind.INFER, ONE.tobytes(), handle=attached(caller), sequence=1)
        peer.setblocking(False)
        sent, stuck = 0, 0
        while stuck < 200:  # Until the server has not taken a byte for a while.
            try:
                sent += peer.send(request * 100)
                stuck = 0
            except BlockingIOError:
                stuck += 1
                time.sleep(0.001)
        with Client(endpoint.path) as other:
            assert other.model("sums").infer(ONE).outputs["y"].shape == (1 << 16,)

    assert sum(asked) * (1 << 18) < 1 << 31
    assert sum(asked) < sent / len(request)


# asyncio.


def test_tasks_share_one_connection_and_get_their_own_answers(start: Start) -> None:
    endpoint = start(release(1))

    async def ask() -> tuple[Sequence[Answer], list[Answer]]:
        async with AsyncClient(endpoint.path) as client:
            model = await client.model("sums")
            together = await asyncio.gather(*(model.infer(ONE * k) for k in range(100)))
            streamed = [answer async for answer in model.infer_many((ONE * k for k in range(100)), window=8)]
            with pytest.raises(InputRefused):
                await model.infer(np.full(3, np.inf, np.float32))
            return together, streamed

    together, streamed = asyncio.run(ask())

    assert [y(answer)[0] for answer in together] == [k + 1 for k in range(100)]
    assert [y(answer)[0] for answer in streamed] == [k + 1 for k in range(100)]


def test_an_async_client_asks_again_when_the_agent_restarts(start: Start) -> None:
    endpoint = start(release(1))

    async def ask() -> list[Answer]:
        async with AsyncClient(endpoint.path, reconnect_s=WAIT_S) as client:
            model = await client.model("sums")
            before = await model.infer(ONE)
            await asyncio.to_thread(endpoint.hang_up)
            waiting = asyncio.ensure_future(model.infer(ONE))
            await asyncio.to_thread(endpoint.listen)
            return [before, await waiting]

    answers = asyncio.run(ask())

    assert [y(answer) for answer in answers] == [[2, 3, 4]] * 2


def test_an_async_client_says_when_nobody_is_there(tmp_path: Path) -> None:
    async def ask() -> None:
        async with AsyncClient(tmp_path / "absent.sock"):
            raise AssertionError("entered")

    with pytest.raises(Unreachable, match=r"absent\.sock"):
        asyncio.run(ask())
