"""The weekly review: what it finds in a week that is known, what it leaves unsaid; made and told once."""

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.observed import MODEL, cell
from muster_controller.api.schemas import review as schemas
from muster_controller.api.schemas.base import Schema
from muster_controller.core.metrics.series import HOST, Group, Series
from muster_controller.core.metrics.sums import MixedSum
from muster_controller.core.review import facts, suspects
from muster_controller.core.review.facts import Coming, Facts, Review
from muster_controller.core.review.making import FOUND_MAX, make
from muster_controller.core.review.week import DUE_S, WEEK_S, Week
from muster_controller.core.review.words import headline, markdown, size
from muster_controller.db.engine import find_database
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.receiver_store import Kind as ReceiverKind
from muster_controller.db.receiver_store import Receiver, ReceiverStore
from muster_controller.db.side import SideDatabase
from muster_controller.errors import NotFound
from muster_controller.review.desk import ReviewDesk
from muster_shared.errors import WireError
from muster_shared.metrics import DAY_S, HOUR_S, LATENCY_GRID, UNITS, Cell, Kind, sigma

WEEK = Week(2026, 47)
BEFORE = WEEK.begin - WEEK_S


def day_sums(
    kind: Kind, shares: Sequence[float], start: float, of: Cell | None = None, devices: int = 20_000
) -> MixedSum:
    """Noised sums of one day as a mixer would publish them; the same start and kind give the same noise."""
    noise, spread = random.Random(f"{kind}{start}{of}"), sigma(kind) * math.sqrt(24)
    sums = tuple(round(share * devices * UNITS + noise.gauss(0.0, spread)) for share in shares)
    return MixedSum(f"b{start}", kind, "m", of or cell(), start, DAY_S, devices, sums, spread**2, periods=24)


def week_sums(kind: Kind, shares: Sequence[float], begin: float, of: Cell | None = None) -> list[MixedSum]:
    return [day_sums(kind, shares, begin + day * DAY_S, of) for day in range(7)]


def feedback(*accuracies: float) -> list[float]:
    """Return the shares of FEEDBACK for equally frequent classes of these accuracies."""
    return [share for right in accuracies for share in ((1 - right) / len(accuracies), right / len(accuracies))]


def latencies(ms: float) -> list[float]:
    """All in the bucket of `ms`."""
    bucket = math.floor(LATENCY_GRID * math.log2(ms * 1000))
    return [
        1.0 if index == bucket else 0.0
        for index in range(Cell(model=MODEL, version="1", device_class="c").dim(Kind.LATENCY))
    ]


def hours(begin: float, group: Group | None = None, **counts: float) -> list[Series]:
    group = group or Group(MODEL, "1.0.0", "pi5-cpu", "north")
    return [Series(group, begin + hour * HOUR_S, HOUR_S, **{"devices": 30, **counts}) for hour in range(168)]  # type: ignore[arg-type]


# -- weeks -------------------------------------------------------------------------------------------------------------


def test_a_week_is_from_monday_to_monday() -> None:
    assert str(WEEK) == "2026-W47"
    assert (WEEK.begin, WEEK.end) == (1_794_787_200.0, 1_795_392_000.0)  # 2026-11-16 and -23, 00:00 UTC.
    assert Week.of(WEEK.end - 1) == WEEK < Week.of(WEEK.end)
    assert Week.parse("2026-W53").before == Week(2026, 52)
    assert Week.parse("2027-W01").before == Week(2026, 53)


@pytest.mark.parametrize("text", ["2026-W54", "2027-W53", "2026-W00", "2026-47", "W47", "2026-W47x", ""])
def test_what_is_no_week_is_said_to_be_none(text: str) -> None:
    with pytest.raises(WireError, match="2026-W47"):
        Week.parse(text)


@given(st.floats(1.0e9, 4.0e9))
def test_the_review_that_is_due_is_of_the_last_week_that_ended_six_hours_ago(now: float) -> None:
    week = Week.due(now)

    assert week.end + DUE_S <= now < week.end + DUE_S + WEEK_S + 1


# -- what got worse ----------------------------------------------------------------------------------------------------


