"""Magika: what type a file is, by two published generations of a real model and one release that is worse.

    1.0.0  standard_v1 of magika 0.5.1    113 types from 3 x 512 bytes, float32
    2.0.0  standard_v3_3 of magika 1.0.3  214 types from 2 x 1024 bytes, int32
    3.0.0  2.0.0 with its tail masked     a regression that passes its own golden cases

The two take different features: a client looks at the served model's metadata and sends what `encode` makes for it.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from muster_shared.bundle import Lineage, TensorSpec
from muster_shared.ids import ModelName, Sha256
from muster_shared.pipeline import Label, Pipeline, TopK, Window
from muster_simulator.workloads import fetch, samples
from muster_simulator.workloads.card import CardText
from muster_simulator.workloads.labelled import Array, InputUnknown, LabelledInputs
from muster_simulator.workloads.spec import Draft, ReleaseSpec, finish, parent, variant

MODEL = ModelName("magika")
INPUT_V1 = TensorSpec(name="bytes", datatype="FP32", shape=(-1, 1536))
INPUT_V2 = TensorSpec(name="bytes", datatype="INT32", shape=(-1, 2048))
OUTPUT_NAME = "target_label"
LATENCY_MS_P95 = 250.0
LICENCE = "Apache-2.0"

# `block_size`, `padding_token` and the part sizes stand in each package's own configuration.
BLOCK = 4096
PADDING = 256
PART_V1 = 512
PART_V2 = 1024

WINDOW_V1 = Window(
    head_bytes=PART_V1,
    middle_bytes=PART_V1,
    tail_bytes=PART_V1,
    block_bytes=BLOCK,
    strip="whole",
    padding=PADDING,
    datatype="FP32",
)
WINDOW_V2 = Window(head_bytes=PART_V2, tail_bytes=PART_V2, block_bytes=BLOCK, padding=PADDING, datatype="INT32")

_FOLDER_V1 = "magika/models/standard_v1"
_FOLDER_V2 = "magika/models/standard_v3_3"
_SHA256 = {
    f"{_FOLDER_V1}/model.onnx": Sha256("71892ac28ffe028b9512561584970417f8cee1f2fbb7624634f4032cb92a0a5a"),
    f"{_FOLDER_V1}/model_config.json": Sha256("00bf2b72a76a14061037196cbd01d335ab6f1b57915d12104ffe98bdb250c714"),
    f"{_FOLDER_V2}/model.onnx": Sha256("fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c"),
    f"{_FOLDER_V2}/config.min.json": Sha256("ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db"),
}

_DATA = (
    "Trained by its authors on files that are not published. Measured here on files of known type: some that pinned "
    "Python packages ship, some that standard tools write from those; no type is more than an eleventh of the sample, "
    "and a tenth of it are types that only the second generation knows."
)
_LIMITS = (
    "The answer is the most likely type as it comes: the packages' own rules for empty, tiny and doubtful files are "
    "not applied. Measured on developers' files of 256 bytes to 1 MiB; documents, media and hostile files are hardly "
    "among them. "
    "Shorter files are harder for the second generation: with those from 64 bytes on it had 92 % right, not 96 %."
)


def features(tensor: TensorSpec, content: bytes) -> Array:
    """Return the features of a file for the version that is served with the input `tensor`, batch 1.

    Raises:
        InputUnknown: neither generation takes such a tensor.
    """
    match tensor.datatype, tensor.shape[1:]:
        case "FP32", (1536,):
            return _features_v1(content)[np.newaxis]
        case "INT32", (2048,):
            return _features_v2(content)[np.newaxis]
        case _:
            raise InputUnknown(MODEL, tensor)


@cache
def inputs() -> LabelledInputs:
    """Return about 220 files of known type."""
    drawn, _ = samples.draw()
    return LabelledInputs(
        model=MODEL,
        contents=tuple(sample.content for sample in drawn),
        truths=tuple(sample.truth for sample in drawn),
        encode=features,
    )


def releases(cache_folder: Path) -> tuple[ReleaseSpec, ...]:
    """Fetch the weights (once), derive 3.0.0 and prove all releases, oldest first; about ten seconds.

    Raises:
        WeightsUnavailable: the weights are neither in `cache_folder` nor to be had.
    """
    wheel_v1, wheel_v2 = fetch.wheel("0.5.1", cache_folder), fetch.wheel("1.0.3", cache_folder)
    config_v1 = json.loads(_member(wheel_v1, f"{_FOLDER_V1}/model_config.json"))
    config_v2 = json.loads(_member(wheel_v2, f"{_FOLDER_V2}/config.min.json"))
    labels_v1 = tuple(config_v1["train_dataset_info"]["target_labels_info"]["target_labels_space"])
    labels_v2 = tuple(config_v2["target_labels_space"])
    model_v2 = _member(wheel_v2, f"{_FOLDER_V2}/model.onnx")

    first = _finish(
        "1.0.0",
        1,
        INPUT_V1,
        _member(wheel_v1, f"{_FOLDER_V1}/model.onnx"),
        labels_v1,
        "The `standard_v1` model of magika 0.5.1: `bytes` are the first, middle and last 512 bytes of the file without "
        "outer white space, as numbers, 256 where there are none.",
        source=wheel_v1.name,
    )
    second = _finish(
        "2.0.0",
        2,
        INPUT_V2,
        model_v2,
        labels_v2,
        "The `standard_v3_3` model of magika 1.0.3: twice the types, from the first and last 1,024 bytes of the file "
        "without outer white space, as numbers, 256 where there are none. It knows 104 types that 1.0.0 does not, and "
        "lacks three names of its.",
        source=wheel_v2.name,
        parents=("1.0.0",),
    )
    regressed = _finish(
        "3.0.0",
        3,
        INPUT_V2,
        mask_tail(model_v2),
        labels_v2,
        "2.0.0 which no longer looks at the end of a file, so that a file can be judged while it is still being "
        "received. The input keeps its shape; its last 1,024 numbers have no effect.",
        source=wheel_v2.name,
        parents=("2.0.0",),
        claim=second.slo.accuracy,
    )
    return first, second, regressed


def mask_tail(raw: bytes) -> bytes:
    """Return the second generation's model with the tail half of its input always read as padding."""
    model = onnx.load_from_string(raw)
    graph = model.graph
    received, seen = graph.input[0].name, "bytes_without_tail"
    for node in graph.node:
        node.input[:] = [seen if name == received else name for name in node.input]
    is_head = np.arange(2 * PART_V2)[np.newaxis] < PART_V2
    graph.initializer.extend(
        [
            numpy_helper.from_array(is_head, "is_head"),
            numpy_helper.from_array(np.array(PADDING, np.int32), "padding_token"),
        ]
    )
    graph.node.insert(0, helper.make_node("Where", ["is_head", received, "padding_token"], [seen]))
    onnx.checker.check_model(model)
    masked: bytes = model.SerializeToString(deterministic=True)
    return masked


