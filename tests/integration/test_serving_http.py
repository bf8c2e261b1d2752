"""The local endpoint over real sockets, as the public client does not show it: slow engines, rude callers, pages."""

import asyncio
import gzip
import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter_ns

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.endpoint import INLINE, MODEL, THREADS, WAIT_S, Endpoint, GatedSession, describe, release, served_by, until
from muster_agent.core.breaker import BreakerSettings
from muster_agent.core.plan import ServingPlan
from muster_agent.engines.port import Array, InferenceFailed
from muster_agent.serving.app import Repository
from muster_agent.serving.config import ClientConfig, Limit, ServingConfig
from muster_agent.serving.http import Limits
from muster_agent.serving.service import AgentBusy
from muster_shared.bundle import Serving, StateTensor, TensorSpec
from muster_shared.errors import MusterError

INFER = f"/v2/models/{MODEL}/infer"
PLANS = pytest.mark.parametrize("plan", [INLINE, THREADS], ids=["inline", "threads"])

Start = Callable[..., Endpoint]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    running: list[Endpoint] = []

    def begin(*served: object, **options: object) -> Endpoint:
        running.append(Endpoint(request.param(), *served, **options))  # type: ignore[arg-type]  # As it takes them.
        return running[-1]

    yield begin
    for endpoint in running:
        endpoint.stop()


def json_request(rows: int = 1, **fields: object) -> bytes:
    x = {"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": [1, 2, 3] * rows}
    return json.dumps({"inputs": [x], **fields}).encode()


