"""Where the calls of one served release wait and run: on the loop if a call is shorter than a hand-off, else beside it.

    push ──> queue ──┬── inline: at the end of this turn of the loop, all that came in together is one batch
                     └── threads: each instance takes its next batch itself: the engine does not wait for the loop
                                        │
    settle  <── on the loop ────────────┘

A hand-off to a thread costs 89 us where a small model's call costs 9; a long call on the loop would hold up everybody.
It knows nothing of HTTP and does not choose its plan: `core.plan` does.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import structlog

from muster_agent.core.plan import ServingPlan
from muster_agent.core.queueing import CallQueue
from muster_agent.engines.port import InputRefused
from muster_agent.serving.call import Call, Priority
from muster_agent.serving.execution import Execution, Times
from muster_agent.serving.stats import WindowStats
from muster_shared.errors import MusterError

IDLE_S = 5.0  # An instance beyond the first ends after this long without work.
PATIENCE_NS = 10_000_000_000  # Work for later that has waited this long runs once, however busy the device is.
RECHECK_S = 0.02  # How often work for later looks whether the device is idle.
SWEEP_S = 0.25
ALONE = 4  # Batches of one call in a row, after which a call does not wait for the end of its turn of the loop,
TOGETHER_NS = 15_000  # unless another's call ended so short a time before that both were there together.

log = structlog.get_logger(__name__)


class QueueFull(MusterError):
    """The room has as much waiting as it takes; nothing was done."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} rows are waiting already; try again in {retry_after_s} s")
        self.waiting = waiting
        self.retry_after_s = retry_after_s


class TooLate(MusterError):
    """The call was not answered by its deadline."""

    def __init__(self, timeout_s: float, *, running: bool) -> None:
        why = "the engine has not ended" if running else "the device is overloaded"
        super().__init__(f"no answer within {timeout_s:g} s; {why}")
        self.timeout_s = timeout_s
        self.running = running


class GivenUp(MusterError):
    """The caller went away before the call could run."""

    def __init__(self) -> None:
        super().__init__("the caller has gone")


class RoomClosed(MusterError):
    """The release stopped serving before the call could run."""

    def __init__(self) -> None:
        super().__init__("the release stopped serving; ask again")


class Pressure:
    """How many urgent calls are under way on the device, all models together. Changed on the loop only."""

    __slots__ = ("later_open", "urgent")

    def __init__(self) -> None:
        self.urgent = 0
        self.later_open = True
        """Whether it is the time of day for batch work."""


