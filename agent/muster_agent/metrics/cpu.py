"""Whose the processor time is: what the agent's process took, shared out among the releases that ran.

    each look: process time, time of the engine by release ──▶ less what the agent takes when nothing runs ──▶ shares

Measuring each run would cost more than a small model does, and miss the engine's own threads. So the whole process is
measured, servers and codecs included, and shared out by the engine's time. Pure: it reads no clock.
"""

from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

SLOWLY: Final = 0.2
"""Weight of a new look at the idle agent."""

Name = TypeVar("Name", bound=Hashable)


class CpuShares(Generic[Name]):
    """See above. One call a second or so."""

    def __init__(self) -> None:
        self._idle: float | None = None  # Processor seconds a second while nothing runs.

    def share(self, process_s: float, seconds: float, engine_s: Mapping[Name, float]) -> dict[Name, float]:
        """Return seconds of processor time by release, for those that ran since the last look.

        A release gets what its engine took at least (if the process did), and the process's whole time at most.

        Args:
            process_s: Processor time of the process since the last look, all threads.
            seconds: Since then, > 0.
            engine_s: Time of the engine since then, times the threads of a run.
        """
        ran = sum(engine_s.values())
        if ran <= 0:
            rate = process_s / seconds
            self._idle = rate if self._idle is None else self._idle + SLOWLY * (rate - self._idle)
            return {}
        theirs = max(min(process_s, ran), process_s - (self._idle or 0.0) * seconds)
        return {name: theirs * (one / ran) for name, one in engine_s.items() if one > 0}
