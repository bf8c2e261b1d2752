"""Where an inference runs: on the loop when the model is fast and nothing waits, else first come, first served.

    fast and idle and a small body ──> run on the loop (a thread hand-off costs 89 us where a tiny model costs 9)
    otherwise ──> queue (bounded) ──> one worker thread

One worker keeps the order and the fairness: a model that runs inline under load has a p99 of 16 times its p50. It knows
nothing of HTTP and does not measure; `app` does both.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from muster_shared.errors import MusterError

INLINE_MS_MAX = 1.0
INLINE_BODY_BYTES_MAX = 256 * 1024  # A larger body may be a large batch, or a long parse.
QUEUE_MAX = 64

T = TypeVar("T")


class QueueFull(MusterError):
    """The room has as much waiting as it takes; nothing was done."""

    def __init__(self, queued: int, retry_after_s: int) -> None:
        super().__init__(f"{queued} requests are waiting already; try again in {retry_after_s} s")
        self.queued = queued
        self.retry_after_s = retry_after_s


class Room:
    """The execution of one served release. All but the work itself happens on the serving loop's thread."""

    def __init__(self, latency_ms: float, queue_max: int = QUEUE_MAX) -> None:
        """
        Args:
            latency_ms: As the warm-up measured it.
            queue_max: Requests waiting or running at most, >= 1.
        """
        self._latency_ms = latency_ms
        self._queue_max = queue_max
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self.queued = 0

    def inline(self, body_bytes: int) -> bool:
        """Whether a request with such a body may run on the loop now."""
        return self._latency_ms <= INLINE_MS_MAX and not self.queued and body_bytes <= INLINE_BODY_BYTES_MAX

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Return the future of `work` in the worker thread; the caller calls `done` once when it ends or is cancelled.

        Raises:
            QueueFull: it would have to wait behind too many.
        """
        if self.queued >= self._queue_max:
            raise QueueFull(self.queued, max(1, round(self.queued * self._latency_ms / 1e3)))
        self.queued += 1
        return self._worker.submit(work)

    def done(self) -> None:
        self.queued -= 1

    def close(self) -> None:
        """Stop the worker after what it is doing. Blocks as long as that takes."""
        self._worker.shutdown(wait=True)