def http_request(path: str, body: bytes = b"", *headers: bytes) -> bytes:
    method = b"POST" if body else b"GET"
    lines = [
        b"%b /%b HTTP/1.1" % (method, path.encode()),
        b"Host: localhost",
        b"Content-Length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_a_request_on_the_old_release_ends_there_and_only_then_is_it_closed(start: Start, tmp_path: Path) -> None:
    slow = GatedSession()
    endpoint = start(served_by(slow, describe("onnxruntime", 1)))
    with ThreadPoolExecutor(1) as callers:
        old = callers.submit(endpoint.ask, "POST", INFER, json_request())
        assert slow.started.acquire(timeout=WAIT_S)

        endpoint.table.switch(MODEL, release(tmp_path, "onnxruntime", 2))
        status, new = endpoint.ask("POST", INFER, json_request())
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

    assert endpoint.ask("POST", INFER, json_request())[0] == 404
    assert endpoint.ask("GET", "/v2/health/ready")[0] == 503
    assert endpoint.ask("GET", "/v2/health/live")[0] == 200


def test_a_full_queue_turns_away_at_once_and_says_when_to_come_back(start: Start) -> None:
    slow = GatedSession()
    served = served_by(slow, describe("onnxruntime", 1))
    endpoint = start(served, config=ServingConfig(queue_max=1))
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(endpoint.ask, "POST", INFER, json_request())
        assert slow.started.acquire(timeout=WAIT_S)
        second = callers.submit(endpoint.ask, "POST", INFER, json_request())
        until(lambda: endpoint.table.places()[MODEL].room.queued == 1)

        answer = endpoint.raw(http_request(INFER[1:], json_request(), b"Connection: close"))
        slow.gate.set()

        assert (first.result(WAIT_S)[0], second.result(WAIT_S)[0]) == (200, 200)
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nRetry-After: 1\r\n" in answer
    assert endpoint.counts(served).rejected == 1


def test_an_inference_that_hangs_is_answered_and_counts_against_the_release(start: Start) -> None:
    slow = GatedSession()
    served = served_by(slow, describe("onnxruntime", 1))
    endpoint = start(served, config=ServingConfig(timeout_s=0.05))

    status, _ = endpoint.ask("POST", INFER, json_request())
    slow.gate.set()

    assert status == 503
    assert (endpoint.counts(served).requests, endpoint.counts(served).errors) == (1, 1)


@PLANS
@pytest.mark.parametrize("error", [InferenceFailed("out of memory"), ZeroDivisionError()])
def test_an_engine_that_fails_is_an_error_of_the_release(start: Start, error: Exception, plan: ServingPlan) -> None:
    broken = GatedSession(error)
    broken.gate.set()
    served = served_by(broken, describe("onnxruntime", 1), plan)
    endpoint = start(served)

    status, answer = endpoint.ask("POST", INFER, json_request())

    assert status == 500
    assert json.loads(answer)["error"]
    assert endpoint.counts(served).errors == 1


def test_an_engine_that_kept_failing_is_asked_by_no_more_than_are_needed_to_see_it_well(start: Start) -> None:
    engine = GatedSession()
    settings = BreakerSettings(calls_min=2, open_s=1000.0, open_s_max=1000.0, probes=1)
    endpoint = start(served_by(engine, describe("onnxruntime", 1)), config=ServingConfig(breaker=settings))
    then = perf_counter_ns() - 1_001_000_000_000  # So long ago that it may be asked again.
    for _ in range(2):
        endpoint.table.places()[MODEL].breaker.failed(then, then)
    with ThreadPoolExecutor(1) as callers:
        probe = callers.submit(endpoint.ask, "POST", INFER, json_request())
        assert engine.started.acquire(timeout=WAIT_S)

        refused = [endpoint.ask("POST", INFER, json_request(parameters={"timeout": 1000})) for _ in range(4)]
        engine.gate.set()

        assert probe.result(WAIT_S)[0] == 200
    assert [(status, b"is not asked for a while" in answer) for status, answer in refused] == [(503, True)] * 4
    assert endpoint.ask("POST", INFER, json_request())[0] == 200


def test_a_caller_that_goes_away_spares_the_work_that_has_not_begun(start: Start) -> None:
    slow = GatedSession()
    served = served_by(slow, describe("onnxruntime", 1))
    endpoint = start(served)
    with ThreadPoolExecutor(1) as callers:
        first = callers.submit(endpoint.ask, "POST", INFER, json_request())
        assert slow.started.acquire(timeout=WAIT_S)
        with socket.create_connection(("127.0.0.1", endpoint.port)) as peer:
            peer.sendall(http_request(INFER[1:], json_request()))
            until(lambda: endpoint.table.places()[MODEL].room.queued == 1)
            # A plain close may be half of a close; a reset says that nobody waits.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        until(lambda: endpoint.table.places()[MODEL].room.queued == 0)
        slow.gate.set()
        assert first.result(WAIT_S)[0] == 200

    assert (endpoint.counts(served).requests, endpoint.counts(served).cancelled) == (1, 1)
    assert slow.calls == 1


def test_feedback_counts_right_and_wrong_against_the_release_that_answered(start: Start, tmp_path: Path) -> None:
    old = release(tmp_path, "onnxruntime", 1)
    endpoint = start(old)
    for request_id, rows in (("a", 1), ("b", 1), ("c", 1), ("d", 2)):
        endpoint.ask("POST", INFER, json_request(rows, id=request_id))
    ours = json.loads(endpoint.ask("POST", INFER, json_request())[1])["id"]
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
    assert label(ours, "high") == (200, True)
    assert label(ours[:-1] + "g", "high") == (404, None)
    assert label("x", {}) == (400, None)
    at = endpoint.counts(old)
    assert (at.labelled, at.right) == (6, 3)
    assert endpoint.counts(endpoint.table.served(MODEL)).labelled == 0


SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|NaN|[+-]Inf)", re.ASCII)
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)', re.ASCII)


