"""True labels for past answers: the right row is judged, once, against the release that gave it."""

from collections.abc import Sequence

import numpy as np
import pytest

from muster_agent.engines.port import Array, InferenceFailed
from muster_agent.serving.call import Batch, Call
from muster_agent.serving.feedback import (
    ROWS_MAX,
    SCORES_BYTES_MAX,
    FeedbackInvalid,
    FeedbackRing,
    FeedbackUnmatched,
)
from muster_agent.serving.stats import WindowStats

LABELS = ("cat", "dog", "fox")


class Answered(Call):
    def settle(self) -> None:
        raise AssertionError("feedback settles nobody")


def answers(numbers: Sequence[int], chosen: Sequence[Sequence[int]], *, ids: Sequence[str] = ()) -> list[Answered]:
    """Calls of one batch with these numbers, whose rows came out as these classes of LABELS."""
    scores = np.eye(3, dtype=np.float32)[[index for rows in chosen for index in rows]]
    batch, start = Batch((scores,), 0, rows_axis=True), 0
    calls = []
    for at, (number, rows) in enumerate(zip(numbers, chosen, strict=True)):
        call = Answered((), (), len(rows), request_id=ids[at] if ids else "")
        call.number, call.batch, call.start = number, batch, start
        start += len(rows)
        calls.append(call)
    return calls


def remember(ring: FeedbackRing, calls: Sequence[Call], labels: tuple[str, ...] = LABELS) -> WindowStats:
    stats = WindowStats()
    ring.remember("m", calls, labels, stats)
    return stats


def answered(output: Array) -> list[Call]:
    call = Answered((), (), len(output) if output.ndim else 1)
    call.number, call.batch = 1, Batch((output,), 0, rows_axis=output.ndim > 0)
    return [call]


def test_each_call_of_a_batch_is_judged_by_its_own_row() -> None:
    ring = FeedbackRing()
    stats = remember(ring, answers([7, 8, 9], [[0], [1], [2]]))

    right = [ring.label("m", number, [label]) for number, label in ((9, "fox"), (7, "dog"), (8, 1))]

    assert right == [(True,), (False,), (True,)]
    at = stats.snapshot()
    assert (at.labelled, at.right) == (3, 2)


@pytest.mark.parametrize("numbers", [[1, 5, 3], [5, 1, 3], [3, 2, 1], [1, 2, 9]])
def test_calls_that_did_not_run_in_the_order_of_their_numbers_keep_their_rows(numbers: list[int]) -> None:
    ring = FeedbackRing()
    remember(ring, answers(numbers, [[0], [1], [2]]))

    for number, index in zip(numbers, range(3), strict=True):
        assert ring.label("m", number, [index]) == (True,)
    for never in set(range(10)) - set(numbers):
        with pytest.raises(FeedbackUnmatched):
            ring.label("m", never, [0])


def test_a_caller_s_own_id_is_found_beside_numbers() -> None:
    ring = FeedbackRing()
    remember(ring, answers([1, 2], [[0, 2], [1]], ids=["mine", ""]))

    assert ring.label("m", "mine", ["cat", "dog"]) == (True, False)
    assert ring.label("m", 2, ["dog"]) == (True,)
    with pytest.raises(FeedbackUnmatched):
        ring.label("m", 1, ["cat"])


def test_a_call_without_an_answer_is_not_remembered() -> None:
    ring = FeedbackRing()
    calls = answers([1, 2, 4], [[0], [1], [2]])
    calls[1].error = InferenceFailed("late")
    remember(ring, calls)

    with pytest.raises(FeedbackUnmatched):
        ring.label("m", 2, ["dog"])


def test_an_answer_is_judged_once() -> None:
    ring = FeedbackRing()
    stats = remember(ring, answers([1], [[0]]))
    ring.label("m", 1, ["cat"])

    with pytest.raises(FeedbackUnmatched):
        ring.label("m", 1, ["cat"])

    assert stats.snapshot().labelled == 1


@pytest.mark.parametrize(
    ("truth", "labels"),
    [(["cat", "cat"], LABELS), ([], LABELS), ([3], LABELS), ([-1], LABELS), (["cat"], ()), (["9" * 5000], ())],
)
def test_labels_that_do_not_fit_are_refused_and_the_answer_stays(
    truth: list[str | int], labels: tuple[str, ...]
) -> None:
    ring = FeedbackRing()
    stats = remember(ring, answers([1], [[0]]), labels)

    with pytest.raises(FeedbackInvalid):
        ring.label("m", 1, truth)

    assert stats.snapshot().labelled == 0
    assert ring.label("m", 1, [0]) == (True,)


def test_a_class_that_the_release_does_not_know_is_wrong() -> None:
    ring = FeedbackRing()
    remember(ring, answers([1], [[0]]))

    assert ring.label("m", 1, ["a class of its successor"]) == (False,)


@pytest.mark.parametrize(
    "output",
    [
        np.ones((1, 1), np.float32),
        np.ones(3, np.float32),
        np.ones((1, 2, 3), np.float32),
        np.array(1, np.float32),
        np.array([[b"a", b"b"]], object),
        np.ones((1, 2), bool),
        np.ones((ROWS_MAX + 1, 2), np.float32),
    ],
)
def test_what_is_no_class_scores_is_not_remembered(output: Array) -> None:
    ring = FeedbackRing()
    remember(ring, answered(output))

    with pytest.raises(FeedbackUnmatched):
        ring.label("m", 1, [0])


def test_of_many_scores_only_the_chosen_class_is_kept() -> None:
    ring = FeedbackRing()
    scores = np.zeros((2, SCORES_BYTES_MAX), np.float32)
    scores[0, 4000] = scores[1, 17] = 1
    remember(ring, answered(scores), ())

    assert ring.label("m", 1, [4000, "16"]) == (True, False)


def test_the_oldest_answers_are_forgotten_first_and_models_do_not_crowd_each_other_out() -> None:
    ring = FeedbackRing(remembered_max=3)
    ring.remember("other", answers([1], [[0]]), LABELS, WindowStats())
    for number in range(1, 6):
        remember(ring, answers([number], [[0]]))

    for number in (1, 2):
        with pytest.raises(FeedbackUnmatched):
            ring.label("m", number, [0])
    for number in (3, 4, 5):
        assert ring.label("m", number, [0]) == (True,)
    assert ring.label("other", 1, [0]) == (True,)
