"""The gRPC front over real sockets: the public client of the protocol, both engines, and callers that are wrong."""

import asyncio
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from uuid import uuid4

import grpc
import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shared_memory
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from muster_agent.core.plan import ServingPlan
from muster_agent.engines import registry
from muster_agent.engines.port import Achieved, Array, InferenceFailed, Session
from muster_agent.engines.tensors import DTYPES
from muster_agent.serving.admission import Admission
from muster_agent.serving.config import ClientConfig, Limit, ServingConfig
from muster_agent.serving.grpc import messages
from muster_agent.serving.grpc.start import GrpcMissing, GrpcServer, serve_grpc
from muster_agent.serving.service import Service
from muster_agent.serving.shared_memory import Regions
from muster_agent.serving.table import ModelUnknown, Served, ServingTable
from muster_shared.bundle import (
    DataType,
    Golden,
    Manifest,
    Runtime,
    Serving,
    StateTensor,
    TensorSpec,
    Variant,
    describe_file,
)
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName, Sha256

MODEL = ModelName("sums")
WAIT_S = 20.0
X = np.array([[1, 2, 3]], np.float32)
ONNX_TYPES: dict[DataType, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
NUMBERS = tuple(datatype for datatype in ONNX_TYPES if datatype != "BYTES")


class Endpoint:
    """A server on its own loop and thread, as the daemon runs it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, table: ServingTable, config: ServingConfig, **options: object):
        self.table = table
        self._loop = loop
        self._thread = threading.Thread(target=loop.run_forever)
        self._thread.start()

        async def start() -> GrpcServer:
            service = Service(table, config)
            return await serve_grpc(
                service,
                Admission(config),
                Regions(),
                port=0,
                agent_version="0.1.0",
                **options,  # type: ignore[arg-type]
            )

        self.server = self._run(start)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def client(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.url)

    def infer(self, raw: bytes, **options: object) -> service_pb2.ModelInferResponse:
        """Send what may be no request at all, and return the answer."""
        with grpc.insecure_channel(self.url) as channel:
            procedure = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            return service_pb2.ModelInferResponse.FromString(procedure(raw, timeout=WAIT_S, **options))

    def tasks(self) -> int:
        """How many things the loop is at."""

        async def count() -> int:
            return len(asyncio.all_tasks())

        return self._run(count)

    def stop(self) -> None:
        self._run(lambda: self.server.stop(WAIT_S))
        assert self.table.close(WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def _run(self, begin: Callable[[], object]) -> object:
        return asyncio.run_coroutine_threadsafe(begin(), self._loop).result(WAIT_S)


Start = Callable[..., Endpoint]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Endpoint] = []

    def begin(
        *served: Served, config: ServingConfig | None = None, loop: str = "uvloop", **options: object
    ) -> Endpoint:
        config = config or ServingConfig()
        table = ServingTable(config)
        for release in served:
            table.switch(release.manifest.model, release)
        new_loop = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        running.append(Endpoint(new_loop(), table, config, **options))
        return running[-1]

    yield begin
    for endpoint in running:
        endpoint.stop()


def release(folder: Path, runtime: Runtime, constant: int = 7) -> Served:
    """A release that answers y = x + constant, FP32 [N, 3]; its version is 1.0.<constant>."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor("c", TensorProto.FLOAT, [1], [float(constant)])],
    )
    return loaded(folder, runtime, graph, describe(runtime, constant))


def mirror(folder: Path, runtime: Runtime, datatype: DataType) -> Served:
    """A release that answers y = x, [N, 2] of `datatype`."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "mirror",
        [helper.make_tensor_value_info("x", ONNX_TYPES[datatype], ["N", 2])],
        [helper.make_tensor_value_info("y", ONNX_TYPES[datatype], ["N", 2])],
    )
    return loaded(folder, runtime, graph, describe(runtime, 0, datatype=datatype, width=2))


def loaded(folder: Path, runtime: Runtime, graph: object, manifest: Manifest) -> Served:
    file = folder / f"{manifest.version}.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    engine = registry.engine(runtime)
    session = engine.load(
        file, manifest.variants[0], manifest.inputs, manifest.outputs, threads=1, cache_dir=folder / "cache"
    )
    return served_by(session, manifest, inline=True)


def describe(runtime: Runtime, constant: int, *, datatype: DataType = "FP32", width: int = 3) -> Manifest:
    return Manifest(
        model=MODEL,
        version=f"1.0.{constant}",
        release=constant + 1,
        inputs=(TensorSpec(name="x", datatype=datatype, shape=(-1, width)),),
        outputs=(TensorSpec(name="y", datatype=datatype, shape=(-1, width)),),
        files=(describe_file("m.onnx", b"m"),),
        variants=(Variant(name="v", runtime=runtime, precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="m.onnx"),
        labels=("low", "middle", "high"),
    )


def served_by(session: Session, manifest: Manifest, *, inline: bool) -> Served:
    return Served(
        manifest=manifest,
        manifest_sha256=Sha256(f"{manifest.release:064x}"),
        session=session,
        latency_ms=0.01,
        plan=ServingPlan(inline=inline, batch_max=8 if inline else 1),
        variant="v",
    )


class GatedSession:
    """An engine that answers when it is let: it makes a slow model without slow tests."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 1

    def __init__(self, error: Exception | None = None) -> None:
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self._error = error

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        self.started.release()
        assert self.gate.wait(WAIT_S)
        if self._error is not None:
            raise self._error
        return [arrays[0].copy()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self.run_arrays((inputs["x"],))[0]}

    def close(self) -> None:
        self.gate.set()


