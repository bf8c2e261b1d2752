"""Whoever sits on the broker, and at times holds the controller's online key. Never the offline release keys.

It repeats what it saw, gives one device what was meant for another, forges, alters chunks, and (with the stolen key)
assigns a release of its own, whose bytes it serves to whoever asks.
"""

from msgspec import json
from msgspec.structs import replace

from muster_shared.assignment import Assignment, ModelAssignment
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, ModelName, Sha256
from muster_shared.messages import ControllerSession, Hardware, ReleaseRef, TrustFiles, Want, decode, encode
from muster_shared.messages import unpack_bits as unpack
from muster_shared.topics import (
    Channel,
    ChunkTopic,
    ControllerTopic,
    DeviceTopic,
    WantTopic,
    build,
    parse,
)
from muster_simulator.ports.broker import Broker, Publish
from muster_simulator.ports.registry import MemoryRegistry, Secret, make_release
from muster_simulator.stage import FLEET, Stage

SEEN_MAX = 40


class Adversary:
    """Sees every publish that the broker routes."""

    def __init__(
        self,
        stage: Stage,
        broker: Broker,
        registry: MemoryRegistry,
        devices: list[DeviceId],
        models: list[ModelName],
        hardware: list[Hardware],
    ) -> None:
        self._stage = stage
        self._broker = broker
        self._online_key = registry.online_key
        self._devices = devices
        self._models = models
        self._random = stage.random("adversary")
        self._own_key = Secret(self._random.randbytes(32))
        self._seen: dict[str, list[bytes]] = {}
        self._blobs: dict[Sha256, bytes] = {}
        self._releases: list[ReleaseRef] = []
        for model in models:
            release, _, blobs = make_release(model, 1000, hardware, self._random, word="evil")
            self._blobs |= blobs
            self._releases.append(release)
        broker.on_route.append(self.look)

    def look(self, publish: Publish) -> Publish:
        """See a publish on its way; a chunk may be altered."""
        if "/assignment" in publish.topic or "/trust/" in publish.topic:
            seen = self._seen.setdefault(publish.topic, [])
            if publish.payload not in seen:
                seen.append(publish.payload)
                del seen[:-SEEN_MAX]
            return publish
        corrupted = self._stage.weather.corrupted
        if "/chunk/" in publish.topic and corrupted and self._random.random() < corrupted:
            self._stage.history.add("adversary", "alters", publish.topic[-12:])
            return Publish(publish.topic, self._altered(publish.payload), publish.qos)
        if publish.topic.endswith("/want") and self._stage.weather.adversary:
            self._serve(publish)
        return publish

    def act(self) -> None:
        """Do one bad thing."""
        device = self._random.choice(self._devices)
        own = build(FLEET, DeviceTopic(device, Channel.ASSIGNMENT))
        other = build(FLEET, DeviceTopic(self._random.choice(self._devices), Channel.ASSIGNMENT))
        trust = [topic for topic in sorted(self._seen) if "/trust/" in topic]
        match self._random.randrange(7):
            case 0 | 1 if own in self._seen:
                self._say("replays", own, self._random.choice(self._seen[own]))
            case 2 if other in self._seen:
                self._say("misdirects", own, self._seen[other][-1])
            case 3 if own in self._seen:
                self._say("forges", own, self._own_key.sign(self._seen[own][-1].partition(b"\n")[2]))
            case 4 if trust:
                topic = self._random.choice(trust)
                self._say("replays", topic, self._random.choice(self._seen[topic]))
            case 5 if trust:
                topic = self._random.choice(trust)
                files = decode(self._seen[topic][-1], TrustFiles)
                altered = {name: text.replace("1", "2") for name, text in files.files.items()}
                self._say("forges", topic, encode(replace(files, files=altered)))
            case 6 if own in self._seen:
                self._steal(own, self._seen[own][-1])
            case _:
                session = ControllerSession(session=f"evil{self._random.random()}", sent_at=self._stage.timeline.now)
                self._say("says", build(FLEET, ControllerTopic()), encode(session))

    def _steal(self, topic: str, seen: bytes) -> None:
        """Assign a release that no release key has signed, with the controller's own key."""
        payload = self._online_key.open(seen)
        if payload is None:
            return
        genuine = json.decode(payload, type=Assignment)
        evil = self._random.choice(self._releases)
        models = [model for model in genuine.models if model.release.model != evil.model]
        stolen = replace(
            genuine, counter=genuine.counter + 1, models=(*models, ModelAssignment(release=evil, watch=None))
        )
        self._say("steals", topic, self._online_key.sign(json.encode(stolen)))

    def _serve(self, publish: Publish) -> None:
        """Answer a want for an evil file."""
        try:
            topic = parse(FLEET, publish.topic)
            if not isinstance(topic, WantTopic) or topic.sha256 not in self._blobs:
                return
            want = decode(publish.payload, Want)
        except WireError:
            return
        content = self._blobs[topic.sha256]
        for index in unpack(want.missing, -(-want.length // want.chunk_bytes)):
            chunk = content[index * want.chunk_bytes : (index + 1) * want.chunk_bytes]
            self._broker.spread(Publish(build(FLEET, ChunkTopic(topic.sha256, index)), chunk, 0))

    def _say(self, what: str, topic: str, payload: bytes) -> None:
        if self._broker.is_up:
            self._stage.history.add("adversary", what, topic)
            retain = self._random.random() < 0.5
            self._broker.spread(Publish(topic, payload, 1, retain))

    def _altered(self, payload: bytes) -> bytes:
        where = self._random.randrange(len(payload)) if payload else 0
        return payload[:where] + bytes([(payload[where] + 1) % 256]) + payload[where + 1 :] if payload else b"?"
