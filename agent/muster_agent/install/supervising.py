"""When the supervisor starts, ends and starts again the agent that it looks after.

      ┌──────────────── ended: back-off, doubled with each early end ─────────────────┐
      ▼                                                                               │
    WAITING ── due ──▶ STARTING ── ready ──▶ UP ── alive, alive, ... ── silent ──▶ ENDING
                           └── not ready in time, or told to stop or restart ────────▲ └── told to stop ──▶ OVER

Pure: `due` and `now` are seconds of a monotonic clock; processes and sockets are `supervisor`'s.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import assert_never


class Phase(Enum):
    WAITING = "waiting"
    STARTING = "starting"
    UP = "up"
    ENDING = "ending"
    OVER = "over"


class Order(Enum):
    """What is to be done."""

    START = "start"
    TERMINATE = "terminate"
    KILL = "kill"


class Heard(Enum):
    """What happened."""

    TIME = "time"
    """Nothing but time."""
    READY = "ready"
    ALIVE = "alive"
    ENDED = "ended"
    """The agent's process is gone."""
    STOP = "stop"
    RESTART = "restart"


@dataclass(frozen=True)
class Patience:
    """How long for what, in seconds."""

    start_s: float = 90.0
    watchdog_s: float = 60.0
    stop_s: float = 20.0
    back_off_s: float = 1.0
    back_off_max_s: float = 60.0
    steady_s: float = 30.0
    """Whoever ran so long has not failed at the start."""


@dataclass(frozen=True)
class Watch:
    """One agent, as its supervisor sees it."""

    phase: Phase = Phase.WAITING
    due: float = 0.0
    """When something is done although nothing is heard."""
    began: float = 0.0
    failures: int = 0
    """Ends in a row that came early."""
    stops: bool = False
    """Whether the end of the process is the end of all."""
    restarts: bool = False
    """Whether somebody asked for that end: the next start waits for nothing."""


def advance(watch: Watch, heard: Heard, now: float, patience: Patience) -> tuple[Watch, Order | None]:
    """Return what is so after `heard`, and what is to be done about it."""
    if watch.phase is Phase.OVER:
        return watch, None
    match heard:
        case Heard.TIME:
            return _after_time(watch, now, patience)
        case Heard.READY if watch.phase is Phase.STARTING:
            return replace(watch, phase=Phase.UP, due=now + patience.watchdog_s), None
        case Heard.ALIVE if watch.phase is Phase.UP:
            return replace(watch, due=now + patience.watchdog_s), None
        case Heard.READY | Heard.ALIVE:
            return watch, None
        case Heard.ENDED:
            return _after_end(watch, now, patience), None
        case Heard.STOP | Heard.RESTART:
            return _asked(watch, heard is Heard.STOP, now, patience)
        case _:
            assert_never(heard)


def _after_time(watch: Watch, now: float, patience: Patience) -> tuple[Watch, Order | None]:
    if now < watch.due:
        return watch, None
    if watch.phase is Phase.WAITING:
        return replace(watch, phase=Phase.STARTING, began=now, due=now + patience.start_s, restarts=False), Order.START
    # Silent, not ready, or deaf to SIGTERM: nothing gentler is left.
    return replace(watch, phase=Phase.ENDING, due=math.inf), Order.KILL


def _after_end(watch: Watch, now: float, patience: Patience) -> Watch:
    if watch.stops:
        return replace(watch, phase=Phase.OVER, due=math.inf)
    if watch.restarts:
        return replace(watch, phase=Phase.WAITING, due=now, failures=0)
    was_steady = watch.phase is not Phase.WAITING and now - watch.began >= patience.steady_s
    failures = 1 if was_steady else watch.failures + 1
    delay_s = min(patience.back_off_s * 2.0 ** min(failures - 1, 30), patience.back_off_max_s)
    return replace(watch, phase=Phase.WAITING, due=now + delay_s, failures=failures)


def _asked(watch: Watch, stops: bool, now: float, patience: Patience) -> tuple[Watch, Order | None]:
    stops = stops or watch.stops  # Who was told to stop is not told otherwise.
    if watch.phase is Phase.WAITING:
        phase = Phase.OVER if stops else Phase.WAITING
        return replace(watch, phase=phase, due=math.inf if stops else now, stops=stops), None
    if watch.phase is Phase.ENDING:
        return replace(watch, stops=stops, restarts=True), None
    due = now + patience.stop_s
    return replace(watch, phase=Phase.ENDING, due=due, stops=stops, restarts=True), Order.TERMINATE
