"""The JSON Schema (2020-12) of a policy document: from the types, the texts under their fields, and `check`'s ranges.

An editor that knows it completes and explains a policy. It is wider than `check`, which also sees across fields.
"""

import ast
import inspect
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from muster_controller.core.policy import CAUSES, RANGES, WAVES_MAX, Policy, fields
from muster_controller.core.policy.check import LIST_MAX, NAME_MAX
from muster_controller.core.selector import TEXT_MAX
from muster_controller.policy_document import units
from muster_shared import assignment

Json = dict[str, Any]
"""A piece of the schema, as msgspec and `json` have it."""
_MORE = {("Trial", "mode"): "shadow: the candidate answers too, unseen. canary: it answers its share of the requests."}
"""Texts for fields that speak for themselves in the source."""
ID = "https://muster.example/policy.schema.json"
_DAY = "(mon|tue|wed|thu|fri|sat|sun)"
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"


def schema() -> Json:
    """Return the schema of what `parse_policy` reads."""
    _, found = msgspec.json.schema_components((Policy,), ref_template="#/$defs/{name}")
    components = cast("dict[str, Json]", found)
    texts = descriptions()
    for name, component in components.items():
        component["description"], described = texts[name]
        component["additionalProperties"] = False
        for field, schema in component["properties"].items():
            schema["description"] = described[field]
    policy = components.pop("Policy")
    for path, parent, field in list(_fields(policy, components, "")):
        parent["properties"][field] = _as_written(path, parent["properties"][field])
    policy["properties"] = {"version": {"const": 1, "description": "Of this format."}, **policy["properties"]}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        **policy,
        "title": "Muster rollout policy",
        "not": {"required": ["waves", "ramp"], "properties": {"ramp": {"type": "object"}}},
        "$defs": components,
    }
    return msgspec.json.decode(msgspec.json.encode(whole), type=Json)  # Tuples become what JSON has.


def descriptions() -> dict[str, tuple[str, dict[str, str]]]:
    """Return by class name its text, and the text of each of its fields, as they stand in the source."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for module in (fields, assignment):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                more = {field: text for (name, field), text in _MORE.items() if name == node.name}
                found[node.name] = (" ".join((ast.get_docstring(node) or "").split()), dict(_texts(node)) | more)
    return found


def _texts(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for position, statement in enumerate(node.body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = ""
            match node.body[position + 1 : position + 2]:
                case [ast.Expr(value=ast.Constant(value=str(said)))]:
                    text = " ".join(said.split())
            yield statement.target.id, text


def _fields(node: Json, components: dict[str, Json], prefix: str) -> Iterator[tuple[str, Json, str]]:
    """Every field with its path, the component that it is in, and its name there."""
    for name, schema in node["properties"].items():
        yield f"{prefix}{name}", node, name
        choices = [schema, *schema.get("anyOf", [])]
        for is_list, choice in [(False, one) for one in choices] + [(True, one.get("items", {})) for one in choices]:
            if "$ref" in choice:
                component = components[choice["$ref"].rpartition("/")[2]]
                yield from _fields(component, components, f"{prefix}{name}{'[]' if is_list else ''}.")


def _as_written(path: str, schema: Json) -> Json:
    """Return `schema` with what the document also takes, and without what `check` refuses."""
    description = {"description": schema.pop("description")}
    default = {"default": schema.pop("default")} if "default" in schema else {}
    if path in RANGES:
        low, high = RANGES[path]
        for choice in [schema, *schema.get("anyOf", [])]:
            if choice.get("type") in ("number", "integer"):
                choice["minimum"], choice["maximum"] = low, high
    if units.is_duration(path):
        schema = _either(schema, {"type": "string", "pattern": units.DURATION_PATTERN, "maxLength": units.TEXT_MAX})
    elif path in units.SHARES:
        schema = _either(schema, {"type": "string", "pattern": units.SHARE_PATTERN, "maxLength": units.TEXT_MAX})
    elif path == "waves":
        schema |= {"items": _count_or_share(schema["items"]), "minItems": 1, "maxItems": WAVES_MAX}
    elif path in units.COUNTS_OR_SHARES:
        schema = _count_or_share(schema)
    elif path in ("abort_when", "approvals", "maintenance"):
        schema["maxItems"] = LIST_MAX
    elif path == "approvals[].by":
        schema |= {"uniqueItems": True, "maxItems": LIST_MAX}
        schema["items"] |= {"minLength": 1, "maxLength": NAME_MAX}
    elif path == "approvals[].before":
        for choice in schema["anyOf"]:
            if choice.get("type") == "integer":
                choice |= {"minimum": 1, "maximum": WAVES_MAX + 1}
    elif path == "abort_when[].reason":
        schema = {"enum": [*sorted(CAUSES), None]}
    elif path == "maintenance[].days":
        schema["pattern"] = f"^ *{_DAY}( *- *{_DAY})? *(, *{_DAY}( *- *{_DAY})? *)*$"
    elif path == "maintenance[].start":
        schema["pattern"] = f"^{_TIME}$"
    elif path == "maintenance[].end":
        schema["pattern"] = f"^({_TIME}|24:00)$"
    elif path == "selector":
        schema["maxLength"] = TEXT_MAX
        schema = _either(schema, {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}})
    return {**schema, **description, **default}


def _either(schema: Json, other: Json) -> Json:
    return {"anyOf": [*schema.get("anyOf", [schema]), other]}


def _count_or_share(schema: Json) -> Json:
    choices = []
    for choice in schema["anyOf"]:
        extra: dict[str, Json] = {"integer": {"minimum": 1}, "string": {"pattern": units.COUNT_SHARE_PATTERN}}
        choices.append({**choice, **extra.get(choice.get("type", ""), {})})
    return {"anyOf": choices}
