"""The stage of an attack: a real broker, a real agent process, an honest controller as small as it can be.

What attackers hear they hear from the broker; what they reach is seen where an owner would see it: in what the agent
answers over HTTP, in the events that it reports, and (where bytes are the matter) in its data folder.
"""

import http.client
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from harness.certificates import Leaf
from harness.fleet_of_one import DEVICE, MODEL, Works, free_port, now, wait_until
from muster_controller.broker.embedded import EmbeddedBroker
from muster_controller.registry.operator import rotate_online_keys
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.assignment import Assignment, ModelAssignment, Watch
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId, Sha256
from muster_shared.link import Link, LinkConfig, LinkItem, Received, parse_broker_url
from muster_shared.messages import (
    Ack,
    AssignmentRefused,
    Event,
    Refusal,
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
    Topic,
    TrustTopic,
    WantTopic,
    build,
    controller_filters,
    parse,
)

OTHER_MODEL = ModelName("other")
LAUNCHER = Path(__file__).with_name("undefended.py")
END_S = 20.0
T = TypeVar("T")


@dataclass(frozen=True)
class Heard:
    """One message on the broker, as anybody who may listen hears it."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Line:
    """How the stage and its agent reach the broker.

    Attributes:
        agent_url: another way to the same broker, where somebody sits in between.
        ca, controller, device: certificates, where the broker asks for them.
    """

    url: str
    agent_url: str
    ca: Path | None = None
    controller: Leaf | None = None
    device: Leaf | None = None


class Stage:
    """A fleet of one device. It serves release 1.0.0 of `scale`, which doubles, by the assignment with counter 1."""

    def __init__(self, folder: Path, line: Line, *, fleet: FleetId | None = None, without: str | None = None) -> None:
        """
        Args:
            folder: Empty.
            fleet: None: one that nobody else has on this broker.
            without: The attack (a key of `defences.DEFENCES`) whose defence is switched off in the agent's process.
        """
        self.folder = folder
        self.fleet = fleet or FleetId(f"attacked-{os.urandom(4).hex()}")
        self.works = Works.open(folder / "works", [MODEL, OTHER_MODEL])
        self.counter = 0
        self.heard: list[Heard] = []
        self.events: dict[str, Event] = {}
        self.twins: list[Twin] = []
        self.wants: list[tuple[Sha256, Want]] = []
        self.answer_want: Callable[[Sha256, Want], None] = self.send_chunks
        """Whoever has the broker decides what becomes of a `want`; this one is honest."""
        self._without = without
        self._items: queue.Queue[LinkItem | None] = queue.Queue()
        self._line = line
        own = line.controller
        config = LinkConfig(
            parse_broker_url(line.url),
            client_id=f"muster-controller-{self.fleet}",
            ca_path=line.ca,
            cert_path=None if own is None else own.certificate,
            key_path=None if own is None else own.key,
        )
        self._link = Link(config, self._items.put, rng=random.Random(7))
        # Where nobody needs a certificate, anybody hears everything.
        self._link.subscribe([f"muster/v1/{self.fleet}/#"] if own is None else controller_filters(self.fleet))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._link.start()
        self.first = self.works.release("1.0.0", factor=2.0)
        self.port = free_port()
        self.agent = self._start_agent()

    # -- the honest controller ---------------------------------------------------------------------------------------

    def publish(self, topic: Topic, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        self._link.publish(build(self.fleet, topic), payload, qos=1 if qos else 0, retain=retain)

    def publish_trust(self, messages: Sequence[TrustFiles] | None = None) -> None:
        """Publish trust metadata: what is given, or what is current."""
        for message in self.works.repository.trust_messages() if messages is None else messages:
            self.publish(TrustTopic(message.role), encode(message), retain=True)

    def assignment(
        self, release: ReleaseRef, *, counter: int | None = None, device: DeviceId = DEVICE, watch: Watch | None = None
    ) -> Assignment:
        """Return the next assignment, not yet signed."""
        if counter is None:
            self.counter += 1
            counter = self.counter
        return Assignment(
            fleet=self.fleet,
            device=device,
            counter=counter,
            issued_at=time.time(),
            expires_at=time.time() + 3600,
            models=(ModelAssignment(release=release, watch=watch),),
        )

    def signed(self, release: ReleaseRef, *, watch: Watch | None = None, device: DeviceId = DEVICE) -> bytes:
        """Return the next assignment as the controller signs it."""
        return self.works.repository.sign_assignment(self.assignment(release, watch=watch, device=device))

    def assign_raw(self, raw: bytes) -> None:
        self.publish(DeviceTopic(DEVICE, Channel.ASSIGNMENT), raw, retain=True)

    def update(self, release: ReleaseRef, *, watch: Watch | None = None) -> None:
        """Order `release` honestly, and wait until it serves for good."""
        self.publish_trust()
        self.assign_raw(self.signed(release, watch=watch))
        self.wait_for_step(release, Step.COMMITTED)

    def send_chunks(self, sha256: Sha256, want: Want, *, most: int | None = None, content: bytes | None = None) -> None:
        """Answer a `want`: with what was published under that digest, or (an attacker's answer) with `content`."""
        content = self.works.blobs[sha256] if content is None else content
        for index in unpack_bits(want.missing, -(-want.length // want.chunk_bytes))[:most]:
            start = index * want.chunk_bytes
            self.publish(ChunkTopic(sha256, index), content[start : start + want.chunk_bytes], qos=0)

    def take_new_online_keys(self) -> None:
        """Do what an operator does after a controller was stolen: new online keys, and the offline keys name them."""
        data, operator = self.works.folder / "controller", self.works.folder / "operator"
        shutil.rmtree(data / "keys")
        offline = rotate_online_keys(operator, create_online_keys(data), now())
        self.works.repository = TufRepository(data)
        self.works.repository.accept_offline(offline.root, offline.targets, offline.keys, now())

    def renew_timestamp(self) -> None:
        """Let half a day pass for the controller alone: it signs its timestamp again, with the next version."""
        assert self.works.repository.refresh_online(now() + timedelta(hours=13))

    # -- what is seen ------------------------------------------------------------------------------------------------

    def factor(self) -> float | None:
        """Return by what the agent multiplies now, or None when it does not answer: each release has its own."""
        request = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}
        answer = self.infer(json.dumps(request))
        return None if answer is None else answer[0]

    def infer(self, body: str) -> list[float] | None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("POST", f"/v2/models/{MODEL}/infer", body)
            response = connection.getresponse()
            document = json.loads(response.read())
        except OSError:
            return None
        finally:
            connection.close()
        if response.status != 200:
            return None
        answer: list[float] = document["outputs"][0]["data"]
        return answer

    def refusals(self) -> list[AssignmentRefused]:
        bodies = [event.body for event in list(self.events.values())]
        return [body for body in bodies if isinstance(body, AssignmentRefused)]

    def steps(self, release: ReleaseRef) -> list[StepReached]:
        bodies = [event.body for event in list(self.events.values())]
        return [body for body in bodies if isinstance(body, StepReached) and body.release == release]

    def wait_for_refusal(self, refusal: Refusal) -> AssignmentRefused:
        return self.wait(lambda: next((each for each in self.refusals() if each.refusal is refusal), None))

    def wait_for_step(self, release: ReleaseRef, step: Step) -> StepReached:
        return self.wait(lambda: next((each for each in self.steps(release) if each.step is step), None))

    def wait_for_want(self, sha256: Sha256) -> Want:
        return self.wait(lambda: next((want for name, want in list(self.wants) if name == sha256), None))

    def wait(self, look: Callable[[], T | None]) -> T:
        """Return what `look` finds. Raises TimeoutError, with the end of the agent's log."""
        return wait_until(look, lambda: self.log()[-4000:])

    def log(self) -> str:
        return (self.folder / "device/agent.log").read_text()

    def stored_bytes(self) -> int:
        """Return how many bytes the largest file has that the agent fetched or fetches."""
        store = self.folder / "device/data"
        sizes = [0]
        for path in [*store.glob("**/parts/*"), *store.glob("**/blobs/*")]:
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        return max(sizes)

    # -- the agent ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self.agent.poll() is None:
            self.agent.send_signal(signal.SIGTERM)
            try:
                self.agent.wait(END_S)
            except subprocess.TimeoutExpired:
                self.agent.kill()
                self.agent.wait(END_S)
        self._link.stop(5.0)
        self._items.put(None)
        self._thread.join(5.0)

    def _start_agent(self) -> "subprocess.Popen[bytes]":
        folder = self.folder / "device"
        folder.mkdir()
        (folder / "root.json").write_bytes(self.works.repository.bootstrap_root())
        own = self._line.device
        tls = "" if own is None else f'[tls]\nca = "{self._line.ca}"\ncert = "{own.certificate}"\nkey = "{own.key}"\n'
        (folder / "agent.toml").write_text(
            f'fleet = "{self.fleet}"\ndevice = "{DEVICE}"\ndevice_class = "lab"\n'
            f'broker_url = "{self._line.agent_url}"\n'
            f'data_dir = "{folder / "data"}"\nbootstrap_root = "{folder / "root.json"}"\nthreads = 1\n'
            f'runtimes = ["onnxruntime"]\n[http]\nlisten = "127.0.0.1:{self.port}"\n{tls}'
        )
        if self._without is None:
            command = [sys.executable, "-m", "muster_agent.cli"]  # As it ships.
        else:
            command = [sys.executable, str(LAUNCHER), self._without, "agent"]
        with (folder / "agent.log").open("ab") as output:
            return subprocess.Popen([*command, "run", "--config", str(folder / "agent.toml")], stderr=output)

    def _listen(self) -> None:
        while (item := self._items.get()) is not None:
            if isinstance(item, Received):
                self.heard.append(Heard(item.topic, item.payload))
                with suppress(WireError):  # What attackers say is heard as well.
                    self._received(item.topic, item.payload)
                self._link.ack(item.token)

    def _received(self, topic: str, payload: bytes) -> None:
        match parse(self.fleet, topic):
            case DeviceTopic(device, Channel.EVENT) if device == DEVICE:
                event = decode(payload, Event)
                self.events[event.id] = event
                self.publish(DeviceTopic(device, Channel.ACK), encode(Ack(ids=(event.id,))))
            case DeviceTopic(device, Channel.TWIN) if device == DEVICE:
                self.twins.append(decode(payload, Twin))
            case WantTopic(sha256):
                want = decode(payload, Want)
                self.wants.append((sha256, want))
                self.answer_want(sha256, want)


def open_stage(folder: Path, broker: EmbeddedBroker, *, without: str | None = None) -> Stage:
    """Return a stage on an open broker, whose agent has committed 1.0.0; close it."""
    return begin(folder, Line(broker.url, broker.url), without=without)


def begin(folder: Path, line: Line, *, fleet: FleetId | None = None, without: str | None = None) -> Stage:
    """Return a stage whose agent has committed 1.0.0; close it."""
    folder.mkdir()
    stage = Stage(folder, line, fleet=fleet, without=without)
    try:
        stage.update(stage.first)
        stage.wait(lambda: stage.factor() == 2.0)
    except BaseException:
        stage.close()
        raise
    return stage


def watch(counter: int, *, deadline_s: float) -> Watch:
    """Return a watch with little to measure, which gives an update so many seconds."""
    return Watch(
        rollout=RolloutId(f"attacked-{counter}"),
        wave=0,
        window_s=0.3,
        window_max_s=0.6,
        requests_min=0,
        deadline_s=deadline_s,
    )
