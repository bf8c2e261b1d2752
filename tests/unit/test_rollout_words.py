"""The command line's words: times, policies put together from options, E computed again, and E drawn in a line."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_controller.cli.policy_options import policy_of
from muster_controller.cli.recompute import NotExplained, recompute
from muster_controller.cli.rollout_explain import BARS, LINE_LENGTH, sparkline
from muster_controller.cli.times import TimeInvalid, length, moment
from muster_controller.core.gate.evidence import HOLD, Terms, evidence
from muster_controller.core.gate.strata import Stratum
from muster_controller.core.policy import PolicyInvalid

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds_ago"), [("now", 0), ("1h ago", 3600), ("1h30m ago", 5400), ("2 d ago", 172_800), ("90s  ago", 90)]
)
def test_a_moment_is_read_as_people_write_it(text: str, seconds_ago: float) -> None:
    assert moment(text, NOW) == NOW - seconds_ago


def test_a_moment_with_a_zone_is_that_moment_everywhere() -> None:
    assert moment("2027-01-15T08:00:00+00:00", NOW) == NOW
    assert moment("2027-01-15T10:00:00+02:00", NOW) == NOW


@pytest.mark.parametrize("text", ["", "yesterday", "ago", "-5m ago", "9999999999999d ago x", "0000-00-00", "1e999 ago"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(TimeInvalid):
        moment(text, NOW)


@given(st.text(max_size=40))
def test_no_text_breaks_the_reading_of_times(text: str) -> None:
    for read in (length, lambda said: moment(said, NOW)):
        try:
            found = read(text)
        except TimeInvalid:
            continue
        assert found >= 0 or text


def test_options_go_before_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("ramp: {first: 3}\nalpha: 0.01\nselector: tier=lab\n")

    found = policy_of(file, ["5", "25%"], ["site=oslo"], "tier!=lab")

    assert found == {"alpha": 0.01, "waves": [5, "25%"], "selector": "tier!=lab,site=oslo"}


@pytest.mark.parametrize(
    ("waves", "labels", "selector"),
    [(["0"], [], None), (["much"], [], None), ([], ["site"], None), ([], ["a b=c"], None), ([], [], "a in (")],
)
def test_options_that_make_no_policy_are_refused(waves: list[str], labels: list[str], selector: str | None) -> None:
    with pytest.raises(PolicyInvalid):
        policy_of(None, waves, labels, selector)


def test_a_file_is_refused_with_its_name_and_line(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("alpha: 0.01\nwaves: no\n")

    with pytest.raises(PolicyInvalid, match=r"policy\.yaml:2: waves"):
        policy_of(file)


def said(strata: list[Stratum], terms: Terms) -> dict[str, Any]:
    """What `explain --json` says of these counts."""
    found = asdict(evidence(strata, terms))
    verdict = {"at": NOW, "wave": 0, "kind": "hold", "reason": "", "evidence": asdict(evidence(strata, terms))}
    return {
        "terms": asdict(terms),
        "evidence": found,
        "verdicts": [verdict],
        "hold_at": HOLD,
        "abort_at": 1 / terms.alpha,
        "more": "is ignored",
    }


COUNTS = st.integers(0, 50)
STRATA = st.lists(
    st.builds(
        lambda wave, name, bad, well, controls, controls_bad, places: Stratum(
            wave, name, bad + well, bad, controls + controls_bad, controls_bad, tuple((place, 1) for place in places)
        ),
        st.integers(0, 3),
        st.sampled_from(["a", "b"]),
        *[COUNTS] * 4,
        st.lists(st.integers(-50, 49), max_size=3, unique=True).map(sorted),
    ),
    max_size=4,
)


@given(STRATA, st.floats(0.001, 0.5), st.booleans())
def test_e_of_any_counts_is_computed_again_and_agrees(strata: list[Stratum], alpha: float, has_controls: bool) -> None:
    terms = Terms(alpha=alpha, weights={"failures": 0.6, "latency": 0.4}, has_controls=has_controls)

    assert all(line.agrees for line in recompute(said(strata, terms)))


def test_one_device_more_that_did_badly_does_not_agree() -> None:
    found = said([Stratum(0, "a", 10, 1, 100, 2)], Terms())
    found["evidence"]["strata"][0]["treated_bad"] = 2

    assert [line.name for line in recompute(found) if not line.agrees] == ["now"]


@pytest.mark.parametrize("found", [{}, [], {"terms": 1}, None])
def test_what_was_not_explained_is_not_computed(found: Any) -> None:
    with pytest.raises(NotExplained):
        recompute(found)


@given(st.lists(st.floats(0, 1e300), max_size=200), st.floats(1, 1e6))
def test_e_is_drawn_in_one_line_whatever_it_is(values: list[float], abort_at: float) -> None:
    line = sparkline(values, abort_at)

    assert len(line) == min(len(values), LINE_LENGTH)
    assert set(line) <= set(BARS)


def test_the_line_is_full_where_it_aborts() -> None:
    assert sparkline([0.1, 1.0, 20.0], 20.0)[-1] == BARS[-1]
    assert sparkline([0.1, 1.0, 20.0], 20.0)[0] == BARS[0]
