"""A release's pipeline, loaded: raw bytes to the model's inputs, and the model's outputs to predictions.

    load_pipeline ── prove (types) ── compile each step once (tokenizers, rules) ──> LoadedPipeline
    prepare(raw, content_type) ──> Prepared(arrays, context)      finish(outputs, context) ──> predictions

Nothing is decided at a request but by the values themselves. Both calls are thread-safe, and are meant for a worker
thread: decoding an image takes milliseconds. What is wrong is named by the number of its step, from 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from muster_agent.engines.port import Array
from muster_agent.pipeline import boxes, classes, ctc, numbers, window
from muster_agent.pipeline.value import (
    Context,
    FinishFailed,
    FinishOperation,
    MediaRefused,
    PipelineMissing,
    PipelineUnloadable,
    Prepared,
    PrepareOperation,
    RawRefused,
    Reading,
    Unfit,
)
from muster_shared import pipeline as p
from muster_shared import pipeline_finish, pipeline_prepare
from muster_shared.bundle import Manifest
from muster_shared.pipeline_check import PipelineInvalid, Proof, prove
from muster_shared.pipeline_types import Encoded, FieldType, Tensor, Value


class LoadedPipeline:
    """One release's pipeline, ready to run. It holds no state of a request."""

    def __init__(
        self,
        manifest: Manifest,
        proof: Proof,
        prepare: Sequence[tuple[p.PrepareStep, PrepareOperation]],
        finish: Sequence[tuple[p.FinishStep, FinishOperation]],
    ) -> None:
        assert manifest.pipeline is not None
        self.manifest = manifest
        self.accepts: tuple[p.Media, ...] = manifest.pipeline.accepts
        self._proof = proof
        self._prepare = tuple(prepare)
        self._finish = tuple(finish)

    def prepare(self, raw: bytes, content_type: str) -> Prepared:
        """Return the model's inputs for one raw file.

        Args:
            content_type: One of `accepts`, without parameters.
        Raises:
            MediaRefused: it is none of `accepts`.
            RawRefused: the file is not what a step takes.
        """
        if content_type not in self.accepts:
            raise MediaRefused(content_type, self.accepts)
        context = Context(content_type, len(raw))
        value: object = raw
        number = 0
        try:
            for number, (step, operation) in enumerate(self._prepare, 1):  # noqa: B007  # Read by the handlers.
                value = operation(value, context)
            return Prepared(self._feed(value, context), context)
        except Unfit as unfit:
            raise RawRefused(number, p.tag(self._prepare[number - 1][0]), str(unfit)) from unfit
        except MemoryError as error:
            raise RawRefused(number, p.tag(self._prepare[number - 1][0]), "needs more memory than there is") from error

    def finish(self, outputs: Mapping[str, Array], context: Context) -> dict[str, object]:
        """Return the predictions for one request's outputs, as JSON has them.

        Args:
            outputs: Every output of the manifest, for this request alone, with its batch axis.
            context: What `prepare` returned with the inputs.
        Raises:
            FinishFailed: an output is not what the manifest says, or a rule cannot be evaluated.
        """
        reading = Reading(
            {name: self._case(name, outputs[name], shape) for name, shape in self._proof.outputs.items()}, context
        )
        number = 0
        try:
            for number, (step, operation) in enumerate(self._finish, 1):  # noqa: B007  # Read by the handler.
                operation(reading)
                if "rejected" in reading.answer:
                    break
        except Unfit as unfit:
            raise FinishFailed(number, p.tag(self._finish[number - 1][0]), str(unfit)) from unfit
        return reading.answer

    def _feed(self, value: object, context: Context) -> dict[str, Array]:
        arrays = {}
        for spec in self.manifest.inputs:
            array = context.fed.get(spec.name)
            if array is None:
                assert isinstance(value, np.ndarray)
                array = value if value.ndim == len(spec.shape) else value[np.newaxis]
            # An odd file could still give an odd size where the manifest leaves it free: none is empty.
            if 0 in array.shape:
                raise Unfit(f"gives an empty input {spec.name!r}")
            arrays[spec.name] = np.ascontiguousarray(array)
        context.fed = {}
        return arrays

    def _case(self, name: str, array: Array, shape: tuple[int, ...]) -> Array:
        case = array[0] if array.ndim == len(shape) + 1 and len(array) == 1 else array
        if case.ndim != len(shape) or any(want not in (-1, size) for want, size in zip(shape, case.shape, strict=True)):
            reason = f"output {name!r} has shape {list(array.shape)}, and one request gives {list(shape)}"
            raise FinishFailed(1, p.tag(self._finish[0][0]), reason)
        return case


