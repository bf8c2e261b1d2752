"""The local endpoint over real sockets: the public V2 client, both engines, swaps under load, and rude callers."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
import uvloop
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from muster_agent.engines import registry
from muster_agent.engines.port import Achieved, Array, InferenceFailed, Session
from muster_agent.serving.app import App
from muster_agent.serving.http import HttpServer, Limits, serve
from muster_agent.serving.table import Served, ServingTable
from muster_shared.bundle import Golden, Manifest, Runtime, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName, Sha256

MODEL = ModelName("sums")
WAIT_S = 20.0
SLOW_MS = 50.0  # Any figure above the bound for running on the loop.
X = np.array([[1, 2, 3]], np.float32)


class Endpoint:
    """A server on its own loop and thread, as the daemon runs it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        table: ServingTable,
        limits: Limits,
        unix_path: Path | None,
        timeout_s: float,
    ) -> None:
        self.table = table
        self._loop = loop
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        app = App(table, agent_version="0.1.0", timeout_s=timeout_s)

        async def start() -> HttpServer:
            return await serve(app, port=0, limits=limits, unix_path=unix_path)

        self.server = asyncio.run_coroutine_threadsafe(start(), self._loop).result(WAIT_S)
        assert self.server.port is not None
        self.port = self.server.port

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        connection.request(method, path, body)
        response = connection.getresponse()
        with response:
            answer = response.status, response.read()
        connection.close()
        return answer

    def raw(self, sent: bytes) -> bytes:
        """Return all that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S) as peer:
            peer.sendall(sent)
            return b"".join(iter(lambda: peer.recv(65536), b""))

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(WAIT_S), self._loop).result(WAIT_S)
        assert self.table.close(WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()


Start = Callable[..., Endpoint]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    running: list[Endpoint] = []

    def begin(
        *served: Served,
        limits: Limits | None = None,
        unix_path: Path | None = None,
        queue_max: int = 64,
        timeout_s: float = WAIT_S,
    ) -> Endpoint:
        table = ServingTable(queue_max)
        for release in served:
            table.switch(MODEL, release)
        running.append(Endpoint(request.param(), table, limits or Limits(), unix_path, timeout_s))
        return running[-1]

    yield begin
    for endpoint in running:
        endpoint.stop()


def release(folder: Path, runtime: Runtime, constant: int, *, latency_ms: float = 0.01) -> Served:
    """A release that answers y = x + constant, FP32 [N, 3]; its version is 1.0.<constant>."""
    file = folder / f"{constant}.onnx"
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("c", TensorProto.FLOAT, [1], [float(constant)])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    manifest = describe(runtime, constant)
    session = registry.engine(runtime).load(
        file, manifest.variants[0], manifest.inputs, manifest.outputs, threads=1, cache_dir=folder
    )
    return served_by(session, manifest, latency_ms)


def describe(runtime: Runtime, constant: int) -> Manifest:
    return Manifest(
        model=MODEL,
        version=f"1.0.{constant}",
        release=constant + 1,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
        files=(describe_file("m.onnx", b"m"),),
        variants=(Variant(name="v", runtime=runtime, precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="m.onnx"),
        labels=("low", "middle", "high"),
    )


def served_by(session: Session, manifest: Manifest, latency_ms: float) -> Served:
    return Served(
        manifest=manifest,
        manifest_sha256=Sha256(f"{manifest.release:064x}"),
        session=session,
        latency_ms=latency_ms,
    )


class GatedSession:
    """An engine that answers when it is let: it makes a slow model without slow tests."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)

    def __init__(self, error: Exception | None = None) -> None:
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.closed = threading.Event()
        self._error = error

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.started.release()
        assert self.gate.wait(WAIT_S)
        assert not self.closed.is_set()
        if self._error is not None:
            raise self._error
        return {"y": inputs["x"]}

    def close(self) -> None:
        self.closed.set()


def infer(client: triton.InferenceServerClient, x: Array, *, binary: bool = True, **options: str) -> triton.InferResult:
    sent = triton.InferInput("x", list(x.shape), "FP32")
    sent.set_data_from_numpy(x, binary_data=binary)
    wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
    return client.infer(MODEL, [sent], outputs=wanted, **options)


def json_request(rows: int = 1, **fields: object) -> bytes:
    x = {"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": [1, 2, 3] * rows}
    return json.dumps({"inputs": [x], **fields}).encode()


