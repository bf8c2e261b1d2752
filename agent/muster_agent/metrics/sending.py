"""Windows on their way: counted, kept, sealed to one mixer, handed to the link, and forgotten when the broker has them.

    serving loop ── tallies ──▶ look ──▶ Book ──▶ journal ──▶ seal ──▶ link ──▶ metrics/<cohort>
                                          ▲                              │
                                          └──── heard: Delivered, PublishRefused

Each window leaves by itself at a random moment. Nothing is handed over that the journal has not kept as under way: who
crashes between the two sends the same window again, with the same nonce, and the mixer counts it once. Without a
mixer's key, a link or a clock nothing leaves; it waits and is merged. What is due when, `book` decides.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

import structlog

from muster_agent.core.periods import LATE_S, SPREAD_S, due, end_of
from muster_agent.errors import JournalFailed
from muster_agent.metrics.book import Book, ClockSetBack, DayDropped, Happened, Key, Stage, Unconfirmed
from muster_agent.metrics.port import Tally
from muster_agent.metrics.windows import Place
from muster_shared.errors import WireError
from muster_shared.ids import FleetId
from muster_shared.link import Delivered, LinkError, LinkItem, Mid, PublishRefused, Qos
from muster_shared.metrics import DAY_S, HOUR_S, Window, cohort, key_id
from muster_shared.topics import MetricsTopic, build

LOOK_S = 60.0
"""Of the metrics' clock: how often the running hour is kept, and so how much kill -9 may cost."""
ANSWER_S = 5.0
"""How soon it looks for what the broker says of what is under way: a kill until then makes it send that again."""
BATCH = 64
"""Windows handed over at one look; the link's queue has room for other things."""
KEY_BYTES = 32

log = structlog.get_logger()
_Seen = TypeVar("_Seen")


class Line(Protocol):
    """What is needed of `muster_shared.link.Link`."""

    @property
    def is_connected(self) -> bool: ...

    def publish(self, topic: str, payload: bytes, *, qos: Qos) -> Mid: ...


class Keeping(Protocol):
    """The journal: `MetricsJournal`."""

    def load(self, place: Place) -> Book: ...

    def keep(self, book: Book) -> None: ...


@dataclass(frozen=True)
class Mixer:
    """Whom windows are sealed to."""

    key: str
    public_key: bytes


def choose(mixers: Mapping[str, bytes], wanted: str) -> Mixer | None:
    """Return the mixer of this device: the one that it wants, else the first by id; None: there is none.

    Args:
        mixers: `AssignmentKeys.mixers`, as the offline keys signed it. What is not a key under its own id is no mixer.
        wanted: An id; empty: any.
    """
    for key, public_key in sorted(mixers.items()):
        if (not wanted or key == wanted) and len(public_key) == KEY_BYTES and key_id(public_key) == key:
            return Mixer(key, public_key)
    return None


