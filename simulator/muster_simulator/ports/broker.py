"""An MQTT broker in memory, and the lines to it, at their worst within the protocol.

    Client ── lane ──▶ Broker ── lane ──▶ Client       a lane delays, repeats, loses (QoS 0), reorders across topics
      connect: filters, will                           a connection that breaks loses what is on its way, QoS 1 too
                                                       a restart loses what is retained, or brings back an old snapshot

No sessions survive a connection, retained messages may or may not reach wildcards, and a will is delayed (MQTT 5) or
not (3.1.1), as the seed says. Topics are the real strings.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from muster_simulator.stage import Stage

KEEPALIVE_S = 45.0
QUEUED_MAX = 20
"""Publishes that a client keeps while it has no connection."""


@dataclass(frozen=True)
class Will:
    topic: str
    payload: bytes
    delay_s: float


@dataclass(frozen=True)
class Publish:
    topic: str
    payload: bytes
    qos: int
    retain: bool = False


@dataclass(eq=False)
class Lane:
    """One direction of one connection."""

    stage: Stage
    random: Random
    last_at: float = 0.0
    topic_last_at: dict[str, float] = field(default_factory=dict)
    stalled_until: float = 0.0

    def carry(self, topic: str, qos: int, arrive: Callable[[], None]) -> None:
        """Call `arrive` when a message on `topic` gets through: once, twice, or never."""
        weather, random, timeline = self.stage.weather, self.random, self.stage.timeline
        if qos == 0 and weather.qos0_lost and random.random() < weather.qos0_lost:
            return
        moment = max(timeline.now, self.stalled_until) + random.uniform(0.004, 0.06)
        if weather.delayed and random.random() < weather.delayed:
            moment += random.uniform(0.0, weather.delay_s_max)
        if weather.reordered and random.random() < weather.reordered:
            moment += random.uniform(0.0, 2.0)  # Others may overtake it, though not those of its own topic.
        else:
            moment = self.last_at = max(moment, self.last_at)
        if qos:
            moment = self.topic_last_at[topic] = max(moment, self.topic_last_at.get(topic, 0.0))
        timeline.at(moment, arrive)
        if weather.repeated and random.random() < weather.repeated:
            timeline.at(moment, arrive)


@dataclass(eq=False)
class Session:
    """One connection."""

    client: "Client"
    up: Lane
    down: Lane
    will: Will | None
    filters: set[str] = field(default_factory=set)
    alive: bool = True


class Broker:
    """Everyone's broker."""

    def __init__(self, stage: Stage) -> None:
        self.is_up = True
        self.retained: dict[str, bytes] = {}
        self.on_route: list[Callable[[Publish], Publish]] = []
        """Whoever sits on the broker sees each publish before it is routed, and may change it."""
        self._stage = stage
        self._random = stage.random("broker")
        self._sessions: dict[str, Session] = {}
        self._routes: dict[str, dict[str, Session]] = {}
        self._wills: dict[str, Will] = {}
        self._snapshots: list[dict[str, bytes]] = [{}]
        self._retained_by_wildcard = self._random.random() < 0.5
        self._will_delayed = self._random.random() < 0.5

    # -- clients -----------------------------------------------------------------------------------------------------

    def connect(self, client: "Client", filters: Iterable[str], will: Will | None) -> Session | None:
        """Return a new session, or None while the broker is down. An older one of the same client ends."""
        if not self.is_up:
            return None
        if client.name in self._sessions:
            self.end(self._sessions[client.name], clean=False)
        self._wills.pop(client.name, None)
        random = self._stage.random(f"line/{client.name}/{self._random.random()}")
        session = Session(client, Lane(self._stage, random), Lane(self._stage, random), will)
        self._sessions[client.name] = session
        for text in filters:
            self.subscribe(session, text)
        return session

    def subscribe(self, session: Session, text: str) -> None:
        session.filters.add(text)
        self._routes.setdefault(text, {})[session.client.name] = session
        if "+" not in text:
            if text in self.retained:
                self._send(session, Publish(text, self.retained[text], 1, True))
        elif self._retained_by_wildcard or "/trust/" in text:
            # Trust is few topics that a device could as well name one by one.
            for topic in sorted(self.retained):
                if text in _filters(topic):
                    self._send(session, Publish(topic, self.retained[topic], 1, True))

    def unsubscribe(self, session: Session, text: str) -> None:
        session.filters.discard(text)
        route = self._routes.get(text)
        if route is not None:
            route.pop(session.client.name, None)
            if not route:
                del self._routes[text]

    def take(self, session: Session, publish: Publish) -> None:
        """A publish is on its way from a client."""
        session.up.carry(publish.topic, publish.qos, lambda: self.route(publish) if session.alive else None)

    def end(self, session: Session, *, clean: bool) -> None:
        """A session is over; the will is said, now or a little later, unless the client took its leave."""
        if not session.alive:
            return
        session.alive = False
        for text in sorted(session.filters):
            self.unsubscribe(session, text)
        name = session.client.name
        if self._sessions.get(name) is session:
            del self._sessions[name]
        will = session.will
        if clean or will is None or not self.is_up:
            return
        if not self._will_delayed:
            self.route(Publish(will.topic, will.payload, 1, True))
            return
        self._wills[name] = will

        def speak() -> None:
            if self._wills.get(name) is will:
                del self._wills[name]
                self.route(Publish(will.topic, will.payload, 1, True))

        self._stage.timeline.after(will.delay_s, speak)

    def is_connected(self, name: str) -> bool:
        return name in self._sessions

    def route(self, publish: Publish) -> None:
        """A publish has arrived: keep it if it is to be retained, and send it to whoever listens."""
        for look in self.on_route:
            publish = look(publish)
        self.spread(publish)

    def spread(self, publish: Publish) -> None:
        if publish.retain:
            if publish.payload:
                self.retained[publish.topic] = publish.payload
            else:
                self.retained.pop(publish.topic, None)
        for text in _filters(publish.topic):
            route = self._routes.get(text)
            if route:
                for name in sorted(route):
                    self._send(route[name], publish)

    def _send(self, session: Session, publish: Publish) -> None:
        client = session.client

        def arrive() -> None:
            if session.alive and client.session is session:
                client.receive(publish.topic, publish.payload)

        session.down.carry(publish.topic, publish.qos, arrive)

    # -- faults ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Remember what is retained, for a restart that comes back with it."""
        self._snapshots.append(dict(self.retained))

    def restart(self, down_s: float, forgets: float) -> None:
        """Die and come back, having forgotten everything, or all since some snapshot."""
        if not self.is_up:
            return
        self.is_up = False
        self._wills.clear()
        fate = self._random.random()
        if fate < forgets:
            self.retained, how = {}, "empty"
        elif fate < forgets + (1 - forgets) / 2:
            self.retained, how = dict(self._random.choice(self._snapshots)), "old"
        else:
            how = "whole"
        self._stage.history.add("broker", "down", how, down_s)
        for name in sorted(self._sessions):
            client = self._sessions[name].client
            self.end(self._sessions[name], clean=False)
            client.broke("broker gone")
        self._stage.timeline.after(down_s, self._come_back)

    def _come_back(self) -> None:
        self.is_up = True
        self._stage.history.add("broker", "up")


