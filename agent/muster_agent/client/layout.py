"""Where each tensor lies in a shared-memory region: one array [slots, ...] for each input, then for each output.

    0 ── input 0 [slots, ...] ── input 1 ... ── output 0 [slots, ...] ── output 1 ... ── size

Every array begins on a cache line. Both sides compute it from the release and the number of slots, so nothing about it
needs to be sent or believed. Pure.
"""

import mmap

import numpy as np

from muster_agent.client.schema import Side
from muster_agent.engines.port import Array
from muster_shared.errors import WireError

LINE_BYTES = 64
REGION_BYTES_MAX = 256 * 1024 * 1024
SLOTS_MAX = 1 << 20


class RegionInvalid(WireError):
    """A region that cannot be: too large, or for a model whose tensors have free sizes."""


class Layout:
    """The offsets of one region."""

    def __init__(self, inputs: Side, outputs: Side, slots: int) -> None:
        """
        Raises:
            RegionInvalid: a tensor has no batch axis or a free size, or the region would be too large.
        """
        for side in (inputs, outputs):
            if not (side.is_fixed and side.is_batched):
                raise RegionInvalid(
                    f"shared memory needs tensors with a batch axis and otherwise fixed sizes; {list(side.names)} are"
                    " not: use `infer`"
                )
        if not 1 <= slots <= SLOTS_MAX:
            raise RegionInvalid(f"a region has 1 to {SLOTS_MAX} slots, not {slots}")
        self.slots = slots
        self._inputs = inputs
        self._outputs = outputs
        offset = 0
        offsets: list[int] = []
        for row_bytes in (*inputs.row_bytes, *outputs.row_bytes):
            offsets.append(offset)
            offset += -(-row_bytes * slots // LINE_BYTES) * LINE_BYTES
        self.input_offsets = tuple(offsets[: len(inputs.specs)])
        self.output_offsets = tuple(offsets[len(inputs.specs) :])
        self.size = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        if self.size > REGION_BYTES_MAX:
            raise RegionInvalid(f"{slots} slots take {self.size} bytes; the limit is {REGION_BYTES_MAX}: use fewer")

    def inputs(self, memory: memoryview) -> tuple[Array, ...]:
        """Return the arrays of the inputs in `memory`, views [slots, ...]."""
        return self._arrays(memory, self._inputs, self.input_offsets)

    def outputs(self, memory: memoryview) -> tuple[Array, ...]:
        """Return the arrays of the outputs in `memory`, views [slots, ...]."""
        return self._arrays(memory, self._outputs, self.output_offsets)

    def _arrays(self, memory: memoryview, side: Side, offsets: tuple[int, ...]) -> tuple[Array, ...]:
        return tuple(
            np.ndarray((self.slots, *shape), dtype, memory, offset)
            for shape, dtype, offset in zip(side.row_shapes, side.dtypes, offsets, strict=True)
        )
