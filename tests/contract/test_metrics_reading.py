"""What other tools read from either database: everything, once, in order, however many pieces it is read in."""

import random
from collections.abc import Iterator

import pytest

from harness.observed import Observed, cell
from harness.postgres import Where
from muster_controller.core.metrics.series import HOST, Group
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import CertificateRow, IdentityRow
from muster_controller.export import reading
from muster_controller.export.reading import MetricsReading
from muster_shared.metrics import HOUR_S, Kind

BEGIN = 1_795_000_000.0 - 1_795_000_000.0 % HOUR_S


@pytest.fixture
def observed(where: Where) -> Iterator[Observed]:
    with SqlLedger(where, lambda: BEGIN, lambda _: None), SideDatabase(find_database(where)) as side:
        yield Observed(side)


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_all_of_a_span_is_read_once_and_in_order(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(reading, "PAGE", piece)
    hours = list(range(-1, 4))
    random.Random(3).shuffle(hours)
    for hour in hours:
        for region in ("south", "north"):
            observed.mixed(cell(region=region), Kind.CLASSES, (0.5, 0.3, 0.2), BEGIN + hour * HOUR_S, devices=100)
            observed.mixed(cell(region=region), Kind.DRIFT, (1.0, 0.0, 0.0, 0.0), BEGIN + hour * HOUR_S, devices=100)
        observed.series(BEGIN + hour * HOUR_S, HOUR_S, cpu_percent_max=None)
    read = MetricsReading(observed.side)

    sums = list(read.sums(HOUR_S, BEGIN, BEGIN + 3 * HOUR_S, (Kind.CLASSES,)))
    series = list(read.series(HOUR_S, BEGIN, BEGIN + 3 * HOUR_S))

    assert [each.period_start for each in sums] == [BEGIN + hour * HOUR_S for hour in range(3) for _ in range(2)]
    assert {(each.cell.region, each.kind, each.late, each.devices) for each in sums} == {
        ("north", Kind.CLASSES, False, 100),
        ("south", Kind.CLASSES, False, 100),
    }
    assert len({each.batch for each in sums}) == 6
    groups = [Group(HOST, HOST, "pi5-cpu"), Group("digits", "1.0.0", "pi5-cpu", "north")]
    assert [each.group for each in series] == groups * 3
    assert {(each.requests, each.energy_j, each.cpu_percent_max) for each in series} == {(6000, None, None)}


def test_a_span_without_anything_is_empty(observed: Observed) -> None:
    read = MetricsReading(observed.side)

    assert list(read.sums(HOUR_S, 0.0, 1e12)) == []
    assert list(read.series(HOUR_S, 0.0, 1e12)) == []
    assert (read.mixers(), read.objectives(), read.certificates()) == ([], [], [])
    assert read.expiring(BEGIN, (1, 30)) == {1: 0, 30: 0}
    assert not read.alerts()
    assert not read.rollouts()


def test_alerts_are_counted_by_rule_severity_and_state_without_those_that_are_over(observed: Observed) -> None:
    for rule, state in (("drift", "firing"), ("skew", "firing"), ("drift", "resolved"), ("drift", "pending")):
        observed.alert(BEGIN, rule, state)

    found = MetricsReading(observed.side).alerts()

    assert found == {
        ("drift", "ticket", "firing"): 1,
        ("skew", "ticket", "firing"): 1,
        ("drift", "ticket", "pending"): 1,
    }


def test_certificates_are_counted_by_when_the_newest_of_each_accepted_device_runs_out(observed: Observed) -> None:
    ends = {"dev-a": (0.5, 40.0), "dev-b": (0.5,), "dev-c": (-1.0,), "dev-d": (6.0,), "dev-e": (6.0,)}
    states = dict.fromkeys(ends, "accepted") | {"dev-e": "revoked"}
    blank = {"public_key": "", "token": "", "labels": b"{}", "hardware_serial": "", "agent_version": "", "reason": ""}
    observed.add(
        IdentityRow,
        [
            {"device": name, "state": state, "fingerprint": name, "device_class": "", "asked_at": 0.0}
            | {"decided_by": ""}
            | blank
            for name, state in states.items()
        ],
    )
    observed.add(
        CertificateRow,
        [
            {"serial": f"{name}-{at}", "device": name, "issued_at": BEGIN, "expires_at": BEGIN + at * 86_400}
            | {"nonce": f"{name}-{at}"}
            for name, days in ends.items()
            for at in days
        ],
    )
    read = MetricsReading(observed.side)

    assert read.expiring(BEGIN, (1, 7, 30)) == {1: 2, 7: 3, 30: 3}
    assert read.certificates()[0] == ("dev-c", BEGIN - 86_400)