def _features_v1(content: bytes) -> NDArray[np.float32]:
    """Return float32 [1536]: first, middle and last 512 bytes of what is left without outer white space.

    A large file loses white space only in its outer blocks, and its middle is that of the rest. From magika 0.5.1,
    `Magika._extract_features_from_seekable`.
    """
    if len(content) < 2 * BLOCK + PART_V1:
        head = tail = middle = content.strip()
        start = max(0, (len(middle) - PART_V1) // 2)
    else:
        head, tail = content[:BLOCK].lstrip(), content[-BLOCK:].rstrip()
        middle = content
        cut_head, cut_tail = BLOCK - len(head), BLOCK - len(tail)
        start = cut_head + (len(content) - cut_head - cut_tail - PART_V1) // 2
    middle = middle[start : start + PART_V1]
    missing = PART_V1 - len(middle)
    parts = (
        _padded(head[:PART_V1], 0, PART_V1),
        _padded(middle, missing // 2, PART_V1),
        _last(tail, PART_V1),
    )
    return np.concatenate(parts).astype(np.float32)


def _features_v2(content: bytes) -> NDArray[np.int32]:
    """Return int32 [2048]: the first 1024 bytes after leading white space, the last 1024 before trailing.

    White space is stripped within one block at either end. From magika 1.0.3, `Magika._extract_features_from_seekable`.
    """
    head, tail = content[:BLOCK].lstrip(), content[-BLOCK:].rstrip()
    return np.concatenate((_padded(head[:PART_V2], 0, PART_V2), _last(tail, PART_V2)))


def _last(content: bytes, size: int) -> NDArray[np.int32]:
    kept = content[-size:]
    return _padded(kept, size - len(kept), size)


def _padded(content: bytes, before: int, size: int) -> NDArray[np.int32]:
    """Return int32 [size]: `content` after `before` padding tokens, and padding up to the end."""
    numbers = np.full(size, PADDING, np.int32)
    numbers[before : before + len(content)] = np.frombuffer(content, np.uint8)
    return numbers


def _member(wheel: Path, member: str) -> bytes:
    return fetch.read_member(wheel, member, _SHA256[member])


def _finish(
    version: str,
    release: int,
    tensor: TensorSpec,
    raw: bytes,
    labels: tuple[str, ...],
    what: str,
    source: str,
    parents: tuple[str, ...] = (),
    claim: float | None = None,
) -> ReleaseSpec:
    path = "model.onnx"
    _, spare = samples.draw()
    draft = Draft(
        model=MODEL,
        version=version,
        release=release,
        input=tensor,
        output=TensorSpec(name=OUTPUT_NAME, datatype="FP32", shape=(-1, len(labels))),
        models={path: raw},
        variants=(variant("onnxruntime", "fp32", path), variant("openvino", "fp32", path)),
        golden_candidates=np.concatenate([features(tensor, sample.content) for sample in spare]),
        labels=labels,
        latency_ms_p95=LATENCY_MS_P95,
        text=CardText(what=what, data=_DATA, limits=_LIMITS),
        lineage=Lineage(
            parents=tuple(parent(MODEL, each) for each in parents),
            # The training data is not public; this is the sample that the accuracy was measured on.
            data_sha256=_digest(inputs().contents),
            code_sha256=Sha256(hashlib.sha256(Path(__file__).read_bytes()).hexdigest()),
            source=source,
        ),
        licence=LICENCE,
        pipeline=Pipeline(
            accepts=("application/octet-stream",),
            prepare=(WINDOW_V1 if tensor is INPUT_V1 else WINDOW_V2,),
            finish=(Label(), TopK(k=3)),
        ),
        raw_candidates=tuple(("application/octet-stream", sample.content) for sample in spare),
        claim=claim,
    )
    return finish(draft, inputs())


def _digest(contents: tuple[bytes, ...]) -> Sha256:
    whole = hashlib.sha256()
    for content in contents:
        whole.update(hashlib.sha256(content).digest())
    return Sha256(whole.hexdigest())
