"""Noised sums, mixers and series as rows, and their way there from the topic: the same on SQLite and PostgreSQL."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec
import pytest

from harness.noised import BEGIN, MODEL, cell, mixed, mixer_state
from harness.postgres import Where
from muster_controller.core.metrics.rollup import days_of
from muster_controller.core.metrics.series import BIN_S, HOST, Group, Series
from muster_controller.db import metrics_store
from muster_controller.db.engine import find_database
from muster_controller.db.errors import LedgerUnavailable
from muster_controller.db.ledger import SqlLedger
from muster_controller.db.metrics_store import MetricsStore, TooMuchAsked
from muster_controller.db.side import SideDatabase
from muster_controller.metrics.ingest import MixedIngest
from muster_shared.messages import MESSAGE_BYTES_MAX, encode
from muster_shared.metrics import DAY_S, HOUR_S, Kind, Mixed, MixedAck, MixerState, sigma
from muster_shared.topics import MixedChannel, MixedTopic, Topic

NOW = float(BEGIN + 30 * HOUR_S)
SUMS, STATE = MixedTopic("mixer-a", MixedChannel.SUMS), MixedTopic("mixer-a", MixedChannel.STATE)


@pytest.fixture
def side(where: Where) -> Iterator[SideDatabase]:
    with SqlLedger(where, lambda: NOW):
        pass  # It migrates.
    with SideDatabase(find_database(where)) as opened:
        yield opened


@pytest.fixture
def store(side: SideDatabase) -> MetricsStore:
    return MetricsStore(side)


class Acks:
    """A wire that keeps what was published."""

    def __init__(self) -> None:
        self.said: list[tuple[str, tuple[str, ...]]] = []

    def publish(self, topic: Topic, payload: bytes, *, qos: int, retain: bool = False) -> None:
        assert isinstance(topic, MixedTopic)
        assert (topic.channel, qos, retain) == (MixedChannel.ACK, 1, False)
        self.said.append((topic.mixer, msgspec.json.decode(payload, type=MixedAck).batches))


class Way:
    """The way in: ingest over the store, with its acknowledgements."""

    def __init__(self, store: MetricsStore) -> None:
        self.acks = Acks()
        self.now = NOW
        self.ingest = MixedIngest(store, self.acks, lambda: self.now)

    def say(self, *messages: Mixed | MixerState, topic: MixedTopic = SUMS) -> None:
        self.ingest.received([(topic, encode(each)) for each in messages])


@pytest.fixture
def way(store: MetricsStore) -> Way:
    return Way(store)


# -- noised sums -------------------------------------------------------------------------------------------------------


def test_a_batch_that_comes_twice_counts_once_and_is_acknowledged_each_time(store: MetricsStore, way: Way) -> None:
    way.say(mixed("b-1"))
    way.say(mixed("b-1"), mixed("b-1"), mixed("b-2", 1))

    found = store.mixed(kind=Kind.INPUTS, period_s=HOUR_S)
    (day,) = store.mixed(kind=Kind.INPUTS, period_s=DAY_S)
    assert [each.period_start for each in found] == [BEGIN, BEGIN + HOUR_S]
    assert found[0].sums == (60_000, -12, 5, 0, 0, 7, -3, 1)
    assert found[0].variance == pytest.approx(sigma(Kind.INPUTS) ** 2)
    assert day.sums == tuple(2 * each for each in found[0].sums)
    assert way.acks.said == [("mixer-a", ("b-1",)), ("mixer-a", ("b-1", "b-2"))]
    assert way.ingest.taken == 2


def test_days_are_what_their_hours_make_whatever_came_first(store: MetricsStore) -> None:
    batches = [mixed(f"b-{number}", number, devices=100 + number) for number in (5, 3, 23, 24, 4)]
    batches += [mixed("late", 3, devices=30, late=True), mixed("other", 3, of=cell(region="south"))]

    for each in batches:
        store.add([each])

    hours = store.mixed(period_s=HOUR_S)
    rolled = {(each.batch, each.kind): each for each in store.mixed(period_s=DAY_S)}
    assert len(hours) == 2 * len(batches)
    assert rolled == {(each.batch, each.kind): each for each in days_of(hours)}
    assert {(each.devices, each.periods) for each in rolled.values()} == {(133, 4), (124, 1), (1000, 1)}


def test_days_that_devices_sent_merged_stand_beside_those_rolled_up(store: MetricsStore) -> None:
    store.add([mixed("b-1", 3), mixed("b-2", 0, period_s=DAY_S)])

    assert sorted(each.mixer for each in store.mixed(kind=Kind.INPUTS, period_s=DAY_S)) == ["", "mixer-a"]


def test_nothing_is_in_an_answer_twice(store: MetricsStore) -> None:
    store.add([mixed(f"b-{number}", number) for number in range(60)])

    def periods(since: float | None, until: float | None) -> list[tuple[int, int]]:
        found = store.mixed(kind=Kind.INPUTS, since=since, until=until)
        return [(round((each.period_start - BEGIN) / HOUR_S), each.period_s // HOUR_S) for each in found]

    assert periods(None, None) == [(0, 24), (24, 24), (48, 24)]
    assert periods(BEGIN, BEGIN + 2 * DAY_S) == [(0, 24), (24, 24)]
    assert periods(BEGIN + 22 * HOUR_S, BEGIN + 50 * HOUR_S) == [(22, 1), (23, 1), (24, 24), (48, 1), (49, 1)]
    assert periods(BEGIN + 3 * HOUR_S, BEGIN + 5 * HOUR_S) == [(3, 1), (4, 1)]
    assert periods(BEGIN + 22 * HOUR_S, None) == [(22, 1), (23, 1), (24, 24), (48, 24)]


def test_sums_are_found_by_what_they_are_of(store: MetricsStore) -> None:
    cells = [cell("1.0.0"), cell("1.1.0"), cell("1.1.0", "nuc-cpu"), cell("1.1.0", region="")]
    store.add([mixed(f"b-{number}", of=each) for number, each in enumerate(cells)])

    def count(
        model: str | None = None, version: str | None = None, device_class: str | None = None, region: str | None = None
    ) -> int:
        found = store.mixed(model, Kind.CLASSES, HOUR_S, None, None, version, device_class, region)
        return len(found)

    assert (count(), count(model="other"), count(version="1.1.0"), count(device_class="nuc-cpu")) == (4, 0, 3, 1)
    assert (count(region=""), count(region="north")) == (1, 3)
    assert [(each.cell, each.kinds) for each in store.known(MODEL)] == [
        (each, (Kind.CLASSES, Kind.INPUTS)) for each in sorted(cells)
    ]


def test_too_much_is_not_asked_at_once(store: MetricsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add([mixed(f"b-{number}", number) for number in range(3)])
    monkeypatch.setattr(metrics_store, "ROWS_MAX", 5)

    with pytest.raises(TooMuchAsked):
        store.mixed(period_s=HOUR_S)


# -- what is not believed ----------------------------------------------------------------------------------------------

REFUSED: dict[str, dict[str, object]] = {
    "too little noise": {"sigma": {kind: sigma(kind) * 0.5 for kind in (Kind.CLASSES, Kind.INPUTS)}},
    "no noise": {"sigma": {}},
    "noise that is no number": {"sigma": {Kind.CLASSES: sigma(Kind.CLASSES), Kind.INPUTS: 1e300}},
    "another mixer": {"mixer": "mixer-b"},
    "too few devices": {"devices": 19},
    "no hour": {"period_start": BEGIN + 1},
    "no period": {"period_s": 60},
    "the future": {"period_start": BEGIN + 100 * HOUR_S},
    "a vector of another length": {"sums": {Kind.CLASSES: (1, 2), Kind.INPUTS: (0,) * 8}},
    "more than devices have": {"sums": {Kind.CLASSES: (0,) * 10, Kind.INPUTS: (10**9, *(0,) * 7)}},
    "no sums": {"sums": {}, "sigma": {}},
    "no name": {"batch": "../b"},
    "a cell without a name": {"of": cell(device_class="a/b")},
    "a cell of too many classes": {"of": cell(classes=257)},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_believed_is_refused_and_not_acknowledged(
    store: MetricsStore, way: Way, changes: dict[str, object]
) -> None:
    way.say(mixed("b-0"), mixed(**changes), mixed("b-9", 1))

    assert way.ingest.refused == 1
    assert [named for _, named in way.acks.said] == [("b-0", "b-9")]
    assert len(store.mixed(kind=Kind.INPUTS, period_s=HOUR_S)) == 2


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"batch": 1}', b"x" * (MESSAGE_BYTES_MAX + 1)])
def test_what_is_no_message_is_refused(way: Way, payload: bytes) -> None:
    way.ingest.received([(SUMS, payload), (STATE, payload), (MixedTopic("mixer-a", MixedChannel.ACK), payload)])

    assert way.ingest.refused == 3
    assert way.acks.said == []


def test_while_the_database_is_away_nothing_is_acknowledged_and_afterwards_nothing_is_lost(
    store: MetricsStore, side: SideDatabase, way: Way
) -> None:
    def rename(old: str, new: str) -> None:
        with side.transaction() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

    rename("mixed", "away")
    with pytest.raises(LedgerUnavailable):
        way.say(mixed("b-1"))
    assert way.acks.said == []
    rename("away", "mixed")
    way.say(mixed("b-1"))

    assert way.acks.said == [("mixer-a", ("b-1",))]
    assert len(store.mixed(kind=Kind.INPUTS, period_s=DAY_S)) == 1


def test_a_batch_of_another_mixer_with_the_same_name_is_another_batch(store: MetricsStore, way: Way) -> None:
    way.say(mixed("b-1"))
    way.say(mixed("b-1", mixer="mixer-b"), topic=MixedTopic("mixer-b", MixedChannel.SUMS))

    assert len(store.mixed(kind=Kind.INPUTS, period_s=HOUR_S)) == 2


def test_what_is_older_than_anything_is_kept_is_acknowledged_and_forgotten(store: MetricsStore, way: Way) -> None:
    way.now = NOW + 40 * DAY_S

    way.say(mixed("b-1"))

    assert way.acks.said == [("mixer-a", ("b-1",))]
    assert store.mixed() == []


# -- mixers ------------------------------------------------------------------------------------------------------------


def state(**changes: object) -> MixerState:
    return mixer_state(**{"sent_at": NOW, "windows": 7, **changes})


def test_what_a_mixer_says_of_itself_is_kept_whether_it_was_made_here_or_not(store: MetricsStore, way: Way) -> None:
    way.say(state(), state(windows=8), topic=STATE)
    way.now += 60
    way.say(state(windows=9), topic=STATE)

    (found,) = store.mixers()
    assert (found.id, found.created_by, found.seen_at) == ("mixer-a", "", NOW + 60)
    assert found.state == state(windows=9)


def test_a_state_of_another_mixer_or_without_end_is_refused(store: MetricsStore, way: Way) -> None:
    way.say(state(mixer="mixer-b"), state(key="k" * 1000), state(eps_day=-1.0), topic=STATE)

    assert (way.ingest.refused, store.mixers()) == (3, [])


# -- series ------------------------------------------------------------------------------------------------------------


def point(at: float, **changes: object) -> Series:
    plain = Series(Group(MODEL, "1.1.0", "pi5-cpu", "north"), at, BIN_S, devices=3, requests=10, cpu_ms=1.5)
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_points_are_added_to_their_hour_and_day_at_once(store: MetricsStore) -> None:
    store.add_series([point(BEGIN), point(BEGIN + BIN_S, devices=5, energy_j=2.5), point(BEGIN + HOUR_S, errors=2)])
    store.add_series([point(BEGIN + BIN_S, requests=1, cpu_percent_max=70.0, cpu_percent_sum=90.0, cpu_told=2)])

    def told(period_s: int) -> Sequence[tuple[float, int, int, int, float | None]]:
        found = store.series(MODEL, period_s)
        return [(each.at - BEGIN, each.requests, each.errors, each.devices, each.energy_j) for each in found]

    assert told(BIN_S) == [(0, 10, 0, 3, None), (BIN_S, 11, 0, 5, 2.5), (HOUR_S, 10, 2, 3, None)]
    assert told(HOUR_S) == [(0, 21, 0, 5, 2.5), (HOUR_S, 10, 2, 3, None)]
    assert told(DAY_S) == [(0, 31, 2, 5, 2.5)]
    (day,) = store.series(MODEL, DAY_S)
    assert (day.cpu_percent_max, day.cpu_percent_mean, day.latency_ms_p95_max) == (70.0, 45.0, None)


def test_whole_devices_are_not_among_the_series_of_models(store: MetricsStore) -> None:
    store.add_series([point(BEGIN), point(BEGIN, group=Group(HOST, HOST, "pi5-cpu"))])

    assert [each.group.model for each in store.series(period_s=BIN_S)] == [MODEL]
    assert [each.group.model for each in store.series(HOST, BIN_S)] == [HOST]
    assert store.series(version="9.9.9") == []
    assert store.series(since=BEGIN + HOUR_S) == []
    assert len(store.series(since=BEGIN, until=BEGIN + 1, device_class="pi5-cpu", region="north")) == 1


# -- upkeep ------------------------------------------------------------------------------------------------------------


def test_what_is_old_goes_a_day_at_a_time_and_what_was_made_of_it_stays(
    store: MetricsStore, side: SideDatabase
) -> None:
    store.add([mixed(f"b-{number}", number) for number in range(50)])
    store.add_series([point(BEGIN + number * 6 * HOUR_S) for number in range(8)])
    later = NOW + 60 * DAY_S

    gone = list(iter(lambda: store.prune(later), 0))

    assert gone == [48 + 4 + 4, 48 + 4 + 4, 4]
    assert store.mixed(period_s=HOUR_S) == []
    assert len(store.mixed(kind=Kind.INPUTS, period_s=DAY_S)) == 3
    assert store.series(period_s=HOUR_S) == []
    assert sum(each.requests for each in store.series(period_s=DAY_S)) == 80
    assert store.prune(NOW) == 0
