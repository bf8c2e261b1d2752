"""The exact samplers against those of opendp, which is no dependency: `pip install opendp` (0.16, 265 MB installed).

Chi-squared of two samples: the same places, pooled where few are expected, one draw after the other. Two samplers of
the same distribution give a p that is uniform; a small one says that they differ.
"""

import importlib
import importlib.util
import math
import time
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from bench.rollout.figures import Line, Options
from muster_controller.mixer.noise import OsRandom, discrete_gaussians, discrete_laplace

DRAWS = 400_000
SCALES = (3, 40)
P_MIN = 1e-4
OFTEN = 20


def run(options: Options) -> list[Line]:
    """Return a line for each distribution, or one that says what to install."""
    if importlib.util.find_spec("opendp") is None:
        return [Line("agreement with opendp", "", "not installed", None, "pip install opendp")]
    opendp: Any = importlib.import_module("opendp.prelude")
    opendp.enable_features("contrib")
    number, below, lines = DRAWS // 10 if options.quick else DRAWS, OsRandom(), []
    vectors = opendp.vector_domain(opendp.atom_domain(T=int))
    for scale in SCALES:
        gaussian = (vectors, opendp.l2_distance(T=float)) >> opendp.m.then_gaussian(float(scale))
        laplace = (vectors, opendp.l1_distance(T=int)) >> opendp.m.then_laplace(float(scale))
        began_s = time.process_time()
        theirs = gaussian([0] * number)
        draw_us = (time.process_time() - began_s) / number * 1e6
        p = same(discrete_gaussians(Fraction(scale * scale), number, below), theirs)
        lines.append(_line(f"discrete Gaussian, sigma {scale}", p, f"theirs {draw_us:.1f} us a draw"))
        p = same([discrete_laplace(scale, below) for _ in range(number)], laplace([0] * number))
        lines.append(_line(f"discrete Laplace, scale {scale}", p, ""))
    return lines


def same(one: Sequence[int], other: Sequence[int]) -> float:
    """Return p of chi-squared of two samples of the same size, by Wilson and Hilferty's cube root."""
    ours, theirs = Counter(one), Counter(other)
    square, places, rest = 0.0, 0, [0, 0]
    for value in ours.keys() | theirs.keys():
        a, b = ours[value], theirs[value]
        if a + b < 2 * OFTEN:
            rest = [rest[0] + a, rest[1] + b]
            continue
        square += (a - b) ** 2 / (a + b)
        places += 1
    if sum(rest) >= 2 * OFTEN:
        square += (rest[0] - rest[1]) ** 2 / sum(rest)
        places += 1
    freedom = places - 1
    spread = 2 / (9 * freedom)
    normal = ((square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(normal / math.sqrt(2)) / 2


def _line(name: str, p: float, spread: str) -> Line:
    return Line(f"{name}: p of agreement with opendp", f">= {P_MIN:g}", f"{p:.3f}", p >= P_MIN, spread)
