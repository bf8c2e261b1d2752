"""A fleet of one: a real agent process, a real broker, real keys, and a controller as small as it can be.

It holds no rollout and no database; what the whole controller does is tested with the whole controller.
"""

import http.client
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper
from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, Timestamp

from harness.bundles import release_ref
from muster_controller.broker.embedded import BrokerKind, EmbeddedBroker, start_broker
from muster_controller.registry.keys import load_signer
from muster_controller.registry.operator import init_operator, sign_release
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.assignment import Assignment, ModelAssignment, Watch, sign
from muster_shared.bundle import (
    CHUNK_BYTES,
    Golden,
    HardwareMatch,
    Manifest,
    Runtime,
    TensorSpec,
    Variant,
    describe_file,
    digest,
    encode_manifest,
    parse_manifest,
)
from muster_shared.call import LIFETIME_S, Call, CallKind, sign_call
from muster_shared.ids import DeviceId, FleetId, ModelName, Sha256
from muster_shared.link import Link, LinkConfig, LinkItem, Received, parse_broker_url
from muster_shared.messages import (
    Ack,
    Answer,
    AssignmentRefused,
    Event,
    Presence,
    ReleaseRef,
    Step,
    StepReached,
    TrustFiles,
    Twin,
    Want,
    decode,
    encode,
    unpack_bits,
)
from muster_shared.topics import (
    Channel,
    ChunkTopic,
    DeviceTopic,
    TrustTopic,
    WantTopic,
    build,
    controller_filters,
    parse,
)

MODEL = ModelName("scale")
DEVICE = DeviceId("edge-1")
TIMEOUT_S = 30.0
T = TypeVar("T")
WEIGHT_CHUNKS = 48  # More than the agent takes for bad luck of the line.


@dataclass
class Works:
    """Whoever publishes: bundles, offline keys, the repository and its online keys."""

    folder: Path
    repository: TufRepository
    blobs: dict[Sha256, bytes] = field(default_factory=dict)
    manifests: dict[Sha256, Manifest] = field(default_factory=dict)
    releases: int = 0

    @classmethod
    def open(
        cls, folder: Path, models: Sequence[ModelName] = (MODEL,), mixers: Mapping[str, bytes] | None = None
    ) -> "Works":
        online = create_online_keys(folder / "controller")
        repository = TufRepository(folder / "controller")
        offline = init_operator(folder / "operator", list(models), online, now(), mixers=mixers)
        repository.accept_offline(offline.root, offline.targets, offline.keys, now())
        return cls(folder, repository)

    def release(
        self,
        version: str,
        *,
        factor: float,
        golden_factor: float | None = None,
        hardware: HardwareMatch | None = None,
        signed: bool = True,
        weight_chunks: int = WEIGHT_CHUNKS,
    ) -> ReleaseRef:
        """Publish a model that multiplies by `factor`."""
        self.releases += 1
        golden = self.folder / f"{version}.npz"
        inputs = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
        arrays: dict[str, Any] = {"input.x": inputs, "output.y": inputs * np.float32(golden_factor or factor)}
        np.savez(golden, **arrays)
        contents = {
            "model.onnx": scaling_model(factor),
            "weights.bin": random.Random(version).randbytes(weight_chunks * 1024),
            "golden.npz": golden.read_bytes(),
        }
        manifest = Manifest(
            model=MODEL,
            version=version,
            release=self.releases,
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
            files=tuple(
                describe_file(path, raw, 1024 if path == "weights.bin" else CHUNK_BYTES)
                for path, raw in contents.items()
            ),
            variants=(
                Variant(
                    name="cpu",
                    runtime="onnxruntime",
                    precision="fp32",
                    files=("model.onnx", "weights.bin"),
                    hardware=hardware or HardwareMatch(),
                ),
            ),
            golden=Golden(file="golden.npz"),
        )
        raw = encode_manifest(manifest)
        bundle = self.folder / f"bundle-{version}"
        bundle.mkdir()
        for path, content in {**contents, "bundle.json": raw}.items():
            (bundle / path).write_bytes(content)
        return self.publish(bundle, signed=signed)

    def publish(self, bundle: Path, *, signed: bool = True) -> ReleaseRef:
        """Publish a bundle folder as it is."""
        raw = (bundle / "bundle.json").read_bytes()
        manifest = parse_manifest(raw)
        for path in ("bundle.json", *(file.path for file in manifest.files)):
            content = (bundle / path).read_bytes()
            self.blobs[digest(content)] = content
        self.manifests[digest(raw)] = manifest
        if signed:
            role = f"release-{manifest.model}"
            done = sign_release(self.folder / "operator", bundle, self.repository.role_metadata(role), now())
            self.repository.accept_release(role, done.metadata, raw, now())
        return release_ref(raw)

    def expired_timestamp(self) -> tuple[TrustFiles, ...]:
        """Return the trust messages as a frozen repository has them: correctly signed, and past their date."""
        return self._with_timestamp(
            load_signer(self.folder / "controller" / "keys" / "timestamp.pem"), now() - timedelta(hours=1)
        )

    def forged_timestamp(self) -> tuple[TrustFiles, ...]:
        """Return the trust messages as somebody else would have them: newer, and signed with a key of his own."""
        return self._with_timestamp(CryptoSigner.generate_ed25519(), now() + timedelta(days=1))

    def _with_timestamp(self, signer: Signer, expires: datetime) -> tuple[TrustFiles, ...]:
        messages = {message.role: message for message in self.repository.trust_messages()}
        timestamp = Metadata[Timestamp].from_bytes(messages["timestamp"].files["timestamp.json"].encode())
        timestamp.signed.version += 1
        timestamp.signed.expires = expires.replace(microsecond=0)
        timestamp.sign(signer)
        text = timestamp.to_bytes().decode()
        return (
            *(message for role, message in messages.items() if role != "timestamp"),
            TrustFiles(role="timestamp", files={"timestamp.json": text}),
        )


