"""The texts that scrapers read: the grammar of both formats, what labels may hold, what is asked for."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.scraping import scrape
from muster_controller.export.counting import GROWS_S, Counting
from muster_controller.export.families import SAMPLES_MAX, Family, Kind, family, text, wants_open_metrics

PROMETHEUS_ASKS = (
    "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/openmetrics-text; version=1.0.0, text/plain; q=0.5",
)


@pytest.mark.parametrize("open_metrics", [False, True])
@given(label=st.text(st.characters(blacklist_categories=("Cs",)), max_size=20), value=st.floats())
def test_whatever_is_in_a_label_the_page_keeps_its_grammar(open_metrics: bool, label: str, value: float) -> None:
    made = [
        family("muster_things_bytes", Kind.GAUGE, 'What "it" says \\ is\nhelp', [(value, {"name": label})]),
        family("muster_other_seconds", Kind.GAUGE, "Other", [(1.5, {})]),
    ]

    page = scrape(text(made, open_metrics=open_metrics), open_metrics=open_metrics)

    [(labels, found)] = page.samples["muster_things_bytes"].items()
    [(_, said)] = labels
    assert re.sub(r"\\(.)", lambda each: {"n": "\n"}.get(each[1], each[1]), said) == label
    assert found == pytest.approx(value, rel=1e-11, nan_ok=True)


def test_a_counter_loses_its_ending_in_the_head_of_openmetrics_alone() -> None:
    made = [family("muster_things_total", Kind.COUNTER, "Things", [(3.0, {})])]

    plain, opened = text(made), text(made, open_metrics=True)

    assert plain == "# HELP muster_things_total Things\n# TYPE muster_things_total counter\nmuster_things_total 3\n"
    assert opened == "# HELP muster_things Things\n# TYPE muster_things counter\nmuster_things_total 3\n# EOF\n"


def test_what_is_not_known_is_left_out_and_never_zero() -> None:
    made = family("muster_energy_joules_total", Kind.COUNTER, "Energy", [(None, {"model": "a"}), (2.0, {"model": "b"})])

    assert [sample.labels for sample in made.samples] == [(("model", "b"),)]


def test_a_family_is_bounded_and_says_what_it_left_out() -> None:
    made = family("muster_many", Kind.GAUGE, "Many", [(1.0, {"n": str(n)}) for n in range(SAMPLES_MAX + 7)])

    assert (len(made.samples), made.left_out) == (SAMPLES_MAX, 7)


@pytest.mark.parametrize(
    ("name", "kind"), [("muster_Things", Kind.GAUGE), ("muster_a_total", Kind.GAUGE), ("a", Kind.COUNTER)]
)
def test_a_name_against_the_conventions_is_a_bug(name: str, kind: Kind) -> None:
    with pytest.raises(AssertionError):
        Family(name, kind, "", ())


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (PROMETHEUS_ASKS[0], True),
        (PROMETHEUS_ASKS[1], True),
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("text/plain, application/openmetrics-text;q=0.1", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=much", False),
    ],
)
def test_openmetrics_is_for_those_who_prefer_it(accept: str, wanted: bool) -> None:
    assert wants_open_metrics(accept) is wanted


KEY = ("digits", "1.0.0", "pi5-cpu")


def test_a_counter_begins_at_zero_and_rises_by_what_rows_grow() -> None:
    counting = Counting()

    counting.take([(KEY, 900.0, {"requests": 500.0})], 1000.0)
    begun = counting.totals[KEY]["requests"]
    counting.take([(KEY, 900.0, {"requests": 510.0}), (KEY, 1200.0, {"requests": 7.0})], 1300.0)

    assert begun == 0.0
    assert counting.totals[KEY]["requests"] == 17.0


def test_a_counter_does_not_fall_when_rows_are_forgotten_or_shrink() -> None:
    counting = Counting()
    counting.take([], 0.0)
    counting.take([(KEY, 0.0, {"requests": 10.0})], 300.0)

    counting.take([(KEY, 0.0, {"requests": 4.0})], 600.0)
    counting.take([], 1e6)

    assert counting.totals[KEY]["requests"] == 10.0


def test_rows_are_read_again_for_as_long_as_they_may_grow() -> None:
    counting = Counting()
    counting.take([], 0.0)
    for now in range(0, 20_000, 300):
        rows = [(KEY, float(at), {"requests": 2.0}) for at in range(0, now + 1, 300) if at >= counting.begin_at(now)]
        counting.take(rows, float(now))

    assert counting.totals[KEY]["requests"] == 2.0 * len(range(0, 20_000, 300))
    assert counting.begin_at(20_000.0) >= 20_000.0 - 300 - GROWS_S - 300
