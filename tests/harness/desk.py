"""The desk: a whole controller with its operator and a client of its API, and puppets for devices.

A puppet speaks the wire's messages and nothing else: no trust, no models. What agents do is tested with the agent.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from securesystemslib.dsse import Envelope

from harness import publishing
from harness.bundles import write_named_bundle
from muster_controller.broker.embedded import BrokerKind
from muster_controller.config import ServerConfig
from muster_controller.operators.local import read_local
from muster_controller.registry.operator import init_operator, load_offline
from muster_controller.registry.tuf_repository import create_online_keys
from muster_controller.server import Controller
from muster_shared import assignment, topics
from muster_shared.ids import DeviceId, EventId, FleetId, ModelName
from muster_shared.link import Connected, Link, LinkConfig, LinkItem, LinkStopped, Received, parse_broker_url
from muster_shared.messages import (
    Event,
    Hardware,
    OutcomeReported,
    Presence,
    ReleaseRef,
    Step,
    StepReached,
    Twin,
    TwinModel,
    WindowReport,
    encode,
)
from muster_shared.topics import Channel, DeviceTopic

FLEET = FleetId("test")
MODEL = ModelName("digits")
QUICK = {"waves": [1, 2], "window_s": 0.2, "window_max_s": 0.4, "requests_min": 0, "deadline_s": 20.0}


def make_bundle(folder: Path, version: str, release: int) -> Path:
    return write_named_bundle(folder, MODEL, version, release)


@dataclass
class Puppets:
    """Devices that obey every assignment at once, and say of each release what `is_good` says of it."""

    broker_url: str
    names: tuple[str, ...]
    is_good: Callable[[str, str], bool] = lambda _device, _version: True
    delay_s: Callable[[], float] = lambda: 0.0
    classes: tuple[str, ...] = ("sim-cpu",)
    window: Callable[[str, str], WindowReport | None] = lambda _device, _version: None
    """What a device has measured of a release."""
    fleet: FleetId = FLEET
    _state: dict[str, tuple[int, ReleaseRef | None, ReleaseRef | None]] = field(default_factory=dict)
    """Counter, what serves, and what is kept in standby."""
    _away: set[str] = field(default_factory=set)
    _missed: dict[str, bytes] = field(default_factory=dict)
    """By who is away: the assignment that the broker keeps for it."""
    _sequence: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._link = Link(
            LinkConfig(
                broker=parse_broker_url(self.broker_url),
                client_id=f"puppets-{random.getrandbits(32):x}",
                reconnect_min_s=0.1,
                reconnect_max_s=0.3,
                max_queued_out=100_000,
                max_inflight=1000,
            ),
            self._on_item,
            rng=random.Random(1),
        )
        prefix = f"{topics.ROOT}/{self.fleet}"
        self._link.subscribe([f"{prefix}/device/+/assignment", f"{prefix}/controller"])
        self._link.start()

    def close(self) -> None:
        self._link.stop(1.0)

    def _on_item(self, item: LinkItem) -> None:
        match item:
            case Connected():
                self._report_all()
            case Received(topic, payload, _, _, token):
                self._link.ack(token)
                match topics.parse(self.fleet, topic):
                    case topics.ControllerTopic():
                        self._report_all()
                    case DeviceTopic(_, Channel.ASSIGNMENT) if not payload:
                        pass  # It was decommissioned: nothing is retained any more.
                    case DeviceTopic(device, Channel.ASSIGNMENT) if device in self._away:
                        self._missed[device] = payload
                    case DeviceTopic(device, Channel.ASSIGNMENT) if device in self.names:
                        self._obey(device, payload)
                    case _:
                        pass
            case _:
                pass

    def _report_all(self) -> None:
        for name in self.names:
            if name not in self._away:
                self._be(name, online=True)
                self._report(name)

    def leave(self, name: str) -> None:
        """Go offline, and obey nothing until `come_back`."""
        self._away.add(name)
        self._be(name, online=False)

    def come_back(self, name: str) -> None:
        self._away.discard(name)
        self._be(name, online=True)
        self._report(name)
        if name in self._missed:
            self._obey(DeviceId(name), self._missed.pop(name))

    def _be(self, name: str, *, online: bool) -> None:
        presence = Presence(device=DeviceId(name), boot="b", online=online, sent_at=time.time())
        self._say(name, Channel.PRESENCE, encode(presence), retain=True)

    def _obey(self, device: DeviceId, raw: bytes) -> None:
        wanted = assignment.parse(Envelope.from_dict(json.loads(raw)).payload)
        for each in wanted.models:
            counter, active, standby = self._state.get(device, (0, None, None))
            if wanted.counter <= counter:
                return
            good = each.watch is None or self.is_good(device, each.release.version)
            is_same = active is not None and active.bundle_sha256 == each.release.bundle_sha256
            if good and not is_same:
                active, standby = each.release, active
            self._state[device] = (wanted.counter, active, standby)
            if each.watch is None:
                self._report(device)
                continue
            step = StepReached(
                release=each.release, step=Step.SWITCHED, rollout=each.watch.rollout, bytes_fetched=2200, seconds=0.1
            )
            outcome = OutcomeReported(
                release=each.release,
                rollout=each.watch.rollout,
                wave=each.watch.wave,
                good=good,
                reason="as it should" if good else "accuracy 0.31 below 0.95",
                window=self.window(device, each.release.version),
                attempt=each.watch.attempt,
            )
            timer = threading.Timer(
                self.delay_s(), self._tell, (device, wanted.counter, None if is_same else step, outcome)
            )
            timer.daemon = True
            timer.start()

    def _tell(self, device: DeviceId, counter: int, step: StepReached | None, outcome: OutcomeReported) -> None:
        self._report(device)
        bodies: list[tuple[str, StepReached | OutcomeReported]] = [] if step is None else [("step", step)]
        for kind, body in (*bodies, ("outcome", outcome)):
            event = Event(
                id=EventId(f"{device}-{counter}-{kind}"),
                device=device,
                at=time.time(),
                body=body,
            )
            self._say(device, Channel.EVENT, encode(event))

    def _report(self, name: str) -> None:
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
        counter, active, standby = self._state.get(name, (0, None, None))
        serves = TwinModel(model=MODEL, phase="idle", active=active, standby=standby, engine="onnxruntime cpu")
        models = () if active is None else (serves,)
        twin = Twin(
            device=DeviceId(name),
            sent_at=time.time(),
            boot="b",
            sequence=sequence,
            agent_version="0.1.0",
            counter=counter,
            hardware=Hardware(
                device_class=self.classes[self.names.index(name) % len(self.classes)],
                arch="x86_64",
                runtimes=("onnxruntime",),
                memory_mb=1000,
            ),
            labels={"site": "oslo" if self.names.index(name) % 2 else "bergen"},
            models=models,
        )
        self._say(name, Channel.TWIN, encode(twin), retain=True)

    def _say(self, name: str, channel: Channel, payload: bytes, *, retain: bool = False) -> None:
        topic = topics.build(self.fleet, DeviceTopic(DeviceId(name), channel))
        with suppress(LinkStopped):  # A puppet that was put away.
            self._link.publish(topic, payload, qos=1, retain=retain)


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"it did not happen within {timeout_s:g} s")


@dataclass
class Desk:
    """A controller with its operator, and a client of its API."""

    folder: Path
    controller: Controller
    http: httpx.Client
    published: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    """Of those who were hired, by name."""
    _people: dict[str, httpx.Client] = field(default_factory=dict)

    def hire(self, name: str, role: str = "approver", selector: str = "") -> httpx.Client:
        """Make an operator with an API token, and return a client of the API that is them."""
        order = {"name": name, "role": role, "selector": selector}
        self.http.post("/operators", json=order).raise_for_status()
        made = self.http.post("/tokens", json={"name": "desk", "operator": name}).raise_for_status().json()
        self.tokens[name] = made["token"]
        self._people[name] = client(self.controller.url, made["token"])
        return self._people[name]

    def page(self, path: str) -> httpx.Response:
        """Return a page as the local token sees it."""
        return self.http.get(self.controller.url + path)

    def close(self) -> None:
        for each in self._people.values():
            each.close()

    def get(self, path: str, **params: Any) -> Any:
        return self.http.get(path, params=params).raise_for_status().json()

    def sign(self, version: str, release: int) -> tuple[Path, bytes]:
        bundle = make_bundle(self.folder / f"bundle-{version}", version, release)
        return bundle, publishing.sign(self.folder / "operator", bundle, self.http)

    def publish(self, version: str, release: int) -> httpx.Response:
        bundle, metadata = self.sign(version, release)
        publishing.put_files(self.http, bundle)
        (self.folder / "signed").write_bytes(metadata)
        self.published = {"metadata": metadata.decode(), "manifest": (bundle / "bundle.json").read_text()}
        return self.publish_again()

    def publish_again(self) -> httpx.Response:
        return self.http.post(f"/models/{MODEL}/releases", json=self.published)

    def put(self, raw: bytes, sha256: str | None = None) -> httpx.Response:
        return publishing.put_blob(self.http, raw, sha256)

    def roll_out(self, version: str, policy: dict[str, Any] | None = None) -> httpx.Response:
        return self.http.post("/rollouts", json={"model": MODEL, "version": version, "policy": policy or QUICK})

    def order(self, rollout: str, order: str, by: str | None = None, **said: Any) -> httpx.Response:
        """Order it as the local token, or as an approver of this name."""
        http = self.http if by is None else self._people.get(by) or self.hire(by)
        return http.post(f"/rollouts/{rollout}/{order}", json=said)

    def state(self, rollout: str) -> str:
        return str(self.get(f"/rollouts/{rollout}")["state"])


def provision(folder: Path) -> None:
    offline = init_operator(folder / "operator", [MODEL], create_online_keys(folder / "data"), datetime.now(UTC))
    assert offline.root


def bring_offline(desk: Desk) -> None:
    offline = load_offline(desk.folder / "operator")
    body = {"root": offline.root.decode(), "targets": offline.targets.decode(), "keys": offline.keys.decode()}
    assert desk.http.post("/trust/offline", json=body).json() == {"changed": True}


@contextmanager
def open_desk(folder: Path, **changes: Any) -> Iterator[Desk]:
    """A controller on free ports, with its trust brought, until the end of the block. `changes`: of its config."""
    provision(folder)
    config = ServerConfig(
        data=folder / "data",
        fleet=FLEET,
        port=0,
        broker_port=0,
        device_port=0,
        open_lab=True,
        seed=7,
        broker_kind=BrokerKind.AUTO,
    )
    config = replace(config, **changes)
    with Controller(config) as controller, client(controller.url, local_token(config.data)) as http:
        desk = Desk(folder, controller, http)
        bring_offline(desk)
        with closing(desk):
            yield desk


def local_token(data: Path) -> str:
    """Return the local token of the controller that runs in `data`."""
    found = read_local(data)
    assert found is not None, f"no controller runs in {data}"
    return found


def client(url: str, token: str | None) -> httpx.Client:
    """Return a client of the API that sends this token; None: it is nobody."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=f"{url}/api/v1", headers=headers, trust_env=False)


def wait_for(desk: Desk, count: int) -> None:
    """Wait until `count` devices are online and have reported their hardware."""
    until(lambda: desk.get("/status")["online"] == count and "unknown" not in desk.get("/status")["classes"])


def is_problem(answer: httpx.Response, status: int, kind: str) -> bool:
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json", body
    assert (answer.status_code, body["type"]) == (status, f"urn:muster:problem:{kind}"), body
    assert body["detail"]
    return True
