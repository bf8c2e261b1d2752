"""Manifests with a pipeline and nothing else that matters, for tests of its steps."""

from collections.abc import Sequence
from pathlib import Path

from muster_agent.pipeline.pipeline import LoadedPipeline, load_pipeline
from muster_shared.bundle import Golden, Manifest, TensorSpec
from muster_shared.ids import ModelName
from muster_shared.pipeline import FinishStep, Media, Pipeline, PrepareStep, Values

ANY = (TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),)


def manifest(
    prepare: Sequence[PrepareStep],
    inputs: Sequence[TensorSpec],
    finish: Sequence[FinishStep] = (Values(output="y"),),
    outputs: Sequence[TensorSpec] = ANY,
    accepts: tuple[Media, ...] = ("image/png", "image/jpeg"),
    labels: tuple[str, ...] = (),
) -> Manifest:
    """Return a manifest around the steps. It has no files: it was not parsed, and is not signed."""
    return Manifest(
        model=ModelName("m"),
        version="1.0.0",
        release=1,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        files=(),
        variants=(),
        golden=Golden(file="golden.npz"),
        pipeline=Pipeline(accepts=accepts, prepare=tuple(prepare), finish=tuple(finish)),
        labels=labels,
    )


def load(manifest: Manifest, folder: Path = Path()) -> LoadedPipeline:
    return load_pipeline(manifest, folder)


def tensor(datatype: str, *shape: int, name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)  # type: ignore[arg-type]  # Checked by each test.
