"""Puts the API together: routes below /api/v1, problems, and the guard in front."""

from typing import Any

from fastapi import FastAPI

from muster_controller import __version__
from muster_controller.api import (
    alerts,
    audit,
    described,
    device_actions,
    devices,
    diff,
    export,
    fleet,
    identity,
    keys,
    labels,
    metrics,
    mixers,
    models,
    objectives,
    operators,
    policies,
    problems,
    prometheus,
    releases,
    review,
    rollouts,
    saved_views,
    sessions,
)
from muster_controller.api.guard import Guard
from muster_controller.api.once import Once
from muster_controller.api.problems import MEDIA_TYPE, Problem
from muster_controller.api.services import Services

PREFIX = "/api/v1"
BODY_BYTES_MAX = 16 * 1024 * 1024  # Of JSON: a manifest and its metadata. Blobs have a limit of their own.

DESCRIPTION = """
Devices, releases and staged rollouts of one fleet. Every request comes from a principal: a bearer token
(`muster token create`), or a session of the page. What it may do its role says, and for which devices its selector.
Writes need the content type `application/json` (blobs: `application/octet-stream`). Errors are RFC 9457 problems.

An order with an `Idempotency-Key` (16 to 255 visible characters, best a random UUID) is carried out once: sent again
within a day it gets the same answer, with `Idempotency-Replayed: true`; a refused one may be sent again. Answers have
an `ETag`; `If-None-Match` saves sending what is known, and `If-Match` has a PUT or DELETE refused (412) where the
thing was changed since. Lists are pages: `next` of one is the `cursor` of the following. docs/api.md says more.
"""


class _App(FastAPI):
    """Whose document says that a token is wanted, and what else no route says."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["securitySchemes"] = {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token, or the local token. Pages send their session's cookie instead.",
                }
            }
            document["security"] = [{"token": []}]
            document["paths"][f"{PREFIX}/login"]["post"]["security"] = []
            described.describe(document)
        return super().openapi()


def create_app(services: Services) -> FastAPI:
    """Return the API over `services`; the page is added by `web`."""
    app = _App(
        title="Muster controller",
        version=__version__,
        description=DESCRIPTION,
        openapi_url=None,  # It is a route of ours, with a permission like any other: `fleet.openapi`.
        docs_url=None,  # Its page would load scripts from elsewhere.
        redoc_url=None,
        max_body_size=BODY_BYTES_MAX,
        responses={"default": {"model": Problem, "description": "A problem.", "content": {MEDIA_TYPE: {}}}},
    )
    app.state.services = services
    app.state.exposition = prometheus.Exposition()
    problems.install(app)
    for module in (
        fleet,
        devices,
        labels,
        saved_views,
        device_actions,
        models,
        releases,
        keys,
        rollouts,
        policies,
        diff,
        audit,
        sessions,
        operators,
        identity,
        metrics,
        mixers,
        alerts,
        objectives,
        review,
        export,
    ):
        app.include_router(module.router, prefix=PREFIX)
    app.include_router(fleet.outside)
    app.include_router(prometheus.router)
    app.add_middleware(Once, store=lambda: services.once)
    app.add_middleware(Guard, edge=lambda: services.edge)
    return app
