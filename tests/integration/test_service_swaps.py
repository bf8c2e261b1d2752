"""Hot swaps under load over HTTP: no request fails, none is answered by one release in the name of another.

Release 1.0.<c> answers x + c, so that each answer proves whose it is.
"""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.asking import Program, guests, program, serving
from harness.endpoint import INLINE, MODEL, WAIT_S, Endpoint, release, until
from muster_agent.core.plan import ServingPlan
from muster_agent.core.split import Mode
from muster_agent.engines import registry
from muster_agent.serving.table import Place
from muster_shared.bundle import Runtime

CLIENTS = 8
SWITCHES = 30
THREADED = ServingPlan(inline=False, batch_max=8, instances_max=2)
PLANS = pytest.mark.parametrize("plan", [INLINE, THREADED], ids=["inline", "threads"])
ENGINES = pytest.mark.parametrize("runtime", registry.RUNTIMES)


class Load:
    """Programs that ask without a pause until they are told to stop, and what went wrong."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._stop = threading.Event()
        self.served: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._programs = ThreadPoolExecutor(CLIENTS)
        self._running = [self._programs.submit(self._ask_on, number) for number in range(CLIENTS)]

    def _ask_on(self, number: int) -> None:
        with program(self._endpoint) as asking:
            at = 0
            while not self._stop.is_set():
                at += 1
                self._ask(asking, float(number * 1000 + at % 1000))

    def _ask(self, asking: Program, x: float) -> None:
        answer = asking.infer((x, x, x), Muster_Request_Key=f"{x}")
        if answer.status != 200:
            self.wrong.append(f"{answer.status}: {answer.body!r}")
            return
        constant = float(answer.version.rpartition(".")[2])
        digest = answer.json["parameters"]["digest"]
        if answer.data != [x + constant] * 3 or answer.json["parameters"]["version"] != answer.version or not digest:
            self.wrong.append(f"{answer.version} says {answer.data} to {x}")
        self.served[answer.version] += 1

    def until_more(self, count: int) -> None:
        """Wait for more answers."""
        enough = self.served.total() + count
        until(lambda: self.served.total() >= enough or bool(self.wrong))

    def end(self) -> None:
        self._stop.set()
        for running in self._running:
            running.result(WAIT_S)
        self._programs.shutdown()


@ENGINES
@PLANS
def test_no_request_fails_over_thirty_switches(tmp_path: Path, runtime: Runtime, plan: ServingPlan) -> None:
    places: list[Place] = []

    with serving(release(tmp_path, runtime, 0, plan)) as endpoint:
        load = Load(endpoint)
        try:
            for switch in range(1, SWITCHES + 1):
                places.append(endpoint.table.place(MODEL))
                endpoint.table.switch(MODEL, release(tmp_path, runtime, switch % 2, plan))
                load.until_more(CLIENTS)
        finally:
            load.end()
        closed = [place.closed.wait(WAIT_S) for place in places]
        until(lambda: guests(endpoint) == 0)

    assert load.wrong == []
    assert min(load.served["1.0.0"], load.served["1.0.1"]) > CLIENTS
    assert closed == [True] * SWITCHES
    assert all(place._guests == 0 for place in places)


@pytest.mark.parametrize("mode", Mode)
@PLANS
def test_no_request_fails_while_trials_come_and_go(tmp_path: Path, plan: ServingPlan, mode: Mode) -> None:
    candidates: list[Place] = []

    with serving(release(tmp_path, "onnxruntime", 0, plan)) as endpoint:
        load = Load(endpoint)
        try:
            for _ in range(10):
                endpoint.table.begin_trial(release(tmp_path, "onnxruntime", 1, plan), mode, 0.5, lambda: 0.3)
                candidates.append(endpoint.table.trials[MODEL].place)
                load.until_more(CLIENTS)
                endpoint.table.end_trial(MODEL)
        finally:
            load.end()
        closed = [place.closed.wait(WAIT_S) for place in candidates]

    assert load.wrong == []
    assert (load.served["1.0.1"] > 0) == (mode is Mode.CANARY)
    assert closed == [True] * 10
