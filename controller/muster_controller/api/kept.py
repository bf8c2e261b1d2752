"""What takes long to say of a huge rollout, kept for a moment: its pages are asked for again with every change.

Whatever is decided shows at once, since an answer is kept for one state of the rollout alone; only counts lag behind,
by ten times what counting them took, and never by more than fifteen seconds. Small rollouts are always counted afresh.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, TypeVar, cast

from muster_controller.core.rollout.state import Rollout

QUICK_S: Final = 0.05
"""What takes less is made anew each time."""
LAG: Final = 10.0
LAG_S_MAX: Final = 15.0
KEPT_MAX: Final = 64

T = TypeVar("T")


@dataclass
class _Slot:
    lock: threading.Lock = field(default_factory=threading.Lock)
    state: Hashable = None
    value: object = None
    good_until: float = -1.0


class Kept:
    """From any thread; whoever asks for what is being made waits for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()

    def of(self, what: str, viewer: str, rollout: Rollout, make: Callable[[], T]) -> T:
        """Return what `make` says of `rollout` now, or said a moment ago in the same state.

        Args:
            what: tells different answers apart; one name always has the same type.
            viewer: whose eyes it is made for: a selector.
        """
        slot = self._slot((what, viewer, rollout.id))
        with slot.lock:
            state, began = _state(rollout), self._clock()
            if slot.state == state and began < slot.good_until:
                return cast(T, slot.value)
            value = make()
            took = self._clock() - began
            slot.state, slot.value = state, value
            slot.good_until = began + took + min(LAG * took, LAG_S_MAX) if took > QUICK_S else -1.0
            return value

    def _slot(self, key: Hashable) -> _Slot:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            while len(self._slots) > KEPT_MAX:
                self._slots.popitem(last=False)
            return slot


def _state(rollout: Rollout) -> Hashable:
    """Return what of a rollout must be seen at once when it changes: what was decided, by whom or by the gate."""
    return (
        rollout.state,
        rollout.pause,
        rollout.reason,
        rollout.wave,
        rollout.confirmed_wave,
        rollout.wave_passed_at,
        rollout.ended_at,
        len(rollout.verdicts),
        len(rollout.approvals),
        rollout.policy,
    )
