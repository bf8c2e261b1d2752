"""The lab with the real engines on a real disk: measured once, remembered over a restart, kept within memory."""

import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from harness.fleet_of_one import MODEL, Agent, Fleet, Works, free_port, scaling_model, wait_until
from muster_agent import loading
from muster_agent.core.split import Mode
from muster_agent.engines.port import ModelUnloadable
from muster_agent.io.disk import OsDisk
from muster_agent.io.store import ContentStore
from muster_agent.io.tuning_store import TuningStore
from muster_agent.io.views import Views
from muster_agent.lab import EngineLab
from muster_agent.serving.table import ModelUnknown, Served, ServingTable
from muster_controller.broker.embedded import BrokerKind, start_broker
from muster_shared.bundle import (
    Golden,
    Manifest,
    Serving,
    TensorSpec,
    Variant,
    describe_file,
    digest,
    encode_manifest,
)
from muster_shared.errors import MusterError
from muster_shared.ids import FleetId, ModelName, Sha256
from muster_shared.messages import Refusal, ReleaseRef, Step, Tuning, Twin
from muster_shared.variants import files_of

TIMEOUT_S = 60.0
X = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
ONNX_RUNTIME = Variant(name="ort", runtime="onnxruntime", precision="fp32", files=("model.onnx",))
OPENVINO = Variant(name="ov", runtime="openvino", precision="fp32", files=("other.onnx",))


class Device:
    """A lab on a folder, and this thread as the conductor's."""

    def __init__(self, folder: Path, *, memory_mb: int | None = None) -> None:
        self.disk = OsDisk(folder)
        self.store = ContentStore(self.disk)
        self.table = ServingTable()
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.tested: list[tuple[Sha256, Refusal | None, str]] = []
        self.failed: list[tuple[Sha256, str]] = []
        self.lab = EngineLab(
            self.store,
            Views(self.disk),
            self.table,
            self.posted.put,
            threads=2,
            cpus=2,
            tunings=TuningStore(self.disk),
            tuning_s=2.0,
            memory_mb=memory_mb,
        )
        self.lab.attach(self)

    def self_test_done(self, bundle: Sha256, refusal: Refusal | None, detail: str) -> None:
        self.tested.append((bundle, refusal, detail))

    def serve_failed(self, bundle: Sha256, detail: str) -> None:
        self.failed.append((bundle, detail))

    def settle(self) -> None:
        """Take the next answer of the worker."""
        self.posted.get(timeout=TIMEOUT_S)()

    def serve(self, release: ReleaseRef, manifest: Manifest) -> Served:
        self.lab.serve(release, manifest, manifest.variants)
        while release.model not in self.table.places() and not self.failed:
            self.settle()
        return self.table.served(release.model)

    def close(self) -> None:
        self.table.close(TIMEOUT_S)


class Devices:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Device] = []

    def __call__(self, *, memory_mb: int | None = None) -> Device:
        device = Device(self.folder, memory_mb=memory_mb)
        self.all.append(device)
        return device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Devices]:
    """Start an agent's lab, again and again on one data folder."""
    devices = Devices(tmp_path)
    yield devices
    for each in devices.all:
        each.close()


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever is tuned leaves the name of its model here."""
    tuned: list[str] = []
    tune = loading.tune

    def watched(variants: object, load: object, manifest: Manifest, *others: object, **named: object) -> object:
        tuned.append(manifest.model)
        return tune(variants, load, manifest, *others, **named)  # type: ignore[arg-type]  # As it was called.

    monkeypatch.setattr(loading, "tune", watched)
    return tuned


def publish(
    device: Device,
    model: str = "scale",
    *,
    version: str = "1.0.0",
    factor: float = 2.0,
    variants: tuple[Variant, ...] = (ONNX_RUNTIME, OPENVINO),
    other_factor: float | None = None,
) -> tuple[ReleaseRef, Manifest]:
    """Put a release into the device's store, as if it had been fetched."""
    golden = device.disk.path("golden.npz")
    np.savez(golden, **{"input.x": X, "output.y": X * np.float32(factor)})  # type: ignore[arg-type]
    contents = {
        "model.onnx": scaling_model(factor),
        "other.onnx": scaling_model(other_factor or factor),
        "golden.npz": golden.read_bytes(),
    }
    manifest = Manifest(
        model=ModelName(model),
        version=version,
        release=1,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
        files=tuple(describe_file(path, raw) for path, raw in contents.items()),
        variants=variants,
        golden=Golden(file="golden.npz"),
        serving=Serving(selection="measured"),
    )
    for file in files_of(manifest, variants):
        raw = contents[file.path]
        device.store.resume(file)
        device.store.write_chunk(file, 0, raw)
        device.store.finish(file)
    encoded = encode_manifest(manifest)
    release = ReleaseRef(
        model=manifest.model, version=version, release=1, bundle_sha256=digest(encoded), bundle_length=len(encoded)
    )
    return release, manifest


