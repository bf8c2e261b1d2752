"""What a release does before and after its model: declared steps, signed with the bundle, so that a device prepares an
input exactly as training did.

    raw file ── prepare: step, step, … ──> the manifest's inputs ── model ──> outputs ── finish: step, … ──> predictions

Data only: a step says what is to be done, with its units in its names. `pipeline_check` proves that the steps fit
together, `muster_agent.pipeline` carries them out. Nothing here is code, and nothing here fetches any.
"""

from typing import Annotated, Literal

import msgspec

STEPS_MAX = 32
"""Of `prepare`, and of `finish`."""

Media = Literal["image/jpeg", "image/png", "audio/wav", "text/plain", "application/octet-stream"]
Number = Literal["UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]
Name = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_]{0,63}$")]
"""A field of the answer, or an intermediate tensor; an identifier in a rule."""
Side = Annotated[int, msgspec.Meta(ge=1, le=16384)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _Step(msgspec.Struct, frozen=True, kw_only=True, tag_field="step", forbid_unknown_fields=True):
    """A field that is not understood would change what the step does, so it is refused and not ignored."""


# --- Images -----------------------------------------------------------------------------------------------------------


class DecodeImage(_Step, frozen=True, kw_only=True, tag="decode_image"):
    """JPEG or PNG to 8 bits a channel, upright as EXIF says; palettes are resolved, transparency is dropped."""

    colour: Literal["RGB", "GRAY"] = "RGB"
    """GRAY is ITU-R 601-2 luma: (299 R + 587 G + 114 B) / 1000."""
    bytes_max: Annotated[int, msgspec.Meta(ge=1, le=64 * 1024 * 1024)] = 16 * 1024 * 1024
    pixels_max: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] = 25_000_000
    draft: bool = False
    """Let the JPEG decoder itself halve, to the smallest of 1/1, 1/2, 1/4, 1/8 that is not below the resize that
    follows: faster, but not pixel by pixel what a decoder gives that does not. Train as you serve."""


class Invert(_Step, frozen=True, kw_only=True, tag="invert"):
    """Every channel becomes 255 - value."""


Filter = Literal["nearest", "bilinear", "bicubic", "area", "lanczos"]


class Resize(_Step, frozen=True, kw_only=True, tag="resize"):
    """To exactly `height` x `width`; the aspect ratio is not kept. Filters are Pillow's (area is its BOX)."""

    height: Side
    width: Side
    filter: Filter = "bilinear"
    antialias: bool = True
    """Widen the filter when shrinking, as Pillow's `resize` does. False (bilinear and bicubic only): sample at pixel
    centres, as `cv2.resize` and `torch.nn.functional.interpolate(align_corners=False)` do."""


class ResizeShorter(_Step, frozen=True, kw_only=True, tag="resize_shorter"):
    """The shorter side to `side`, the other to floor(side x longer / shorter), as torchvision's `Resize(side)`."""

    side: Side
    filter: Filter = "bilinear"


class Letterbox(_Step, frozen=True, kw_only=True, tag="letterbox"):
    """Scaled to fit into `height` x `width` with its aspect ratio, sides rounded to nearest; the rest is `fill`."""

    height: Side
    width: Side
    filter: Filter = "bilinear"
    fill: Byte = 114
    place: Literal["centre", "corner"] = "centre"
    """`centre` puts floor(free / 2) left and above; `corner` puts the image at the top left."""


class Crop(_Step, frozen=True, kw_only=True, tag="crop"):
    """The middle `height` x `width`; it begins at round((size - wanted) / 2), as torchvision's `CenterCrop`."""

    height: Side
    width: Side


class Region(_Step, frozen=True, kw_only=True, tag="region"):
    """A fixed part of the view, in shares of its sides; edges are rounded to nearest pixel, at least one stays."""

    left: Share = 0.0
    top: Share = 0.0
    right: Share = 1.0
    bottom: Share = 1.0


