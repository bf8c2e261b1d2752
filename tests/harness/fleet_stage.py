"""A fleet over its real ledger, with devices that say what a test has them say. Time stands still unless told."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from muster_controller.core.policy import Policy
from muster_controller.core.rollout.state import Rollout, RolloutState
from muster_controller.db.ledger import SqlLedger
from muster_controller.fleet import Fleet
from muster_controller.holds import Hold, HoldKind
from muster_shared import assignment
from muster_shared.assignment import Assignment
from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant, describe_file
from muster_shared.ids import DeviceId, EventId, FleetId, ModelName, Sha256
from muster_shared.messages import (
    Event,
    Hardware,
    OutcomeReported,
    Presence,
    ReleaseRef,
    TrustFiles,
    Twin,
    TwinModel,
    encode,
)
from muster_shared.topics import Channel, DeviceTopic, Topic

MODEL = ModelName("digits")
FILE = b"w" * 5000
POLICY = Policy(waves=(1,), window_s=1.0, window_max_s=2.0, deadline_s=100.0, requests_min=0)


def release(number: int) -> ReleaseRef:
    return ReleaseRef(
        model=MODEL, version=f"1.{number}.0", release=number, bundle_sha256=Sha256(f"{number:064x}"), bundle_length=10
    )


@dataclass
class Said:
    """A wire that remembers, and how many commits the ledger had made when each message left."""

    ledger: SqlLedger
    messages: list[tuple[Topic, bytes, bool]] = field(default_factory=list)
    in_transaction: list[bool] = field(default_factory=list)

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        self.messages.append((topic, payload, retain))
        self.in_transaction.append(bool(self.ledger._drafts))

    def of(self, channel: Channel, device: str) -> list[bytes]:
        return [payload for topic, payload, _ in self.messages if topic == DeviceTopic(DeviceId(device), channel)]

    def assignments(self, device: str) -> list[Assignment]:
        return [assignment.parse(payload) for payload in self.of(Channel.ASSIGNMENT, device)]


class Shelf:
    """A registry with three releases, of which assignments come unsigned."""

    manifest_: Manifest = Manifest(
        model=MODEL,
        version="1.1.0",
        release=1,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
        files=(describe_file("m", FILE),),
        variants=(Variant(name="any", runtime="onnxruntime", precision="fp32", files=("m",)),),
        golden=Golden(file="m"),
    )

    def trust_messages(self) -> list[TrustFiles]:
        return [TrustFiles(role="timestamp", files={"timestamp.json": "{}"})]

    def release(self, model: ModelName, version: str) -> ReleaseRef | None:
        return next((each for each in self.releases() if (each.model, each.version) == (model, version)), None)

    def releases(self) -> list[ReleaseRef]:
        return [release(number) for number in (1, 2, 3)]

    def manifest(self, bundle: Sha256) -> Manifest | None:
        return self.manifest_

    def sign_assignments(self, documents: Sequence[Assignment]) -> list[bytes]:
        return [msgspec.json.encode(document) for document in documents]

    def blob_length(self, sha256: Sha256) -> int | None:
        return len(FILE) if sha256 == self.manifest_.files[0].sha256 else None

    def read_blob(self, sha256: Sha256, offset: int, length: int) -> bytes:
        return FILE[offset : offset + length]


@dataclass
class Stage:
    ledger: SqlLedger
    path: Path
    now: float = 1000.0
    registry: Shelf = field(default_factory=Shelf)
    granted: dict[DeviceId, dict[str, str]] = field(default_factory=dict)
    """Labels that operators gave."""
    holds: dict[DeviceId, Hold] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start the controller (again) over the same ledger."""
        self.said = Said(self.ledger)
        self.fleet = Fleet(
            FleetId("test"),
            ledger=self.ledger,
            registry=self.registry,
            wire=self.said,
            clock=lambda: self.now,
            random=Random(5),
            session="s",
            labels=lambda device: self.granted.get(device, {}),
            holds=self.holds.get,
            gone=lambda: [device for device, hold in self.holds.items() if hold.kind is HoldKind.GONE],
        )

    def hold(self, device: str, kind: HoldKind, reason: str = "look at it") -> None:
        self.holds[DeviceId(device)] = Hold(DeviceId(device), kind, "anna", self.now, reason)
        self.fleet.held([DeviceId(device)])

    def let_go(self, device: str) -> None:
        del self.holds[DeviceId(device)]
        self.fleet.held([DeviceId(device)])

    def restart(self) -> None:
        self.ledger.close()
        self.ledger = SqlLedger(self.path, lambda: self.now)
        self.begin()

    def hear(self, device: str, channel: Channel, message: Any) -> None:
        self.fleet.received(DeviceTopic(DeviceId(device), channel), encode(message))

    def join(self, device: str, *, sequence: int = 1, active: ReleaseRef | None = None, **changes: Any) -> None:
        self.hear(device, Channel.PRESENCE, presence(device))
        self.hear(device, Channel.TWIN, twin(device, sequence, active, **changes))

    def outcome(self, device: str, rollout: Rollout, name: str = "", *, good: bool = True, wave: int = 0) -> Event:
        body = OutcomeReported(release=rollout.release, rollout=rollout.id, wave=wave, good=good, reason="because")
        event = Event(id=EventId(name or f"o-{device}-{wave}"), device=DeviceId(device), at=1.0, body=body)
        self.hear(device, Channel.EVENT, event)
        return event

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.fleet.tick()

    def roll_out(self, number: int = 1, policy: Policy = POLICY) -> Rollout:
        return self.fleet.create_rollout(MODEL, f"1.{number}.0", policy, "anna")

    def finish(self, number: int, *devices: str) -> Rollout:
        """Roll a release out to the end, every device of it good and running it."""
        rollout = self.roll_out(number, replace_policy(waves=(100,)))
        for device in devices:
            self.outcome(device, rollout, f"{rollout.id}-{device}")
            self.join(device, sequence=10 * number, active=release(number))
        self.pass_(1.0)
        found = self.ledger.rollout(rollout.id)
        assert found is not None
        assert found.state is RolloutState.FINISHED
        return found


def replace_policy(**changes: Any) -> Policy:
    return msgspec.structs.replace(POLICY, **changes)


def presence(device: str, *, online: bool = True, boot: str = "b1", sent_at: float = 1.0) -> Presence:
    return Presence(device=DeviceId(device), boot=boot, online=online, sent_at=sent_at)


def twin(
    device: str,
    sequence: int,
    active: ReleaseRef | None = None,
    *,
    boot: str = "b1",
    sent_at: float = 1.0,
    counter: int = 0,
    **changes: Any,
) -> Twin:
    return Twin(
        device=DeviceId(device),
        sent_at=sent_at,
        boot=boot,
        sequence=sequence,
        agent_version="0.1.0",
        counter=counter,
        hardware=Hardware(device_class="sim", arch="x86_64", runtimes=("onnxruntime",), memory_mb=100),
        models=() if active is None else (TwinModel(model=MODEL, phase="idle", active=active),),
        **changes,
    )