def gated(error: Exception | None = None) -> tuple[GatedSession, Served]:
    session = GatedSession(error)
    return session, served_by(session, describe("onnxruntime", 0), inline=False)


def sent(x: Array, datatype: str = "FP32") -> triton.InferInput:
    return triton.InferInput("x", list(x.shape), datatype).set_data_from_numpy(x)


def request_of(x: Array = X, **fields: object) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[x.tobytes()], **fields)
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return request


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


# -- the contract -----------------------------------------------------------------------------------------------------


def theirs(name: str) -> object:
    file = service_pb2 if hasattr(service_pb2, name.partition(".")[0]) else model_config_pb2
    found = file
    for part in name.split("."):
        found = getattr(found, part)
    return found.DESCRIPTOR  # type: ignore[attr-defined]


def told(field: object) -> tuple[object, ...]:
    """All of a field that decides what is on the wire, and how a reader finds it."""
    of = field.message_type or field.enum_type  # type: ignore[attr-defined]
    choice = field.containing_oneof  # type: ignore[attr-defined]
    return (
        field.name,  # type: ignore[attr-defined]
        field.number,  # type: ignore[attr-defined]
        field.type,  # type: ignore[attr-defined]
        field.is_repeated,  # type: ignore[attr-defined]
        field.is_packed,  # type: ignore[attr-defined]
        of.full_name if of else None,
        field.message_type is not None and field.message_type.GetOptions().map_entry,  # type: ignore[attr-defined]
        choice.name if choice and choice.name == "parameter_choice" else None,
    )


@pytest.mark.parametrize("name", messages.MESSAGES)
def test_each_message_is_the_public_one_field_by_field(name: str) -> None:
    ours, public = messages.CLASSES[name].DESCRIPTOR, theirs(name)

    assert ours.full_name == public.full_name
    assert {told(field) for field in ours.fields} <= {told(field) for field in public.fields}
    for field in ours.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = public.fields_by_name[field.name].message_type
            assert [told(each) for each in field.message_type.fields] == [told(each) for each in entry.fields]


PARTLY = {"ModelConfig", "ModelInput", "ModelOutput", "ModelInstanceGroup", "ModelDynamicBatching", "ModelStatistics"}


@pytest.mark.parametrize("name", sorted(set(messages.MESSAGES) - PARTLY))
def test_each_message_but_the_configuration_is_the_whole_public_one(name: str) -> None:
    ours, public = messages.CLASSES[name].DESCRIPTOR, theirs(name)

    assert {field.name for field in ours.fields} == {field.name for field in public.fields}


@pytest.mark.parametrize("name", messages.ENUMS)
def test_each_enum_has_the_public_numbers(name: str) -> None:
    outer, _, inner = name.rpartition(".")
    public = theirs(outer).enum_types_by_name[inner] if outer else model_config_pb2.DESCRIPTOR.enum_types_by_name[inner]

    assert dict(enumerate(messages.ENUMS[name])).items() <= {each.number: each.name for each in public.values}.items()


def test_each_procedure_is_the_public_one() -> None:
    public = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    assert public.full_name == messages.SERVICE
    assert {each.name for each in public.methods} - set(messages.METHODS) == {"TraceSetting", "LogSettings"}
    for name, method in messages.METHODS.items():
        known = public.methods_by_name[name]
        assert (known.input_type.name, known.output_type.name) == (method.request, method.response)
        assert (known.client_streaming, known.server_streaming) == (method.streams, method.streams)


# -- the public client ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("runtime", registry.RUNTIMES)
def test_the_public_client_gets_right_answers_and_where_they_come_from(
    start: Start, tmp_path: Path, runtime: Runtime, loop: str
) -> None:
    endpoint = start(release(tmp_path, runtime), loop=loop)

    with endpoint.client() as client:
        result = client.infer(MODEL, [sent(X)], request_id="r-1")
        batch = client.infer(MODEL, [sent(np.repeat(X, 5, axis=0))], model_version="1.0.7")
        again = client.infer(MODEL, [sent(X * 2)])

    np.testing.assert_array_equal(result.as_numpy("y"), X + 7)
    np.testing.assert_array_equal(batch.as_numpy("y"), np.repeat(X, 5, axis=0) + 7)
    np.testing.assert_array_equal(again.as_numpy("y"), X * 2 + 7)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (MODEL, "1.0.7", "r-1")
    assert {name: each.string_param for name, each in response.parameters.items()} == {
        "version": "1.0.7",
        "digest": "000000000000",
        "engine": runtime,
        "variant": "v",
        "request_id": "r-1",
    }
    assert again.get_response().id == again.get_response().parameters["request_id"].string_param != ""


