"""Labelled inputs: what clients of a model send, and what the right answer is.

Inputs are kept as the bytes that a client has (pixels, a file). What is sent depends on the version that answers, so
`encode` looks at the served model's metadata. Nothing here talks to a server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muster_shared.bundle import TensorSpec
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName

Array = NDArray[np.float32] | NDArray[np.int32]
"""What these models take and give; axis 0 is the batch."""


class InputUnknown(MusterError):
    """A served model asks for a tensor that these inputs cannot be turned into."""

    def __init__(self, model: ModelName, tensor: TensorSpec) -> None:
        super().__init__(
            f"no way is known to make {tensor.datatype} {list(tensor.shape)} inputs for {model}; "
            "teach the workload this version's features"
        )
        self.model = model
        self.tensor = tensor


@dataclass(frozen=True)
class LabelledInputs:
    """`contents[i]` is raw input i, `truths[i]` the name of its right label; the order is mixed and never changes."""

    model: ModelName
    contents: tuple[bytes, ...]
    truths: tuple[str, ...]
    encode: Callable[[TensorSpec, bytes], Array]
    """One raw input as the served tensor wants it, with a batch axis of 1. Raises InputUnknown."""

    def __len__(self) -> int:
        return len(self.contents)

    def batch(self, tensor: TensorSpec, indices: Sequence[int] | None = None) -> Array:
        """Return the inputs at `indices` (all when None) as one array, axis 0 the batch. Raises InputUnknown."""
        chosen = range(len(self)) if indices is None else indices
        return np.concatenate([self.encode(tensor, self.contents[index]) for index in chosen])
