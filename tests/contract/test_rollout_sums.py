"""A rollout that the database counted says what one says whose devices were read, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from random import Random

import pytest

from harness.ledgers import rollout
from harness.postgres import Where
from muster_controller.api.rollout_views import rollout_summary, summed_view
from muster_controller.core.rollout.events import Changes
from muster_controller.core.rollout.state import Control, Member, Outcome, Rollout
from muster_controller.db.ledger import SqlLedger
from muster_shared.ids import DeviceId, RolloutId

CLASSES = ("pi5-cpu", "nuc-cpu", "orin-gpu")


@pytest.fixture
def ledger(where: Where) -> Iterator[SqlLedger]:
    with SqlLedger(where, lambda: 42.0) as ledger:
        yield ledger


def crowd(name: str, seed: int, devices: int = 300) -> Rollout:
    """A rollout with devices in every state that is counted."""
    random = Random(seed)
    members = [
        Member(
            device=DeviceId(f"dev-{number:04}"),
            device_class=random.choice(CLASSES),
            position=number,
            wave=random.choice((None, 0, 1, 2)),
            outcome=random.choice(list(Outcome)),
            assigned_at=random.choice((None, 101.5, 102.25)),
            deferred_until=random.choice((None, 120.0, 121.0)),
            retry_at=random.choice((None, 130.0)),
            bytes_fetched=random.randrange(2**33),
            disagreed=random.choice((None, False, True)),
            returned=random.random() < 0.3,
        )
        for number in range(devices)
    ]
    controls = [
        Control(
            device=DeviceId(f"dev-{number:04}"),
            device_class=random.choice(CLASSES),
            wave=random.choice((0, 1, 2)),
            partner=DeviceId("dev-0000"),
            assigned_at=random.choice((None, 101.5)),
            outcome=random.choice(list(Outcome)),
        )
        for number in range(devices // 3)
    ]
    return rollout(name, members, controls, created_at=100.0 + seed)


def save(ledger: SqlLedger, *rollouts: Rollout) -> None:
    with ledger.transaction():
        for each in rollouts:
            ledger.save_rollout(each, None, Changes())


def test_counts_and_evidence_are_those_of_the_devices_themselves(ledger: SqlLedger) -> None:
    rollouts = [rollout("r-0"), *(crowd(f"r-{seed}", seed) for seed in (1, 2, 3)), rollout("r-4", (), ())]
    save(ledger, *rollouts)

    found = {each.rollout.id: summed_view(each) for each in ledger.reader.summed(10)}

    assert found == {each.id: rollout_summary(each) for each in rollouts}


def test_strata_are_those_that_the_devices_add_up_to(ledger: SqlLedger) -> None:
    full = crowd("r-1", 7)
    save(ledger, full)

    (found,) = ledger.reader.summed(1)

    assert found.rollout.strata == full.strata
    assert sum(each.devices for each in found.groups) == len(full.members) + len(full.controls)


def test_a_page_is_in_the_order_of_the_list_and_goes_on_behind_its_last(ledger: SqlLedger) -> None:
    save(ledger, *(crowd(f"r-{seed}", seed, 3) for seed in range(5)))

    first = [each.rollout.id for each in ledger.reader.summed(2)]
    rest = [each.rollout.id for each in ledger.reader.summed(9, after=first[-1])]

    assert first + rest == [each.id for each in ledger.reader.rollouts()]


def test_devices_that_claim_to_have_fetched_the_whole_world_do_not_keep_the_list_from_being_shown(
    ledger: SqlLedger,
) -> None:
    members = [Member(DeviceId(f"dev-{n}"), "pi5-cpu", n, bytes_fetched=2**62) for n in range(4)]
    save(ledger, rollout("r-1", members, ()))

    (found,) = ledger.reader.summed(1)

    assert summed_view(found).counts.bytes_fetched == 4 * 2**62


def test_a_rollout_is_known_by_its_id_without_being_read(ledger: SqlLedger) -> None:
    save(ledger, crowd("r-1", 1, 3))

    known = [ledger.reader.has_rollout(RolloutId(name)) for name in ("r-1", "r-2")]

    assert known == [True, False]
