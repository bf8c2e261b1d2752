"""What both commands take: the one for small worlds and the one for fleets."""

import os
from argparse import ArgumentParser, ArgumentTypeError, _MutuallyExclusiveGroup
from collections.abc import Iterable
from typing import get_args

from muster_simulator.faults import FaultsName


def add_options(parser: ArgumentParser, *, seeds: str, mutants: Iterable[str]) -> _MutuallyExclusiveGroup:
    """Add them; return the group of what is to be done, of which only one may be named.

    Args:
        seeds: The range that is run when none is named.
    """
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--seeds", type=_range, default=_range(seeds), help="A range such as 0:20.")
    what.add_argument("--seed", type=int, help="One seed.")
    parser.add_argument("--faults", choices=get_args(FaultsName), default="all")
    parser.add_argument("--mutant", choices=sorted(mutants), help="Run a broken variant; exit 0 when it is caught.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    parser.add_argument("--trace", action="store_true", help="With --seed: print the whole history.")
    return what


def _range(text: str) -> range:
    """Read `0:20`, or `20` for the same."""
    low, _, high = text.partition(":")
    try:
        return range(int(low), int(high)) if high else range(int(low))
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a range such as 0:20") from error
