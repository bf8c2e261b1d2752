"""A service without fronts and sockets: one model in memory, on a loop of its own."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping

import numpy as np
import pytest

from muster_agent.core.plan import ServingPlan
from muster_agent.engines.port import Achieved, Array
from muster_agent.serving import service
from muster_agent.serving.call import Priority
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.service import Anybody, AwaitedCall, Service
from muster_agent.serving.table import Place, Served, ServingTable
from muster_shared.bundle import Golden, Manifest, Serving, StateTensor, TensorSpec, Variant, describe_file
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName, Sha256

MODEL = ModelName("echo")
INLINE, THREAD = ServingPlan(inline=True, batch_max=4), ServingPlan(inline=False, batch_max=1)
WAIT_S = 10.0
X, S = (TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in ("x", "s"))
STATEFUL = Serving(state=(StateTensor(input="s", output="s_next"),))
CACHED = Serving(cache=True)


class Engine:
    """Answers each output with x, on a gate and unless it is ill."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 1

    def __init__(self, outputs: int = 1) -> None:
        self.outputs = outputs
        self.calls = 0
        self.error: Exception | None = None

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return [arrays[0].copy() for _ in range(self.outputs)]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("requests that are served come by run_arrays")

    def close(self) -> None:
        """Hold nothing."""


def served(engine: Engine, version: int = 1, serving: Serving | None = None, plan: ServingPlan = INLINE) -> Served:
    declared = serving or Serving()
    y = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
    after = TensorSpec(name="s_next", datatype="FP32", shape=(-1, 2))
    manifest = Manifest(
        model=MODEL,
        version=f"1.0.{version}",
        release=version,
        inputs=(X, S) if declared.state else (X,),
        outputs=(y, after) if declared.state else (y,),
        files=(describe_file("m.onnx", b"m"),),
        variants=(Variant(name="v", runtime="onnxruntime", precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="m.onnx"),
        serving=declared,
    )
    engine.outputs = len(manifest.outputs)
    return Served(
        manifest=manifest, manifest_sha256=Sha256(f"{version:064x}"), session=engine, latency_ms=1.0, plan=plan
    )


class Gated(Engine):
    """Calls wait until the test lets them go, in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Semaphore(0)
        self.gate = threading.Event()

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        self.began.release()
        assert self.gate.wait(WAIT_S)
        return super().run_arrays(arrays)


class Setup:
    """A service with one model, on a loop."""

    def __init__(self, release: Served, config: ServingConfig) -> None:
        self.table = ServingTable(config)
        self.service = Service(self.table, config)
        self.table.switch(MODEL, release)
        self.pending: list[AwaitedCall] = []

    @property
    def place(self) -> Place:
        return self.table.place(MODEL)

    def submit(
        self,
        number: float = 1.0,
        *,
        caller: service.Caller | None = None,
        sequence: tuple[int | str, bool, bool] | None = None,
        priority: Priority = Priority.NOW,
        request_id: str = "",
    ) -> AwaitedCall:
        call = AwaitedCall((np.full((1, 2), number, np.float32).tobytes(),), ((2,),), 1, request_id=request_id)
        call.sequence = sequence
        call.priority = priority
        self.service.submit(self.service.enter(MODEL), call, caller or Anybody())
        self.pending.append(call)
        return call

    async def refusal(self, *, sequence: tuple[int | str, bool, bool] | None = None) -> MusterError:
        with pytest.raises(MusterError) as caught:
            await self.submit(sequence=sequence).outcome
        return caught.value


Scenario = Callable[[Setup], Awaitable[None]]


def play(scenario: Scenario, release: Served, config: ServingConfig | None = None) -> Setup:
    """Play a scenario, and check that everybody has left in the end."""

    async def run() -> Setup:
        setup = Setup(release, config or ServingConfig())
        places = [setup.place]
        try:
            await scenario(setup)
            await asyncio.gather(*(call.outcome for call in setup.pending), return_exceptions=True)
            places += [beside.place for beside in setup.table.trials.values()]
        finally:
            assert await asyncio.to_thread(setup.table.close, WAIT_S)
        assert all(place._guests == 0 for place in places)
        assert all(not place.misses for place in places)
        assert not setup.service._turns
        return setup

    return asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    """Wait for `holds`, until the deadline."""
    for _ in range(int(WAIT_S / 0.001)):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come true in time")
