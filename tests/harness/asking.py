"""Asking an endpoint as a program would, and engines in memory that do what a test says."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import numpy as np
import uvloop

from harness.endpoint import MODEL, THREADS, WAIT_S, Endpoint, describe, served_by
from muster_agent.core.plan import ServingPlan
from muster_agent.engines.port import Achieved, Array
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.table import Served
from muster_shared.bundle import Serving
from muster_shared.ids import ModelName

Answering = Callable[[Array], Array]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> list[float]:
        """The first output, flat."""
        assert self.status == 200, self.body
        data: list[float] = self.json["outputs"][0]["data"]
        return data

    @property
    def version(self) -> str:
        """Of the release that answered."""
        version: str = self.json["model_version"]
        return version

    @property
    def error(self) -> str:
        assert self.status != 200
        error: str = self.json["error"]
        return error


class Program:
    """One connection, kept open."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=WAIT_S)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Send `body` as JSON; a header's name has underscores for its dashes."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        self._connection.request(method, path, raw, {name.replace("_", "-"): text for name, text in headers.items()})
        response = self._connection.getresponse()
        named = {name.lower(): text for name, text in response.getheaders()}
        return Answer(response.status, named, response.read())

    def infer(
        self, *rows: Sequence[float], model: str = MODEL, parameters: Mapping[str, object] | None = None, **headers: str
    ) -> Answer:
        """Ask a model with one input, x: FP32 [N, K]."""
        given = rows or ((1.0, 2.0, 3.0),)
        data = [number for row in given for number in row]
        x = {"name": "x", "shape": [len(given), len(given[0])], "datatype": "FP32", "data": data}
        body: dict[str, object] = {"inputs": [x]}
        if parameters is not None:
            body["parameters"] = parameters
        return self.ask("POST", f"/v2/models/{model}/infer", body, **headers)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def program(endpoint: Endpoint) -> Iterator[Program]:
    """Be a program that asks `endpoint`."""
    asking = Program(endpoint.port)
    try:
        yield asking
    finally:
        asking.close()


@contextmanager
def serving(*served: Served, config: ServingConfig | None = None) -> Iterator[Endpoint]:
    """Run an endpoint as the daemon does: on uvloop, in a thread of its own."""
    running = Endpoint(uvloop.new_event_loop(), *served, config=config)
    try:
        yield running
    finally:
        running.stop()


def guests(endpoint: Endpoint, model: ModelName = MODEL) -> int:
    """Return how many requests are in the place that serves `model`."""
    place = endpoint.table.place(model)
    with place._lock:
        return place._guests


class Scripted:
    """An engine in memory for models with one input and one output: it answers `answer(x)`, and remembers every x."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 8

    def __init__(self, answer: Answering = lambda x: x, *, shut: bool = False) -> None:
        """
        Args:
            shut: Calls wait until `gate` is set.
        """
        self.answer = answer
        self.seen: list[Array] = []
        self.began = threading.Semaphore(0)
        self.gate = threading.Event()
        self.closed = threading.Event()
        if not shut:
            self.gate.set()

    @property
    def calls(self) -> int:
        return len(self.seen)

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        self.seen.append(arrays[0].copy())
        self.began.release()
        assert self.gate.wait(WAIT_S)
        assert not self.closed.is_set()
        return [self.answer(arrays[0])]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("requests that are served come by run_arrays")

    def close(self) -> None:
        self.closed.set()


def scripted(
    engine: Scripted, constant: int = 1, *, plan: ServingPlan = THREADS, serving: Serving | None = None
) -> Served:
    """A release of `sums`, version 1.0.<constant>, that `engine` answers."""
    return served_by(engine, describe("onnxruntime", constant, serving or Serving()), plan)


def plus(constant: float) -> Answering:
    """Answer as release 1.0.<constant> of `sums` does."""
    return lambda x: np.add(x, constant, dtype=np.float32, casting="unsafe")
