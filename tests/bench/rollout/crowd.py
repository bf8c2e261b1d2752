"""The devices of a benchmark: as many as wanted behind one connection, which say what they are asked to say.

They are no agents: they install nothing, and look at what they were told only when somebody asks.
"""

import base64
import json
import os
import random
import threading
import time

from muster_shared import topics
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


class Devices:
    """So many devices of `fleet` behind one connection."""

    def __init__(self, broker_url: str, fleet: FleetId, count: int) -> None:
        self.names = [DeviceId(f"device-{number:05}") for number in range(count)]
        self.acked: set[str] = set()
        """Names of the events that the controller has acknowledged."""
        self._fleet = fleet
        self._sequence = 0
        self._heard: list[tuple[DeviceId, bytes, float]] = []
        """Who was told what, as it came, and when by `time.perf_counter`."""
        self._lock = threading.Lock()
        self._gives_way = False
        config = LinkConfig(
            broker=parse_broker_url(broker_url),
            client_id="bench-devices",
            max_queued_out=4 * count + 1000,
            max_inflight=1000,
        )
        self._link = Link(config, self._on_item, rng=random.Random(1))
        prefix = f"{topics.ROOT}/{fleet}"
        self._link.subscribe([f"{prefix}/device/+/assignment", f"{prefix}/device/+/ack"])
        self._link.start()

    def close(self) -> None:
        self._link.stop(1.0)

    def arrive(self) -> None:
        """Say that all are there."""
        for name in self.names:
            presence = Presence(device=name, boot="b", online=True, sent_at=time.time())
            self._say(name, Channel.PRESENCE, encode(presence))

    def run(self, active: ReleaseRef) -> None:
        """Say that all run `active`."""
        self._sequence += 1
        for number, name in enumerate(self.names):
            twin = Twin(
                device=name,
                sent_at=time.time(),
                boot="b",
                sequence=self._sequence,
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

    @property
    def heard(self) -> int:
        """How many assignments have come, those that came twice included."""
        return len(self._heard)

    def told(self, counter: int) -> dict[DeviceId, float]:
        """Return when each device first heard an assignment of at least `counter`. It reads all of them: ask seldom."""
        with self._lock:
            heard = list(self._heard)
        found: dict[DeviceId, float] = {}
        for name, envelope, at in heard:
            if name not in found and _counter(envelope) >= counter:
                found[name] = at
        return found

    def _say(self, name: DeviceId, channel: Channel, payload: bytes) -> None:
        self._link.publish(topics.build(self._fleet, DeviceTopic(name, channel)), payload, qos=1)

    def _on_item(self, item: LinkItem) -> None:
        if not isinstance(item, Received):
            return
        now = time.perf_counter()
        if not self._gives_way:
            # In the field devices have processors of their own; here what they do is not to be the controller's time.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            self._gives_way = True
        self._link.ack(item.token)
        match topics.parse(self._fleet, item.topic):
            case DeviceTopic(name, Channel.ASSIGNMENT):
                with self._lock:
                    self._heard.append((name, item.payload, now))
            case DeviceTopic(_, Channel.ACK):
                self.acked.update(json.loads(item.payload)["ids"])
            case _:
                pass


def _counter(envelope: bytes) -> int:
    return int(json.loads(base64.b64decode(json.loads(envelope)["payload"]))["counter"])
