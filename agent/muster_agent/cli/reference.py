"""`muster-agent reference`: make the reference file of a release, from its model and inputs it was not trained on."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muster_agent.cli.exits import FAILED, USAGE, CommandFailed


def reference(options: argparse.Namespace) -> None:
    from muster_agent.metrics.reference import Reference
    from muster_agent.metrics.reference_build import ReferenceUnbuildable, build, observe
    from muster_shared.errors import MusterError

    inputs, groups = _read(options.inputs)
    run, ranks = _model(options.model)
    if missing := sorted(set(ranks) - set(inputs)):
        raise CommandFailed(
            USAGE, f"{options.inputs} has no array 'input.{missing[0]}'; the model takes {sorted(ranks)}"
        )
    if options.output.exists() and not options.force:
        raise CommandFailed(USAGE, f"{options.output} is there already; --force replaces it")
    try:
        observed = observe({name: inputs[name] for name in ranks}, ranks, run, groups)
        raw = build(observed, windows=options.windows)
    except ReferenceUnbuildable as error:
        raise CommandFailed(USAGE, f"{options.inputs}: {error}") from error
    except MusterError as error:
        raise CommandFailed(FAILED, str(error)) from error
    try:
        options.output.write_bytes(raw)
    except OSError as error:
        raise CommandFailed(USAGE, f"{options.output} cannot be written: {error}") from error
    for line in lines(Reference.parse(raw), has_groups=groups is not None):
        print(line)
    print(f'{options.output}: {len(raw):,} bytes; name it in muster-model.toml: [metrics] reference = "…"')


def lines(found: Any, *, has_groups: bool) -> list[str]:
    """Return what a publisher should know of a reference, as lines of plain text."""
    told = [
        f"{found.inferences:,} inferences, {len(found.classes)} classes, inputs {', '.join(found.inputs) or 'none'}"
    ]
    windows = found.confidence_windows
    if not windows.size:
        return [*told, "the first output is no class scores: drift of confidence will not be seen, skew of inputs will"]
    told.append(
        f"mean confidence {windows.mean():.3f} ± {found.confidence_error:.3f}; windows from {windows.min():.3f} to "
        f"{windows.max():.3f}"
    )
    if not has_groups:
        told.append(
            "no array 'group': windows are drawn as if every device saw all of this; see docs/metrics-reference.md"
        )
    if found.confidence_error > float(windows.std()) / 2:
        told.append("more inferences, or more groups, would let devices see smaller changes")
    return told


def _read(path: Path) -> tuple[dict[str, Any], Any]:
    """Return the arrays `input.<name>` by name, and the array `group` or None."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # zipfile, zlib and NumPy share no tree; whatever it is, the file cannot be used.
        raise CommandFailed(USAGE, f"{path} cannot be read as .npz: {error}") from error
    inputs = {key.removeprefix("input."): array for key, array in arrays.items() if key.startswith("input.")}
    return inputs, arrays.get("group")


def _model(path: Path) -> tuple[Any, dict[str, int]]:
    """Return what asks the ONNX model at `path`, and the rank of each of its inputs."""
    try:
        import onnxruntime
    except ImportError as error:
        raise CommandFailed(USAGE, "ONNX Runtime is not installed here; install muster-agent[onnxruntime]") from error
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # Errors.
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # Its errors share no base class below Exception.
        raise CommandFailed(USAGE, f"{path} cannot be loaded: {error}") from error
    first = session.get_outputs()[0].name

    def run(inputs: Mapping[str, Any]) -> Any:
        try:
            return session.run([first], dict(inputs))[0]
        except Exception as error:  # As above.
            raise CommandFailed(USAGE, f"the model refuses a row: {error}") from error

    return run, {tensor.name: len(tensor.shape) for tensor in session.get_inputs()}