def test_a_first_activation_measures_and_a_restart_remembers(device: Devices, trials: list[str]) -> None:
    first = device()
    release, manifest = publish(first)
    first.lab.self_test(release, manifest, manifest.variants)
    first.settle()
    served = first.serve(release, manifest)
    told = first.lab.served(release.model)

    second = device()
    again = second.serve(release, manifest)
    told_again = second.lab.served(release.model)

    assert first.tested == [(release.bundle_sha256, None, "")]
    assert trials == ["scale"]
    assert again.plan == served.plan
    assert again.variant == served.variant
    assert told is not None
    assert told.tuning is not None
    assert told_again is not None
    assert told_again.tuning == told.tuning
    assert {told.tuning.variant, *(trial.variant for trial in told.tuning.alternatives)} == {"ort", "ov"}
    np.testing.assert_array_equal(again.session.run_arrays((X,))[0], X * 2)


def test_a_damaged_memory_is_measured_again(device: Devices, trials: list[str]) -> None:
    first = device()
    release, manifest = publish(first)
    first.serve(release, manifest)
    (remembered,) = (first.disk.root / "tuning").iterdir()
    remembered.write_bytes(remembered.read_bytes()[:-7])

    second = device()
    served = second.serve(release, manifest)

    assert trials == ["scale", "scale"]
    np.testing.assert_array_equal(served.session.run_arrays((X,))[0], X * 2)
    assert msgspec.json.decode(remembered.read_bytes())["v"] == 1


def test_a_variant_that_answers_wrongly_here_leaves_the_others_to_serve(device: Devices) -> None:
    one = device()
    release, manifest = publish(one, other_factor=3.0)

    one.lab.self_test(release, manifest, manifest.variants)
    one.settle()
    served = one.serve(release, manifest)

    assert one.tested == [(release.bundle_sha256, None, "")]
    assert served.variant == "ort"


def test_no_variant_that_answers_rightly_is_a_failed_self_test(device: Devices) -> None:
    one = device()
    release, manifest = publish(one, variants=(OPENVINO,), other_factor=3.0)

    one.lab.self_test(release, manifest, manifest.variants)
    one.settle()

    assert one.tested[0][:2] == (release.bundle_sha256, Refusal.SELF_TEST_FAILED)
    assert "cases fail" in one.tested[0][2]


def test_when_the_file_of_the_remembered_variant_rots_another_takes_over(device: Devices, trials: list[str]) -> None:
    first = device()
    release, manifest = publish(first, other_factor=2.0001)  # Within tolerance, and a blob of its own.
    chosen = first.serve(release, manifest).variant
    rotten = next(variant.files[0] for variant in manifest.variants if variant.name == chosen)
    blob = first.disk.path(f"blobs/{manifest.file(rotten).sha256}")
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")

    second = device()
    served = second.serve(release, manifest)

    assert served.variant != chosen
    assert trials == ["scale", "scale"]
    assert second.failed == []
    np.testing.assert_allclose(served.session.run_arrays((X,))[0], X * 2, rtol=1e-3)


