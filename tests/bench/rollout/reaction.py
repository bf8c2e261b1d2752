"""How fast a fleet is called back: from the deciding report to the last assignment, over a real broker.

    this process: 10,000 devices on one link ── MQTT ──▶ broker ◀── MQTT ──▶ `muster serve` in a process of its own

The controller is the shipped one: its database, its own signing key, the embedded broker. The peer's figure is no
measurement but its design: hawkBit's scheduler looks at rollouts every 2 s, before anything is done.
"""

import base64
import gc
import json
import logging
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import structlog

from bench.rollout.figures import Line, Options
from harness.controller_process import bring_trust, provisioned, publish
from harness.fleet_stage import Shelf, Stage, release, replace_policy
from muster_controller.core.gate.evidence import Terms, evidence
from muster_controller.core.gate.strata import Stratum
from muster_controller.core.rollout.state import RolloutState
from muster_controller.db.ledger import SqlLedger
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_controller.whereabouts import Running
from muster_shared import topics
from muster_shared.assignment import Assignment
from muster_shared.ids import DeviceId, EventId, FleetId, RolloutId
from muster_shared.link import Link, LinkConfig, LinkItem, Received, parse_broker_url
from muster_shared.messages import (
    Event,
    Hardware,
    OutcomeReported,
    Presence,
    ReleaseRef,
    Twin,
    TwinModel,
    encode,
)
from muster_shared.topics import Channel, DeviceTopic

HAWKBIT_TICK_S = 2.0
TARGET_S = 1.0
TURNS = 3
FLEET = FleetId("bench")
WAIT_S = 300.0
POLICY = {"waves": ["100%"], "controls_per_device": 0, "deadline_s": 3600.0, "window_s": 1.0, "window_max_s": 2.0}


class Devices:
    """So many devices behind one connection: they note what they are told, and say what they are asked to say."""

    def __init__(self, broker_url: str, count: int) -> None:
        self.names = [DeviceId(f"device-{number:05}") for number in range(count)]
        self.told: dict[DeviceId, tuple[int, float]] = {}
        """Of each device the highest counter, and when it was heard."""
        self.acked: set[str] = set()
        self._lock = threading.Lock()
        config = LinkConfig(
            broker=parse_broker_url(broker_url),
            client_id="bench-devices",
            max_queued_out=4 * count + 1000,
            max_inflight=1000,
        )
        self._link = Link(config, self._on_item, rng=random.Random(1))
        prefix = f"{topics.ROOT}/{FLEET}"
        self._link.subscribe([f"{prefix}/device/+/assignment", f"{prefix}/device/+/ack"])
        self._link.start()

    def close(self) -> None:
        self._link.stop(1.0)

    def announce(self, active: ReleaseRef) -> None:
        """Say that all are there and run `active`."""
        for number, name in enumerate(self.names):
            presence = Presence(device=name, boot="b", online=True, sent_at=time.time())
            self._say(name, Channel.PRESENCE, encode(presence))
            twin = Twin(
                device=name,
                sent_at=time.time(),
                boot="b",
                sequence=1,
                agent_version="0.1.0",
                counter=0,
                hardware=Hardware(
                    device_class=("pi5-cpu", "nuc-gpu", "orin-npu")[number % 3],
                    arch="x86_64",
                    runtimes=("onnxruntime",),
                    memory_mb=1000,
                ),
                models=(TwinModel(model=active.model, phase="idle", active=active),),
            )
            self._say(name, Channel.TWIN, encode(twin))

    def report(self, name: DeviceId, rollout: RolloutId, release: ReleaseRef, *, good: bool) -> str:
        """Send the outcome of one device; return the id of the event."""
        said = f"{rollout}-{name}"
        body = OutcomeReported(release=release, rollout=rollout, wave=0, good=good, reason="measured")
        self._say(name, Channel.EVENT, encode(Event(id=EventId(said), device=name, at=time.time(), body=body)))
        return said

    def all_at(self, counter: int) -> bool:
        with self._lock:
            return sum(told[0] >= counter for told in self.told.values()) >= len(self.names)

    def last_at(self) -> float:
        with self._lock:
            return max(at for _, at in self.told.values())

    def first_at(self, counter: int) -> float:
        with self._lock:
            return min(at for told, at in self.told.values() if told >= counter)

    def _say(self, name: DeviceId, channel: Channel, payload: bytes) -> None:
        self._link.publish(topics.build(FLEET, DeviceTopic(name, channel)), payload, qos=1)

    def _on_item(self, item: LinkItem) -> None:
        if not isinstance(item, Received):
            return
        self._link.ack(item.token)
        topic = topics.parse(FLEET, item.topic)
        now = time.perf_counter()
        match topic:
            case DeviceTopic(name, Channel.ASSIGNMENT):
                with self._lock:
                    self.told[name] = (_counter(item.payload), now)
            case DeviceTopic(_, Channel.ACK):
                with self._lock:
                    self.acked.update(json.loads(item.payload)["ids"])
            case _:
                pass


def _counter(envelope: bytes) -> int:
    return int(json.loads(base64.b64decode(json.loads(envelope)["payload"]))["counter"])


def _until(what: str, condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.01)