def http_request(path: str, body: bytes = b"", *headers: bytes) -> bytes:
    method = b"POST" if body else b"GET"
    lines = [b"%b /%b HTTP/1.1" % (method, path.encode()), b"Host: here", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize("latency_ms", [0.01, SLOW_MS])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("runtime", registry.RUNTIMES)
def test_the_public_client_gets_right_answers(
    start: Start, tmp_path: Path, runtime: Runtime, binary: bool, latency_ms: float
) -> None:
    endpoint = start(release(tmp_path, runtime, 7, latency_ms=latency_ms))

    with triton.InferenceServerClient(endpoint.url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1.0.7")
        assert not client.is_model_ready(MODEL, "1.0.8")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata(MODEL)
        result = infer(client, X, binary=binary, request_id="r-1")
        versioned = infer(client, X, binary=binary, model_version="1.0.7")

    assert metadata["versions"] == ["1.0.7"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    np.testing.assert_array_equal(result.as_numpy("y"), X + 7)
    np.testing.assert_array_equal(versioned.as_numpy("y"), X + 7)
    response = result.get_response()
    assert response["id"] == "r-1"
    assert response["model_version"] == "1.0.7"
    assert response["parameters"] == {
        "version": "1.0.7",
        "digest": "000000000000",
        "engine": runtime,
        "request_id": "r-1",
    }


def test_an_unknown_model_is_not_found(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1))
    sent = triton.InferInput("x", [1, 3], "FP32").set_data_from_numpy(X)

    with (
        triton.InferenceServerClient(endpoint.url) as client,
        pytest.raises(InferenceServerException, match="unknown model") as refused,
    ):
        client.infer("nothing", [sent])

    assert refused.value.status() == "404"


@pytest.mark.parametrize("runtime", registry.RUNTIMES)
def test_a_wrong_input_names_its_tensor_and_is_not_the_fault_of_the_release(
    start: Start, tmp_path: Path, runtime: Runtime
) -> None:
    served = release(tmp_path, runtime, 1)
    endpoint = start(served)

    with (
        triton.InferenceServerClient(endpoint.url) as client,
        pytest.raises(InferenceServerException, match="'x' has shape") as refused,
    ):
        infer(client, np.zeros((1, 4), np.float32))

    assert refused.value.status() == "400"
    at = served.stats.snapshot()
    assert (at.requests, at.errors, at.refused) == (0, 0, 1)


@pytest.mark.parametrize("latency_ms", [0.01, SLOW_MS])
@pytest.mark.parametrize("runtime", registry.RUNTIMES)
def test_hot_swaps_under_load_fail_no_request_and_mix_no_versions(
    start: Start, tmp_path: Path, runtime: Runtime, latency_ms: float
) -> None:
    endpoint = start(release(tmp_path, runtime, 1, latency_ms=latency_ms))
    over = threading.Event()

    def caller(number: int) -> set[str]:
        versions: set[str] = set()
        with triton.InferenceServerClient(endpoint.url, network_timeout=WAIT_S) as client:
            while not over.is_set():
                x = np.full((1, 3), number, np.float32)
                result = infer(client, x, binary=bool(number % 2))
                version = result.get_response()["parameters"]["version"]
                constant = int(version.rpartition(".")[2])
                np.testing.assert_array_equal(result.as_numpy("y"), x + constant)
                versions.add(version)
        return versions

    with ThreadPoolExecutor(4) as callers:
        asked = [callers.submit(caller, number) for number in range(4)]
        retired: list[Served] = []
        for constant in range(2, 12):
            retired.append(endpoint.table.served(MODEL))
            before = retired[-1].stats.snapshot().requests
            _until(lambda before=before: retired[-1].stats.snapshot().requests > before + 8)
            endpoint.table.switch(MODEL, release(tmp_path, runtime, constant, latency_ms=latency_ms))
        _until(lambda: endpoint.table.served(MODEL).stats.snapshot().requests > 8)
        over.set()
        seen = set().union(*(future.result(WAIT_S) for future in asked))

    assert seen == {f"1.0.{constant}" for constant in range(1, 12)}
    assert sum(served.stats.snapshot().errors for served in retired) == 0
    for served in retired:
        _until(lambda served=served: _is_closed(served.session))


def test_a_request_on_the_old_release_ends_there_and_only_then_is_it_closed(start: Start, tmp_path: Path) -> None:
    slow = GatedSession()
    endpoint = start(served_by(slow, describe("onnxruntime", 1), SLOW_MS))
    with ThreadPoolExecutor(1) as callers:
        old = callers.submit(endpoint.ask, "POST", f"/v2/models/{MODEL}/infer", json_request())
        assert slow.started.acquire(timeout=WAIT_S)

        endpoint.table.switch(MODEL, release(tmp_path, "onnxruntime", 2))
        status, new = endpoint.ask("POST", f"/v2/models/{MODEL}/infer", json_request())
        closed_early = slow.closed.is_set()
        slow.gate.set()
        old_status, old_answer = old.result(WAIT_S)

    assert (status, json.loads(new)["model_version"]) == (200, "1.0.2")
    assert (old_status, json.loads(old_answer)["model_version"]) == (200, "1.0.1")
    assert not closed_early
    assert slow.closed.wait(WAIT_S)


def test_a_removed_model_is_unknown_and_the_device_not_ready(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1))

    endpoint.table.remove(MODEL)

    assert endpoint.ask("POST", f"/v2/models/{MODEL}/infer", json_request())[0] == 404
    assert endpoint.ask("GET", "/v2/health/ready")[0] == 503
    assert endpoint.ask("GET", "/v2/health/live")[0] == 200


def test_a_full_queue_turns_away_at_once_and_says_when_to_come_back(start: Start) -> None:
    slow = GatedSession()
    served = served_by(slow, describe("onnxruntime", 1), SLOW_MS)
    endpoint = start(served, queue_max=1)
    with ThreadPoolExecutor(1) as callers:
        first = callers.submit(endpoint.ask, "POST", f"/v2/models/{MODEL}/infer", json_request())
        assert slow.started.acquire(timeout=WAIT_S)

        answer = endpoint.raw(http_request(f"v2/models/{MODEL}/infer", json_request(), b"Connection: close"))
        slow.gate.set()

        assert first.result(WAIT_S)[0] == 200
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nRetry-After: 1\r\n" in answer
    assert served.stats.snapshot().rejected == 1


def test_an_inference_that_hangs_is_answered_and_counts_against_the_release(start: Start) -> None:
    slow = GatedSession()
    served = served_by(slow, describe("onnxruntime", 1), SLOW_MS)
    endpoint = start(served, timeout_s=0.05)

    status, _ = endpoint.ask("POST", f"/v2/models/{MODEL}/infer", json_request())
    slow.gate.set()

    assert status == 503
    assert (served.stats.snapshot().requests, served.stats.snapshot().errors) == (1, 1)


@pytest.mark.parametrize("latency_ms", [0.01, SLOW_MS])
@pytest.mark.parametrize("error", [InferenceFailed("out of memory"), ZeroDivisionError()])
def test_an_engine_that_fails_is_an_error_of_the_release(start: Start, error: Exception, latency_ms: float) -> None:
    broken = GatedSession(error)
    broken.gate.set()
    served = served_by(broken, describe("onnxruntime", 1), latency_ms)
    endpoint = start(served)

    status, answer = endpoint.ask("POST", f"/v2/models/{MODEL}/infer", json_request())

    assert status == 500
    assert json.loads(answer)["error"]
    assert served.stats.snapshot().errors == 1


def test_a_caller_that_goes_away_spares_the_work_that_has_not_begun(start: Start) -> None:
    slow = GatedSession()
    served = served_by(slow, describe("onnxruntime", 1), SLOW_MS)
    endpoint = start(served)
    with ThreadPoolExecutor(1) as callers:
        first = callers.submit(endpoint.ask, "POST", f"/v2/models/{MODEL}/infer", json_request())
        assert slow.started.acquire(timeout=WAIT_S)
        with socket.create_connection(("127.0.0.1", endpoint.port)) as peer:
            peer.sendall(http_request(f"v2/models/{MODEL}/infer", json_request()))
            _until(lambda: endpoint.table.places()[MODEL].room.queued == 2)
            # A plain close may be half of a close; a reset says that nobody waits.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        _until(lambda: endpoint.table.places()[MODEL].room.queued == 1)
        slow.gate.set()
        assert first.result(WAIT_S)[0] == 200

    assert (served.stats.snapshot().requests, served.stats.snapshot().cancelled) == (1, 1)


def test_feedback_counts_right_and_wrong_against_the_release_that_answered(start: Start, tmp_path: Path) -> None:
    old = release(tmp_path, "onnxruntime", 1)
    endpoint = start(old)
    for request_id, rows in (("a", 1), ("b", 1), ("c", 1), ("d", 2)):
        endpoint.ask("POST", f"/v2/models/{MODEL}/infer", json_request(rows, id=request_id))
    endpoint.table.switch(MODEL, release(tmp_path, "onnxruntime", 2))

    def label(request_id: str, truth: object) -> tuple[int, object]:
        body = json.dumps({"id": request_id, "label": truth}).encode()
        status, answer = endpoint.ask("POST", f"/v1/models/{MODEL}/feedback", body)
        return status, json.loads(answer).get("right")

    assert label("a", "high") == (200, True)
    assert label("a", "high") == (404, None)  # An answer is judged once.
    assert label("b", 0) == (200, False)
    assert label("c", 3) == (400, None)
    assert label("c", "a class of the next release") == (200, False)
    assert label("d", ["high", "low"]) == (200, [True, False])
    assert label("never", "high") == (404, None)
    at = old.stats.snapshot()
    assert (at.labelled, at.right) == (5, 2)
    assert endpoint.table.served(MODEL).stats.snapshot().labelled == 0


def test_status_and_metrics_say_what_serves_and_what_it_did(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "openvino", 1))
    for _ in range(3):
        endpoint.ask("POST", f"/v2/models/{MODEL}/infer", json_request(2))
    endpoint.ask("POST", f"/v2/models/{MODEL}/infer", b"{}")

    status = json.loads(endpoint.ask("GET", "/v1/status")[1])["models"][MODEL]
    metrics = endpoint.ask("GET", "/metrics")[1].decode().splitlines()

    assert (status["version"], status["slot"], status["engine"]["engine"]) == ("1.0.1", "active", "openvino")
    assert (status["counters"]["requests"], status["counters"]["refused"]) == (3, 1)
    assert status["latency_ms_p95"] > 0
    labels = 'model="sums",version="1.0.1"'
    assert f"nv_inference_request_success{{{labels}}} 3" in metrics
    assert f'nv_inference_request_failure{{{labels},reason="OTHER"}} 1' in metrics
    assert f"nv_inference_count{{{labels}}} 6" in metrics
    assert f'muster_inference_seconds_bucket{{{labels},le="+Inf"}} 3' in metrics