class Sending:
    """`open` it, then call `look` again and again, from one thread at a time. `heard`, `inspect`: from any."""

    def __init__(
        self,
        *,
        fleet: FleetId,
        place: Place,
        journal: Keeping,
        line: Line,
        mixers: Callable[[], Mapping[str, bytes]],
        clock: Callable[[], float | None],
        random: Random,
        mixer: str = "",
        spread_s: float = SPREAD_S,
    ) -> None:
        """
        Args:
            mixers: Those of the trust that was verified last.
            clock: Seconds of the metrics' clock; None: it is not known.
            mixer: The id of the key to seal to; empty: the first.
        """
        self._fleet = fleet
        self._journal = journal
        self._line = line
        self._mixers = mixers
        self._clock = clock
        self._random = random
        self._wanted = mixer
        self._spread_s = spread_s
        self._lock = threading.Lock()
        self._due: dict[Key, float] = {}
        self._sent: set[Key] = set()
        """Under way in this link: it repeats them by itself, but not after a restart."""
        self._at_first: set[Key] = set()
        """Of those, the ones that were never handed over before: if they are refused, they did not arrive."""
        self._failing = False
        self._mids_lock = threading.Lock()  # The link answers before `publish` has returned, at times.
        self._mids: dict[Mid, Key] = {}
        self._answers: deque[tuple[Key, str | None]] = deque()
        self._book = Book(place)
        self._is_loaded = False

    @property
    def mixer(self) -> Mixer | None:
        return choose(self._mixers(), self._wanted)

    @property
    def is_failing(self) -> bool:
        """Whether the journal cannot be written: it is measured in memory, and nothing leaves."""
        return self._failing

    @property
    def hour(self) -> int | None:
        """When the running hour began; None: no time is known yet."""
        return self._book.running.start

    @property
    def knows_time(self) -> bool:
        return self._clock() is not None

    def open(self) -> None:
        """Go on where the journal ends. Until it can be opened, a book in memory does."""
        with self._lock:
            self._load()

    def heard(self, item: LinkItem) -> None:
        """Take what the link says of a message. It never waits for the disk."""
        if not isinstance(item, Delivered | PublishRefused):
            return
        with self._mids_lock:
            key = self._mids.pop(item.mid, None)
            if key is not None:
                self._answers.append((key, item.reason if isinstance(item, PublishRefused) else None))

    def look(self, tallies: Sequence[Tally] = ()) -> float:
        """Count `tallies`, do what is due, and return how long to sleep at most, seconds of the metrics' clock."""
        at = self._clock()
        with self._lock:
            if not self._is_loaded:
                self._load()
            self._settle(at)
            self._book.count(tallies)
            if at is not None:
                self._say(self._book.advance(at, self._random))
            if not self._keep() or at is None:
                return LOOK_S
            self._send(at)
            return self._pause_s(at)

    def inspect(self, look: Callable[[Book, Mapping[Key, float], float | None], _Seen]) -> _Seen:
        """Return what `look` sees of the book, of the moments that were drawn, and of the time. It changes nothing."""
        with self._lock:
            return look(self._book, dict(self._due), self._clock())

    # -- within, under the lock --------------------------------------------------------------------------------------

    def _settle(self, at: float | None) -> None:
        """Write into the book what the broker said."""
        while self._answers:
            key, refusal = self._answers.popleft()
            self._sent.discard(key)
            if refusal is None:
                self._at_first.discard(key)
                self._book.delivered(key)
                continue
            log.warning("window_refused", reason=refusal)
            self._not_left(key)
            if at is not None:
                self._due[key] = at + self._random.uniform(LOOK_S, max(LOOK_S, self._spread_s))

    def _load(self) -> None:
        try:
            loaded = self._journal.load(self._book.place)
        except JournalFailed as error:
            self._lost(error)
            return
        loaded.absorb(self._book)
        self._book, self._is_loaded = loaded, True

    def _keep(self) -> bool:
        if not self._is_loaded:
            return False
        try:
            self._journal.keep(self._book)
        except JournalFailed as error:
            self._lost(error)
            return False
        if self._failing:
            log.info("metrics_journal_back")
        self._failing = False
        return True

    def _lost(self, error: JournalFailed) -> None:
        if not self._failing:
            log.error("metrics_journal_lost", error=str(error), effect="measured in memory; nothing leaves meanwhile")
        self._failing = True

    def _send(self, at: float) -> None:
        mixer = self.mixer
        if mixer is None or not self._line.is_connected:
            self._due.clear()  # Drawn anew when the way is free: else all that waited would leave at that moment.
            return
        parts = {part.key: part for part in self._book.sendable(at) if part.key not in self._sent}
        self._due = {key: moment for key, moment in self._due.items() if key in parts}
        for key in parts:
            if key not in self._due:
                self._due[key] = due(key.start, key.period_s, at, self._spread_s, self._random)
        ready = sorted((key for key in parts if self._due[key] <= at), key=self._due.__getitem__)[:BATCH]
        sealed: list[tuple[Key, Window, bytes]] = []
        for key in ready:
            message = self._sealed(key, mixer)
            if message is not None:
                sealed.append((key, *message))
                if parts[key].stage is Stage.WAITING:
                    self._at_first.add(key)
                self._book.handed_over(key)
        if not self._keep():
            for key, _, _ in sealed:
                self._not_left(key)  # Not kept, so not sent: it stays due.
            return
        for key, window, raw in sealed:
            self._hand_over(key, window, raw)
        self._keep()

    def _sealed(self, key: Key, mixer: Mixer) -> tuple[Window, bytes] | None:
        from muster_shared.sealing import seal  # A device that sends none need not load it.

        window = self._book.parts[key].window
        assert window is not None, "only parts with a window are sendable"
        try:
            return window, seal(window, mixer.public_key)
        except (WireError, ValueError) as error:
            log.warning("window_not_sealed", model=window.cell.model, error=str(error))
            self._book.unsealable(key)
            return None

    def _hand_over(self, key: Key, window: Window, raw: bytes) -> None:
        topic = build(self._fleet, MetricsTopic(cohort(window.cell)))
        try:
            with self._mids_lock:
                self._mids[self._line.publish(topic, raw, qos=1)] = key
        except LinkError:  # Its queue is full, or it was stopped. It did not leave.
            self._not_left(key)
            return
        self._sent.add(key)

    def _not_left(self, key: Key) -> None:
        if key in self._at_first:
            self._at_first.discard(key)
            self._book.refused(key)

    def _say(self, happened: Sequence[Happened]) -> None:
        for each in happened:
            match each:
                case DayDropped(start, inferences):
                    log.warning("metrics_day_dropped", day=start // DAY_S, inferences=inferences)
                case Unconfirmed(start):
                    log.warning("window_unconfirmed", hour=start)
                case ClockSetBack(seconds):
                    log.warning("metrics_clock_set_back", seconds=seconds)
        if happened:
            with self._mids_lock:
                self._mids = {mid: key for mid, key in self._mids.items() if key in self._book.parts}
            self._sent &= self._book.parts.keys()
            self._at_first &= self._book.parts.keys()

    def _pause_s(self, at: float) -> float:
        moments = [at + LOOK_S, *self._due.values()]
        if self._sent and self._line.is_connected:
            moments.append(at + ANSWER_S)
        start = self._book.running.start
        if start is not None:
            moments.append(end_of(start, HOUR_S))
        return max(0.0, min(moments) - at)


def waits_for(sending: Sending, line: Line) -> str:
    """Return why nothing leaves, for people; empty: something does, in its time."""
    if sending.is_failing:
        return "the journal of the metrics cannot be written; free some space"
    if sending.mixer is None:
        return (
            "no mixer's key is in the keys that the fleet's offline keys signed (or not the one that metrics.mixer "
            "names); hours wait, and are merged into days"
        )
    if not sending.knows_time:
        return "this device does not know what time it is; what is counted stays in one hour until it does"
    if not line.is_connected:
        return f"the broker is away; an hour that has not left {LATE_S // 60} minutes after its end goes into its day"
    return ""
