"""The page that publishes a release from files. What it sends goes to the API: `static/upload.js`."""

from fastapi import Request
from fastapi.responses import HTMLResponse

from muster_controller.api.models import list_models
from muster_controller.api.services import Given
from muster_controller.operators.roles import Permission
from muster_controller.web.frame import pages, render

router = pages(Permission.PUBLISH)


@router.get("/publish")
def upload_page(request: Request, given: Given) -> HTMLResponse:
    return render(
        request,
        "upload.html",
        models=[model.name for model in list_models(given).models],
        initialised=given.releases.repository.is_ready,
        now=given.clock(),
    )