class Layout(_Step, frozen=True, kw_only=True, tag="layout"):
    """An image to a UINT8 tensor 0..255, batch 1: [1, channels, height, width] or [1, height, width, channels]."""

    order: Literal["NCHW", "NHWC"]
    colour: Literal["RGB", "BGR", "GRAY"] = "RGB"
    """GRAY when it was decoded so."""


# --- Numbers ----------------------------------------------------------------------------------------------------------


class Normalise(_Step, frozen=True, kw_only=True, tag="normalise"):
    """(x / divisor - mean) / std, in FP32 and in this order. One `mean` and `std` for all, or one for each channel."""

    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Quantise(_Step, frozen=True, kw_only=True, tag="quantise"):
    """clip(round half to even(x / scale) + zero_point), for models with integer inputs."""

    scale: float
    zero_point: int
    datatype: Literal["UINT8", "INT8"]


class Cast(_Step, frozen=True, kw_only=True, tag="cast"):
    """To another data type. Its values must be known to fit; fractions are rounded half to even, never cut."""

    datatype: Number


class Reshape(_Step, frozen=True, kw_only=True, tag="reshape"):
    """The same numbers in the same (row-major) order; one size may be -1: what remains."""

    shape: tuple[int, ...]


class Transpose(_Step, frozen=True, kw_only=True, tag="transpose"):
    """Axes in another order, as `numpy.transpose`."""

    axes: tuple[int, ...]


class FitLength(_Step, frozen=True, kw_only=True, tag="fit_length"):
    """A 1-D tensor or a sound to exactly `length` numbers: `value` is added, or numbers are cut, at `at`."""

    length: Annotated[int, msgspec.Meta(ge=1, le=64_000_000)]
    at: Literal["start", "end"] = "end"
    value: float = 0.0


class Constant(_Step, frozen=True, kw_only=True, tag="constant"):
    """Feeds a further input that is the same for every request, such as a rate; what the steps carry is untouched."""

    input: str
    shape: tuple[int, ...]
    values: Annotated[tuple[float, ...], msgspec.Meta(max_length=4096)]


# --- Sound ------------------------------------------------------------------------------------------------------------


class DecodeWav(_Step, frozen=True, kw_only=True, tag="decode_wav"):
    """WAV to one channel of FP32 in -1..1 at `rate_hz`. PCM of 8, 16, 24 and 32 bits is divided by 2^(bits - 1)."""

    rate_hz: Annotated[int, msgspec.Meta(ge=1000, le=384_000)]
    channel: Literal["mix", "first", "only"] = "mix"
    """`mix` is the mean of the channels; `only` refuses a file with more than one."""
    resample: bool = False
    """Convert other rates (libsoxr, HQ). False refuses them."""
    seconds_min: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    seconds_max: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0


class Frame(_Step, frozen=True, kw_only=True, tag="frame"):
    """A sound to rows of `length` samples, one each `hop`, each after the `context` samples before it (zeros first).

    Result: FP32 [rows, context + length].
    """

    length: Annotated[int, msgspec.Meta(ge=1, le=16_000_000)]
    hop: Annotated[int, msgspec.Meta(ge=1, le=16_000_000)]
    context: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    rest: Literal["pad", "drop"] = "pad"
    """What becomes of a last row that is not full; `pad` fills it with zeros. A sound below one row is padded."""


# --- Text and bytes ---------------------------------------------------------------------------------------------------


class DecodeText(_Step, frozen=True, kw_only=True, tag="decode_text"):
    """UTF-8, strictly; a byte order mark is dropped."""

    bytes_max: Annotated[int, msgspec.Meta(ge=1, le=16 * 1024 * 1024)] = 256 * 1024
    form: Literal["", "NFC", "NFKC"] = ""
    strip: bool = False


