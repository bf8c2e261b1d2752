"""True labels for past answers: what a request was answered with is remembered for a while, to be judged later.

Bounded: the oldest answers are forgotten first. No input is kept, only the class that each row came out as.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muster_agent.engines.port import Array
from muster_agent.serving.call import Call
from muster_agent.serving.stats import WindowStats
from muster_shared.errors import MusterError

REMEMBERED_MAX = 4096
ROWS_MAX = 1024  # Of one batch; a larger one is not remembered.
SCORES_BYTES_MAX = 4096  # Of one batch with more scores, only the chosen class of each row is kept.

Label = str | int


class FeedbackUnmatched(MusterError):
    """No answer under this request id is remembered: it is too old, was judged already, or has no classes."""


class FeedbackInvalid(MusterError):
    """The labels do not fit the answer."""


@dataclass(frozen=True, eq=False)
class _Answers:
    """The answers of one batch: which rows are whose. What they came out as is found when somebody asks."""

    output: Array  # Class scores [rows, classes], or of many classes only the chosen one of each row.
    classes: int
    labels: tuple[str, ...]
    stats: WindowStats  # Of the release that gave the answers, which may serve no more.
    first: int  # Numbers from here on, one row each; -1 when `rows` says it.
    count: int
    rows: Mapping[int | str, tuple[int, int]]  # (start, rows) by number or by the caller's own id.

    def find(self, key: int | str) -> tuple[int, int] | None:
        if self.first >= 0:
            return (key - self.first, 1) if isinstance(key, int) and 0 <= key - self.first < self.count else None
        return self.rows.get(key)


class FeedbackRing:
    """The latest answers of each model. Used on the serving loop only."""

    def __init__(self, remembered_max: int = REMEMBERED_MAX) -> None:
        """
        Args:
            remembered_max: Requests of each model, about.
        """
        self._remembered_max = remembered_max
        self._rings: dict[str, deque[_Answers]] = {}
        self._sizes: dict[str, int] = {}
        self._judged: OrderedDict[tuple[str, int | str], None] = OrderedDict()

    def remember(self, model: str, calls: Sequence[Call], labels: tuple[str, ...], stats: WindowStats) -> None:
        """Remember calls of one batch whose first output is class scores: numeric [rows, classes], two classes or more.

        It costs little more than a reference: most answers are never judged.
        """
        batch = calls[0].batch
        if batch is None:
            return
        output = batch.arrays[0]
        if output.ndim != 2 or output.dtype.kind not in "iuf" or output.shape[1] < 2 or output.shape[0] > ROWS_MAX:
            return
        classes = output.shape[1]
        if output.nbytes > SCORES_BYTES_MAX:
            output = np.argmax(output, axis=1).astype(np.int32)
        head, last = calls[0], calls[-1]
        # Calls of several classes, or of sequences that wait for themselves, come in another order than they arrived.
        plain = last.number - head.number + 1 == len(calls) == len(output)
        if plain and not any([call.request_id or call.number != n for n, call in enumerate(calls, head.number)]):
            answers = _Answers(output, classes, labels, stats, head.number, len(calls), {})
        else:
            rows = {call.request_id or call.number: (call.start, call.rows) for call in calls if call.error is None}
            answers = _Answers(output, classes, labels, stats, -1, len(calls), rows)
        ring = self._rings.setdefault(model, deque())
        ring.append(answers)
        size = self._sizes.get(model, 0) + answers.count
        while size > self._remembered_max and len(ring) > 1:
            size -= ring.popleft().count
        self._sizes[model] = size

    def label(self, model: str, key: int | str, truth: Sequence[Label]) -> tuple[bool, ...]:
        """Count the true labels of a request, one a row, against its answer, once; return which rows were right.

        A text is looked up in the manifest's labels (without labels it must be a number); one that the release does not
        know is wrong: a class that only its successor knows must not flatter it. A number is an index.

        Args:
            key: The service's number of the call, or the id that the caller gave it.
        Raises:
            FeedbackUnmatched: nothing is remembered under this id, or it was judged before.
            FeedbackInvalid: the labels do not fit; the answer stays remembered.
        """
        found = None
        if (model, key) not in self._judged:
            for answers in reversed(self._rings.get(model, ())):
                found = answers.find(key)
                if found is not None:
                    break
        if found is None:
            raise FeedbackUnmatched(
                f"no answer of {model!r} with classes is remembered under this id; the last {self._remembered_max} "
                "are, until they are labelled"
            )
        start, rows = found
        output = answers.output[start : start + rows]
        predicted = (output if output.ndim == 1 else np.argmax(output, axis=1)).tolist()
        if len(truth) != len(predicted):
            raise FeedbackInvalid(f"{len(truth)} labels were given for {len(predicted)} rows")
        indices = [_index(answers, label) for label in truth]
        self._judged[model, key] = None
        if len(self._judged) > self._remembered_max:
            self._judged.popitem(last=False)
        right = tuple(index == row for index, row in zip(indices, predicted, strict=True))
        for index, one in zip(indices, right, strict=True):
            answers.stats.labelled(right=one, true=index)
        return right


def _index(answer: _Answers, label: Label) -> int | None:
    """Return the class index of `label`, None for a text that the release does not know."""
    if isinstance(label, str) and answer.labels:
        return answer.labels.index(label) if label in answer.labels else None
    try:
        index = int(label)
    except ValueError as error:
        raise FeedbackInvalid(f"label {str(label)[:80]!r} is not an index, and the release names no labels") from error
    if not 0 <= index < answer.classes:
        raise FeedbackInvalid(f"label index {index} is outside 0 to {answer.classes - 1}")
    return index
