"""Ended rollouts at hand, with their rolls: for late devices, which ask again and again, and for whoever looks back.

From any thread. It reads no database: who does offers what was read, and that is kept unless the writing thread has
changed the same rollout meanwhile.
"""

import threading
from collections import OrderedDict
from typing import Final

from muster_controller.core.rollout.roll import Roll, roll_of
from muster_controller.core.rollout.state import Rollout
from muster_shared.ids import RolloutId

ROLLOUTS_MAX: Final = 64
DEVICES_MAX: Final = 300_000
"""Of all of them together: one costs about 600 bytes. The newest stays, however large it is."""


class Ended:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[RolloutId, tuple[Rollout, Roll | None]] = OrderedDict()
        self._written: dict[RolloutId, int] = {}
        """How often each was written by this process."""
        self._epoch = 0

    def get(self, rollout: RolloutId) -> Rollout | None:
        with self._lock:
            if rollout in self._found:
                self._found.move_to_end(rollout)
                return self._found[rollout][0]
            return None

    def moment(self, rollout: RolloutId) -> tuple[int, int]:
        """Return what to hand to `offer`, to be asked for before reading."""
        with self._lock:
            return self._epoch, self._written.get(rollout, 0)

    def offer(self, rollout: Rollout, moment: tuple[int, int]) -> None:
        """Keep what was read, unless it was written since."""
        with self._lock:
            if moment == (self._epoch, self._written.get(rollout.id, 0)):
                self._put(rollout, None)

    def wrote(self, rollout: Rollout, roll: Roll | None) -> None:
        """Keep what is committed now. `roll`: its own, where it is known."""
        with self._lock:
            self._count(rollout.id)
            self._put(rollout, roll)

    def drop(self, rollout: RolloutId) -> None:
        """It is written, and has not ended any more."""
        with self._lock:
            self._count(rollout)
            self._found.pop(rollout, None)

    def clear(self) -> None:
        """Another process wrote something."""
        with self._lock:
            self._epoch += 1
            self._written.clear()
            self._found.clear()

    def roll(self, rollout: Rollout) -> Roll | None:
        """Return the roll of one that is kept, taken once; None: it is not, or not as it is here."""
        found = self.known(rollout)
        if found is not None:
            return found
        with self._lock:
            if rollout.id not in self._found or self._found[rollout.id][0] is not rollout:
                return None
        roll = roll_of(rollout)  # Outside the lock: it takes a while, and the writing thread must not wait for it.
        with self._lock:
            if rollout.id in self._found and self._found[rollout.id][0] is rollout:
                self._found[rollout.id] = rollout, roll
        return roll

    def known(self, rollout: Rollout) -> Roll | None:
        """Return the roll of one that is kept, where it was taken already."""
        with self._lock:
            kept, roll = self._found.get(rollout.id, (None, None))
            return roll if kept is rollout else None

    def taken(self) -> dict[RolloutId, tuple[Rollout, Roll]]:
        """Return all that are kept and whose rolls were taken already."""
        with self._lock:
            return {key: (rollout, roll) for key, (rollout, roll) in self._found.items() if roll is not None}

    def _count(self, rollout: RolloutId) -> None:
        self._written[rollout] = self._written.get(rollout, 0) + 1

    def _put(self, rollout: Rollout, roll: Roll | None) -> None:
        self._found[rollout.id] = rollout, roll
        self._found.move_to_end(rollout.id)
        devices = sum(len(each.members) + len(each.controls) for each, _ in self._found.values())
        while len(self._found) > ROLLOUTS_MAX or (devices > DEVICES_MAX and len(self._found) > 1):
            _, (gone, _) = self._found.popitem(last=False)
            devices -= len(gone.members) + len(gone.controls)
