"""The check that `muster model build` asks for: what a device would load is loaded, and run, before it is signed.

Found by the entry point group `muster.bundle_checks`, so that the controller imports nothing of the agent.
"""

import tempfile
from pathlib import Path

from muster_agent.engines.port import EngineMissing, Session
from muster_agent.engines.registry import engine
from muster_agent.metrics.reference import Reference, ReferenceUnreadable
from muster_agent.pipeline.golden_raw import prove_raw
from muster_agent.pipeline.pipeline import load_pipeline
from muster_agent.pipeline.value import PipelineUnloadable
from muster_shared.bundle import Manifest


def check_bundle(manifest: Manifest, folder: Path) -> None:
    """Prove the reference and the pipeline of the bundle in `folder`; nothing to do when there is none.

    Its raw cases run through the first variant that an engine here can load.

    Raises:
        MusterError: it does not hold; the message names the step, the rule or the case.
    """
    if manifest.metrics.reference is not None:
        reference = Reference.parse((folder / manifest.metrics.reference).read_bytes())
        if unknown := sorted(set(reference.inputs) - {tensor.name for tensor in manifest.inputs}):
            raise ReferenceUnreadable(f"it is of an input {unknown[0]!r}, which the release does not have")
    if manifest.pipeline is None:
        return
    pipeline = load_pipeline(manifest, folder)
    if not manifest.pipeline.golden_raw:
        return
    with tempfile.TemporaryDirectory() as cache:
        session = _load(manifest, folder, Path(cache))
        try:
            problem = prove_raw(pipeline, session.run, folder / manifest.pipeline.golden_raw)
        finally:
            session.close()
    if problem:
        raise PipelineUnloadable(problem)


def _load(manifest: Manifest, folder: Path, cache: Path) -> Session:
    missing: EngineMissing | None = None
    for variant in manifest.variants:
        try:
            return engine(variant.runtime).load(
                folder / variant.files[0], variant, manifest.inputs, manifest.outputs, threads=1, cache_dir=cache
            )
        except EngineMissing as error:
            missing = missing or error
    assert missing is not None  # A manifest has at least one variant.
    raise missing