def test_a_release_without_one_whole_variant_is_tampered(device: Devices) -> None:
    one = device()
    release, manifest = publish(one)
    blob = one.disk.path(f"blobs/{manifest.file('golden.npz').sha256}")
    blob.write_bytes(b"?" * blob.stat().st_size)

    one.lab.self_test(release, manifest, manifest.variants)
    one.settle()

    assert one.tested[0][1] is Refusal.TAMPERED
    assert "golden.npz" in one.tested[0][2]


def test_an_unloaded_model_comes_back_when_it_is_wanted(device: Devices, trials: list[str]) -> None:
    one = device()
    release, manifest = publish(one)
    one.serve(release, manifest)

    assert one.lab.unload(release.model)
    assert release.model not in one.table.places()
    assert one.lab.unloaded() == {release.model}
    one.lab.serve(release, manifest, manifest.variants)  # As the conductor may say again: it stays unloaded.
    assert one.posted.empty()

    assert one.lab.reload(release.model)
    one.settle()

    assert one.lab.unloaded() == frozenset()
    np.testing.assert_array_equal(one.table.served("scale").session.run_arrays((X,))[0], X * 2)
    assert trials == ["scale"]
    assert not one.lab.unload(ModelName("nobody"))
    assert not one.lab.reload(ModelName("nobody"))


def test_a_model_that_is_unloaded_while_it_loads_does_not_serve(device: Devices) -> None:
    one = device()
    release, manifest = publish(one)
    one.serve(release, manifest)
    one.lab.unload(release.model)
    one.lab.reload(release.model)

    one.lab.unload(release.model)
    one.settle()

    assert release.model not in one.table.places()
    assert one.lab.unloaded() == {release.model}


def test_models_beyond_the_memory_of_the_device_take_turns(device: Devices) -> None:
    one = device(memory_mb=0)  # Less than any model takes: one at a time.
    first, first_manifest = publish(one, "first", variants=(ONNX_RUNTIME,))
    second, second_manifest = publish(one, "second", factor=3.0, variants=(ONNX_RUNTIME,))

    one.serve(first, first_manifest)
    one.serve(second, second_manifest)
    assert list(one.table.places()) == ["second"]
    one.lab.reload(first.model)
    assert list(one.table.places()) == []
    one.settle()

    assert list(one.table.places()) == ["first"]
    assert one.lab.unloaded() == {second.model}
    np.testing.assert_array_equal(one.table.served("first").session.run_arrays((X,))[0], X * 2)


def test_what_was_measured_of_a_dropped_release_is_forgotten(device: Devices) -> None:
    one = device()
    release, manifest = publish(one)
    one.serve(release, manifest)
    kept = sorted(path.name for path in (one.disk.root / "tuning").iterdir())

    one.lab.retire(release.model)
    one.lab.drop(frozenset())
    one.lab.self_test(*publish(one, "next"), (ONNX_RUNTIME,))  # The worker works in order: after it, all is dropped.
    one.settle()

    assert kept == [f"{release.bundle_sha256}.json"]
    assert kept[0] not in [path.name for path in (one.disk.root / "tuning").iterdir()]


def test_a_candidate_is_loaded_beside_the_release_that_serves(device: Devices) -> None:
    one = device()
    one.serve(*publish(one, variants=(ONNX_RUNTIME,)))
    release, manifest = publish(one, version="1.1.0", factor=3.0, variants=(ONNX_RUNTIME,))
    told: list[MusterError | None] = []

    one.lab.begin_trial(release, manifest, manifest.variants, Mode.SHADOW, 0.5, told.append)
    one.settle()

    candidate = one.table.trials["scale"].place.served
    assert told == [None]
    assert one.table.served("scale").manifest.version == "1.0.0"
    assert candidate.slot == "standby"
    np.testing.assert_array_equal(candidate.session.run_arrays((X,))[0], X * 3)


