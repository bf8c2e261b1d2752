"""Sharing out units and making windows: exact sums, exact means, and nothing that the allow-list lacks."""

from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.core.periods import LATE_S, due, free
from muster_agent.metrics.book import Book, ClockSetBack, Stage
from muster_agent.metrics.port import DriftState, Release, Tally
from muster_agent.metrics.rounding import offsets, share_out, share_out_at
from muster_agent.metrics.windows import Place, counted, kinds, windows
from muster_shared.ids import ModelName
from muster_shared.metrics import DAY_S, DRIFT, HOUR_S, UNITS, Kind, Window, metrics_time, problems, units

AT = 490_000 * HOUR_S
PLACE = Place("pi5-cpu", "eu")
ALL = frozenset(Kind)
GROUPS = st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=3)


def release(
    model: str = "digits", version: str = "1.0.0", *, classes: int = 10, allow: frozenset[Kind] = ALL
) -> Release:
    return Release(ModelName(model), version, f"{model}-{version}", classes, allow)


def tally(of: Release, counts: Mapping[int, int], drift: DriftState = DriftState.QUIET) -> Tally:
    return Tally(of, sum(counts.values()), {Kind.CLASSES: dict(counts), Kind.INPUTS: {0: 1}}, drift)


def made(*tallies: Tally, seed: int = 0) -> list[Window]:
    found = windows([counted(each) for each in tallies], PLACE, AT, HOUR_S, Random(seed))
    assert all(not list(problems(window)) for window in found.values())
    return list(found.values())


