"""The public V2 client against the local endpoint, with both engines: what Triton's documents promise its callers."""

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import uvloop
from tritonclient.utils import InferenceServerException, shared_memory

from harness.endpoint import (
    INLINE,
    MODEL,
    THREADS,
    WAIT_S,
    Endpoint,
    GatedSession,
    X,
    describe,
    release,
    served_by,
    until,
)
from muster_agent.core.plan import ServingPlan
from muster_agent.engines import registry
from muster_agent.engines.port import Array, InferenceFailed, Session
from muster_agent.serving.table import Served
from muster_shared.bundle import Runtime

PLANS = pytest.mark.parametrize("plan", [INLINE, THREADS], ids=["inline", "threads"])
BATCHED = ServingPlan(inline=False, batch_max=8, instances_max=2, delay_us=500)


@pytest.fixture(params=registry.RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    engine: Runtime = request.param
    return engine


@pytest.fixture
def endpoint(runtime: Runtime, tmp_path: Path) -> Iterator[Endpoint]:
    running = Endpoint(uvloop.new_event_loop(), release(tmp_path, runtime, 7))
    yield running
    running.stop()


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(endpoint.url, network_timeout=WAIT_S) as made:
        yield made


def given(x: Array = X, *, binary: bool = True) -> list[triton.InferInput]:
    sent = triton.InferInput("x", list(x.shape), "FP32")
    sent.set_data_from_numpy(x, binary_data=binary)
    return [sent]


def wanted(*, binary: bool = True, classes: int = 0) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput("y", binary_data=binary, class_count=classes)]


def infer(client: triton.InferenceServerClient, x: Array = X, *, binary: bool = True, **options: Any) -> Any:
    return client.infer(MODEL, given(x, binary=binary), outputs=wanted(binary=binary), **options)


