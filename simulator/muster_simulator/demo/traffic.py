"""Local applications: they ask the agents of this machine all the time, tell them what was right, and count.

    for each agent and model, a thread:   infer (binary tensors, keep-alive) ─▶ answer ─▶ feedback: the true label

They walk through the workload's labelled inputs in an order of their own. A client looks at the served model's metadata
before it encodes; when a new release takes other tensors, one request is refused, the client looks again and asks anew.
"""

import http.client
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from muster_shared.bundle import TensorSpec
from muster_shared.ids import DeviceId, ModelName
from muster_simulator.workloads.labelled import LabelledInputs

TIMEOUT_S = 10.0
ASK_READY_EVERY_S = 0.2
TRIES = 3  # Two releases within one request would be a bug.
RECONNECT_S = 0.2
FAILURES_KEPT = 20
_HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Endpoint:
    """Where an agent listens."""

    device: DeviceId
    host: str
    port: int


@dataclass
class Seen:
    """What applications saw of one version of a model on one device."""

    requests: int = 0
    labelled: int = 0
    right: int = 0

    @property
    def accuracy(self) -> float | None:
        return self.right / self.labelled if self.labelled else None

    def plus(self, other: "Seen") -> "Seen":
        return Seen(self.requests + other.requests, self.labelled + other.labelled, self.right + other.right)


@dataclass(frozen=True)
class Report:
    """All counts, as of now."""

    at: float
    seen: Mapping[tuple[DeviceId, ModelName, str], Seen]
    failed: int
    """Requests without an answer that no outage of ours explains."""
    while_down: int
    """Requests to an agent between its end and its first answer after."""
    asked_anew: int
    """Requests that were encoded again because a new release takes other tensors."""
    failures: Sequence[str]
    """The first of them, in words."""

    @property
    def requests(self) -> int:
        return sum(seen.requests for seen in self.seen.values())

    def by_version(self) -> dict[ModelName, dict[str, Seen]]:
        """Return what was seen by model and version, on all devices, in order."""
        found: dict[ModelName, dict[str, Seen]] = {}
        for (_, model, version), seen in sorted(self.seen.items()):
            versions = found.setdefault(model, {})
            versions[version] = versions.get(version, Seen()).plus(seen)
        return found


@dataclass
class _Counts:
    """Of one worker; only it writes."""

    seen: dict[str, Seen] = field(default_factory=dict)
    failed: int = 0
    while_down: int = 0
    asked_anew: int = 0
    failures: list[str] = field(default_factory=list)


class RequestFailed(Exception):
    """No answer: the agent is gone, or refused what fits its own metadata."""


