"""What travels between steps, and what can go wrong with it.

MusterError
├── PipelineError
│   ├── RawRefused           the caller's file is not what the pipeline reads: the caller is wrong (400)
│   ├── MediaRefused         a kind of file that the release does not accept (415)
│   ├── FinishFailed         the model's outputs cannot be read: counts against the release (500)
│   └── PipelineMissing      a step's library is not installed here; tensors still work (501)
└── BundleError
    └── PipelineUnloadable   a file or rule of the pipeline is broken: so is the release
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from muster_agent.engines.port import Array
from muster_shared.errors import BundleError, MusterError


class PipelineError(MusterError):
    """Anything that a pipeline refuses or cannot do."""


class RawRefused(PipelineError):
    """A raw input that a step cannot take; nothing was run."""

    def __init__(self, number: int, step: str, reason: str) -> None:
        super().__init__(f"the input is refused by step {number} ({step}): it {reason}")
        self.number = number
        self.step = step
        self.reason = reason


class MediaRefused(PipelineError):
    """A kind of input that the release does not accept."""

    def __init__(self, content_type: str, accepts: tuple[str, ...]) -> None:
        super().__init__(f"the input is {content_type}; this model takes {' or '.join(accepts)}, named in Content-Type")
        self.content_type = content_type
        self.accepts = accepts


class FinishFailed(PipelineError):
    """Outputs that a step cannot read: the release is wrong, not the caller."""

    def __init__(self, number: int, step: str, reason: str) -> None:
        super().__init__(f"the model's answer fails in step {number} ({step}): {reason}; publish a corrected release")
        self.number = number
        self.step = step
        self.reason = reason


class PipelineMissing(PipelineError):
    """The library of a step is not installed on this device. Inference on tensors does not need it."""

    def __init__(self, step: str, extra: str, reason: str) -> None:
        super().__init__(f"step {step} cannot be done here ({reason}); install muster-agent[{extra}], or send tensors")
        self.step = step
        self.extra = extra
        self.reason = reason


class PipelineUnloadable(BundleError):
    """A pipeline that does not load: its release is broken."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the pipeline does not load: {reason}; publish a corrected release")
        self.reason = reason


class Unfit(Exception):
    """What is wrong with a value; caught where the step's number is known, and never seen outside."""


@dataclass(slots=True)
class View:
    """Where the image that the model sees lies on the image that was sent: sent = seen x scale + offset, in pixels."""

    width: int
    height: int
    """Of the image as sent, upright."""
    scale_x: float = 1.0
    scale_y: float = 1.0
    left: float = 0.0
    top: float = 0.0
    seen_width: int = 0
    seen_height: int = 0

    def scaled(self, x: float, y: float) -> None:
        """The image was resized: its new pixels are `x` by `y` of the old ones."""
        self.scale_x *= x
        self.scale_y *= y

    def moved(self, x: float, y: float) -> None:
        """The new image's corner lies at (`x`, `y`) of the old one's pixels."""
        self.left += x * self.scale_x
        self.top += y * self.scale_y


@dataclass(slots=True)
class Context:
    """What is known of one raw input beside its tensors; `finish` needs it again. Of one request, never shared."""

    content_type: str
    raw_bytes: int
    view: View | None = None
    seconds: float | None = None
    characters: int | None = None
    fed: dict[str, Array] = field(default_factory=dict)

    def facts(self) -> dict[str, object]:
        """Return what a rule sees as `input`."""
        facts: dict[str, object] = {"content_type": self.content_type, "bytes": self.raw_bytes}
        if self.view is not None:
            facts |= {"width": self.view.width, "height": self.view.height}
        if self.seconds is not None:
            facts["seconds"] = self.seconds
        if self.characters is not None:
            facts["characters"] = self.characters
        return facts


@dataclass(slots=True)
class Prepared:
    """The model's inputs of one raw input, contiguous, by name."""

    arrays: dict[str, Array]
    context: Context


@dataclass(slots=True)
class Reading:
    """The model's outputs of one request on their way to an answer."""

    tensors: dict[str, Array]
    context: Context
    answer: dict[str, object] = field(default_factory=dict)

    def tensor(self, name: str) -> Array:
        """Return the tensor `name`; the only one when empty."""
        return self.tensors[name] if name else next(iter(self.tensors.values()))


PrepareOperation = Callable[[object, Context], object]
"""One step on one value, from any thread. Raises Unfit."""
FinishOperation = Callable[[Reading], None]
"""One step on the outputs, from any thread. Raises Unfit."""
