"""The API's document explains every operation, shows an example of all that is JSON, and pages every list."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from muster_controller.api import document as openapi
from muster_controller.api import problems
from muster_controller.api.described import has_example
from muster_controller.api.device_export import COLUMNS
from muster_controller.api.problem_kinds import KINDS, table
from muster_controller.audit.export import read
from muster_controller.export.lines import parse_series, parse_sums

ROOT = Path(__file__).parents[2]
API = ROOT / "controller" / "muster_controller" / "api"
DOCUMENT: dict[str, Any] = json.loads(openapi.text())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
REFERENCE = "#/components/schemas/"
WHOLE = "all in one page"
"""What a list says that is too short for pages."""


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, found in DOCUMENT["paths"].items():
        for method, operation in found.items():
            yield f"{method.upper()} {path}", operation


def contents() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield where, the media type and the content of every request's body and every answer that is no problem."""
    for name, operation in operations():
        for media, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{name} takes", media, content
        for status, response in operation["responses"].items():
            if status.startswith("2"):
                for media, content in response.get("content", {}).items():
                    yield f"{name} answers {status}", media, content


def shown(content: dict[str, Any]) -> list[Any]:
    """Return the examples of a content: its own, or those of each schema that it may be."""
    if "example" in content:
        return [content["example"]]
    schema = content.get("schema", {})
    parts = [each for each in schema.get("anyOf", [schema]) if "$ref" in each]
    found = [SCHEMAS[each["$ref"].removeprefix(REFERENCE)] for each in parts]
    if not found or not all(map(has_example, found)):
        return []
    return [example for each in found for example in each.get("examples", [each.get("example")])]


def flaws(schema: dict[str, Any], example: Any) -> list[str]:
    validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    return [f"{each.json_path}: {each.message}" for each in validator.iter_errors(example)]


def test_every_operation_has_a_summary_and_a_description() -> None:
    silent = [name for name, each in operations() if not each.get("summary") or not each.get("description")]

    assert not silent, "give these routes a docstring"


def test_all_json_has_an_example_that_fits_its_schema() -> None:
    found = [(where, content) for where, media, content in contents() if media == "application/json"]

    wrong = {
        where: said for where, each in found for one in shown(each) if (said := flaws(each.get("schema", {}), one))
    }
    assert len(found) > 140
    assert not [where for where, each in found if not shown(each)], "add one to api/examples.json, by the schema's name"
    assert not wrong


def test_text_has_an_example_too() -> None:
    kinds = ("text/", "application/x-ndjson")
    found = [(where, each) for where, media, each in contents() if media.startswith(kinds)]

    assert [where for where, each in found if "example" not in each] == []
    assert any("stream" in where for where, _ in found)


def test_examples_of_exports_are_lines_that_their_readers_take() -> None:
    found = {where.split(" ")[1]: each["example"] for where, media, each in contents() if media.endswith("x-ndjson")}

    assert set(found) == {"/api/v1/audit/export", "/api/v1/export/series", "/api/v1/export/sums"}
    assert [parse_sums(line) for line in found["/api/v1/export/sums"].encode().splitlines()]
    assert [parse_series(line) for line in found["/api/v1/export/series"].encode().splitlines()]
    assert list(read(found["/api/v1/audit/export"].encode().splitlines(keepends=True)).items)
    table = [each["example"] for where, media, each in contents() if media == "text/csv"]
    assert [text.splitlines()[0].split(",") for text in table] == [list(COLUMNS)]


def test_every_example_belongs_to_something() -> None:
    found = json.loads((API / "examples.json").read_text())

    answers = {f"{name} {media}" for name, media, _ in contents()}
    strange = set(found["schemas"]) - set(SCHEMAS)
    lost = {each for each in found["answers"] if _as_content(each) not in answers}
    assert not strange
    assert not lost
    assert not [name for name in found["schemas"] if SCHEMAS[name].get("examples") != [found["schemas"][name]]]


def _as_content(key: str) -> str:
    method, path, status, media = key.split(" ")
    return f"{method} {path} answers {status} {media}"


def test_every_list_has_pages_or_says_that_it_is_whole() -> None:
    unpaged = []
    for name, operation in operations():
        schema = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
        found = SCHEMAS.get(schema.get("$ref", "").removeprefix(REFERENCE), {}).get("properties", {})
        asked = {each.get("name") for each in operation["parameters"]}
        is_list = "next" in found or [each.get("type") for each in found.values()] == ["array"]
        if name.startswith("GET") and is_list and not {"limit", "cursor"} <= asked:
            unpaged += [] if WHOLE in operation["description"] else [name]

    assert not unpaged


def test_every_order_takes_a_key_but_the_one_that_is_one() -> None:
    keyed = "#/components/parameters/Idempotency-Key"
    without = [
        name
        for name, each in operations()
        if not name.startswith("GET") and not any(one.get("$ref") == keyed for one in each["parameters"])
    ]

    assert without == ["PUT /api/v1/blobs/{sha256}"]


def test_each_answer_says_which_header_goes_with_it() -> None:
    found = dict(operations())

    listed, changed = found["GET /api/v1/objectives/{name}"], found["PUT /api/v1/objectives/{name}"]
    assert "ETag" in listed["responses"]["200"]["headers"]
    assert "304" in listed["responses"]
    assert {"$ref": "#/components/parameters/If-Match"} in changed["parameters"]
    assert "412" in changed["responses"]
    assert "412" not in found["DELETE /api/v1/silences/{silence}"]["responses"], "there is no GET to have an ETag from"
    assert all("429" in each["responses"] for each in found.values())


# -- problems ----------------------------------------------------------------------------------------------------------


def raised_by_name() -> set[tuple[str, int]]:
    """Return the kinds and statuses that code of the API says outright: `problem(422, "…")`, `Refused(403, "…")`."""
    found = set()
    for file in API.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("problem", "Refused")
            ):
                said = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
                if len(said) == 2:
                    found.add((str(said[1]), int(str(said[0]))))
    return found


def test_every_kind_of_problem_is_explained_and_there_are_no_others() -> None:
    by_error = {(kind, status) for _, status, kind in problems.PROBLEMS}
    by_framework = {("bad-request", 400), ("not-found", 404), ("method-not-allowed", 405), ("too-large", 413)}

    assert {(kind, status) for kind, (status, _) in KINDS.items()} == (by_error | by_framework | raised_by_name())


def test_the_page_has_the_table_of_problems() -> None:
    assert table() in (ROOT / "docs" / "api.md").read_text(), "copy what muster_controller.api.problem_kinds.table says"


@pytest.mark.parametrize("kind", ["stale", "too-many-requests"])
def test_the_document_lists_the_kinds_of_problems(kind: str) -> None:
    listed = SCHEMAS["Problem"]["properties"]["type"]["examples"]

    assert f"urn:muster:problem:{kind}" in listed
