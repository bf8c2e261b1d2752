"""Predictions on raw files: what stands between `POST /v1/models/X/predict` and the service, without HTTP.

    body, Content-Type ── Predictor.prepare ──> Prepared ── call_arguments ──> Call ... outputs ── answer ──> JSON

`prepare` and `answer` belong on a worker thread: decoding an image takes milliseconds. One file a request.
"""

import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from muster_agent.engines.port import Array
from muster_agent.pipeline.pipeline import LoadedPipeline
from muster_agent.pipeline.value import Context, MediaRefused, Prepared
from muster_agent.serving.call import Raw, Shape
from muster_shared.pipeline import Media

OCTETS: Media = "application/octet-stream"
TEXT: Media = "text/plain"
ALIASES: dict[str, Media] = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/vnd.wave": "audio/wav",
}
UNSAID = frozenset(("", OCTETS, "application/x-www-form-urlencoded", "*/*"))
"""What clients send that do not know what they send: the second is what `curl --data-binary` says of everything."""
_ENCODER = msgspec.json.Encoder()


class Predictor:
    """One release's pipeline at the service of requests. It holds no state of a request; any thread may call it."""

    def __init__(self, pipeline: LoadedPipeline) -> None:
        self._pipeline = pipeline
        self._inputs = pipeline.manifest.inputs
        self._outputs = tuple(spec.name for spec in pipeline.manifest.outputs)

    def prepare(self, raw: bytes, content_type: str | None) -> Prepared:
        """Return the model's inputs for one raw file.

        Args:
            content_type: The header as it came; None when there was none.
        Raises:
            MediaRefused: a kind of file that the release does not accept.
            RawRefused: the file is not what a step takes.
        """
        return self._pipeline.prepare(raw, media_type(content_type, raw, self._pipeline.accepts))

    def call_arguments(self, prepared: Prepared) -> tuple[tuple[Raw, ...], tuple[Shape, ...], int]:
        """Return tensors, shapes and rows as `call.Call` takes them; the tensors are views, not copies."""
        arrays = [prepared.arrays[spec.name] for spec in self._inputs]
        has_rows = [bool(spec.shape) and spec.shape[0] == -1 for spec in self._inputs]
        tensors = tuple(array if array.dtype == object else _octets(array) for array in arrays)
        shapes = tuple(
            array.shape[1:] if batched else array.shape for array, batched in zip(arrays, has_rows, strict=True)
        )
        rows = next((len(array) for array, batched in zip(arrays, has_rows, strict=True) if batched), 1)
        return tensors, shapes, rows

    def predictions(self, outputs: Sequence[Array], context: Context) -> dict[str, object]:
        """Return what is predicted.

        Args:
            outputs: Those of this request alone, in the manifest's order (`Call.output`).
        Raises:
            FinishFailed: they cannot be read.
        """
        return self._pipeline.finish(dict(zip(self._outputs, outputs, strict=True)), context)


class PredictorOf:
    """The predictor of a release, loaded when the first file comes: its libraries are large, and few use it."""

    def __init__(self, load: Callable[[], LoadedPipeline]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._predictor: Predictor | None = None

    def get(self) -> Predictor:
        """Return it; slow the first time. Any thread may call it.

        Raises:
            PipelineMissing: the library of a step is not installed on this device.
            PipelineUnloadable: the release is broken.
        """
        with self._lock:
            if self._predictor is None:
                self._predictor = Predictor(self._load())
            return self._predictor


def encode_answer(
    model: str, version: str, request_id: str, predictions: Mapping[str, object], parameters: Mapping[str, object]
) -> bytes:
    """Return the body of an answer. Numbers that JSON does not have (NaN, infinities) become null."""
    return _ENCODER.encode(
        {
            "model_name": model,
            "model_version": version,
            "id": request_id,
            "predictions": predictions,
            "parameters": parameters,
        }
    )


def media_type(header: str | None, raw: bytes, accepts: Sequence[Media]) -> Media:
    """Return which of `accepts` the body `raw` is.

    What the header says counts. Where it says nothing (see UNSAID), the first bytes do. A release that accepts
    application/octet-stream takes whatever is none of its other kinds: any file is octets.

    Raises:
        MediaRefused: none of `accepts`.
    """
    said, _, parameters = (header or "").partition(";")
    said = said.strip().lower()
    if said in UNSAID:
        found = sniff(raw, accepts)
        if found is None:
            raise MediaRefused(said or "of no known kind", tuple(accepts))
        return found
    said = ALIASES.get(said, said)
    match = next((media for media in accepts if media == said), None)
    if match is None and OCTETS in accepts:
        return OCTETS
    charset = _charset(parameters)
    if match is None or (match == TEXT and charset not in ("", "utf-8", "utf8", "us-ascii")):
        raise MediaRefused(f"{said} {charset}".strip(), tuple(accepts))
    return match


def sniff(raw: bytes, accepts: Sequence[Media]) -> Media | None:
    """Return which of `accepts` the first bytes of `raw` speak for, or None."""
    found: Media | None = None
    if raw.startswith(b"\xff\xd8\xff"):
        found = "image/jpeg"
    elif raw.startswith(b"\x89PNG\r\n\x1a\n"):
        found = "image/png"
    elif raw.startswith(b"RIFF") and raw[8:12] == b"WAVE":
        found = "audio/wav"
    if found in accepts:
        return found
    if OCTETS in accepts:
        return OCTETS
    # Whether it is UTF-8 is for `decode_text` to say, which names the byte.
    return TEXT if found is None and TEXT in accepts else None


def _charset(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip('"').lower()
    return ""


def _octets(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
