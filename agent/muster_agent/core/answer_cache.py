"""Answers that were given before, by their exact inputs: bounded in bytes and in entries, the longest unused go first.

One cache belongs to one served release, so a hot swap begins with an empty one and no answer outlives its model. It
keeps digests of inputs, never inputs. Pure: it decides neither which models may be cached (the publisher does) nor what
an answer is.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 16  # Two inputs of 2^64 tried ones collide.
ENTRY_BYTES = 256  # What an entry costs beside its answer: key, links and tuples.

Tensor = bytes | memoryview | npt.NDArray[np.generic]
"""Raw bytes, or an object array of `bytes`."""
T = TypeVar("T")


def key(shapes: Sequence[tuple[int, ...]], tensors: Sequence[Tensor], rows: int = 1) -> bytes:
    """Return the digest of the inputs of one request: BLAKE2b over their shapes, lengths and bytes.

    Args:
        shapes: Of each tensor, as in `Call`.
        tensors: Of each, in the manifest's order.
        rows: Axis 0, where `shapes` leave it out.
    """
    digest = hashlib.blake2b(repr((rows, tuple(shapes))).encode(), digest_size=DIGEST_BYTES)
    for tensor in tensors:
        if isinstance(tensor, np.ndarray) and tensor.dtype == object:
            for element in tensor.reshape(-1).tolist():
                digest.update(b"%d:" % len(element))
                digest.update(element)
        else:
            view = tensor.data if isinstance(tensor, np.ndarray) else memoryview(tensor)
            digest.update(b"%d:" % view.nbytes)
            digest.update(view)
    return digest.digest()


class CacheCounts(msgspec.Struct, frozen=True, kw_only=True):
    hits: int = 0
    misses: int = 0
    entries: int = 0
    size_bytes: int = 0


class AnswerCache(Generic[T]):
    """Least recently used first out. What it holds must not be written to by whoever gets it."""

    def __init__(self, bytes_max: int, entries_max: int = 65_536) -> None:
        """
        Args:
            bytes_max: Of all answers with ENTRY_BYTES each; 0: nothing is kept.
        """
        self._bytes_max = bytes_max
        self._entries_max = entries_max
        self._answers: OrderedDict[bytes, tuple[T, int]] = OrderedDict()
        self._size_bytes = 0
        self._hits = 0
        self._misses = 0

    def get(self, key: bytes) -> T | None:
        """Return the answer under `key`, now the most recently used; None when there is none. Either is counted."""
        entry = self._answers.get(key)
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        self._answers.move_to_end(key)
        return entry[0]

    def put(self, key: bytes, answer: T, answer_bytes: int) -> None:
        """Keep `answer`, which holds `answer_bytes` of memory; one that alone is too large is not kept."""
        size = answer_bytes + ENTRY_BYTES
        before = self._answers.pop(key, None)
        if before is not None:
            self._size_bytes -= before[1]
        if size > self._bytes_max or self._entries_max < 1:
            return
        self._answers[key] = (answer, size)
        self._size_bytes += size
        while self._size_bytes > self._bytes_max or len(self._answers) > self._entries_max:
            _, (_, freed) = self._answers.popitem(last=False)
            self._size_bytes -= freed

    def counts(self) -> CacheCounts:
        return CacheCounts(
            hits=self._hits, misses=self._misses, entries=len(self._answers), size_bytes=self._size_bytes
        )
