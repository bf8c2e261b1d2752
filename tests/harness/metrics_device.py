"""One device's metrics under a clock that only a test moves: book, journal file and sending, on a line in memory.

What a kill leaves is what the files are at that moment, so `kill` goes on with copies of them and forgets the rest.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from muster_agent.metrics.book import Book
from muster_agent.metrics.journal import FILE, MetricsJournal
from muster_agent.metrics.port import DriftState, Release, Tally
from muster_agent.metrics.sending import Sending
from muster_agent.metrics.windows import Place
from muster_shared.ids import FleetId, ModelName
from muster_shared.link import Delivered, LinkItem, Mid, OutboundQueueFull, PublishRefused, Qos
from muster_shared.metrics import HOUR_S, Kind, Window, cohort, key_id
from muster_shared.sealing import open_sealed
from muster_shared.topics import MetricsTopic, parse

FLEET = FleetId("harbour")
PLACE = Place("pi5-cpu", "eu")
BEGAN = 20_400 * 86_400
"""Midnight of the first day, UTC."""
PRIVATE = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key().public_bytes_raw()
MIXERS = {key_id(PUBLIC): PUBLIC}
DIGITS = Release(ModelName("digits"), "1.0.0", "d", 10, frozenset(Kind))


@dataclass
class Broker:
    """A broker with a mixer behind it. `is_up`: whether devices reach it."""

    is_up: bool = True
    answers: bool = True
    """Whether what it takes is acknowledged."""
    refuses: bool = False
    is_full: bool = False
    """The link's queue is."""
    arrived: list[tuple[float, Window]] = field(default_factory=list)
    bytes: set[int] = field(default_factory=set)
    last_mid: int = 0

    @property
    def windows(self) -> dict[str, Window]:
        """By nonce: as the mixer counts them."""
        return {window.nonce: window for _, window in self.arrived}


class Device:
    """A device and its broker. Time passes by `until`."""

    def __init__(self, folder: Path, broker: Broker, *, mixers: Mapping[str, bytes] = MIXERS, seed: int = 0) -> None:
        self.at = float(BEGAN)
        self.broker = broker
        self.mixers = dict(mixers)
        self.knows_time = True
        self.counted = 0
        self._folder = folder
        self._lives = 0
        self._random = Random(seed)
        self._unread: list[tuple[Mid, str | None]] = []
        self._begin(folder / FILE)

    # -- muster_agent.metrics.sending.Line ----------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self.broker.is_up

    def publish(self, topic: str, payload: bytes, *, qos: Qos) -> Mid:
        assert qos == 1
        if self.broker.is_full:
            raise OutboundQueueFull(1)
        self.broker.last_mid += 1
        mid = Mid(self.broker.last_mid)
        self.broker.bytes.add(len(payload))
        if self.broker.refuses:
            self._unread.append((mid, "not authorised"))
            return mid
        window = open_sealed(payload, {key_id(PUBLIC): PRIVATE})
        assert parse(FLEET, topic) == MetricsTopic(cohort(window.cell))
        self.broker.arrived.append((self.at, window))
        if self.broker.answers:
            self._unread.append((mid, None))
        return mid

    # -- what a test does with it -------------------------------------------------------------------------------------

    def until(
        self, at: float, step_s: float, tallies: Callable[[float], Sequence[Tally]] | None = None, *, exact: bool = True
    ) -> None:
        """Let time pass in steps; each ends with a look, after what was counted in it.

        Args:
            tallies: What is counted in the step that ends at its argument; None: one inference of `DIGITS`.
            exact: Whether it also looks at the end of each hour, as the agent does.
        """
        while self.at < at:
            hour_end = (self.at // HOUR_S + 1) * HOUR_S
            self.at = min(at, self.at + step_s, hour_end if exact else at)
            self.look([one(1)] if tallies is None else tallies(self.at))

    def look(self, tallies: Sequence[Tally] = ()) -> float:
        self.counted += sum(each.inferences for each in tallies)
        pause_s = self.sending.look(tallies)
        self.hear()
        return pause_s

    def hear(self) -> None:
        """Let the link say what the broker said."""
        unread, self._unread = self._unread, []
        for mid, refusal in unread:
            item: LinkItem = Delivered(mid) if refusal is None else PublishRefused(mid, refusal)
            self.sending.heard(item)

    def kill(self) -> None:
        """kill -9, and a start: nothing of the process is left but its files."""
        self._lives += 1
        there = self._folder / f"life-{self._lives}"
        there.mkdir()
        for path in self.path.parent.glob(f"{FILE}*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, there / path.name)
        self.journal.close()
        self._unread = []
        self._begin(there / FILE)

    def restart(self) -> None:
        """An orderly end, and a start."""
        self.look()
        self.journal.close()
        self._unread = []
        self._begin(self.path)

    @property
    def book(self) -> Book:
        return self.sending.inspect(lambda book, due, at: book)

    @property
    def inferences(self) -> int:
        """Of what it has not got rid of."""
        waiting = sum(part.counted.inferences for part in self.book.parts.values())
        return waiting + sum(each.inferences for each in self.book.running.counted)

    def _begin(self, path: Path) -> None:
        self.path = path
        self.journal = MetricsJournal(path)
        self.sending = Sending(
            fleet=FLEET,
            place=PLACE,
            journal=self.journal,
            line=self,
            mixers=lambda: self.mixers,
            clock=lambda: self.at if self.knows_time else None,
            random=self._random,
        )
        self.sending.open()


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder where a commit waits for no disk, if there is such: months are thousands of commits."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def one(count: int, place: int = 3, release: Release = DIGITS) -> Tally:
    """Return a tally of `count` inferences of one class."""
    counts = {Kind.CLASSES: {place: count}, Kind.CONFIDENCE: {19: count}, Kind.INPUTS: {0: count}} if count else {}
    return Tally(release, count, counts, DriftState.QUIET)
