"""How each step of `finish` reads the outputs, and which fields it gives to the answer.

Pure. The executor in `muster_agent.pipeline` does the same steps on real values and trusts what is proven here.
"""

from dataclasses import dataclass, field
from typing import assert_never

from muster_shared import pipeline as p
from muster_shared.pipeline_prepare import permuted
from muster_shared.pipeline_types import FieldType, Misfit, Tensor, is_number, wants

_WORDS = (
    "input flags rejected true false null in as break const continue else for function if import let loop package "
    "namespace return var void while type size int uint double bool string bytes list map dyn matches has timestamp "
    "duration all exists exists_one filter optional"
)
RESERVED = frozenset(_WORDS.split())
"""What every answer or rule has, and the words that CEL keeps to itself."""
VALUES_MAX = 10_000  # Numbers in one field of an answer: more is the business of `infer`.


@dataclass
class Answer:
    """What is known so far: the tensors by name, and the fields of the answer."""

    tensors: dict[str, Tensor]
    labels: tuple[str, ...]
    is_image: bool
    fields: dict[str, FieldType] = field(default_factory=dict)

    def read(self, name: str) -> Tensor:
        """Return the tensor `name`, the only one when empty. Raises Misfit."""
        return self.tensors[self.resolve(name)]

    def resolve(self, name: str) -> str:
        if not name:
            if len(self.tensors) != 1:
                raise Misfit(f"say which `output` it reads: {', '.join(self.tensors)}")
            return next(iter(self.tensors))
        if name not in self.tensors:
            raise Misfit(f"there is no tensor {name!r}; there are {', '.join(self.tensors)}")
        return name

    def add(self, name: str, kind: FieldType) -> None:
        """Add a field to the answer. Raises Misfit."""
        if name in RESERVED:
            raise Misfit(f"a field cannot be called {name!r}")
        if name in self.fields:
            raise Misfit(f"the field {name!r} is given twice")
        self.fields[name] = kind


def apply(step: p.FinishStep, answer: Answer) -> None:
    """Carry `answer` over `step`.

    Raises:
        Misfit: the step does not fit what is there.
    """
    match step:
        case p.Softmax() | p.Sigmoid() | p.Dequantise() | p.Pool() | p.Permute() | p.Slice():
            source = answer.resolve(step.output)
            answer.tensors[step.into or source] = _transform(step, answer.tensors[source])
        case p.Values():
            tensor = _numbers(answer.read(step.output))
            if -1 not in tensor.shape and _count(tensor) > VALUES_MAX:
                raise wants(tensor, f"at most {VALUES_MAX} numbers")
            answer.add(step.field, "list" if tensor.shape else "double")
        case p.TopK():
            _classes(answer.read(step.output), answer)
            answer.add(step.field, "objects")
        case p.Label():
            _classes(answer.read(step.output), answer)
            for label in (*step.thresholds, *step.rename):
                if label not in answer.labels:
                    raise Misfit(f"{label!r} is none of the manifest's labels")
            answer.add(step.field, "string")
            answer.add(step.score_field, "double")
        case p.Boxes():
            _boxes(step, answer)
            answer.add(step.field, "objects")
        case p.CtcGreedy():
            _ctc(step, answer)
            answer.add(step.field, "string")
            answer.add(step.score_field, "double")
        case p.Rules():
            for rule in step.rules:
                if rule.effect == "field":
                    answer.add(rule.name, "dyn")
                elif rule.name in RESERVED:
                    raise Misfit(f"a rule cannot be called {rule.name!r}")
            answer.fields["flags"] = "list"
        case _:
            assert_never(step)


