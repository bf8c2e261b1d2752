"""Figures with intervals as what is drawn."""

from muster_controller.core.metrics.figures import Figure
from muster_controller.web.metric_charts import BAR_WIDTH, said, timeline, whiskers


def figure(value: float | None, spread: float = 0.01) -> Figure:
    return Figure(None) if value is None else Figure(value, value - spread, value + spread)


def test_the_line_and_its_band_break_where_nothing_is_known() -> None:
    found = [(float(hour), figure(None if hour == 2 else 0.9)) for hour in range(5)]

    plot = timeline("t", "Right answers", found)

    (series,) = plot.series
    assert [y for _, y in series.points] == [90.0, 90.0, None, 90.0, 90.0]
    assert [low is None and high is None for _, low, high in series.band] == [False, False, True, False, False]
    assert "1 of 5 periods are unknown" in plot.words


def test_nothing_known_is_no_line_and_says_so() -> None:
    plot = timeline("t", "Right answers", [(0.0, figure(None)), (1.0, figure(None))])

    assert not plot.series[0].points
    assert plot.words == "Right answers: nothing is known of this time."


def test_shares_are_percent_and_times_are_milliseconds_from_zero() -> None:
    share = timeline("t", "Right answers", [(0.0, figure(0.5))])
    ms = timeline("t", "Latency p95", [(0.0, Figure(3.0, 2.0, None))], is_share=False)

    assert (share.unit, list(share.series[0].band)) == (" %", [(0.0, 49.0, 51.0)])
    assert (ms.unit, ms.low, list(ms.series[0].band)) == (" ms", 0.0, [(0.0, 2.0, 3.0)])


def test_the_longest_whisker_ends_at_the_end() -> None:
    small, large = whiskers([("a", figure(0.1)), ("b", figure(0.4))])

    assert large.high_x == BAR_WIDTH
    assert small.low_x < small.value_x < small.high_x < large.low_x


def test_what_is_unknown_says_so_and_is_no_zero() -> None:
    assert said(figure(None)).startswith("unknown")
    assert said(figure(0.123, 0.004)) == "12.3 % (11.9 to 12.7)"
    assert said(Figure(3.21, 3.0, None), is_share=False) == "3.21 ms (3 to any)"
