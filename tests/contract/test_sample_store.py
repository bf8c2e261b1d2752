"""Samples of the fleet as rows, on SQLite and on PostgreSQL."""

from pathlib import Path

from muster_controller.core.samples import KEPT_S, FleetSample
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.sample_store import SampleStore
from muster_controller.db.side import SideDatabase

NOON = 1_795_348_800.0
SAMPLE = FleetSample(10, 9, {"current": 10}, {"digits": {"1.0.0": 10}})


def test_samples_are_kept_once_a_period_and_read_back_in_order(where: Path | str) -> None:
    with SqlLedger(where, lambda: NOON), SideDatabase(find_database(where)) as side:
        store = SampleStore(side)

        first = store.add(NOON, SAMPLE)
        again = store.add(NOON + 10, SAMPLE)
        later = store.add(NOON + 310, SAMPLE)

        assert (first, again, later) == ([300, 3600, 86_400], [], [300])
        found = store.samples(NOON, NOON + 600, 300)
        assert [each.at for each in found] == [NOON, NOON + 310]
        assert found[0].sample == SAMPLE


def test_what_is_too_old_goes(where: Path | str) -> None:
    with SqlLedger(where, lambda: NOON), SideDatabase(find_database(where)) as side:
        store = SampleStore(side)
        store.add(NOON, SAMPLE)

        store.add(NOON + KEPT_S[300] + 300, SAMPLE)

        assert [each.at for each in store.samples(0, 2 * NOON, 300)] == [NOON + KEPT_S[300] + 300]
        assert len(store.samples(0, 2 * NOON, 3600)) == 2
