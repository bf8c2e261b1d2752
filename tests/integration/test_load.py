"""Simulated devices on a real broker against a real fleet: they fetch, prove, serve and report like real ones."""

import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from muster_controller.broker.embedded import BrokerKind, BrokerUnavailable, EmbeddedBroker, find_broker, start_broker
from muster_controller.core.policy import Policy, Threshold
from muster_controller.core.rollout.state import RolloutState
from muster_controller.db.ledger import SqlLedger
from muster_controller.fleet import Fleet
from muster_controller.ports import Device
from muster_controller.registry.blobs import BlobStore
from muster_controller.registry.metadata import release_role
from muster_controller.registry.operator import init_operator, sign_release
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared.assignment import Assignment
from muster_shared.bundle import (
    Golden,
    Manifest,
    Slo,
    TensorSpec,
    Variant,
    describe_file,
    digest,
    encode_manifest,
    parse_manifest,
)
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, FleetId, ModelName, RolloutId, Sha256
from muster_shared.link import Connected, Link, LinkConfig, LinkItem, Received, parse_broker_url
from muster_shared.messages import Hardware, ReleaseRef, TrustFiles
from muster_shared.topics import Topic, build, controller_filters, parse
from muster_simulator.load.fleet import LoadedFleet
from muster_simulator.load.truth import Truth, Truths, write_truth

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]

FLEET = FleetId("yard")
MODEL = ModelName("digits")
DEVICES = 10
WAIT_S = 45.0
# Ten devices hold back too few to tell two bad of two from chance (E = 10): so small a fleet says what is too much.
POLICY = Policy(
    abort_when=(Threshold(failures=2),),
    waves=(2, "50%"),
    window_s=1.0,
    window_max_s=3.0,
    requests_min=50,
    deadline_s=20.0,
    success_required=0.75,
)
REQUESTS_PER_S = 100.0


@dataclass(frozen=True)
class Published:
    """`ports.Registry` over the real repository and the real blob store."""

    tuf: TufRepository
    blobs: BlobStore
    manifests: dict[Sha256, Manifest]
    refs: dict[tuple[ModelName, str], ReleaseRef]

    def trust_messages(self) -> tuple[TrustFiles, ...]:
        return self.tuf.trust_messages()

    def release(self, model: ModelName, version: str) -> ReleaseRef | None:
        return self.refs.get((model, version))

    def releases(self) -> list[ReleaseRef]:
        return list(self.refs.values())

    def manifest(self, bundle: Sha256) -> Manifest | None:
        return self.manifests.get(bundle)

    def sign_assignments(self, assignments: Sequence[Assignment]) -> list[bytes]:
        return self.tuf.sign_assignments(assignments)

    def blob_length(self, sha256: Sha256) -> int | None:
        return self.blobs.length(sha256) if self.blobs.has(sha256) else None

    def read_blob(self, sha256: Sha256, offset: int, length: int) -> bytes:
        return self.blobs.read_range(sha256, offset, length)


