"""Training the digit classifiers with scikit-learn, and writing them as ONNX graphs by hand.

The convolutional net needs no back-propagation: its filters are learnt from patches without labels, its last layer is
a logistic regression (Coates and Ng, "Learning Feature Representations with K-means", 2012).
"""

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # It ships no type information.

from muster_simulator.workloads.inference import load_onnxruntime

IMAGE = 8
DIGITS = 10
FILTERS = 64
FILTER = 5
THRESHOLD = 0.25  # Subtracted before the rectifier, so that only clear matches count.
WHITENING_FLOOR = 0.02  # Keeps directions that hold only rounding noise from being blown up.
FLAT_PERCENTILE = 20  # Patches with less contrast than this are paper, not strokes.
PENALTY_LINEAR = 0.05
PENALTY_NET = 0.1
OPSET, IR_VERSION = 17, 8  # Old enough for every engine that reads ONNX, new enough for per-channel int8 (13).

Images = NDArray[np.float32]
Labels = NDArray[np.int64]
Weights = NDArray[np.float32]


def logistic_regression(images: Images, digits: Labels) -> bytes:
    """Return a linear classifier as an ONNX file: Flatten, Gemm, Softmax."""
    with threadpool_limits(1):  # Sums over threads end in any order: the digest would change from run to run.
        model = LogisticRegression(C=PENALTY_LINEAR, max_iter=1000).fit(images.reshape(len(images), -1), digits)
    return _graph([helper.make_node("Flatten", ["pixels"], ["features"])], {}, (model.coef_, model.intercept_))


def convolutional(images: Images, digits: Labels) -> bytes:
    """Return a convolutional classifier as an ONNX file: Conv, Relu, AveragePool, Flatten, Gemm, Softmax."""
    with threadpool_limits(1):
        filters, bias = _learn_filters(images)
        body = [
            helper.make_node("Conv", ["pixels", "filters", "bias"], ["matches"], pads=[FILTER // 2] * 4),
            helper.make_node("Relu", ["matches"], ["strokes"]),
            helper.make_node("AveragePool", ["strokes"], ["places"], kernel_shape=[4, 4], strides=[2, 2]),
            helper.make_node("Flatten", ["places"], ["features"]),
        ]
        weights = {"filters": filters, "bias": bias}
        shifted, repeated = _with_shifts(images, digits)
        features = load_onnxruntime(_graph(body, weights, None))(shifted)
        mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-3
        model = LogisticRegression(C=PENALTY_NET, max_iter=300).fit((features - mean) / spread, repeated)
    head = model.coef_ / spread
    return _graph(body, weights, (head, model.intercept_ - head @ mean))


def _learn_filters(images: Images) -> tuple[Weights, Weights]:
    """Return filters [FILTERS, 1, FILTER, FILTER] and bias [FILTERS]: whitening, k-means and threshold in one Conv."""
    padded = np.pad(images[:, 0], ((0, 0), (FILTER // 2,) * 2, (FILTER // 2,) * 2)).astype(np.float64)
    patches = sliding_window_view(padded, (FILTER, FILTER), axis=(1, 2)).reshape(-1, FILTER * FILTER)
    mean = patches.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(patches, rowvar=False))
    whitening = axes @ np.diag(1 / np.sqrt(variances + WHITENING_FLOOR)) @ axes.T
    white = (patches - mean) @ whitening
    contrast = np.linalg.norm(white, axis=1, keepdims=True)
    strokes = contrast[:, 0] > np.percentile(contrast, FLAT_PERCENTILE)
    means = MiniBatchKMeans(FILTERS, random_state=0, n_init=3, batch_size=2048, max_iter=50)
    centres = means.fit(white[strokes] / contrast[strokes]).cluster_centers_
    directions = whitening @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    return (
        directions.T.reshape(FILTERS, 1, FILTER, FILTER).astype(np.float32),
        (-mean @ directions - THRESHOLD).astype(np.float32),
    )


def _with_shifts(images: Images, digits: Labels) -> tuple[Images, Labels]:
    """Return the images and the same moved by one pixel each way, with their digits."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    places = [(1, 1), (1, 2), (1, 0), (2, 1), (0, 1)]
    moved = [padded[:, :, top : top + IMAGE, left : left + IMAGE] for top, left in places]
    return np.concatenate(moved), np.tile(digits, len(places))


def _graph(
    body: list[onnx.NodeProto],
    weights: dict[str, Weights],
    head: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
) -> bytes:
    """Return `body` (from `pixels` to `features`) as a model; with `head` it ends in `probabilities`."""
    constants = dict(weights)
    nodes, output, width = list(body), "features", None
    if head is not None:
        constants |= {"head": head[0].astype(np.float32), "offset": head[1].astype(np.float32)}
        nodes += [
            helper.make_node("Gemm", ["features", "head", "offset"], ["scores"], transB=1),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ]
        output, width = "probabilities", DIGITS
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, IMAGE, IMAGE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw
