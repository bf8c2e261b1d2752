"""A broker in memory, light enough for ten thousand lines: what is retained, who is there, and what is on its way.

    publish ─▶ retained ─▶ queue ─▶ `deliver`: one message at a time, in order        now and then: twice, late, or lost
                                                                                      with its connection

No topics as text, no sessions: a connection that breaks loses what is on its way. A will is published after its delay.
"""

from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import Protocol
from zlib import crc32

from muster_shared.ids import DeviceId
from muster_shared.messages import Presence, encode
from muster_shared.topics import Channel, DeviceTopic
from muster_simulator.clock import Timeline
from muster_simulator.fleet.scale import FleetFaults

WILL_DELAY_S = 15.0
KEEPALIVE_S = 60.0


class Station(Protocol):
    """A controller's process, as the broker sees it."""

    is_connected: bool

    def take(self, topic: DeviceTopic, payload: bytes) -> None: ...

    def lose_line(self) -> None: ...


class Line(Protocol):
    """A device, as the broker sees it."""

    id: DeviceId
    connection: int
    """0: there is none. Another number for each."""
    boot_word: str

    def take_assignment(self, envelope: bytes) -> None: ...

    def take_ack(self, payload: bytes) -> None: ...

    def take_session(self, payload: bytes) -> None: ...

    def lose_line(self) -> None: ...


@dataclass
class Retained:
    presence: dict[DeviceId, bytes] = field(default_factory=dict)
    twin: dict[DeviceId, bytes] = field(default_factory=dict)
    assignment: dict[DeviceId, bytes] = field(default_factory=dict)
    session: bytes | None = None

    def copy(self) -> "Retained":
        return Retained(dict(self.presence), dict(self.twin), dict(self.assignment), self.session)


