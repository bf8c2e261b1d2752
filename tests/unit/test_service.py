"""The service between its fronts and its rooms: what is refused leaves nothing behind, and what ends is told once.

The engine is a session in memory. The clock of the service is the real one, which a test may put forward.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping

import pytest

from harness.service_alone import (
    CACHED,
    MODEL,
    STATEFUL,
    THREAD,
    WAIT_S,
    Engine,
    Gated,
    Setup,
    play,
    served,
    until,
)
from muster_agent.core.breaker import BreakerOpen, BreakerSettings, Closed, HalfOpen, Open
from muster_agent.core.plan import ServingPlan
from muster_agent.core.rate import meter
from muster_agent.core.sequences import SequenceUnknown
from muster_agent.core.split import Mode
from muster_agent.engines.port import Array, InferenceFailed
from muster_agent.serving import rooms, service
from muster_agent.serving.admission import Caller, RateExceeded
from muster_agent.serving.call import Priority
from muster_agent.serving.config import QueueTimeouts, ServingConfig
from muster_agent.serving.feedback import FeedbackUnmatched
from muster_agent.serving.rooms import QueueFull, TooLate
from muster_agent.serving.service import Anybody, AwaitedCall
from muster_agent.serving.table import ModelUnknown, Place
from muster_agent.serving.trial import TrialUnfit
from muster_shared.ids import ModelName

BREAKER = ServingConfig(breaker=BreakerSettings(calls_min=1, share_max=0.5, open_s=5.0, open_s_max=5.0, probes=2))


class Clock:
    """The real clock, put forward by tests; stands for the module `time`."""

    def __init__(self) -> None:
        self._ahead_ns = 0

    def perf_counter_ns(self) -> int:
        return time.perf_counter_ns() + self._ahead_ns

    def skip(self, seconds: float) -> None:
        self._ahead_ns += int(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(service, "time", made)
    return made


def limited(rows: int) -> Caller:
    """A caller who may ask for so many rows, and then none for long."""
    return Caller("limited", meter(0.0001, rows))


def test_who_is_refused_while_probes_run_gives_back_no_probe(clock: Clock) -> None:
    engine = Engine()

    async def scenario(setup: Setup) -> None:
        engine.error = InferenceFailed("ill")
        await setup.refusal()
        clock.skip(5.0)
        engine.error = None
        probes = [setup.submit(), setup.submit()]
        for _ in range(5):
            with pytest.raises(BreakerOpen):
                setup.submit()
        state = setup.place.breaker.state
        await asyncio.gather(*(probe.outcome for probe in probes))

        assert isinstance(state, HalfOpen)
        assert state.left == 0
        assert isinstance(setup.place.breaker.state, Closed)

    play(scenario, served(engine), BREAKER)

    assert engine.calls == 2  # The failure, and both probes in one batch.


def test_who_asks_too_much_takes_no_probe_and_gives_none_back(clock: Clock) -> None:
    engine = Engine()
    greedy = limited(1)

    async def scenario(setup: Setup) -> None:
        await setup.submit(caller=greedy).outcome
        engine.error = InferenceFailed("ill")
        await setup.refusal()
        clock.skip(5.0)
        engine.error = None
        probe = setup.submit()
        for _ in range(3):
            with pytest.raises(RateExceeded):
                setup.submit(caller=greedy)
        state = setup.place.breaker.state
        await probe.outcome

        assert isinstance(state, HalfOpen)
        assert state.left == 1

    play(scenario, served(engine), BREAKER)


def test_a_probe_that_finds_the_queue_full_is_given_back(clock: Clock) -> None:
    engine = Engine()

    async def scenario(setup: Setup) -> None:
        engine.error = InferenceFailed("ill")
        await setup.refusal()
        clock.skip(5.0)
        engine.error = None
        first = setup.submit()  # It fills the queue until the next turn of the loop.
        with pytest.raises(QueueFull):
            setup.submit()
        await first.outcome
        await setup.submit().outcome

        assert isinstance(setup.place.breaker.state, Closed)

    play(scenario, served(engine), ServingConfig(breaker=BREAKER.breaker, queue_max=1))


def test_an_outcome_from_before_the_breaker_opened_says_nothing_of_now(clock: Clock) -> None:
    engine = Engine()

    async def scenario(setup: Setup) -> None:
        engine.error = InferenceFailed("ill")
        calls = [setup.submit() for _ in range(3)]
        await asyncio.gather(*(call.outcome for call in calls), return_exceptions=True)
        state = setup.place.breaker.state

        assert isinstance(state, Open)
        assert state.trips == 1

    play(scenario, served(engine), BREAKER)


def test_an_engine_that_hangs_is_counted_while_it_hangs_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "SWEEP_S", 0.001)
    engine = Gated()
    config = ServingConfig(timeout_s=0.02, breaker=BreakerSettings(calls_min=2, share_max=1.0, open_s=60.0))

    async def scenario(setup: Setup) -> None:
        late = await setup.refusal()
        while_it_hangs = setup.place.breaker.state
        engine.gate.set()
        await asyncio.to_thread(engine.began.acquire)
        await until(lambda: setup.place._guests == 0)
        after = setup.place.breaker.state

        assert isinstance(late, TooLate)
        assert isinstance(while_it_hangs, Closed)
        assert [(part.calls, part.failures) for part in while_it_hangs.slices] == [(1, 1)]
        assert after == while_it_hangs

    setup = play(scenario, served(engine, plan=THREAD), config)

    assert setup.table.serving == {}


def test_a_sequence_goes_on_while_the_engine_hangs_in_a_call_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "SWEEP_S", 0.001)
    engine = Gated()
    two = ServingPlan(inline=False, batch_max=1, instances_max=2)

    async def scenario(setup: Setup) -> None:
        hung = setup.submit(sequence=(1, True, False))
        await asyncio.to_thread(engine.began.acquire)
        behind = setup.submit(2.0, sequence=(1, False, False))
        with pytest.raises(TooLate):
            await hung.outcome
        with pytest.raises(TooLate):
            await behind.outcome  # By its own deadline, not never.
        engine.gate.set()
        again = await setup.submit(3.0, sequence=(1, False, False)).outcome

        assert again.error is None

    play(scenario, served(engine, serving=STATEFUL, plan=two), ServingConfig(timeout_s=0.05))


def test_a_turn_that_finds_the_queue_full_is_told_and_the_next_begins() -> None:
    engine = Engine()

    async def scenario(setup: Setup) -> None:
        first = setup.submit(sequence=(1, True, False))
        with pytest.raises(QueueFull):
            setup.submit(sequence=(2, True, False))
        await first.outcome
        after = await setup.submit(sequence=(2, True, False)).outcome

        assert after.error is None
        assert setup.place.served.stats.snapshot().rejected == 1

    play(scenario, served(engine, serving=STATEFUL), ServingConfig(queue_max=1))


def test_a_call_behind_a_turn_waits_and_comes_in_its_order() -> None:
    engine = Engine()

    async def scenario(setup: Setup) -> None:
        calls = [setup.submit(float(at), sequence=(1, at == 0, at == 4)) for at in range(5)]
        answers = [await call.outcome for call in calls]

        assert [float(answer.output(0)[0, 0]) for answer in answers] == [0, 1, 2, 3, 4]
        assert isinstance(await setup.refusal(sequence=(1, False, False)), SequenceUnknown)
        assert setup.place.sequences is not None
        assert len(setup.place.sequences) == 0

    play(scenario, served(engine, serving=STATEFUL))

    assert engine.calls == 5


def test_an_unknown_sequence_is_the_callers_fault_and_not_the_queues() -> None:
    async def scenario(setup: Setup) -> None:
        await setup.refusal(sequence=(1, False, False))

        counted = setup.place.served.stats.snapshot()
        assert (counted.refused, counted.rejected) == (1, 0)

    play(scenario, served(Engine(), serving=STATEFUL))


def test_who_finds_the_queue_full_leaves_no_trace_in_the_memory_of_answers() -> None:
    async def scenario(setup: Setup) -> None:
        first = setup.submit(1.0)
        for number in range(2, 6):
            with pytest.raises(QueueFull):
                setup.submit(float(number))
        await first.outcome

    play(scenario, served(Engine(), serving=CACHED), ServingConfig(queue_max=1))


def test_two_equal_requests_at_once_are_both_run_and_remembered_once() -> None:
    engine = Engine()

    async def scenario(setup: Setup) -> None:
        await asyncio.gather(setup.submit().outcome, setup.submit().outcome)
        remembered = await setup.submit().outcome

        assert setup.place.cache is not None
        assert setup.place.cache.counts().entries == 1
        assert remembered.batch is not None
        assert remembered.batch.engine_ns == 0

    play(scenario, served(engine, serving=CACHED))

    assert engine.calls == 1  # One batch of two.


def test_ids_never_repeat_and_find_their_answers() -> None:
    async def scenario(setup: Setup) -> None:
        ours, theirs = await setup.submit(1.0).outcome, await setup.submit(2.0, request_id="theirs-000000001").outcome

        assert setup.service.id_of(ours) != setup.service.id_of(theirs) == "theirs-000000001"
        assert setup.service.label(MODEL, setup.service.id_of(ours), [0]) == (True,)
        assert setup.service.label(MODEL, "theirs-000000001", [1]) == (False,)
        with pytest.raises(FeedbackUnmatched):
            setup.service.label(MODEL, setup.service.id_of(ours), [0])

    play(scenario, served(Engine()))


def test_another_service_gives_other_ids() -> None:
    ids = set()

    async def scenario(setup: Setup) -> None:
        ids.add(setup.service.id_of(await setup.submit().outcome))

    play(scenario, served(Engine()))
    play(scenario, served(Engine()))

    assert len(ids) == 2


def test_somebody_is_told_of_what_is_asked_for_and_does_not_serve() -> None:
    asked: list[str] = []

    async def scenario(setup: Setup) -> None:
        setup.service.when_absent(asked.append)
        with pytest.raises(ModelUnknown):
            setup.service.enter("other")
        await setup.submit().outcome

    play(scenario, served(Engine()))

    assert asked == ["other"]


def test_shadows_push_no_answer_out_of_the_memory_for_labels() -> None:
    primary, candidate = Engine(), Engine()

    async def scenario(setup: Setup) -> None:
        setup.table.begin_trial(served(candidate, 2), Mode.SHADOW, 1.0, lambda: 0.5)
        call = await setup.submit().outcome
        trial = setup.table.trials[MODEL].trial
        await until(lambda: trial.snapshot().compared == 1)

        [answers] = setup.service._feedback._rings[MODEL]
        assert answers.first == call.number

    play(scenario, served(primary))

    assert (primary.calls, candidate.calls) == (1, 1)


def test_a_stateful_release_cannot_be_shadowed_but_can_be_a_canary() -> None:
    async def scenario(setup: Setup) -> None:
        with pytest.raises(TrialUnfit):
            setup.table.begin_trial(served(Engine(), 2, STATEFUL), Mode.SHADOW, 1.0, lambda: 0.5)
        setup.table.begin_trial(served(Engine(), 2, STATEFUL), Mode.CANARY, 1.0, lambda: 0.5)
        trial = setup.table.trials[MODEL].trial
        chosen = setup.service.enter(MODEL, key="camera")
        chosen.leave()
        unnamed = setup.service.enter(MODEL)
        unnamed.leave()

        assert (chosen.version, unnamed.version) == ("1.0.2", "1.0.1")
        assert trial.snapshot().compared == 0

    play(scenario, served(Engine(), 1, STATEFUL))


def test_a_callers_own_deadline_counts_when_it_is_the_shorter_one() -> None:
    async def scenario(setup: Setup) -> None:
        place = setup.service.enter(MODEL)
        short = AwaitedCall((bytes(8),), ((2,),), 1)
        short.deadline_ns = 1_000_000
        setup.service.submit(place, short, Anybody())
        place = setup.service.enter(MODEL)
        long = AwaitedCall((bytes(8),), ((2,),), 1)
        long.deadline_ns = 1 << 60
        setup.service.submit(place, long, Anybody())
        await asyncio.gather(short.outcome, long.outcome, return_exceptions=True)

        assert short.deadline_ns - short.arrived_ns == 1_000_000
        assert long.deadline_ns - long.arrived_ns == 30_000_000_000

    play(scenario, served(Engine()))


@pytest.mark.parametrize(
    ("own_ns", "queue_ms", "counted"),
    [
        (1_000_000, 0, (0, 1)),  # The caller was in a hurry,
        (0, 1, (0, 1)),  # or the operator was.
        (0, 0, (1, 0)),
    ],
)
def test_only_who_waited_as_long_as_usual_proves_that_the_engine_hangs(
    monkeypatch: pytest.MonkeyPatch, own_ns: int, queue_ms: int, counted: tuple[int, int]
) -> None:
    monkeypatch.setattr(rooms, "SWEEP_S", 0.001)
    engine = Gated()
    config = ServingConfig(
        timeout_s=0.3,
        queue_timeout_ms=QueueTimeouts(now=queue_ms),
        breaker=BreakerSettings(calls_min=1, open_s=60.0, open_s_max=60.0),
    )

    async def scenario(setup: Setup) -> None:
        call = AwaitedCall((bytes(8),), ((2,),), 1)
        call.deadline_ns = own_ns
        setup.service.submit(setup.service.enter(MODEL), call, Anybody())
        # Whose time is over already may be told so before the engine begins; it counts for nothing then either.
        await asyncio.to_thread(engine.began.acquire, timeout=1.0)
        with pytest.raises(TooLate):
            await call.outcome
        state = setup.place.breaker.state
        engine.gate.set()
        await until(lambda: setup.place._guests == 0)

        seen = setup.place.served.stats.snapshot()
        assert (seen.errors, seen.cancelled) == counted
        assert isinstance(state, Open) == bool(seen.errors)

    play(scenario, served(engine, plan=THREAD), config)


def test_work_for_later_that_is_never_begun_is_not_held_against_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "SWEEP_S", 0.001)

    async def scenario(setup: Setup) -> None:
        setup.table.open_later(False)
        with pytest.raises(TooLate):
            await setup.submit(priority=Priority.LATER).outcome

        seen = setup.place.served.stats.snapshot()
        assert (seen.errors, seen.cancelled) == (0, 1)

    play(scenario, served(Engine()), ServingConfig(timeout_s=0.01))


class Overtaken(dict[ModelName, Place]):
    """What serves, for one who is overtaken by a switch between looking a place up and entering it."""

    def __init__(self, serving: Mapping[ModelName, Place], switch: Callable[[], None]) -> None:
        super().__init__(serving)
        self._switches = [switch]

    def get(self, model: ModelName, default: object = None) -> Place | None:  # type: ignore[override]  # Narrower.
        place = self[model]
        if self._switches:
            self._switches.pop()()
        return place


def test_who_is_overtaken_by_a_switch_enters_what_serves_now() -> None:
    async def scenario(setup: Setup) -> None:
        old = setup.place
        new = served(Engine(), 2)
        setup.table.serving = Overtaken(setup.table.serving, lambda: setup.table.switch(MODEL, new))
        call = await setup.submit().outcome

        assert call.error is None
        assert not old.enter()
        assert await asyncio.to_thread(old.closed.wait, WAIT_S)
        assert setup.place.version == "1.0.2"
        assert setup.place.served.stats.snapshot().requests == 1

    play(scenario, served(Engine()))


class Placed(Engine):
    """Says on which thread it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        self.threads.append(threading.current_thread().name)
        return super().run_arrays(arrays)


@pytest.mark.parametrize(("row_ms", "where"), [(1.0, "inference"), (0.01, "MainThread")], ids=["long", "short"])
def test_long_work_for_later_leaves_the_loop_to_others(row_ms: float, where: str) -> None:
    engine = Placed()

    async def scenario(setup: Setup) -> None:
        await setup.submit(priority=Priority.LATER).outcome
        await setup.submit(priority=Priority.NOW).outcome

    play(scenario, served(engine, plan=ServingPlan(inline=True, batch_max=4, curve=((1, row_ms),))))

    assert engine.threads == [where, "MainThread"]
