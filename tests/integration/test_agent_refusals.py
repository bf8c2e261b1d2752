"""A real agent process, a real broker and real signatures.

Whatever is wrong is refused by its own name, and the model that serves goes on serving.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from harness.fleet_of_one import DEVICE, Agent, Fleet, Works, doubling_fleet, own_broker, wait_until
from muster_controller.broker.embedded import EmbeddedBroker
from muster_shared.bundle import (
    HardwareMatch,
)
from muster_shared.ids import DeviceId, FleetId
from muster_shared.messages import (
    Refusal,
    Step,
)
from muster_shared.topics import (
    Channel,
    DeviceTopic,
)

pytestmark = pytest.mark.broker


def test_a_tampered_file_is_refused(fleet: "Fleet") -> None:
    release = fleet.works.release("1.1.0", factor=3.0)
    weights = fleet.works.manifests[release.bundle_sha256].file("weights.bin")
    fleet.tampered.add(weights.sha256)

    fleet.assign(2, release)

    failed = fleet.wait_for_failure(release)
    assert failed.refusal is Refusal.TAMPERED
    assert fleet.answer() == fleet.first_answer


def test_a_tampered_manifest_is_refused(fleet: "Fleet") -> None:
    release = fleet.works.release("1.2.0", factor=3.0)
    fleet.tampered.add(release.bundle_sha256)

    fleet.assign(2, release)

    failed = fleet.wait_for_failure(release)
    assert failed.refusal is Refusal.TAMPERED
    assert fleet.answer() == fleet.first_answer


def test_an_assignment_for_another_device_is_refused(fleet: "Fleet") -> None:
    release = fleet.works.release("1.3.0", factor=3.0)

    fleet.assign(2, release, device=DeviceId("edge-2"))

    assert fleet.wait_for_refusal().refusal is Refusal.OTHER_DEVICE
    assert fleet.answer() == fleet.first_answer


def test_a_replayed_counter_is_refused(fleet: "Fleet") -> None:
    old = fleet.works.release("1.4.0", factor=3.0)

    fleet.assign(1, old)

    refused = fleet.wait_for_refusal()
    assert (refused.refusal, refused.counter) == (Refusal.REPLAYED, 1)
    assert fleet.answer() == fleet.first_answer


def test_an_expired_assignment_is_refused(fleet: "Fleet") -> None:
    release = fleet.works.release("1.5.0", factor=3.0)

    fleet.assign(2, release, expires_at=time.time() - 1)

    assert fleet.wait_for_refusal().refusal is Refusal.EXPIRED
    assert fleet.answer() == fleet.first_answer


def test_expired_metadata_is_refused(fleet: "Fleet") -> None:
    release = fleet.works.release("1.6.0", factor=3.0)
    fleet.freeze()

    fleet.assign(2, release)

    assert fleet.wait_for_refusal().refusal is Refusal.METADATA_EXPIRED
    assert fleet.answer() == fleet.first_answer


def test_forged_metadata_is_reported_and_what_was_trusted_before_still_counts(fleet: "Fleet") -> None:
    release = fleet.works.release("1.6.1", factor=3.0)

    fleet.publish_trust(fleet.works.forged_timestamp())

    assert fleet.wait_for_refusal().refusal is Refusal.METADATA_UNTRUSTED
    assert fleet.answer() == fleet.first_answer
    fleet.assign(2, release)
    fleet.wait_for_step(release, Step.COMMITTED)


def test_a_release_that_is_no_target_is_refused(fleet: "Fleet") -> None:
    unsigned = fleet.works.release("6.6.6", factor=6.0, signed=False)

    fleet.assign(2, unsigned)

    assert fleet.wait_for_refusal().refusal is Refusal.NOT_A_TARGET
    assert fleet.answer() == fleet.first_answer


def test_an_assignment_of_a_foreign_key_is_refused(fleet: "Fleet") -> None:
    release = fleet.works.release("1.7.0", factor=3.0)

    fleet.assign(2, release, signer=CryptoSigner.generate_ed25519())

    assert fleet.wait_for_refusal().refusal is Refusal.FORGED
    assert fleet.answer() == fleet.first_answer


def test_a_release_for_other_hardware_is_refused(fleet: "Fleet") -> None:
    release = fleet.works.release("1.8.0", factor=3.0, hardware=HardwareMatch(accelerator=("npu",)))

    fleet.assign(2, release)

    assert fleet.wait_for_failure(release).refusal is Refusal.WRONG_HARDWARE
    assert fleet.answer() == fleet.first_answer


def test_a_release_that_fails_its_golden_cases_is_refused(fleet: "Fleet") -> None:
    release = fleet.works.release("1.9.0", factor=3.0, golden_factor=3.5)

    fleet.assign(2, release)

    assert fleet.wait_for_failure(release).refusal is Refusal.SELF_TEST_FAILED
    assert fleet.answer() == fleet.first_answer


def test_a_malformed_assignment_stops_nothing(fleet: "Fleet") -> None:
    release = fleet.works.release("1.10.0", factor=3.0)

    fleet.publish(DeviceTopic(DEVICE, Channel.ASSIGNMENT), b'{"payload": 7', retain=True)
    fleet.assign(2, release)

    fleet.wait_for_step(release, Step.COMMITTED)
    assert fleet.answer() == [3.0, 6.0]


def test_an_agent_that_is_killed_serves_again_without_a_broker(fleet: "Fleet") -> None:
    release = fleet.works.release("1.11.0", factor=5.0)
    fleet.assign(2, release)
    fleet.wait_for_step(release, Step.COMMITTED)

    fleet.agent.kill()
    fleet.agent = Agent.start(fleet.agent.folder, broker_url="mqtt://127.0.0.1:9")

    assert fleet.answer() == [5.0, 10.0]


def test_an_agent_that_is_told_to_stop_says_that_it_is_gone(fleet: "Fleet") -> None:
    fleet.agent.stop()

    wait_until(lambda: fleet.presences and not fleet.presences[-1].online)
    assert fleet.agent.process.returncode == 0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    with own_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def works(tmp_path: Path) -> Works:
    folder = tmp_path / "works"
    folder.mkdir()
    return Works.open(folder)


@pytest.fixture
def fleet(works: Works, broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Fleet]:
    with doubling_fleet(works, broker, FleetId(f"fleet-{os.urandom(4).hex()}"), tmp_path / "device") as fleet:
        yield fleet