def test_a_class_that_got_worse_is_found_although_the_average_got_better() -> None:
    week = Facts(
        fleet="f",
        week=WEEK,
        hours=hours(WEEK.begin, Group(MODEL, "2.0.0", "pi5-cpu", "north"), requests=100),
        hours_before=hours(BEFORE, requests=100),
        days=week_sums(Kind.FEEDBACK, feedback(0.99, 0.99, 0.70), WEEK.begin),
        days_before=week_sums(Kind.FEEDBACK, feedback(0.80, 0.80, 0.90), BEFORE),
        labels={(MODEL, "1.0.0"): ("c", "go", "perl"), (MODEL, "2.0.0"): ("c", "go", "perl")},
    )

    [found] = make(week).regressions

    assert (found.measure, found.dimension, found.name) == ("accuracy", "class", "perl")
    assert found.hidden
    assert found.versions == ("1.0.0", "2.0.0")
    assert found.worse == pytest.approx(0.2, abs=0.05)
    assert found.before.low is not None
    assert found.before.low < 0.9 < (found.before.high or 0)
    assert "1 regression (1 hidden by the average)" in headline(make(week))
    assert "class perl" in markdown(make(week))
    assert "p < 0.001" in markdown(make(week))


def test_a_quiet_week_has_no_regressions() -> None:
    same = feedback(0.9, 0.8, 0.95)
    week = Facts(
        fleet="f",
        week=WEEK,
        hours=hours(WEEK.begin, requests=100, slow=1),
        hours_before=hours(BEFORE, requests=100, slow=1),
        days=week_sums(Kind.FEEDBACK, same, WEEK.begin) + week_sums(Kind.LATENCY, latencies(8.0), WEEK.begin),
        days_before=week_sums(Kind.FEEDBACK, same, BEFORE) + week_sums(Kind.LATENCY, latencies(8.0), BEFORE),
    )

    review = make(week)

    assert review.regressions == ()
    assert "Nothing, as far as can be told." in markdown(review)


def test_a_device_class_that_got_slower_is_found_by_intervals_that_do_not_meet() -> None:
    slow, fast = cell(device_class="pi5-cpu"), cell(device_class="x86")
    week = Facts(
        fleet="f",
        week=WEEK,
        days=week_sums(Kind.LATENCY, latencies(20.0), WEEK.begin, slow)
        + week_sums(Kind.LATENCY, latencies(4.0), WEEK.begin, fast),
        days_before=week_sums(Kind.LATENCY, latencies(8.0), BEFORE, slow)
        + week_sums(Kind.LATENCY, latencies(4.0), BEFORE, fast),
    )

    [found] = make(week).regressions

    assert (found.measure, found.name) == ("latency", "pi5-cpu")
    assert found.after.value == pytest.approx(20.0, rel=0.2)
    assert found.worse == pytest.approx(1.5, rel=0.3)


@pytest.mark.parametrize(("slow_before", "slow_after", "found"), [(1, 3, True), (10, 11, False), (0, 0, False)])
def test_more_requests_over_the_objective_count_when_it_is_more_than_a_little(
    slow_before: int, slow_after: int, found: bool
) -> None:
    week = Facts(
        fleet="f",
        week=WEEK,
        hours=hours(WEEK.begin, requests=100, slow=slow_after),
        hours_before=hours(BEFORE, requests=100, slow=slow_before),
    )

    assert [each.measure for each in make(week).regressions] == (["slow"] if found else [])


# -- odd inputs and errors ---------------------------------------------------------------------------------------------


def inputs(hour: int, odd: float) -> MixedSum:
    return MixedSum(
        f"i{hour}",
        Kind.INPUTS,
        "m",
        cell(),
        WEEK.begin + hour * HOUR_S,
        HOUR_S,
        20_000,
        tuple(
            round(share * 20_000 * UNITS + random.Random(hour * 10 + index).gauss(0.0, sigma(Kind.INPUTS)))
            for index, share in enumerate((1 - odd, 0.0, odd, 0.0, 0.0, 0.0, 0.0, 0.0))
        ),
        sigma(Kind.INPUTS) ** 2,
    )


def failing(errors: Sequence[int]) -> list[Series]:
    group = Group(MODEL, "1.0.0", "pi5-cpu", "north")
    return [
        Series(group, WEEK.begin + hour * HOUR_S, HOUR_S, devices=30, requests=1000, errors=count)
        for hour, count in enumerate(errors)
    ]


