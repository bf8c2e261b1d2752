"""Charts of figures with intervals."""

from muster_controller.core.metrics.figures import Figure
from muster_controller.web.metric_charts import BAR_WIDTH, band_chart, said, whiskers


def figure(value: float | None, spread: float = 0.01) -> Figure:
    return Figure(None) if value is None else Figure(value, value - spread, value + spread)


def test_the_line_breaks_where_nothing_is_known() -> None:
    found = [(float(hour), figure(None if hour == 2 else 0.9)) for hour in range(5)]

    chart = band_chart(found)

    assert chart is not None
    assert len(chart.lines) == len(chart.bands) == 2
    assert chart.unknown == 1
    assert len(chart.points) == 4


def test_nothing_known_is_no_chart() -> None:
    assert band_chart([(0.0, figure(None)), (1.0, figure(None))]) is None


def test_a_larger_share_is_drawn_higher_and_its_band_around_it() -> None:
    chart = band_chart([(0.0, figure(0.5)), (1.0, figure(0.8))])

    assert chart is not None
    (_, low_y, _), (_, high_y, _) = chart.points
    assert high_y < low_y
    assert chart.top <= high_y
    assert low_y <= chart.bottom


def test_the_longest_whisker_ends_at_the_end() -> None:
    small, large = whiskers([("a", figure(0.1)), ("b", figure(0.4))])

    assert large.high_x == BAR_WIDTH
    assert small.low_x < small.value_x < small.high_x < large.low_x


def test_what_is_unknown_says_so_and_is_no_zero() -> None:
    assert said(figure(None)).startswith("unknown")
    assert said(figure(0.123, 0.004)) == "12.3 % (11.9 to 12.7)"
    assert said(Figure(3.21, 3.0, None), is_share=False) == "3.21 ms (3 to any)"