def parse_metrics(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the samples by name and labels of a page in Prometheus' text format 0.0.4, read strictly."""
    assert page.endswith("\n")
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    family = ""
    done: set[str] = set()
    for line in page.splitlines():
        if line.startswith("# "):
            _, word, name, text = line.split(" ", 3)
            if word == "HELP":
                assert name not in helped, f"{name} has two helps"
                helped.add(name)
                done.add(family)
                family = name
            else:
                assert word == "TYPE"
                assert text in ("counter", "gauge", "histogram", "summary")
                assert name == family
                assert name not in kinds, f"{name} has two types"
                kinds[name] = text
            assert name not in done, f"{name} is in two places"
            continue
        found = SAMPLE.fullmatch(line)
        assert found is not None, f"not a sample: {line!r}"
        name, inner, number = found.groups()
        base = re.sub("_(bucket|sum|count)$", "", name) if kinds.get(family) in ("histogram", "summary") else name
        assert base == family, f"{name} stands under {family}"
        pairs = tuple(LABEL.findall(inner or ""))
        assert "".join(f'{key}="{text}",' for key, text in pairs)[:-1] == (inner or ""), f"bad labels: {line!r}"
        assert len({key for key, _ in pairs}) == len(pairs)
        key = name, tuple(sorted(pairs))
        assert key not in samples, f"twice: {line!r}"
        samples[key] = float(number)
    assert kinds.keys() == helped
    for name, kind in kinds.items():
        if kind == "counter":
            assert all(value >= 0 for (sample, _), value in samples.items() if sample == name)
        if kind == "histogram":
            _check_histogram(name, samples)
    return samples


def _check_histogram(name: str, samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> None:
    series: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    for (sample, labels), value in samples.items():
        if sample == f"{name}_bucket":
            rest = tuple(pair for pair in labels if pair[0] != "le")
            series.setdefault(rest, []).append((float(dict(labels)["le"]), value))
    for rest, buckets in series.items():
        assert [bound for bound, _ in buckets] == sorted({bound for bound, _ in buckets})
        assert [count for _, count in buckets] == sorted(count for _, count in buckets)
        assert buckets[-1] == (float("inf"), samples[f"{name}_count", rest])
        assert (f"{name}_sum", rest) in samples


def test_status_and_metrics_say_what_serves_and_what_it_did(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "openvino", 1))
    for _ in range(3):
        endpoint.ask("POST", INFER, json_request(2))
    endpoint.ask("POST", INFER, b"{}")

    status = json.loads(endpoint.ask("GET", "/v1/status")[1])["models"][MODEL]
    page = endpoint.ask("GET", "/metrics")[1].decode()

    assert (status["version"], status["slot"], status["engine"]["engine"]) == ("1.0.1", "active", "openvino")
    assert (status["counters"]["requests"], status["counters"]["refused"]) == (3, 1)
    assert status["latency_ms_p95"] > 0
    samples = parse_metrics(page)
    labels = (("model", MODEL), ("version", "1.0.1"))
    assert samples["nv_inference_request_success", labels] == 3
    assert samples["nv_inference_request_failure", tuple(sorted((*labels, ("reason", "OTHER"))))] == 1
    assert samples["nv_inference_count", labels] == 6
    assert samples["nv_inference_request_duration_us", labels] > 0
    for stage in ("queue", "input", "compute", "output"):
        assert samples["muster_stage_seconds_count", tuple(sorted((*labels, ("stage", stage))))] == 3


def test_the_metrics_of_a_device_without_models_are_a_page_as_well(start: Start) -> None:
    endpoint = start()

    status, page = endpoint.ask("GET", "/metrics")

    assert status == 200
    parse_metrics(page.decode())


def test_a_unix_socket_answers_too(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s"
    start(release(tmp_path, "onnxruntime", 1), unix_path=path)

    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(WAIT_S)
        peer.connect(str(path))
        peer.sendall(http_request("v2/health/live", b"", b"Connection: close"))
        answer = b"".join(iter(lambda: peer.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 200 ")


@PLANS
def test_pipelined_requests_are_answered_in_order(start: Start, tmp_path: Path, plan: ServingPlan) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1, plan))
    requests = [http_request(INFER[1:], json_request(id=f"p{number:02}")) for number in range(20)]

    answer = endpoint.raw(b"".join(requests) + http_request("v2", b"", b"Connection: close"))

    positions = [answer.index(b'"id":"p%02d"' % number) for number in range(20)]
    assert positions == sorted(positions)
    assert answer.count(b"HTTP/1.1 200 ") == 21


@PLANS
def test_the_same_head_with_other_data_is_answered_with_the_other_answer(
    start: Start, tmp_path: Path, plan: ServingPlan
) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1, plan))
    x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    header = json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}}).encode()
    length = b"Inference-Header-Content-Length: %d" % len(header)
    found, ids = [], set()

    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=WAIT_S) as peer, peer.makefile("rb") as answers:
        for number in range(10):
            values = np.full(3, number, np.float32)
            peer.sendall(http_request(INFER[1:], header + values.tobytes(), length))
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = dict(line.rstrip().split(b": ") for line in iter(answers.readline, b"\r\n"))
            body = answers.read(int(headers[b"Content-Length"]))
            size = int(headers[b"Inference-Header-Content-Length"])
            found.append(np.frombuffer(body[size:], np.float32).tolist())
            ids.add(json.loads(body[:size])["id"])

    assert found == [[number + 1] * 3 for number in range(10)]
    assert len(ids) == 10


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

    assert endpoint.ask("GET", INFER)[0] == 405
    assert endpoint.ask("POST", "/v2/health/live", b"{}")[0] == 405
    for path in ("/nowhere", "/v2/models/sums/nowhere", "/v2/cudasharedmemory/nowhere", "/", "//"):
        status, answer = endpoint.ask("GET", path)
        assert (status, list(json.loads(answer))) == (404, ["error"])


