"""A candidate beside the release that serves: what counts as a disagreement, and what never reaches a caller."""

import sys

import numpy as np
import pytest

from muster_agent.core.split import Mode, Split
from muster_agent.engines.port import Array, InferenceFailed
from muster_agent.serving.call import Batch, Call, Priority
from muster_agent.serving.trial import ELEMENTS_MAX, IN_FLIGHT_MAX, Shadow, Trial, TrialUnfit, compare
from muster_shared.bundle import Golden, Manifest, TensorSpec, Variant
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName, Sha256

GOLDEN = Golden(file="golden.npz", atol=1e-3, rtol=1e-3)
SHADOW = Split(Mode.SHADOW, Sha256("ab" * 32), 1.0)
IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 4))
SCORES = TensorSpec(name="scores", datatype="FP32", shape=(-1, 3))
BOX = TensorSpec(name="box", datatype="FP32", shape=(-1, 2))


def manifest(
    version: str,
    inputs: tuple[TensorSpec, ...] = (IMAGE,),
    outputs: tuple[TensorSpec, ...] = (SCORES,),
    labels: tuple[str, ...] = (),
) -> Manifest:
    return Manifest(
        model=ModelName("digits"),
        version=version,
        release=1,
        inputs=inputs,
        outputs=outputs,
        files=(),
        variants=(Variant(name="cpu", runtime="onnxruntime", precision="fp32", files=()),),
        golden=GOLDEN,
        labels=labels,
    )


class Request(Call):
    """A caller's request."""

    def settle(self) -> None:
        raise AssertionError("a trial settles no caller's request")


def answered(*outputs: Array, rows: int = 1, engine_ns: int = 1_000_000) -> Request:
    call = Request((bytes(16 * rows),), ((4,),), rows)
    call.batch = Batch(outputs, engine_ns, rows_axis=True)
    return call


def trial(primary: Manifest | None = None, candidate: Manifest | None = None, split: Split = SHADOW) -> Trial:
    return Trial(split, primary or manifest("1.0.0"), candidate or manifest("2.0.0"), lambda: 0.5)


def mirrored(trial: Trial, call: Call) -> Shadow:
    shadow = trial.mirror(call)
    assert shadow is not None
    return shadow


def answer(shadow: Shadow, *outputs: Array, engine_ns: int = 2_000_000) -> None:
    shadow.batch = Batch(outputs, engine_ns, rows_axis=True)
    shadow.settle()


def f32(*rows: list[float]) -> Array:
    return np.array(rows, np.float32)


def test_rows_with_the_same_class_agree_however_much_their_scores_differ() -> None:
    found = compare([f32([0.1, 0.9], [0.8, 0.2])], [f32([0.4, 0.6], [0.3, 0.7])], 2, GOLDEN)

    assert (found.rows, found.disagreed) == (2, 1)
    assert found.worst_abs == pytest.approx(0.5)


def test_an_exact_tie_allows_either_class() -> None:
    assert compare([f32([0.5, 0.5, 0.0])], [f32([0.1, 0.9, 0.0])], 1, GOLDEN).disagreed == 0
    assert compare([f32([0.5, 0.5, 0.0])], [f32([0.1, 0.0, 0.9])], 1, GOLDEN).disagreed == 1


def test_an_output_that_is_no_class_scores_is_held_to_the_golden_tolerance() -> None:
    within = compare([f32([1.0], [1.0])], [f32([1.0015], [1.0])], 2, GOLDEN)
    outside = compare([f32([1.0], [1.0])], [f32([1.0025], [1.0])], 2, GOLDEN)

    assert (within.disagreed, outside.disagreed) == (0, 1)


def test_scores_that_are_not_as_many_as_the_labels_are_no_classes() -> None:
    one, other = [f32([0.1, 0.9])], [f32([0.2, 0.8])]

    assert compare(one, other, 1, GOLDEN, labels=2).disagreed == 0
    assert compare(one, other, 1, GOLDEN, labels=10).disagreed == 1


def test_a_nan_and_another_infinity_are_disagreements_with_a_finite_difference() -> None:
    for want, got in ((1.0, np.nan), (np.nan, np.nan), (1.0, np.inf), (-np.inf, np.inf)):
        found = compare([f32([want])], [f32([got])], 1, GOLDEN)

        assert found.disagreed == 1
        assert found.worst_abs == sys.float_info.max

    assert compare([f32([np.inf])], [f32([np.inf])], 1, GOLDEN).disagreed == 0


def test_another_shape_disagrees_in_every_row() -> None:
    found = compare([f32([1.0, 2.0], [3.0, 4.0])], [f32([1.0], [3.0])], 2, GOLDEN)

    assert found.disagreed == 2


def test_strings_agree_when_they_are_equal() -> None:
    want, got = np.array([[b"a"], [b"b"]], dtype=object), np.array([[b"a"], [b"c"]], dtype=object)

    assert compare([want], [got], 2, GOLDEN).disagreed == 1


