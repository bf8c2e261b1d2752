"""Roll-ups, and operational counts from twins."""

import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from harness.ledgers import MODEL, A, B, release, twin
from harness.noised import BEGIN, cell, hour
from muster_controller.core.metrics.estimates import class_shares
from muster_controller.core.metrics.rollup import added, batch_of, days_of
from muster_controller.core.metrics.series import BIN_S, HOST, Group, Series, merged, rolled_up
from muster_controller.core.metrics.tally import Tally
from muster_shared.ids import ModelName
from muster_shared.messages import HostTelemetry, Twin, TwinModel
from muster_shared.metrics import DAY_S, HOUR_S, Kind

NOW = float(BEGIN + 10 * HOUR_S)


# -- sums --------------------------------------------------------------------------------------------------------------


def test_a_day_says_what_its_hours_say_together() -> None:
    rng = Random(1)
    hours = [hour(rng, Kind.CLASSES, [1000.0] * 10, devices=10_000 - number, number=number) for number in range(24)]

    (day,) = days_of(hours)

    assert (day.period_s, day.period_start, day.devices, day.periods) == (DAY_S, float(BEGIN), 10_000, 24)
    assert day.variance == pytest.approx(sum(each.variance for each in hours))
    of_day, of_hours = class_shares([day])[0], class_shares(hours)[0]
    assert replace(of_day, value=None, low=None, high=None) == replace(of_hours, value=None, low=None, high=None)
    assert of_day.value == of_hours.value


def test_sums_that_come_late_are_of_other_devices_in_the_same_hour() -> None:
    rng = Random(2)
    first = hour(rng, Kind.DRIFT, [500.0, 0, 0, 0], devices=500)
    late = replace(hour(rng, Kind.DRIFT, [30.0, 0, 0, 0], devices=30), late=True)

    (day,) = days_of([first, late])

    assert (day.devices, day.periods) == (530, 1)


