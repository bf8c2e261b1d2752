"""From outputs to answers: transforms, labels, boxes, text and rules, against plain reference computations."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.pipelines import load, manifest, tensor
from muster_agent.pipeline.boxes import suppress
from muster_agent.pipeline.pipeline import LoadedPipeline
from muster_agent.pipeline.value import Context, FinishFailed, PipelineUnloadable, View
from muster_shared import pipeline as p
from muster_shared.bundle import TensorSpec

LABELS = ("cat", "dog", "owl", "pig")
BYTES = (p.Window(head_bytes=2, tail_bytes=2),)
PICTURE = (p.DecodeImage(), p.Resize(height=100, width=100), p.Layout(order="NHWC"))


def finisher(
    steps: Sequence[p.FinishStep], outputs: Sequence[TensorSpec], labels: tuple[str, ...] = LABELS
) -> LoadedPipeline:
    return load(
        manifest(BYTES, [tensor("INT32", -1, 4)], steps, outputs, accepts=("application/octet-stream",), labels=labels)
    )


def finish(
    steps: Sequence[p.FinishStep], outputs: Mapping[str, npt.NDArray[np.generic]], labels: tuple[str, ...] = LABELS
) -> dict[str, object]:
    specs = [tensor(_datatype(array), -1, *array.shape[1:], name=name) for name, array in outputs.items()]
    return finisher(steps, specs, labels).finish(outputs, Context("application/octet-stream", 4))


def one(*scores: float) -> dict[str, npt.NDArray[np.generic]]:
    return {"y": np.array([scores], np.float32)}


def _datatype(array: npt.NDArray[np.generic]) -> str:
    return {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}[str(array.dtype)]


def test_softmax_and_the_best_labels() -> None:
    answer = finish([p.Softmax(), p.TopK(k=2)], one(1000.0, 1001.0, 998.0, 0.0))

    exact = [math.exp(x) for x in (-1.0, 0.0, -3.0)]
    assert answer == {
        "classes": [
            {"label": "dog", "index": 1, "score": pytest.approx(exact[1] / sum(exact), rel=1e-6)},
            {"label": "cat", "index": 0, "score": pytest.approx(exact[0] / sum(exact), rel=1e-6)},
        ]
    }


def test_sigmoid_does_not_overflow_at_either_end() -> None:
    with np.errstate(all="raise", under="ignore"):
        answer = finish([p.Sigmoid(), p.Values()], one(-1000.0, 0.0, 1000.0, 1.0))

    assert answer == {"values": [0.0, 0.5, 1.0, pytest.approx(1 / (1 + math.exp(-1)), rel=1e-6)]}


def test_equal_scores_keep_the_order_of_the_labels() -> None:
    answer = finish([p.TopK(k=4, score_min=0.3)], one(0.3, 0.4, 0.3, 0.2))

    assert [each["label"] for each in answer["classes"]] == ["dog", "cat", "owl"]  # type: ignore[attr-defined]


def test_unsigned_scores_are_ranked_as_numbers() -> None:
    outputs = {"y": np.array([[3, 250, 0, 7]], np.uint8)}

    answer = finish([p.TopK(k=2), p.Dequantise(scale=1 / 256), p.Label()], outputs)

    assert [each["index"] for each in answer["classes"]] == [1, 3]  # type: ignore[attr-defined]
    assert (answer["label"], answer["score"]) == ("dog", 250 / 256)


@pytest.mark.parametrize(
    ("scores", "label"),
    [
        ((0.6, 0.4, 0.0, 0.0), "cat"),
        ((0.4, 0.3, 0.3, 0.0), "unknown"),
        ((0.2, 0.8, 0.0, 0.0), "unknown"),
        ((0.1, 0.9, 0.0, 0.0), "hound"),
        ((math.nan, 0.9, 0.0, 0.0), "unknown"),
    ],
)
def test_a_label_below_its_own_threshold_is_unknown(scores: tuple[float, ...], label: str) -> None:
    step = p.Label(threshold=0.5, thresholds={"dog": 0.9 - 1e-6}, rename={"dog": "hound"})

    assert finish([step], one(*scores))["label"] == label


def test_one_step_can_read_what_another_left_beside_the_output() -> None:
    outputs = {"y": np.array([[[0.1, 0.2, 9.0], [0.3, 0.4, 9.0]]], np.float32)}
    steps = [
        p.Slice(axis=1, start=0, stop=2, into="pairs"),
        p.Permute(axes=(1, 0), output="pairs", into="turned"),
        p.Values(output="turned", field="turned", decimals=1),
        p.Slice(axis=1, start=2, stop=3, squeeze=True, output="y", into="nines"),
        p.Values(output="nines", field="nines"),
    ]

    assert finish(steps, outputs) == {"turned": [[0.1, 0.3], [0.2, 0.4]], "nines": [9.0, 9.0]}


def test_the_rows_of_a_sound_are_pooled() -> None:
    sound = (p.DecodeWav(rate_hz=8000), p.Frame(length=80, hop=80))
    for how, wanted in (("mean", "dog"), ("max", "cat")):
        steps = [p.Pool(how=how), p.Label()]  # type: ignore[arg-type]
        outputs = [tensor("FP32", -1, 2, name="y")]
        each = load(manifest(sound, [tensor("FP32", -1, 80)], steps, outputs, ("audio/wav",), ("cat", "dog")))

        answer = each.finish({"y": np.array([[0.9, 0.1], [0, 0.7], [0, 0.7]], np.float32)}, Context("audio/wav", 4))

        assert answer["label"] == wanted


def test_an_output_of_another_shape_is_the_release_s_fault_and_says_so() -> None:
    each = finisher([p.TopK()], [tensor("FP32", -1, 4, name="y")])

    with pytest.raises(FinishFailed, match=r"output 'y' has shape \[2, 4\], and one request gives \[4\]"):
        each.finish({"y": np.zeros((2, 4), np.float32)}, Context("application/octet-stream", 4))


def detector(step: p.Boxes, *outputs: TensorSpec) -> LoadedPipeline:
    return load(manifest(PICTURE, [tensor("UINT8", -1, 100, 100, 3)], [step], outputs, labels=LABELS))


def test_boxes_come_back_to_the_image_as_it_was_sent() -> None:
    step = p.Boxes(boxes="b", scores="s", format="cxcywh", units="shares")
    each = detector(step, tensor("FP32", -1, -1, 4, name="b"), tensor("FP32", -1, -1, 4, name="s"))
    # Sent at 400 x 300, scaled by a quarter into the middle of 100 x 100: 12.5 rows of filling above, 12 in pixels.
    view = View(400, 300, scale_x=4.0, scale_y=4.0, left=0.0, top=-48.0, seen_width=100, seen_height=100)
    boxes = np.array([[[0.5, 0.5, 0.2, 0.1], [0.5, 0.5, 0.2, 0.11], [0.0, 0.5, 0.2, 0.2]]], np.float32)
    scores = np.array([[[0, 0.9, 0, 0], [0, 0.8, 0.1, 0], [0.1, 0.2, 0.3, 0.26]]], np.float32)

    answer = each.finish({"b": boxes, "s": scores}, Context("image/png", 9, view))

    assert answer == {
        "boxes": [
            {
                "label": "dog",
                "index": 1,
                "score": pytest.approx(0.9),
                "box": {"left": 160.0, "top": 132.0, "width": 80.0, "height": 40.0},
            },
            {
                "label": "owl",
                "index": 2,
                "score": pytest.approx(0.3),
                "box": {"left": 0.0, "top": 112.0, "width": 40.0, "height": 80.0},
            },
        ]
    }


@pytest.mark.parametrize("place", ["centre", "corner"])
def test_a_box_around_a_mark_in_the_seen_image_lies_around_it_in_the_sent_one(place: str) -> None:
    """The whole geometry at once: a mark is found in the tensor, and must come back to where it was painted."""
    import io

    from PIL import Image

    sent = np.zeros((300, 400, 3), np.uint8)
    sent[180:220, 240:300] = 255
    buffer = io.BytesIO()
    Image.fromarray(sent).save(buffer, "PNG")
    steps = (
        p.DecodeImage(),
        p.Region(left=0.25, right=0.95, top=0.2),
        p.ResizeShorter(side=120),
        p.Crop(height=110, width=118),
        p.Letterbox(height=90, width=64, fill=0, place=place),  # type: ignore[arg-type]
        p.Layout(order="NHWC"),
    )
    outputs = [tensor("FP32", -1, 1, 4, name="b"), tensor("FP32", -1, 1, name="s")]
    wanted = [tensor("UINT8", -1, 90, 64, 3)]
    each = load(manifest(steps, wanted, [p.Boxes(boxes="b", scores="s", iou_max=1.0)], outputs, labels=LABELS))

    prepared = each.prepare(buffer.getvalue(), "image/png")
    seen = np.argwhere(prepared.arrays["x"][0, :, :, 0] > 127)
    (top, left), (bottom, right) = seen.min(axis=0), seen.max(axis=0) + 1
    found = np.array([[[left, top, right, bottom]]], np.float32)
    answer = each.finish({"b": found, "s": np.ones((1, 1), np.float32)}, prepared.context)

    box = answer["boxes"][0]["box"]  # type: ignore[index]
    pixel = max(prepared.context.view.scale_x, prepared.context.view.scale_y)  # type: ignore[union-attr]
    assert box["left"] == pytest.approx(240, abs=pixel)
    assert box["top"] == pytest.approx(180, abs=pixel)
    assert box["width"] == pytest.approx(60, abs=2 * pixel)
    assert box["height"] == pytest.approx(40, abs=2 * pixel)


def test_classes_and_objectness_may_come_as_tensors_of_their_own() -> None:
    step = p.Boxes(boxes="b", scores="s", classes="c", objectness="o", format="yxyx", score_min=0.5)
    names = {"b": (-1, -1, 4), "s": (-1, -1), "c": (-1, -1), "o": (-1, -1)}
    each = detector(step, *(tensor("FP32", *shape, name=name) for name, shape in names.items()))
    outputs = {
        "b": np.array([[[10, 20, 30, 50], [10, 20, 30, 50], [60, 60, 70, 70]]], np.float32),
        "s": np.array([[0.9, 0.8, 0.9]], np.float32),
        "c": np.array([[3, 2, 0]], np.float32),
        "o": np.array([[1, 1, 0.5]], np.float32),
    }

    answer = each.finish(outputs, Context("image/png", 9, View(100, 100, seen_width=100, seen_height=100)))

    found = answer["boxes"]
    assert isinstance(found, list)
    assert [each["label"] for each in found] == ["pig", "owl"]  # Of two classes: neither suppresses the other.
    assert found[0]["box"] == {"left": 20.0, "top": 10.0, "width": 30.0, "height": 20.0}


def test_boxes_and_scores_without_a_number_are_no_detections() -> None:
    each = detector(p.Boxes(boxes="b", scores="s"), tensor("FP32", -1, 3, 4, name="b"), tensor("FP32", -1, 3, name="s"))
    boxes = np.array([[[1, 1, np.nan, 5], [1, 1, 5, 5], [2, 2, 9, 9]]], np.float32)
    scores = np.array([[0.9, np.nan, 0.5]], np.float32)

    answer = each.finish({"b": boxes, "s": scores}, Context("image/png", 9, View(100, 100)))

    assert [found["score"] for found in answer["boxes"]] == [0.5]  # type: ignore[attr-defined]


def test_a_class_that_has_no_label_is_the_release_s_fault() -> None:
    step = p.Boxes(boxes="b", scores="s", classes="c")
    each = detector(
        step,
        tensor("FP32", -1, 1, 4, name="b"),
        tensor("FP32", -1, 1, name="s"),
        tensor("INT64", -1, 1, name="c"),
    )
    outputs = {"b": np.ones((1, 1, 4), np.float32), "s": np.ones((1, 1), np.float32), "c": np.array([[4]])}

    with pytest.raises(FinishFailed, match=r"step 1 \(boxes\): a class is outside 0..3"):
        each.finish(outputs, Context("image/png", 9, View(9, 9)))


CORNERS = st.tuples(*[st.integers(-5, 30)] * 4).map(lambda c: (c[0], c[1], c[0] + c[2], c[1] + c[3]))


@settings(max_examples=200, deadline=None)
@given(
    boxes=st.lists(CORNERS, max_size=25),
    groups=st.lists(st.integers(0, 2), min_size=25, max_size=25),
    iou_max=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    count_max=st.integers(1, 30),
)
def test_suppression_is_the_textbook_s_two_loops(
    boxes: list[tuple[int, ...]], groups: list[int], iou_max: float, count_max: int
) -> None:
    kept: list[int] = []
    for index in range(len(boxes)):
        rivals = [rival for rival in kept if groups[rival] == groups[index]]
        if len(kept) < count_max and all(_iou(boxes[index], boxes[rival]) <= iou_max for rival in rivals):
            kept.append(index)

    array = np.array(boxes, np.float32).reshape(-1, 4)
    actual = suppress(array, np.array(groups[: len(boxes)], np.int64), iou_max, count_max)

    assert actual.tolist() == kept


def _iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    def area(c: Sequence[int]) -> int:
        return max(0, c[2] - c[0]) * max(0, c[3] - c[1])

    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / (area(a) + area(b) - shared) if shared else 0.0


def rows(path: str, symbols: str) -> npt.NDArray[np.float32]:
    """Return [1, time, symbols]: 0.9 at each symbol of `path`."""
    table = np.full((1, len(path), len(symbols)), 0.01, np.float32)
    for time, symbol in enumerate(path):
        table[0, time, symbols.index(symbol)] = 0.9
    return table


def decoded(table: npt.NDArray[np.float32], blank: int, labels: tuple[str, ...]) -> dict[str, object]:
    picture = (p.DecodeImage(), p.Resize(height=8, width=8), p.Layout(order="NHWC"))
    outputs = [tensor("FP32", -1, -1, table.shape[2], name="y")]
    steps = [p.CtcGreedy(blank=blank)]
    each = load(manifest(picture, [tensor("UINT8", -1, 8, 8, 3)], steps, outputs, labels=labels))
    return each.finish({"y": table}, Context("image/png", 9))


@pytest.mark.parametrize(
    ("path", "text"), [("--hhe-ll-lloo--", "hello"), ("h", "h"), ("---", ""), ("hh-hh", "hh"), ("hehe", "hehe")]
)
def test_repeats_are_merged_and_blanks_dropped(path: str, text: str) -> None:
    answer = decoded(rows(path, "-helo"), 0, tuple("helo"))

    assert answer == {"text": text, "score": pytest.approx(0.9 if text else 0.0)}


def test_the_blank_may_be_one_of_the_labels_and_stand_anywhere() -> None:
    assert decoded(rows("aab_b", "ab_"), 2, ("a", "b", "_"))["text"] == "abb"
    assert decoded(rows("aab_b", "ab_"), 2, ("a", "b"))["text"] == "abb"


def ruled(*rules: p.Rule, scores: tuple[float, ...] = (0.1, 0.7, 0.15, 0.05)) -> dict[str, object]:
    return finish([p.Label(), p.TopK(k=2), p.Rules(rules=rules)], one(*scores))


def test_rules_add_fields_and_flags() -> None:
    answer = ruled(
        p.Rule(name="is_pet", when='label in ["cat", "dog"]'),
        p.Rule(name="margin", when="classes[0].score - classes[1].score"),
        p.Rule(name="names", when="classes.map(c, c.label)"),
        p.Rule(name="doubtful", when="score < 0.8", effect="flag"),
        p.Rule(name="tiny", when="input.bytes < 4", effect="flag"),
    )

    assert answer["is_pet"] is True
    assert answer["margin"] == pytest.approx(0.55)
    assert answer["names"] == ["dog", "owl"]
    assert answer["flags"] == ["doubtful"]


def test_a_rejected_answer_gives_nothing_but_the_reason() -> None:
    answer = ruled(
        p.Rule(name="pet", when="true", effect="flag"),
        p.Rule(name="unsure", when="score < 0.8", effect="reject", message="Take the picture again."),
    )

    assert answer == {"rejected": {"rule": "unsure", "message": "Take the picture again."}}


def test_nothing_follows_a_rejection() -> None:
    rules = p.Rules(rules=(p.Rule(name="no", when="true", effect="reject"),))

    assert finish([p.Label(), rules, p.TopK()], one(1, 0, 0, 0)) == {"rejected": {"rule": "no", "message": ""}}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (p.Rule(name="r", when="lable == 'cat'"), "undeclared reference to 'lable'"),
        (p.Rule(name="r", when="label > 1"), "no matching overload"),
        (p.Rule(name="r", when="score", effect="flag"), "gives DOUBLE; flag wants BOOL"),
        (p.Rule(name="r", when="("), "does not compile"),
        (p.Rule(name="r", when="open('/etc/passwd')"), "undeclared reference to 'open'"),
        (p.Rule(name="r", when="true\n"), "longer than one line"),
        (p.Rule(name="r", when="(" * 200 + "1" + ")" * 200), "does not compile"),
        (p.Rule(name="r", when="[label]" + ".map(a, a + a)" * 30), "30 comprehensions"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_before_any_request(rule: p.Rule, words: str) -> None:
    with pytest.raises(PipelineUnloadable, match="rule r") as refused:
        ruled(rule)

    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (p.Rule(name="r", when="classes[9].score"), "step 3 (rules): rule r cannot be evaluated"),
        (p.Rule(name="r", when="1 / (size(classes) - 2)"), "divide by zero"),
        (p.Rule(name="r", when="input.bytes", effect="flag"), "gives no truth value"),
        (p.Rule(name="r", when="timestamp('2026-01-01T00:00:00Z')"), ""),
    ],
)
def test_a_rule_that_fails_on_an_answer_fails_it(rule: p.Rule, words: str) -> None:
    if not words:
        assert ruled(rule)["r"] is not None  # A time has a form in JSON.
        return

    with pytest.raises(FinishFailed) as failed:
        ruled(rule)

    assert words in str(failed.value)


def test_a_rule_that_goes_through_too_much_is_stopped() -> None:
    numbers = {"y": np.ones((1, 3000), np.float32)}
    rule = p.Rule(name="r", when="values.all(a, values.all(b, a >= b))")

    with pytest.raises(FinishFailed, match="Iteration budget exceeded"):
        finish([p.Values(), p.Rules(rules=(rule,))], numbers)


def test_a_rule_cannot_answer_with_more_than_an_answer_holds() -> None:
    rule = p.Rule(name="r", when="values.map(a, values.filter(b, b == a))")

    with pytest.raises(FinishFailed, match=r"gives \d+ bytes; the limit is 65536"):
        finish([p.Values(), p.Rules(rules=(rule,))], {"y": np.full((1, 95), 1.0, np.float32) / 3})


def test_threads_share_compiled_rules_without_mixing_their_answers() -> None:
    rule = p.Rule(name="text", when='label + " " + string(score)')
    each = finisher([p.Label(), p.Rules(rules=(rule,))], [tensor("FP32", -1, 4, name="y")])

    def answer(number: int) -> object:
        scores = np.zeros((1, 4), np.float32)
        scores[0, number % 4] = number
        return each.finish({"y": scores}, Context("application/octet-stream", 4))["text"]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer, range(1, 801)))

    assert together == [f"{LABELS[number % 4]} {number}" for number in range(1, 801)]


def test_a_field_of_one_rule_is_seen_by_the_next_step_but_not_by_its_neighbours() -> None:
    first = p.Rules(rules=(p.Rule(name="pet", when='label == "cat"'),))
    second = p.Rules(rules=(p.Rule(name="wild", when="!pet"), p.Rule(name="seen", when="size(flags) == 0")))

    answer = finish([p.Label(), first, second], one(0, 1, 0, 0))

    assert (answer["pet"], answer["wild"], answer["seen"], answer["flags"]) == (False, True, True, [])
    with pytest.raises(PipelineUnloadable, match="undeclared reference to 'pet'"):
        finish([p.Label(), p.Rules(rules=(*first.rules, *second.rules))], one(0, 1, 0, 0))