def deciding(devices: int) -> int:
    """Return how many bad reports of `devices` devices, all told at once, abort the rollout."""
    terms = Terms(weights={"failures": 1.0}, has_controls=False)
    low, high = 1, devices
    while low < high:
        middle = (low + high) // 2
        classes = [Stratum(0, f"class-{part}", devices // 3, middle // 3, 0, 0) for part in range(3)]
        if evidence(classes, terms).e >= 1 / terms.alpha:
            high = middle
        else:
            low = middle + 1
    return low


def run(options: Options) -> list[Line]:
    """Measure one abort of 10,000 devices (1,000 when quick)."""
    count = 1_000 if options.quick else 10_000
    with tempfile.TemporaryDirectory() as name:
        alone = [_alone(Path(name) / str(turn), count) for turn in range(TURNS)]
    with tempfile.TemporaryDirectory() as name, provisioned(Path(name), fleet=FLEET) as process:
        told = _measured(Path(name), process.start(), count)
    value, spread = f"{min(alone):.2f} s", f"of {TURNS}: {min(alone):.2f} .. {max(alone):.2f} s; no broker"
    name = f"abort of {count:,}: decided, signed and committed by the controller alone"
    return [*told, Line(name, f"< {TARGET_S:g} s", value, min(alone) < TARGET_S, spread)]


class _Signing(Shelf):
    """The shelf of the tests, with the shipped signing of a real key."""

    def __init__(self, folder: Path) -> None:
        create_online_keys(folder)
        self._repository = TufRepository(folder)

    def sign_assignments(self, documents: Sequence[Assignment]) -> list[bytes]:
        return self._repository.sign_assignments(documents)


def _alone(folder: Path, count: int) -> float:
    """Return how long the fleet and its database take from the deciding report until nobody is left to be called."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    folder.mkdir()
    stage = Stage(
        SqlLedger(folder / "muster.db", lambda: 1000.0), folder / "muster.db", registry=_Signing(folder / "data")
    )
    names = [f"device-{number:05}" for number in range(count)]
    with stage.ledger.transaction():
        for name in names:
            stage.join(name, active=release(1))
    stage.pass_(0.0)
    policy = replace_policy(waves=("100%",), controls_per_device=0, deadline_s=3600.0)
    rollout = stage.roll_out(2, policy)
    while stage.fleet.is_due():
        stage.fleet.tick()
    gc.collect()
    gc.freeze()  # As `muster serve` does.
    gc.set_threshold(50_000, 20, 20)
    for name in names:
        said = len(stage.said.messages)
        began = time.perf_counter()
        stage.outcome(name, rollout, good=False)
        found = stage.ledger.rollout(rollout.id)
        if found is not None and found.state is not RolloutState.RUNNING:
            break
    while len(stage.said.messages) - said < count:
        stage.fleet.tick()
    took_s = time.perf_counter() - began
    stage.ledger.close()
    return took_s


def _measured(folder: Path, running: Running, count: int) -> list[Line]:
    with httpx.Client(base_url=f"{running.url}/api/v1", trust_env=False, timeout=60.0) as http:
        bring_trust(folder, http)
        old, new = publish(folder, http, "1.0.0", 1), publish(folder, http, "2.0.0", 2)
        devices = Devices(running.broker_url, count)
        try:
            devices.announce(old)
            _until("every twin", lambda: http.get("/status").json()["online"] >= count)
            _until("every class", lambda: "unknown" not in http.get("/status").json()["classes"])
            body = {"model": old.model, "version": new.version, "policy": POLICY, "actor": "bench"}
            began = time.perf_counter()
            answer = http.post("/rollouts", json=body).raise_for_status().json()
            _until("the first assignment of every device", lambda: devices.all_at(1))
            told_s = devices.last_at() - began
            rollout = RolloutId(answer["id"])

            order = devices.names
            for name in order[: deciding(count) - 20]:
                devices.report(DeviceId(name), rollout, new, good=False)
            rest = iter(order[deciding(count) - 20 :])
            _until("the first reports", lambda: len(devices.acked) >= deciding(count) - 20)
            while True:
                # One by one: the report after which the state is no longer `running` was the deciding one.
                began = time.perf_counter()
                said = devices.report(DeviceId(next(rest)), rollout, new, good=False)
                _until("its acknowledgement", lambda said=said: said in devices.acked)
                if http.get(f"/rollouts/{rollout}").json()["state"] != "running":
                    break
            _until("the last assignment", lambda: devices.all_at(2))
            first_s, last_s = devices.first_at(2) - began, devices.last_at() - began
        finally:
            devices.close()
    return _lines(count, told_s, first_s, last_s)


def _lines(count: int, told_s: float, first_s: float, last_s: float) -> list[Line]:
    return [
        Line(f"{count:,} devices told of a wave, from the order to the last", "", f"{told_s:.2f} s", None),
        Line(f"abort of {count:,}: first device told after the deciding report", "", f"{first_s:.2f} s", None),
        Line(
            f"abort of {count:,}: last device told after the deciding report",
            f"< {TARGET_S:g} s",
            f"{last_s:.2f} s",
            last_s < TARGET_S,
            f"{HAWKBIT_TICK_S / last_s:.1f} x within one tick of hawkBit's scheduler (2 s)",
        ),
    ]
