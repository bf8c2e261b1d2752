"""The frame of every page: how one is rendered, how our errors look, and what the templates know.

The pages themselves are in `pages/`; they read only, and their buttons send orders to the API.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from muster_controller.api.authentication import require
from muster_controller.api.problems import classify
from muster_controller.api.services import Services
from muster_controller.operators.roles import GRANTS, Permission
from muster_controller.web import forms, log_present, present
from muster_shared.errors import MusterError

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """A page in the navigation, for whoever has the permission; `g` and then `key` goes there."""

    title: str
    href: str
    key: str
    permission: str = Permission.VIEW.value


NAVIGATION = (
    Entry("Overview", "/", "o"),
    Entry("Devices", "/devices", "d"),
    Entry("Models", "/models", "m"),
    Entry("Rollouts", "/rollouts", "r"),
    Entry("Alerts", "/alerts", "a"),
    Entry("Review", "/reviews", "w"),
    Entry("Audit", "/audit", "u", Permission.ADMINISTER.value),
    Entry("Keys", "/keys", "k"),
    Entry("Settings", "/settings", "s"),
    Entry("Help", "/help", "h"),
)


def add_pages(app: FastAPI, services: Services, *routers: APIRouter) -> None:
    """Add pages and what they load to `app`."""
    app.state.templates = _environment(services)
    for each in routers:
        app.include_router(each, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")


class Page(APIRoute):
    """Shows our errors as pages, not as JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handler(request)
            except MusterError as error:
                return render(request, "problem.html", status=classify(error)[0], problem=str(error))
            except RequestValidationError:
                return render(
                    request, "problem.html", status=422, problem="This does not fit: something is missing, or too long."
                )

        return shown


def pages(permission: Permission = Permission.VIEW) -> APIRouter:
    """Return a router of pages for whoever has `permission`."""
    return APIRouter(route_class=Page, default_response_class=HTMLResponse, dependencies=[require(permission)])


def render(request: Request, template: str, *, status: int = 200, **values: object) -> HTMLResponse:
    environment: Environment = request.app.state.templates
    who = forms.principal(request)
    body = environment.get_template(template).render(
        path=request.url.path,
        who=who,
        may=set() if who is None else {each.value for each in GRANTS[who.role]},
        csrf=forms.token(request),
        **values,
    )
    answer = HTMLResponse(body, status, headers={"Cache-Control": "no-store"})
    forms.keep(request, answer)
    return answer


def _environment(services: Services) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ago=present.ago,
        bytes=present.size,
        clock=present.clock_time,
        day=present.day_time,
        evidence=present.number,
        host_rows=present.host_rows,
        log_lines=log_present.log_lines,
        percent=present.percent,
        span=present.span,
        stamp=present.stamp,
        words=present.words,
    )
    environment.globals.update(
        fleet=services.fleet_id,
        nav=NAVIGATION,
        muster_version=services.version,  # Pages have versions of their own.
        open_lab=services.open_lab,
        query=present.query,
        tones=present.TONES,
    )
    return environment