@pytest.mark.parametrize("runtime", registry.RUNTIMES)
def test_it_says_what_it_is_and_what_it_serves(start: Start, tmp_path: Path, runtime: Runtime) -> None:
    endpoint = start(release(tmp_path, runtime))

    with endpoint.client() as client:
        client.infer(MODEL, [sent(X)])
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        assert client.is_model_ready(MODEL, "1.0.7")
        assert not client.is_model_ready(MODEL, "1.0.8")
        assert not client.is_model_ready("nothing")
        server = client.get_server_metadata()
        metadata = client.get_model_metadata(MODEL)
        config = client.get_model_config(MODEL).config
        statistics = client.get_inference_statistics(MODEL).model_stats[0]
        index = client.get_model_repository_index().models

    assert (server.name, server.version) == ("muster-agent", "0.1.0")
    assert "statistics" in server.extensions
    assert list(metadata.versions) == ["1.0.7"]
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("x", "FP32", [-1, 3])]
    assert (config.name, config.backend, config.max_batch_size) == (MODEL, runtime, 8)
    assert (config.input[0].data_type, list(config.input[0].dims)) == (model_config_pb2.TYPE_FP32, [3])
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert config.parameters["version"].string_value == "1.0.7"
    assert (statistics.name, statistics.inference_count, statistics.execution_count) == (MODEL, 1, 1)
    assert statistics.inference_stats.success.count == 1
    assert [(each.name, each.version, each.state) for each in index] == [(MODEL, "1.0.7", "READY")]


def test_a_device_that_is_not_ready_says_so(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"), ready=lambda: False)

    with endpoint.client() as client:
        assert client.is_server_live()
        assert not client.is_server_ready()


def samples(datatype: DataType) -> Array:
    """The ends of what the type holds, as [1, 2]."""
    dtype = DTYPES[datatype]
    if dtype.kind == "b":
        return np.array([[True, False]])
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[limits.min, limits.max]], dtype)


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("runtime", registry.RUNTIMES)
def test_every_type_of_number_comes_back_as_it_was(
    start: Start, tmp_path: Path, runtime: Runtime, datatype: DataType
) -> None:
    # OpenVINO computes 64 bits in 32.
    x = samples(datatype) if runtime == "onnxruntime" else np.array([[1, 100]], DTYPES[datatype])
    endpoint = start(mirror(tmp_path, runtime, datatype))

    with endpoint.client() as client:
        result = client.infer(MODEL, [sent(x, datatype)])

    np.testing.assert_array_equal(result.as_numpy("y"), x)
    assert result.get_output("y").datatype == datatype


CONTENTS = {
    "b": "bool_contents", "i": "int_contents", "u": "uint_contents", "f": "fp32_contents",
    "INT64": "int64_contents", "UINT64": "uint64_contents", "FP64": "fp64_contents",
}  # fmt: skip


@pytest.mark.parametrize("datatype", [each for each in NUMBERS if each != "FP16"])
def test_every_type_of_number_may_come_as_contents(start: Start, tmp_path: Path, datatype: DataType) -> None:
    endpoint, x = start(mirror(tmp_path, "onnxruntime", datatype)), samples(datatype)
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="x", datatype=datatype, shape=x.shape)
    field = CONTENTS.get(datatype) or CONTENTS[x.dtype.kind]
    getattr(tensor.contents, field).extend(x.ravel().tolist())

    response = endpoint.infer(request.SerializeToString())

    np.testing.assert_array_equal(np.frombuffer(response.raw_output_contents[0], x.dtype), x.ravel())


@pytest.mark.parametrize("as_contents", [False, True])
def test_texts_of_any_length_come_back_as_they_were(start: Start, tmp_path: Path, as_contents: bool) -> None:
    endpoint = start(mirror(tmp_path, "onnxruntime", "BYTES"))
    texts = np.array([[b"", "\N{SNOWMAN}".encode()], [b"x" * 300, b"two words"]], object)
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=texts.shape)
    if as_contents:
        tensor.contents.bytes_contents.extend(texts.ravel().tolist())
    else:
        request.raw_input_contents.append(
            triton.InferInput("x", [2, 2], "BYTES").set_data_from_numpy(texts)._raw_content
        )

    result = triton.InferResult(endpoint.infer(request.SerializeToString()))

    np.testing.assert_array_equal(result.as_numpy("y"), texts)


