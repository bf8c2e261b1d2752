"""How a release is served on this very device: threads, instances and batches, from a measured latency curve.

Pure: `engines.tuning` measures the curve, `serving.rooms` carries the plan out.
"""

import msgspec


class ServingPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What `serving.rooms` does with one release."""

    inline: bool
    """Calls run on the serving loop: they are shorter than the hand-off to a thread."""
    batch_max: int
    """Rows of one call of the engine at most, >= 1."""
    delay_us: int = 0
    """How long the first request of a batch may wait for others."""
    preferred: tuple[int, ...] = ()
    """Sizes to run without further delay, ascending."""
    instances_min: int = 1
    instances_max: int = 1
    """Calls of the engine at the same time."""
    threads: int = 1
    """Of one call."""
    curve: tuple[tuple[int, float], ...] = ()
    """(rows, milliseconds of one call), ascending."""

    @property
    def call_ms(self) -> float:
        """The duration of a call with one row; 0 when it was not measured."""
        return self.curve[0][1] if self.curve else 0.0