def load_pipeline(manifest: Manifest, folder: Path) -> LoadedPipeline:
    """Return the pipeline of `manifest`, whose files lie in `folder` under their manifest paths, already verified.

    Raises:
        PipelineUnloadable: it does not fit the release, or one of its files or rules is broken.
        PipelineMissing: the library of one of its steps is not installed here.
    """
    pipeline = manifest.pipeline
    if pipeline is None:
        raise PipelineUnloadable(f"{manifest.model} {manifest.version} declares none")
    try:
        proof = prove(pipeline, manifest.inputs, manifest.outputs, manifest.labels)
    except PipelineInvalid as error:
        raise PipelineUnloadable(str(error)) from error
    return LoadedPipeline(
        manifest, proof, _compile_prepare(manifest, pipeline, folder), _compile_finish(manifest, proof)
    )


def _compile_prepare(
    manifest: Manifest, pipeline: p.Pipeline, folder: Path
) -> list[tuple[p.PrepareStep, PrepareOperation]]:
    compiled: list[tuple[p.PrepareStep, PrepareOperation]] = []
    value: Value = Encoded(pipeline.accepts)
    fed: dict[str, tuple[int, ...]] = {}
    for position, step in enumerate(pipeline.prepare):
        channels = value.channels if isinstance(value, Tensor) else None
        following = pipeline.prepare[position + 1 :]
        compiled.append((step, _prepare_operation(step, channels, following, manifest, folder)))
        value = pipeline_prepare.apply(step, value, manifest.inputs, fed)
    return compiled


def _prepare_operation(
    step: p.PrepareStep,
    channels: int | None,
    following: Sequence[p.PrepareStep],
    manifest: Manifest,
    folder: Path,
) -> PrepareOperation:
    match step:
        case p.DecodeImage() | p.Invert() | p.Resize() | p.ResizeShorter() | p.Letterbox() | p.Crop() | p.Region():
            return _image_operation(step, following)
        case p.Layout():
            from muster_agent.pipeline import image  # As below: Pillow is an extra.

            return image.layout(step)
        case p.Normalise():
            return numbers.normalise(step, channels)
        case p.Quantise() | p.Cast() | p.Reshape() | p.Transpose() | p.FitLength():
            return numbers.arithmetic(step)
        case p.Constant():
            return numbers.constant(step, next(spec for spec in manifest.inputs if spec.name == step.input))
        case p.Window():
            return window.window(step)
        case p.DecodeWav() | p.Frame():
            from muster_agent.pipeline import audio

            return audio.decode(step) if isinstance(step, p.DecodeWav) else audio.frame(step)
        case p.DecodeText() | p.Strings() | p.Tokenise():
            from muster_agent.pipeline import text

            if isinstance(step, p.Tokenise):
                return text.tokenise(step, folder)
            return text.decode(step) if isinstance(step, p.DecodeText) else text.strings


def _image_operation(
    step: p.DecodeImage | p.Invert | p.Resize | p.ResizeShorter | p.Letterbox | p.Crop | p.Region,
    following: Sequence[p.PrepareStep],
) -> PrepareOperation:
    try:
        from muster_agent.pipeline import image  # Pillow is an extra, and its memory is only for those who need it.
    except ImportError as error:
        raise PipelineMissing(p.tag(step), "image", str(error)) from error
    return image.decode(step, following) if isinstance(step, p.DecodeImage) else image.geometry(step)


def _compile_finish(manifest: Manifest, proof: Proof) -> list[tuple[p.FinishStep, FinishOperation]]:
    assert manifest.pipeline is not None
    tensors = {spec.name: Tensor(spec.datatype, proof.outputs[spec.name]) for spec in manifest.outputs}
    answer = pipeline_finish.Answer(tensors, manifest.labels, is_image=True)
    compiled: list[tuple[p.FinishStep, FinishOperation]] = []
    for step, fields in zip(manifest.pipeline.finish, proof.fields, strict=True):
        compiled.append((step, _finish_operation(step, answer, fields, manifest.labels)))
        pipeline_finish.apply(step, answer)
    return compiled


def _finish_operation(
    step: p.FinishStep,
    answer: pipeline_finish.Answer,
    fields: dict[str, FieldType],
    labels: tuple[str, ...],
) -> FinishOperation:
    match step:
        case p.Softmax() | p.Sigmoid() | p.Dequantise() | p.Pool() | p.Permute() | p.Slice():
            return classes.transform(step, answer.resolve(step.output))
        case p.Values():
            return classes.values(step)
        case p.TopK():
            return classes.top_k(step, labels)
        case p.Label():
            return classes.label(step, labels)
        case p.Boxes():
            return boxes.boxes(step, labels)
        case p.CtcGreedy():
            return ctc.greedy(step, labels, answer.read(step.output).shape[1])
        case p.Rules():
            from muster_agent.pipeline import rules  # Imported by those who have some.

            return rules.rules(step, fields)