def test_classes_come_best_first_with_their_labels(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime", 0))
    wanted = [triton.InferRequestedOutput("y", class_count=2)]

    with endpoint.client() as client:
        result = client.infer(MODEL, [sent(X)], outputs=wanted)

    assert result.as_numpy("y").tolist() == [[b"3.000000:2:high", b"2.000000:1:middle"]]


def wanted_at(name: str, region: str, size: int, offset: int = 0) -> triton.InferRequestedOutput:
    wanted = triton.InferRequestedOutput(name)
    wanted.set_shared_memory(region, size, offset)
    return wanted


def test_tensors_travel_in_shared_memory(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"))
    key, names = f"/muster-test-{uuid4().hex}", ("ins", "outs")
    with ExitStack() as stack, endpoint.client() as client:
        handle = shared_memory.create_shared_memory_region("both", key, 64)
        stack.callback(shared_memory.destroy_shared_memory_region, handle)
        shared_memory.set_shared_memory_region(handle, [X], offset=8)
        client.register_system_shared_memory(names[0], key, 12, offset=8)
        client.register_system_shared_memory(names[1], key, 32, offset=32)
        given = triton.InferInput("x", [1, 3], "FP32").set_shared_memory(names[0], 12)
        wanted = wanted_at("y", names[1], 16, offset=4)

        result = client.infer(MODEL, [given], outputs=[wanted])
        known = client.get_system_shared_memory_status().regions
        client.unregister_system_shared_memory(names[0])
        left = client.get_system_shared_memory_status().regions

        y = shared_memory.get_contents_as_numpy(handle, np.float32, [1, 3], offset=36)
        np.testing.assert_array_equal(y, X + 7)
        told = result.get_output("y").parameters
        assert (told["shared_memory_region"].string_param, told["shared_memory_byte_size"].int64_param) == ("outs", 12)
        assert {name: (each.key, each.offset, each.byte_size) for name, each in known.items()} == {
            "ins": (key, 8, 12),
            "outs": (key, 32, 32),
        }
        assert set(left) == {"outs"}
        assert len(client.get_cuda_shared_memory_status().regions) == 0


def test_one_output_in_shared_memory_moves_no_other(start: Start, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("y", "z")],
    )
    outputs = tuple(TensorSpec(name=name, datatype="FP32", shape=(-1, 3)) for name in ("y", "z"))
    manifest = msgspec.structs.replace(describe("onnxruntime", 0), outputs=outputs)
    endpoint = start(loaded(tmp_path, "onnxruntime", graph, manifest))
    key = f"/muster-test-{uuid4().hex}"
    with ExitStack() as stack, endpoint.client() as client:
        handle = shared_memory.create_shared_memory_region("out", key, 12)
        stack.callback(shared_memory.destroy_shared_memory_region, handle)
        client.register_system_shared_memory("out", key, 12)
        wanted = [wanted_at("y", "out", 12), triton.InferRequestedOutput("z")]

        result = client.infer(MODEL, [sent(X)], outputs=wanted)

        np.testing.assert_array_equal(shared_memory.get_contents_as_numpy(handle, np.float32, [1, 3]), X)
        np.testing.assert_array_equal(result.as_numpy("z"), -X)


def test_a_stream_is_answered_in_order_and_survives_a_bad_request(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"))
    answers: SimpleQueue[tuple[triton.InferResult | None, Exception | None]] = SimpleQueue()

    with endpoint.client() as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(100):
            x = X + number if number != 50 else np.zeros((1, 4), np.float32)
            client.async_stream_infer(MODEL, [sent(x)], request_id=str(number))
        client.stop_stream()

    for number in range(100):
        result, error = answers.get(timeout=WAIT_S)
        if number == 50:
            assert "'x' has shape [1, 4]" in str(error)
        else:
            assert result is not None
            assert result.get_response().id == str(number)
            assert result.get_response().parameters["triton_final_response"].bool_param
            np.testing.assert_array_equal(result.as_numpy("y"), X + number + 7)
    assert answers.empty()


def test_a_sequence_keeps_its_state_from_request_to_request(start: Start, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "before"], ["after"])],
        "running sum",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1]) for name in ("x", "before")],
        [helper.make_tensor_value_info("after", TensorProto.FLOAT, ["N", 1])],
    )
    specs = {name: TensorSpec(name=name, datatype="FP32", shape=(-1, 1)) for name in ("x", "before", "after")}
    manifest = msgspec.structs.replace(
        describe("onnxruntime", 0),
        inputs=(specs["x"], specs["before"]),
        outputs=(specs["after"],),
        serving=Serving(state=(StateTensor(input="before", output="after"),)),
    )
    endpoint, sums = start(loaded(tmp_path, "onnxruntime", graph, manifest)), SimpleQueue()
    one = sent(np.ones((1, 1), np.float32))

    with endpoint.client() as client:
        client.start_stream(lambda result, error: sums.put((result, error)))
        for step in range(4):
            for sequence in (7, "other"):
                client.async_stream_infer(
                    MODEL, [one], sequence_id=sequence, sequence_start=step == 0, sequence_end=step == 3
                )
        client.stop_stream()
        with pytest.raises(InferenceServerException) as ended:
            client.infer(MODEL, [one], sequence_id=7)

    answers = [sums.get(timeout=WAIT_S) for _ in range(8)]
    assert [error for _, error in answers] == [None] * 8
    assert [result.as_numpy("after").item() for result, _ in answers] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert ended.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_compressed_requests_are_answered(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"))

    with endpoint.client() as client:
        result = client.infer(MODEL, [sent(X)], compression_algorithm="gzip")

    np.testing.assert_array_equal(result.as_numpy("y"), X + 7)


class Shelf:
    """A repository whose one model can be taken out."""

    def __init__(self) -> None:
        self.loaded = True

    def index(self) -> list[dict[str, str]]:
        state = "READY" if self.loaded else "UNAVAILABLE"
        return [{"name": MODEL, "version": "1.0.7", "state": state, "reason": ""}]

    def load(self, model: str, done: Callable[[MusterError | None], None]) -> None:
        self._turn(model, done, loaded=True)

    def unload(self, model: str, done: Callable[[MusterError | None], None]) -> None:
        self._turn(model, done, loaded=False)

    def _turn(self, model: str, done: Callable[[MusterError | None], None], *, loaded: bool) -> None:
        if model == MODEL:
            self.loaded = loaded
        error = None if model == MODEL else ModelUnknown(model, None)
        asyncio.get_running_loop().call_soon(done, error)


def test_models_are_loaded_and_unloaded_by_the_repository(start: Start, tmp_path: Path) -> None:
    shelf = Shelf()
    endpoint = start(release(tmp_path, "onnxruntime"), repository=shelf)

    with endpoint.client() as client:
        client.unload_model(MODEL)
        unloaded = client.get_model_repository_index().models[0].state
        client.load_model(MODEL)
        with pytest.raises(InferenceServerException) as refused:
            client.load_model("nothing")

    assert unloaded == "UNAVAILABLE"
    assert shelf.loaded
    assert refused.value.status() == "StatusCode.NOT_FOUND"


def test_an_agent_without_a_repository_loads_nothing(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"))

    with endpoint.client() as client, pytest.raises(InferenceServerException, match="loads and unloads nothing"):
        client.load_model(MODEL)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"model_name": "nothing"}, "NOT_FOUND", "unknown model"),
        ({"model_version": "9.9.9"}, "NOT_FOUND", "unknown model"),
        ({"inputs": [sent(np.zeros((1, 4), np.float32))]}, "INVALID_ARGUMENT", "'x' has shape"),
        ({"inputs": [sent(X.astype(np.float64), "FP64")]}, "INVALID_ARGUMENT", "takes FP32"),
        ({"inputs": []}, "INVALID_ARGUMENT", "'x' is missing"),
        ({"outputs": [triton.InferRequestedOutput("w")]}, "INVALID_ARGUMENT", "'w' is not an output"),
        ({"priority": 9}, "INVALID_ARGUMENT", "priority"),
        ({"request_id": "i" * 257}, "INVALID_ARGUMENT", "257 characters"),
        ({"headers": {"muster-priority": "first"}}, "INVALID_ARGUMENT", "not now, soon or later"),
        ({"headers": {"authorization": "Basic me"}}, "UNAUTHENTICATED", "Bearer TOKEN"),
        ({"headers": {"authorization": "Bearer unknown"}}, "UNAUTHENTICATED", "not known"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    start: Start, tmp_path: Path, options: dict[str, object], status: str, words: str
) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"))

    with endpoint.client() as client, pytest.raises(InferenceServerException, match=words) as refused:
        client.infer(**{"model_name": MODEL, "inputs": [sent(X)], **options})

    assert refused.value.status() == f"StatusCode.{status}"