def _transform(step: p.Softmax | p.Sigmoid | p.Dequantise | p.Pool | p.Permute | p.Slice, tensor: Tensor) -> Tensor:
    _numbers(tensor)
    match step:
        case p.Softmax():
            if not tensor.shape:
                raise wants(tensor, "at least one axis")
            return Tensor("FP32", tensor.shape, 0, 1)
        case p.Sigmoid():
            return Tensor("FP32", tensor.shape, 0, 1)
        case p.Dequantise():
            return Tensor("FP32", tensor.shape)
        case p.Pool():
            if not tensor.shape:
                raise wants(tensor, "at least one axis")
            datatype = "FP32" if step.how == "mean" else tensor.datatype
            return Tensor(datatype, tensor.shape[1:], tensor.low, tensor.high)
        case p.Permute():
            return Tensor(tensor.datatype, permuted(step.axes, tensor.shape), tensor.low, tensor.high)
        case p.Slice():
            return _sliced(step, tensor)


def _sliced(step: p.Slice, tensor: Tensor) -> Tensor:
    if step.axis >= len(tensor.shape) or tensor.shape[step.axis] < step.stop or step.start >= step.stop:
        raise wants(tensor, f"an axis {step.axis} of at least {step.stop}, and start below stop")
    size = step.stop - step.start
    if step.squeeze and size != 1:
        raise Misfit(f"squeeze drops an axis of one, not of {size}")
    middle = () if step.squeeze else (size,)
    shape = (*tensor.shape[: step.axis], *middle, *tensor.shape[step.axis + 1 :])
    return Tensor(tensor.datatype, shape, tensor.low, tensor.high)


def _numbers(tensor: Tensor) -> Tensor:
    if not is_number(tensor.datatype):
        raise wants(tensor, "numbers")
    return tensor


def _count(tensor: Tensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _classes(tensor: Tensor, answer: Answer) -> None:
    _numbers(tensor)
    if len(tensor.shape) != 1:
        raise wants(tensor, "[classes] of one case; use `pool` or `slice` first")
    if not answer.labels:
        raise Misfit("the manifest has no labels")
    if tensor.shape[0] != len(answer.labels):
        raise wants(tensor, f"[{len(answer.labels)}], as many as there are labels")


def _boxes(step: p.Boxes, answer: Answer) -> None:
    if not answer.is_image:
        raise Misfit("boxes lie on an image, and `prepare` decodes none")
    boxes, scores = _numbers(answer.read(step.boxes)), _numbers(answer.read(step.scores))
    if len(boxes.shape) != 2 or boxes.shape[1] != 4:
        raise wants(boxes, "boxes of [n, 4]; use `permute` or `slice` first")
    vectors = {step.scores: scores} if len(scores.shape) == 1 else {}
    for name in filter(None, (step.classes, step.objectness)):
        vectors[name] = _numbers(answer.read(name))
    if step.classes and len(scores.shape) != 1:
        raise wants(scores, "scores of [n], since `classes` names their classes")
    if not step.classes and len(scores.shape) == 2 and scores.shape[1] != len(answer.labels):
        raise wants(scores, f"scores of [n, {len(answer.labels)}], as many as there are labels")
    if len(scores.shape) not in (1, 2):
        raise wants(scores, "scores of [n, classes] or [n]")
    for name, tensor in {**vectors, step.scores: scores}.items():
        if name in vectors and len(tensor.shape) != 1:
            raise wants(tensor, f"{name!r} of [n]")
        if tensor.shape[0] != boxes.shape[0]:
            raise wants(tensor, f"{name!r} of as many rows as there are boxes, {boxes.shape[0]}")
    if len(scores.shape) == 1 and not answer.labels:
        raise Misfit("the manifest has no labels")


def _ctc(step: p.CtcGreedy, answer: Answer) -> None:
    tensor = _numbers(answer.read(step.output))
    symbols = len(answer.labels)
    if not symbols:
        raise Misfit("the manifest has no labels, which are the charset")
    if len(tensor.shape) != 2 or tensor.shape[1] not in (symbols, symbols + 1):
        raise wants(tensor, f"[time, {symbols}] or, with a blank that is no label, [time, {symbols + 1}]")
    if step.blank >= tensor.shape[1]:
        raise wants(tensor, f"blank below {tensor.shape[1]}")