@dataclass
class Agent:
    """An agent process."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    port: int

    @classmethod
    def start(cls, folder: Path, *, broker_url: str) -> "Agent":
        port = free_port()
        environment = {
            **os.environ,
            "MUSTER_AGENT_BROKER_URL": broker_url,
            "MUSTER_AGENT_HTTP_LISTEN": f"127.0.0.1:{port}",
        }
        command = [sys.executable, "-m", "muster_agent.cli", "run", "--config", str(folder / "agent.toml")]
        with (folder / "agent.log").open("ab") as output:
            return cls(subprocess.Popen(command, stderr=output, env=environment), folder, port)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Fleet:
    """A controller as small as it can be, and one agent that serves release 1.0.0 by its assignment 1."""

    def __init__(
        self, works: Works, broker: EmbeddedBroker, fleet: FleetId, folder: Path, runtime: Runtime = "onnxruntime"
    ) -> None:
        self.works = works
        self.fleet = fleet
        self._is_frozen = False
        self.tampered: set[Sha256] = set()
        self.events: dict[str, Event] = {}
        self.presences: list[Presence] = []
        self.twins: list[Twin] = []
        self.answers: list[Answer] = []
        self._items: queue.Queue[LinkItem | None] = queue.Queue()
        config = LinkConfig(parse_broker_url(broker.url), client_id=f"controller-{fleet}")
        self.link = Link(config, self._items.put, rng=random.Random(7))
        self.link.subscribe(controller_filters(fleet))
        self._thread = threading.Thread(target=self._serve, daemon=True)

        (folder / "root.json").write_bytes(works.repository.bootstrap_root())
        (folder / "agent.toml").write_text(
            f'fleet = "{fleet}"\ndevice = "{DEVICE}"\ndevice_class = "lab"\nbroker_url = "{broker.url}"\n'
            f'data_dir = "{folder / "data"}"\nbootstrap_root = "{folder / "root.json"}"\nthreads = 1\n'
            f'runtimes = ["{runtime}"]\n'
        )
        self._thread.start()
        self.link.start()
        self.agent = Agent.start(folder, broker_url=broker.url)
        self.first_answer = [2.0, 4.0]

    def close(self) -> None:
        if self.agent.process.poll() is None:
            self.agent.stop()
        self.link.stop(5.0)
        self._items.put(None)
        self._thread.join(5.0)

    def publish(
        self, topic: DeviceTopic | TrustTopic | ChunkTopic, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        self.link.publish(build(self.fleet, topic), payload, qos=1 if qos else 0, retain=retain)

    def freeze(self) -> None:
        """Publish metadata that has expired, and nothing newer from now on."""
        self._is_frozen = True
        self.publish_trust(self.works.expired_timestamp())

    def publish_trust(self, messages: tuple[TrustFiles, ...]) -> None:
        for message in messages:
            self.publish(TrustTopic(message.role), encode(message), retain=True)

    def assign(
        self,
        counter: int,
        release: ReleaseRef,
        *,
        device: DeviceId = DEVICE,
        expires_at: float | None = None,
        signer: Signer | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Publish what is trusted now, and a signed assignment on the topic of our device."""
        if not self._is_frozen:
            self.publish_trust(self.works.repository.trust_messages())
        assignment = Assignment(
            fleet=self.fleet,
            device=device,
            counter=counter,
            issued_at=time.time(),
            expires_at=expires_at or time.time() + 3600,
            models=(ModelAssignment(release=release, watch=watch),),
        )
        raw = self.works.repository.sign_assignment(assignment) if signer is None else sign(assignment, signer)
        self.publish(DeviceTopic(DEVICE, Channel.ASSIGNMENT), raw, retain=True)

    def call(
        self,
        name: str,
        what: CallKind,
        *,
        device: DeviceId = DEVICE,
        lines: int = 0,
        age_s: float = 0.0,
        signer: Signer | None = None,
    ) -> bytes:
        """Publish a call on the topic of our device, and return it as it was published."""
        at = time.time() - age_s
        call = Call(
            fleet=self.fleet,
            device=device,
            id=name,
            what=what,
            lines=lines,
            issued_at=at,
            expires_at=at + LIFETIME_S,
        )
        raw = self.works.repository.sign_call(call) if signer is None else sign_call(call, signer)
        self.publish(DeviceTopic(DEVICE, Channel.CALL), raw)
        return raw

    def wait_for_answer(self, name: str) -> Answer:
        def answered() -> Answer | None:
            return next((each for each in list(self.answers) if each.id == name), None)

        return wait_until(answered, self._logs)

    def wait_for_step(self, release: ReleaseRef, step: Step) -> StepReached:
        def reached() -> StepReached | None:
            for event in list(self.events.values()):
                body = event.body
                if isinstance(body, StepReached) and (body.release, body.step) == (release, step):
                    return body
            return None

        return wait_until(reached, self._logs)

    def wait_for_failure(self, release: ReleaseRef) -> StepReached:
        return self.wait_for_step(release, Step.FAILED)

    def wait_for_refusal(self) -> AssignmentRefused:
        def refused() -> AssignmentRefused | None:
            bodies = [event.body for event in list(self.events.values())]
            return next((body for body in bodies if isinstance(body, AssignmentRefused)), None)

        return wait_until(refused, self._logs)

    def answer(self) -> list[float]:
        """Return what the agent answers to [1, 2] over HTTP, once it answers."""
        request = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}

        def asked() -> list[float] | None:
            connection = http.client.HTTPConnection("127.0.0.1", self.agent.port, timeout=5)
            try:
                connection.request("POST", f"/v2/models/{MODEL}/infer", json.dumps(request))
                response = connection.getresponse()
                body = json.loads(response.read())
            except OSError:
                return None
            finally:
                connection.close()
            if response.status != 200:
                return None
            answer: list[float] = body["outputs"][0]["data"]
            return answer

        return wait_until(asked, self._logs)

    def _logs(self) -> str:
        return (self.agent.folder / "agent.log").read_text()[-4000:]

    def _serve(self) -> None:
        while (item := self._items.get()) is not None:
            if isinstance(item, Received):
                self._received(item)
                self.link.ack(item.token)

    def _received(self, item: Received) -> None:
        match parse(self.fleet, item.topic):
            case DeviceTopic(device, Channel.EVENT):
                event = decode(item.payload, Event)
                self.events[event.id] = event
                self.publish(DeviceTopic(device, Channel.ACK), encode(Ack(ids=(event.id,))))
            case DeviceTopic(_, Channel.ANSWER):
                self.answers.append(decode(item.payload, Answer))
            case DeviceTopic(_, Channel.PRESENCE):
                self.presences.append(decode(item.payload, Presence))
            case DeviceTopic(_, Channel.TWIN):
                self.twins.append(decode(item.payload, Twin))
            case WantTopic(sha256):
                want = decode(item.payload, Want)
                content = self.works.blobs[sha256]
                if sha256 in self.tampered:
                    content = bytes(byte ^ 1 for byte in content)
                for index in unpack_bits(want.missing, -(-want.length // want.chunk_bytes)):
                    start = index * want.chunk_bytes
                    self.publish(ChunkTopic(sha256, index), content[start : start + want.chunk_bytes], qos=0)


@contextmanager
def own_broker(folder: Path) -> Iterator[EmbeddedBroker]:
    """A broker of any kind that is installed, on a free port."""
    with start_broker(BrokerKind.AUTO, folder, free_port()) as broker:
        broker.wait_ready(20.0)
        yield broker


@contextmanager
def doubling_fleet(works: Works, broker: EmbeddedBroker, fleet_id: FleetId, folder: Path) -> Iterator[Fleet]:
    """A fleet whose agent has committed `scale` 1.0.0, which doubles."""
    folder.mkdir()
    fleet = Fleet(works, broker, fleet_id, folder)
    try:
        release = works.release("1.0.0", factor=2.0)
        fleet.assign(1, release)
        fleet.wait_for_step(release, Step.COMMITTED)
        yield fleet
    finally:
        fleet.close()


def scaling_model(factor: float) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    raw: bytes = model.SerializeToString()
    return raw


def wait_until(look: Callable[[], T | None], explain: Callable[[], str] = str) -> T:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"it did not come about within {TIMEOUT_S:g} s\n{explain()}")


def now() -> datetime:
    return datetime.now(UTC)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