def test_what_is_not_there_is_not_found(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"))

    with endpoint.client() as client:
        for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
            with pytest.raises(InferenceServerException) as refused:
                ask("nothing")
            assert refused.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException) as refused:
            client.get_system_shared_memory_status("nothing")
        assert refused.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException) as refused:
            client.register_cuda_shared_memory("c", b"aGFuZGxl", 0, 4)
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
        with pytest.raises(InferenceServerException) as refused:
            client.get_log_settings()
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_caller_over_its_rate_is_told_when_to_come_back(start: Start, tmp_path: Path) -> None:
    token = "sesame-1"
    digest = hashlib.sha256(token.encode()).hexdigest()
    client = ClientConfig(name="inspection", token_sha256=digest, rows_per_s=0.01, burst=1)
    config = ServingConfig(clients=(client,), require_token=True, anonymous=Limit())
    endpoint = start(release(tmp_path, "onnxruntime"), config=config)
    raw, known = request_of().SerializeToString(), [("authorization", f"Bearer {token}")]
    endpoint.infer(raw, metadata=known)

    with pytest.raises(grpc.RpcError) as refused:
        endpoint.infer(raw, metadata=known)
    with pytest.raises(grpc.RpcError) as anonymous:
        endpoint.infer(raw)
    with endpoint.client() as nobody:
        assert nobody.is_server_live()
        assert nobody.is_model_ready(MODEL)
        with pytest.raises(InferenceServerException, match="a token is needed"):
            nobody.register_system_shared_memory("r", "/r", 4)

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(refused.value.trailing_metadata())["retry-after"]) > 50
    assert anonymous.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_message_that_is_too_large_is_refused(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"), message_bytes_max=4096)

    with endpoint.client() as client, pytest.raises(InferenceServerException) as refused:
        client.infer(MODEL, [sent(np.zeros((1000, 3), np.float32))])

    assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_a_message_that_is_too_large_ends_its_stream(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"), message_bytes_max=4096)
    answers: SimpleQueue[InferenceServerException | None] = SimpleQueue()

    with endpoint.client() as client:
        client.start_stream(lambda result, error: answers.put(error))
        client.async_stream_infer(MODEL, [sent(X)])
        first = answers.get(timeout=WAIT_S)
        client.async_stream_infer(MODEL, [sent(np.zeros((1000, 3), np.float32))])
        second = answers.get(timeout=WAIT_S)
        client.stop_stream()

    assert first is None
    assert second.status() == "StatusCode.RESOURCE_EXHAUSTED"


def test_an_engine_that_fails_is_an_internal_error_and_counts_against_the_release(start: Start) -> None:
    session, served = gated(InferenceFailed("no more memory"))
    session.gate.set()
    endpoint = start(served)

    with endpoint.client() as client, pytest.raises(InferenceServerException, match="no more memory") as refused:
        client.infer(MODEL, [sent(X)])

    assert refused.value.status() == "StatusCode.INTERNAL"
    assert served.stats.snapshot().errors == 1


@pytest.mark.parametrize("options", [{"timeout": 1000}, {"client_timeout": 0.05}], ids=["parameter", "deadline"])
def test_a_request_is_not_run_after_its_deadline(start: Start, options: dict[str, float]) -> None:
    session, served = gated()
    endpoint = start(served)
    with endpoint.client() as client:
        first: SimpleQueue[Exception | None] = SimpleQueue()
        client.async_infer(MODEL, [sent(X)], lambda result, error: first.put(error))
        assert session.started.acquire(timeout=WAIT_S)

        with pytest.raises(InferenceServerException) as refused:
            client.infer(MODEL, [sent(X)], **options)

        until(lambda: served.stats.snapshot().errors + served.stats.snapshot().cancelled == 1)
        session.gate.set()
        assert first.get(timeout=WAIT_S) is None
    assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert not session.started.acquire(blocking=False)


def test_a_request_that_its_caller_cancels_is_not_run(start: Start) -> None:
    session, served = gated()
    endpoint = start(served)
    with endpoint.client() as client:
        outcomes: SimpleQueue[Exception | None] = SimpleQueue()
        client.async_infer(MODEL, [sent(X)], lambda result, error: outcomes.put(error))
        assert session.started.acquire(timeout=WAIT_S)
        before = endpoint.tasks()
        waiting = client.async_infer(MODEL, [sent(X)], lambda result, error: outcomes.put(error))
        until(lambda: endpoint.table.place(MODEL).room.queued == 1)

        waiting.cancel()

        assert "CANCELLED" in str(outcomes.get(timeout=WAIT_S))
        until(lambda: endpoint.tasks() == before)
        session.gate.set()
        assert outcomes.get(timeout=WAIT_S) is None
        until(lambda: served.stats.snapshot().cancelled == 1)
    assert served.stats.snapshot().requests == 1
    assert not session.started.acquire(blocking=False)


def test_a_stream_that_its_caller_cancels_runs_no_further(start: Start) -> None:
    session, served = gated()
    endpoint = start(served)
    with endpoint.client() as client:
        before = endpoint.tasks()
        client.start_stream(lambda result, error: None)
        for _ in range(5):
            client.async_stream_infer(MODEL, [sent(X)])
        assert session.started.acquire(timeout=WAIT_S)
        until(lambda: endpoint.table.place(MODEL).room.queued == 4)

        client.stop_stream(cancel_requests=True)

        until(lambda: endpoint.tasks() == before)
        session.gate.set()
        until(lambda: served.stats.snapshot().cancelled == 4)
    assert not session.started.acquire(blocking=False)


def test_a_stream_whose_requests_are_not_read_yet_is_not_run_ahead_of(start: Start) -> None:
    session, served = gated()
    endpoint = start(served, config=ServingConfig(queue_max=31))  # One more would be refused.
    answers: SimpleQueue[Exception | None] = SimpleQueue()
    with endpoint.client() as client:
        client.start_stream(lambda result, error: answers.put(error))
        for _ in range(80):
            client.async_stream_infer(MODEL, [sent(X)])
        assert session.started.acquire(timeout=WAIT_S)
        until(lambda: endpoint.table.place(MODEL).room.queued == 31)

        session.gate.set()
        client.stop_stream()

        assert [answers.get(timeout=WAIT_S) for _ in range(80)] == [None] * 80


def test_stopping_answers_what_is_under_way_and_takes_nothing_more(start: Start) -> None:
    session, served = gated()
    endpoint = start(served)
    with endpoint.client() as client:
        outcomes: SimpleQueue[Exception | None] = SimpleQueue()
        client.async_infer(MODEL, [sent(X)], lambda result, error: outcomes.put(error))
        assert session.started.acquire(timeout=WAIT_S)
        stopping = asyncio.run_coroutine_threadsafe(endpoint.server.stop(WAIT_S), endpoint._loop)

        session.gate.set()

        assert outcomes.get(timeout=WAIT_S) is None
        stopping.result(WAIT_S)
        with pytest.raises(InferenceServerException) as refused:
            client.infer(MODEL, [sent(X)])
    assert refused.value.status() in ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED")


def test_stopping_ends_open_streams_when_they_are_answered(start: Start) -> None:
    session, served = gated()
    endpoint = start(served)
    answers: SimpleQueue[Exception | None] = SimpleQueue()
    with endpoint.client() as client:
        client.start_stream(lambda result, error: answers.put(error))
        for _ in range(2):
            client.async_stream_infer(MODEL, [sent(X)])
        assert session.started.acquire(timeout=WAIT_S)
        until(lambda: endpoint.table.place(MODEL).room.queued == 1)
        stopping = asyncio.run_coroutine_threadsafe(endpoint.server.stop(100 * WAIT_S), endpoint._loop)

        session.gate.set()

        assert [answers.get(timeout=WAIT_S) for _ in range(2)] == [None, None]
        stopping.result(WAIT_S)
        client.stop_stream()


def test_a_port_that_is_taken_is_an_error_of_the_system(start: Start, tmp_path: Path) -> None:
    endpoint = start(release(tmp_path, "onnxruntime"))

    async def second() -> None:
        service = Service(ServingTable())
        await serve_grpc(
            service, Admission(ServingConfig()), Regions(), port=endpoint.server.port, agent_version="0.1.0"
        )

    with pytest.raises(OSError, match="cannot listen"):
        asyncio.run(second())


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "muster_agent.serving.grpc.server", raising=False)

    async def begin() -> None:
        await serve_grpc(Service(ServingTable()), Admission(ServingConfig()), Regions(), agent_version="0.1.0")

    with pytest.raises(GrpcMissing, match=r"install muster-agent\[grpc\]"):
        asyncio.run(begin())


# -- malformed requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.raw_input_contents.append(b"more"), "fewer inputs"),
        (lambda r: r.ClearField("raw_input_contents"), "has no data"),
        (lambda r: r.inputs[0].contents.fp32_contents.extend([1, 2, 3]), "both contents and raw_input_contents"),
        (lambda r: r.inputs[0].shape.extend([1] * 100), "too many axes"),
        (lambda r: r.inputs.add(name="x", datatype="FP32", shape=[1, 3]), "has no data"),
        (lambda r: r.inputs[0].parameters["shared_memory_region"].CopyFrom(text("none")), "0 inputs take one"),
        (lambda r: [r.parameters[f"p{each}"].CopyFrom(text("")) for each in range(65)], "65 parameters"),
        (lambda r: r.parameters["timeout"].CopyFrom(text("soon")), "timeout"),
    ],
)
def test_data_that_do_not_agree_with_the_request_are_refused(
    start: Start, tmp_path: Path, change: Callable[[service_pb2.ModelInferRequest], object], words: str
) -> None:
    endpoint, request = start(release(tmp_path, "onnxruntime")), request_of()
    change(request)

    with pytest.raises(grpc.RpcError) as refused:
        endpoint.infer(request.SerializeToString())

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in refused.value.details()