@given(GROUPS, st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_over_all_offsets_every_place_gets_exactly_its_share(groups: list[list[int]], whole: int) -> None:
    present = [group for group in groups if sum(group)]
    count = offsets(groups)

    given = [share_out_at(groups, whole, offset) for offset in range(count)]

    for at, group in enumerate(groups):
        for place, weight in enumerate(group):
            mean_times = sum(one[at][place] for one in given) * len(present) * sum(group)
            assert mean_times == count * whole * weight if sum(group) else mean_times == 0


@given(st.lists(st.lists(st.integers(0, 10**9), max_size=40), max_size=8), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_units_add_up_and_nothing_that_weighs_nothing_gets_any(groups: list[list[int]], seed: int) -> None:
    shared = share_out(groups, UNITS, Random(seed))

    assert sum(map(sum, shared)) == (UNITS if any(map(sum, groups)) else 0)
    assert all(number >= 0 for row in shared for number in row)
    assert all(
        not number
        for row, group in zip(shared, groups, strict=True)
        for number, w in zip(row, group, strict=True)
        if not w
    )


def test_where_a_share_is_not_whole_chance_decides() -> None:
    outcomes = {tuple(share_out([[1, 1, 1]], UNITS, Random(seed))[0]) for seed in range(60)}

    assert outcomes == {(21, 21, 22), (21, 22, 21), (22, 21, 21)}


def test_a_share_of_one_place_is_never_off_by_a_whole_unit() -> None:
    weights = [[5, 3, 2, 1], [7, 11]]

    for offset in range(offsets(weights)):
        for row, group in zip(share_out_at(weights, UNITS, offset), weights, strict=True):
            for number, weight in zip(row, group, strict=True):
                assert abs(number - UNITS / 2 * weight / sum(group)) < 1


def test_models_share_equally_and_releases_of_a_model_by_what_was_asked_of_them() -> None:
    busy = tally(release("busy"), {0: 1_000_000})
    old, new = tally(release("idle", "1.0.0"), {1: 3}), tally(release("idle", "2.0.0"), {1: 1})

    found = {(window.cell.model, window.cell.version): units(window, Kind.CLASSES) for window in made(busy, old, new)}

    assert found == {
        ("busy", "1.0.0"): {0: 32},
        ("idle", "1.0.0"): {1: 24},
        ("idle", "2.0.0"): {1: 8},
    }


@given(st.integers(1, 20), st.integers(0, 2**32), st.data())
@settings(max_examples=60, deadline=None)
def test_no_kind_of_a_device_gets_more_than_it_has(models: int, seed: int, data: st.DataObject) -> None:
    tallies = [
        tally(release(f"m{model}"), data.draw(st.dictionaries(st.integers(0, 9), st.integers(0, 99), max_size=10)))
        for model in range(models)
    ]

    found = made(*tallies, seed=seed)

    assert len(found) == models
    for kind in Kind:
        given = sum(sum(units(window, kind).values()) for window in found)
        measured = any(kind in counted(each).counts for each in tallies) or kind is Kind.DRIFT
        assert given == (UNITS if measured else 0)


def test_a_release_that_nobody_asked_sends_a_window_with_its_state_alone() -> None:
    (window,) = made(Tally(release(), drift=DriftState.DRIFTING))

    assert dict(units(window, Kind.DRIFT)) == {DRIFT.index("drifting"): UNITS}
    assert set(window.units) == {Kind.DRIFT}


def test_what_the_allow_list_lacks_is_not_even_kept() -> None:
    seen = tally(release(allow=frozenset({Kind.INPUTS})), {3: 9})

    (window,) = made(seen)

    assert set(window.units) == {Kind.INPUTS}
    assert Kind.CLASSES not in counted(seen).counts


def test_a_release_that_allows_nothing_sends_no_window() -> None:
    assert made(tally(release(allow=frozenset()), {3: 9})) == []


def test_a_release_without_classes_has_no_window_for_classes_alone() -> None:
    regression = release(classes=0, allow=frozenset({Kind.CLASSES, Kind.FEEDBACK}))

    assert kinds(regression) == []
    assert made(tally(regression, {})) == []


def test_a_place_beyond_the_last_is_counted_as_the_last() -> None:
    (window,) = made(tally(release(classes=3), {1: 1, 2: 1, 7: 2}))

    assert dict(units(window, Kind.CLASSES)) == {1: 16, 2: 48}


def test_windows_of_one_period_have_nonces_of_their_own() -> None:
    found = made(*(tally(release(f"m{number}"), {0: 1}) for number in range(20)))

    assert len({window.nonce for window in found}) == 20


@pytest.mark.parametrize("at_s", [0, 600, 1799, 1800, 3000, 3599])
def test_an_hour_leaves_after_its_end_and_before_it_is_too_late(at_s: int) -> None:
    end = AT + HOUR_S

    moments = [due(AT, HOUR_S, end + at_s, 1800, Random(seed)) for seed in range(50)]

    assert all(end + at_s <= moment <= end + max(1800, min(at_s + 1800, LATE_S)) for moment in moments)
    assert at_s == 3599 or max(moments) - min(moments) > 0.1


def test_of_a_taken_period_no_second_window_is_made() -> None:
    taken = {(AT, HOUR_S), (AT + HOUR_S, HOUR_S)}

    assert free(AT, HOUR_S, taken) == AT + 2 * HOUR_S
    assert free(AT, DAY_S, taken) == AT


def test_in_the_field_the_clock_is_the_walls_and_a_labs_goes_faster() -> None:
    assert metrics_time(1_795_000_000.5) == 1_795_000_000.5
    assert metrics_time(1_795_000_006.0, 600, 1_795e6) - metrics_time(1_795_000_000.0, 600, 1_795e6) == HOUR_S


# -- clocks ------------------------------------------------------------------------------------------------------------


def book_at(at: float, *counts: int) -> Book:
    book = Book(PLACE)
    book.advance(at, Random(0))
    for count in counts:
        book.count([tally(release(), {0: count})])
    return book


def inferences(book: Book) -> int:
    waiting = sum(part.counted.inferences for part in book.parts.values())
    return waiting + sum(each.inferences for each in book.running.counted)


def test_a_clock_set_back_by_some_minutes_makes_no_second_window_of_the_hour() -> None:
    book = book_at(AT + HOUR_S - 1, 5)
    book.advance(AT + HOUR_S + 1, Random(0))

    book.advance(AT + HOUR_S - 60, Random(0))
    book.count([tally(release(), {0: 7})])
    book.advance(AT + 2 * HOUR_S - 1, Random(0))

    assert [part.start for part in book.parts.values()] == [AT]
    assert book.running.start == AT + HOUR_S
    assert inferences(book) == 12


def test_a_clock_set_back_into_an_hour_that_was_sent_makes_no_second_window_of_it() -> None:
    book = book_at(AT, 5)
    book.advance(AT + HOUR_S + 1, Random(0))
    (part,) = book.parts.values()
    book.handed_over(part.key)
    book.delivered(part.key)

    book.advance(AT + 60, Random(0))
    book.count([tally(release(), {0: 7})])
    book.advance(AT + 2 * HOUR_S, Random(0))

    assert [part.start for part in book.parts.values()] == [AT + HOUR_S]


def test_of_a_day_that_has_its_windows_no_second_one_is_made() -> None:
    book = book_at(AT, 5)
    day = AT // DAY_S * DAY_S
    book.advance(day + DAY_S + 2 * HOUR_S, Random(0))
    assert [(part.start, part.stage) for part in book.parts.values()] == [(day, Stage.WAITING)]

    assert (day, DAY_S) in book.taken
    assert free(day, DAY_S, book.taken) == day + DAY_S


def test_what_waits_of_a_future_that_was_none_is_counted_in_the_hour_that_it_is() -> None:
    book = book_at(AT, 5)
    ahead = AT + 2000 * DAY_S
    book.advance(ahead, Random(0))
    book.count([tally(release(), {0: 7})])
    book.advance(ahead + HOUR_S, Random(0))

    said = book.advance(AT + 2 * HOUR_S, Random(0))

    assert [type(each) for each in said] == [ClockSetBack]
    assert book.running.start == AT + 2 * HOUR_S
    assert inferences(book) == 12
    assert max(part.start for part in book.parts.values()) < AT + DAY_S


def test_without_a_clock_the_hour_goes_on_and_begins_when_there_is_one() -> None:
    book = Book(PLACE)
    book.count([tally(release(), {0: 5})])

    book.advance(AT + 10, Random(0))

    assert book.running.start == AT
    assert inferences(book) == 5


@given(st.lists(st.integers(-3 * HOUR_S, 30 * HOUR_S), min_size=1, max_size=40), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_however_the_clock_jumps_nothing_is_lost_and_no_period_has_two_windows(jumps: list[int], seed: int) -> None:
    book, random, at, total = Book(PLACE), Random(seed), float(AT), 0
    seen: dict[tuple[str, int, int], str] = {}

    for number, jump in enumerate(jumps, 1):
        at += jump
        book.count([tally(release(), {number % 10: number})])
        total += number
        book.advance(at, random)
        for part in book.parts.values():
            if part.window is not None and part.stage is Stage.WAITING and random.random() < 0.3:
                cell = (part.window.cell.model, part.period_s, part.start)
                assert seen.setdefault(cell, part.window.nonce) == part.window.nonce
                total -= part.counted.inferences
                book.handed_over(part.key)
                book.delivered(part.key)
                break

    assert inferences(book) == total