class Broker:
    """The broker of one fleet world."""

    def __init__(self, timeline: Timeline, random: Random) -> None:
        self.is_up = True
        self.stations: list[Station] = []
        self.lines: dict[DeviceId, Line] = {}
        self.retained = Retained()
        self.delivered = 0
        self.digest = 0
        """Of everything delivered, in order: a seed is a history."""
        self.weather = FleetFaults.none()
        self._snapshot = Retained()
        self._timeline = timeline
        self._random = random
        self._queue: deque[tuple[Line | None, int, Channel | None, DeviceId, bytes]] = deque()
        """To a line (of that connection), or (None) from a device to every station."""
        self._held: dict[DeviceId, float] = {}
        """Until when what concerns a device is held up: order is kept."""
        self._epoch = 0

    # -- from devices ------------------------------------------------------------------------------------------------

    def connect(self, line: Line) -> None:
        """A device is there: it gets what is retained for it."""
        envelope = self.retained.assignment.get(line.id)
        if envelope is not None:
            self._put(line, line.connection, Channel.ASSIGNMENT, line.id, envelope)
        if self.retained.session is not None:
            self._put(line, line.connection, None, line.id, self.retained.session)

    def publish(self, line: Line, channel: Channel, payload: bytes) -> None:
        """A device says something. Lost without a connection."""
        if line.connection and self.is_up:
            self._put(None, self._epoch, channel, line.id, payload)

    def broken(self, line: Line, boot: str, *, at_once: bool) -> None:
        """A line is gone; sooner or later its will is published."""
        epoch = self._epoch
        delay_s = WILL_DELAY_S + (0.0 if at_once else KEEPALIVE_S)

        def will() -> None:
            if not line.connection and self.is_up and self._epoch == epoch and line.boot_word == boot:
                gone = Presence(device=line.id, boot=boot, online=False, sent_at=self._timeline.now)
                self._put(None, self._epoch, Channel.PRESENCE, line.id, encode(gone))

        self._timeline.after(delay_s, will)

    # -- from controllers --------------------------------------------------------------------------------------------

    def enter(self, station: Station) -> None:
        """A controller is there: it gets everything that devices had retained."""
        for device, payload in sorted(self.retained.presence.items()):
            station.take(DeviceTopic(device, Channel.PRESENCE), payload)
        for device, payload in sorted(self.retained.twin.items()):
            station.take(DeviceTopic(device, Channel.TWIN), payload)

    def assign(self, device: DeviceId, envelope: bytes) -> None:
        """Retain an assignment and deliver it; an empty one takes what is retained away."""
        if envelope:
            self.retained.assignment[device] = envelope
        else:
            self.retained.assignment.pop(device, None)
        line = self.lines.get(device)
        if line is not None and line.connection:
            self._put(line, line.connection, Channel.ASSIGNMENT, device, envelope)

    def acknowledge(self, device: DeviceId, payload: bytes) -> None:
        line = self.lines.get(device)
        if line is not None and line.connection:
            self._put(line, line.connection, Channel.ACK, device, payload)

    def announce(self, payload: bytes) -> None:
        self.retained.session = payload
        for device in sorted(self.lines):
            line = self.lines[device]
            if line.connection:
                self._put(line, line.connection, None, device, payload)

    # -- what goes wrong ---------------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Write what is retained to disk, as brokers do now and then."""
        self._snapshot = self.retained.copy()

    def fall(self, *, forgets: bool) -> None:
        """Stop: every line breaks, what is on its way is lost, wills are lost, and what is retained perhaps."""
        self.is_up = False
        self._epoch += 1
        self._queue.clear()
        self._held.clear()
        if forgets:
            self.retained = Retained()
        elif self._random.random() < 0.5:
            self.retained = self._snapshot.copy()
        for station in list(self.stations):
            station.lose_line()
        for device in sorted(self.lines):
            self.lines[device].lose_line()

    def rise(self) -> None:
        self.is_up = True

    # ----------------------------------------------------------------------------------------------------------------

    def deliver(self) -> bool:
        """Deliver one message; False when none is on its way now."""
        if not self._queue:
            return False
        line, connection, channel, device, payload = self._queue.popleft()
        self.delivered += 1
        self.digest = crc32(payload, self.digest)
        if line is None:
            if connection != self._epoch:
                return True
            if channel is Channel.PRESENCE:
                self.retained.presence[device] = payload
            elif channel is Channel.TWIN:
                self.retained.twin[device] = payload
            assert channel is not None
            topic = DeviceTopic(device, channel)
            for station in self.stations:
                if station.is_connected:
                    station.take(topic, payload)
        elif line.connection == connection:
            match channel:
                case Channel.ASSIGNMENT:
                    line.take_assignment(payload)
                case Channel.ACK:
                    line.take_ack(payload)
                case _:
                    line.take_session(payload)
        return True

    def _put(
        self, line: Line | None, connection: int, channel: Channel | None, device: DeviceId, payload: bytes
    ) -> None:
        message = (line, connection, channel, device, payload)
        weather = self.weather
        drawn = self._random.random() if weather.delayed else 1.0
        held = self._held
        if device in held:
            if held[device] > self._timeline.now:
                self._timeline.at(held[device], lambda: self._queue.append(message))
                return
            del held[device]
        if drawn < weather.delayed:
            until = self._timeline.now + self._random.uniform(0.1, weather.delay_s_max)
            held[device] = until
            self._timeline.at(until, lambda: self._queue.append(message))
            return
        drawn -= weather.delayed
        if drawn < weather.repeated:
            if channel is Channel.EVENT and drawn < weather.repeated / 2:  # What was sent again after a line broke.
                self._timeline.after(self._random.uniform(0.1, 3600.0), lambda: self._queue.append(message))
            else:
                self._queue.append(message)
        elif drawn < weather.repeated + weather.lost:
            broken = self.lines.get(device)
            if broken is not None:
                self._timeline.after(0.0, broken.lose_line)
            return
        self._queue.append(message)