@pytest.mark.parametrize(
    ("datatype", "contents", "words"),
    [
        ("FP32", {"fp32_contents": [1]}, "has 1 elements"),
        ("FP32", {"fp64_contents": [1, 2]}, "has fp64_contents; FP32 is sent as fp32_contents"),
        ("FP32", {"fp32_contents": [1, 2], "int_contents": [1]}, "has int_contents"),
        ("INT8", {"int_contents": [1, 128]}, "a number that INT8 cannot hold"),
        ("UINT16", {"uint_contents": [1, 65536]}, "a number that UINT16 cannot hold"),
        ("FP16", {"fp32_contents": [1, 2]}, "send raw_input_contents"),
        ("BYTES", {"bytes_contents": [b"one"]}, "has 1 elements"),
    ],
)
def test_contents_that_are_not_the_tensor_are_refused(
    start: Start, tmp_path: Path, datatype: DataType, contents: dict[str, list[object]], words: str
) -> None:
    endpoint = start(mirror(tmp_path, "onnxruntime", datatype))
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="x", datatype=datatype, shape=[1, 2], contents=service_pb2.InferTensorContents(**contents))

    with pytest.raises(grpc.RpcError) as refused:
        endpoint.infer(request.SerializeToString())

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in refused.value.details()


def text(value: str) -> service_pb2.InferParameter:
    return service_pb2.InferParameter(string_param=value)


