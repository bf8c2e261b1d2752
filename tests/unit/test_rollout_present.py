"""What the pages of rollouts show of the machine's numbers."""

from math import log10

import pytest

from harness.rollout_story import START, Story, policy
from muster_controller.api.report import wilson
from muster_controller.api.rollout_views import everybody, point_view, rollout_detail
from muster_controller.api.schemas import EvidencePointView
from muster_controller.api.schemas.rollouts import StratumView
from muster_controller.core.rollout.events import Order, OutcomeArrived
from muster_controller.core.rollout.state import due_at
from muster_controller.core.rollout.words import at_time
from muster_controller.web.actions import actions
from muster_controller.web.rollout_present import (
    E_HIGH,
    SQUARES_MAX,
    arm_rows,
    arms_plot,
    evidence_plot,
    policy_rows,
    rollout_panel,
)


def stratum(device_class: str = "pi5", wave: int = 0, **counts: object) -> StratumView:
    given = {"treated": 10, "treated_bad": 1, "controls": 20, "controls_bad": 1, "latency": [], "compared": 0}
    return StratumView.model_validate({"wave": wave, "device_class": device_class, "disagreed": 0, **given, **counts})


def point(at: float, e: float) -> EvidencePointView:
    return EvidencePointView(at=at, wave=0, e=e, metrics={}, treated=2, reported=1, bad=0)


def begun(devices: int = 10) -> Story:
    story = Story(devices, policy())
    story.tick()
    return story


def test_the_evidence_is_drawn_from_one_at_the_beginning_to_what_it_is_now() -> None:
    story = begun()
    detail = rollout_detail(story.rollout, START + 60)

    plot = evidence_plot(detail, [point(START + 10, 2.0), point(START + 20, 4.0)], START + 60)

    whole = next(series for series in plot.series if series.name == "E")
    assert list(whole.points) == [(START, 1.0), (START + 10, 2.0), (START + 20, 4.0), (START + 60, detail.e)]
    assert plot.is_log


def test_the_lines_of_the_gate_lie_inside_what_is_drawn() -> None:
    detail = rollout_detail(begun().rollout, START + 60)

    plot = evidence_plot(detail, [], START + 60)

    lines = {mark.name: mark.y for mark in plot.marks if mark.y is not None}
    assert lines == {"hold 3": detail.hold_at, "abort 20": detail.abort_at}
    assert plot.low is not None
    assert plot.high is not None
    assert plot.low < detail.hold_at < detail.abort_at < plot.high
    assert log10(plot.high).is_integer()


def test_certain_evidence_leaves_the_limits_to_be_seen() -> None:
    detail = rollout_detail(begun().rollout, START + 60)

    plot = evidence_plot(detail, [point(START + 10, 1e300), point(START + 20, 0.0)], START + 60)

    drawn = [e for series in plot.series for _, e in series.points if e is not None]
    assert max(drawn) == detail.abort_at * E_HIGH
    assert min(drawn) > 0


def test_a_wave_is_marked_where_it_began() -> None:
    story = begun()

    plot = evidence_plot(rollout_detail(story.rollout, START + 60), [], START + 60)

    assert [(mark.name, mark.x) for mark in plot.marks if mark.x is not None] == [("wave 1", START)]


def test_every_device_is_a_square_of_its_wave_and_knows_what_came_of_it() -> None:
    story = begun()
    first = next(iter(story.assigned)).device
    story.tell(OutcomeArrived(first, 0, False, "accuracy 0.3"), 5)

    panel = rollout_panel(story.rollout, [point_view(each) for each in story.plots], story.now)

    squares = [square for wave in panel.waves for square in wave.squares]
    assert {square.device for square in squares} == set(story.rollout.members)
    assert [square.tone for square in squares if square.device == first and "accuracy" in square.title] == ["bad"]