@pytest.mark.parametrize("harm", ["nothing serves", "the candidate is damaged"])
def test_a_trial_that_cannot_be_says_why(device: Devices, harm: str) -> None:
    one = device()
    release, manifest = publish(one, version="1.1.0", variants=(ONNX_RUNTIME,))
    if harm == "the candidate is damaged":
        one.serve(*publish(one, factor=3.0, variants=(ONNX_RUNTIME,)))
        one.disk.path(f"blobs/{manifest.file('model.onnx').sha256}").write_bytes(b"?")
    told: list[MusterError | None] = []

    one.lab.begin_trial(release, manifest, manifest.variants, Mode.CANARY, 0.5, told.append)
    one.settle()

    expected = ModelUnknown if harm == "nothing serves" else ModelUnloadable
    assert [type(error) for error in told] == [expected]
    assert not one.table.trials


@pytest.mark.broker
def test_a_device_fetches_every_fitting_variant_once_and_tells_what_it_chose(tmp_path: Path) -> None:
    for name in ("works", "device", "broker"):
        (tmp_path / name).mkdir()
    works = Works.open(tmp_path / "works")
    release = works.publish(_two_variants(tmp_path / "works" / "bundle"))
    manifest = works.manifests[release.bundle_sha256]
    with start_broker(BrokerKind.AUTO, tmp_path / "broker", free_port()) as broker:
        broker.wait_ready(20.0)
        fleet = Fleet(works, broker, FleetId("measured"), tmp_path / "device")
        try:
            fleet.assign(1, release)
            committed = fleet.wait_for_step(release, Step.COMMITTED)
            told = wait_until(lambda: _tunings(fleet.twins), lambda: "no twin with a tuning")[-1]
            answer = fleet.answer()
            fleet.agent.kill()
            fleet.agent = Agent.start(fleet.agent.folder, broker_url="mqtt://127.0.0.1:9")
            answer_again = fleet.answer()
        finally:
            fleet.close()

    here = {path.name for path in (tmp_path / "device" / "data" / "blobs").iterdir()}
    assert committed.refusal is None
    assert {told.variant, *(trial.variant for trial in told.alternatives)} == {"one", "two"}
    assert told.threads == 1  # As the device is configured.
    assert here == {
        release.bundle_sha256,
        *(manifest.file(path).sha256 for path in ("model.onnx", "other.onnx", "golden.npz")),
    }
    assert answer == answer_again
    assert answer == pytest.approx([2.0, 4.0], rel=1e-3)
    log = (tmp_path / "device" / "agent.log").read_text()
    assert log.count("release_proven") == 1
    assert log.count("release_loaded") == 1


def _tunings(twins: list[Twin]) -> list[Tuning]:
    return [model.tuning for twin in list(twins) for model in twin.models if model.tuning is not None]


def _two_variants(folder: Path) -> Path:
    """Write a bundle with two variants that fit the device and one for an engine that it does not have."""
    folder.mkdir()
    np.savez(folder / "golden.npz", **{"input.x": X, "output.y": X * 2})  # type: ignore[arg-type]
    (folder / "model.onnx").write_bytes(scaling_model(2.0))
    (folder / "other.onnx").write_bytes(scaling_model(2.0001))
    (folder / "third.onnx").write_bytes(scaling_model(1.9999))
    one = msgspec.structs.replace(ONNX_RUNTIME, name="one")
    manifest = Manifest(
        model=MODEL,
        version="1.0.0",
        release=1,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
        files=tuple(describe_file(path.name, path.read_bytes()) for path in sorted(folder.iterdir())),
        variants=(
            one,
            msgspec.structs.replace(one, name="two", files=("other.onnx",)),
            msgspec.structs.replace(OPENVINO, files=("third.onnx",)),
        ),
        golden=Golden(file="golden.npz"),
        serving=Serving(selection="measured"),
    )
    (folder / "bundle.json").write_bytes(encode_manifest(manifest))
    return folder