INT64 = st.integers(-(2**63), 2**63 - 1)
PARAMETERS = st.dictionaries(
    st.sampled_from(
        (
            *("priority", "timeout", "sequence_id", "sequence_start", "request_key", "binary_data", "classification"),
            *("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "binary_data_size", "other"),
        )
    ),
    st.one_of(
        st.just(service_pb2.InferParameter()),
        st.booleans().map(lambda each: service_pb2.InferParameter(bool_param=each)),
        INT64.map(lambda each: service_pb2.InferParameter(int64_param=each)),
        st.integers(0, 2**64 - 1).map(lambda each: service_pb2.InferParameter(uint64_param=each)),
        st.floats().map(lambda each: service_pb2.InferParameter(double_param=each)),
        st.text(max_size=8).map(text),
    ),
    max_size=3,
)
TENSOR_CONTENTS = st.builds(
    service_pb2.InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=3),
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    fp32_contents=st.lists(st.floats(width=32), max_size=4),
    bytes_contents=st.lists(st.binary(max_size=4), max_size=3),
)
REQUESTS = st.builds(
    service_pb2.ModelInferRequest,
    model_name=st.just(MODEL),
    id=st.text(max_size=4),
    parameters=PARAMETERS,
    inputs=st.lists(
        st.builds(
            service_pb2.ModelInferRequest.InferInputTensor,
            name=st.sampled_from(["x", "x", "z", ""]),
            datatype=st.sampled_from(["FP32", "FP32", "BYTES", "FP16", "BF16", ""]),
            shape=st.one_of(st.just([1, 3]), st.lists(st.one_of(st.integers(-2, 4), INT64), max_size=20)),
            parameters=PARAMETERS,
            contents=st.one_of(st.none(), TENSOR_CONTENTS),
        ),
        max_size=3,
    ),
    outputs=st.lists(
        st.builds(
            service_pb2.ModelInferRequest.InferRequestedOutputTensor,
            name=st.sampled_from(["y", "y", "x", ""]),
            parameters=PARAMETERS,
        ),
        max_size=2,
    ),
    raw_input_contents=st.lists(st.one_of(st.just(X.tobytes()), st.binary(max_size=16)), max_size=3),
)
OUTCOMES = tuple(
    getattr(grpc.StatusCode, name) for name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED")
)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """One server for all examples: what one of them breaks, the next finds broken."""
    table = ServingTable()
    table.switch(MODEL, release(tmp_path_factory.mktemp("lasting"), "onnxruntime"))
    endpoint = Endpoint(uvloop.new_event_loop(), table, ServingConfig())
    yield endpoint
    endpoint.stop()


def survives(endpoint: Endpoint, raw: bytes) -> None:
    with grpc.insecure_channel(endpoint.url) as channel:
        outcome = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(raw, timeout=WAIT_S)
        assert outcome.code() in OUTCOMES, outcome.details()
        assert outcome.details() or outcome.code() is grpc.StatusCode.OK
    answered = endpoint.infer(request_of().SerializeToString())
    np.testing.assert_array_equal(np.frombuffer(answered.raw_output_contents[0], np.float32), X[0] + 7)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=REQUESTS)
def test_any_request_is_answered_or_told_what_is_wrong(
    lasting: Endpoint, request: service_pb2.ModelInferRequest
) -> None:
    survives(lasting, request.SerializeToString())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, 200), put=st.binary(max_size=6), cut=st.integers(0, 6))
def test_any_bytes_are_answered_or_told_what_is_wrong(lasting: Endpoint, at: int, put: bytes, cut: int) -> None:
    raw = request_of(id="r", parameters={"priority": text("soon")}).SerializeToString()
    at %= len(raw) + 1

    survives(lasting, raw[:at] + put + raw[at + cut :])