def test_a_large_rollout_is_bars_and_not_dust() -> None:
    story = begun(SQUARES_MAX + 1)

    panel = rollout_panel(story.rollout, [], story.now)

    assert not any(wave.squares for wave in panel.waves)
    assert all(wave.bar for wave in panel.waves)


def test_classes_are_summed_over_waves_and_set_against_their_own_controls() -> None:
    rows = arm_rows([stratum(), stratum(wave=1, treated=30, treated_bad=3), stratum("nuc", controls=0, controls_bad=0)])

    assert [row.name for row in rows] == ["pi5", "nuc", "all classes"]
    assert rows[0].treated is not None
    assert (rows[0].treated.bad, rows[0].treated.of) == (4, 40)
    assert rows[1].controls is None
    assert rows[2].treated is not None
    assert (rows[2].treated.bad, rows[2].treated.of) == (5, 50)


def test_one_class_alone_is_not_said_twice() -> None:
    assert [row.name for row in arm_rows([stratum()])] == ["pi5"]


def test_slowness_is_the_mean_of_the_pairs_with_an_interval_around_it() -> None:
    (row,) = arm_rows([stratum(latency=[(19, 5), (21, 5)])])

    assert row.slower is not None
    mean, low, high, pairs = row.slower
    assert pairs == 10
    assert mean == pytest.approx(20.5 * 0.005)
    assert low < mean < high


def test_the_plot_of_the_arms_has_a_gap_where_nobody_was_held_back() -> None:
    rows = arm_rows([stratum(), stratum("nuc", controls=0, controls_bad=0)])

    plot = arms_plot("r1", rows)

    assert [y for _, y in plot.series[1].points][rows.index(next(row for row in rows if row.name == "nuc"))] is None
    assert list(plot.names) == [row.name for row in rows]


@pytest.mark.parametrize(
    ("bad", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)],  # Wilson's interval, by hand.
)
def test_the_interval_of_a_share_is_wilsons(bad: int, of: int, low: float, high: float) -> None:
    found = wilson(bad, of)

    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_an_extension_says_whose_deadlines_it_moves_and_when_they_are() -> None:
    story = begun()

    panel = next(each for each in actions(story.rollout, START + 40) if each.order is Order.EXTEND)

    due = [at for each in everybody(story.rollout) if (at := due_at(each)) is not None]
    held = sum(due_at(each) is not None for each in story.rollout.controls.values())
    assert len(due) > held > 0
    assert f"{len(due) - held} devices under way and {held} devices held back" in panel.consequence
    assert f"is {at_time(max(due), START + 40)} now" in panel.consequence
    assert panel.minutes == 2
    story.order(Order.EXTEND, seconds=60.0)
    moved = [at for each in everybody(story.rollout) if (at := due_at(each)) is not None]
    assert moved == [at + 60.0 for at in due]  # No more and no fewer than it said.


def test_nothing_is_extended_where_no_deadline_runs() -> None:
    story = Story(10, policy())

    assert Order.EXTEND not in [each.order for each in actions(story.rollout, START)]


def test_a_policy_reads_as_names_values_and_times_not_as_json() -> None:
    written: dict[str, object] = {
        "success_required": 0.75,
        "weights": {"failures": 1.0, "latency": 0.0},
        "waves": [5, "25%"],
        "window_s": 4.0,
        "deadline_s": 5400,
        "soak_s": 172_800,
        "approvals": [{"before": "finish", "count": 2}, {"before": 1, "count": 1}],
        "trial": True,
    }

    rows = policy_rows(written)

    assert rows == (
        ("success required", "0.75"),
        ("weights", "failures 1, latency 0"),
        ("waves", "5, 25%"),
        ("window", "4 s"),
        ("deadline", "90 min"),
        ("soak", "2 d"),
        ("approvals", "before finish, count 2; before 1, count 1"),
        ("trial", "yes"),
    )


def test_one_device_is_one_device_and_not_one_devices() -> None:
    panel = rollout_panel(begun(1).rollout, [], START)

    assert "1 device: " in panel.waves[0].words
