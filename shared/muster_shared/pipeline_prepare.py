"""How each step of `prepare` changes what is known of the value: the types that lead from a raw file to the inputs.

Pure. The executor in `muster_agent.pipeline` does the same steps on real values and trusts what is proven here.
"""

import math
from collections.abc import Sequence
from typing import assert_never

from muster_shared import pipeline as p
from muster_shared.pipeline_types import (
    ELEMENTS_MAX,
    FLOATS,
    INTEGERS,
    Encoded,
    Extent,
    Fed,
    Misfit,
    Picture,
    Tensor,
    TensorLike,
    Text,
    Value,
    fits,
    is_number,
    product,
    wants,
)

IMAGES = ("image/jpeg", "image/png")


def apply(step: p.PrepareStep, value: Value, inputs: Sequence[TensorLike], fed: dict[str, tuple[int, ...]]) -> Value:
    """Return what is known after `step`; inputs that it feeds are put into `fed` with their shapes.

    Raises:
        Misfit: the step does not fit what it gets.
    """
    match step:
        case p.DecodeImage():
            _media(value, IMAGES)
            return Picture(step.colour)
        case p.DecodeWav():
            _media(value, ("audio/wav",))
            if step.seconds_min > step.seconds_max:
                raise Misfit(f"seconds_min {step.seconds_min:g} exceeds seconds_max {step.seconds_max:g}")
            bound = None if step.resample else 1.0  # A band-limited filter may overshoot.
            return Tensor("FP32", (-1,), None if bound is None else -bound, bound)
        case p.DecodeText():
            _media(value, ("text/plain",))
            return Text()
        case p.Invert() | p.Resize() | p.ResizeShorter() | p.Letterbox() | p.Crop() | p.Region() | p.Layout():
            return _image(step, value)
        case p.Tokenise():
            return _tokenise(step, value, inputs, fed)
        case p.Strings():
            if not isinstance(value, Text):
                raise wants(value, "a text")
            return Tensor("BYTES", (1,))
        case p.Window():
            return _window(step, value)
        case p.Constant():
            spec = _input(step.input, inputs, fed)
            fed[step.input] = fits(_constant(step, spec), spec)
            return value
        case p.FitLength() | p.Frame():
            return _sound(step, value)
        case p.Normalise() | p.Quantise() | p.Cast() | p.Reshape() | p.Transpose():
            return _numbers(step, value)
        case _:
            assert_never(step)


def _media(value: Value, readable: tuple[str, ...]) -> None:
    if not isinstance(value, Encoded) or not set(value.media) <= set(readable):
        raise wants(value, f"the raw {' or '.join(readable)} (see `accepts`)")


def _image(
    step: p.Invert | p.Resize | p.ResizeShorter | p.Letterbox | p.Crop | p.Region | p.Layout, value: Value
) -> Picture | Tensor:
    if not isinstance(value, Picture):
        raise wants(value, "an image")
    match step:
        case p.Invert():
            return value
        case p.Resize() | p.Letterbox():
            if isinstance(step, p.Resize) and not step.antialias and step.filter not in ("bilinear", "bicubic"):
                raise Misfit(f"antialias = false goes with bilinear and bicubic, not with {step.filter}")
            return Picture(value.colour, Extent(step.height, step.height), Extent(step.width, step.width))
        case p.ResizeShorter():
            sides = value.height.size, value.width.size
            if -1 in sides:
                return Picture(value.colour, Extent(step.side), Extent(step.side))
            longer = step.side * max(sides) // min(sides)
            height, width = (longer, step.side) if sides[0] > sides[1] else (step.side, longer)
            return Picture(value.colour, Extent(height, height), Extent(width, width))
        case p.Crop():
            if value.height.low < step.height or value.width.low < step.width:
                raise wants(value, f"an image of at least {step.height} x {step.width}; resize it first")
            return Picture(value.colour, Extent(step.height, step.height), Extent(step.width, step.width))
        case p.Region():
            if step.left >= step.right or step.top >= step.bottom:
                raise Misfit("left must be below right, and top below bottom")
            rest = _part(value.height, step.top, step.bottom), _part(value.width, step.left, step.right)
            return Picture(value.colour, *rest)
        case p.Layout():
            if (step.colour == "GRAY") != (value.colour == "GRAY"):
                raise wants(value, f"one that was decoded as {'GRAY' if step.colour == 'GRAY' else 'RGB'}")
            channels = 1 if value.colour == "GRAY" else 3
            height, width = value.height.size, value.width.size
            if step.order == "NCHW":
                return _sized(Tensor("UINT8", (1, channels, height, width), 0, 255, channels=1))
            return _sized(Tensor("UINT8", (1, height, width, channels), 0, 255, channels=3))


