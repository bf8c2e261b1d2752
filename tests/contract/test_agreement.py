"""What controllers of one database must have in common, over a real database."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from harness.postgres import Where
from muster_controller.db.agreement_store import AgreementStore
from muster_controller.db.audit import AuditReader
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.side import SideDatabase
from muster_controller.identity.agreement import Disagreement, Own
from muster_controller.identity.ca import FleetCa
from muster_shared.ids import FleetId, Sha256

NOW = 1_800_000_000.0
ONE, OTHER = Sha256("1" * 64), Sha256("2" * 64)
KEYS = Own("online-keys", "keys", ONE, rank=3)
ROOT = Own("ca-root", "ca", ONE)


class World:
    def __init__(self, where: Where, stack: ExitStack) -> None:
        self.where = where
        self._stack = stack
        with SqlLedger(where, lambda: NOW):
            pass  # It migrates.
        self.store = self.controller()

    def controller(self) -> AgreementStore:
        side = self._stack.enter_context(SideDatabase(find_database(self.where)))
        return AgreementStore(side, lambda: NOW)

    def lines(self) -> list[tuple[str, str]]:
        reader = AuditReader(find_database(self.where))
        try:
            return [(each.action, each.subject) for each in reader.lines(limit=100)]
        finally:
            reader.close()


@pytest.fixture
def world(where: Where) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(where, stack)


def test_a_controller_with_the_same_keys_is_let_in_and_one_with_others_is_not(world: World) -> None:
    world.store.agree([KEYS, ROOT])

    world.controller().agree([KEYS, ROOT])
    with pytest.raises(Disagreement, match=r"copy ca/ from .*--adopt-keys") as refused:
        world.controller().agree([KEYS, replace(ROOT, value=OTHER)])

    assert refused.value.names == ("ca-root",)
    world.store.agree([KEYS, ROOT])
    assert world.lines() == []


def test_what_one_disagrees_about_keeps_the_rest_from_being_written(world: World) -> None:
    world.store.agree([ROOT])

    with pytest.raises(Disagreement):
        world.store.agree([replace(ROOT, value=OTHER), KEYS])

    world.store.agree([replace(KEYS, value=OTHER)])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (KEYS, replace(KEYS, value=OTHER, rank=4)),
        (ROOT, replace(ROOT, value=OTHER, former=frozenset({ONE}))),
    ],
)
def test_a_successor_takes_the_place_and_is_audited_and_the_former_is_refused(
    world: World, before: Own, after: Own
) -> None:
    world.store.agree([before])

    changed = world.store.agree([after])

    assert changed == [after.name]
    assert world.lines() == [("keys.change", after.name)]
    with pytest.raises(Disagreement):
        world.controller().agree([before])


def test_other_keys_under_the_same_root_are_no_successor_unless_somebody_says_so(world: World) -> None:
    world.store.agree([KEYS])
    other = replace(KEYS, value=OTHER)

    with pytest.raises(Disagreement):
        world.store.agree([other])
    changed = world.store.agree([other], adopt=True)

    assert changed == ["online-keys"]
    with pytest.raises(Disagreement):
        world.store.agree([KEYS])


def test_controllers_that_start_together_have_one_client_id(world: World) -> None:
    stores = [world.controller() for _ in range(4)]
    words = itertools.count()

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda store: store.client_word(lambda: f"word-{next(words)}"), stores))

    assert len(found) == 1
    assert world.store.client_word(lambda: "later") in found


def test_a_ca_with_another_issuing_key_succeeds_its_former_self_and_a_copy_from_before_does_not(
    world: World, tmp_path: Path
) -> None:
    ca = FleetCa(tmp_path / "data", FleetId("test"), NOW, lambda path: None)
    before = ca.has_in_common
    world.store.agree(before)

    ca.renew(NOW, new_key=False)
    same = world.store.agree(ca.has_in_common)
    ca.renew(NOW, new_key=True)
    changed = world.store.agree(ca.has_in_common)

    assert (same, changed) == ([], ["ca-issuer"])
    with pytest.raises(Disagreement):
        world.controller().agree(before)
