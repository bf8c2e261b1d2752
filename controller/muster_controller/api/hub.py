"""The hub: which things changed since when, for everyone who watches the stream.

It keeps the latest change of each thing, not a log: a watcher who falls behind, or comes back after a night, gets each
changed thing once. A watcher from before a restart, or from before what is remembered, is told to look at everything.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

REMEMBERED = 20_000  # Things; beyond this the oldest change is forgotten, and who needed it starts over.
BURST_MAX = 200  # Things told at once; when more changed, looking at everything is cheaper.
GATHER_S = 0.25  # Changes are gathered this long, so that a wave is one burst and not a thousand.
HEARTBEAT_S = 10.0

Kind = Literal["device", "rollout", "note", "model", "alert"]


@dataclass(frozen=True)
class Change:
    """Something changed: look at it again. `key` is its id; of notes there is one, "all"."""

    kind: Kind
    key: str


@dataclass(frozen=True)
class Told:
    """One message to a watcher. `id` continues from here."""

    id: str
    what: Change | Literal["reset", "heartbeat"]


class Hub:
    """`changed` from any thread; `watch` on the event loop."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._sequence = 0
        self._floor = 0
        self._latest: OrderedDict[Change, int] = OrderedDict()
        self._watchers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._is_closed = False

    def changed(self, *changes: Change) -> None:
        """Tell the watchers. Never waits."""
        if not changes:
            return
        with self._lock:
            for change in changes:
                self._sequence += 1
                self._latest[change] = self._sequence
                self._latest.move_to_end(change)
            while len(self._latest) > REMEMBERED:
                _, self._floor = self._latest.popitem(last=False)
            self._wake()

    def close(self) -> None:
        """End every stream, so that a server can stop."""
        with self._lock:
            self._is_closed = True
            self._wake()

    async def watch(self, last_id: str | None) -> AsyncIterator[Told]:
        """Yield what changed from now on, or since `last_id`, for ever; at first a heartbeat with the present id."""
        event = asyncio.Event()
        with self._lock:
            cursor = self._sequence
            self._watchers[event] = asyncio.get_running_loop()
        try:
            if last_id is not None and last_id != (present := self._id(cursor)):
                session, _, sequence = last_id.rpartition("-")
                if session == self._session and sequence.isdecimal() and int(sequence) <= cursor:
                    cursor = int(sequence)
                    event.set()
                else:
                    yield Told(present, "reset")
            yield Told(self._id(cursor), "heartbeat")
            while not self._is_closed:
                try:
                    await asyncio.wait_for(event.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield Told(self._id(cursor), "heartbeat")
                    continue
                await asyncio.sleep(GATHER_S)
                event.clear()
                cursor, fresh = self._since(cursor)
                for told in fresh:
                    yield told
        finally:
            with self._lock:
                del self._watchers[event]

    def _since(self, cursor: int) -> tuple[int, list[Told]]:
        with self._lock:
            now = self._sequence
            fresh: list[tuple[int, Change]] = []
            for change, sequence in reversed(self._latest.items()):
                if sequence <= cursor or len(fresh) > BURST_MAX:
                    break
                fresh.append((sequence, change))
            if cursor < self._floor or len(fresh) > BURST_MAX:
                return now, [Told(self._id(now), "reset")]
            return now, [Told(self._id(sequence), change) for sequence, change in reversed(fresh)]

    def _id(self, sequence: int) -> str:
        return f"{self._session}-{sequence}"

    def _wake(self) -> None:
        for event, loop in self._watchers.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
