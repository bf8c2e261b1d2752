"""What the checker of pipelines knows of a value before there is one: its kind, data type, shape and range.

Pure. `pipeline_prepare` and `pipeline_finish` say how each step changes it; nothing here looks at a real value.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

ELEMENTS_MAX = 32 * 1024 * 1024
"""Numbers in one prepared tensor at most (128 MB as FP32); the executor holds free sizes to it too."""

INTEGERS: dict[str, tuple[int, int]] = {
    "BOOL": (0, 1),
    "UINT8": (0, 255),
    "UINT16": (0, 2**16 - 1),
    "UINT32": (0, 2**32 - 1),
    "UINT64": (0, 2**64 - 1),
    "INT8": (-128, 127),
    "INT16": (-(2**15), 2**15 - 1),
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}
FLOATS: dict[str, float] = {"FP16": 65504.0, "FP32": 3.4028234663852886e38, "FP64": 1.7976931348623157e308}

FieldType = Literal["string", "double", "int", "objects", "list", "dyn"]
"""Of a field of the answer, as a rule sees it; `objects` is a list of {name: value}."""


class TensorLike(Protocol):
    """What the checker reads of a manifest's input or output (`bundle.TensorSpec`)."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def min(self) -> float | None: ...
    @property
    def max(self) -> float | None: ...


class Misfit(Exception):
    """What a step got and what it wanted; caught where the step's number is known."""


@dataclass(frozen=True)
class Extent:
    """One side of an image, in pixels; `high` None: as large as the decoder allows."""

    low: int = 1
    high: int | None = None

    @property
    def size(self) -> int:
        """The size when it is certain, else -1."""
        return self.low if self.low == self.high else -1

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low} or more"


@dataclass(frozen=True)
class Encoded:
    """The raw input."""

    media: tuple[str, ...]

    def __str__(self) -> str:
        return f"the raw {' or '.join(self.media)}"


@dataclass(frozen=True)
class Picture:
    colour: Literal["RGB", "GRAY"]
    height: Extent = Extent()
    width: Extent = Extent()

    def __str__(self) -> str:
        return f"a {self.colour} image (height {self.height}, width {self.width})"


@dataclass(frozen=True)
class Text:
    def __str__(self) -> str:
        return "a text"


@dataclass(frozen=True)
class Fed:
    """Nothing is left: the step before gave its result to the model's inputs."""

    def __str__(self) -> str:
        return "nothing (the inputs are fed)"


@dataclass(frozen=True)
class Tensor:
    """`shape` with -1 for free sizes; `low` and `high` None: unknown. `channels`: the axis of an image's channels."""

    datatype: str
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None
    channels: int | None = None

    def __str__(self) -> str:
        known = "" if self.low is None or self.high is None else f" in {self.low:g}..{self.high:g}"
        return f"{self.datatype} {list(self.shape)}{known}"


Value = Encoded | Picture | Text | Tensor | Fed


def is_number(datatype: str) -> bool:
    return datatype in INTEGERS or datatype in FLOATS


def product(shape: tuple[int, ...]) -> int:
    """Return how many elements `shape` has, or -1 when a size is free."""
    return -1 if -1 in shape else prod(shape)


def wants(value: object, what: str) -> Misfit:
    return Misfit(f"got {value}; it wants {what}")


def fits(value: Tensor, spec: TensorLike) -> tuple[int, ...]:
    """Return the shape with which `value` enters the input `spec`: its own, or with an axis of one case before it.

    Raises:
        Misfit: it does not fit.
    """
    want = f"{spec.datatype} {list(spec.shape)} for input {spec.name!r}"
    if value.datatype != spec.datatype:
        raise wants(value, want)
    shape = value.shape
    if len(shape) + 1 == len(spec.shape) and spec.shape[0] in (-1, 1):
        shape = (1, *shape)
    if len(shape) != len(spec.shape) or any(
        size not in (-1, actual) for size, actual in zip(spec.shape, shape, strict=True)
    ):
        raise wants(value, want)
    too_low = spec.min is not None and value.low is not None and value.low < spec.min
    too_high = spec.max is not None and value.high is not None and value.high > spec.max
    if too_low or too_high:
        raise wants(value, f"{want} in {spec.min}..{spec.max}")
    return shape
