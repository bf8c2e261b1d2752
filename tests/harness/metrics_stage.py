"""A stage for the anonymous metrics: broker, controller, mixer and one agent as processes, a crowd, and a listener.

The broker asks nobody for a certificate, so that the listener hears every message that crosses it. The crowd measures
and sends with the agent's own code, but serves nothing. The clock of the metrics runs SPEED times as fast for all.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from onnx import TensorProto, helper
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from harness.controller_process import ControllerProcess, bring_trust
from harness.desk import client, local_token
from harness.fleet_of_one import Agent
from muster_agent.metrics.port import DriftState, Release, Tally
from muster_controller.broker.programs import BrokerKind
from muster_controller.mixer.folder import MixerFolder
from muster_controller.registry.operator import init_operator, sign_release
from muster_controller.registry.tuf_repository import create_online_keys
from muster_shared.bundle import Golden, Manifest, Metrics, TensorSpec, Variant, describe_file, digest, encode_manifest
from muster_shared.ids import FleetId, ModelName
from muster_shared.link import Link, LinkConfig, LinkItem, parse_broker_url
from muster_shared.metrics import HOUR_S, Kind, latency_place, metrics_time
from muster_simulator.load.measuring import Measuring

FLEET = FleetId("story")
MODEL = ModelName("sorter")
VERSION = "1.0.0"
DEVICE_CLASS = "bench-pi"
LABELS = ("acorn", "beech", "cedar")
ALLOW = (Kind.CLASSES, Kind.CONFIDENCE, Kind.LATENCY, Kind.INPUTS)
"""Neither drift nor feedback, both of which are measured all the same."""
SPEED = 480.0
"""An hour passes in 7.5 s, and is closed 9.4 s after that."""
CROWD = 800
"""The noise of an hour is 20 devices on each class: shares of so many are known to a few hundredths."""
FIRST_SHARE = 0.7
"""Of the crowd's inferences that come out as the first class, the others as the second; nobody's as the third."""
LINKS = 8
DEADLINE_S = 120.0


class Message(NamedTuple):
    """One message as a subscriber has it."""

    topic: str
    payload: bytes
    properties: bytes = b""
    """As JSON, all of them."""


class Listener:
    """A client that hears all topics, by MQTT 5, and keeps everything."""

    def __init__(self, port: int) -> None:
        self.messages: list[Message] = []
        self.is_there = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "listener", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self.is_there.wait(DEADLINE_S), "the broker lets nobody listen"

    def _on_connect(self, *_: object) -> None:
        self._client.subscribe("#", qos=1)

    def _on_subscribe(self, *_: object) -> None:
        self.is_there.set()

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        said = message.properties
        properties = b"" if said is None else repr(said.json()).encode()  # type: ignore[no-untyped-call]  # paho's.
        self.messages.append(Message(message.topic, bytes(message.payload), properties))

    def say(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1)

    def on(self, topic: str) -> list[Message]:
        """Return what was heard on this topic so far."""
        return [each for each in list(self.messages) if each.topic == topic]

    def under(self, *branches: str) -> list[Message]:
        """Return what was heard under these branches of the fleet's topics so far."""
        prefixes = tuple(f"muster/v1/{FLEET}/{branch}/" for branch in branches)
        return [each for each in list(self.messages) if each.topic.startswith(prefixes)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class _Asked:
    """`metrics.port.Meters` of a device of which something is asked all the time; all kinds are measured."""

    def __init__(self, release: Release, rng: Random) -> None:
        self._release = release
        self._rng = rng

    def take(self) -> list[Tally]:
        place = 0 if self._rng.random() < FIRST_SHARE else 1
        counts = {
            Kind.CLASSES: {place: 1},
            Kind.CONFIDENCE: {17: 1},
            Kind.LATENCY: {latency_place(900.0): 1},
            Kind.INPUTS: {0: 1},
            Kind.FEEDBACK: {2 * place + 1: 1},
        }
        return [Tally(self._release, 1, counts, DriftState.QUIET)]


class Crowd:
    """Devices that share some connections and one thread."""

    def __init__(
        self, broker_url: str, bundle: str, mixers: Mapping[str, bytes], clock: Callable[[], float], count: int = CROWD
    ) -> None:
        release = Release(MODEL, VERSION, bundle, len(LABELS), frozenset(ALLOW))
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crowd", daemon=True)
        self._links: list[Link] = []
        self._devices: list[Measuring] = []
        for number in range(LINKS):
            mine: list[Measuring] = []
            config = LinkConfig(parse_broker_url(broker_url), client_id=f"crowd-{number}", max_queued_out=10_000)
            link = Link(config, _to_all(mine), rng=Random(number))
            for which in range(number, count, LINKS):
                meters = _Asked(release, Random(f"asked {which}"))
                mine.append(
                    Measuring(FLEET, DEVICE_CLASS, link, meters, lambda: mixers, clock, SPEED, Random(f"sent {which}"))
                )
            self._links.append(link)
            self._devices += mine
        for link in self._links:
            link.start()
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join(DEADLINE_S)
        for link in self._links:
            link.stop(1.0)

    def _run(self) -> None:
        again = dict.fromkeys(range(len(self._devices)), 0.0)
        while not self._ending.wait(max(0.01, min(again.values()) - time.monotonic())):
            for number, at in again.items():
                if at <= time.monotonic():
                    again[number] = time.monotonic() + self._devices[number].look()


def _to_all(devices: list[Measuring]) -> Callable[[LinkItem], None]:
    def heard(item: LinkItem) -> None:
        for each in devices:
            each.heard(item)

    return heard


@dataclass
class Stage:
    """What runs, and how to ask it."""

    folder: Path
    device: str
    since: float
    broker_url: str
    api: httpx.Client
    agent: Agent
    listener: Listener
    keys: Mapping[str, X25519PrivateKey]
    """The mixer's, for a test that looks into windows as it does."""
    served: httpx.Client = field(init=False)
    """The agent's own port."""

    def __post_init__(self) -> None:
        self.served = httpx.Client(base_url=f"http://127.0.0.1:{self.agent.port}", trust_env=False, timeout=DEADLINE_S)

    def figures(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the figures of the model by name, as the API has them, over all hours of the story."""
        begin = int(metrics_time(self.since, SPEED, self.since)) // HOUR_S * HOUR_S
        asked = {"from": begin, "to": begin + 96 * HOUR_S}
        answer = self.api.get(f"/metrics/{MODEL}/{kind}", params=asked)
        if answer.status_code == httpx.codes.NOT_FOUND:  # Nothing was told of the model yet.
            return {}
        return {each["name"]: each["figure"] for each in answer.raise_for_status().json()["figures"]}

    def roll_out(self, version: str) -> None:
        """Roll a release out to the agent, and return when that has ended, well or not."""
        policy = {"waves": [1], "window_s": 0.2, "window_max_s": 0.4, "requests_min": 0, "deadline_s": DEADLINE_S}
        made = self.api.post("/rollouts", json={"model": MODEL, "version": version, "policy": policy})
        rollout = made.raise_for_status().json()["id"]
        ended = ("finished", "aborted", "paused")
        self.until(lambda: self.api.get(f"/rollouts/{rollout}").json()["state"] in ended, f"the end of {rollout}")

    def fail(self, version: str) -> list[Message]:
        """Roll out a release that no engine loads; return what the agent says of it."""
        _publish(self.folder, self.api, version, 2, b"no model at all")
        self.roll_out(version)
        topic = f"muster/v1/{FLEET}/device/{self.device}/event"

        def said() -> list[Message]:
            return [each for each in self.listener.on(topic) if version.encode() in each.payload]

        self.until(lambda: any(b'"outcome"' in each.payload for each in said()), f"what became of {version}")
        return said()

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Return what `holds` does, once it is something."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := holds()):
            assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}\n{self.logs()}"
            time.sleep(0.05)
        return found

    def logs(self) -> str:
        paths = sorted(self.folder.rglob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)


@contextmanager
def metrics_stage(folder: Path, device: str, cellar: str) -> Iterator[Stage]:
    """Set everything up, with the release rolled out to the agent.

    The broker is Mosquitto: NATS speaks no MQTT 5, and so has no properties to look into.

    Args:
        cellar: Names the folder in which the agent has everything: its data, and so its models.
    """
    since = round(time.time(), 3)
    mixer = MixerFolder.create(folder / "mixer", "mixer-1")
    mixers = {mixer.card().key_id: mixer.card().public_key}
    online = create_online_keys(folder / "data")
    offline = init_operator(folder / "operator", [MODEL], online, datetime.now(UTC), mixers=mixers)
    with ExitStack() as stack:
        controller = ControllerProcess(folder, ("--broker", BrokerKind.MOSQUITTO, "--broker-port", "0"), FLEET)
        stack.callback(controller.stop)
        running = controller.start()
        listener = Listener(parse_broker_url(running.broker_url).port)
        stack.callback(listener.close)
        stack.enter_context(_mixing(folder / "mixer", running.broker_url, since))
        agent = _agent(folder / cellar, device, running.broker_url, offline.root, since)
        stack.callback(_end, agent.process)
        api = stack.enter_context(client(running.url, local_token(folder / "data")))
        bring_trust(folder, api)
        bundle = _publish(folder, api, VERSION, 1, sorting_model())
        crowd = Crowd(running.broker_url, bundle, mixers, lambda: metrics_time(time.time(), SPEED, since))
        stack.callback(crowd.close)
        stage = Stage(folder, device, since, running.broker_url, api, agent, listener, mixer.seal_keys())
        stack.callback(stage.served.close)
        stage.until(lambda: _is_known(api), "the agent is known")
        stage.roll_out(VERSION)
        stage.until(lambda: _is_served(stage.served), "the release is served")
        yield stage


def sorting_model() -> bytes:
    """Return a model that answers its input: three scores for three classes."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "one"], ["y"])],
        "sorter",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(LABELS)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", len(LABELS)])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    raw: bytes = model.SerializeToString()
    return raw


def _publish(folder: Path, api: httpx.Client, version: str, release: int, model: bytes) -> str:
    """Sign and publish a release; return the digest of its bundle."""
    bundle = folder / f"bundle-{version}"
    bundle.mkdir()
    cases = np.eye(len(LABELS), dtype=np.float32)
    arrays: dict[str, Any] = {"input.x": cases, "output.y": cases}
    np.savez(bundle / "golden.npz", **arrays)
    (bundle / "model.onnx").write_bytes(model)
    contents = {path.name: path.read_bytes() for path in bundle.iterdir()}
    manifest = Manifest(
        model=MODEL,
        version=version,
        release=release,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, len(LABELS))),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, len(LABELS))),),
        files=tuple(describe_file(path, raw) for path, raw in sorted(contents.items())),
        variants=(Variant(name="cpu", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
        golden=Golden(file="golden.npz"),
        metrics=Metrics(allow=ALLOW),
        labels=LABELS,
    )
    encoded = encode_manifest(manifest)
    (bundle / "bundle.json").write_bytes(encoded)
    for raw in contents.values():
        headers = {"Content-Type": "application/octet-stream"}
        api.put(f"/blobs/{digest(raw)}", content=raw, headers=headers).raise_for_status()
    signed = sign_release(folder / "operator", bundle, None, datetime.now(UTC)).metadata
    body = {"metadata": signed.decode(), "manifest": encoded.decode()}
    api.post(f"/models/{MODEL}/releases", json=body).raise_for_status()
    return digest(encoded)


def _agent(own: Path, device: str, broker_url: str, root: bytes, since: float) -> Agent:
    own.mkdir()
    (own / "root.json").write_bytes(root)
    (own / "agent.toml").write_text(
        f'fleet = "{FLEET}"\ndevice = "{device}"\ndevice_class = "{DEVICE_CLASS}"\nbroker_url = "{broker_url}"\n'
        f'data_dir = "{own / "data"}"\nbootstrap_root = "{own / "root.json"}"\nthreads = 1\ntwin_every_s = 1.0\n'
        f'runtimes = ["onnxruntime"]\n[metrics]\nclock_speed = {SPEED}\nclock_since = {since}\n'
    )
    return Agent.start(own, broker_url=broker_url)


@contextmanager
def _mixing(folder: Path, broker_url: str, since: float) -> Iterator[None]:
    """The shipped mixer, with the noise of the contract."""
    command = [sys.executable, "-m", "muster_controller.cli.main", "mixer", "run", "--data", str(folder)]
    command += ["--broker", broker_url, "--fleet", FLEET, "--settle", "0"]
    command += ["--clock-speed", f"{SPEED:g}", "--clock-since", f"{since:.3f}"]
    with (folder / "mixer.log").open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "MUSTER_MIXER_BROKER_URL": ""})
    try:
        yield
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(20.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10.0)


def _is_known(api: httpx.Client) -> bool:
    status = api.get("/status").raise_for_status().json()
    return status["online"] == 1 and "unknown" not in status["classes"]


def _is_served(served: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return served.get(f"/v2/models/{MODEL}/ready").is_success
    return False
