"""The release that served before stays runnable: nothing deletes its files until another release replaces it.

The shipped conductor and store run on a disk in memory, on which files really go away; the wire brings what is asked.
"""

from collections.abc import Callable
from random import Random

import msgspec
from msgspec.structs import replace

from harness.updates import DEVICE, FLEET, HARDWARE, MODELS, NOW
from muster_agent.conductor import Conductor, Identity
from muster_agent.core.state import Slots, Stage
from muster_agent.core.trust import Target, TrustView
from muster_agent.errors import DiskFull
from muster_agent.io.store import ContentStore, blob
from muster_shared import assignment as documents
from muster_shared.assignment import Activation, Assignment, AssignmentKeys, ModelAssignment, Watch
from muster_shared.bundle import (
    BundleFile,
    Golden,
    Manifest,
    TensorSpec,
    Variant,
    describe_file,
    digest,
    encode_manifest,
    target_path,
)
from muster_shared.ids import ModelName, RolloutId, Sha256
from muster_shared.messages import (
    HostTelemetry,
    Refusal,
    ReleaseRef,
    TrustFiles,
    TwinModel,
    Want,
    WindowReport,
    decode,
    unpack_bits,
)
from muster_shared.topics import Channel, ChunkTopic, DeviceTopic, Topic, WantTopic
from muster_simulator.ports.disk import MemoryDisk
from muster_simulator.ports.journal import MemoryJournal

MODEL = MODELS[0]
WATCH = Watch(rollout=RolloutId("r1"), wave=1, window_s=10, window_max_s=20, deadline_s=1000, download_s=500)


class Works:
    """Publishes: every file by its digest."""

    def __init__(self) -> None:
        self.blobs: dict[Sha256, bytes] = {}
        self.files: dict[Sha256, tuple[BundleFile, ...]] = {}

    def release(self, number: int) -> ReleaseRef:
        contents = {"m.onnx": f"model {number}".encode() * 40_000, "golden.npz": f"cases {number}".encode()}
        tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
        files = tuple(describe_file(path, raw) for path, raw in contents.items())
        raw = encode_manifest(
            Manifest(
                model=MODEL,
                version=f"1.{number}.0",
                release=number,
                inputs=(tensor,),
                outputs=(tensor,),
                files=files,
                variants=(Variant(name="cpu", runtime="onnxruntime", precision="fp32", files=("m.onnx",)),),
                golden=Golden(file="golden.npz"),
            )
        )
        for content in (raw, *contents.values()):
            self.blobs[digest(content)] = content
        self.files[digest(raw)] = files
        return ReleaseRef(
            model=MODEL, version=f"1.{number}.0", release=number, bundle_sha256=digest(raw), bundle_length=len(raw)
        )


