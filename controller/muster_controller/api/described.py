"""What the API's document says besides what the routes say: headers that hold for all of them, problems, examples.

The headers are those of `once` and `guard`, which no route knows; the examples are in examples.json, real answers that
were shortened. So routes and types stay free of both. Pure but for reading that file.
"""

import json
from importlib import resources
from typing import Any, Final

from muster_controller.api.once import IDEMPOTENCY_KEY, REPLAYED
from muster_controller.api.problem_kinds import KINDS, TYPE_PREFIX
from muster_controller.api.problems import MEDIA_TYPE

JSON: Final = "application/json"
ORDERS: Final = ("post", "put", "delete")
CHANGES: Final = ("put", "delete")
_PROBLEM: Final = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_TAG: Final = {"type": "string", "examples": ['"9f86d081884c7d659a2feaa0c55ad015"']}

HEADERS: Final[dict[str, Any]] = {
    "ETag": {"description": "Of this answer, for `If-None-Match` and `If-Match`.", "schema": _TAG},
    REPLAYED: {
        "description": "The order was carried out before, and this is the answer that it got.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    "X-Request-ID": {
        "description": "What the log and the audit log call this request: yours, where it sent a sane one.",
        "schema": {"type": "string", "examples": ["b7c1d0f25a3e4966"]},
    },
}
PARAMETERS: Final[dict[str, Any]] = {
    IDEMPOTENCY_KEY: {
        "name": IDEMPOTENCY_KEY,
        "in": "header",
        "required": False,
        "description": "Carry it out once, however often it is sent within a day. Best a random UUID.",
        "schema": {
            "type": "string",
            "pattern": "^[\\x21-\\x7e]{16,255}$",
            "examples": ["5f0c9a52-63d1-4b0e-9a6e-0d7f6b1f2c11"],
        },
    },
    "If-None-Match": {
        "name": "If-None-Match",
        "in": "header",
        "required": False,
        "description": "An `ETag` that you have: the answer is 304 without a body where it is still that.",
        "schema": _TAG,
    },
    "If-Match": {
        "name": "If-Match",
        "in": "header",
        "required": False,
        "description": "The `ETag` that GET had: the order is refused (412) where the thing was changed since.",
        "schema": _TAG,
    },
}
RESPONSES: Final[dict[str, Any]] = {
    "Problem": {
        "description": "A problem (RFC 9457).",
        "headers": {"X-Request-ID": {"$ref": "#/components/headers/X-Request-ID"}},
        "content": _PROBLEM,
    },
    "NotModified": {
        "description": "It is what `If-None-Match` says.",
        "headers": {"ETag": {"$ref": "#/components/headers/ETag"}},
    },
    "Stale": {"description": "It was changed since `If-Match`. Nothing was done.", "content": _PROBLEM},
    "TooManyRequests": {
        "description": "Too many requests, or too many wrong passwords.",
        "headers": {"Retry-After": {"$ref": "#/components/headers/Retry-After"}},
        "content": _PROBLEM,
    },
}


def describe(document: dict[str, Any]) -> None:
    """Add headers, problems and examples to an OpenAPI document, in place."""
    _add_components(document["components"])
    found = json.loads(resources.files(__package__).joinpath("examples.json").read_bytes())
    for name, schema in document["components"]["schemas"].items():
        if name in found["schemas"]:
            schema.pop("example", None)  # That of a base, which is no example of this.
            schema["examples"] = [found["schemas"][name]]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_tagged = _is_json(operations.get("get", {}))
            _add_headers(method, operation, is_tagged=is_tagged)
            for status, response in operation["responses"].items():
                for media, content in response.get("content", {}).items():
                    example = found["answers"].get(f"{method.upper()} {path} {status} {media}")
                    if example is not None:
                        content["example"] = example


def has_example(schema: dict[str, Any]) -> bool:
    """Return whether a schema, or the content of a body, says what such a thing looks like."""
    return "example" in schema or bool(schema.get("examples"))


def _add_components(components: dict[str, Any]) -> None:
    components["headers"] = HEADERS
    components["parameters"] = PARAMETERS
    components["responses"] = RESPONSES
    kind = components["schemas"]["Problem"]["properties"]["type"]
    kind["examples"] = [f"{TYPE_PREFIX}{each}" for each in KINDS]


def _add_headers(method: str, operation: dict[str, Any], *, is_tagged: bool) -> None:
    """`is_tagged`: whether the path has a GET with an `ETag`."""
    parameters, responses = operation.setdefault("parameters", []), operation["responses"]
    if method in ORDERS and not _is_bytes(operation):
        parameters.append({"$ref": f"#/components/parameters/{IDEMPOTENCY_KEY}"})
        _say(responses, REPLAYED)
    if method == "get" and is_tagged:
        parameters.append({"$ref": "#/components/parameters/If-None-Match"})
        responses["304"] = {"$ref": "#/components/responses/NotModified"}
        _say(responses, "ETag")
    if method in CHANGES and is_tagged:
        parameters.append({"$ref": "#/components/parameters/If-Match"})
        responses["412"] = {"$ref": "#/components/responses/Stale"}
    responses["429"] = {"$ref": "#/components/responses/TooManyRequests"}
    responses["default"] = {"$ref": "#/components/responses/Problem"}


def _say(responses: dict[str, Any], header: str) -> None:
    for status, response in responses.items():
        if status.startswith("2"):
            response.setdefault("headers", {})[header] = {"$ref": f"#/components/headers/{header}"}


def _is_json(operation: dict[str, Any]) -> bool:
    return JSON in operation.get("responses", {}).get("200", {}).get("content", {})


def _is_bytes(operation: dict[str, Any]) -> bool:
    return "application/octet-stream" in operation.get("requestBody", {}).get("content", {})
