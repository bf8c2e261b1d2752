"""The one door to inference: every front enters a place here, submits its call, and is told when it has an answer.

    enter(model) ──> Place ──> submit(place, call, caller) ──> room ──> ran ──> call.settle()
                                  │ rate, breaker, sequence,             │ breaker, memory, state of the sequence,
                                  │ memory of answers, queue             │ feedback, trial of a candidate, slow log
                                  └ refused here, or answered

It lives on the serving loop. It knows no protocol: fronts decode and encode, `rooms` runs, `table` holds what serves.
"""

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import structlog

from muster_agent.core import answer_cache
from muster_agent.core.sequences import SequenceInvalid, SequenceUnknown, Turn
from muster_agent.core.split import Mode
from muster_agent.engines.port import Array, EngineError, InputRefused
from muster_agent.serving.call import Batch, Call, Priority, Raw
from muster_agent.serving.config import ServingConfig
from muster_agent.serving.feedback import FeedbackRing, Label
from muster_agent.serving.rooms import TooLate
from muster_agent.serving.table import ModelUnknown, Place, ServingTable
from muster_agent.serving.tracing import Exemplar, Tracing
from muster_agent.serving.trial import Shadow
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName

DIGEST_CHARACTERS = 12

log = structlog.get_logger(__name__)


class Forbidden(MusterError):
    """Somebody asks who may not: a web page through a browser on this device."""


class ModelUnloaded(MusterError):
    """The model was unloaded to make room, and is being loaded again."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model} is being loaded again; try again in a second")
        self.model = model
        self.retry_after_s = 1


class AgentBusy(MusterError):
    """The conductor has too much to do to listen."""

    def __init__(self) -> None:
        super().__init__("the agent is busy; ask again")


class NoStandby(MusterError):
    """There is no second release of the model on this device."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model[:80]!r} has no second release on this device that could be tried")
        self.model = model


class NoTrial(MusterError):
    """No candidate is tried beside the release that serves."""

    def __init__(self, model: str) -> None:
        super().__init__(f"no candidate of {model[:80]!r} is on trial; begin one with POST")
        self.model = model


class Caller(Protocol):
    """Who asks, and what that may cost. `admission` makes them."""

    @property
    def priority_max(self) -> int: ...

    def take(self, rows: int, now_ns: int) -> None:
        """Count `rows` against the caller's rate. Raises MusterError when they are too many."""
        ...


class Anybody:
    """A caller without limits: this program itself."""

    priority_max = Priority.NOW

    def take(self, rows: int, now_ns: int) -> None:
        """Take nothing."""


class AwaitedCall(Call):
    """A call whose front awaits it: `outcome` is the call itself, or its error."""

    __slots__ = ("outcome",)

    def __init__(
        self, tensors: tuple[Raw, ...], shapes: tuple[tuple[int, ...], ...], rows: int, *, request_id: str = ""
    ) -> None:
        super().__init__(tensors, shapes, rows, request_id=request_id)
        self.outcome: asyncio.Future[AwaitedCall] = asyncio.get_running_loop().create_future()

    def settle(self) -> None:
        """See `Call.settle`."""
        if self.outcome.done():
            return
        if self.error is not None:
            self.outcome.set_exception(self.error)
        else:
            self.outcome.set_result(self)


def _is_engines(call: Call, error: MusterError, usual_ns: int) -> bool:
    """Whether it was the engine that failed: not the caller, who may be in a hurry, nor the queue."""
    if isinstance(error, TooLate):
        return error.running and call.deadline_ns - call.arrived_ns >= usual_ns
    return isinstance(error, EngineError) and not isinstance(error, InputRefused)


def _held_bytes(array: Array) -> int:
    """Return the memory of an answer, of BYTES also that of its elements."""
    return array.nbytes + (sum(len(each) for each in array.reshape(-1).tolist()) if array.dtype == object else 0)


