"""Saved views, and edits of the labels that operators gave, over a real database."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import insert

from harness.clock import Clock
from harness.postgres import Where
from muster_controller.acting import Acting, act_as
from muster_controller.db.engine import find_database
from muster_controller.db.identity_store import IdentityStore
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import IdentityRow, table
from muster_controller.db.view_store import VIEWS_MAX, ViewStore
from muster_controller.errors import Conflict, NotFound
from muster_controller.identity.enrolment import IdentityState
from muster_controller.identity.relabelling import LabelEdit
from muster_shared.ids import DeviceId

A, B, C = DeviceId("dev-a"), DeviceId("dev-b"), DeviceId("dev-c")


@pytest.fixture
def side(where: Where) -> Iterator[SideDatabase]:
    with ExitStack() as stack:
        with SqlLedger(where, Clock()):
            pass  # It migrates.
        stack.enter_context(act_as(Acting("anna", "request-1", "because")))
        yield stack.enter_context(SideDatabase(find_database(where)))


def identity(device: DeviceId, state: str, labels: bytes) -> dict[str, object]:
    plain = ("public_key", "fingerprint", "token", "hardware_serial", "agent_version", "device_class")
    return {
        "device": device,
        "state": state,
        "labels": labels,
        "asked_at": 1.0,
        "decided_at": None,
        "decided_by": "",
        "reason": "",
        **dict.fromkeys(plain, ""),
    }


def test_a_view_is_kept_replaced_and_removed(side: SideDatabase) -> None:
    views = ViewStore(side, Clock())

    views.save("anna", "devices", "in oslo", "selector=site%3Doslo")
    views.save("anna", "devices", "in oslo", "selector=site%3Dbergen")
    views.save("bea", "devices", "in oslo", "q=1")
    views.save("anna", "rollouts", "mine", "by=anna")

    assert [(each.page, each.name, each.query) for each in views.views("anna")] == [
        ("devices", "in oslo", "selector=site%3Dbergen"),
        ("rollouts", "mine", "by=anna"),
    ]
    views.remove("anna", "devices", "in oslo")
    assert [each.name for each in views.views("anna", "devices")] == []
    assert [each.query for each in views.views("bea", "devices")] == ["q=1"]
    with pytest.raises(NotFound):
        views.remove("anna", "devices", "in oslo")


def test_nobody_keeps_more_views_than_there_is_room_for(side: SideDatabase) -> None:
    views = ViewStore(side, Clock())
    for number in range(VIEWS_MAX):
        views.save("anna", "devices", f"view {number}", "q=1")

    with pytest.raises(Conflict, match="views"):
        views.save("anna", "devices", "one more", "q=1")
    views.save("anna", "devices", "view 0", "q=2")


def test_only_accepted_devices_are_relabelled_and_those_that_differ_are_counted(side: SideDatabase) -> None:
    store = IdentityStore(side)
    rows = [identity(A, "accepted", b'{"site":"oslo","spare":"1"}'), identity(B, "accepted", b'{"site":"bergen"}')]
    with side.transaction() as connection:
        connection.execute(insert(table(IdentityRow)), [*rows, identity(C, "waiting", b"{}")])

    with store.writing(Acting("anna"), 2.0) as writing:
        counted = writing.relabel(
            {A, B, C, DeviceId("nobody")}, LabelEdit({"site": "bergen"}, frozenset({"spare"})).applied
        )

    with store.reading() as reading:
        assert reading.labels(IdentityState.ACCEPTED) == {A: {"site": "bergen"}, B: {"site": "bergen"}}
        assert reading.labels(IdentityState.WAITING) == {C: {}}
    assert counted == (1, 1)
