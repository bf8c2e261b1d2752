"""`python -m bench.rollout [--histories 1000] [--seed 1] [--jobs 2] [--only exposure,ramp] [--quick] [--json FILE]`

Runs every part, prints its tables, then all figures that have a target: PASS or MISS. Ends with 1 if one was missed.
The same seed gives the same figures, however many processes work.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.rollout import exposure, ramp, ramp_in_fleet, reaction
from bench.rollout.figures import OUT, Line, Options, show

PARTS: dict[str, Callable[[Options], list[Line]]] = {
    "exposure": exposure.run,
    "ramp": ramp.run,
    "fleet": ramp_in_fleet.run,
    "reaction": reaction.run,
}
QUICK_HISTORIES = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.rollout", description="Our gate and its peers' on the same histories.")
    parser.add_argument("--histories", type=int, default=None, help="of every scenario; 1000, or 100 with --quick")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="a look in a minute; too few histories to judge by")
    parser.add_argument("--json", type=Path, help="write all figures there")
    given = parser.parse_args()
    chosen = [name.strip() for name in given.only.split(",") if name.strip()]
    if unknown := sorted(set(chosen) - set(PARTS)):
        parser.error(f"no such parts: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    options = Options(
        histories=given.histories or (QUICK_HISTORIES if given.quick else Options.histories),
        seed=given.seed,
        jobs=given.jobs,
        quick=given.quick,
    )
    figures: dict[str, list[Line]] = {}
    for name in chosen:
        began_s = time.monotonic()
        figures[name] = PARTS[name](options)
        OUT.print(f"\n{name}: {options.histories:,} histories, seed {options.seed}, {time.monotonic() - began_s:.0f} s")
        show(figures[name])
    if given.json is not None:
        document = {"options": asdict(options), "parts": {n: [asdict(x) for x in xs] for n, xs in figures.items()}}
        given.json.write_text(json.dumps(document, indent=1))
    missed = [line.name for lines in figures.values() for line in lines if line.passed is False]
    OUT.print(f"\nMISS: {'; '.join(missed)}" if missed else "\nall targets PASS")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
