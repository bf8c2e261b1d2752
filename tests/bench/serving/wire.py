"""One inference as each server wants to be asked for it: path, headers and body; and whether an answer is right.

Every request of a run is the same. What is asked for in binary is answered in binary.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.serving.models import Array, Subject

Form = Literal["v2-binary", "v2-json", "raw", "rows"]
"""`raw`: the tensor's bytes alone, both ways. `rows`: {"input": rows} and {"output": rows}, as plain apps have it."""

HEADER_LENGTH = "inference-header-content-length"
ALIKE = 0.98  # Cosine: engines round int8 differently, and a wrong tensor is nowhere near.
_DTYPES = {"FP32": "float32", "INT32": "int32"}


class AnswerWrong(Exception):
    """A server that is not doing the work has no place in a comparison."""


@dataclass(frozen=True)
class Ask:
    """A POST."""

    path: str
    headers: Mapping[str, str]
    body: bytes


def ask(subject: Subject, form: Form, path: str | None = None) -> Ask:
    """Return the request for `subject`'s example row; `path` when it is not V2's."""
    spec, row = subject.input, np.ascontiguousarray(subject.example)
    path = path or f"/v2/models/{subject.name}/infer"
    tensor = {"name": spec.name, "shape": list(row.shape), "datatype": spec.datatype}
    match form:
        case "v2-binary":
            tensor["parameters"] = {"binary_data_size": row.nbytes}
            head = _dump({"inputs": [tensor], "parameters": {"binary_data_output": True}})
            kind = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
            return Ask(path, kind, head + row.tobytes())
        case "v2-json":
            return Ask(path, _JSON, _dump({"inputs": [{**tensor, "data": _numbers(row.ravel())}]}))
        case "rows":
            return Ask(path, _JSON, _dump({"input": _numbers(row)}))
        case "raw":
            return Ask(path, {"content-type": "application/octet-stream"}, row.tobytes())


def check(subject: Subject, form: Form, headers: Mapping[str, str], body: bytes) -> None:
    """Raise AnswerWrong unless `body` holds what `subject` answers to its example."""
    try:
        answer = _read(form, headers, body)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise AnswerWrong(f"{form} answer does not parse ({error!r}): {body[:200]!r}") from error
    expected = subject.expected.ravel().astype(np.float64)
    if answer.size != expected.size:
        raise AnswerWrong(f"{answer.size} numbers came for {expected.size}")
    alike = float(answer @ expected / (np.linalg.norm(answer) * np.linalg.norm(expected)))
    if not alike > ALIKE:
        raise AnswerWrong(f"the answer is not the model's: cosine {alike:.3f}")


_JSON = {"content-type": "application/json"}


def _read(form: Form, headers: Mapping[str, str], body: bytes) -> Array:
    match form:
        case "v2-binary":
            raw = body[int(headers[HEADER_LENGTH]) :]
            return np.frombuffer(raw, np.float32).astype(np.float64)
        case "raw":
            return np.frombuffer(body, np.float32).astype(np.float64)
        case "v2-json":
            return np.array(json.loads(body)["outputs"][0]["data"], np.float64).ravel()
        case "rows":
            return np.array(json.loads(body)["output"], np.float64).ravel()


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _numbers(array: Array) -> object:
    """Return nested lists without the digits that a float32 has only as a float64."""
    return (
        [_numbers(row) for row in array]
        if array.ndim > 1
        else [float(str(each)) if array.dtype.kind == "f" else int(each) for each in array]
    )
