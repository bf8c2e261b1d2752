"""The byte window: parts of a file as numbers, for models that read bytes. The white space rules are magika's."""

import numpy as np

from muster_agent.engines.port import Array
from muster_agent.engines.tensors import DTYPES
from muster_agent.pipeline.value import Context, PrepareOperation, Unfit
from muster_shared import pipeline as p


def window(step: p.Window) -> PrepareOperation:
    """Return the operation of `step`."""
    dtype = DTYPES[step.datatype]
    total = step.head_bytes + step.middle_bytes + step.tail_bytes

    def operation(value: object, _: Context) -> Array:
        assert isinstance(value, bytes)
        if len(value) > step.bytes_max:
            raise Unfit(f"has {len(value)} bytes; the limit is {step.bytes_max}")
        head, middle, tail = _parts(step, value)
        out = np.full(total, step.padding, dtype)
        out[: len(head)] = np.frombuffer(head, np.uint8)
        if middle:
            start = step.head_bytes + (step.middle_bytes - len(middle)) // 2
            out[start : start + len(middle)] = np.frombuffer(middle, np.uint8)
        if tail:
            out[-len(tail) :] = np.frombuffer(tail, np.uint8)
        return out

    return operation


def _parts(step: p.Window, content: bytes) -> tuple[bytes, bytes, bytes]:
    """Return head, middle and tail; each at most as long as its part of the window."""
    block = step.block_bytes
    if step.strip == "whole" and len(content) < 2 * block + step.middle_bytes:
        head = tail = whole = content.strip()
        start, rest = 0, len(whole)
    else:
        head, tail, whole = content[:block], content[-block:], content
        if step.strip != "no":
            head, tail = head.lstrip(), tail.rstrip()
        # The middle is that of what lies between the white space that was cut.
        start = min(block, len(content)) - len(head)
        rest = max(0, len(content) - start - (min(block, len(content)) - len(tail)))
    start += max(0, rest - step.middle_bytes) // 2
    middle = whole[start : start + min(step.middle_bytes, rest)]
    return head[: step.head_bytes], middle, tail[-step.tail_bytes :] if step.tail_bytes else b""