class Tokenise(_Step, frozen=True, kw_only=True, tag="tokenise"):
    """Text to token numbers, [1, tokens] each, by a `tokenizers` JSON file of the bundle with its special tokens.

    What the file itself says about truncation and padding is replaced by what stands here.
    """

    file: str
    tokens_max: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    """Longer texts are cut at their end; special tokens stay."""
    pad: bool = True
    """Up to `tokens_max`, with `pad_token`; else the length is free."""
    pad_token: str = "[PAD]"
    datatype: Literal["INT32", "INT64"] = "INT64"
    ids: str
    """The input that takes the numbers."""
    mask: str = ""
    """The input that takes 1 for tokens and 0 for padding; empty: none."""
    types: str = ""
    """The input that takes the segment of each token; empty: none."""


class Strings(_Step, frozen=True, kw_only=True, tag="strings"):
    """Text as it is, to a BYTES tensor [1]."""


class Window(_Step, frozen=True, kw_only=True, tag="window"):
    """A file to the numbers of its bytes at the head, in the middle and at the tail, `padding` where there are none.

    The head is padded at its end, the tail at its start, the middle evenly (the odd one at its end). White space is
    what Python's `bytes.strip` removes.
    """

    head_bytes: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    middle_bytes: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    tail_bytes: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
    block_bytes: Annotated[int, msgspec.Meta(ge=1, le=16_000_000)] = 4096
    """Head and tail are looked for in the first and last so many bytes."""
    strip: Literal["no", "outer", "whole"] = "outer"
    """`outer`: the first block loses white space before it, the last block that after it. `whole`: the same for files
    of at least two blocks and a middle; shorter ones lose both and are then read as one."""
    padding: Annotated[int, msgspec.Meta(ge=-1, le=65535)] = 256
    datatype: Literal["INT32", "INT64", "FP32"] = "INT32"
    bytes_max: Annotated[int, msgspec.Meta(ge=1, le=256 * 1024 * 1024)] = 64 * 1024 * 1024


# --- After the model --------------------------------------------------------------------------------------------------
# `output` names the tensor that a step reads: an output of the model, or what an earlier step put under `into`. Empty
# is the only tensor. A transform without `into` replaces what it read.


class Softmax(_Step, frozen=True, kw_only=True, tag="softmax"):
    """Along the last axis, in FP32, the largest subtracted first."""

    output: str = ""
    into: str = ""


class Sigmoid(_Step, frozen=True, kw_only=True, tag="sigmoid"):
    """1 / (1 + exp(-x)), in FP32."""

    output: str = ""
    into: str = ""


class Dequantise(_Step, frozen=True, kw_only=True, tag="dequantise"):
    """(x - zero_point) x scale, in FP32."""

    scale: float
    zero_point: int = 0
    output: str = ""
    into: str = ""


class Pool(_Step, frozen=True, kw_only=True, tag="pool"):
    """Axis 0 (the rows of one request, such as frames of a sound) to one, by its mean or its largest."""

    how: Literal["mean", "max"] = "mean"
    output: str = ""
    into: str = ""


class Permute(_Step, frozen=True, kw_only=True, tag="permute"):
    """Axes in another order, as `numpy.transpose`."""

    axes: tuple[int, ...]
    output: str = ""
    into: str = ""


class Slice(_Step, frozen=True, kw_only=True, tag="slice"):
    """From `start` up to `stop` along `axis`; `squeeze` drops the axis when one is left."""

    axis: Annotated[int, msgspec.Meta(ge=0, le=15)]
    start: Annotated[int, msgspec.Meta(ge=0)]
    stop: Count
    squeeze: bool = False
    output: str = ""
    into: str


class Values(_Step, frozen=True, kw_only=True, tag="values"):
    """The numbers themselves, nested as the tensor is, rounded to `decimals` when that is not negative."""

    field: Name = "values"
    decimals: Annotated[int, msgspec.Meta(ge=-1, le=12)] = -1
    output: str = ""


class TopK(_Step, frozen=True, kw_only=True, tag="top_k"):
    """The `k` largest of [classes], largest first (ties: smaller index first), as {label, index, score}."""

    field: Name = "classes"
    k: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    score_min: float | None = None
    """Those below are left out."""
    output: str = ""