def test_web_pages_are_refused(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1))

    status, _ = endpoint.ask("POST", INFER, json_request(), {"Origin": "http://page.example"})

    assert status == 403


@pytest.mark.parametrize(
    ("host", "expected"), [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("page.example", 403)]
)
def test_a_name_that_was_made_to_point_here_is_refused(start: Start, tmp_path: Path, host: str, expected: int) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1))

    status, _ = endpoint.ask("GET", "/metrics", headers={"Host": host})

    assert status == expected


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic right"}, 401),
        ({"Authorization": "Bearer right"}, 200),
    ],
)
def test_without_a_known_token_nobody_infers_where_one_is_needed(
    start: Start, tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    client = ClientConfig(name="cell", token_sha256=hashlib.sha256(b"right").hexdigest())
    config = ServingConfig(clients=(client,), require_token=True)
    endpoint = start(release(tmp_path, "onnxruntime", 1), config=config)

    assert endpoint.ask("POST", INFER, json_request(), headers)[0] == status


def test_whoever_asks_more_than_it_may_is_told_when_to_come_back(start: Start, tmp_path: Path) -> None:
    config = ServingConfig(anonymous=Limit(rows_per_s=0.001, burst=3))
    endpoint = start(release(tmp_path, "onnxruntime", 1), config=config)

    statuses = [endpoint.ask("POST", INFER, json_request(rows))[0] for rows in (4, 2, 2, 1)]
    answer = endpoint.raw(http_request(INFER[1:], json_request(), b"Connection: close"))

    assert statuses == [400, 200, 429, 200]
    assert re.search(rb"\r\nRetry-After: [1-9]\d*\r\n", answer)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"no json", {}),
        (json_request(), {"Inference-Header-Content-Length": "x"}),
        (json_request(), {"Inference-Header-Content-Length": "99999"}),
        (json_request(), {"Inference-Header-Content-Length": "5"}),
        (json_request(), {"Content-Encoding": "br"}),
        (json_request(), {"Content-Encoding": "gzip"}),
        (json_request(), {"Muster-Priority": "first"}),
        (json_request(parameters={"priority": [1]}), {}),
        (json_request(outputs=[{"name": "y", "parameters": {"classification": "\u00b2"}}]), {}),
    ],
)
def test_a_body_that_says_nothing_is_the_caller_s_fault(
    start: Start, tmp_path: Path, body: bytes, headers: dict[str, str]
) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1))

    status, answer = endpoint.ask("POST", INFER, body, headers)

    assert (status, list(json.loads(answer))) == (400, ["error"])


