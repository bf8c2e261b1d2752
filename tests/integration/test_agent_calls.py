"""Calls to a real agent over a real broker: what the controller signed is answered once, everything else is not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner

from harness.fleet_of_one import DEVICE, Fleet, Works, doubling_fleet, own_broker
from muster_shared.call import LIFETIME_S, CallKind
from muster_shared.ids import DeviceId, FleetId
from muster_shared.topics import Channel, DeviceTopic

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("calls")
    works = Works.open(folder / "works")
    with (
        own_broker(folder / "broker") as broker,
        doubling_fleet(works, broker, FleetId("calls"), folder / "device") as fleet,
    ):
        fleet.answer()
        yield fleet


def test_a_self_test_runs_the_golden_cases_of_what_serves(fleet: Fleet) -> None:
    fleet.call("test-1", CallKind.SELF_TEST)

    answer = fleet.wait_for_answer("test-1")

    assert (answer.device, answer.ok, answer.detail) == (DEVICE, True, "")
    assert [(each.model, each.version, each.ok, each.calls) for each in answer.models] == [("scale", "1.0.0", True, 2)]


def test_a_benchmark_measures_what_serves_while_it_serves(fleet: Fleet) -> None:
    fleet.call("bench-1", CallKind.BENCHMARK)
    assert fleet.answer() == fleet.first_answer

    answer = fleet.wait_for_answer("bench-1")

    (found,) = answer.models
    assert answer.ok
    assert found.rows_per_s is not None
    assert found.rows_per_s > 0
    assert found.latency_ms_p50 is not None
    assert found.latency_ms_p95 is not None
    assert found.latency_ms_p95 >= found.latency_ms_p50 > 0


def test_the_end_of_the_log_is_what_the_agent_logged_without_its_folders(fleet: Fleet) -> None:
    fleet.call("logs-1", CallKind.LOGS, lines=200)

    answer = fleet.wait_for_answer("logs-1")

    assert answer.ok
    assert any('"event":"agent_started"' in line for line in answer.lines)
    assert str(fleet.agent.folder) not in "\n".join(answer.lines)


def test_a_forged_an_expired_a_foreign_and_a_repeated_call_are_not_answered(fleet: Fleet) -> None:
    fleet.call("forged", CallKind.SELF_TEST, signer=CryptoSigner.generate_ed25519())
    fleet.call("expired", CallKind.SELF_TEST, age_s=LIFETIME_S + 5)
    fleet.call("foreign", CallKind.SELF_TEST, device=DeviceId("edge-2"))
    raw = fleet.call("once", CallKind.LOGS, lines=1)
    fleet.wait_for_answer("once")
    fleet.publish(DeviceTopic(DEVICE, Channel.CALL), raw)

    fleet.call(
        "after", CallKind.LOGS, lines=1
    )  # One is done after the other: when this is answered, those were judged.
    fleet.wait_for_answer("after")

    names = [each.id for each in fleet.answers]
    assert not {"forged", "expired", "foreign"} & set(names)
    assert names.count("once") == 1
