"""What a former controller wrote is there after the migration, and means the same."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from harness.ledgers import MODEL, WATCH, A, B, C, release
from harness.postgres import Where
from muster_controller.core.gate.strata import VerdictKind
from muster_controller.core.rollout.state import Outcome, Pause, RolloutState
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.migrate import upgrade
from muster_controller.db.rows import to_json
from muster_controller.ports import Baseline, Issued, Wanted
from muster_shared.assignment import LIFETIME_S, ModelAssignment
from muster_shared.ids import DeviceId, RolloutId

ISSUED_AT = 1_700_000_000.5
POLICY = {  # As the first controller wrote it.
    "waves": [1, "25%"],
    "alpha": 0.01,
    "failure_objective": 0.02,
    "tolerance": 1.0,
    "success_required": 0.9,
    "controls_per_device": 10,
    "window_s": 300.0,
    "window_max_s": 900.0,
    "requests_min": 20,
    "deadline_s": 3600.0,
    "soak_s": 0.0,
    "on_abort": "stop",
    "selector": {"site": "oslo", "line": "2"},
}
STRATUM = {
    "wave": 0,
    "device_class": "pi5-cpu",
    "treated": 2,
    "treated_bad": 1,
    "controls": 3,
    "controls_bad": 0,
}


@pytest.fixture
def ledger(where: Where) -> Iterator[SqlLedger]:
    """Return a ledger that found a database of the first schema, with rows."""
    engine = find_database(where).open_writer()
    with engine.begin() as connection:
        upgrade(connection, "0001")
        _fill(connection)
    engine.dispose()
    with SqlLedger(where, lambda: 42.0) as ledger:
        yield ledger


def _fill(connection: sa.Connection) -> None:
    def add(table: str, **values: Any) -> None:
        columns = [sa.column(name) for name in values]
        connection.execute(sa.insert(sa.table(table, *columns)).values(**values))

    assignments = {
        A: {MODEL: ModelAssignment(release=release(2), watch=WATCH)},
        B: {MODEL: ModelAssignment(release=release(1))},
    }
    for device, models in assignments.items():
        add(
            "desired",
            device=device,
            counter=7,
            expires_at=ISSUED_AT + LIFETIME_S,
            models=to_json(models),
            envelope=b"signed",
        )
    add("desired", device=C, counter=0, expires_at=0.0, models=b"{}", envelope=b"")
    add("device", id=A, online=True, boot="b1", seen_at=1.5, twin=None)
    for name, state, ended_at in (("r-0", "finished", 90.0), ("r-1", "paused", None)):
        add(
            "rollout",
            id=name,
            model=MODEL,
            release=to_json(release(2)),
            previous=to_json(release(1)),
            policy=json.dumps(POLICY).encode(),
            waves=b"[1,1]",
            created_at=80.25,
            created_by="anna",
            state=state,
            reason="too few succeeded",
            wave=0,
            wave_began_at=101.0,
            confirmed_wave=-1,
            ended_at=ended_at,
        )
    member = {"rollout": "r-1", "device_class": "pi5-cpu", "bytes_fetched": 4096, "seconds": 2.5, "returned": False}
    add("rollout_member", device=A, position=0, wave=0, outcome="bad", reason="slow", assigned_at=101.0, **member)
    add("rollout_member", device=B, position=1, outcome="pending", reason="", **member)
    add(
        "rollout_control",
        rollout="r-1",
        wave=0,
        device=C,
        device_class="pi5-cpu",
        deadline_at=3701.0,
        outcome="pending",
        reason="",
    )
    add(
        "rollout_verdict",
        rollout="r-1",
        ordinal=0,
        at=103.5,
        wave=0,
        kind="hold",
        reason="E = 3.1",
        e=3.1,
        e_controls=3.0,
        e_objective=2.0,
        e_classes=b'{"pi5-cpu":3.0}',
        strata=json.dumps([STRATUM]).encode(),
    )
    baseline = {"release": to_json(release(2)), "rollout": "r-0", "selector": b'{"site":"oslo","line":"2"}'}
    add("baseline", model=MODEL, **baseline)
    add("note", at=1.0, what="x", subject="y", detail="z", actor="anna")


def test_selectors_become_text(ledger: SqlLedger) -> None:
    rollout = ledger.rollout(RolloutId("r-1"))

    assert rollout is not None
    assert rollout.policy.selector == "line=2,site=oslo"
    assert list(ledger.baselines(MODEL)) == [Baseline(release(2), RolloutId("r-0"), "line=2,site=oslo", 90.0)]


def test_a_rollout_that_rested_waits_for_a_person_and_kept_its_counts(ledger: SqlLedger) -> None:
    rollout = ledger.rollout(RolloutId("r-1"))

    assert rollout is not None
    assert (rollout.state, rollout.pause, rollout.wave) == (RolloutState.PAUSED, Pause.BY_HAND, 0)
    assert (rollout.policy.alpha, rollout.policy.on_abort) == (0.01, "stop")
    assert (rollout.members[A].outcome, rollout.members[A].attempt, rollout.members[B].attempt) == (Outcome.BAD, 1, 0)
    assert rollout.controls[0, C].assigned_at == 101.0
    stratum = rollout.strata[0, "pi5-cpu"]
    assert (stratum.treated, stratum.treated_bad, stratum.controls) == (1, 1, 1)
    assert [each.id for each in ledger.rollouts(running=True)] == ["r-1"]


def test_former_verdicts_are_those_of_failures(ledger: SqlLedger) -> None:
    rollout = ledger.rollout(RolloutId("r-1"))

    assert rollout is not None
    verdict = rollout.verdicts[0]
    assert (verdict.kind, verdict.evidence.e) == (VerdictKind.HOLD, 3.1)
    assert verdict.evidence.metrics["failures"].e_classes == {"pi5-cpu": 3.0}
    assert verdict.evidence.strata[0].treated_bad == 1


def test_what_devices_should_run_has_a_history_from_now_on(ledger: SqlLedger) -> None:
    watched = Wanted(ModelAssignment(release=release(2), watch=WATCH), RolloutId("r-1"), ISSUED_AT)
    unwatched = Wanted(ModelAssignment(release=release(1)), RolloutId(""), ISSUED_AT)

    assert ledger.desired(A).models == {MODEL: watched}
    assert ledger.desired(A).issued_at == ISSUED_AT
    assert ledger.desired(A).envelope == b"signed"
    assert list(ledger.issued(A, limit=5)) == [Issued(A, 7, ISSUED_AT, {MODEL: watched})]
    assert list(ledger.issued(B, limit=5)) == [Issued(B, 7, ISSUED_AT, {MODEL: unwatched})]
    assert list(ledger.issued(C, limit=5)) == []
    assert ledger.desired(C).models == {}
    assert ledger.device(DeviceId(A)) is not None
    assert len(ledger.notes(5)) == 1
