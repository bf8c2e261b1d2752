"""Sequences of a stateful model: one call in flight each, in order, each with the state that the one before left."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_agent.core.sequences import (
    SequenceBusy,
    SequenceId,
    SequenceInvalid,
    Sequences,
    SequencesFull,
    SequenceUnknown,
    Turn,
)

S = 1_000_000_000


def table(sequences_max: int = 4, idle_s: float = 10.0, waiting_max: int = 8) -> Sequences[str, int]:
    return Sequences(sequences_max, idle_s, waiting_max)


def started(sequences: Sequences[str, int], key: SequenceId = 7, now_ns: int = 0) -> Turn[str, int]:
    turn = sequences.submit(key, "first", now_ns, starts=True)
    assert turn is not None
    return turn


def test_a_sequence_begins_without_a_state_and_goes_on_with_the_one_it_left() -> None:
    sequences = table()

    first = started(sequences)
    sequences.finish(first, 41, 1)
    second = sequences.submit(7, "second", 2)

    assert first.state is None
    assert second is not None
    assert (second.call, second.state) == ("second", 41)


def test_a_second_request_waits_for_the_first_and_gets_its_state() -> None:
    sequences = table()
    first = started(sequences)

    assert sequences.submit(7, "second", 1) is None
    second = sequences.finish(first, 1, 2)

    assert second is not None
    assert (second.call, second.state) == ("second", 1)


def test_two_sequences_run_side_by_side() -> None:
    sequences = table()
    started(sequences, 7)

    other = sequences.submit("7", "other", 0, starts=True)

    assert other is not None, "a number and a text are two ids"


def test_a_request_of_a_sequence_that_was_not_started_is_told_to_start() -> None:
    with pytest.raises(SequenceUnknown, match="sequence_start"):
        table().submit(7, "call", 0)


def test_an_ended_sequence_is_forgotten() -> None:
    sequences = table()
    sequences.finish(started(sequences), 1, 0)

    last = sequences.submit(7, "last", 1, ends=True)
    assert last is not None
    sequences.finish(last, 2, 2)

    assert len(sequences) == 0
    with pytest.raises(SequenceUnknown):
        sequences.submit(7, "more", 3)


def test_after_an_end_that_still_waits_only_a_start_is_taken() -> None:
    sequences = table()
    first = started(sequences)
    sequences.submit(7, "last", 0, ends=True)

    with pytest.raises(SequenceUnknown):
        sequences.submit(7, "late", 0)
    assert sequences.submit(7, "again", 0, starts=True) is None

    last = sequences.finish(first, 1, 1)
    assert last is not None
    again = sequences.finish(last, 2, 2)
    assert again is not None
    assert (again.call, again.state) == ("again", None)


def test_a_start_begins_anew_what_is_under_way() -> None:
    sequences = table()
    sequences.finish(started(sequences), 41, 0)

    again = started(sequences)

    assert again.state is None
    assert len(sequences) == 1


def test_a_failed_call_leaves_the_state_as_it_was() -> None:
    sequences = table()
    sequences.finish(started(sequences), 41, 0)
    failing = sequences.submit(7, "failing", 0)
    assert failing is not None

    sequences.finish(failing, failing.state, 1)
    again = sequences.submit(7, "again", 2)

    assert again is not None
    assert again.state == 41


def test_one_that_is_idle_too_long_is_forgotten_and_one_that_runs_is_not() -> None:
    sequences = table(idle_s=10.0)
    sequences.finish(started(sequences, "idle"), 1, 0)
    running = started(sequences, "running")

    assert sequences.forget_idle(10 * S - 1) == 0
    assert sequences.forget_idle(10 * S) == 1

    with pytest.raises(SequenceUnknown):
        sequences.submit("idle", "call", 10 * S)
    assert sequences.submit("running", "call", 10 * S) is None
    assert sequences.finish(running, 1, 10 * S) is not None


def test_there_are_never_more_than_the_limit_and_an_idle_one_makes_room() -> None:
    sequences = table(sequences_max=2, idle_s=10.0)
    sequences.finish(started(sequences, 1), 1, 0)
    sequences.finish(started(sequences, 2, 4 * S), 1, 4 * S)

    with pytest.raises(SequencesFull) as full:
        sequences.submit(3, "call", 5 * S, starts=True)

    assert full.value.retry_after_s == 5
    assert sequences.submit(3, "call", 10 * S, starts=True) is not None


def test_the_requests_that_wait_in_one_sequence_are_bounded() -> None:
    sequences = table(waiting_max=2)
    started(sequences)
    sequences.submit(7, "second", 0)
    sequences.submit(7, "third", 0)

    with pytest.raises(SequenceBusy):
        sequences.submit(7, "fourth", 0)


@pytest.mark.parametrize("key", [0, -1, "", "x" * 129])
def test_what_cannot_be_an_id_is_refused(key: SequenceId) -> None:
    with pytest.raises(SequenceInvalid, match="sequence_id"):
        table().submit(key, "call", 0, starts=True)


@given(
    st.lists(
        st.tuples(st.sampled_from(["submit", "finish"]), st.integers(1, 3), st.booleans(), st.booleans()), max_size=60
    )
)
@settings(max_examples=300, deadline=None)
def test_each_sequence_runs_its_requests_in_order_one_at_a_time_with_the_right_state(
    steps: list[tuple[str, int, bool, bool]],
) -> None:
    sequences: Sequences[int, int] = Sequences(8, 1e6, 100)
    accepted: dict[int, deque[tuple[int, bool]]] = {key: deque() for key in (1, 2, 3)}
    running: dict[int, Turn[int, int]] = {}
    latest: dict[int, int | None] = dict.fromkeys(accepted)

    def runs(key: int, turn: Turn[int, int]) -> None:
        call, starts = accepted[key].popleft()
        assert key not in running
        assert turn.call == call
        assert turn.state == (None if starts else latest[key])
        running[key] = turn

    for number, (step, key, starts, ends) in enumerate(steps):
        if step == "submit":
            try:
                turn = sequences.submit(key, number, 0, starts=starts, ends=ends)
            except SequenceUnknown:
                assert not starts
                continue
            accepted[key].append((number, starts))
            assert (turn is None) == (key in running)
            if turn is not None:
                runs(key, turn)
        elif key in running:
            done = running.pop(key)
            latest[key] = done.call
            following = sequences.finish(done, done.call, 0)
            assert (following is None) == (not accepted[key])
            if following is not None:
                runs(key, following)