@given(st.permutations(range(12)))
def test_a_day_is_the_same_in_whatever_order_its_hours_come(order: list[int]) -> None:
    rng = Random(3)
    hours = [hour(rng, Kind.DRIFT, [40.0 * n, 1, 2, 3], devices=20 + n, number=n // 2) for n in range(12)]

    assert days_of(hours[index] for index in order) == days_of(hours)


def test_days_of_other_cells_and_kinds_are_kept_apart() -> None:
    rng = Random(4)
    found = [
        hour(rng, Kind.DRIFT, [1.0] * 4, devices=20),
        hour(rng, Kind.INPUTS, [1.0] * 8, devices=20),
        hour(rng, Kind.DRIFT, [1.0] * 4, devices=20, of=cell(region="south")),
        hour(rng, Kind.DRIFT, [1.0] * 4, devices=20, number=24),
    ]

    days = days_of(found)

    assert len(days) == 4
    assert all(not each.batch[0].isalnum() for each in days)  # No mixer's batch has such a name.
    assert batch_of(cell(), BEGIN) != batch_of(cell(classes=11), BEGIN)


def test_a_merged_day_costs_one_window_more_than_the_hours_beside_it() -> None:
    rng = Random(6)
    hours = [hour(rng, Kind.CLASSES, [1000.0] * 10, devices=10_000, number=number) for number in range(24)]
    merged_day = replace(hour(rng, Kind.CLASSES, [5.0] * 10, devices=50), period_s=DAY_S)

    figure = class_shares([*days_of(hours), merged_day])[0]

    assert (figure.periods, figure.devices) == (25, 10_000)
    assert figure.rho == pytest.approx(0.1 * 0.64)


def test_a_day_that_was_sent_merged_is_not_rolled_up_again() -> None:
    merged_day = replace(hour(Random(5), Kind.DRIFT, [1.0] * 4, devices=20), period_s=DAY_S)

    with pytest.raises(AssertionError):
        added(None, merged_day, [(0.0, 20)])


# -- series ------------------------------------------------------------------------------------------------------------


def point(at: float, **changes: object) -> Series:
    return replace(Series(Group(MODEL, "1.1.0", "pi5-cpu"), at, BIN_S, devices=3, requests=10), **changes)  # type: ignore[arg-type]


def test_points_of_an_hour_add_up_and_what_nobody_tells_stays_unknown() -> None:
    points = [
        point(NOW, errors=1, cpu_percent_sum=150.0, cpu_told=3, cpu_percent_max=80.0, devices=5),
        point(NOW + BIN_S, slow=2, cpu_percent_sum=50.0, cpu_told=1, cpu_percent_max=50.0, latency_ms_p95_max=7.5),
    ]

    (found,) = rolled_up(points, HOUR_S)

    assert (found.at, found.period_s, found.requests, found.errors, found.slow, found.devices) == (
        NOW,
        3600,
        20,
        1,
        2,
        5,
    )
    assert (found.cpu_percent_mean, found.cpu_percent_max, found.latency_ms_p95_max) == (50.0, 80.0, 7.5)
    assert found.energy_j is None
    assert merged(found, replace(found, energy_j=2.0)).energy_j == 2.0


# -- twins -------------------------------------------------------------------------------------------------------------


def said(sequence: int, requests: int, *, boot: str = "b1", number: int = 1, **changes: object) -> Twin:
    """The twin of a device that serves release `number`, with its counters."""
    model = TwinModel(model=MODEL, phase="idle", active=release(number), requests=requests, inferences=requests)
    model = changed(model, **{key: value for key, value in changes.items() if key in TwinModel.__struct_fields__})
    host = HostTelemetry(**{key: value for key, value in changes.items() if key in HostTelemetry.__struct_fields__})  # type: ignore[arg-type]
    return changed(twin(A, sequence), boot=boot, models=(model,), host=host, labels={"region": "north"})


def counted(tally: Tally, model: str = MODEL) -> list[Series]:
    return [each for each in tally.ended(math.inf) if each.group.model == model]


def test_what_rose_between_two_twins_is_counted_once() -> None:
    tally = Tally()

    tally.take(said(1, 100), said(2, 160, errors=4, slow=6), NOW, 30.0)
    tally.take(said(1, 100), said(2, 160, errors=4, slow=6), NOW, 30.0)  # The batch is taken again.
    tally.take(said(2, 160, errors=4, slow=6), said(3, 200, errors=5, slow=6, latency_ms_p95=9.5), NOW + 30, 30.0)

    (found,) = counted(tally)
    assert found.group == Group(MODEL, "1.1.0", "pi5-cpu", "north")
    assert (found.requests, found.errors, found.slow, found.inferences) == (100, 5, 6, 100)
    assert (found.devices, found.latency_ms_p95_max, found.at) == (1, 9.5, NOW)
    assert tally.ended(math.inf) == []


def test_counters_that_begin_again_with_the_agent_or_a_release_are_counted_from_zero() -> None:
    tally = Tally()

    tally.take(said(9, 1000), said(1, 30, boot="b2"), NOW, 30.0)
    tally.take(said(1, 30, boot="b2"), said(2, 7, boot="b2", number=2), NOW, 30.0)
    tally.take(said(2, 7, boot="b2", number=2), said(3, 5, boot="b2", number=2), NOW, 30.0)

    assert {each.group.version: each.requests for each in counted(tally)} == {"1.1.0": 30, "1.2.0": 12}


def test_of_a_device_that_nobody_knew_only_that_it_is_there_is_counted() -> None:
    tally = Tally()

    tally.take(None, said(900, 5_000_000, energy_j=1e9, net_sent_mb=50.0, cpu_percent=40.0), NOW, NOW)

    (found,) = counted(tally)
    assert (found.requests, found.energy_j, found.bytes_sent) == (0, 0.0, 0.0)
    assert (found.devices, found.cpu_percent_mean) == (1, 40.0)


def test_what_rose_while_nobody_listened_is_spread_over_that_time() -> None:
    tally = Tally()

    tally.take(said(1, 0), said(2, 1201, cpu_ms=600.0), NOW, HOUR_S)

    found = counted(tally)
    assert len(found) == 12
    assert sum(each.requests for each in found) == 1201
    assert {each.requests for each in found} == {100, 101}
    assert max(each.at for each in found) == NOW
    assert sum(each.cpu_ms for each in found) == pytest.approx(600.0)


def test_energy_goes_on_over_a_new_start_of_the_agent_and_begins_anew_with_the_host() -> None:
    tally = Tally()

    tally.take(
        said(1, 0, energy_j=1000.0, net_sent_mb=9.0), said(1, 0, boot="b2", energy_j=1100.0, net_sent_mb=2.0), NOW, 30.0
    )
    tally.take(said(1, 0, boot="b2", energy_j=1100.0), said(1, 0, boot="b3", energy_j=50.0), NOW, 30.0)

    (found,) = counted(tally, HOST)
    assert found.energy_j == 150.0
    assert found.bytes_sent == 2e6


def test_what_a_device_uses_is_shared_out_among_its_releases_by_the_time_they_ran() -> None:
    other = ModelName("other")
    tally = Tally()

    def both(sequence: int, first: float, second: float, energy: float) -> Twin:
        plain = said(sequence, 10, cpu_ms=first, energy_j=energy)
        extra = TwinModel(model=other, phase="idle", active=release(3, other), cpu_ms=second)
        return changed(plain, models=(*plain.models, extra))

    tally.take(both(1, 0.0, 0.0, 0.0), both(2, 300.0, 100.0, 40.0), NOW, 30.0)

    found = {each.group.model: each for each in tally.ended(math.inf)}
    assert (found[MODEL].energy_j, found["other"].energy_j, found[HOST].energy_j) == (30.0, 10.0, 40.0)
    assert (found[HOST].cpu_ms, found[HOST].devices) == (400.0, 1)


def test_names_that_are_none_and_numbers_beyond_sense_do_no_harm() -> None:
    tally = Tally()
    before = said(1, 0)
    model = changed(said(2, 2**62, errors=2**62, cpu_ms=1e300).models[0], model=ModelName("a/b c"))
    strange = changed(said(2, 2**62, errors=2**62, cpu_ms=1e300, cpu_percent=1e9), labels={"region": "no/where"})

    tally.take(before, strange, NOW, 30.0)
    tally.take(changed(before, device=B), changed(strange, device=B, models=(model,)), NOW, 30.0)

    found = tally.ended(math.inf)
    assert {each.group.region for each in found} == {""}
    assert {each.group.model for each in found} == {MODEL, HOST}
    assert all(each.requests < 2**40 and each.cpu_ms < 2**40 and each.cpu_told == 0 for each in found)
    assert tally.refused == 1


def test_a_device_that_serves_nothing_is_counted_as_a_device() -> None:
    tally = Tally()
    idle = changed(said(1, 0, net_sent_mb=1.0), models=())

    tally.take(idle, changed(idle, sequence=2, host=HostTelemetry(net_sent_mb=3.0)), NOW, 30.0)

    (found,) = tally.ended(math.inf)
    assert (found.group.model, found.devices, found.bytes_sent) == (HOST, 1, 2e6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans(), st.floats(0, 1e7)), max_size=12))
def test_no_sequence_of_twins_breaks_the_count_or_makes_it_fall(
    sequence: list[tuple[int, int, bool, float]],
) -> None:
    tally, before, requests = Tally(), None, 0
    for number, (model_count, rise, is_new, gap_s) in enumerate(sequence):
        requests = 0 if is_new else requests + rise
        twin_now = said(number + 1, requests, boot=f"b{number}" if is_new else "b")
        twin_now = changed(twin_now, models=twin_now.models * model_count)
        tally.take(before, twin_now, NOW + number, gap_s)
        before = twin_now

    assert all(each.requests >= 0 and each.devices == 1 for each in tally.ended(math.inf))
    assert tally.refused == 0


def test_only_bins_that_have_ended_are_given_out() -> None:
    tally = Tally()
    tally.take(said(1, 0), said(2, 5), NOW + 10, 30.0)

    assert tally.ended(NOW + BIN_S - 1) == []
    assert len(tally.ended(NOW + BIN_S)) == 2  # Of the release and of the whole device.
