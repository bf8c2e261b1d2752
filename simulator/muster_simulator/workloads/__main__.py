"""`python -m muster_simulator.workloads --out DIR [--json]`: build every release and print what was measured."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from muster_shared.errors import MusterError
from muster_simulator.workloads import catalogue, inference
from muster_simulator.workloads.spec import ReleaseSpec, write_release

COLUMNS = 120  # Fixed when nobody is watching, so that a log keeps whole rows.


@dataclass(frozen=True)
class Row:
    """One variant of one release, as measured here."""

    model: str
    version: str
    variant: str
    file_bytes: int
    accuracy: float
    claim: float | None
    golden_error_max: float
    golden_atol: float
    latency_ms: float


def main() -> int:
    """Write `DIR/<model>/<version>/` for every release; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m muster_simulator.workloads", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the bundle folders go")
    parser.add_argument("--cache", type=Path, help="where fetched weights are kept (default: DIR/.weights)")
    parser.add_argument("--json", action="store_true", help="print the measurements as JSON")
    options = parser.parse_args()
    rows = []
    try:
        for model in catalogue.MODELS:
            for spec in catalogue.releases(model, options.cache or options.out / ".weights"):
                write_release(spec, options.out / spec.model / spec.version)
                rows += _measure(spec)
    except MusterError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _print(rows)
    return 0


def _measure(spec: ReleaseSpec) -> list[Row]:
    one = catalogue.inputs(spec.model).batch(spec.inputs[0], [0])
    return [
        Row(
            model=spec.model,
            version=spec.version,
            variant=variant.name,
            file_bytes=len(spec.content(variant.files[0])),
            accuracy=proof.accuracy,
            claim=spec.slo.accuracy,
            golden_error_max=proof.error_max,
            golden_atol=spec.golden.atol,
            latency_ms=inference.latency_ms(inference.load(variant, spec.content(variant.files[0])), one),
        )
        for variant, proof in zip(spec.variants, spec.proofs, strict=True)
    ]


def _print(rows: list[Row]) -> None:
    table = Table("model", "version", "variant", "bytes", "accuracy", "claim", "golden error", "atol", "ms")
    for row in rows:
        table.add_row(
            row.model,
            row.version,
            row.variant,
            f"{row.file_bytes:,}",
            f"{row.accuracy:.1%}",
            "" if row.claim is None else f"{row.claim:.0%}",
            f"{row.golden_error_max:.1g}",
            f"{row.golden_atol:g}",
            f"{row.latency_ms:.3f}",
        )
    console = Console()
    Console(width=max(COLUMNS, console.width) if not console.is_terminal else None).print(table)


if __name__ == "__main__":
    sys.exit(main())
