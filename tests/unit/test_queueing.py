"""The queue before one release: order, batches, and that every call leaves it exactly once."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muster_agent.core.queueing import CLASSES, LATER, CallQueue

Shapes = tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class Waiting:
    number: int
    priority: int = 0
    rows: int = 1
    shapes: Shapes = ((4,),)
    arrived_ns: int = 0
    deadline_ns: int = 0
    cancelled: bool = False


def queue(*calls: Waiting) -> CallQueue[Waiting]:
    made: CallQueue[Waiting] = CallQueue()
    for call in calls:
        made.push(call)
    return made


def numbers(calls: list[Waiting]) -> list[int]:
    return [call.number for call in calls]


def test_a_class_waits_while_any_call_of_a_class_before_it_does() -> None:
    waiting = queue(Waiting(1, 2), Waiting(2, 1), Waiting(3, 0), Waiting(4, 1))

    taken = [numbers(waiting.take(1, 0)[0]) for _ in range(5)]

    assert taken == [[3], [2], [4], [1], []]


def test_calls_that_arrived_first_are_first_of_the_batch_and_of_the_next() -> None:
    waiting = queue(*(Waiting(number) for number in range(5)))

    assert numbers(waiting.take(3, 0)[0]) == [0, 1, 2]
    assert numbers(waiting.take(3, 0)[0]) == [3, 4]


def test_a_batch_may_go_on_with_the_next_class() -> None:
    waiting = queue(Waiting(1, 1), Waiting(2, 0))

    assert numbers(waiting.take(8, 0)[0]) == [2, 1]


def test_work_for_later_never_makes_an_urgent_call_longer() -> None:
    waiting = queue(Waiting(1, LATER), Waiting(2, 1))

    assert numbers(waiting.take(8, 0)[0]) == [2]
    assert numbers(waiting.take(8, 0, later=False)[0]) == []
    assert numbers(waiting.take(8, 0)[0]) == [1]


def test_another_shape_ends_the_batch_rather_than_being_overtaken() -> None:
    waiting = queue(Waiting(1), Waiting(2, shapes=((5,),)), Waiting(3))

    assert [numbers(waiting.take(8, 0)[0]) for _ in range(3)] == [[1], [2], [3]]


def test_one_call_larger_than_a_batch_runs_alone() -> None:
    waiting = queue(Waiting(1, rows=2), Waiting(2, rows=9), Waiting(3))

    assert [numbers(waiting.take(4, 0)[0]) for _ in range(3)] == [[1], [2], [3]]


def test_a_call_runs_at_its_deadline_and_not_after_it() -> None:
    waiting = queue(Waiting(1, deadline_ns=10), Waiting(2, deadline_ns=11), Waiting(3, deadline_ns=0))

    batch, spared = waiting.take(8, 11)

    assert (numbers(batch), numbers(spared)) == ([2, 3], [1])


def test_the_oldest_is_that_of_the_first_class_that_has_any() -> None:
    waiting = queue(Waiting(1, LATER, arrived_ns=1), Waiting(2, 1, arrived_ns=5), Waiting(3, 1, arrived_ns=6))

    assert waiting.oldest_ns() == 5
    assert queue().oldest_ns() is None


def test_only_work_that_is_not_for_later_is_urgent() -> None:
    assert not queue(Waiting(1, LATER)).urgent
    assert queue(Waiting(1, LATER), Waiting(2, 1)).urgent


class EveryCall(RuleBasedStateMachine):
    """Random pushes, cancellations, times and takes against a plain list of what waits."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: CallQueue[Waiting] = CallQueue()
        self.model: list[Waiting] = []
        self.now = 0
        self.count = 0

    def spare(self, call: Waiting) -> bool:
        return call.cancelled or 0 < call.deadline_ns < self.now

    def ordered(self) -> list[Waiting]:
        return sorted(self.model, key=lambda call: (call.priority, call.number))

    def leave(self, calls: list[Waiting]) -> None:
        for call in calls:
            assert call in self.model, "a call left twice"
            self.model.remove(call)

    @rule(
        priority=st.integers(0, CLASSES - 1),
        rows=st.integers(1, 5),
        shape=st.sampled_from([((4,),), ((5,),)]),
        patience=st.sampled_from([0, 1, 5]),
    )
    def push(self, priority: int, rows: int, shape: Shapes, patience: int) -> None:
        self.count += 1
        deadline = self.now + patience if patience else 0
        call = Waiting(self.count, priority, rows, shape, self.now, deadline)
        self.model.append(call)
        self.queue.push(call)

    @rule(passed=st.integers(1, 3))
    def pass_time(self, passed: int) -> None:
        self.now += passed

    @precondition(lambda self: self.model)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        self.model[which % len(self.model)].cancelled = True

    @rule(rows_max=st.integers(1, 8), later=st.booleans())
    def take(self, rows_max: int, later: bool) -> None:
        runnable = [call for call in self.ordered() if not self.spare(call) and (later or call.priority < LATER)]

        batch, spared = self.queue.take(rows_max, self.now, later=later)

        assert batch == runnable[: len(batch)]  # In order, and none passed over.
        assert bool(batch) == bool(runnable)
        assert all(self.spare(call) for call in spared)
        assert len({call.shapes for call in batch}) <= 1
        assert len(batch) == 1 or sum(call.rows for call in batch) <= rows_max
        assert len({call.priority == LATER for call in batch}) <= 1
        rest = runnable[len(batch) :]
        if batch and rest and (rest[0].priority == LATER) == (batch[0].priority == LATER):
            full = sum(call.rows for call in batch) + rest[0].rows > rows_max
            assert full or rest[0].shapes != batch[0].shapes, "the batch could have been larger"
        self.leave([*batch, *spared])

    @rule()
    def expire(self) -> None:
        gone = self.queue.expired(self.now)

        assert set(numbers(gone)) == {call.number for call in self.model if self.spare(call)}
        self.leave(gone)

    @rule()
    def clear(self) -> None:
        assert self.queue.clear() == self.ordered()
        self.model = []

    @invariant()
    def the_counts_are_right(self) -> None:
        assert len(self.queue) == len(self.model)
        assert self.queue.waiting_rows == sum(call.rows for call in self.model)
        assert self.queue.urgent == any(call.priority < LATER for call in self.model)
        assert self.queue.oldest_ns() == (self.ordered()[0].arrived_ns if self.model else None)


TestEveryCall = EveryCall.TestCase


@given(st.lists(st.integers(0, 2), max_size=20))
def test_what_expires_keeps_the_order_of_the_others(fates: list[int]) -> None:
    calls = [
        Waiting(number, cancelled=fate == 1, deadline_ns=1 if fate == 2 else 0) for number, fate in enumerate(fates)
    ]
    waiting = queue(*calls)

    gone = waiting.expired(2)

    assert numbers(gone) == [number for number, fate in enumerate(fates) if fate]
    assert numbers(waiting.take(99, 2)[0]) == [number for number, fate in enumerate(fates) if not fate]
