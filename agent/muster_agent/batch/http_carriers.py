"""How rows and files travel over HTTP: V2 with binary tensors, and raw files for the release's own pipeline.

One connection for each part that is under way, by the standard library. All requests are of class `later`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

import numpy as np

from muster_agent.batch.carriers import Outcome
from muster_agent.batch.errors import BatchError, Busy, Lost, RowsRefused
from muster_agent.batch.folder import CONTENT
from muster_agent.batch.mapping import Column
from muster_agent.client.schema import pack_elements, unpack_elements
from muster_agent.engines.port import Array
from muster_agent.engines.port import InputRefused as TensorRefused
from muster_agent.engines.tensors import DATATYPES, DTYPES

ANSWER_BYTES_MAX = 256 * 1024 * 1024
JSON_LENGTH = "Inference-Header-Content-Length"
PREDICTIONS = "predictions"


class Connections:
    """One HTTP connection for each part."""

    def __init__(self, connect: Callable[[], HTTPConnection], token: str | None, parts: int) -> None:
        self._connections = [connect() for _ in range(parts)]
        self._headers = {"Muster-Priority": "later"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def post(self, part: int, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        try:
            self._connections[part].request("POST", path, body, {**self._headers, **headers})
        except (OSError, HTTPException) as error:
            raise Lost(f"the agent does not answer: {error}") from error

    def answer(self, part: int) -> tuple[HTTPResponse, bytes]:
        """Return the answer to what was posted.

        Raises:
            Busy, Lost, RowsRefused: it is none.
        """
        try:
            response = self._connections[part].getresponse()
            body = response.read(ANSWER_BYTES_MAX)
        except (OSError, HTTPException) as error:
            raise Lost(f"the agent does not answer: {error}") from error
        if response.status != 200:
            raise _problem(response.status, body)
        return response, body

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class HttpCarrier:
    """Tensors."""

    name = "HTTP"

    def __init__(
        self, connections: Connections, model: str, version: str | None, outputs: Sequence[str], *, is_batched: bool
    ) -> None:
        self._connections = connections
        self._path = f"/v2/models/{model}/versions/{version}/infer" if version else f"/v2/models/{model}/infer"
        self._outputs = tuple(outputs)
        self._is_batched = is_batched

    def begin(self, part: int, tensors: Mapping[str, Array], rows: int) -> None:
        """See `Carrier`."""
        described, datas = [], []
        for name, tensor in tensors.items():
            given = tensor if self._is_batched else tensor[0]
            data = pack_elements(given) if given.dtype.kind == "O" else np.ascontiguousarray(given).tobytes()
            described.append(
                {
                    "name": name,
                    "shape": list(given.shape),
                    "datatype": DATATYPES[given.dtype],
                    "parameters": {"binary_data_size": len(data)},
                }
            )
            datas.append(data)
        head = json.dumps(
            {
                "inputs": described,
                "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in self._outputs],
            }
        ).encode()
        self._connections.post(
            part,
            self._path,
            b"".join((head, *datas)),
            {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))},
        )

    def end(self, part: int) -> Outcome:
        """See `Carrier`."""
        response, body = self._connections.answer(part)
        try:
            return self._read(response, body)
        except (ValueError, KeyError, TypeError, TensorRefused) as error:
            raise Lost(f"what answers is no agent: {error}") from error

    def _read(self, response: HTTPResponse, body: bytes) -> Outcome:
        size = int(response.headers[JSON_LENGTH])
        answer = json.loads(body[:size])
        at, found = size, {}
        for output in answer["outputs"]:
            length, dtype, shape = output["parameters"]["binary_data_size"], DTYPES[output["datatype"]], output["shape"]
            if dtype.kind == "O":
                count = int(np.prod(shape))
                array: Array = unpack_elements(output["name"], memoryview(body)[at : at + length], 0, count)[0]
            else:
                array = np.frombuffer(body, dtype, length // dtype.itemsize, at)
            found[str(output["name"])] = array.reshape(shape if self._is_batched else (1, *shape))
            at += length
        return Outcome(found, str(answer["model_version"]), str(answer.get("parameters", {}).get("digest", "")))

    def close(self) -> None:
        """See `Carrier`."""
        self._connections.close()


class PredictCarrier:
    """Raw files, one a part; what is predicted of each is the column `predictions`."""

    name = "HTTP, through the release's pipeline"

    def __init__(self, connections: Connections, model: str, version: str | None) -> None:
        self._connections = connections
        self._path = f"/v1/models/{model}/versions/{version}/predict" if version else f"/v1/models/{model}/predict"

    def begin(self, part: int, tensors: Mapping[str, Array], rows: int) -> None:
        """See `Carrier`."""
        content = tensors[CONTENT].tolist()[0]
        assert isinstance(content, bytes), "folders give bytes"
        self._connections.post(part, self._path, content, {"Content-Type": "application/octet-stream"})

    def end(self, part: int) -> Outcome:
        """See `Carrier`."""
        _, body = self._connections.answer(part)
        try:
            answer = json.loads(body)
            predictions = answer[PREDICTIONS]
            told = answer["parameters"]
            outputs = {name: _cell(value) for name, value in predictions.items()}
            return Outcome(outputs, str(answer["model_version"]), str(told.get("digest", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Lost(f"what answers is no agent: {error}") from error

    def close(self) -> None:
        """See `Carrier`."""
        self._connections.close()


def predicted_columns(outcome: Outcome) -> tuple[Column, ...]:
    """Return the columns of predictions such as these."""
    return tuple(Column(name, array.dtype) for name, array in outcome.outputs.items())


def _cell(value: Any) -> Array:
    """Return one prediction as a row: a number or a text as it is, anything else as it was said."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return np.array([value], dtype=np.float64)
    cell: Array = np.empty(1, dtype=object)
    cell[0] = value
    return cell


def _problem(status: int, body: bytes) -> BatchError:
    try:
        said = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        said = f"it answers {status}"
    if status in (429, 503):
        return Busy(said)
    if status in (404, 504):
        return Lost(said)
    return RowsRefused(said)