class Yard:
    """A controller without HTTP: the fleet and a link, on one thread."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self.folder = folder
        self.operator = folder / "operator"
        now = datetime.now(UTC)
        offline = init_operator(self.operator, [MODEL], create_online_keys(folder / "data"), now)
        tuf = TufRepository(folder / "data")
        tuf.accept_offline(offline.root, offline.targets, offline.keys, now)
        self.registry = Published(tuf, BlobStore(folder / "blobs"), {}, {})
        self.bootstrap_root = tuf.bootstrap_root()
        self._items: queue.Queue[LinkItem | Callable[[], None]] = queue.Queue(10_000)
        self._link = Link(
            LinkConfig(parse_broker_url(broker_url), client_id="yard", max_queued_out=10_000, session_expiry_s=60),
            self._items.put_nowait,
            rng=random.Random(0),
        )
        self._link.subscribe(controller_filters(FLEET))
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.fleet: Fleet
        self.ledger: SqlLedger

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        self._link.publish(build(FLEET, topic), payload, qos=1 if qos else 0, retain=retain)

    def start(self) -> None:
        self._thread.start()
        self._link.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(10.0)
        self._link.stop(2.0)

    def ask(self, question: Callable[[], object]) -> object:
        """Return the answer of `question`, asked on the fleet's thread."""
        answers: queue.Queue[object] = queue.Queue(1)

        def work() -> None:
            try:
                answers.put(question())
            except Exception as error:
                answers.put(error)

        self._items.put(work)
        answer = answers.get(timeout=10.0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def publish_release(self, version: str, release: int, right: float, truths: Path) -> ReleaseRef:
        """Sign and publish a release of some random bytes that answers the share `right` of 200 inputs."""
        model = random.Random(release).randbytes(150_000)
        golden = b"golden"
        manifest = Manifest(
            model=MODEL,
            version=version,
            release=release,
            inputs=(TensorSpec(name="pixels", datatype="FP32", shape=(-1, 64)),),
            outputs=(TensorSpec(name="scores", datatype="FP32", shape=(-1, 10)),),
            files=(describe_file("model.onnx", model), describe_file("golden.npz", golden)),
            variants=(Variant(name="ort", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
            golden=Golden(file="golden.npz"),
            slo=Slo(accuracy=0.95),
        )
        raw = encode_manifest(manifest)
        bundle = self.folder / "bundles" / version
        bundle.mkdir(parents=True)
        for name, content in (("bundle.json", raw), ("model.onnx", model), ("golden.npz", golden)):
            (bundle / name).write_bytes(content)
            self.registry.blobs.put(BytesIO(content), digest(content), len(content))
        now = datetime.now(UTC)
        role = release_role(MODEL)
        signed = sign_release(self.operator, bundle, self.registry.tuf.role_metadata(role), now)
        ref = ReleaseRef(
            model=MODEL, version=version, release=release, bundle_sha256=digest(raw), bundle_length=len(raw)
        )
        answers = np.arange(200) < 200 * right
        write_truth(truths, ref.bundle_sha256, Truth(np.random.default_rng(0).permutation(answers), 0.5))

        def take() -> None:
            self.registry.tuf.accept_release(role, signed.metadata, raw, now)
            self.registry.manifests[ref.bundle_sha256] = parse_manifest(raw)
            self.registry.refs[MODEL, version] = ref
            self.fleet.publish_trust()

        self.ask(take)
        return ref

    def _run(self) -> None:
        with SqlLedger(self.folder / "fleet.sqlite", time.time) as ledger:
            self.ledger = ledger
            self.fleet = Fleet(
                FLEET,
                ledger=ledger,
                registry=self.registry,
                wire=self,
                clock=time.time,
                random=random.Random(0),
                session="test",
            )
            while not self._ending.is_set():
                with suppress(queue.Empty):
                    self._handle(self._items.get(timeout=0.05))
                self.fleet.tick()

    def _handle(self, item: LinkItem | Callable[[], None]) -> None:
        match item:
            case Received(text, payload, _, _, token):
                with suppress(WireError):
                    self.fleet.received(parse(FLEET, text), payload)
                self._link.ack(token)
            case Connected():
                self.fleet.connected()
            case _ if callable(item):
                item()
            case _:
                pass


@pytest.fixture(params=[BrokerKind.MOSQUITTO, BrokerKind.NATS])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedBroker]:
    try:
        find_broker(request.param)
    except BrokerUnavailable as error:
        pytest.skip(str(error))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with start_broker(request.param, tmp_path / "broker", port) as broker:
        broker.wait_ready(10.0)
        yield broker


@pytest.fixture
def yard(broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path, broker.url)
    yard.start()
    yield yard
    yard.stop()


@pytest.fixture
def devices(broker: EmbeddedBroker, yard: Yard, tmp_path: Path) -> Iterator[LoadedFleet]:
    classes = ("camera", "gateway")
    fleet = LoadedFleet(
        FLEET,
        {
            DeviceId(f"sim-{number:02d}"): Hardware(
                device_class=classes[number % 2], arch="x86_64", memory_mb=512, runtimes=("onnxruntime",)
            )
            for number in range(DEVICES)
        },
        parse_broker_url(broker.url),
        yard.bootstrap_root,
        tmp_path / "trust",
        Truths(tmp_path / "truth"),
        requests_per_s=lambda _: REQUESTS_PER_S,
        twin_every_s=5.0,
        seed=1,
    )
    fleet.start()
    wait_until(
        lambda: yard.ask(lambda: sum(device.online and device.twin is not None for device in known(yard))) == DEVICES,
        "all devices known",
    )
    yield fleet
    fleet.stop()


def known(yard: Yard) -> list[Device]:
    return list(yard.ledger.devices())


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)


def roll_out(yard: Yard, version: str) -> tuple[RolloutState, str]:
    """Roll `version` out and return how that ended."""
    created = yard.ask(lambda: yard.fleet.create_rollout(MODEL, version, POLICY, "test"))
    rollout_id: RolloutId = created.id  # type: ignore[attr-defined]

    def state() -> tuple[RolloutState, str]:
        rollout = yard.ask(lambda: yard.ledger.rollout(rollout_id))
        return rollout.state, rollout.reason  # type: ignore[attr-defined]

    wait_until(lambda: state()[0] in (RolloutState.FINISHED, RolloutState.ABORTED, RolloutState.PAUSED), version)
    return state()


def test_ten_devices_reach_a_release_and_fetch_each_byte_themselves(
    yard: Yard, devices: LoadedFleet, tmp_path: Path
) -> None:
    ref = yard.publish_release("1.0.0", 1, 0.97, tmp_path / "truth")

    state, reason = roll_out(yard, "1.0.0")

    counters = devices.counters()
    assert state is RolloutState.FINISHED, reason
    assert counters.active == {MODEL: {"1.0.0": DEVICES}}
    assert counters.bytes_fetched == DEVICES * (150_000 + len(b"golden") + ref.bundle_length)
    assert counters.bytes_held == 150_000 + len(b"golden") + ref.bundle_length  # Equal bytes are kept once.
    assert counters.self_tests == DEVICES
    assert 0.9 < counters.tallies[MODEL]["1.0.0"].right / counters.tallies[MODEL]["1.0.0"].requests <= 1.0


def test_a_release_that_answers_worse_than_it_claims_is_called_back_without_a_download(
    yard: Yard, devices: LoadedFleet, tmp_path: Path
) -> None:
    yard.publish_release("1.0.0", 1, 0.97, tmp_path / "truth")
    assert roll_out(yard, "1.0.0")[0] is RolloutState.FINISHED
    ref = yard.publish_release("2.0.0", 2, 0.5, tmp_path / "truth")
    before = devices.counters()

    state, reason = roll_out(yard, "2.0.0")

    after = devices.counters()
    assert state is RolloutState.ABORTED, reason
    assert after.active == {MODEL: {"1.0.0": DEVICES}}
    touched = POLICY.waves[0]
    assert after.bytes_fetched - before.bytes_fetched == touched * (150_000 + ref.bundle_length)  # Golden is the same.


def test_devices_that_stop_are_offline_at_once(yard: Yard, devices: LoadedFleet) -> None:
    devices.stop()

    wait_until(lambda: yard.ask(lambda: any(device.online for device in known(yard))) is False, "all offline")