def test_hours_with_odd_inputs_and_errors_are_found_through_the_noise() -> None:
    odd = [0.05 + 0.15 * ((hour % 24) / 24) for hour in range(168)]
    week = Facts(
        fleet="f",
        week=WEEK,
        hours=failing([round(1000 * each / 5) for each in odd]),
        inputs=[inputs(hour, each) for hour, each in enumerate(odd)],
    )

    [found] = make(week).suspects

    assert (found.model, found.device_class, found.region, found.hours) == (MODEL, "pi5-cpu", "north", 168)
    assert found.correlation > 0.9
    assert found.error_share == pytest.approx(sum(odd) / 168 / 5, abs=0.005)


def test_errors_that_have_nothing_to_do_with_inputs_are_no_suspects() -> None:
    chance = random.Random(4)
    week = Facts(
        fleet="f",
        week=WEEK,
        hours=failing([chance.randrange(50) for _ in range(168)]),
        inputs=[inputs(hour, chance.uniform(0.05, 0.2)) for hour in range(168)],
    )

    assert make(week).suspects == ()


def test_few_hours_prove_nothing() -> None:
    count = suspects.HOURS_MIN - 1
    week = Facts(
        fleet="f",
        week=WEEK,
        hours=failing(list(range(count))),
        inputs=[inputs(hour, 0.05 + 0.01 * hour) for hour in range(count)],
    )

    assert make(week).suspects == ()


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=30).filter(lambda some: len(set(some)) > 1))
def test_a_rank_correlation_knows_nothing_but_order(values: list[int]) -> None:
    as_floats = [float(each) for each in values]
    bent = [math.exp(each) for each in as_floats]

    assert suspects.spearman(as_floats, bent) == pytest.approx(1.0)
    assert suspects.spearman(as_floats, [-each for each in bent]) == pytest.approx(-1.0)
    assert suspects.spearman(as_floats, [1.0] * len(values)) is None


# -- room, costs, what is coming ---------------------------------------------------------------------------------------


def test_room_is_what_the_busiest_hour_leaves() -> None:
    busy = hours(WEEK.begin, Group(HOST, HOST, "pi5-cpu"), requests=3600, cpu_percent_sum=200.0, cpu_told=10)
    busy[100] = Series(
        busy[0].group, busy[100].at, HOUR_S, 30, 7200, cpu_percent_max=95.0, cpu_percent_sum=800.0, cpu_told=10
    )

    [room] = make(Facts(fleet="f", week=WEEK, hours=busy)).rooms

    assert (room.device_class, room.busiest_at, room.cpu_percent) == ("pi5-cpu", busy[100].at, 80.0)
    assert (room.requests_per_s_peak, room.factor) == (2.0, 1.25)


def test_costs_are_of_models_alone_and_energy_is_unknown_without_a_sensor() -> None:
    measured = Group("faces", "1.0.0", "jetson")
    week = Facts(
        fleet="f",
        week=WEEK,
        hours=[
            *hours(WEEK.begin, inferences=1000, requests=500, cpu_ms=36_000.0, bytes_sent=2000.0, bytes_received=500.0),
            *hours(WEEK.begin, measured, inferences=1000, cpu_ms=1000.0, energy_j=18.0),
            *hours(WEEK.begin, Group("faces", "1.0.0", "pi5-cpu"), inferences=9000, cpu_ms=1000.0),
            *hours(WEEK.begin, Group(HOST, HOST, "pi5-cpu"), inferences=10**9, cpu_ms=1e12),
        ],
    )

    digits, faces = make(week).costs

    assert (digits.model, digits.inferences, digits.cpu_hours) == (MODEL, 168_000, pytest.approx(1.68))
    assert (digits.cpu_s_per_1000, digits.bytes_per_1000) == (pytest.approx(36.0), pytest.approx(2500.0))
    assert (digits.energy_kwh, digits.energy_j_per_1000) == (None, None)
    assert faces.energy_kwh == pytest.approx(18.0 * 168 / 3.6e6)
    assert faces.energy_j_per_1000 == pytest.approx(18.0)  # Of those that were measured.
    assert "| unknown |" in markdown(make(week))


def test_what_is_coming_is_told_by_time_and_bounded() -> None:
    later = [Coming(kind="trust", name=f"role-{n}", text="runs out", at=1.8e9 + n) for n in range(FOUND_MAX)]
    week = Facts(
        fleet="f",
        week=WEEK,
        coming=[
            Coming(kind="behind", name="digits", text="3 devices"),
            *later,
            Coming(kind="ca", name="CA", text="x", at=1.0),
        ],
    )

    review = make(week)

    assert review.coming[0].name == "CA"
    assert (len(review.coming), review.left_out) == (FOUND_MAX, 2)
    assert "2 more findings are left out." in markdown(review)