@PLANS
def test_an_answer_from_memory_is_the_answer(start: Start, plan: ServingPlan) -> None:
    engine = GatedSession()
    engine.gate.set()
    served = served_by(engine, describe("onnxruntime", 1, Serving(cache=True)), plan)
    endpoint = start(served)

    answers = [json.loads(endpoint.ask("POST", INFER, json_request(rows))[1]) for rows in (1, 2, 1, 2, 1)]

    assert [len(answer["outputs"][0]["data"]) for answer in answers] == [3, 6, 3, 6, 3]
    assert len({answer["id"] for answer in answers}) == 5
    assert engine.calls == 1 + -(-2 // plan.batch_max)  # Two rows take two runs where a run has one.
    assert endpoint.counts(served).hits == 3


def test_a_cached_model_that_is_overloaded_remembers_nothing_of_what_it_refused(start: Start) -> None:
    slow = GatedSession()
    served = served_by(slow, describe("onnxruntime", 1, Serving(cache=True)))
    endpoint = start(served, config=ServingConfig(queue_max=1))
    place = endpoint.table.places()[MODEL]
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(endpoint.ask, "POST", INFER, json_request())
        assert slow.started.acquire(timeout=WAIT_S)
        second = callers.submit(endpoint.ask, "POST", INFER, json_request())
        until(lambda: place.room.queued == 1)

        statuses = {endpoint.ask("POST", INFER, json_request(rows))[0] for rows in range(1, 5)}
        remembered = len(place.misses)
        slow.gate.set()
        first.result(WAIT_S), second.result(WAIT_S)

    assert statuses == {429}
    assert remembered == 2
    assert not place.misses


class Orders:
    """A repository in memory that keeps what it was told, and is busy."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def index(self) -> list[dict[str, str]]:
        return [{"name": "m", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}]

    def load(self, model: str, done: Callable[[MusterError | None], None]) -> None:
        self.told.append(f"load {model}")
        done(None)

    def unload(self, model: str, done: Callable[[MusterError | None], None]) -> None:
        self.told.append(f"unload {model}")
        done(AgentBusy())


def test_a_repository_is_told_to_load_and_unload(start: Start) -> None:
    orders = Orders()
    repository: Repository = orders
    endpoint = start(repository=repository)

    index = json.loads(endpoint.ask("POST", "/v2/repository/index", b"{}")[1])
    loaded = endpoint.ask("POST", "/v2/repository/models/m/load", b"{}")[0]
    unloaded = endpoint.ask("POST", "/v2/repository/models/m/unload", b"{}")[0]

    assert index[0]["state"] == "UNAVAILABLE"
    assert orders.told == ["load m", "unload m"]
    assert loaded == 200
    assert unloaded >= 400


class Adding:
    """A stateful engine: y = x + h, and the next h is y."""

    achieved = GatedSession.achieved
    concurrency = 1

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        total = np.add(*arrays)
        return [total, total.copy()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(("y", "h2"), self.run_arrays((inputs["x"], inputs["h"])), strict=True))

    def close(self) -> None:
        """Hold nothing."""


@PLANS
def test_the_state_of_a_sequence_is_the_device_s_own(start: Start, plan: ServingPlan) -> None:
    plain = describe("onnxruntime", 1, Serving(state=(StateTensor(input="h", output="h2"),)))
    h, h2 = (TensorSpec(name=name, datatype="FP32", shape=(-1, 3)) for name in ("h", "h2"))
    manifest = msgspec.structs.replace(plain, inputs=(*plain.inputs, h), outputs=(*plain.outputs, h2))
    endpoint = start(served_by(Adding(), manifest, plan))

    def ask(sequence: object, **parameters: bool) -> tuple[int, list[float]]:
        body = json_request(parameters={"sequence_id": sequence, **parameters}, outputs=[{"name": "y"}])
        status, answer = endpoint.ask("POST", INFER, body)
        return status, json.loads(answer)["outputs"][0]["data"] if status == 200 else []

    model = json.loads(endpoint.ask("GET", f"/v2/models/{MODEL}")[1])
    answers = [
        ask("a", sequence_start=True),
        ask(7, sequence_start=True),
        ask("a"),
        ask("a", sequence_end=True),
        ask(7),
        ask(7, sequence_start=True),
    ]

    assert [tensor["name"] for tensor in model["inputs"]] == ["x"]
    assert answers == [(200, [1.0 * n, 2.0 * n, 3.0 * n]) for n in (1, 1, 2, 3, 2, 1)]


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (gzip.compress(json_request()), 200),
        (gzip.compress(json_request()) + b"more", 400),
        (gzip.compress(json_request())[:-9], 400),
        (gzip.compress(bytes(70_000_000), 1), 400),
    ],
    ids=["whole", "followed", "cut", "bomb"],
)
def test_a_packed_body_is_taken_when_it_is_whole_alone_and_of_measure(
    start: Start, tmp_path: Path, packed: bytes, status: int
) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 1))

    assert endpoint.ask("POST", INFER, packed, {"Content-Encoding": "gzip"})[0] == status


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    endpoint = Endpoint(uvloop.new_event_loop(), release(tmp_path_factory.mktemp("fuzzed"), "onnxruntime", 1))
    yield endpoint
    endpoint.stop()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 66) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
PARAMETERS = st.dictionaries(
    st.sampled_from(
        [
            "binary_data",
            "binary_data_output",
            "binary_data_size",
            "classification",
            "priority",
            "sequence_end",
            "sequence_id",
            "sequence_start",
            "shared_memory_byte_size",
            "shared_memory_offset",
            "shared_memory_region",
            "timeout",
        ]
    ),
    ANYTHING,
    max_size=3,
)
TENSORS = st.fixed_dictionaries(
    {"name": st.sampled_from(["x", "x", "z"])},
    optional={
        "shape": st.just([1, 3]) | ANYTHING,
        "datatype": st.sampled_from(["FP32", "FP32", "BYTES", "no"]) | ANYTHING,
        "data": st.just([1, 2, 3]) | ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
    },
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(TENSORS, max_size=2) | ANYTHING,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["y", "x"])}, optional={"parameters": PARAMETERS}),
            max_size=2,
        ),
        "parameters": PARAMETERS | ANYTHING,
        "id": st.text(max_size=3) | ANYTHING,
    },
)


@given(BODIES, st.binary(max_size=13), st.sampled_from([None, 0, -1]))
@settings(max_examples=400, deadline=None)
def test_whatever_is_asked_is_answered_or_refused_and_never_an_error_of_ours(
    fuzzed: Endpoint, asked: object, tail: bytes, length: int | None
) -> None:
    header = json.dumps(asked).encode()
    headers = {} if length is None else {"Inference-Header-Content-Length": str(len(header) if length else 0)}

    status, answer = fuzzed.ask("POST", INFER, header + (b"" if length is None else tail), headers)

    assert status in (200, 400, 503), answer  # 503: a timeout of a microsecond is one.


def test_an_output_of_another_shape_than_the_manifest_names_is_still_framed_right(start: Start) -> None:
    class Widening(GatedSession):
        """It answers with ever more columns, whatever was declared."""

        def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
            self.calls += 1
            return [np.ones((len(arrays[0]), self.calls), np.float32)]

    endpoint = start(served_by(Widening(), describe("onnxruntime", 1)))
    x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    header = json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}}).encode()

    with triton.InferenceServerClient(endpoint.url) as client:
        shapes = []
        for _ in range(5):
            response = client._post(
                INFER[1:], header + bytes(12), {"Inference-Header-Content-Length": len(header)}, None
            )
            result = triton.InferResult(response, verbose=False)
            shapes.append(result.as_numpy("y").shape)

    assert shapes == [(1, width) for width in range(1, 6)]
