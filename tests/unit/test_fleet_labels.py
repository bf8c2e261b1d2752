"""Labels that operators gave go before those that a device claims."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.fleet_stage import Stage, replace_policy
from muster_controller.db.ledger import SqlLedger
from muster_shared.ids import DeviceId

LIAR, HONEST = DeviceId("dev-liar"), DeviceId("dev-honest")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    path = tmp_path / "muster.db"
    stage = Stage(SqlLedger(path, lambda: stage.now), path)
    yield stage
    stage.ledger.close()


def labels(stage: Stage, device: DeviceId) -> dict[str, str]:
    found = stage.ledger.device(device)
    assert found is not None
    assert found.twin is not None
    return found.twin.labels


def members(stage: Stage) -> set[str]:
    rollout = stage.roll_out(1, replace_policy(waves=(100,), selector="site=oslo", controls_per_device=0))
    return set(rollout.members)


def test_a_device_cannot_claim_itself_into_another_group(stage: Stage) -> None:
    stage.granted |= {LIAR: {"site": "bergen"}, HONEST: {"site": "oslo"}}

    stage.join(LIAR, labels={"site": "oslo", "line": "2"})
    stage.join(HONEST)

    assert labels(stage, LIAR) == {"site": "bergen", "line": "2"}
    assert members(stage) == {HONEST}


def test_a_device_cannot_claim_itself_out_of_its_group_either(stage: Stage) -> None:
    stage.granted |= {LIAR: {"site": "oslo"}}
    stage.join(LIAR)
    stage.join(LIAR, sequence=2, labels={"site": "bergen"})

    assert members(stage) == {LIAR}


def test_labels_that_change_at_the_operators_count_before_the_device_speaks_again(stage: Stage) -> None:
    stage.join(LIAR, labels={"site": "oslo"})
    stage.granted |= {LIAR: {"site": "bergen"}}

    stage.fleet.relabel([LIAR, DeviceId("dev-never-seen")])

    assert labels(stage, LIAR) == {"site": "bergen"}


def test_a_label_that_operators_took_off_is_gone_with_the_next_report(stage: Stage) -> None:
    stage.granted |= {HONEST: {"site": "bergen"}}
    stage.join(HONEST, labels={"line": "2"})
    del stage.granted[HONEST]

    stage.join(HONEST, sequence=2, labels={"line": "2"})

    assert labels(stage, HONEST) == {"line": "2"}


def test_without_granted_labels_a_device_has_its_own(stage: Stage) -> None:
    stage.join(LIAR, labels={"site": "oslo"})

    assert labels(stage, LIAR) == {"site": "oslo"}
