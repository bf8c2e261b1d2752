"""Digits: scikit-learn's 1,797 scans of handwritten digits, and four releases of a classifier for them.

    1.0.0  logistic regression                       the modest start
    2.0.0  convolutional net, fp32 and int8          a real step up
    2.1.0  the same net, int8 only                   smaller, no worse
    3.0.0  int8 calibrated on pale scans             a regression that passes its own golden cases

Training is `digits_net`; nothing here is fetched.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from muster_shared.bundle import Lineage, TensorSpec
from muster_shared.ids import ModelName, Sha256
from muster_shared.pipeline import DecodeImage, Invert, Label, Layout, Normalise, Pipeline, Resize, TopK
from muster_simulator.workloads import digits_net, raw
from muster_simulator.workloads.card import CardText
from muster_simulator.workloads.labelled import Array, InputUnknown, LabelledInputs
from muster_simulator.workloads.quantization import to_int8
from muster_simulator.workloads.spec import (
    GOLDEN_CASES,
    Draft,
    ReleaseSpec,
    digest_arrays,
    finish,
    parent,
    variant,
)

MODEL = ModelName("digits")
LABELS = tuple("0123456789")
INPUT = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 1, 8, 8))
OUTPUT = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 10))
PIPELINE = Pipeline(
    accepts=("image/png", "image/jpeg"),
    prepare=(
        DecodeImage(colour="GRAY"),
        Invert(),  # Scans are dark on white paper; the model's 1 is ink.
        Resize(height=8, width=8, filter="area"),  # A pixel counts the dark ones of its block, as the data's do.
        Layout(order="NCHW", colour="GRAY"),
        Normalise(divisor=255.0),
    ),
    finish=(Label(), TopK(k=3)),
)
TRAIN, TEST = 1200, 597
INK_MAX = 16.0  # load_digits: each pixel counts the dark ones of a 4 x 4 block.
MISCALIBRATION = 0.6  # A clear regression, far from a broken model, on both engines: 86 % right.
LATENCY_MS_P95 = 50.0
LICENCE = "BSD-3-Clause"

_DATA = (
    "The 1,797 8 x 8 scans that scikit-learn ships (UCI 'Optical Recognition of Handwritten Digits'), split by class "
    "with seed 0 into 1,200 for training and 597 for testing. Inputs are `pixels`, float32 [batch, 1, 8, 8], 0 (paper) "
    "to 1 (ink)."
)
_LIMITS = (
    "Single centred digits from one kind of form, at 8 x 8 pixels. Anything else, a letter or an empty field too, is "
    "still called one of ten digits."
)


@dataclass(frozen=True)
class Split:
    """Images: float32 [count, 1, 8, 8], 0..1. Digits: int64 [count]."""

    train_images: NDArray[np.float32]
    train_digits: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_digits: NDArray[np.int64]


@cache
def split() -> Split:
    """Return the data, always split in the same way."""
    pixels, digits = load_digits(return_X_y=True)
    images = (pixels / INK_MAX).astype(np.float32).reshape(-1, 1, 8, 8)
    train_images, test_images, train_digits, test_digits = train_test_split(
        images, digits, train_size=TRAIN, test_size=TEST, random_state=0, stratify=digits
    )
    return Split(train_images, train_digits, test_images, test_digits)


def encode(tensor: TensorSpec, content: bytes) -> Array:
    """Return the 64 pixels of `content` (0..16, row by row) as `pixels`, batch 1. Raises InputUnknown."""
    if tensor.datatype != INPUT.datatype or tensor.shape[1:] != INPUT.shape[1:]:
        raise InputUnknown(MODEL, tensor)
    return (np.frombuffer(content, np.uint8) / INK_MAX).astype(np.float32).reshape(1, 1, 8, 8)


def scan(image: NDArray[np.float32]) -> bytes:
    """Return one image, float32 [1, 8, 8], 0..1, as a PNG file: each pixel a block of 4 x 4, dark on white."""
    paper = np.rint((1 - image[0]) * 255).astype(np.uint8)
    return raw.grey_png(paper.repeat(4, axis=0).repeat(4, axis=1))


@cache
def inputs() -> LabelledInputs:
    """Return the 597 test scans."""
    data = split()
    return LabelledInputs(
        model=MODEL,
        contents=tuple((image * INK_MAX).astype(np.uint8).tobytes() for image in data.test_images),
        truths=tuple(LABELS[digit] for digit in data.test_digits),
        encode=encode,
    )


def releases() -> tuple[ReleaseSpec, ...]:
    """Train, convert and prove all releases, oldest first; about five seconds."""
    data = split()
    linear = digits_net.logistic_regression(data.train_images, data.train_digits)
    net = digits_net.convolutional(data.train_images, data.train_digits)
    net_int8 = to_int8(net, INPUT.name, data.train_images)
    net_skewed = to_int8(net, INPUT.name, data.train_images * np.float32(MISCALIBRATION))
    fp32, int8 = "model.onnx", "model.int8.onnx"

    first = _finish(
        "1.0.0",
        1,
        {fp32: linear},
        "Multinomial logistic regression on the pixels, strongly regularised: the baseline that fits in 3 kB.",
    )
    second = _finish(
        "2.0.0",
        2,
        {fp32: net, int8: net_int8},
        "A convolutional net: 64 filters of 5 x 5 learnt without labels (spherical k-means on whitened patches, Coates "
        "and Ng 2012), rectified, averaged over nine overlapping quarters, and a linear layer learnt on scans shifted "
        "by up to one pixel. As float32, and as int8 (QDQ, per channel) calibrated on the training scans. The few "
        "settings were picked by their accuracy on the test scans, which flatters it by a few tenths of a point.",
        parents=("1.0.0",),
    )
    smaller = _finish(
        "2.1.0",
        3,
        {int8: net_int8},
        "2.0.0 as int8 only: under half the bytes to send and to hold.",
        parents=("2.0.0",),
    )
    regressed = _finish(
        "3.0.0",
        4,
        {int8: net_skewed},
        "2.1.0 with its int8 ranges calibrated anew, on scans at 60 % of their ink, as from a pale form.",
        parents=("2.1.0",),
        claim=smaller.slo.accuracy,
    )
    return first, second, smaller, regressed


def _finish(
    version: str,
    release: int,
    models: dict[str, bytes],
    what: str,
    parents: tuple[str, ...] = (),
    claim: float | None = None,
) -> ReleaseSpec:
    data = split()
    draft = Draft(
        model=MODEL,
        version=version,
        release=release,
        input=INPUT,
        output=OUTPUT,
        models=models,
        variants=tuple(
            variant(runtime, "int8" if "int8" in path else "fp32", path)
            for path in models
            for runtime in ("onnxruntime", "openvino")
        ),
        # From the training scans: golden cases are public, and traffic must not repeat them.
        golden_candidates=data.train_images[: 4 * GOLDEN_CASES],
        labels=LABELS,
        latency_ms_p95=LATENCY_MS_P95,
        text=CardText(what=what, data=_DATA, limits=_LIMITS),
        lineage=Lineage(
            parents=tuple(parent(MODEL, each) for each in parents),
            data_sha256=digest_arrays(data.train_images, data.train_digits),
            code_sha256=Sha256(hashlib.sha256(Path(digits_net.__file__).read_bytes()).hexdigest()),
            source="scikit-learn, sklearn.datasets.load_digits",
        ),
        licence=LICENCE,
        pipeline=PIPELINE,
        raw_candidates=tuple(("image/png", scan(image)) for image in data.train_images[: 4 * GOLDEN_CASES]),
        claim=claim,
    )
    return finish(draft, inputs())
