"""The proof that a pipeline fits its release: it ends in exactly the manifest's inputs, and reads what the model gives.

    Encoded ── prepare ──> every input fed ── rows ──> outputs as the model gives them ── finish ──> fields

An abstract interpreter: the steps are walked with types in place of values, so it is complete and costs microseconds.
Files are not opened; that a tokenizer loads and a rule compiles is proven where the bundle is built and loaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from muster_shared import pipeline_finish, pipeline_prepare
from muster_shared.errors import ManifestInvalid
from muster_shared.pipeline import DecodeImage, Pipeline, tag
from muster_shared.pipeline_types import Encoded, Fed, FieldType, Misfit, Tensor, TensorLike, Value, fits, wants


class PipelineInvalid(ManifestInvalid):
    """A pipeline that does not fit its release; the message names the step, what it got and what it wants."""


@dataclass(frozen=True)
class Proof:
    """What was proven."""

    rows: int
    """Of one request, along the batch axis; -1: it depends on the input, as the frames of a sound do."""
    outputs: dict[str, tuple[int, ...]]
    """The shape of each output of one request before `finish`, without the axis of a single case."""
    fields: tuple[dict[str, FieldType], ...]
    """What the answer has before each step of `finish`."""


def prove(
    pipeline: Pipeline, inputs: Sequence[TensorLike], outputs: Sequence[TensorLike], labels: tuple[str, ...]
) -> Proof:
    """Return what is proven of `pipeline` for a model with these inputs and outputs.

    Raises:
        PipelineInvalid: it does not fit.
    """
    rows = _prepare(pipeline, inputs)
    is_image = any(isinstance(step, DecodeImage) for step in pipeline.prepare)
    shapes = {spec.name: _case(spec, inputs, rows) for spec in outputs}
    tensors = {spec.name: Tensor(spec.datatype, shapes[spec.name]) for spec in outputs}
    answer, before = pipeline_finish.Answer(tensors, labels, is_image), []
    for number, step in enumerate(pipeline.finish, 1):
        before.append(dict(answer.fields))
        try:
            pipeline_finish.apply(step, answer)
        except Misfit as misfit:
            raise PipelineInvalid(f"pipeline: finish step {number} ({tag(step)}): {misfit}") from misfit
    if not answer.fields:
        raise PipelineInvalid("pipeline: finish gives no field to the answer; end it with `top_k`, `label` or `values`")
    return Proof(rows, shapes, tuple(before))


def problems(
    pipeline: Pipeline,
    inputs: Sequence[TensorLike],
    outputs: Sequence[TensorLike],
    labels: tuple[str, ...],
    paths: Sequence[str],
) -> Iterator[str]:
    """Yield what is wrong with `pipeline` in a manifest that has the files `paths`."""
    for path in pipeline.files:
        if path not in paths:
            yield f"pipeline names {path}, which is not in files"
    try:
        prove(pipeline, inputs, outputs, labels)
    except PipelineInvalid as invalid:
        yield str(invalid)


def _prepare(pipeline: Pipeline, inputs: Sequence[TensorLike]) -> int:
    """Return the rows of one request."""
    value: Value = Encoded(pipeline.accepts)
    fed: dict[str, tuple[int, ...]] = {}
    for number, step in enumerate(pipeline.prepare, 1):
        try:
            value = pipeline_prepare.apply(step, value, inputs, fed)
        except Misfit as misfit:
            raise PipelineInvalid(f"pipeline: prepare step {number} ({tag(step)}): {misfit}") from misfit
    missing = [spec for spec in inputs if spec.name not in fed]
    try:
        if isinstance(value, Fed):
            if missing:
                raise Misfit(f"nothing feeds {', '.join(repr(spec.name) for spec in missing)}")
        elif not isinstance(value, Tensor):
            raise wants(value, f"to end in a tensor for {', '.join(repr(spec.name) for spec in missing)}")
        elif len(missing) != 1:
            names = ", ".join(repr(spec.name) for spec in missing) or "no input"
            raise Misfit(f"one tensor is left ({value}) for {names}; feed the others with `constant`")
        else:
            fed[missing[0].name] = fits(value, missing[0])
    except Misfit as misfit:
        raise PipelineInvalid(f"pipeline: prepare, after step {len(pipeline.prepare)}: {misfit}") from misfit
    rows = {fed[spec.name][0] for spec in inputs if spec.shape and spec.shape[0] == -1}
    if len(rows) > 1:
        raise PipelineInvalid(f"pipeline: prepare gives inputs with different rows: {sorted(rows)}")
    return rows.pop() if rows else 1


def _case(spec: TensorLike, inputs: Sequence[TensorLike], rows: int) -> tuple[int, ...]:
    """Return the shape of an output of one request: the batch axis has its rows, and an axis of one case is dropped."""
    shape = spec.shape
    is_batched = any(each.shape and each.shape[0] == -1 for each in inputs)
    if shape and shape[0] == -1 and is_batched:
        shape = (rows, *shape[1:])
    return shape[1:] if shape and shape[0] == 1 else shape
