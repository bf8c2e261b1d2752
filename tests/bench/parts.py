"""A benchmark in parts: chosen on the command line, run one after the other, all figures printed, and what was missed.

What a part is, and what it measures, is its benchmark's.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from bench.rollout.figures import OUT, Line, Options, show

Part = Callable[[Options], list[Line]]


def arguments(parser: argparse.ArgumentParser, parts: Mapping[str, Part], quick: str) -> None:
    """Add what every such benchmark takes; `quick` says what a quick look is worth."""
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", default=",".join(parts), help=f"parts: {', '.join(parts)}")
    parser.add_argument("--quick", action="store_true", help=f"a look in a minute; {quick} to judge by")
    parser.add_argument("--json", type=Path, help="write all figures there")


def chosen(parser: argparse.ArgumentParser, parts: Mapping[str, Part], only: str) -> dict[str, Part]:
    """Return the parts that `only` names. Ends the program if there is no such part."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(parts)):
        parser.error(f"no such parts: {', '.join(unknown)}; there are {', '.join(parts)}")
    return {name: parts[name] for name in names}


def run(parts: Mapping[str, Part], options: Options, told: str, out: Path | None) -> int:
    """Run `parts`, print their figures and write them to `out`; return the exit status: 1 if a target was missed.

    Args:
        told: What is said of a run beside its part and its time.
    """
    figures: dict[str, list[Line]] = {}
    for name, part in parts.items():
        began_s = time.monotonic()
        figures[name] = part(options)
        OUT.print(f"\n{name}: {told}, {time.monotonic() - began_s:.0f} s")
        show(figures[name])
    if out is not None:
        document = {"options": asdict(options), "parts": {n: [asdict(x) for x in xs] for n, xs in figures.items()}}
        out.write_text(json.dumps(document, indent=1))
    missed = [line.name for lines in figures.values() for line in lines if line.passed is False]
    OUT.print(f"\nMISS: {'; '.join(missed)}" if missed else "\nall targets PASS")
    return 1 if missed else 0