def _part(side: Extent, start: float, end: float) -> Extent:
    def cut(size: int) -> int:
        return region(size, start, end)[1] - region(size, start, end)[0]

    if side.low == side.high:
        return Extent(cut(side.low), cut(side.low))
    return Extent(1, None)


def region(size: int, start: float, end: float) -> tuple[int, int]:
    """Return the first pixel and the one after the last of the shares `start`..`end` of a side; at least one pixel."""
    first = min(int(start * size + 0.5), size - 1)
    return first, max(first + 1, min(int(end * size + 0.5), size))


def _tokenise(step: p.Tokenise, value: Value, inputs: Sequence[TensorLike], fed: dict[str, tuple[int, ...]]) -> Fed:
    if not isinstance(value, Text):
        raise wants(value, "a text")
    tensor = Tensor(step.datatype, (1, step.tokens_max if step.pad else -1))
    for name in filter(None, (step.ids, step.mask, step.types)):
        fed[name] = fits(tensor, _input(name, inputs, fed))
    return Fed()


def _window(step: p.Window, value: Value) -> Tensor:
    if not isinstance(value, Encoded):
        raise wants(value, "the raw file")
    total = step.head_bytes + step.middle_bytes + step.tail_bytes
    if not total:
        raise Misfit("it takes no bytes at all; give head_bytes, middle_bytes or tail_bytes")
    if max(step.head_bytes, step.tail_bytes) > step.block_bytes:
        raise Misfit(f"head_bytes and tail_bytes must fit into block_bytes, {step.block_bytes}")
    return Tensor(step.datatype, (total,), min(0, step.padding), max(255, step.padding))


def _constant(step: p.Constant, spec: TensorLike) -> Tensor:
    if not is_number(spec.datatype):
        raise Misfit(f"input {step.input!r} takes {spec.datatype}, not numbers")
    if any(size < 1 for size in step.shape) or product(step.shape) != len(step.values):
        raise Misfit(f"shape {list(step.shape)} does not hold {len(step.values)} values")
    _check_range(min(step.values), max(step.values), spec.datatype)
    if spec.datatype in INTEGERS and any(value != int(value) for value in step.values):
        raise Misfit(f"input {step.input!r} takes {spec.datatype}; the values have fractions")
    return Tensor(spec.datatype, step.shape, min(step.values), max(step.values))


def _input(name: str, inputs: Sequence[TensorLike], fed: dict[str, tuple[int, ...]]) -> TensorLike:
    if name in fed:
        raise Misfit(f"input {name!r} is fed twice")
    found = next((spec for spec in inputs if spec.name == name), None)
    if found is None:
        raise Misfit(f"{name!r} is no input of the model; it has {', '.join(spec.name for spec in inputs)}")
    return found


def _sound(step: p.FitLength | p.Frame, value: Value) -> Tensor:
    if not isinstance(value, Tensor) or len(value.shape) != 1 or not is_number(value.datatype):
        raise wants(value, "a sound, or numbers along one axis")
    if isinstance(step, p.Frame):
        if value.datatype != "FP32":
            raise wants(value, "FP32")
        rows = -1 if value.shape[0] == -1 else frame_rows(value.shape[0], step)
        if rows == 0:
            raise wants(value, f"at least {step.length} numbers")
        low = None if value.low is None else min(0.0, value.low)
        high = None if value.high is None else max(0.0, value.high)
        return _sized(Tensor("FP32", (rows, step.context + step.length), low, high))
    if value.datatype in INTEGERS and step.value != int(step.value):
        raise Misfit(f"value {step.value:g} is no {value.datatype}")
    _check_range(step.value, step.value, value.datatype)
    low = None if value.low is None else min(step.value, value.low)
    high = None if value.high is None else max(step.value, value.high)
    return _sized(Tensor(value.datatype, (step.length,), low, high))