class Service:
    """What serves, for every front."""

    def __init__(self, table: ServingTable, config: ServingConfig | None = None) -> None:
        config = config or ServingConfig()
        self.table = table
        self._feedback = FeedbackRing()
        self._timeout_ns = int(config.timeout_s * 1e9)
        waits = config.queue_timeout_ms
        self._queue_timeouts_ns = tuple(ms * 1_000_000 for ms in (waits.now, waits.soon, waits.later))
        self._waits_are_bounded = any(self._queue_timeouts_ns)
        self._slow_ns = int(config.slow_request_ms * 1e6)
        # Ids must not repeat across restarts, or late feedback would find the wrong answer.
        self.id_prefix = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._draw = random.Random(secrets.randbits(64)).random
        self._turns: dict[int, Turn[Call, tuple[bytes, ...]]] = {}
        self._anybody = Anybody()
        self._tracing: Tracing | None = None
        self._absent: Callable[[str], None] = lambda model: None
        table.observe(self._ran)

    def enter(self, model: str, version: str | None = None, key: str = "") -> Place:
        """Return the place that serves `model` for one call, to be given to `submit`, or left.

        Args:
            key: What the share of a canary sticks to; empty: chance.
        Raises:
            ModelUnknown: no release of it serves, or not this version.
        """
        table = self.table
        if version is None and not table.trials:
            place = table.serving.get(ModelName(model))
            if place is not None and place.enter():
                return place
        elif version is None:
            beside = table.trials.get(model)
            if beside is not None and beside.trial.split.mode is Mode.CANARY:
                candidate = beside.place
                # A sequence must stay where its state is, so without a key it stays with the release that serves.
                if (key or candidate.sequences is None) and beside.trial.chosen(key) and candidate.enter():
                    return candidate
        try:
            return table.enter(model, version)
        except ModelUnknown:
            self._absent(model)
            raise

    def submit(self, place: Place, call: Call, caller: Caller) -> None:
        """Take the call of a guest of `place`, who is led out in the end; `call.settle` comes once, on the loop.

        `call.deadline_ns` is a duration here, 0 for the usual one.

        Raises:
            MusterError: it was refused; `settle` does not come.
        """
        now = time.perf_counter_ns()
        allowed = False
        try:
            caller.take(call.rows, now)
            if call.priority < caller.priority_max:
                call.priority = caller.priority_max
            timeout_ns = self._timeout_ns
            if self._waits_are_bounded:
                timeout_ns = min(timeout_ns, self._queue_timeouts_ns[call.priority] or timeout_ns)
            if 0 < call.deadline_ns < timeout_ns:
                timeout_ns = call.deadline_ns
            call.arrived_ns = now
            call.deadline_ns = now + timeout_ns
            call.number = next(self._numbers)
            if not place.breaker.allows(now):
                raise place.breaker.refusal(now)
            allowed = True
            if place.plain:
                room = place.room if call.priority != Priority.LATER else place.room_for_later(call.rows)
                room.push(call)
            elif place.sequences is not None:
                self._in_sequence(place, call, now)
            elif not self._from_memory(place, call):
                place.room.push(call)
        except MusterError as error:
            if isinstance(error, SequenceInvalid | SequenceUnknown):
                place.served.stats.refused()
            else:
                place.served.stats.rejected()
            if allowed:  # Else no probe was taken that could be given back.
                place.breaker.abandoned(now, now)
            place.misses.pop(call.number, None)
            place.leave()
            raise

    def when_absent(self, act: Callable[[str], None]) -> None:
        """Call `act` with the name of a model that is asked for and does not serve; it may raise a better error."""
        self._absent = act

    def trace(self, tracing: Tracing) -> None:
        """Tell `tracing` of every call that ends."""
        self._tracing = tracing

    def exemplars(self) -> Mapping[tuple[str, str, str], Exemplar]:
        """Return the newest traced call by model, version and stage."""
        return {} if self._tracing is None else self._tracing.exemplars

    def id_of(self, call: Call) -> str:
        """Return what the call is known by: the caller's own id, or ours."""
        return call.request_id or f"{self.id_prefix}-{call.number:09x}"

    def label(self, model: str, request_id: str, truth: Sequence[Label]) -> tuple[bool, ...]:
        """Count the true labels of an answered call. See `FeedbackRing.label`."""
        key: int | str = request_id
        prefix, _, number = request_id.rpartition("-")
        if prefix == self.id_prefix and len(number) == 9:
            with suppress(ValueError):  # It only looked like one of ours.
                key = int(number, 16)
        return self._feedback.label(model, key, truth)

    # -- models that are not plain ------------------------------------------------------------------------------------

    def _from_memory(self, place: Place, call: Call) -> bool:
        """Answer the call with what its input was answered before, if it was."""
        assert place.cache is not None
        digest = answer_cache.key(call.shapes, call.tensors, call.rows)
        known = place.cache.get(digest)
        if known is None:
            place.misses[call.number] = digest
            return False
        place.served.stats.remembered(call.rows)
        call.batch = Batch(known, 0, rows_axis=place.batches)
        call.settled = True
        place.breaker.abandoned(call.arrived_ns, call.arrived_ns)
        if place.counted is not None:
            place.counted((call,))
        self._feedback.remember(place.model, (call,), place.served.manifest.labels, place.served.stats)
        if self._tracing is not None:
            self._tracing.record(place, call, self.id_of(call), time.perf_counter_ns())
        call.settle()
        place.leave()
        return True

    def _in_sequence(self, place: Place, call: Call, now_ns: int) -> None:
        """Let the call run when it is its sequence's turn, with the state that the one before it left."""
        assert place.sequences is not None
        if call.rows != 1:
            raise SequenceInvalid("a stateful model takes one row a request; send the rows one after another")
        key, starts, ends = call.sequence or (0, False, False)
        turn = place.sequences.submit(key, call, now_ns, starts=starts, ends=ends)
        if turn is not None:
            self._begin(place, turn)

    def _begin(self, place: Place, turn: Turn[Call, tuple[bytes, ...]]) -> None:
        call = turn.call
        call.tensors, call.shapes = place.with_state(call.tensors, call.shapes, turn.state)
        self._turns[call.number] = turn
        try:
            place.room.push(call)
        except MusterError:
            del self._turns[call.number]
            self._after(place, turn, turn.state)
            raise

    def _after(self, place: Place, turn: Turn[Call, tuple[bytes, ...]], state: tuple[bytes, ...] | None) -> None:
        """Give a turn back, and begin the next of its sequence."""
        assert place.sequences is not None
        following = place.sequences.finish(turn, state, time.perf_counter_ns())
        if following is None:
            return
        try:
            self._begin(place, following)
        except MusterError as error:  # `_begin` gave that turn back, and began the one after it.
            call = following.call
            call.error = error
            call.settled = True
            place.served.stats.rejected()
            call.settle()
            place.leave()

    # -- after a run --------------------------------------------------------------------------------------------------

    def _ran(self, place: Place, calls: Sequence[Call]) -> None:
        """Calls of one batch have ended, in an answer or not."""
        now = time.perf_counter_ns()
        breaker = place.breaker
        for call in calls:
            if call.error is None:
                breaker.succeeded(call.arrived_ns, now)
            elif _is_engines(call, call.error, self._timeout_ns):
                breaker.failed(call.arrived_ns, now)
            else:
                breaker.abandoned(call.arrived_ns, now)
        if not place.plain:
            self._keep(place, calls)
        if self.table.trials:
            self._compare(place, calls)
            calls = [call for call in calls if not isinstance(call, Shadow)]
            if not calls:
                return  # Nobody waits for a shadow.
        counted = place.counted
        if counted is not None:
            counted(calls)
        if calls[0].priority != Priority.LATER:  # Nobody labels batch work by the ids of its requests.
            batch = calls[0].batch
            together = (calls,) if batch is not None and batch is calls[-1].batch else [(call,) for call in calls]
            for answered in together:  # A batch with a bad input was run one by one.
                self._feedback.remember(place.model, answered, place.served.manifest.labels, place.served.stats)
        if self._tracing is not None:
            for call in calls:
                self._tracing.record(place, call, self.id_of(call), now)
        if self._slow_ns and now - calls[0].arrived_ns > self._slow_ns:
            self._tell_slow(place, calls[0], now)

    def _keep(self, place: Place, calls: Sequence[Call]) -> None:
        """Remember answers, and the state of sequences."""
        for call in calls:
            if place.cache is not None:
                digest = place.misses.pop(call.number, None)
                if digest is not None and call.error is None:
                    arrays = tuple(call.output(index).copy() for index in range(len(place.outputs)))
                    place.cache.put(digest, arrays, sum(map(_held_bytes, arrays)))
            turn = self._turns.pop(call.number, None)
            if turn is not None:
                state = turn.state if call.error is not None or call.batch is None else place.state_of(call)
                self._after(place, turn, state)

    def _compare(self, place: Place, calls: Sequence[Call]) -> None:
        """Count for the trial of a candidate, and mirror to it what it shadows."""
        beside = self.table.trials.get(place.model)
        if beside is None:
            return
        trial = beside.trial
        for call in calls:
            if isinstance(call, Shadow):
                continue
            if trial.split.mode is Mode.CANARY:
                if call.error is None and call.batch is not None:
                    trial.answered(call.batch.engine_ns, by_candidate=place is beside.place)
                elif place is beside.place and isinstance(call.error, EngineError):
                    trial.failed()
            elif call.error is None and place is not beside.place and trial.chosen(""):
                shadow = trial.mirror(call)
                if shadow is None:
                    continue
                try:
                    if not beside.place.enter():
                        shadow.drop()
                        continue
                    self.submit(beside.place, shadow, self._anybody)
                except MusterError:
                    shadow.drop()

    def _tell_slow(self, place: Place, call: Call, now_ns: int) -> None:
        log.warning(
            "request_slow",
            model=place.model,
            version=place.version,
            id=self.id_of(call),
            rows=call.rows,
            total_ms=round((now_ns - call.arrived_ns) / 1e6, 1),
            engine_ms=round((call.batch.engine_ns if call.batch is not None else 0) / 1e6, 1),
            waiting_rows=place.queued,
        )
