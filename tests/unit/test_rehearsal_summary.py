"""What many runs come to, against numbers that can be counted on paper."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from muster_simulator.rehearsal.picture import duration, show
from muster_simulator.rehearsal.run import Result
from muster_simulator.rehearsal.scenarios import Harm, own
from muster_simulator.rehearsal.summary import chance, device_bins, spread, summarise, time_bins


def _result(
    ended: str = "finished", why: str = "", exposed: int = 100, harmed: int = 0, seconds: float = 60.0
) -> Result:
    return Result(ended, why, seconds, exposed, harmed, pauses=0, waves=3, unreached=0, advances=1)


def test_a_share_of_none_or_all_still_has_an_interval() -> None:
    none, every = chance(0, 1000), chance(1000, 1000)

    assert (none.share, none.low, every.share, every.high) == (0.0, 0.0, 1.0, 1.0)
    assert none.high == pytest.approx(0.0038, abs=1e-4)
    assert every.low == pytest.approx(1 - 0.0038, abs=1e-4)


def test_a_share_lies_in_its_interval_as_wilson_has_it() -> None:
    found = chance(50, 1000)

    assert found.low == pytest.approx(0.0381, abs=1e-4)
    assert found.high == pytest.approx(0.0653, abs=1e-4)


def test_quantiles_are_values_that_were_seen() -> None:
    found = spread(range(1, 101))

    assert (found.median, found.p90, found.least, found.greatest) == (50, 90, 1, 100)
    assert (found.median_low, found.median_high) == (41, 61)
    assert found.mean == pytest.approx(50.5)


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=60))
def test_every_run_is_in_just_one_bin(values: list[int]) -> None:
    bins = device_bins(values)

    assert sum(each.runs for each in bins) == len(values)
    for each in bins:
        assert each.runs == sum(each.low <= value <= each.high for value in values)
    assert bins[0].runs
    assert bins[-1].runs


@given(st.lists(st.floats(0, 1e7), max_size=60))
def test_every_time_is_in_some_bin(values: list[float]) -> None:
    assert sum(each.runs for each in time_bins(values)) == len(values)


def test_stopped_is_aborted_or_paused_and_missed_is_finished() -> None:
    results = [
        _result("aborted", "failures", 5, 2),
        _result("aborted", "latency", 10, 1),
        _result("paused", "undecided", 20, 4),
        _result("finished", "", 100, 5, 900.0),
    ]

    found = summarise(own(Harm(0.05), 0.01), results)

    assert (found.stopped.share, found.finished.share) == (0.75, 0.25)
    assert found.stopped_by == {"failures": 1, "latency": 1, "undecided": 1}
    assert (found.exposed.median, found.exposed.p90, found.harmed.mean) == (10, 100, 3.0)
    assert found.to_finish_s is not None
    assert found.to_finish_s.median == 900.0


def test_the_picture_answers_whatever_came_of_it() -> None:
    console = Console(width=80, record=True, file=StringIO())
    good = summarise(own(Harm(0.01), 0.01), [_result(), _result("paused", "undecided", 5)])
    bad = summarise(own(Harm(0.05), 0.01), [_result("unfinished", "no end in sight")])

    show(console, "policy.yaml on 100 devices", ("a note",), [good, bad])
    text = console.export_text()

    assert "false abort" in text
    assert "false pause" in text
    assert "no harm" in text
    assert "1 % -> 5 %" in text


@pytest.mark.parametrize(
    ("seconds", "said"), [(5.0, "5 s"), (600.0, "10 min"), (3 * 3600.0, "3.0 h"), (7 * 86400.0, "7.0 d")]
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
