"""No route is open by oversight: each asks for a permission, or stands in the short list of those that nobody needs."""

from collections.abc import Iterator
from typing import cast

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from muster_controller.api.app import create_app
from muster_controller.api.authentication import Require
from muster_controller.api.guard import OPEN, SAFE
from muster_controller.api.services import Services
from muster_controller.operators.roles import Permission
from muster_controller.web.pages import ROUTERS

READERS = {  # These change nothing, though they are asked by POST.
    "/api/v1/policies/check",
}


def routes() -> list[tuple[str, APIRoute]]:
    app = create_app(cast(Services, None))  # Looking at routes calls none of them.
    for router in ROUTERS:
        app.include_router(router)
    found = [(each.path or "", each.original_route) for each in iter_route_contexts(app.routes)]
    assert all(isinstance(route, APIRoute) for _, route in found), "a route that is none of FastAPI's asks for nothing"
    return [(path, route) for path, route in found if isinstance(route, APIRoute)]


def asked(dependant: Dependant) -> Iterator[Permission]:
    for each in dependant.dependencies:
        if isinstance(each.call, Require):
            yield each.call.permission
        yield from asked(each)


def test_every_route_asks_for_a_permission() -> None:
    found = routes()

    silent = {path for path, route in found if not list(asked(route.dependant))}
    assert len(found) > 70
    assert silent == set(OPEN)


def test_what_changes_something_asks_for_more_than_to_see() -> None:
    changing = [(path, route) for path, route in routes() if not set(route.methods) <= set(SAFE) and path not in OPEN]

    seeing = {path for path, route in changing if set(asked(route.dependant)) == {Permission.VIEW}}
    assert changing
    assert seeing == READERS


def test_whatever_has_to_do_with_operators_is_for_admins() -> None:
    found = [(path, route) for path, route in routes() if path.startswith(("/api/v1/operators", "/users"))]

    assert len(found) > 12
    for path, route in found:
        assert Permission.ADMINISTER in set(asked(route.dependant)), path
