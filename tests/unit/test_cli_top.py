"""`muster top`: what it shows in a small terminal, and what its keys do."""

from dataclasses import replace
from typing import Any

import pytest

from muster_controller.cli.top_view import (
    DOWN,
    ENTER,
    ESCAPE,
    Ordered,
    Quit,
    Reading,
    Screen,
    Stage,
    picture,
    press,
    settled,
)

NOW = 1_700_000_000.0


def rollout(name: str, **changes: Any) -> dict[str, Any]:
    counts = {"devices": 100, "good": 30, "bad": 2, "pending": 8}
    strata = [{"treated_bad": 2, "controls_bad": 1}]
    return {
        "id": name,
        "model": "digits",
        "version": "2.0.0",
        "state": "running",
        "wave": 1,
        "waves": [10, 90],
        "counts": counts,
        "e": 3.2,
        "hold_at": 4.0,
        "abort_at": 20.0,
        "evidence": {"strata": strata},
        "outlook": "The wave is judged in 3 min.",
        **changes,
    }


def reading(*names: str) -> Reading:
    status = {
        "fleet": "test",
        "uptime_s": 7300.0,
        "broker_connected": True,
        "devices": 100,
        "online": 98,
        "standings": {"current": 60, "updating": 8, "behind": 30, "failing": 2},
        "versions": [{"model": "digits", "version": "2.0.0", "devices": 30}],
        "baselines": {"digits": "2.0.0"},
        "rollouts": list(names),
    }
    alert = {"severity": "critical", "rule": "slo-burn", "summary": "The budget burns.", "began_at": NOW - 600}
    note = {"at": NOW - 60, "what": "rollout_begun", "subject": "r-1", "detail": "x" * 200, "actor": "anna"}
    return Reading(NOW, "http://here", status, tuple(map(rollout, names)), (alert,) * 9, (note,) * 5)


def lines(found: Reading, screen: Screen, width: int = 80, height: int = 24) -> list[str]:
    return [line.plain for line in picture(found, screen, NOW, width, height)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (40, 10)])
def test_it_fits_the_terminal_and_the_foot_is_always_there(width: int, height: int) -> None:
    found = reading("r-1", "r-2", "r-3", "r-4", "r-5")

    shown = lines(found, settled(Screen(), found), width, height)

    assert len(shown) <= height
    assert max(map(len, shown)) <= width
    assert shown[-1].startswith("q quit")


def test_a_rollout_is_shown_with_its_evidence_and_both_arms() -> None:
    found = reading("r-1")

    shown = "\n".join(lines(found, settled(Screen(), found)))

    for words in (
        "98 of 100 online",
        "2 failing",
        "> digits 2.0.0  running  wave 2 of 2",
        "32/100 reported",
        "E 3.2 (hold 4, abort 20)  bad: 2 treated, 1 controls",
        "! critical slo-burn The budget burns., 10 min ago",
        "and 6 more: `muster alerts`",
        "digits: 2.0.0* on 30",
    ):
        assert words in shown


def test_an_order_is_sent_after_a_yes_and_a_reason_only() -> None:
    found = reading("r-1", "r-2")
    screen, sent = settled(Screen(), found), None

    for key in (DOWN, "a", "y", "b", "a", "d", ENTER):
        assert sent is None
        screen, sent = press(screen, key, found)

    assert sent == Ordered("r-2", "abort", "bad")
    assert screen.stage is Stage.LOOK


@pytest.mark.parametrize("keys", [("a", "n"), ("a", "q"), ("a", ENTER), ("p", "y", "x", ESCAPE), ("r", "y", ESCAPE)])
def test_whatever_is_no_yes_sends_nothing(keys: tuple[str, ...]) -> None:
    found = reading("r-1")
    screen = settled(Screen(), found)

    for key in keys:
        screen, sent = press(screen, key, found)
        assert sent is None

    assert screen.stage is Stage.LOOK


def test_q_quits_but_not_within_a_reason() -> None:
    found = reading("r-1")
    screen = settled(Screen(), found)

    assert isinstance(press(screen, "q", found)[1], Quit)
    asking = replace(screen, stage=Stage.WHY, order="pause")
    assert press(asking, "q", found)[0].reason == "q"


def test_a_question_about_a_rollout_that_has_ended_is_dropped() -> None:
    screen = Screen(chosen="r-1", stage=Stage.SURE, order="abort")

    assert settled(screen, reading("r-2")) == Screen(chosen="r-2")
    assert settled(screen, reading()) == Screen()


def test_a_lost_connection_is_said_with_its_length() -> None:
    shown = lines(reading(), Screen(lost_at=NOW - 30))

    assert "Connection lost 30 s ago" in shown[1]
