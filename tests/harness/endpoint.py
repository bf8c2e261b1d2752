"""A serving endpoint on a thread of its own, and releases small enough to make in a test."""

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import TypeVar

import numpy as np
from onnx import TensorProto, helper

from muster_agent.core.plan import ServingPlan
from muster_agent.engines import registry
from muster_agent.engines.port import Achieved, Array, Session
from muster_agent.serving.admission import Admission
from muster_agent.serving.app import App, Repository
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.http import HttpServer, Limits, serve
from muster_agent.serving.service import Service
from muster_agent.serving.shared_memory import Regions
from muster_agent.serving.spill import Spill
from muster_agent.serving.stats import Snapshot
from muster_agent.serving.table import Served, ServingTable
from muster_shared.bundle import Golden, Manifest, Runtime, Serving, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName, Sha256

MODEL = ModelName("sums")
WAIT_S = 20.0
X = np.array([[1, 2, 3]], np.float32)
INLINE = ServingPlan(inline=True, batch_max=8)
THREADS = ServingPlan(inline=False, batch_max=1)
T = TypeVar("T")


class Endpoint:
    """A server on its own loop and thread, as the daemon runs it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *served: Served,
        config: ServingConfig | None = None,
        limits: Limits | None = None,
        unix_path: Path | None = None,
        repository: Repository | None = None,
    ) -> None:
        config = config or ServingConfig()
        self.table = ServingTable(config)
        self.regions = Regions()
        for release in served:
            self.table.switch(release.manifest.model, release)
        self.service = Service(self.table, config)
        self.spill = None if config.upstream is None else Spill(config.upstream)
        app = App(
            self.service,
            agent_version="0.1.0",
            admission=Admission(config),
            regions=self.regions,
            repository=repository,
            spill=self.spill,
        )
        self._loop = loop
        self._thread = threading.Thread(target=loop.run_forever)
        self._thread.start()

        async def start() -> HttpServer:
            return await serve(app, port=0, limits=limits, unix_path=unix_path)

        self.server = asyncio.run_coroutine_threadsafe(start(), loop).result(WAIT_S)
        assert self.server.port is not None
        self.port = self.server.port

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        connection.request(method, path, body, dict(headers or {}))
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

    def on_loop(self, act: Callable[[], T]) -> T:
        """Return what `act` returns on the serving loop."""

        async def run() -> T:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_S)

    def counts(self, served: Served) -> Snapshot:
        """Return what `served` has counted, with all that was answered: the loop answers first and counts then."""

        async def read() -> Snapshot:
            return served.stats.snapshot()

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(WAIT_S)

    def stop(self) -> None:
        if self.spill is not None:
            self.on_loop(self.spill.close)
        asyncio.run_coroutine_threadsafe(self.server.stop(WAIT_S), self._loop).result(WAIT_S)
        assert self.table.close(WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()
        self.regions.close()


def release(folder: Path, runtime: Runtime, constant: int, plan: ServingPlan = INLINE) -> Served:
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
    return served_by(session, manifest, plan)


def describe(runtime: Runtime, constant: int, serving: Serving = Serving()) -> Manifest:  # noqa: B008 - It is frozen.
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
        serving=serving,
    )


def served_by(session: Session, manifest: Manifest, plan: ServingPlan = THREADS) -> Served:
    return Served(
        manifest=manifest,
        manifest_sha256=Sha256(f"{manifest.release:064x}"),
        session=session,
        latency_ms=1.0,
        plan=plan,
        variant="v",
    )


class GatedSession:
    """An engine that answers y = x when it is let: it makes a slow model without slow tests."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 1

    def __init__(self, error: Exception | None = None) -> None:
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.closed = threading.Event()
        self.calls = 0
        self.error = error

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        self.calls += 1
        self.started.release()
        assert self.gate.wait(WAIT_S)
        assert not self.closed.is_set()
        if self.error is not None:
            raise self.error
        return [arrays[0]]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self.run_arrays((inputs["x"],))[0]}

    def close(self) -> None:
        self.closed.set()


def until(holds: Callable[[], bool]) -> None:
    """Wait for `holds`, until the deadline."""
    never = threading.Event()
    for _ in range(int(WAIT_S / 0.005)):
        if holds():
            return
        never.wait(0.005)
    raise AssertionError("it did not come true in time")
