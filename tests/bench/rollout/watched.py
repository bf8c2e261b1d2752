"""`muster serve` with a watch beside its link: how long an abort takes the controller itself, by clock and by CPU.

    event received ─▶ (all that the shipped controller does) ─▶ assignment published ─▶ … ─▶ the broker's PUBACK
       `began`                                                     `handed_s`                   `first_s`, `last_s`

Everything that runs is the shipped code; the link's only addition is that it looks at the clock. What it found is
written to the file that `WATCH_FILE` names whenever the broker has confirmed all assignments since the last event.
"""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from muster_controller.cli.main import main
from muster_controller.server import fleet_side
from muster_shared.link import (
    Delivered,
    Link,
    LinkConfig,
    LinkItem,
    MessageProperties,
    Mid,
    PublishRefused,
    Qos,
    Received,
)
from muster_shared.topics import Channel

WATCH_FILE = "MUSTER_BENCH_WATCH_FILE"


class Watched(msgspec.Struct, frozen=True):
    """What one burst of assignments cost. Seconds since the last event was handed to the fleet."""

    assignments: int
    first_s: float
    """Until the broker confirmed the first assignment."""
    handed_s: float
    """Until the last one was committed and handed to the link."""
    last_s: float
    """Until the broker confirmed the last one."""
    cpu_s: float
    """Of all threads of the controller's process, user and system, until `last_s`."""
    waited_s: float
    """Of `handed_s`, how long the fleet's thread was ready to run and had no core, because others had both."""
    threads: dict[str, float]
    """Of `cpu_s`, by thread, as far as they still live: the signing ones are the rest."""


class Watch:
    """Looks at the clock when an event comes, an assignment leaves, and the broker confirms it; from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._unconfirmed: set[Mid] = set()
        self.begin()

    def begin(self) -> None:
        """An event is about to be handed to the fleet: what follows is counted from here."""
        with self._lock:
            self._threads_before = _by_thread()
            self._waited_before = _waited_s()
            self._count = 0
            self._first_s = self._handed_s = 0.0
            self._cpu_before = time.process_time()
            self._began = time.perf_counter()

    def published(self, publish: Callable[[], Mid]) -> Mid:
        """Have an assignment published by `publish`."""
        with self._lock:  # Or the confirmation could overtake the note.
            mid = publish()
            self._unconfirmed.add(mid)
            self._count += 1
            self._handed_s = time.perf_counter() - self._began
        return mid

    def confirmed(self, mid: Mid) -> None:
        """The broker has answered; write everything down when nothing is left to be answered."""
        with self._lock:
            if mid not in self._unconfirmed:
                return
            self._unconfirmed.discard(mid)
            last_s = time.perf_counter() - self._began
            self._first_s = self._first_s or last_s
            if self._unconfirmed:
                return
            cpu_s = time.process_time() - self._cpu_before
            before = self._threads_before
            threads = {name: cpu - before.get(name, 0.0) for name, cpu in _by_thread().items()}
            waited_s = _waited_s() - self._waited_before
            found = Watched(self._count, self._first_s, self._handed_s, last_s, cpu_s, waited_s, threads)
        partial = self._path.with_suffix(".part")
        partial.write_bytes(msgspec.json.encode(found))
        partial.replace(self._path)


class WatchedLink(Link):
    """The link, with a watch beside it."""

    def __init__(self, config: LinkConfig, on_item: Callable[[LinkItem], None], *, rng: random.Random) -> None:
        watch = self._watch = Watch(Path(os.environ[WATCH_FILE]))

        def seen(item: LinkItem) -> None:
            match item:
                case Received(topic) if topic.endswith(_EVENT):
                    watch.begin()
                case Delivered(mid) | PublishRefused(mid):
                    watch.confirmed(mid)
                case _:
                    pass
            on_item(item)

        super().__init__(config, seen, rng=rng)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: Qos,
        retain: bool = False,
        properties: MessageProperties | None = None,
    ) -> Mid:
        def send() -> Mid:
            return Link.publish(self, topic, payload, qos=qos, retain=retain, properties=properties)

        return self._watch.published(send) if topic.endswith(_ASSIGNMENT) else send()


_ASSIGNMENT = f"/{Channel.ASSIGNMENT.value}"
_EVENT = f"/{Channel.EVENT.value}"


def _by_thread() -> dict[str, float]:
    """Return the CPU seconds of each living Python thread."""
    return {
        each.name: time.clock_gettime(time.pthread_getcpuclockid(each.ident))
        for each in threading.enumerate()
        if each.ident is not None
    }


def _waited_s() -> float:
    """Return how long the fleet's thread has stood in the run queue so far (Linux, sched-stats.rst); unknown: 0."""
    for each in threading.enumerate():
        if each.name == "fleet":
            try:
                return int(Path(f"/proc/self/task/{each.native_id}/schedstat").read_text().split()[1]) / 1e9
            except OSError:
                return 0.0
    return 0.0


def read(path: Path) -> Watched | None:
    """Return what the controller wrote last; None: nothing yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Watched)
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    setattr(fleet_side, "Link", WatchedLink)  # noqa: B010  # The controller makes its own link; this one looks at the clock.
    main()
