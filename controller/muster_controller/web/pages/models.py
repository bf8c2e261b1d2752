"""Pages of models and their releases."""

from fastapi import Request
from fastapi.responses import HTMLResponse

from muster_controller.api.models import list_models
from muster_controller.api.services import Given
from muster_controller.api.views import release_view
from muster_controller.web import present
from muster_controller.web.frame import pages, render

router = pages()


@router.get("/models")
def models_page(request: Request, given: Given) -> HTMLResponse:
    releases = given.releases.releases()
    return render(
        request,
        "models.html",
        models=list_models(given).models,
        releases=[
            (release_view(release), given.releases.manifest(release.bundle_sha256)) for release in reversed(releases)
        ],
        bars={bar.model: bar for bar in present.model_bars(list_models(given).models)},
        expiries=given.expiries(),
        initialised=given.releases.repository.is_ready,
        now=given.clock(),
    )