class Device:
    """One device: every other port is this object."""

    def __init__(self, works: Works) -> None:
        self.now = NOW
        self.works = works
        self.disk = MemoryDisk()
        self.store = ContentStore(self.disk)
        self.journal = MemoryJournal()
        self.wanted: list[tuple[Sha256, tuple[int, ...]]] = []
        """Files and their chunks, as they were asked for."""
        self.chunks_max = 1000
        """Of each file that the wire brings."""
        self.consents = True
        self.window = WindowReport(seconds=10, requests=10)
        self._counter = 0
        self._later: list[Callable[[], None]] = []
        self.conductor = self._boot()

    def _boot(self) -> Conductor:
        return Conductor(
            Identity(FLEET, DEVICE, "boot", "0.1.0", HARDWARE),
            journal=self.journal,
            store=self.store,
            trust=self,
            wire=self,
            lab=self,
            host=self,
            clock=lambda: self.now,
            random=Random(1),
            consent=self,
        )

    def restart(self) -> None:
        self.conductor = self._boot()
        self.conductor.start()
        self.conductor.connected()
        self.settle()

    def assign(self, release: ReleaseRef, watch: Watch | None = None) -> None:
        self._counter += 1
        wanted = Assignment(
            fleet=FLEET,
            device=DEVICE,
            counter=self._counter,
            issued_at=self.now,
            expires_at=self.now + 1e6,
            models=(ModelAssignment(release=release, watch=watch),),
        )
        self.conductor.connected()
        self.conductor.received(DeviceTopic(DEVICE, Channel.ASSIGNMENT), msgspec.json.encode(wanted))
        self.settle()

    def settle(self) -> None:
        """Let everything that is due happen."""
        while self._later:
            self._later.pop(0)()

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.conductor.tick()
        self.settle()

    @property
    def asked(self) -> set[Sha256]:
        return {sha256 for sha256, _ in self.wanted}

    @property
    def model(self) -> TwinModel:
        return self.conductor.twin().models[0]

    @property
    def slots(self) -> Slots:
        return self.conductor.state.models[MODEL].slots

    def holds(self, release: ReleaseRef) -> bool:
        """Whether every file of `release` is there, whole."""
        names = [release.bundle_sha256, *(file.sha256 for file in self.works.files[release.bundle_sha256])]
        return all(self.disk.peek(blob(name)) == self.works.blobs[name] for name in names)

    # -- ports.Wire ----------------------------------------------------------------------------------------------------

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        if not isinstance(topic, WantTopic):
            return
        want, content = decode(payload, Want), self.works.blobs[topic.sha256]
        missing = unpack_bits(want.missing, -(-want.length // want.chunk_bytes))
        self.wanted.append((topic.sha256, missing))
        for index in missing:
            if index >= self.chunks_max:
                break
            chunk = content[index * want.chunk_bytes : (index + 1) * want.chunk_bytes]
            where = ChunkTopic(topic.sha256, index)
            self._later.append(lambda where=where, chunk=chunk: self.conductor.received(where, chunk))  # type: ignore[misc]

    def listen(self, sha256: Sha256) -> None: ...

    def unlisten(self, sha256: Sha256) -> None: ...

    # -- ports.Trust ---------------------------------------------------------------------------------------------------

    def offer(self, files: TrustFiles) -> bool:
        return False

    def refresh(self) -> TrustView:
        return self.view()

    def view(self) -> TrustView:
        targets = {
            target_path(MODEL, f"1.{number}.0"): Target(one.bundle_sha256, one.bundle_length)
            for number in range(1, 9)
            for one in [self.works.release(number)]
        }
        return TrustView(targets, AssignmentKeys(keys={}))

    def open_assignment(self, raw: bytes) -> Assignment:
        return documents.parse(raw)

    # -- ports.Lab, Host and Consent -----------------------------------------------------------------------------------

    def self_test(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None:
        whole = all(self.store.verify(file) for file in manifest.files)
        refusal = None if whole else Refusal.TAMPERED
        self._later.append(lambda: self.conductor.self_test_done(release.bundle_sha256, refusal, ""))

    def serve(self, release: ReleaseRef, manifest: Manifest, variants: tuple[Variant, ...]) -> None: ...

    def retire(self, model: ModelName) -> None: ...

    def drop(self, keep: frozenset[Sha256]) -> None: ...

    def open_window(self, release: ReleaseRef) -> None: ...

    def measure(self, release: ReleaseRef) -> WindowReport:
        return self.window

    def served(self, model: ModelName) -> None: ...

    def telemetry(self) -> HostTelemetry:
        return HostTelemetry()

    def local(self) -> tuple[int, int]:
        return 2, 600

    def ask(self, release: ReleaseRef, stage: Stage) -> None:
        bundle = release.bundle_sha256
        if self.consents:
            self._later.append(lambda: self.conductor.consent_given(bundle, stage))
        else:
            self._later.append(lambda: self.conductor.consent_deferred(bundle, stage, "busy", 60.0))


def rolled_out() -> tuple[Device, list[ReleaseRef]]:
    """A device that runs its second release by a rollout that is committed, with the first in standby."""
    works = Works()
    releases = [works.release(number) for number in range(1, 5)]
    device = Device(works)
    device.assign(releases[0])
    device.assign(releases[1], WATCH)
    device.passes(10)
    assert device.slots == Slots(releases[1], releases[0])
    return device, releases


def test_the_previous_release_is_whole_after_the_commit_and_the_twin_shows_it() -> None:
    device, (first, second, *_) = rolled_out()

    assert device.model.standby == first
    assert device.holds(first)
    assert device.holds(second)


def test_a_restart_and_other_assignments_keep_it() -> None:
    device, (first, second, *_) = rolled_out()

    device.restart()
    device.assign(second)
    device.assign(second, replace(WATCH, rollout=RolloutId("r2")))
    device.passes(10)

    assert device.model.standby == first
    assert device.holds(first)


def test_a_full_disk_costs_the_newcomer_its_room_never_the_standby() -> None:
    device, (first, second, third, _) = rolled_out()

    def full(path: str, offset: int, content: bytes) -> None:
        raise DiskFull("no room is left")

    device.disk.write_at = full  # type: ignore[method-assign]  # The disk of this test.
    device.assign(third, WATCH)

    assert device.model.last_error is not None
    assert "disk_full" in device.model.last_error
    assert device.slots == Slots(second, first)
    assert device.holds(first)
    assert device.holds(second)


def test_a_release_that_fails_takes_nothing_with_it() -> None:
    device, (first, second, third, _) = rolled_out()
    device.chunks_max = 0

    device.assign(third, replace(WATCH, rollout=RolloutId("r2")))
    device.passes(500)

    assert "timed_out: download" in (device.model.last_error or "")
    assert device.holds(first)
    assert device.holds(second)


def test_another_release_replaces_it() -> None:
    device, (first, second, third, _) = rolled_out()

    device.assign(third)

    assert device.slots == Slots(third, second)
    assert not device.holds(first)
    assert device.holds(second)


def test_calling_back_asks_for_no_byte_and_for_no_consent() -> None:
    device, (first, *_) = rolled_out()
    device.wanted.clear()
    device.consents = False

    device.assign(first)

    assert device.slots.active == first
    assert device.wanted == []


def test_a_watched_way_back_waits_for_consent_and_asks_for_no_byte() -> None:
    device, (first, second, *_) = rolled_out()
    device.wanted.clear()
    device.consents = False
    careful = replace(WATCH, rollout=RolloutId("back"), activation=Activation(consent=True, defer_s_max=600.0))

    device.assign(first, careful)
    assert device.slots.active == second
    assert device.model.phase == "ready"
    device.consents = True
    device.passes(60)

    assert device.slots.active == first
    assert device.wanted == []


def test_another_attempt_goes_on_with_the_chunks_that_are_here() -> None:
    device, (_, _, third, _) = rolled_out()
    model = device.works.files[third.bundle_sha256][0]
    device.chunks_max = 3
    device.assign(third, replace(WATCH, rollout=RolloutId("r2")))
    device.passes(500)
    assert "timed_out" in (device.model.last_error or "")
    device.wanted.clear()
    device.chunks_max = 1000

    device.assign(third, replace(WATCH, rollout=RolloutId("r2"), attempt=2))

    assert device.slots.active == third
    assert device.wanted[0] == (model.sha256, tuple(range(3, len(model.chunks))))
    assert third.bundle_sha256 not in device.asked


def test_what_failed_goes_when_another_release_is_wanted() -> None:
    device, (_, second, third, _) = rolled_out()
    device.assign(third, replace(WATCH, rollout=RolloutId("r2")))
    device.window = WindowReport(seconds=10, requests=1, errors=40)
    device.passes(10)
    assert device.slots == Slots(second)
    assert device.holds(third)

    device.assign(second)

    assert not device.holds(third)
    assert device.holds(second)
