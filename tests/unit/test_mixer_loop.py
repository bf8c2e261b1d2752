"""The one thread of the mixer's process: what it acknowledges, and when; what it sends again."""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from harness.mixing import DAY_START, FLEET, Stage, window
from muster_controller.mixer import process
from muster_controller.mixer.batching import HOUR_CLOSES_S
from muster_controller.mixer.errors import MixerError, MixLedgerUnavailable
from muster_controller.mixer.process import MixerLoop, locked, state_every_s
from muster_shared import topics
from muster_shared.link import AckToken, Connected, Mid, MqttVersion, OutboundQueueFull, Qos, Received
from muster_shared.messages import encode
from muster_shared.metrics import HOUR_S, MixedAck, Window, cohort
from muster_shared.sealing import seal
from muster_shared.topics import MetricsTopic, MixedChannel, MixedTopic


@dataclass
class Outlet:
    """A link that keeps what it is given."""

    acked: list[int] = field(default_factory=list)
    sent: list[tuple[str, bytes, bool]] = field(default_factory=list)
    room: int = 1000

    def ack(self, token: AckToken) -> None:
        self.acked.append(token.packet_id)

    def publish(self, topic: str, payload: bytes, *, qos: Qos, retain: bool = False) -> Mid:
        if len(self.sent) >= self.room:
            raise OutboundQueueFull(self.room)
        self.sent.append((topic, payload, retain))
        return Mid(len(self.sent))

    def sums(self) -> list[bytes]:
        return [payload for _, payload, retain in self.sent if not retain]


class Desk:
    """A loop over a mixer with a clock that is set, and an outlet that is looked at."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder)
        self.stage.now = DAY_START + HOUR_S + 600
        self.outlet = Outlet()
        self.loop = MixerLoop(self.stage.config, self.stage.mixer, self.stage.key)
        self.loop.attach(self.outlet)
        self.stopping = threading.Event()
        self.loop._handle(Connected(MqttVersion.V5, session_present=False))

    def window(self, packet_id: int) -> Received:
        one: Window = window(self.stage.rng)
        topic = topics.build(FLEET, MetricsTopic(cohort(one.cell)))
        return received(topic, seal(one, self.stage.public), packet_id)

    def take(self, *items: Received) -> None:
        self.loop._take(items, self.stopping)


def received(topic: str, payload: bytes, packet_id: int) -> Received:
    return Received(topic, payload, 1, False, AckToken(1, packet_id, 1))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(process, "RETRY_S", 0.0)
    return Desk(tmp_path)


def test_windows_are_acknowledged_in_order_after_they_are_counted(desk: Desk) -> None:
    desk.take(*(desk.window(number) for number in range(5)), received("nobody's", b"", 5))

    assert desk.outlet.acked == [0, 1, 2, 3, 4, 5]
    assert desk.stage.counted() == {"windows": 5}


def test_what_the_disk_refuses_is_not_acknowledged_until_it_is_written(desk: Desk) -> None:
    tries: list[int] = []
    take = desk.stage.mixer.take

    def refusing(raws: list[tuple[int, bytes]]) -> bool:
        tries.append(len(desk.outlet.acked))
        if len(tries) < 3:
            raise MixLedgerUnavailable("full")
        return take(raws)

    desk.stage.mixer.take = refusing  # type: ignore[method-assign,assignment]  # The disk is what is played here.
    desk.take(desk.window(1), desk.window(2))

    assert tries == [0, 0, 0]
    assert desk.outlet.acked == [1, 2]
    assert desk.stage.counted() == {"windows": 2}


def test_a_window_that_meets_a_bug_costs_itself_alone(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    poison = desk.window(2)
    unseal = desk.stage.mixer._unseal

    def unsealing(raw: bytes) -> Window:
        if raw == poison.payload:
            raise KeyError("secret of a window")
        return unseal(raw)

    desk.stage.mixer._unseal = unsealing

    desk.take(desk.window(1), poison, desk.window(3))

    assert desk.outlet.acked == [1, 2, 3]
    assert desk.stage.counted() == {"windows": 2}
    assert "secret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(("clock_speed", "seconds"), [(1.0, 60.0), (6.0, 10.0), (360.0, 1.0), (0.5, 60.0)])
def test_a_mixer_says_how_it_is_each_minute_that_its_clock_shows(clock_speed: float, seconds: float) -> None:
    """But no more often than it looks, and not less often than each minute of the wall: its silence is an alert."""
    assert state_every_s(clock_speed) == seconds


def test_with_a_fast_clock_the_state_is_said_again_at_the_next_look(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TICK_S", 0.0)
    desk.loop._turn()
    desk.loop._turn()
    slow = len([retain for _, _, retain in desk.outlet.sent if retain])
    desk.loop._config = replace(desk.loop._config, clock_speed=600.0, clock_since=1.0)
    desk.loop._state_at -= 0.2  # What has passed, of 0.1 s.
    desk.loop._turn()

    assert slow == 1
    assert len([retain for _, _, retain in desk.outlet.sent if retain]) == 2


def test_sums_are_sent_until_they_are_acknowledged_and_the_state_is_retained(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.take(*(desk.window(number) for number in range(20)))
    desk.stage.at(DAY_START + HOUR_S + HOUR_CLOSES_S)
    desk.loop._turn()
    desk.loop._turn()
    once = list(desk.outlet.sums())
    monkeypatch.setattr(process, "AGAIN_S", 0.0)
    desk.loop._turn()
    twice = list(desk.outlet.sums())
    (published,) = desk.stage.outbox()
    topic = topics.build(FLEET, MixedTopic("one", MixedChannel.ACK))

    desk.take(received(topic, encode(MixedAck(batches=(published.batch,))), 99), received(topic, b"{", 100))
    desk.loop._turn()

    assert len(once) == 1
    assert twice == once * 2
    assert desk.outlet.sums() == twice
    assert [topic for topic, _, retain in desk.outlet.sent if retain] == ["muster/v1/test/mixed/one/state"]


def test_a_full_queue_sends_the_rest_later_and_nothing_while_away(desk: Desk) -> None:
    desk.take(*(desk.window(number) for number in range(20)))
    desk.stage.at(DAY_START + HOUR_S + HOUR_CLOSES_S)
    desk.outlet.room = 0

    desk.loop._turn()
    desk.outlet.room = 1000
    desk.loop._heard_at = None
    desk.loop._turn()
    away = list(desk.outlet.sent)
    desk.loop._handle(Connected(MqttVersion.V5, session_present=True))
    desk.loop._turn()

    assert away == []
    assert len(desk.outlet.sums()) == 1


def test_a_folder_is_one_mixers_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(MixerError, match="another mixer uses"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