class Traffic:
    """Every agent's applications. `start`, `report` at any time, `stop`."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        workloads: Mapping[ModelName, LabelledInputs],
        requests_per_s: Mapping[ModelName, float],
        seed: int = 0,
    ) -> None:
        self._stopping = threading.Event()
        encoded = {model: _Encoded(workload) for model, workload in workloads.items()}
        self._workers = [
            _Worker(endpoint, encoded[model], requests_per_s[model], f"{seed}-{endpoint.device}", self._stopping)
            for endpoint in endpoints
            for model in sorted(workloads)
        ]

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        self._stopping.set()
        for worker in self._workers:
            if worker.is_alive():
                worker.join(TIMEOUT_S)

    def expect_outage(self, device: DeviceId) -> None:
        """From now until its next answer, `device` may fail: we are about to end it."""
        for worker in self._workers:
            if worker.device == device:
                worker.is_down.set()

    def report(self) -> Report:
        counts = [worker.counts for worker in self._workers]
        return Report(
            at=time.monotonic(),
            seen={
                (worker.device, worker.model, version): Seen(seen.requests, seen.labelled, seen.right)
                for worker in self._workers
                for version, seen in list(worker.counts.seen.items())
            },
            failed=sum(each.failed for each in counts),
            while_down=sum(each.while_down for each in counts),
            asked_anew=sum(each.asked_anew for each in counts),
            failures=tuple(failure for each in counts for failure in each.failures)[:FAILURES_KEPT],
        )


class _Encoded:
    """The labelled inputs as request bodies, made once for each tensor that a release takes."""

    def __init__(self, workload: LabelledInputs) -> None:
        self.workload = workload
        self._bodies: dict[tuple[TensorSpec, str, int], tuple[bytes, int]] = {}

    def body(self, tensor: TensorSpec, output: str, index: int) -> tuple[bytes, int]:
        """Return the V2 request of input `index`, and the length of its JSON header."""
        key = (tensor, output, index)
        if key not in self._bodies:  # Two threads may both make it; they make the same.
            array = self.workload.encode(tensor, self.workload.contents[index])
            raw = np.ascontiguousarray(array).tobytes()
            described = {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(raw)},
            }
            wanted = {"name": output, "parameters": {"binary_data": True}}
            header = json.dumps({"inputs": [described], "outputs": [wanted]}).encode()
            self._bodies[key] = (header + raw, len(header))
        return self._bodies[key]


class _Worker(threading.Thread):
    """One application: one agent, one model, one connection."""

    def __init__(
        self, endpoint: Endpoint, encoded: _Encoded, requests_per_s: float, seed: str, stopping: threading.Event
    ) -> None:
        super().__init__(name=f"traffic-{endpoint.device}-{encoded.workload.model}", daemon=True)
        self.device = endpoint.device
        self.model = encoded.workload.model
        self.counts = _Counts()
        self.is_down = threading.Event()
        self._endpoint = endpoint
        self._encoded = encoded
        self._every_s = 1.0 / requests_per_s
        self._stopping = stopping
        self._chance = random.Random(f"{seed}-{self.model}")
        self._connection: http.client.HTTPConnection | None = None
        self._tensors: tuple[TensorSpec, str] | None = None

    def run(self) -> None:
        while not self._is_ready():
            if self._stopping.wait(ASK_READY_EVERY_S):
                return
        order = list(range(len(self._encoded.workload)))
        self._chance.shuffle(order)
        due = time.monotonic() + self._chance.random() * self._every_s  # Or all would ask at once.
        number = 0
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            self._ask_once(order[number % len(order)])
            number += 1
            due = max(due + self._every_s, time.monotonic() - 1.0)  # A backlog of a second is made up, no more.
        self._hang_up()

    def _is_ready(self) -> bool:
        """Whether the model serves for the first time; asking for it before is no request of an application."""
        try:
            status, _, _ = self._exchange("GET", f"/v2/models/{self.model}/ready")
        except (OSError, http.client.HTTPException):
            self._hang_up()
            return False
        return status == http.client.OK

    def _ask_once(self, index: int) -> None:
        is_anew = self._connection is None
        try:
            version, request_id = self._infer(index)
            seen = self.counts.seen.setdefault(version, Seen())
            seen.requests += 1
            if is_anew:  # An answer over the old connection may be from just before the end.
                self.is_down.clear()
            right = self._label(request_id, self._encoded.workload.truths[index])
            if right is not None:
                seen.labelled += 1
                seen.right += right
        except (OSError, http.client.HTTPException, RequestFailed) as error:
            self._hang_up()
            self._tensors = None
            if self.is_down.is_set():
                self.counts.while_down += 1
            else:
                self.counts.failed += 1
                if len(self.counts.failures) < FAILURES_KEPT:
                    self.counts.failures.append(f"{self.device} {self.model}: {type(error).__name__}: {error}")
            self._stopping.wait(RECONNECT_S)

    def _infer(self, index: int) -> tuple[str, str]:
        """Return the version that answered and the request's id. Raises RequestFailed, OSError, HTTPException."""
        said = ""
        for _ in range(TRIES):
            before = self._tensors or self._look()
            body, header_length = self._encoded.body(*before, index)
            headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(header_length)}
            path = f"/v2/models/{self.model}/infer"
            status, answered, raw = self._exchange("POST", path, body, headers)
            if status == http.client.OK:
                length = answered.get(_HEADER_LENGTH)
                answer = json.loads(raw if length is None else raw[: int(length)])
                return answer["model_version"], answer["id"]
            said = f"{status} {raw[:200].decode(errors='replace')}"
            if status != http.client.BAD_REQUEST or self._look() == before:
                break
            self.counts.asked_anew += 1
        raise RequestFailed(said)

    def _look(self) -> tuple[TensorSpec, str]:
        """Return what the served model takes and the name of its output."""
        status, _, raw = self._exchange("GET", f"/v2/models/{self.model}")
        if status != http.client.OK:
            raise RequestFailed(f"{status} {raw[:200].decode(errors='replace')}")
        said = json.loads(raw)
        tensor = said["inputs"][0]
        spec = TensorSpec(name=tensor["name"], datatype=tensor["datatype"], shape=tuple(tensor["shape"]))
        self._tensors = (spec, said["outputs"][0]["name"])
        return self._tensors

    def _label(self, request_id: str, truth: str) -> bool | None:
        """Tell the agent what was right; return what it says of its answer, None when it has forgotten it."""
        body = json.dumps({"id": request_id, "label": truth}).encode()
        headers = {"Content-Type": "application/json"}
        status, _, raw = self._exchange("POST", f"/v1/models/{self.model}/feedback", body, headers)
        return bool(json.loads(raw)["right"]) if status == http.client.OK else None

    def _exchange(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._endpoint.host, self._endpoint.port, timeout=TIMEOUT_S)
        self._connection.request(method, path, body, dict(headers or {}))
        response = self._connection.getresponse()
        return response.status, response.headers, response.read()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
