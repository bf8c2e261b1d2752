"""Where calls wait and run: every call settles once, whatever the engine, its callers and the clock do.

The engine is a session in memory that a test lets go on when it likes. Waiting is for events, not for times: what the
room does now and then is set to happen at once.
"""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter_ns

import numpy as np
import pytest

from muster_agent.core.plan import ServingPlan
from muster_agent.engines.port import Achieved, Array, InferenceFailed
from muster_agent.serving import rooms
from muster_agent.serving.call import Call, Priority
from muster_agent.serving.execution import Execution
from muster_agent.serving.rooms import GivenUp, Pressure, QueueFull, Room, RoomClosed, TooLate
from muster_agent.serving.stats import WindowStats
from muster_shared.bundle import TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 1))
INLINE = ServingPlan(inline=True, batch_max=4)
WAIT_S = 10.0
FAR_NS = 3_600_000_000_000


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "SWEEP_S", 0.001)


class Engine:
    """A session that answers y = x when its gate is open, and tells of every call."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 8

    def __init__(self, *, shut: bool = False, error: Exception | None = None) -> None:
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.batches: list[list[float]] = []
        self.error = error
        if not shut:
            self.gate.set()

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        self.batches.append(arrays[0].ravel().tolist())
        self.started.release()
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return [arrays[0]]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("requests that are served come by run_arrays")

    def close(self) -> None:
        """Hold nothing."""


class Asked(Call):
    """A call that counts its outcomes, and what it was answered with first."""

    def __init__(
        self, number: float = 1, priority: Priority = Priority.NOW, *, rows: int = 1, patience_ns: int = FAR_NS
    ) -> None:
        super().__init__((np.full((rows, 1), number, np.float32).tobytes(),), ((1,),), rows)
        self.priority = priority
        self.arrived_ns = perf_counter_ns()
        self.deadline_ns = self.arrived_ns + patience_ns
        self.done = asyncio.Event()
        self.outcomes: list[str] = []

    def settle(self) -> None:
        self.outcomes.append("answered" if self.error is None else type(self.error).__name__)
        self.done.set()

    async def outcome(self) -> str:
        await asyncio.wait_for(self.done.wait(), WAIT_S)
        return self.outcomes[0]


class Setup:
    """A room with its engine, and what it told of."""

    def __init__(
        self, engine: Engine, plan: ServingPlan, queue_max: int, ran: Callable[[Sequence[Call]], None]
    ) -> None:
        self.engine = engine
        self.stats = WindowStats()
        self.pressure = Pressure()
        self.ended = 0
        self.room = Room(
            Execution(engine, (X,), (X,)),
            plan,
            self.stats,
            queue_max=queue_max,
            pressure=self.pressure,
            ran=ran,
            left=self._left,
        )
        self.pushed: list[Asked] = []

    def push(self, *calls: Asked) -> None:
        for call in calls:
            self.room.push(call)
            self.pushed.append(call)

    def _left(self, count: int) -> None:
        self.ended += count


Scenario = Callable[[Setup], Awaitable[None]]


def threads(most: int = 1, *, least: int = 1, batch_max: int = 1, delay_us: int = 0) -> ServingPlan:
    return ServingPlan(inline=False, batch_max=batch_max, instances_max=most, instances_min=least, delay_us=delay_us)


def play(
    scenario: Scenario,
    plan: ServingPlan,
    *,
    engine: Engine | None = None,
    queue_max: int = 100,
    ran: Callable[[Sequence[Call]], None] = lambda calls: None,
) -> Setup:
    """Play a scenario, let everything end, and check that every call ended exactly once."""

    async def run() -> Setup:
        setup = Setup(engine or Engine(), plan, queue_max, ran)
        try:
            await scenario(setup)
        finally:
            setup.engine.gate.set()
            await until(lambda: setup.ended == len(setup.pushed) or setup.room._closing)
            await asyncio.to_thread(setup.room.close)
        await until(lambda: setup.ended == len(setup.pushed))
        for call in setup.pushed:
            assert len(call.outcomes) == 1
        assert setup.pressure.urgent == 0
        assert setup.room.queued == 0
        assert setup.room.instances == 0
        return setup

    return asyncio.run(run())


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S / 0.001)):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come true in time")


async def started(engine: Engine) -> None:
    assert await asyncio.to_thread(engine.started.acquire, timeout=WAIT_S)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# -- on the loop -------------------------------------------------------------------------------------------------------


def test_calls_that_come_in_one_turn_of_the_loop_are_one_batch() -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(Asked(1), Asked(2), Asked(3))
        for call in setup.pushed:
            assert await call.outcome() == "answered"

    setup = play(scenario, INLINE)

    assert setup.engine.batches == [[1, 2, 3]]
    at = setup.stats.snapshot()
    assert (at.requests, at.rows, at.batches, at.errors) == (3, 3, 1, 0)


def test_the_loop_has_its_turn_between_two_batches() -> None:
    seen: list[int] = []

    async def scenario(setup: Setup) -> None:
        setup.push(*(Asked(number) for number in range(12)))
        loop = asyncio.get_running_loop()

        def look() -> None:
            seen.append(len(setup.engine.batches))
            if len(setup.engine.batches) < 3:
                loop.call_soon(look)

        look()
        await setup.pushed[-1].outcome()

    setup = play(scenario, INLINE)

    assert [len(batch) for batch in setup.engine.batches] == [4, 4, 4]
    assert {1, 2} <= set(seen)


def test_a_call_that_was_given_up_or_is_too_late_never_runs() -> None:
    async def scenario(setup: Setup) -> None:
        gone, late, good = Asked(1), Asked(2, patience_ns=-1), Asked(3)
        setup.push(gone, late, good)
        gone.cancel()
        assert [await call.outcome() for call in setup.pushed] == ["GivenUp", "TooLate", "answered"]
        assert isinstance(gone.error, GivenUp)
        assert isinstance(late.error, TooLate)
        assert not late.error.running

    setup = play(scenario, INLINE)

    assert setup.engine.batches == [[3]]
    at = setup.stats.snapshot()
    assert (at.requests, at.errors, at.cancelled) == (2, 1, 1)


@pytest.mark.parametrize("plan", [INLINE, threads()], ids=["inline", "threads"])
def test_work_for_later_waits_while_anything_urgent_is_under_way_anywhere(plan: ServingPlan) -> None:
    async def scenario(setup: Setup) -> None:
        setup.pressure.urgent = 1  # Of another model.
        setup.push(later := Asked(1, Priority.LATER))
        setup.push(soon := Asked(2, Priority.SOON))
        assert await soon.outcome() == "answered"
        await turns(10)
        waited = not later.done.is_set()
        setup.pressure.urgent -= 1
        assert await later.outcome() == "answered"
        assert waited

    setup = play(scenario, plan)

    assert setup.engine.batches == [[2], [1]]


def test_an_urgent_call_does_not_wait_for_the_next_look_at_work_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "RECHECK_S", 3600.0)

    async def scenario(setup: Setup) -> None:
        setup.pressure.urgent = 1  # Of another model.
        setup.push(Asked(1, Priority.LATER))
        await turns(3)
        setup.push(Asked(2))
        await turns(3)
        assert setup.pushed[1].outcomes == ["answered"]
        setup.pressure.urgent -= 1
        await asyncio.to_thread(setup.room.close)

    play(scenario, INLINE)


@pytest.mark.parametrize("plan", [INLINE, threads()], ids=["inline", "threads"])
@pytest.mark.parametrize("busy", [True, False])
def test_work_for_later_that_may_not_run_is_refused_at_its_deadline(
    plan: ServingPlan, busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "PATIENCE_NS", FAR_NS)

    async def scenario(setup: Setup) -> None:
        setup.pressure.urgent = int(busy)
        setup.pressure.later_open = busy  # Else it is not the time of day.
        setup.push(Asked(1, Priority.LATER, patience_ns=1))
        assert await setup.pushed[0].outcome() == "TooLate"
        setup.pressure.urgent = 0

    play(scenario, plan)


@pytest.mark.parametrize("plan", [INLINE, threads()], ids=["inline", "threads"])
def test_work_for_later_runs_once_in_a_while_however_busy_the_device_is(
    plan: ServingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "PATIENCE_NS", 0)

    async def scenario(setup: Setup) -> None:
        setup.pressure.urgent = 1
        setup.push(Asked(1, Priority.LATER))
        assert await setup.pushed[0].outcome() == "answered"
        setup.pressure.urgent -= 1

    play(scenario, plan)


def test_a_caller_that_asks_alone_is_answered_at_once_and_several_are_a_batch_again() -> None:
    async def scenario(setup: Setup) -> None:
        for number in range(rooms.ALONE + 1):
            setup.push(call := Asked(number))
            await call.outcome()
            await turns(2)
        setup.engine.batches.clear()
        setup.push(alone := Asked(100))
        assert alone.outcomes == ["answered"]  # Before the loop had another turn.
        setup.push(Asked(101), Asked(102))
        await setup.pushed[-1].outcome()
        setup.push(Asked(103), Asked(104), Asked(105))
        await setup.pushed[-1].outcome()

    setup = play(scenario, INLINE)

    assert setup.engine.batches == [[100], [101, 102], [103, 104, 105]]


def test_a_caller_that_asks_alone_and_is_gone_already_is_spared_at_once() -> None:
    async def scenario(setup: Setup) -> None:
        for number in range(rooms.ALONE + 1):
            setup.push(call := Asked(number))
            await call.outcome()
            await turns(2)
        gone = Asked(100)
        gone.cancel()
        setup.push(gone)
        assert await gone.outcome() == "GivenUp"

    play(scenario, INLINE)


# -- beside the loop ---------------------------------------------------------------------------------------------------


def test_what_waits_while_the_engine_is_busy_is_one_batch() -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(Asked(1))
        await started(setup.engine)
        setup.push(*(Asked(number) for number in (2, 3, 4, 5, 6)))
        setup.engine.gate.set()
        for call in setup.pushed:
            assert await call.outcome() == "answered"

    setup = play(scenario, threads(batch_max=4), engine=Engine(shut=True))

    assert setup.engine.batches == [[1], [2, 3, 4, 5], [6]]


def test_an_engine_that_hangs_does_not_hang_its_callers_and_its_answer_is_ignored() -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(running := Asked(1))
        await started(setup.engine)
        setup.push(waiting := Asked(2, patience_ns=1))
        running.deadline_ns = 1
        assert await running.outcome() == "TooLate"
        assert await waiting.outcome() == "TooLate"
        assert isinstance(running.error, TooLate)
        assert isinstance(waiting.error, TooLate)
        assert (running.error.running, waiting.error.running) == (True, False)
        assert setup.ended == 1  # The release must not be closed under the call that runs.
        setup.engine.gate.set()
        await until(lambda: setup.ended == 2)

    setup = play(scenario, threads(), engine=Engine(shut=True))

    at = setup.stats.snapshot()
    assert (at.requests, at.errors, at.rows) == (2, 2, 0)


def test_a_failure_after_the_deadline_is_one_failure() -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(late := Asked(1))
        await started(setup.engine)
        late.deadline_ns = 1
        assert await late.outcome() == "TooLate"

    setup = play(scenario, threads(), engine=Engine(shut=True, error=InferenceFailed("at last")))

    at = setup.stats.snapshot()
    assert (at.requests, at.errors) == (1, 1)


def test_a_call_that_is_given_up_while_it_waits_leaves_the_queue_at_once() -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(Asked(1))
        await started(setup.engine)
        setup.push(gone := Asked(2))
        gone.cancel()
        assert await gone.outcome() == "GivenUp"
        assert setup.room.queued == 0

    setup = play(scenario, threads(), engine=Engine(shut=True))

    assert setup.engine.batches == [[1]]


def test_a_full_queue_turns_away_and_says_when_to_come_back() -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(Asked(1))
        await started(setup.engine)
        setup.push(Asked(2, rows=9))  # As large as it likes, when nothing waits.
        with pytest.raises(QueueFull) as full:
            setup.room.push(Asked(3))
        assert (full.value.waiting, full.value.retry_after_s) == (9, 1)
        assert setup.pressure.urgent == 2

    play(scenario, threads(), engine=Engine(shut=True), queue_max=4)


def test_the_wait_until_another_try_is_that_of_the_queue() -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(Asked(1))
        await started(setup.engine)
        setup.push(*(Asked(number) for number in range(8)))
        with pytest.raises(QueueFull) as full:
            setup.room.push(Asked(3))
        assert full.value.retry_after_s == 12

    plan = ServingPlan(inline=False, batch_max=1, curve=((1, 1500.0),))
    play(scenario, plan, engine=Engine(shut=True), queue_max=8)


def test_instances_grow_with_the_load_up_to_their_bound_and_shrink_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "IDLE_S", 0.01)

    async def scenario(setup: Setup) -> None:
        for number in range(5):
            setup.push(Asked(number))
        for _ in range(3):
            await started(setup.engine)
        assert setup.room.instances == 3
        assert setup.room.queued == 2
        setup.engine.gate.set()
        await until(lambda: setup.room.instances == 2)
        for call in setup.pushed:
            assert await call.outcome() == "answered"

    play(scenario, threads(3, least=2), engine=Engine(shut=True))


def test_two_calls_at_once_do_not_wait_for_the_one_instance_that_is_idle() -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(Asked(1))
        await setup.pushed[0].outcome()
        await until(lambda: setup.room._idle == 1)
        setup.engine.gate.clear()
        setup.push(Asked(2), Asked(3))
        for _ in range(3):
            await started(setup.engine)
        assert setup.room.instances == 2

    play(scenario, threads(2))


def test_a_batch_runs_as_soon_as_it_is_full_and_waits_until_then() -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(Asked(1))
        await until(lambda: setup.room._idle == 1)
        assert setup.engine.batches == []
        setup.push(Asked(2))
        for call in setup.pushed:
            assert await call.outcome() == "answered"

    setup = play(scenario, threads(batch_max=2, delay_us=3_600_000_000))

    assert setup.engine.batches == [[1, 2]]


@pytest.mark.parametrize("plan", [threads(), threads(2, batch_max=4)], ids=["one", "two"])
def test_closing_ends_every_call_that_waits(plan: ServingPlan) -> None:
    async def scenario(setup: Setup) -> None:
        setup.push(Asked(0))
        await started(setup.engine)
        setup.push(*(Asked(number) for number in range(1, 9)))
        closing = asyncio.create_task(asyncio.to_thread(setup.room.close))
        await until(lambda: setup.room._closing)
        setup.engine.gate.set()
        await closing
        assert await setup.pushed[0].outcome() == "answered"
        for call in setup.pushed[1:]:
            assert await call.outcome() in ("answered", "RoomClosed")

    play(scenario, plan, engine=Engine(shut=True))


@pytest.mark.parametrize("plan", [INLINE, threads()], ids=["inline", "threads"])
def test_closing_refuses_work_for_later_that_still_waits(plan: ServingPlan) -> None:
    async def scenario(setup: Setup) -> None:
        setup.pressure.urgent = 1
        setup.push(Asked(1, Priority.LATER))
        await turns(3)
        await asyncio.to_thread(setup.room.close)
        assert await setup.pushed[0].outcome() == "RoomClosed"
        assert isinstance(setup.pushed[0].error, RoomClosed)
        setup.pressure.urgent -= 1

    play(scenario, plan)


def test_the_observer_is_told_of_every_call_once_also_of_one_that_the_engine_hangs_on() -> None:
    told: list[Call] = []

    async def scenario(setup: Setup) -> None:
        setup.push(late := Asked(1))
        await started(setup.engine)
        setup.push(gone := Asked(2), Asked(3))
        late.deadline_ns = 1
        gone.cancel()
        assert await late.outcome() == "TooLate"
        assert late in told  # While the engine still hangs: whoever counts failures must know.

    setup = play(scenario, threads(), engine=Engine(shut=True), ran=told.extend)

    assert sorted(map(id, told)) == sorted(map(id, setup.pushed))


# -- bugs must not spread ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [INLINE, threads()], ids=["inline", "threads"])
def test_an_observer_that_fails_keeps_no_answer_from_its_caller(plan: ServingPlan) -> None:
    def fail(calls: Sequence[Call]) -> None:
        raise ZeroDivisionError("a bug of ours")

    async def scenario(setup: Setup) -> None:
        for number in range(2):
            setup.push(call := Asked(number))
            assert await call.outcome() == "answered"

    play(scenario, plan, ran=fail)


@pytest.mark.parametrize("plan", [INLINE, threads(batch_max=4)], ids=["inline", "threads"])
def test_a_call_that_fails_to_settle_takes_no_other_down(plan: ServingPlan) -> None:
    class Broken(Asked):
        def settle(self) -> None:
            super().settle()
            raise ZeroDivisionError("a bug of ours")

    async def scenario(setup: Setup) -> None:
        setup.push(Broken(1), Asked(2))
        assert [await call.outcome() for call in setup.pushed] == ["answered", "answered"]

    play(scenario, plan)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("plan", [INLINE, threads(3, batch_max=4), threads(2, delay_us=200, batch_max=4)])
def test_whatever_comes_every_call_ends_once(plan: ServingPlan, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "RECHECK_S", 0.001)
    monkeypatch.setattr(rooms, "IDLE_S", 0.002)
    draw = random.Random(seed)

    async def scenario(setup: Setup) -> None:
        refused = 0
        for number in range(400):
            priority, patience_ns = Priority(draw.randrange(3)), draw.choice([FAR_NS, FAR_NS, 0, 50_000])
            call = Asked(number, priority, rows=draw.randint(1, 3), patience_ns=patience_ns)
            try:
                setup.push(call)
            except QueueFull:
                refused += 1
            if draw.random() < 0.1:
                call.cancel()
            if draw.random() < 0.2:
                await asyncio.sleep(0)
            if draw.random() < 0.01:
                await asyncio.sleep(0.003)
        for call in setup.pushed:
            assert await call.outcome() in ("answered", "TooLate", "GivenUp")
        assert len(setup.pushed) + refused == 400

    setup = play(scenario, plan, queue_max=30)

    at = setup.stats.snapshot()
    assert at.requests + at.cancelled == len(setup.pushed)
