"""All reference workloads by name: their releases, their labelled inputs, and which inputs each release gets right."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muster_shared.errors import MusterError
from muster_shared.ids import ModelName
from muster_simulator.workloads import digits, inference, magika
from muster_simulator.workloads.answers import Answers
from muster_simulator.workloads.labelled import LabelledInputs
from muster_simulator.workloads.spec import ReleaseSpec

MODELS = (digits.MODEL, magika.MODEL)


class WorkloadUnknown(MusterError):
    """A model that is not one of the reference workloads."""

    def __init__(self, model: str) -> None:
        super().__init__(f"{model!r} is not a reference workload; there are {' and '.join(MODELS)}")
        self.model = model


def releases(model: ModelName, cache: Path) -> tuple[ReleaseSpec, ...]:
    """Build every release of `model`, oldest first. Fetched weights are kept in `cache`.

    Raises:
        WorkloadUnknown: there is no such workload.
        WeightsUnavailable: weights are needed that are neither cached nor to be had.
    """
    match model:
        case digits.MODEL:
            return digits.releases()
        case magika.MODEL:
            return magika.releases(cache)
        case _:
            raise WorkloadUnknown(model)


def inputs(model: ModelName) -> LabelledInputs:
    """Return what clients of `model` send, with the right answers. Raises WorkloadUnknown."""
    match model:
        case digits.MODEL:
            return digits.inputs()
        case magika.MODEL:
            return magika.inputs()
        case _:
            raise WorkloadUnknown(model)


def answers(spec: ReleaseSpec, variant: str | None = None) -> Answers:
    """Return the answers of a release to all of `inputs(spec.model)`.

    Args:
        variant: The name of one of its variants; the defining one when None.
    """
    chosen = next(each for each in spec.variants if variant in (None, each.name))
    labelled = inputs(spec.model)
    network = inference.load(chosen, spec.content(chosen.files[0]))
    outputs = inference.run(network, labelled.batch(spec.inputs[0]))
    known = {label: index for index, label in enumerate(spec.labels)}
    return Answers(
        outputs.argmax(axis=1).astype(np.int16),
        np.array([known.get(name, -1) for name in labelled.truths], np.int16),
        outputs.max(axis=1).clip(0, 1).astype(np.float32),
        len(spec.labels),
    )


def outcomes(spec: ReleaseSpec, variant: str | None = None) -> NDArray[np.bool_]:
    """Return bool [len(inputs(spec.model))]: whether the release answers each labelled input right: see `answers`."""
    return answers(spec, variant).right