@pytest.mark.parametrize(("count", "said"), [(0.0, "0 B"), (999.0, "999 B"), (1500.0, "1.5 kB"), (3.21e9, "3.21 GB")])
def test_bytes_are_said_for_people(count: float, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize(
    ("kept", "said", "more"),
    [
        (facts.Span, schemas.SpanView, ()),
        (facts.Regression, schemas.RegressionView, ()),
        (facts.Suspect, schemas.SuspectView, ()),
        (facts.Room, schemas.RoomView, ()),
        (facts.Coming, schemas.ComingView, ()),
        (facts.Cost, schemas.CostView, ()),
        (facts.Review, schemas.ReviewView, ("markdown",)),
    ],
)
def test_the_api_says_all_that_is_kept(kept: type[msgspec.Struct], said: type[Schema], more: tuple[str, ...]) -> None:
    assert (*kept.__struct_fields__, *more) == tuple(said.model_fields)


# -- making it once ----------------------------------------------------------------------------------------------------


class Clock:
    now = WEEK.end + DUE_S + 60.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def side(tmp_path: Path) -> Iterator[SideDatabase]:
    with (
        SqlLedger(tmp_path / "muster.db", Clock(), lambda _: None),
        SideDatabase(find_database(tmp_path / "muster.db")) as side,
    ):
        yield side


def desk(side: SideDatabase, clock: Clock, found: Sequence[Series] | None = None) -> ReviewDesk:
    some = hours(WEEK.begin, requests=10) if found is None else found
    return ReviewDesk(
        side, ReceiverStore(side, clock), lambda week, _now: Facts(fleet="f", week=week, hours=some), clock
    )


def test_a_review_is_made_kept_and_told_to_those_who_want_it_once(side: SideDatabase) -> None:
    clock = Clock()
    receivers = ReceiverStore(side, clock)
    for name, reviews in (("ops", True), ("pager", False)):
        receivers.add(Receiver(name, ReceiverKind.EMAIL, "ops@example.org", reviews=reviews, created_at=clock.now))
    one, other = desk(side, clock), desk(side, clock)

    made = one.make_due(Week.due(clock.now))
    again = [one.make_due(WEEK), other.make_due(WEEK)]

    assert made == other.review(WEEK)
    assert again == [None, None]
    assert other.weeks() == [("2026-W47", clock.now)]
    [notice] = receivers.due(10)
    assert notice.receiver == "ops"
    assert notice.body.subject == "[f] 2026-W47: no regressions."
    assert notice.body.text == markdown(made)
    assert msgspec.json.decode(notice.body.data, type=Review) == made


def test_who_comes_second_at_the_same_moment_tells_nobody(side: SideDatabase) -> None:
    clock = Clock()
    receivers = ReceiverStore(side, clock)
    receivers.add(Receiver("ops", ReceiverKind.EMAIL, "ops@example.org", reviews=True, created_at=clock.now))
    first, second = desk(side, clock), desk(side, clock)
    raced = ReviewDesk(
        side,
        receivers,
        lambda week, now: (first.make_due(week), second._facts(week, now))[1],  # Another is quicker.
        clock,
    )

    made = raced.make_due(WEEK)

    assert made is None
    assert len(receivers.due(10)) == 1


def test_the_chore_makes_what_is_due_and_nothing_of_a_week_without_a_word(side: SideDatabase) -> None:
    clock = Clock()
    silent, speaking = desk(side, clock, []), desk(side, clock)

    silent.turn()
    silent.stop()
    before = silent.weeks()
    speaking.turn()
    speaking.stop()

    assert before == []
    assert [week for week, _ in speaking.weeks()] == ["2026-W47"]


def test_a_review_that_was_not_made_is_not_found(side: SideDatabase) -> None:
    with pytest.raises(NotFound, match="muster review --list"):
        desk(side, Clock()).review(WEEK)


def test_the_week_so_far_is_not_kept(side: SideDatabase) -> None:
    clock = Clock()

    review = desk(side, clock).so_far()

    assert review.week == "2026-W48"
    assert desk(side, clock).weeks() == []
