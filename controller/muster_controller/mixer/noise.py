"""Exact noise: the discrete Laplace and the discrete Gaussian, in integers, from randomness that nobody can predict.

Algorithms 1 to 3 of Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (arXiv 2004.00010).
There is no floating point in them: noise that was drawn with rounded logarithms can tell what it was added to (Mironov
2012). How much noise, and what it costs, is in `accounting`.

Pure, given `below`: that function is all the randomness there is, and an argument.
"""

import os
from array import array
from collections.abc import Callable
from fractions import Fraction
from math import isqrt
from typing import Final

RandBelow = Callable[[int], int]
"""n -> an integer, uniform on 0 <= it < n."""

_BLOCK_BYTES: Final = (
    8192  # Of the operating system's randomness at a time: a call for each number costs half the draw.
)
_WORD: Final = 1 << 64


class OsRandom:
    """`RandBelow` of the operating system's randomness, which is fetched a block at a time and used once."""

    def __init__(self) -> None:
        self._words: array[int] = array("Q")

    def __call__(self, n: int) -> int:
        bits = _WORD
        while True:
            if not self._words:
                self._words.frombytes(os.urandom(_BLOCK_BYTES))
            drawn = self._words.pop()
            while bits < n:  # Of more than 64 bits: as many words as it takes.
                if not self._words:
                    self._words.frombytes(os.urandom(_BLOCK_BYTES))
                drawn, bits = drawn << 64 | self._words.pop(), bits << 64
            if drawn < bits - bits % n:  # The rest of the range would favour small numbers.
                return drawn % n
            bits = _WORD


def bernoulli_exp(numerator: int, denominator: int, below: RandBelow) -> bool:
    """Return True with probability exp(-numerator / denominator), >= 0 (algorithm 1)."""
    while numerator > denominator:  # exp(-x) is exp(-1) as often as 1 goes into x, then exp(-rest).
        if not _bernoulli_exp_1(denominator, denominator, below):
            return False
        numerator -= denominator
    return _bernoulli_exp_1(numerator, denominator, below)


def _bernoulli_exp_1(numerator: int, denominator: int, below: RandBelow) -> bool:
    """`bernoulli_exp` of at most 1: how many Bernoulli(x / k) for k = 1, 2, ... hold in a row is even, or not."""
    k = 1
    while below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1


def discrete_laplace(scale: int, below: RandBelow) -> int:
    """Return x with probability proportional to exp(-|x| / scale), scale >= 1 (algorithm 2, for s = 1)."""
    while True:
        rest = below(scale)
        if not _bernoulli_exp_1(rest, scale, below):
            continue
        times = 0
        while _bernoulli_exp_1(1, 1, below):
            times += 1
        size = rest + scale * times
        if below(2):
            return size
        if size:  # -0 is 0, which would come up twice as often as it should.
            return -size


def discrete_gaussian(variance: Fraction, below: RandBelow) -> int:
    """Return x with probability proportional to exp(-x^2 / (2 variance)), variance > 0 (algorithm 3)."""
    return discrete_gaussians(variance, 1, below)[0]


def discrete_gaussians(variance: Fraction, number: int, below: RandBelow) -> list[int]:
    """Return `number` independent draws of `discrete_gaussian`."""
    above, under = variance.numerator, variance.denominator
    scale = isqrt(above // under) + 1  # floor(sigma) + 1
    # A Laplace y is kept with probability exp(-(|y| - variance / scale)^2 / (2 variance)); both over one denominator.
    step, shift, denominator = under * scale, above, 2 * above * under * scale * scale
    drawn: list[int] = []
    while len(drawn) < number:
        y = discrete_laplace(scale, below)
        if bernoulli_exp((abs(y) * step - shift) ** 2, denominator, below):
            drawn.append(y)
    return drawn
