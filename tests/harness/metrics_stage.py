"""A stage for the anonymous metrics: broker, controller, mixer and one agent as processes, a crowd, and a listener.

The broker asks nobody for a certificate, so that the listener hears every message that crosses it. The crowd measures
and sends with the agent's own code, but serves nothing. The clock of the metrics runs SPEED times as fast for all.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from harness.controller_process import ControllerProcess, bring_trust
from harness.crowd import Crowd
from harness.desk import client, local_token
from harness.fleet_of_one import Agent
from harness.listening import Listener, Message
from harness.publishing import publish
from harness.sorter import ALLOW, LABELS, MODEL, sorting_model, write_sorter
from muster_agent.metrics.port import Release
from muster_controller.broker.programs import BrokerKind
from muster_controller.mixer.folder import MixerFolder
from muster_controller.registry.operator import init_operator
from muster_controller.registry.tuf_repository import create_online_keys
from muster_shared.ids import FleetId
from muster_shared.link import parse_broker_url
from muster_shared.metrics import HOUR_S, metrics_time

FLEET = FleetId("story")
VERSION = "1.0.0"
DEVICE_CLASS = "bench-pi"
SPEED = 480.0
"""An hour passes in 7.5 s, and is closed 9.4 s after that."""
CROWD = 800
"""The noise of an hour is 20 devices on each class: shares of so many are known to a few hundredths."""
DEADLINE_S = 120.0


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
        listener = Listener(parse_broker_url(running.broker_url).port, FLEET)
        stack.callback(listener.close)
        stack.enter_context(_mixing(folder / "mixer", running.broker_url, since))
        agent = _agent(folder / cellar, device, running.broker_url, offline.root, since)
        stack.callback(_end, agent.process)
        api = stack.enter_context(client(running.url, local_token(folder / "data")))
        bring_trust(folder, api)
        bundle = _publish(folder, api, VERSION, 1, sorting_model())
        release = Release(MODEL, VERSION, bundle, len(LABELS), frozenset(ALLOW))
        clock = lambda: metrics_time(time.time(), SPEED, since)  # noqa: E731 # Short, and named.
        crowd = Crowd(CROWD, FLEET, DEVICE_CLASS, release, running.broker_url, mixers, clock, SPEED)
        stack.callback(crowd.close)
        stage = Stage(folder, device, since, running.broker_url, api, agent, listener, mixer.seal_keys())
        stack.callback(stage.served.close)
        stage.until(lambda: _is_known(api), "the agent is known")
        stage.roll_out(VERSION)
        stage.until(lambda: _is_served(stage.served), "the release is served")
        yield stage


def _publish(folder: Path, api: httpx.Client, version: str, release: int, model: bytes) -> str:
    """Sign and publish a release; return the digest of its bundle."""
    bundle = write_sorter(folder / f"bundle-{version}", version, release, model)
    return publish(folder / "operator", bundle, api).bundle_sha256


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
