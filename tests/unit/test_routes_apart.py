"""No address is two things: no word of a path stands where a device or a model of that name would have its own."""

import re
from collections.abc import Iterator
from typing import cast

from fastapi.routing import APIRoute, iter_route_contexts

from muster_controller.api.app import create_app
from muster_controller.api.services import Services
from muster_controller.web.pages import ROUTERS
from muster_shared.errors import WireError
from muster_shared.ids import name

MADE_HERE = {
    "rollout_id": "a rollout's is made of its model, its version and a number",
    "alert": "an alert's is hexadecimal",
    "file": "the four files of the metadata",
    "week": "a week is written 2026-W47",
    "ordinal": "a number",
    "order": "the words of an enum",
}
"""Parameters that nobody chooses, and why no word is one of them."""


def routes() -> list[tuple[str, str]]:
    app = create_app(cast(Services, None))  # Looking at routes calls none of them.
    for router in ROUTERS:
        app.include_router(router)
    found = [(each.path or "", each.original_route) for each in iter_route_contexts(app.routes)]
    return [(method, path) for path, route in found if isinstance(route, APIRoute) for method in route.methods or ()]


def shadows(found: list[tuple[str, str]]) -> Iterator[str]:
    """Yield each path that a path with a name in the same place stands for, too."""
    for method, path in found:
        for other_method, other in found:
            if method == other_method and path != other and (word := _word(path, other)):
                yield f"{method} {path}: {word} could be a name in {other}"


def _word(path: str, other: str) -> str | None:
    """Return what `path` says where `other` has a chosen name, if both have otherwise the same shape."""
    ours, theirs = path.split("/"), other.split("/")
    if len(ours) != len(theirs):
        return None
    words = []
    for mine, its in zip(ours, theirs, strict=True):
        parameter = re.fullmatch(r"\{(\w+)(?::\w+)?\}", its)
        if mine == its or (parameter and mine.startswith("{")):
            continue
        if parameter is None and not mine.startswith("{"):
            return None
        if parameter is not None and parameter[1] not in MADE_HERE and _is_name(mine):
            words.append(mine)
    return words[0] if words else None


def _is_name(word: str) -> bool:
    try:
        return bool(name(word, "it"))
    except WireError:
        return False


def test_no_page_and_no_route_takes_the_address_of_a_thing_with_a_name() -> None:
    found = routes()

    assert len(found) > 150
    assert sorted(shadows(found)) == []


def test_a_word_in_the_place_of_a_name_is_found() -> None:
    found = [("GET", "/devices/labels"), ("GET", "/devices/{device_id}"), ("GET", "/rollouts/{rollout_id}/report")]

    assert list(shadows(found)) == ["GET /devices/labels: labels could be a name in /devices/{device_id}"]
