"""What a release says to the labelled inputs of its model. A value only: `catalogue` asks, by real inference."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Answers:
    """All [labelled inputs], in the workload's order."""

    answered: NDArray[np.int16]
    """The class with the largest score."""
    truth: NDArray[np.int16]
    """The right class; -1 where the release has none for it."""
    confidence: NDArray[np.float32]
    """The largest score, 0..1."""
    classes: int

    @property
    def right(self) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = self.answered == self.truth
        return same