def test_of_a_large_answer_only_the_first_rows_are_compared() -> None:
    want = np.zeros((64, ELEMENTS_MAX // 16), np.float32)
    got = want.copy()
    got[0, 1] = got[60, 1] = 1.0

    found = compare([want], [got], 64, GOLDEN, labels=3)

    assert (found.rows, found.disagreed) == (16, 1)


def test_one_huge_row_is_compared_in_its_beginning() -> None:
    want = np.zeros((1, 2, ELEMENTS_MAX), np.float32)
    got = want.copy()
    got[0, 0, 0] = 1.0

    found = compare([want], [got], 1, GOLDEN)

    assert (found.rows, found.disagreed) == (1, 1)


def test_a_shadow_is_compared_and_timed_and_changes_nothing_of_the_answer() -> None:
    under_test = trial()
    scores = f32([0.1, 0.9, 0.0], [0.8, 0.2, 0.0])
    before = scores.copy()
    call = answered(scores, rows=2)

    shadow = mirrored(under_test, call)
    answer(shadow, f32([0.1, 0.9, 0.0], [0.0, 0.2, 0.8]))
    at = under_test.snapshot()

    assert shadow.priority is Priority.LATER
    assert (at.compared, at.disagreed, at.agreement, at.errors) == (2, 1, 0.5, 0)
    assert at.primary.quantile_ms(0.5) == pytest.approx(1.0, rel=0.023)
    assert at.candidate_latency.quantile_ms(0.5) == pytest.approx(2.0, rel=0.023)
    assert np.array_equal(scores, before)
    assert call.error is None


def test_outputs_are_compared_by_name() -> None:
    under_test = trial(manifest("1.0.0", outputs=(SCORES, BOX)), manifest("2.0.0", outputs=(BOX, SCORES)))
    scores, box = f32([0.1, 0.9, 0.0]), f32([3.0, 4.0])

    answer(mirrored(under_test, answered(scores, box)), box, scores)

    assert under_test.snapshot().worst_abs == 0.0
    assert under_test.snapshot().agreement == 1.0


def test_only_the_engines_failures_count_against_the_candidate() -> None:
    under_test = trial()
    call = answered(f32([0.0, 0.0, 1.0]))

    failing = mirrored(under_test, call)
    failing.error = InferenceFailed("the engine failed")
    failing.settle()
    crowded = mirrored(under_test, call)
    crowded.error = MusterError("the queue is full")
    crowded.settle()
    dropped = mirrored(under_test, call)
    dropped.drop()

    at = under_test.snapshot()

    assert (at.errors, at.skipped, at.compared, at.agreement) == (1, 2, 0, None)


def test_shadows_beyond_the_bound_are_skipped_and_their_places_come_back() -> None:
    under_test = trial()
    call = answered(f32([0.0, 0.0, 1.0]))
    under_way = [mirrored(under_test, call) for _ in range(IN_FLIGHT_MAX)]

    assert under_test.mirror(call) is None
    answer(under_way[0], f32([0.0, 0.0, 1.0]))
    under_way[0].settle()

    assert under_test.mirror(call) is not None
    assert under_test.mirror(call) is None
    assert under_test.snapshot().skipped == 2


def test_a_shadow_keeps_its_own_copy_of_what_the_caller_may_write_to_again() -> None:
    region = bytearray(range(16))
    call = answered(f32([0.0, 0.0, 1.0]))
    call.tensors = (memoryview(region),)

    shadow = mirrored(trial(), call)
    region[:] = bytes(16)

    assert shadow.tensors == (bytes(range(16)),)


def test_a_candidate_with_other_inputs_cannot_be_a_shadow_but_can_be_a_canary() -> None:
    other = manifest("2.0.0", inputs=(TensorSpec(name="image", datatype="UINT8", shape=(-1, 4)),))

    with pytest.raises(TrialUnfit, match="UINT8"):
        trial(candidate=other)

    canary = trial(candidate=other, split=Split(Mode.CANARY, SHADOW.candidate, 0.5))
    canary.answered(1_000_000, by_candidate=False)
    canary.answered(2_000_000, by_candidate=True)
    canary.failed()
    at = canary.snapshot()
    assert (at.primary.count, at.candidate_latency.count, at.errors) == (1, 1, 1)


def test_a_candidate_without_a_common_output_cannot_be_a_shadow() -> None:
    with pytest.raises(TrialUnfit, match="no output"):
        trial(candidate=manifest("2.0.0", outputs=(BOX,)))


def test_requests_without_a_key_are_drawn() -> None:
    assert trial(split=Split(Mode.CANARY, SHADOW.candidate, 0.6)).chosen("")
    assert not trial(split=Split(Mode.CANARY, SHADOW.candidate, 0.4)).chosen("")