def test_server_and_model_say_what_they_are(client: triton.InferenceServerClient, runtime: Runtime) -> None:
    server, model = client.get_server_metadata(), client.get_model_metadata(MODEL)

    assert client.is_server_live()
    assert client.is_server_ready()
    assert (server["name"], server["version"]) == ("muster-agent", "0.1.0")
    assert {"binary_tensor_data", "classification", "sequence", "statistics", "system_shared_memory"} <= set(
        server["extensions"]
    )
    assert model == {
        "name": MODEL,
        "versions": ["1.0.7"],
        "platform": {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino"}[runtime],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }


def test_a_model_is_ready_in_its_own_version_only(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1.0.7")
    assert not client.is_model_ready(MODEL, "1.0.8")
    assert not client.is_model_ready("nothing")


def test_the_configuration_is_in_triton_s_words(client: triton.InferenceServerClient, runtime: Runtime) -> None:
    config = client.get_model_config(MODEL)

    assert (config["name"], config["backend"], config["max_batch_size"]) == (MODEL, runtime, 8)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}]


@PLANS
@pytest.mark.parametrize("binary", [True, False])
def test_an_inference_is_right_and_says_where_it_comes_from(
    runtime: Runtime, tmp_path: Path, plan: ServingPlan, binary: bool
) -> None:
    endpoint = Endpoint(uvloop.new_event_loop(), release(tmp_path, runtime, 7, plan))
    x = np.random.default_rng(7).random((5, 3), np.float32)

    with triton.InferenceServerClient(endpoint.url) as client:
        result = infer(client, x, binary=binary, request_id="r-1")
        versioned = infer(client, x, binary=binary, model_version="1.0.7")
    endpoint.stop()

    np.testing.assert_array_equal(result.as_numpy("y"), x + 7)
    np.testing.assert_array_equal(versioned.as_numpy("y"), x + 7)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == (MODEL, "1.0.7", "r-1")
    assert response["parameters"] == {
        "version": "1.0.7",
        "digest": "000000000000",
        "engine": runtime,
        "variant": "v",
        "request_id": "r-1",
    }


def test_ids_are_given_to_those_who_bring_none_and_differ(client: triton.InferenceServerClient) -> None:
    ids = {infer(client).get_response()["id"] for _ in range(20)}

    assert len(ids) == 20


def test_an_id_is_returned_as_it_came(client: triton.InferenceServerClient) -> None:
    odd = 'é"\\\n\u2603'

    assert infer(client, request_id=odd).get_response()["id"] == odd


def test_without_a_wish_all_outputs_come_in_binary(client: triton.InferenceServerClient) -> None:
    result = client.infer(MODEL, given())

    assert "binary_data_size" in result.get_output("y")["parameters"]
    np.testing.assert_array_equal(result.as_numpy("y"), X + 7)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_a_compressed_request_is_unpacked(client: triton.InferenceServerClient, algorithm: str, binary: bool) -> None:
    result = infer(
        client, binary=binary, request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )

    np.testing.assert_array_equal(result.as_numpy("y"), X + 7)


@pytest.mark.parametrize("binary", [True, False])
def test_classes_come_with_their_labels(client: triton.InferenceServerClient, binary: bool) -> None:
    x = np.array([[1, 3, 2], [9, 7, 8]], np.float32)

    result = client.infer(MODEL, given(x), outputs=wanted(binary=binary, classes=2))

    found = result.as_numpy("y").tolist()
    texts = [[text.decode() if isinstance(text, bytes) else text for text in row] for row in found]
    assert texts == [["10.000000:1:middle", "9.000000:2:high"], ["16.000000:0:low", "15.000000:2:high"]]


def test_requests_may_name_sequence_priority_and_timeout(client: triton.InferenceServerClient) -> None:
    result = infer(
        client,
        sequence_id=42,
        sequence_start=True,
        sequence_end=True,
        priority=2,
        timeout=5_000_000,
        parameters={"anything": "else"},
    )

    np.testing.assert_array_equal(result.as_numpy("y"), X + 7)


def test_many_requests_at_once_are_each_answered_with_their_own(tmp_path: Path, runtime: Runtime) -> None:
    endpoint = Endpoint(uvloop.new_event_loop(), release(tmp_path, runtime, 7, BATCHED))

    with triton.InferenceServerClient(endpoint.url, concurrency=8) as client:
        asked = [client.async_infer(MODEL, given(np.full((1, 3), n, np.float32))) for n in range(40)]
        found = [request.get_result(timeout=WAIT_S).as_numpy("y").tolist() for request in asked]
    endpoint.stop()

    assert found == [[[n + 7] * 3] for n in range(40)]


def test_shared_memory_holds_inputs_and_outputs(
    client: triton.InferenceServerClient, endpoint: Endpoint, runtime: Runtime
) -> None:
    key = f"/muster_test_{token_hex(6)}"
    region = shared_memory.create_shared_memory_region("both regions", key, 48)
    try:
        shared_memory.set_shared_memory_region(region, [X * 2], offset=4)
        client.register_system_shared_memory("both regions", key, 44, offset=4)
        status = client.get_system_shared_memory_status()
        sent = triton.InferInput("x", [1, 3], "FP32")
        sent.set_shared_memory("both regions", 12)
        output = triton.InferRequestedOutput("y")
        output.set_shared_memory("both regions", 16, offset=16)

        result = client.infer(MODEL, [sent], outputs=[output])

        assert result.get_output("y")["parameters"]["shared_memory_byte_size"] == 12
        found = np.array(shared_memory.get_contents_as_numpy(region, np.float32, [1, 3], offset=20))
        client.unregister_system_shared_memory("both regions")
        after = client.get_system_shared_memory_status()
        with pytest.raises(InferenceServerException, match="both regions") as refused:
            client.infer(MODEL, [sent])
    finally:
        gc.collect()  # Views into the region keep it open.
        shared_memory.destroy_shared_memory_region(region)

    assert status == [{"name": "both regions", "key": key, "offset": 4, "byte_size": 44}]
    assert after == []
    assert refused.value.status() == "400"
    np.testing.assert_array_equal(found, X * 2 + 7)


def test_memory_that_is_not_there_or_too_small_is_refused(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as unknown:
        client.register_system_shared_memory("r", f"/muster_test_{token_hex(6)}", 8)
    with pytest.raises(InferenceServerException) as cuda:
        client.register_cuda_shared_memory("r", b"handle", 0, 8)

    assert unknown.value.status() == "400"
    assert cuda.value.status() == "400"
    assert client.get_cuda_shared_memory_status() == []
    client.unregister_system_shared_memory("r")
    client.unregister_cuda_shared_memory()


def test_statistics_count_what_was_asked(client: triton.InferenceServerClient) -> None:
    for rows in (1, 2):
        infer(client, np.repeat(X, rows, axis=0))
    with pytest.raises(InferenceServerException):
        infer(client, np.zeros((1, 4), np.float32))

    (one,) = client.get_inference_statistics(MODEL)["model_stats"]
    (every,) = client.get_inference_statistics()["model_stats"]

    assert one == every
    assert (one["name"], one["version"], one["inference_count"], one["execution_count"]) == (MODEL, "1.0.7", 3, 2)
    stats = one["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (2, 0)
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
    assert {stats[stage]["count"] for stage in ("queue", "compute_input", "compute_infer", "compute_output")} == {2}
    assert one["last_inference"] > 1_500_000_000_000


def test_the_repository_says_what_serves_and_takes_no_orders(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    refusals = []
    for order in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException) as refused:
            order(MODEL)
        refusals.append(refused.value.status())

    assert index == [{"name": MODEL, "version": "1.0.7", "state": "READY", "reason": ""}]
    assert refusals == ["400", "400"]
    assert client.is_model_ready(MODEL)


@pytest.mark.parametrize(
    ("model", "version", "status", "message"),
    [("nothing", "", "404", "unknown model"), (MODEL, "1.0.8", "404", "unknown model.*1.0.8")],
)
def test_what_is_not_served_is_not_found(
    client: triton.InferenceServerClient, model: str, version: str, status: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as refused:
        client.infer(model, given(), model_version=version)
    with pytest.raises(InferenceServerException, match=message):
        client.get_model_metadata(model, version)

    assert refused.value.status() == status


def test_a_wrong_input_names_its_tensor_and_is_not_the_fault_of_the_release(
    client: triton.InferenceServerClient, endpoint: Endpoint
) -> None:
    refusals = []
    for x in (np.zeros((1, 4), np.float32), np.array([[1, np.nan, 3]], np.float32)):
        with pytest.raises(InferenceServerException, match="'x' has") as refused:
            infer(client, x)
        refusals.append(refused.value.status())

    assert refusals == ["400", "400"]
    at = endpoint.counts(endpoint.table.served(MODEL))
    assert (at.requests, at.errors, at.refused) == (0, 0, 2)


def test_a_timeout_that_passes_is_told(tmp_path: Path) -> None:
    slow = GatedSession()
    endpoint = Endpoint(uvloop.new_event_loop(), served_by(slow, describe("onnxruntime", 1)))

    with triton.InferenceServerClient(endpoint.url) as client, pytest.raises(InferenceServerException) as late:
        infer(client, timeout=1000)
    slow.gate.set()
    endpoint.stop()

    assert late.value.status() == "503"


@PLANS
def test_hot_swaps_under_load_fail_no_request_and_mix_no_versions(
    runtime: Runtime, tmp_path: Path, plan: ServingPlan
) -> None:
    endpoint = Endpoint(uvloop.new_event_loop(), release(tmp_path, runtime, 1, plan))
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
        try:
            for constant in range(2, 12):
                retired.append(endpoint.table.served(MODEL))
                before = retired[-1].stats.snapshot().requests
                until(lambda before=before: retired[-1].stats.snapshot().requests > before + 8)  # type: ignore[misc]
                endpoint.table.switch(MODEL, release(tmp_path, runtime, constant, plan))
            until(lambda: endpoint.table.served(MODEL).stats.snapshot().requests > 8)
        finally:
            over.set()
        seen = set().union(*(future.result(WAIT_S) for future in asked))

    assert seen == {f"1.0.{constant}" for constant in range(1, 12)}
    assert sum(served.stats.snapshot().errors for served in retired) == 0
    for served in retired:
        until(lambda served=served: _is_closed(served.session))  # type: ignore[misc]
    endpoint.stop()


def _is_closed(session: Session) -> bool:
    try:
        session.run({"x": X})
    except InferenceFailed:
        return True
    return False
