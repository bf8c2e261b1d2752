"""`python -m muster_simulator.demo.releases MODEL --out DIR --truth DIR --cache DIR`: build the bundles of one model.

A process for each model, so that two processors build both at once. Beside each bundle goes what its release really
answers right, which the simulated devices draw their answers from.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from muster_shared.bundle import digest
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName
from muster_simulator.load.truth import Truth, write_truth
from muster_simulator.workloads import catalogue, inference
from muster_simulator.workloads.spec import ReleaseSpec, write_release

THREADS = 2  # An engine computes without Python's lock.


def build(model: ModelName, out: Path, truth: Path, cache: Path) -> None:
    """Write `out/<model>/<version>/` and the truth about each release. Raises MusterError, OSError."""
    specs = catalogue.releases(model, cache)
    with ThreadPoolExecutor(THREADS) as asking:
        found = list(asking.map(catalogue.answers, specs))
    for spec, said in zip(specs, found, strict=True):
        folder = out / spec.model / spec.version
        write_release(spec, folder)
        bundle = digest((folder / "bundle.json").read_bytes())
        write_truth(truth, bundle, Truth(said.right, _latency_ms(spec), said))
        print(f"{spec.model} {spec.version} {spec.accuracy:.4f}", flush=True)


def _latency_ms(spec: ReleaseSpec) -> float:
    variant = spec.variants[0]
    one = catalogue.inputs(spec.model).batch(spec.inputs[0], [0])
    return inference.latency_ms(inference.load(variant, spec.content(variant.files[0])), one)


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m muster_simulator.demo.releases")
    parser.add_argument("model", choices=catalogue.MODELS)
    for name in ("--out", "--truth", "--cache"):
        parser.add_argument(name, type=Path, required=True)
    options = parser.parse_args()
    try:
        build(ModelName(options.model), options.out, options.truth, options.cache)
    except (MusterError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
