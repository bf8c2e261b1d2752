"""Samples of the fleet: which are due, how long they last, what a span is drawn from, and how they look."""

from hypothesis import given
from hypothesis import strategies as st

from muster_controller.core.samples import DRAWN_MAX, KEPT_S, FleetSample, period_for, periods_due, sample
from muster_controller.web.history import VERSIONS_DRAWN, standing_plot, version_plot

NOON = 1_795_348_800.0  # A whole day in Unix seconds.


def look(versions: dict[str, int], devices: int = 10) -> FleetSample:
    return FleetSample(devices, devices - 1, {"current": devices - 2, "behind": 2}, {"digits": versions})


def test_the_first_look_of_all_is_of_every_period() -> None:
    assert periods_due(NOON + 17, {}) == [300, 3600, 86_400]


def test_a_look_is_kept_once_in_each_period() -> None:
    newest = {300: NOON, 3600: NOON, 86_400: NOON}

    assert periods_due(NOON + 299, newest) == []
    assert periods_due(NOON + 300, newest) == [300]
    assert periods_due(NOON + 3600, newest) == [300, 3600]


@given(st.floats(min_value=60.0, max_value=4 * 366 * 86_400.0))
def test_a_span_is_drawn_from_what_is_kept_of_all_of_it_or_from_days(span_s: float) -> None:
    period = period_for(span_s)

    assert span_s <= KEPT_S[period]
    assert period == 86_400 or span_s / period <= DRAWN_MAX


def test_a_day_is_drawn_by_five_minutes_and_two_months_by_days_or_hours() -> None:
    assert period_for(86_400.0) == 300
    assert period_for(7 * 86_400.0) == 3600
    assert period_for(365 * 86_400.0) == 86_400


def test_a_sample_keeps_the_commonest_versions_and_no_empty_counts() -> None:
    found = sample(300, 200, {"current": 300, "failing": 0}, [("m", f"1.{n}.0", n + 1) for n in range(300)])

    assert found.standings == {"current": 300}
    assert len(found.versions["m"]) == 200
    assert "1.299.0" in found.versions["m"]
    assert "1.0.0" not in found.versions["m"]


def test_a_plot_stacks_versions_in_their_order_and_says_what_is_now() -> None:
    looks = [(NOON, look({"1.10.0": 4, "1.9.0": 6})), (NOON + 300, look({"1.10.0": 9, "1.9.0": 1}))]

    plot = version_plot("digits", looks)

    assert [each.name for each in plot.series] == ["1.9.0", "1.10.0"]
    assert [y for _, y in plot.series[1].points] == [4.0, 9.0]
    assert "9 on 1.10.0" in plot.words


def test_many_versions_are_drawn_by_name_and_the_rest_together() -> None:
    versions = {f"1.{n}.0": n + 1 for n in range(10)}

    plot = version_plot("digits", [(NOON, look(versions)), (NOON + 300, look(versions))])

    assert len(plot.series) == VERSIONS_DRAWN + 1
    assert plot.series[-1].name == "others"
    assert plot.series[-1].points[0][1] == sum(range(1, 5))


def test_one_look_draws_nothing_and_says_it_in_words() -> None:
    plot = standing_plot([(NOON, look({}))])

    assert plot.series == ()
    assert "1 offline" in plot.words
    assert "2 behind" in plot.words