class Client:
    """One side of a line: connects again and again until it is `closed`. The process above it is told in callbacks."""

    def __init__(
        self,
        stage: Stage,
        broker: Broker,
        name: str,
        filters: Iterable[str],
        will: Will | None,
        *,
        connected: Callable[[], None],
        lost: Callable[[], None],
        received: Callable[[str, bytes], None],
    ) -> None:
        self.name = name
        self.session: Session | None = None
        self.receive = received
        self._stage = stage
        self._broker = broker
        self._filters = list(filters)
        self._will = will
        self._connected = connected
        self._lost = lost
        self._random = stage.random(f"client/{name}/{stage.timeline.now}")
        self._closed = False
        self._queued: list[Publish] = []
        self._queues = self._random.random() < 0.5

    def open(self) -> None:
        """Connect, soon."""
        self._again(0.05, 2.0)

    def publish(self, publish: Publish) -> None:
        if self.session is not None:
            self._broker.take(self.session, publish)
        elif self._queues and publish.qos and len(self._queued) < QUEUED_MAX:
            self._queued.append(publish)

    def subscribe(self, text: str) -> None:
        if text not in self._filters:
            self._filters.append(text)
            if self.session is not None:
                self._broker.subscribe(self.session, text)

    def unsubscribe(self, text: str) -> None:
        if text in self._filters:
            self._filters.remove(text)
            if self.session is not None:
                self._broker.unsubscribe(self.session, text)

    def broke(self, why: str) -> None:
        """The connection is gone and the process notices."""
        if self.session is None:
            return
        session, self.session = self.session, None
        self._broker.end(session, clean=False)
        self._stage.history.add(self.name, "line_lost", why)
        self._lost()
        self._again(0.5, 12.0)

    def stall(self, seconds: float) -> None:
        """Nothing gets through for a while; a keep-alive later both sides notice."""
        session = self.session
        if session is None:
            return
        until = self._stage.timeline.now + seconds
        session.up.stalled_until = session.down.stalled_until = until
        if seconds > KEEPALIVE_S:
            self._stage.timeline.after(
                KEEPALIVE_S, lambda: self.broke("keep-alive") if self.session is session else None
            )

    def close(self, *, noticed_after_s: float) -> None:
        """The process is gone; the broker notices at once, or when the keep-alive has passed."""
        self._closed = True
        session, self.session = self.session, None
        if session is not None:
            self._stage.timeline.after(noticed_after_s, lambda: self._broker.end(session, clean=False))

    def _again(self, low_s: float, high_s: float) -> None:
        self._stage.timeline.after(self._random.uniform(low_s, high_s), self._try)

    def _try(self) -> None:
        if self._closed or self.session is not None:
            return
        self.session = self._broker.connect(self, self._filters, self._will)
        if self.session is None:
            self._again(1.0, 8.0)
            return
        queued, self._queued = self._queued, []
        for publish in queued:
            self._broker.take(self.session, publish)
        self._connected()


def _filters(topic: str) -> tuple[str, str, str]:
    """Return the filters of ours that match `topic`: itself, any last word, any fifth word."""
    head, _, last = topic.rpartition("/")
    words = topic.split("/")
    if len(words) > 4 and words[4] != last:
        words[4] = "+"
        return topic, f"{head}/+", "/".join(words)
    return topic, f"{head}/+", topic + "/"  # No filter of ours ends so.