class Room:
    """The execution of one served release. All but the instances' own work happens on the serving loop's thread."""

    def __init__(
        self,
        execution: Execution,
        plan: ServingPlan,
        stats: WindowStats,
        *,
        queue_max: int,
        usual_ns: int = 0,
        pressure: Pressure,
        ran: Callable[[Sequence[Call]], None],
        left: Callable[[int], None],
    ) -> None:
        """
        Args:
            queue_max: So many rows waiting, >= 1, and nothing more is taken. The call that comes to it may be larger.
            usual_ns: How long a call may take whose caller is in no hurry; what is late sooner is no fault of the
                release.
            ran: Is told on the loop of the calls of each batch once they have settled.
            left: Is told on the loop how many calls have ended.
        """
        self._execution = execution
        self._plan = plan
        self._stats = stats
        self._queue_max = queue_max
        self._usual_ns = usual_ns
        self._pressure = pressure
        self._ran = ran
        self._left = left
        self._batch_max = plan.batch_max if execution.rows_axis else 1
        self._queue: CallQueue[Call] = CallQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._alone = 0  # Batches of one call, in a row.
        self._ended_ns = 0
        self._origin = 0
        self._recheck: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._instances = 0
        self._idle = 0
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._running: list[Sequence[Call]] = []
        self._sweeping = False

    @property
    def queued(self) -> int:
        """Rows waiting."""
        return self._queue.waiting_rows

    @property
    def instances(self) -> int:
        """Threads that run the engine now; 0 when it runs on the loop."""
        return self._instances

    def push(self, call: Call) -> None:
        """Take the call, which `settle`s later, on the loop.

        Raises:
            QueueFull: it would have to wait behind too many.
        """
        waiting = self._queue.waiting_rows
        if waiting >= self._queue_max:
            raise QueueFull(waiting, self._retry_after_s(waiting))
        if call.priority != Priority.LATER:
            self._pressure.urgent += 1
        if self._plan.inline:
            self._queue.push(call)
            if not self._scheduled:
                another = not call.origin or call.origin != self._origin
                if another and call.arrived_ns - self._ended_ns < TOGETHER_NS:
                    self._alone = 0
                self._origin = call.origin
                self._scheduled = True
                if self._alone >= ALONE and call.priority != Priority.LATER:
                    self._drain()  # Nobody else has been asking: there is nothing to wait for.
                else:
                    (self._loop or self._join_loop()).call_soon(self._drain)
            if call.priority != Priority.LATER:
                return  # It runs in a moment, so nothing needs to look after its deadline.
        else:
            if self._loop is None:
                self._join_loop()
            with self._lock:
                self._queue.push(call)
                if self._idle:
                    self._work.notify()
                # An instance that was just notified still counts as idle.
                if self._queue.waiting_rows > self._idle * self._batch_max and (
                    self._instances < self._plan.instances_max
                ):
                    self._hire()
        if not self._sweeping:
            self._sweeping = True
            assert self._loop is not None
            self._loop.call_later(SWEEP_S, self._sweep)

    def close(self) -> None:
        """End the instances after what they are doing, and refuse what still waits. Blocks as long as that takes."""
        with self._lock:
            self._closing = True
            self._work.notify_all()
        for thread in list(self._threads):
            thread.join()
        abandoned = self._queue.clear()
        if abandoned and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._refuse, abandoned, RoomClosed())

    # -- on the loop -------------------------------------------------------------------------------------------------

    def _join_loop(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _retry_after_s(self, waiting: int) -> int:
        calls = waiting / max(1, self._batch_max) / max(1, self._plan.instances_max)
        return max(1, round(calls * self._plan.call_ms / 1e3))

    def _drain(self) -> None:
        """Run one batch inline, and come again while calls wait: between two batches the loop reads and writes."""
        self._scheduled = True
        if self._recheck is not None:
            self._recheck.cancel()
            self._recheck = None
        later = not self._queue.urgent and self._may_run_later(time.perf_counter_ns())
        calls, spared = self._queue.take(self._batch_max, time.perf_counter_ns(), later=later)
        if calls:
            self._finish(calls, self._execution.run(calls))
            self._alone = self._alone + 1 if len(calls) == 1 else 0
        if spared:
            self._spare(spared)
        self._ended_ns = time.perf_counter_ns()
        assert self._loop is not None
        if not len(self._queue):
            self._scheduled = False
        elif self._queue.urgent or self._may_run_later(time.perf_counter_ns()):
            self._loop.call_soon(self._drain)
        else:
            self._scheduled = False  # What is urgent does not wait for the timer.
            self._recheck = self._loop.call_later(RECHECK_S, self._drain)

    def _finish(self, calls: Sequence[Call], times: Times) -> None:
        """Settle calls that have run, and then count them: a caller does not wait for the counting."""
        waiting = [call for call in calls if not call.settled]  # Others were too late.
        for call in waiting:
            self._settle(call)
        now = time.perf_counter_ns()
        self._stats.ran(waiting, times, now)
        self._stats.staged(calls, times, now)
        self._tell(waiting)
        self._left(len(calls))

    def _tell(self, calls: Sequence[Call]) -> None:
        try:
            if calls:
                self._ran(calls)
        except Exception:  # A bug of ours must not keep the answers from their callers.
            log.exception("observer_failed")

    def _finished(self, calls: Sequence[Call], times: Times) -> None:
        self._running.remove(calls)
        self._finish(calls, times)

    def _settle(self, call: Call) -> None:
        if call.settled:
            return
        call.settled = True
        if call.priority != Priority.LATER:
            self._pressure.urgent -= 1
        error = call.error
        if error is not None and not isinstance(error, InputRefused | TooLate | GivenUp | RoomClosed):
            log.warning("inference_failed", reason=str(error)[:500])
        try:
            call.settle()
        except Exception:  # A bug of ours must not take the rest of the batch down.
            log.exception("settle_failed")

    def _spare(self, calls: Sequence[Call]) -> None:
        """Settle calls that never ran: given up, or too late."""
        for call in calls:
            if call.cancelled:
                self._stats.cancelled()
                call.error = GivenUp()
            else:
                call.error = self._too_late(call, running=False)
        self._end(calls)

    def _too_late(self, call: Call, *, running: bool) -> TooLate:
        """Count a call that is past its deadline, against the release if that had its time; return the call's error."""
        allowed_ns = call.deadline_ns - call.arrived_ns
        in_a_hurry = 0 <= allowed_ns < self._usual_ns
        if in_a_hurry or (call.priority == Priority.LATER and not running):
            self._stats.cancelled()  # Work for later lets others go before, and has its time of day.
        else:
            self._stats.timed_out()
        return TooLate(allowed_ns / 1e9, running=running)

    def _refuse(self, calls: Sequence[Call], error: MusterError) -> None:
        for call in calls:
            call.error = error
        self._end(calls)

    def _end(self, calls: Sequence[Call]) -> None:
        """Settle calls that have an outcome without a run."""
        self._tell(calls)
        for call in calls:
            self._settle(call)
        self._left(len(calls))

    def _sweep(self) -> None:
        """Answer what is past its deadline, waiting or running: an engine that hangs must not hang its callers."""
        now = time.perf_counter_ns()
        with self._lock:
            spared = self._queue.expired(now)
            busy = bool(self._running) or bool(len(self._queue))
        if spared:
            self._spare(spared)
        for calls in list(self._running):
            late = [call for call in calls if now > call.deadline_ns > 0 and not call.settled]
            for call in late:
                # The instance may still write `error`; the answer is the one that was given first.
                call.error = self._too_late(call, running=True)
            self._tell(late)
            for call in late:
                self._settle(call)
        assert self._loop is not None
        if busy:
            self._loop.call_later(SWEEP_S, self._sweep)
        else:
            self._sweeping = False

    def _may_run_later(self, now_ns: int) -> bool:
        if not self._pressure.later_open:
            return False
        if not self._pressure.urgent:
            return True
        oldest = self._queue.oldest_ns()
        return oldest is not None and now_ns - oldest > PATIENCE_NS

    # -- instances ---------------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """Start one more instance. The lock is held."""
        self._instances += 1
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=self._instance, name="inference", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _instance(self) -> None:
        loop = self._loop
        assert loop is not None
        while True:
            with self._lock:
                calls, spared = self._next()
                if calls:
                    self._running.append(calls)
                elif not spared:
                    self._instances -= 1
                    return
            if spared:
                _post(loop, self._spare, spared)
            if calls:
                _post(loop, self._finished, calls, self._execution.run(calls))

    def _next(self) -> tuple[list[Call], list[Call]]:
        """Return what to run now; nothing at all when this instance is to end. The lock is held."""
        idle_until = time.monotonic() + IDLE_S
        while True:
            now = time.perf_counter_ns()
            later = self._may_run_later(now)
            if len(self._queue) and (later or self._queue.urgent):
                wait_s = self._worth_waiting_s(now)
                if wait_s <= 0:
                    return self._queue.take(self._batch_max, now, later=later)
            elif self._closing:
                return [], []
            else:
                wait_s = RECHECK_S if len(self._queue) else idle_until - time.monotonic()
                if wait_s <= 0:
                    if self._instances > self._plan.instances_min:
                        return [], []
                    wait_s = None
            self._idle += 1
            self._work.wait(wait_s)
            self._idle -= 1

    def _worth_waiting_s(self, now_ns: int) -> float:
        """Return for how long the batch may still grow."""
        rows = self._queue.waiting_rows
        if not self._plan.delay_us or rows >= self._batch_max or rows in self._plan.preferred or self._closing:
            return 0.0
        oldest = self._queue.oldest_ns()
        return 0.0 if oldest is None else (oldest + self._plan.delay_us * 1000 - now_ns) / 1e9


def _post(loop: asyncio.AbstractEventLoop, act: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(act, *arguments)
    except RuntimeError:  # The loop is gone: the process is ending, and so is the caller's connection.
        log.warning("answer_lost")