class Label(_Step, frozen=True, kw_only=True, tag="label"):
    """The label of the largest of [classes], or `unknown` when it is below its threshold; and its score."""

    field: Name = "label"
    score_field: Name = "score"
    threshold: float = 0.0
    thresholds: dict[str, float] = {}
    """Of single labels, instead of `threshold`."""
    unknown: str = "unknown"
    rename: dict[str, str] = {}
    output: str = ""


class Boxes(_Step, frozen=True, kw_only=True, tag="boxes"):
    """Non-maximum suppression: boxes of [n, 4] with scores of [n, classes], [n], or [n] and `classes` [n], best first.

    Of each box only its best class counts. A box is dropped when its intersection over union with a better one
    (of its class, or of any) exceeds `iou_max`. Result: {label, index, score, box: {left, top, width, height}}, in
    pixels of the image as it was sent (upright) and clipped to it.
    """

    boxes: str
    scores: str
    classes: str = ""
    objectness: str = ""
    """[n], multiplied into the scores."""
    format: Literal["xyxy", "yxyx", "xywh", "cxcywh"] = "xyxy"
    units: Literal["pixels", "shares"] = "pixels"
    """Of the image that the model saw."""
    score_min: float = 0.25
    iou_max: Share = 0.45
    by_class: bool = True
    candidates_max: Annotated[int, msgspec.Meta(ge=1, le=30_000)] = 1000
    """Only so many best scores enter the suppression."""
    detections_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    field: Name = "boxes"


class CtcGreedy(_Step, frozen=True, kw_only=True, tag="ctc_greedy"):
    """The best symbol of each row of [time, symbols], repeats merged and blanks dropped, joined; and the mean score.

    The labels are the charset. With as many labels as symbols, `blank` is one of them; with one fewer it is not.
    """

    blank: Annotated[int, msgspec.Meta(ge=0)] = 0
    field: Name = "text"
    score_field: Name = "score"
    output: str = ""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule in CEL (the Common Expression Language) over the fields of the answer and over `input`."""

    name: Name
    when: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    """The expression. Of `field` any type that JSON has; else a truth value."""
    effect: Literal["field", "flag", "reject"] = "field"
    """`field` adds the value under `name`; `flag` adds `name` to `flags`; `reject` withholds the answer."""
    message: str = ""


class Rules(_Step, frozen=True, kw_only=True, tag="rules"):
    """Business rules, over the fields of all steps before this one. A rule does not see what its neighbours gave.

    `input` has content_type and bytes, of images also width and height (as sent, upright), of sounds seconds, of texts
    characters.
    """

    rules: Annotated[tuple[Rule, ...], msgspec.Meta(min_length=1, max_length=32)]


PrepareStep = (
    DecodeImage
    | Invert
    | Resize
    | ResizeShorter
    | Letterbox
    | Crop
    | Region
    | Layout
    | Normalise
    | Quantise
    | Cast
    | Reshape
    | Transpose
    | FitLength
    | Constant
    | DecodeWav
    | Frame
    | DecodeText
    | Tokenise
    | Strings
    | Window
)
FinishStep = Softmax | Sigmoid | Dequantise | Pool | Permute | Slice | Values | TopK | Label | Boxes | CtcGreedy | Rules


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one raw input becomes the model's inputs, and the model's outputs become predictions."""

    accepts: Annotated[tuple[Media, ...], msgspec.Meta(min_length=1)]
    prepare: Annotated[tuple[PrepareStep, ...], msgspec.Meta(min_length=1, max_length=STEPS_MAX)]
    finish: Annotated[tuple[FinishStep, ...], msgspec.Meta(min_length=1, max_length=STEPS_MAX)]
    golden_raw: str = ""
    """A ZIP file of the bundle with raw inputs and what must be predicted for them; empty: none."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files of the bundle that the pipeline needs."""
        tokenizers = [step.file for step in self.prepare if isinstance(step, Tokenise)]
        return tuple(dict.fromkeys([*tokenizers, *([self.golden_raw] if self.golden_raw else [])]))


def tag(step: PrepareStep | FinishStep) -> str:
    """Return what the manifest calls a step."""
    return str(step.__struct_config__.tag)
