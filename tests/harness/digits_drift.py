"""Digits seen through a camera that gets worse: a release's own answers to clean and to corrupted scans, as streams.

The scans that the reference is made of and those that are streamed are different ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from muster_agent.metrics.confidence import classes_and_confidence
from muster_agent.metrics.reference import WINDOW, Reference
from muster_agent.metrics.reference_build import Observed, build
from muster_simulator.workloads import digits, inference

Images = NDArray[np.float32]
Confidence = NDArray[np.float32]
Corruption = Callable[[Images, np.random.Generator], Images]
NOISE = 0.2
"""Standard deviation of the sensor's noise, of full ink: nine points of accuracy."""
BLUR = 0.5
"""Pixels: seven points."""
CONTRAST = 0.8
"""Of what it was, about the middle grey: three points."""
LOOKS = 10
"""Times that each scan is taken anew: noise differs each time."""


def noisy(images: Images, rng: np.random.Generator) -> Images:
    return np.clip(images + NOISE * rng.standard_normal(images.shape), 0, 1).astype(np.float32)


def blurred(images: Images, rng: np.random.Generator) -> Images:
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * BLUR**2))
    weights /= weights.sum()
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    rows = sum(weight * padded[:, :, at : at + 8] for at, weight in enumerate(weights))
    return np.asarray(sum(weight * rows[..., at : at + 8] for at, weight in enumerate(weights)), np.float32)


def pale(images: Images, rng: np.random.Generator) -> Images:
    return (0.5 + (images - 0.5) * CONTRAST).astype(np.float32)


def clean(images: Images, rng: np.random.Generator) -> Images:
    return images


@dataclass(frozen=True, eq=False)
class Camera:
    """What one release says of the streamed scans through one corruption."""

    accuracy: float
    confidence: Confidence = field(repr=False)

    def windows(self, rng: np.random.Generator, count: int) -> Iterator[float]:
        """Yield the mean confidence of windows of WINDOW scans, drawn anew with replacement."""
        for _ in range(count):
            yield float(self.confidence[rng.integers(len(self.confidence), size=WINDOW)].mean(dtype=np.float64))


class Halves:
    """One release, and one way to cut the test scans in two: for the reference, and to be streamed."""

    def __init__(self, version: str, seed: int) -> None:
        data = digits.split()
        order = np.random.default_rng(seed).permutation(len(data.test_images))
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        self._network = _network(version)
        self._seed = seed
        self._streamed, self._truths = data.test_images[second], data.test_digits[second]
        held_out = data.test_images[first]
        raw = build(Observed({digits.INPUT.name: held_out}, inference.run(self._network, held_out)))
        self.reference = Reference.parse(raw)

    def through(self, corruption: Corruption) -> Camera:
        rng = np.random.default_rng(self._seed)
        looks = 1 if corruption is clean else LOOKS
        seen = np.concatenate([corruption(self._streamed, rng) for _ in range(looks)])
        classes, confidence = classes_and_confidence(inference.run(self._network, seen))
        return Camera(float((classes == np.tile(self._truths, looks)).mean()), confidence)


@cache
def _network(version: str) -> inference.Network:
    spec = next(each for each in digits.releases() if each.version == version)
    return inference.load(spec.variants[0], spec.content(spec.variants[0].files[0]))
