"""Puts the API together: routes below /api/v1, problems, and the guard in front."""

from fastapi import FastAPI

from muster_controller import __version__
from muster_controller.api import devices, diff, fleet, models, policies, problems, rollouts
from muster_controller.api.guard import Guard
from muster_controller.api.problems import MEDIA_TYPE, Problem
from muster_controller.api.services import Services

PREFIX = "/api/v1"
BODY_BYTES_MAX = 16 * 1024 * 1024  # Of JSON: a manifest and its metadata. Blobs have a limit of their own.

DESCRIPTION = """
Devices, releases and staged rollouts of one fleet. There is no authentication yet: the server listens on 127.0.0.1
alone. Writes need the content type `application/json` (blobs: `application/octet-stream`). Errors are RFC 9457
problems.
"""


def create_app(services: Services) -> FastAPI:
    """Return the API over `services`; the page is added by `web`."""
    app = FastAPI(
        title="Muster controller",
        version=__version__,
        description=DESCRIPTION,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # Its page would load scripts from elsewhere.
        redoc_url=None,
        max_body_size=BODY_BYTES_MAX,
        responses={"default": {"model": Problem, "description": "A problem.", "content": {MEDIA_TYPE: {}}}},
    )
    app.state.services = services
    problems.install(app)
    for module in (fleet, devices, models, rollouts, policies, diff):
        app.include_router(module.router, prefix=PREFIX)
    app.add_middleware(Guard)
    return app