def frame_rows(samples: int, step: p.Frame) -> int:
    """Return how many rows `samples` give; a sound below one row is padded to one."""
    if samples <= step.length:
        return 1
    free = samples - step.length
    if step.rest == "drop":
        return 1 + free // step.hop
    # A row begins only inside the sound: with a hop beyond the length, the end may lie between two rows.
    return 1 + min(-(-free // step.hop), (samples - 1) // step.hop)


def _numbers(step: p.Normalise | p.Quantise | p.Cast | p.Reshape | p.Transpose, value: Value) -> Tensor:
    if not isinstance(value, Tensor) or not is_number(value.datatype):
        raise wants(value, "a tensor of numbers")
    match step:
        case p.Normalise():
            return _normalise(step, value)
        case p.Quantise():
            if not step.scale > 0 or not math.isfinite(step.scale):
                raise Misfit("scale must be positive")
            least, most = INTEGERS[step.datatype]
            if not least <= step.zero_point <= most:
                raise Misfit(f"zero_point {step.zero_point} is no {step.datatype}")
            return Tensor(step.datatype, value.shape, least, most, value.channels)
        case p.Cast():
            if step.datatype in INTEGERS and value.datatype not in INTEGERS and value.low is None:
                raise Misfit(f"got {value}, whose range is unknown; use `quantise`, which clips")
            _check_range(
                _least(value.datatype) if value.low is None else value.low,
                _most(value.datatype) if value.high is None else value.high,
                step.datatype,
            )
            return Tensor(step.datatype, value.shape, value.low, value.high, value.channels)
        case p.Reshape():
            return Tensor(value.datatype, _reshaped(step.shape, value), value.low, value.high)
        case p.Transpose():
            shape = permuted(step.axes, value.shape)
            channels = None if value.channels is None else step.axes.index(value.channels)
            return Tensor(value.datatype, shape, value.low, value.high, channels)


def _normalise(step: p.Normalise, value: Tensor) -> Tensor:
    numbers = (step.divisor, *step.mean, *step.std)
    if not all(map(math.isfinite, numbers)) or step.divisor == 0 or 0 in step.std:
        raise Misfit("divisor, mean and std must be finite, divisor and std not 0")
    count = max(len(step.mean), len(step.std))
    if not step.mean or not step.std or {len(step.mean), len(step.std)} - {1, count}:
        raise Misfit("mean and std have one number each, or one for each channel")
    if count > 1:
        if value.channels is None:
            raise wants(value, "an image's layout, to know which axis the channels are")
        if value.shape[value.channels] != count:
            raise wants(value, f"{count} channels, as mean and std have")
    low = high = None
    if value.low is not None and value.high is not None:
        ends = [
            (end / step.divisor - mean) / std
            for end in (value.low, value.high)
            for mean, std in zip(_wide(step.mean, count), _wide(step.std, count), strict=True)
        ]
        low, high = _round(min(ends)), _round(max(ends))
    return Tensor("FP32", value.shape, low, high, value.channels)


def _round(bound: float) -> float:
    return round(bound, 6)  # The device computes in FP32; a bound is no finer than that.


def _wide(numbers: tuple[float, ...], count: int) -> tuple[float, ...]:
    return numbers * count if len(numbers) == 1 else numbers


def _reshaped(shape: tuple[int, ...], value: Tensor) -> tuple[int, ...]:
    if shape.count(-1) > 1 or any(size == 0 or size < -1 for size in shape):
        raise Misfit(f"shape {list(shape)}: sizes are positive, and one may be -1")
    total, known = product(value.shape), math.prod(size for size in shape if size != -1)
    if total == -1:
        if -1 not in shape:
            raise wants(value, f"fixed sizes, to become {list(shape)}")
        return shape
    if (total % known if -1 in shape else total != known) != 0:
        raise wants(value, f"as many numbers as {list(shape)} has")
    return tuple(total // known if size == -1 else size for size in shape)


def permuted(axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return `shape` with its axes in the order `axes`. Raises Misfit."""
    if sorted(axes) != list(range(len(shape))):
        raise Misfit(f"got {len(shape)} axes; {list(axes)} is not an order of them")
    return tuple(shape[axis] for axis in axes)


def _check_range(low: float, high: float, datatype: str) -> None:
    if not _least(datatype) <= low <= high <= _most(datatype):
        raise Misfit(f"got values in {low:g}..{high:g}, which do not all fit into {datatype}")


def _least(datatype: str) -> float:
    return INTEGERS[datatype][0] if datatype in INTEGERS else -FLOATS[datatype]


def _most(datatype: str) -> float:
    return INTEGERS[datatype][1] if datatype in INTEGERS else FLOATS[datatype]


def _sized(tensor: Tensor) -> Tensor:
    if product(tensor.shape) > ELEMENTS_MAX:
        raise Misfit(f"{tensor} has more than {ELEMENTS_MAX} numbers")
    return tensor