def test_a_unix_socket_answers_too(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    start(release(tmp_path, "onnxruntime", 1), unix_path=path)

    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(WAIT_S)
        peer.connect(str(path))
        peer.sendall(http_request("v2/health/live", b"", b"Connection: close"))
        answer = b"".join(iter(lambda: peer.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("latency_ms", [0.01, SLOW_MS])
def test_pipelined_requests_are_answered_in_order(start: Start, tmp_path: Path, latency_ms: float) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1, latency_ms=latency_ms))
    path = f"v2/models/{MODEL}/infer"
    requests = [http_request(path, json_request(id=f"p{number}")) for number in range(20)]

    answer = endpoint.raw(b"".join(requests) + http_request("v2", b"", b"Connection: close"))

    positions = [answer.index(b'"id":"p%d"' % number) for number in range(20)]
    assert positions == sorted(positions)
    assert answer.count(b"HTTP/1.1 200 ") == 21


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (http_request("v2/models/sums/infer", b"x" * 5000), 413),
        (
            http_request("v2/models/sums/infer", b"x" * 5000).replace(
                b"Content-Length: 5000", b"Content-Length: 99999"
            ),
            413,
        ),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"fff\r\n" + b"x" * 4095 + b"\r\n", 413),
        (http_request("v2", b"", b"A: " + b"x" * 2000), 431),
        (http_request("v2/" + "x" * 2000), 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 9\r\n\r\nshort", 408),
    ],
)
def test_a_caller_that_asks_too_much_is_told_and_cut(start: Start, tmp_path: Path, sent: bytes, status: int) -> None:
    limits = Limits(header_bytes=1024, body_bytes=4000, read_s=0.2)
    endpoint = start(release(tmp_path, "onnxruntime", 1), limits=limits)

    answer = endpoint.raw(sent)

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    assert endpoint.ask("GET", "/v2/health/live")[0] == 200  # The others are served on.


def test_other_methods_and_paths_are_refused_in_json(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1))

    assert endpoint.ask("GET", f"/v2/models/{MODEL}/infer")[0] == 405
    assert endpoint.ask("POST", "/v2/health/live", b"{}")[0] == 405
    status, answer = endpoint.ask("GET", "/nowhere")
    assert (status, list(json.loads(answer))) == (404, ["error"])


def _is_closed(session: Session) -> bool:
    try:
        session.run({"x": X})
    except InferenceFailed:
        return True
    return False


def _until(holds: Callable[[], bool]) -> None:
    """Wait for `holds`, until the deadline."""
    never = threading.Event()
    for _ in range(int(WAIT_S / 0.005)):
        if holds():
            return
        never.wait(0.005)
    raise AssertionError("it did not come true in time")
